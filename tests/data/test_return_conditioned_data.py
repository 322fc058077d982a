"""Rollouts with their returns: what an update gets, what is held out, and episodes that every policy is judged on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kalm.core.errors import CheckpointError, DataError
from kalm.data.choice import RolloutFilter
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.language_batches import GroundingTask, batch_rollouts
from kalm.data.policy_data import PolicyData
from kalm.data.return_conditioned_data import ReturnConditionedData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.symmetry import SymmetryKind
from tests.chain_domain import ChainDomain
from tests.data.rollouts import arguments, real_rollouts, write_store
from tests.llm.token_encoder import TokenEncoder


def make_data(folder: Path, **options: Any) -> ReturnConditionedData:
    """60 rollouts of the chain, of 1 to 12 steps, ten of them held out."""
    if not (folder / "real").exists():
        write_store(folder / "real", real_rollouts(60))
    defaults = {
        "real": RealRollouts(str(folder / "real")),
        "batch_size": 16,
        "num_held_out": 10,
        "evaluation": EvaluationEpisodes(3, 5),
    }
    return ReturnConditionedData(ChainDomain(), TokenEncoder(), **arguments(defaults, **options))


@pytest.mark.parametrize("options", [{}, {"crop_probability": 1.0}, {"symmetry": SymmetryKind.names}], ids=str)
def test_every_step_of_a_batch_has_its_return(tmp_path: Path, options: dict[str, Any]) -> None:
    """On the chain 1 from every step of a rollout that arrives, else 0; wherever it begins, whatever it is called."""
    data = make_data(tmp_path, **options)
    seen = set()
    for index in range(6):
        batch = data.batch(index)
        assert (batch.task == GroundingTask.GENERATION).all()
        expected = batch.is_terminated.float().repeat_interleave(batch.lengths)
        assert torch.equal(batch.return_to_go, expected)
        seen |= set(expected.tolist())
    assert seen == {0.0, 1.0}


def test_rollouts_in_memory_have_the_same_returns() -> None:
    """Against plain addition."""
    rollouts = real_rollouts(5)
    batch = batch_rollouts(rollouts, [""] * 5, GroundingTask.GENERATION)
    expected = [rollout.rewards[step:].sum() for rollout in rollouts for step in range(len(rollout))]
    assert batch.return_to_go.tolist() == pytest.approx(expected)


def test_statistics_leave_out_what_is_held_out(tmp_path: Path) -> None:
    """Returns of the first fifty of sixty rollouts; those that failed are used unless a filter says no."""
    rollouts = real_rollouts(60)
    statistics = make_data(tmp_path).rollout_statistics
    assert statistics.returns.tolist() == [rollout.rewards.sum() for rollout in rollouts[:50]]
    assert {rollout.is_success for rollout in rollouts[:50]} == {True, False}
    only_successes = make_data(tmp_path, real__filter=RolloutFilter.success).rollout_statistics
    assert set(only_successes.returns.tolist()) == {1.0}


def test_validation_has_held_out_rollouts_and_episodes(tmp_path: Path) -> None:
    """Ten rollouts; three episodes for each of four splits."""
    held_out, episodes = make_data(tmp_path).val_dataloader()
    assert [len(batch.rollouts) for batch in held_out] == [10]
    assert [len(batch) for batch in episodes] == [12]


def test_episodes_are_those_of_the_other_policies(tmp_path: Path) -> None:
    """Results can be put into one table: same goals, sentences and starts."""
    data = make_data(tmp_path)
    real = RealRollouts(str(tmp_path / "real"))
    policies = PolicyData(ChainDomain(), TokenEncoder(), real, evaluation=EvaluationEpisodes(3, 5))
    assert list(data.test_dataloader()) == list(policies.test_dataloader())
    assert list(data.val_dataloader()[1]) == list(policies.val_dataloader())
    assert list(data.test_dataloader()) != list(data.val_dataloader()[1])


def attached(data: ReturnConditionedData, verb: str) -> ReturnConditionedData:
    """As a trainer's."""
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=verb), world_size=1)  # type: ignore[assignment]
    return data


def test_evaluation_reads_no_rollouts(tmp_path: Path) -> None:
    """A test neither collects nor opens the real store."""
    data = attached(make_data(tmp_path, real=RealRollouts(str(tmp_path / "nowhere"))), "test")
    data.prepare_data()
    data.setup("test")
    assert len(list(data.test_dataloader())) == 1
    assert not (tmp_path / "nowhere").exists()


def test_going_on_with_other_rollouts_is_refused(tmp_path: Path) -> None:
    """Everything that decides what an update gets is named as it is in the YAML."""
    saved = make_data(tmp_path).state_dict()
    attached(make_data(tmp_path), "fit").load_state_dict(saved)
    changed = attached(make_data(tmp_path, batch_size=8, symmetry=SymmetryKind.names), "fit")
    with pytest.raises(CheckpointError, match="batch_size: 16 -> 8; symmetry: 'none' -> 'names'.*or start afresh"):
        changed.load_state_dict(saved)
    attached(changed, "test").load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"crop_probability": 1.5}, "crop_probability is 1.5"),
        ({"evaluation__goal_splits": ["trian"]}, "'trian'; the splits are"),
        ({"num_held_out": 60}, "none is left to train on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_settings_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """At construction, or when the store is opened."""
    with pytest.raises(DataError, match=message):
        make_data(tmp_path, **options).setup("fit")
