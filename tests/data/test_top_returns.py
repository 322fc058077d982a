"""Filtered data: which rollouts earned most."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kalm.core.errors import DataError
from kalm.core.goal import Array
from kalm.core.names import SOURCE, Source
from kalm.core.rollout import Rollout
from kalm.data.choice import RolloutFilter, start_distances, top_returns
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.selection import Selection
from kalm.data.statistics import rollout_returns
from kalm.store.reader import RolloutStore
from tests.chain_domain import CellGoal, ChainDomain
from tests.data.rollouts import DOMAIN, imagined_rollouts, real_rollouts, write_store
from tests.word_encoder import WordEncoder

REWARDS = ([1.0], [0.0, 0.0, 2.0], [1.5, 0.0], [1.0], [0.0, 0.0, 4.0])


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    """Five rollouts with ``REWARDS``: returns 1, 2, 1.5, 1, 4; at discount 1/2 they are 1, 0.5, 1.5, 1, 1."""
    pattern = imagined_rollouts(1, "easy")[0]
    rollouts = [
        replace(
            pattern,
            observations=pattern.observations[: len(rewards) + 1],
            actions=pattern.actions[: len(rewards)],
            rewards=np.array(rewards, dtype=np.float32),
            terminated=np.zeros(len(rewards), dtype=np.bool_),
            truncated=np.arange(len(rewards)) == len(rewards) - 1,
        )
        for rewards in REWARDS
    ]
    return write_store(tmp_path / "store", rollouts)


@pytest.mark.parametrize(
    ("fraction", "discount", "kept"),
    [
        (1.0, 1.0, [0, 1, 2, 3, 4]),
        (0.4, 1.0, [1, 4]),
        (0.6, 1.0, [1, 2, 4]),
        (0.2, 0.5, [2]),
        (0.4, 0.5, [0, 2]),  # rollouts 0, 3 and 4 are equal: the first one
        (0.01, 1.0, [4]),  # at least one
    ],
)
def test_the_rollouts_of_the_highest_return_are_kept(
    store: RolloutStore, fraction: float, discount: float, kept: list[int]
) -> None:
    """Discounted or not, ties by order."""
    assert top_returns(DOMAIN, Selection.whole([store]), fraction, discount).rollouts.tolist() == kept


def test_stores_of_one_source_compete(store: RolloutStore) -> None:
    """Of rollouts 1, 2 of one store and 0, 3, 4 of another, two fifths are rollout 1 there and rollout 4 here."""
    twice = Selection.whole([store, store]).keep(torch.tensor([0, 1, 1, 0, 0, 1, 0, 0, 1, 1]) == 1)
    assert [rows.tolist() for _, rows in top_returns(DOMAIN, twice, 0.4, 1.0).by_store()] == [[1], [4]]
    assert len(top_returns(DOMAIN, twice.keep(torch.zeros(5) == 1), 0.5, 1.0)) == 0


def test_goal_splits_do_not_compete(store: RolloutStore, tmp_path: Path) -> None:
    """Five easy rollouts and the same five as hard ones, at a higher pay: two fifths of each are rollouts 1 and 4."""
    easy = [store.rollout(row) for row in range(5)]
    hard = [replace(rollout, goal_split="hard", rewards=10 + rollout.rewards) for rollout in easy]
    both = write_store(tmp_path / "both", [*easy, *hard])
    assert top_returns(DOMAIN, Selection.whole([both]), 0.4, 1.0).rollouts.tolist() == [1, 4, 6, 9]


def walk(cells: list[int]) -> Rollout:
    """A rollout of the chain through some cells, whose goal is the right end."""
    actions = np.array([int(after > before) for before, after in pairwise(cells)])
    instructed = DOMAIN.instructed_goals("train")[-1]
    return DOMAIN.label_rollout(instructed, np.eye(5, dtype=np.float32)[cells], actions, Source.REAL, {})


def test_a_long_rollout_that_is_good_for_its_start_is_kept(tmp_path: Path) -> None:
    """Twenty begin one cell from the goal and twenty four cells; half of either wander once.

    At discount 1/2 the straight ones earn 1 and 1/8, those that wander 1/4 and 1/32: the best half of all would be all
    that begin near, of which half wander; the best of similar starts is whoever walks straight.
    """
    straight, wandering = [[3, 4], [0, 1, 2, 3, 4]], [[3, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4]]
    store = write_store(tmp_path / "walks", [walk(cells) for cells in (*straight, *wandering) for _ in range(10)])
    whole = Selection.whole([store])
    assert start_distances(DOMAIN, whole).tolist() == ([1.0] * 10 + [4.0] * 10) * 2
    assert rollout_returns(whole, 0.5)[::10].tolist() == [1.0, 0.125, 0.25, 0.03125]
    assert top_returns(DOMAIN, whole, 0.5, 0.5).rollouts.tolist() == list(range(20))


def test_starts_are_alike_where_a_goal_cannot_tell(store: RolloutStore) -> None:
    """All five rollouts then compete with each other, wherever they begin."""

    class Blind(CellGoal):
        def distance(self, observation: Array) -> None:
            return None

    class BlindDomain(ChainDomain):
        goal_class = Blind

    assert start_distances(BlindDomain(), Selection.whole([store])).tolist() == [0.0] * 5
    assert top_returns(BlindDomain(), Selection.whole([store]), 0.4, 1.0).rollouts.tolist() == [1, 4]


def test_imagined_rollouts_may_keep_another_share(tmp_path: Path) -> None:
    """All 60 real rollouts, and a tenth of the imagined ones."""
    write_store(tmp_path / "real", real_rollouts(60))
    imagined = write_store(tmp_path / "imagined", imagined_rollouts(60, "easy"))
    real, folder = RealRollouts(str(tmp_path / "real")), [str(tmp_path / "imagined")]
    best = ImaginedRollouts(folder, RolloutFilter.none, top_return_fraction=0.1, return_discount=0.9)
    data = PolicyData(DOMAIN, WordEncoder(), real, best, updates_per_step=50)
    batch = data.batch(0).view(-1)
    is_real = batch[SOURCE] == Source.REAL
    assert len(batch["rollout_id"][is_real].unique()) == 60
    expected = top_returns(DOMAIN, Selection.whole([imagined]), 0.1, 0.9).rollouts
    assert (batch["rollout_id"][~is_real].unique() - 60).tolist() == expected.tolist()
    with pytest.raises(DataError, match="imagined.top_return_fraction is 0"):
        PolicyData(DOMAIN, WordEncoder(), real, ImaginedRollouts(folder, top_return_fraction=0.0))
    with pytest.raises(DataError, match="imagined.return_discount is 1.5"):
        PolicyData(DOMAIN, WordEncoder(), real, ImaginedRollouts(folder, return_discount=1.5))


def test_each_source_keeps_its_own_share(tmp_path: Path) -> None:
    """Through the data module: a tenth of 60 real rollouts is six, of the imagined ones that pass the filter, too."""
    real = write_store(tmp_path / "real", real_rollouts(60))
    imagined = write_store(tmp_path / "imagined", imagined_rollouts(60, "easy"))
    data = PolicyData(
        DOMAIN,
        WordEncoder(),
        RealRollouts(str(tmp_path / "real"), top_return_fraction=0.1, return_discount=0.9),
        ImaginedRollouts(
            [str(tmp_path / "imagined")], RolloutFilter.success, top_return_fraction=0.1, return_discount=0.9
        ),
        updates_per_step=50,
    )
    batch = data.batch(0).view(-1)
    is_real = batch[SOURCE] == Source.REAL
    num_passing = int(imagined.is_success.sum())
    assert len(batch["rollout_id"][is_real].unique()) == 6
    assert len(batch["rollout_id"][~is_real].unique()) == round(0.1 * num_passing)
    expected = top_returns(DOMAIN, Selection.whole([real]), 0.1, 0.9).rollouts
    assert batch["rollout_id"][is_real].unique().tolist() == expected.tolist()
