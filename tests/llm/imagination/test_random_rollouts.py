"""The control beside imagination: actions that nobody chose, judged by the same rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.core.rollout import Rollout
from kalm.data.goal_data import GoalData
from kalm.data.rollout_sources import RealRollouts
from kalm.envs.base import Domain
from kalm.envs.clevr_robot import ClevrRobot
from kalm.llm.imagination.random_rollouts import RandomRollouts
from kalm.store.reader import RolloutStore
from tests.chain_domain import ChainDomain
from tests.data.rollouts import real_rollouts, write_store
from tests.line_domain import LineDomain
from tests.rl.helpers import trainer
from tests.word_encoder import WordEncoder


def imagine_randomly(folder: Path, domain: Domain, num_rollouts: dict[str, int], seed: int = 0) -> list[Rollout]:
    """What ``predict`` writes, and reads again."""
    data = GoalData(domain, WordEncoder(), RealRollouts(str(folder / "real")), num_rollouts, seed=seed)
    run = folder / f"run-{seed}"
    run.mkdir()
    module = RandomRollouts(domain.spec)
    trainer(run, -1, [RolloutWriter()]).predict(module, data, return_predictions=False)
    store = RolloutStore(run / "store")
    return [store.rollout(row) for row in range(store.num_rollouts)]


def test_a_goal_judged_by_the_action_alone_is_met_by_chance_and_one_judged_by_states_never(tmp_path: Path) -> None:
    """CLEVR-Robot: 3 of 40 pushes meet an easy goal, 7.5 %, of 1,000 about 75 (give or take 4 x 8.3)."""
    domain = ClevrRobot()
    write_store(tmp_path / "real", list(domain.collect(4, seed=0)), domain=domain)
    rollouts = imagine_randomly(tmp_path, domain, {"easy": 1000, "rephrase": 20, "hard": 20})
    met = {split: [r.is_success for r in rollouts if r.goal_split == split] for split in ("easy", "rephrase", "hard")}
    assert 42 <= sum(met["easy"]) <= 108
    assert met["rephrase"] == met["hard"] == [False] * 20
    assert all(len(rollout) == (1 if rollout.goal_split == "easy" else 50) for rollout in rollouts)
    assert all((rollout.observations == rollout.observations[0]).all() for rollout in rollouts), "nothing moves"
    assert {rollout.provenance["model"] for rollout in rollouts} == {"random actions in a world that stands still"}


@pytest.mark.parametrize("domain", [ChainDomain(), LineDomain()], ids=["discrete", "continuous"])
def test_actions_cover_the_range_and_depend_on_the_seed_alone(tmp_path: Path, domain: Domain) -> None:
    """Discrete ones are each of the numbers, continuous ones fill [-1, 1]; the same seed gives the same again."""
    write_store(tmp_path / "real", list(domain.collect(20, seed=0)), domain=domain)
    one, other = (
        np.concatenate([r.actions for r in imagine_randomly(tmp_path, domain, {"easy": 40}, s)]) for s in (0, 1)
    )
    if domain.spec.is_discrete:
        assert one.mean() == pytest.approx(0.5, abs=0.1)
        assert set(one.tolist()) == {0, 1}
    else:
        assert one.min() < -0.9
        assert one.max() > 0.9
        assert abs(one.mean()) < 0.1
    assert one.shape == other.shape
    assert not np.array_equal(one, other)
    (tmp_path / "again").mkdir()
    write_store(tmp_path / "again/real", list(domain.collect(20, seed=0)), domain=domain)
    again = imagine_randomly(tmp_path / "again", domain, {"easy": 40})
    assert np.array_equal(one, np.concatenate([rollout.actions for rollout in again]))


def test_goals_sentences_and_starts_are_those_of_imagination(tmp_path: Path) -> None:
    """Rollout by rollout what the data module asks for."""
    write_store(tmp_path / "real", real_rollouts(40))
    rollouts = imagine_randomly(tmp_path, ChainDomain(), {"rephrase": 7, "hard": 3})
    data = GoalData(ChainDomain(), WordEncoder(), RealRollouts(str(tmp_path / "real")), {"rephrase": 7, "hard": 3})
    items = [item for shard in data.all_shards for item in shard.items]
    assert [rollout.instruction for rollout in rollouts] == [item.instructed.instruction for item in items]
    assert all(np.array_equal(r.observations[0], item.start) for r, item in zip(rollouts, items, strict=True))
