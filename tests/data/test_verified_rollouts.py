"""Which imagined rollouts may be learned from, and how rollouts of several stores are read as if they lay in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kalm.core import names
from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.filters import RolloutFilter
from kalm.data.joined_rollouts import JoinedRollouts
from kalm.data.verified_rollouts import rollout_tasks, verified_rollouts
from tests.chain_domain import CellGoal, ChainDomain, one_hot
from tests.data.rollouts import broken, imagined_rollouts, real_rollouts, write_store

DOMAIN = ChainDomain()


def walk(goal: int, cells: Sequence[int], rewards: Sequence[float] = ()) -> Rollout:
    """A rollout along some cells; a jump between cells that are no neighbours is implausible."""
    instructed = InstructedGoal(CellGoal(goal), f"go to {goal}", "hard")
    actions = (np.diff(cells) > 0).astype(np.int64)
    rollout = DOMAIN.label_rollout(instructed, one_hot(np.array(cells)), actions, Source.IMAGINARY)
    return broken(rollout, rewards=np.array(rewards, dtype=np.float32)) if rewards else rollout


def test_only_what_passes_the_filter_is_chosen(tmp_path: Path) -> None:
    """Rollout 0 meets its goal by steps, 1 by a jump, 2 not at all; of the second store the only one is sound."""
    stores = [
        write_store(tmp_path / "a", [walk(2, [0, 1, 2]), walk(2, [0, 2]), walk(2, [0, 1, 0])]),
        write_store(tmp_path / "b", [walk(4, [3, 4])]),
    ]
    chosen = {f: [rows.tolist() for rows in verified_rollouts(DOMAIN, stores, f)] for f in RolloutFilter}
    assert chosen[RolloutFilter.none] == [[0, 1, 2], [0]]
    assert chosen[RolloutFilter.success] == [[0, 1], [0]]
    assert chosen[RolloutFilter.plausible] == [[0, 2], [0]]
    assert chosen[RolloutFilter.both] == [[0], [0]]


def test_the_best_join_where_few_pass(tmp_path: Path) -> None:
    """Each task should have three. The centre's one success is joined by the two plausible misses that earned most.

    Of its misses, 1 earned 2 in all, 2 earned 3, 3 earned 5 by a jump, 4 earned nothing and 5 earned 2 after 1 had.
    The right end has three that pass already, so its miss stays out.
    """
    centre = [
        walk(2, [0, 1, 2]),
        walk(2, [0, 1, 0], [2, 0]),
        walk(2, [0, 1, 0], [1, 2]),
        walk(2, [0, 4, 3], [5, 0]),
        walk(2, [0, 1, 0], [0, 0]),
        walk(2, [0, 1, 0], [1, 1]),
    ]
    end = [walk(4, [3, 4]), walk(4, [2, 3, 4]), walk(4, [3, 4]), walk(4, [1, 2], [9])]
    stores = [write_store(tmp_path / "a", centre), write_store(tmp_path / "b", end)]
    first, second = verified_rollouts(DOMAIN, stores, RolloutFilter.both, num_least=3)
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [0, 1, 2]
    assert verified_rollouts(DOMAIN, stores, RolloutFilter.both, num_least=9)[0].tolist() == [0, 1, 2, 5]
    assert verified_rollouts(DOMAIN, stores, RolloutFilter.success, num_least=2)[0].tolist() == [0, 3]
    assert rollout_tasks(DOMAIN, stores[1]) == ["right_end"] * 4


def test_joined_rollouts_read_like_their_own_stores(tmp_path: Path) -> None:
    """Some rows of two stores in any order, beginnings left out: every transition is the one that was written."""
    written = [real_rollouts(20), imagined_rollouts(12, "easy")]
    stores = [write_store(tmp_path / str(number), rollouts) for number, rollouts in enumerate(written)]
    chosen = [np.array([3, 7, 19]), np.array([0, 11])]
    joined = JoinedRollouts(stores, chosen)
    in_line = [written[0][3], written[0][7], written[0][19], written[1][0], written[1][11]]
    assert joined.lengths.tolist() == [len(rollout) for rollout in in_line]
    assert [row.instruction for row in joined.instruction_rows] == [rollout.instruction for rollout in in_line]
    places, skipped = np.array([4, 1, 3, 0]), np.array([2, 0, 1, 0])
    observation, action = joined.read((names.OBSERVATION, names.ACTION), places, skipped)
    expected = [(in_line[place], skip) for place, skip in zip(places, skipped, strict=True)]
    assert torch.equal(action, torch.from_numpy(np.concatenate([r.actions[skip:] for r, skip in expected])))
    before = np.concatenate([r.observations[skip:-1] for r, skip in expected])
    assert torch.equal(observation, torch.from_numpy(before))
