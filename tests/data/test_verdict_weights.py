"""Weights of imagined rollouts by their verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kalm.core.errors import DataError
from kalm.core.names import SOURCE, WEIGHT, Source
from kalm.data.choice import RolloutFilter, weighed_by_verdicts
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.selection import Selection
from kalm.store.reader import RolloutStore
from tests.data.rollouts import DOMAIN, imagined_rollouts, real_rollouts, write_store
from tests.word_encoder import WordEncoder

WEIGHTS = {"implausible": 0.5, "missed": 0.25}


@pytest.fixture
def stores(tmp_path: Path) -> list[RolloutStore]:
    """Real rollouts, and walks of which every third jumps and many miss their goal."""
    return [
        write_store(tmp_path / "real", real_rollouts(20)),
        write_store(tmp_path / "imagined", imagined_rollouts(40, "easy")),
    ]


def policy_data(stores: list[RolloutStore], rollout_filter: RolloutFilter, weights: dict[str, float]) -> PolicyData:
    """A data module over the stores."""
    real, *imagined = [str(store.path) for store in stores]
    sources = RealRollouts(real), ImaginedRollouts(imagined, rollout_filter)
    return PolicyData(DOMAIN, WordEncoder(), *sources, verdict_weights=weights, batch_size=40)


def test_weights_multiply_and_real_rollouts_count_one(stores: list[RolloutStore]) -> None:
    """1, 1/2 if implausible, 1/4 if missed, 1/8 if both; read off each rollout by itself. All four occur."""
    imagined = Selection.whole(stores[1:])
    weights = weighed_by_verdicts(imagined, WEIGHTS).weights
    assert policy_data(stores, RolloutFilter.none, WEIGHTS).training.weights.tolist() == [1.0] * 20
    for index in range(40):
        rollout = imagined.rollout(index)
        expected = (0.5 if any(rollout.violations.values()) else 1.0) * (1.0 if rollout.is_success else 0.25)
        assert weights[index] == expected
    assert set(weights.tolist()) == {1.0, 0.5, 0.25, 0.125}


def test_every_transition_of_a_batch_has_the_weight_of_its_rollout(stores: list[RolloutStore]) -> None:
    """Through the data module, whose rollout numbers count over all stores; without weights there is no column."""
    batch = policy_data(stores, RolloutFilter.none, WEIGHTS).batch(0).view(-1)
    imagined = weighed_by_verdicts(Selection.whole(stores[1:]), WEIGHTS)
    expected = torch.cat([torch.ones(20), imagined.weights])
    assert batch[WEIGHT].dtype == torch.float32
    assert torch.equal(batch[WEIGHT], expected[batch["rollout_id"].long()])
    assert (batch[WEIGHT][batch[SOURCE] == Source.REAL] == 1).all()
    assert len(batch[WEIGHT].unique()) == 4
    assert WEIGHT not in list(policy_data(stores, RolloutFilter.none, {}).batch(0).keys())


@pytest.mark.parametrize(
    ("rollout_filter", "weights", "message"),
    [
        (RolloutFilter.none, {"unlikely": 0.5}, "has 'unlikely'; a rollout can be implausible or missed"),
        (RolloutFilter.none, {"missed": -1.0}, "missed is -1.0; it must be 0 or more"),
        (RolloutFilter.both, {"missed": 0.5}, "rollouts that are missed, but filter: both cuts them"),
        (RolloutFilter.plausible, {"implausible": 0.5}, "filter: plausible cuts them"),
    ],
)
def test_weights_without_effect_or_meaning_are_refused(
    stores: list[RolloutStore], rollout_filter: RolloutFilter, weights: dict[str, float], message: str
) -> None:
    """At construction."""
    with pytest.raises(DataError, match=message):
        policy_data(stores, rollout_filter, weights)


def test_a_filter_may_cut_one_verdict_and_weights_the_other(stores: list[RolloutStore]) -> None:
    """Implausible rollouts are cut, missed ones count a quarter."""
    batch = policy_data(stores, RolloutFilter.plausible, {"missed": 0.25}).batch(0).view(-1)
    assert set(batch[WEIGHT].tolist()) == {1.0, 0.25}


def test_a_weight_of_nothing_silences_what_it_weighs(stores: list[RolloutStore]) -> None:
    """0 is allowed: missed rollouts are drawn and count nothing."""
    batch = policy_data(stores, RolloutFilter.none, {"missed": 0.0}).batch(0).view(-1)
    assert set(batch[WEIGHT].tolist()) == {1.0, 0.0}
