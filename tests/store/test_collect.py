"""Collecting a store: equal files for equal seeds, also across an interruption; no store is silently another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.core.rollout import Rollout
from kalm.envs.clevr_robot import ClevrRobot
from kalm.store import collect
from kalm.store.collect import collect_store
from kalm.store.reader import RolloutStore
from tests.chain_domain import ChainDomain


class PowerCutError(Exception):
    """Stands for whatever ends a process in the middle of a collection."""


class FailingChain(ChainDomain):
    """A chain whose collection breaks before rollout 25."""

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.3) -> Iterator[Rollout]:
        """Fail in the third shard."""
        for number, rollout in enumerate(super().collect(num_rollouts, seed, first), start=first):
            if number == 25:
                raise PowerCutError
            yield rollout


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rollouts a shard, so that small collections have several."""
    monkeypatch.setattr(collect, "ROLLOUTS_PER_SHARD", 10)


def files(path: Path) -> dict[str, bytes]:
    """Every file of a store with its bytes."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("[!.]*")) if file.is_file()}


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    """Two collections agree byte for byte; another seed gives other data."""
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        collect_store(ChainDomain(), tmp_path / name, 35, seed, show_progress=False)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert files(tmp_path / "first") != files(tmp_path / "other")


def test_an_interrupted_collection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """After a break in the third shard the second run makes only what is missing, and the files are the same."""
    with pytest.raises(PowerCutError):
        collect_store(FailingChain(), tmp_path / "broken", 35, 3, show_progress=False)
    made: list[int] = []

    class CountingChain(ChainDomain):
        def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.3) -> Iterator[Rollout]:
            for number, rollout in enumerate(super().collect(num_rollouts, seed, first), start=first):
                made.append(number)
                yield rollout

    collect_store(CountingChain(), tmp_path / "broken", 35, 3, show_progress=False)
    assert made == list(range(20, 35))
    collect_store(ChainDomain(), tmp_path / "whole", 35, 3, show_progress=False)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_finished_store_is_opened_not_collected_anew(tmp_path: Path) -> None:
    """The second call runs no expert: one that would break does not."""
    collect_store(ChainDomain(), tmp_path / "store", 30, 0, show_progress=False)
    store = collect_store(FailingChain(), tmp_path / "store", 30, 0, show_progress=False)
    assert store.num_rollouts == 30


def test_a_store_made_otherwise_is_refused(tmp_path: Path) -> None:
    """Another seed, another size, or other settings of the domain: the error shows both and says what to do."""
    collect_store(ChainDomain(), tmp_path / "store", 30, 0, show_progress=False)
    for num_rollouts, seed in ((30, 1), (20, 0)):
        with pytest.raises(DataError, match="made by .*name another folder"):
            collect_store(ChainDomain(), tmp_path / "store", num_rollouts, seed, show_progress=False)
    collect_store(ClevrRobot(), tmp_path / "clevr", 2, 0, show_progress=False)
    with pytest.raises(DataError, match="action_noise"):
        collect_store(ClevrRobot(action_noise=0.5), tmp_path / "clevr", 2, 0, show_progress=False)


def test_a_stored_collection_is_what_the_domain_collected(tmp_path: Path) -> None:
    """Rollout by rollout, store and domain agree."""
    collect_store(ClevrRobot(), tmp_path / "store", 12, 5, show_progress=False)
    store = RolloutStore(tmp_path / "store", verify=True)
    assert store.num_rollouts == 12
    for index, rollout in enumerate(ClevrRobot().collect(12, 5)):
        stored = store.rollout(index)
        assert (stored.instruction, stored.goal, stored.is_success) == (
            rollout.instruction,
            rollout.goal,
            rollout.is_success,
        )
        np.testing.assert_array_equal(stored.actions, rollout.actions)
        np.testing.assert_array_equal(stored.observations, rollout.observations.astype(np.float32))
        np.testing.assert_array_equal(stored.rewards, rollout.rewards)
