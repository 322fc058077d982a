"""Between two looks a student sees what it predicts, and the prediction is the world's own where that was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalm.core.errors import DataError, KalmError
from kalm.envs.babyai.layout import FORWARD, LEFT, PICK_UP
from kalm.envs.babyai.simulator import next_states
from kalm.rl.distillation.chunks import Chunks
from kalm.rl.planning.empirical_graph import RecordedParts
from kalm.rl.planning.local_dynamics import LocalDynamics, learn_local_dynamics, predict
from kalm.store.reader import RolloutStore
from tests.chain_domain import ChainDomain
from tests.rl.planning.room import Room, random_state, walks

DOMAIN = Room()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RolloutStore:
    """Random walks in two grids."""
    return walks(tmp_path_factory.mktemp("recorded") / "store", num_rollouts=24, num_steps=100)


def some_states(num_states: int, seed: int = 0) -> Any:
    """Of a grid that was not recorded."""
    rng = np.random.default_rng(seed)
    return np.stack([random_state(rng, number=2) for _ in range(num_states)])


def test_predictions_are_what_the_world_does(store: RolloutStore) -> None:
    """For all actions in a grid that was not recorded; the walks saw everything that can be in front there."""
    dynamics = learn_local_dynamics(DOMAIN.locality, RecordedParts(store), 7)
    states, actions = some_states(70), np.arange(70) % 7
    assert np.array_equal(predict(dynamics, DOMAIN.locality, states, actions), next_states(states, actions))


def test_what_is_not_known_changes_nothing() -> None:
    """A model that has seen nothing."""
    num_situations = DOMAIN.locality.num_situations
    nothing = LocalDynamics(np.full((num_situations, 7), -2), np.zeros((num_situations, 7), dtype=np.bool_))
    states = some_states(7)
    assert np.array_equal(predict(nothing, DOMAIN.locality, states, np.arange(7)), states)


@pytest.mark.parametrize(("steps", "looks"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (None, [0])])
def test_it_looks_as_often_as_it_is_told(store: RolloutStore, steps: int | None, looks: list[int]) -> None:
    """Two episodes in which each look shows a new state; between two looks it is the one that the actions lead to."""
    shown = []

    def act(observations: Any, rows: list[int], info: dict[str, Any]) -> Any:
        shown.append(observations.copy())
        return np.array([LEFT, FORWARD])

    chunked = Chunks(str(store.path), steps).between_looks(act, DOMAIN)
    for number in range(5):
        given = some_states(2, seed=number)
        chunked(given, [0, 1], {})
        expected = given if number in looks else next_states(shown[-2], np.array([LEFT, FORWARD]))
        assert np.array_equal(shown[-1], expected)


def test_episodes_that_have_ended_leave_the_others_their_beliefs(store: RolloutStore) -> None:
    """Of three the middle one ends."""
    shown = []

    def act(observations: Any, rows: list[int], info: dict[str, Any]) -> Any:
        shown.append(observations.copy())
        return np.full(len(rows), PICK_UP)

    chunked = Chunks(str(store.path)).between_looks(act, DOMAIN)
    chunked(some_states(3), [0, 1, 2], {})
    chunked(some_states(2, seed=1), [0, 2], {})
    assert np.array_equal(shown[1], next_states(shown[0][[0, 2]], np.full(2, PICK_UP)))


def test_a_world_without_locality_and_a_wrong_number_are_refused(tmp_path: Path) -> None:
    """By their names."""
    with pytest.raises(DataError, match="chain does not say what its actions depend on"):
        Chunks(str(tmp_path)).between_looks(lambda *_: np.zeros(1), ChainDomain())
    with pytest.raises(KalmError, match="steps is 0"):
        Chunks(str(tmp_path), 0)
