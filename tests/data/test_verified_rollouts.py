"""Which imagined rollouts may be learned from: those that hold up, and for tasks with few the next best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.choice import RolloutFilter, rollout_tasks, verified_rollouts
from kalm.data.selection import Selection
from kalm.store.reader import RolloutStore
from tests.chain_domain import CellGoal, ChainDomain, one_hot
from tests.data.rollouts import broken, write_store

DOMAIN = ChainDomain()


def walk(goal: int, cells: Sequence[int], rewards: Sequence[float] = ()) -> Rollout:
    """A rollout along some cells; a jump between cells that are no neighbours is implausible."""
    instructed = InstructedGoal(CellGoal(goal), f"go to {goal}", "hard")
    actions = (np.diff(cells) > 0).astype(np.int64)
    rollout = DOMAIN.label_rollout(instructed, one_hot(np.array(cells)), actions, Source.IMAGINARY)
    return broken(rollout, rewards=np.array(rewards, dtype=np.float32)) if rewards else rollout


def verified(stores: Sequence[RolloutStore], rollout_filter: RolloutFilter, num_least: int = 0) -> list[list[int]]:
    """Rows of each store that are chosen."""
    chosen = verified_rollouts(DOMAIN, Selection.whole(stores), rollout_filter, num_least)
    return [rows.tolist() for _, rows in chosen.by_store()]


def test_only_what_passes_the_filter_is_chosen(tmp_path: Path) -> None:
    """Rollout 0 meets its goal by steps, 1 by a jump, 2 not at all; of the second store the only one is sound."""
    stores = [
        write_store(tmp_path / "a", [walk(2, [0, 1, 2]), walk(2, [0, 2]), walk(2, [0, 1, 0])]),
        write_store(tmp_path / "b", [walk(4, [3, 4])]),
    ]
    chosen = {f: verified(stores, f) for f in RolloutFilter}
    assert chosen[RolloutFilter.none] == [[0, 1, 2], [0]]
    assert chosen[RolloutFilter.success] == [[0, 1], [0]]
    assert chosen[RolloutFilter.plausible] == [[0, 2], [0]]
    assert chosen[RolloutFilter.both] == [[0], [0]]


def test_the_best_join_where_few_pass(tmp_path: Path) -> None:
    """Each task should have three. The centre's one success is joined by the two plausible misses that earned most.

    Of its misses, 1 earned 2 in all, 2 earned 3, 3 earned 5 by a jump, 4 earned nothing, 5 earned 2 after 1 had, and 6
    earned a half.
    The right end has three that pass already, so its miss stays out.
    """
    centre = [
        walk(2, [0, 1, 2]),
        walk(2, [0, 1, 0], [2, 0]),
        walk(2, [0, 1, 0], [1, 2]),
        walk(2, [0, 4, 3], [5, 0]),
        walk(2, [0, 1, 0], [0, 0]),
        walk(2, [0, 1, 0], [1, 1]),
        walk(2, [0, 1, 0], [0, 0.5]),
    ]
    end = [walk(4, [3, 4]), walk(4, [2, 3, 4]), walk(4, [3, 4]), walk(4, [1, 2], [9])]
    stores = [write_store(tmp_path / "a", centre), write_store(tmp_path / "b", end)]
    assert verified(stores, RolloutFilter.both, num_least=3) == [[0, 1, 2], [0, 1, 2]]
    assert verified(stores, RolloutFilter.both, num_least=9)[0] == [0, 1, 2, 5, 6]
    assert verified(stores, RolloutFilter.success, num_least=2)[0] == [0, 3]
    assert rollout_tasks(DOMAIN, Selection.whole(stores[1:])) == ["right_end"] * 4
