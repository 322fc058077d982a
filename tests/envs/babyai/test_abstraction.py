"""The abstraction keeps what decides a goal and drops the rest; the features decide it alone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.envs.babyai.abstraction import (
    Selected,
    StateFeatures,
    abstracted,
    agents_room,
    goal_features,
    select_by_rule,
    shares_left,
)
from kalm.envs.babyai.goals import BabyAIGoal, GoTo, GoToTile, Open, PickUp, PutNext, Thing
from kalm.envs.babyai.instructions import training_goals
from kalm.envs.babyai.layout import (
    AGENT,
    EMPTY,
    FIRST_GOAL_DOOR,
    FIRST_LOCATION_DOOR,
    FIRST_PLAIN_DOOR,
    GOAL_BOTH,
    GOAL_LOCATION,
    GOAL_OBJECT,
    GOAL_TILE,
    NUM_ABSTRACT_CODES,
    NUM_CODES,
    OBSTACLE,
    TILES,
    WALL,
    agent_of,
    code_of,
    in_front,
    put_agent,
)
from tests.envs.babyai.random_states import DOORWAY, random_states

GOALS = [
    PickUp(Thing("ball", "red")),
    PickUp(Thing("key")),
    GoTo(Thing("box", "blue")),
    GoTo(Thing("door")),
    Open(Thing("door")),
    Open(Thing("door", "green")),
    PutNext(Thing("ball"), Thing("box")),
    PutNext(Thing("ball"), Thing("ball", "red")),
    PutNext(Thing("box"), Thing("door")),
    GoToTile(2, 3),
]


def _grid(carried: int = EMPTY, x: int = 1) -> np.ndarray:
    """Two rooms: red ball at (2, 2) and grey key at (3, 4) on the left, blue box at (8, 3) on the right, a red door."""
    tiles = np.full((11, 6), WALL, dtype=np.uint8)
    tiles[1:5, 1:5] = tiles[6:10, 1:5] = EMPTY
    tiles[DOORWAY] = code_of("door", "red", "locked")
    tiles[2, 2], tiles[3, 4], tiles[8, 3] = code_of("ball", "red"), code_of("key", "grey"), code_of("box", "blue")
    return put_agent(tiles, x, 1, 0, carried)


def test_things_become_the_parts_they_play() -> None:
    """Put the red ball next to the blue box: both are named by their part, the key is in the way."""
    goal = PutNext(Thing("ball", "red"), Thing("box", "blue"))
    tiles = abstracted(_grid(), select_by_rule(goal))[..., TILES]
    assert tiles[2, 2] == GOAL_OBJECT
    assert tiles[8, 3] == GOAL_LOCATION
    assert tiles[3, 4] == OBSTACLE
    assert tiles[DOORWAY] == FIRST_PLAIN_DOOR + 2
    np.testing.assert_array_equal(tiles == WALL, _grid()[..., TILES] == WALL)


def test_outside_vanishes_if_all_that_is_selected_is_in_the_room() -> None:
    """To pick up the ball on the left nothing on the right is needed; to pick up the box everything is."""
    near = abstracted(_grid(), select_by_rule(PickUp(Thing("ball", "red"))))[..., TILES]
    assert (near[6:] == EMPTY).all()
    assert near[DOORWAY] == FIRST_PLAIN_DOOR + 2
    assert (near[5] != EMPTY).all(), "the wall between the rooms is the room's own"
    far = abstracted(_grid(), select_by_rule(PickUp(Thing("box", "blue"))))[..., TILES]
    assert far[8, 3] == GOAL_OBJECT
    assert (far[10] == WALL).all()
    nowhere = abstracted(_grid(), select_by_rule(PickUp(Thing("box", "grey"))))[..., TILES]
    assert (nowhere[10] == WALL).all()


def test_what_is_in_the_hand_is_a_part_or_an_obstacle() -> None:
    """Place and direction stay."""
    selected = select_by_rule(PickUp(Thing("ball")))
    for code, part in ((code_of("ball", "green"), GOAL_OBJECT), (code_of("key", "red"), OBSTACLE), (EMPTY, EMPTY)):
        assert [int(value) for value in agent_of(abstracted(_grid(code), selected))] == [1, 1, 0, part]


def test_doors_that_matter_keep_their_state() -> None:
    """As goal object or as goal location."""
    opened = abstracted(_grid(), select_by_rule(Open(Thing("door", "red"))))
    beside = abstracted(_grid(), select_by_rule(PutNext(Thing("ball"), Thing("door"))))
    assert opened[*DOORWAY, TILES] == FIRST_GOAL_DOOR + 2
    assert beside[*DOORWAY, TILES] == FIRST_LOCATION_DOOR + 2


def test_tile_to_stand_on_is_marked_and_may_have_the_agent_on_it() -> None:
    """A thing on it stays in the way."""
    for x, y, code in ((4, 4, GOAL_TILE), (1, 1, GOAL_TILE), (3, 4, OBSTACLE)):
        assert abstracted(_grid(), select_by_rule(GoToTile(x, y)))[x, y, TILES] == code


def test_agent_in_a_doorway_sees_both_rooms() -> None:
    """And from beside the door one, with the wall that holds it."""
    state = _grid()
    state[..., AGENT] = 0
    state[(*DOORWAY, AGENT)] = 1
    assert agents_room(state).all()
    assert agents_room(_grid()).sum() == 6 * 6
    assert agents_room(np.stack([_grid(), _grid(x=7)])).sum(axis=(1, 2)).tolist() == [36, 36]


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_abstract_states_still_say_whether_the_goal_is_met(goal: BabyAIGoal) -> None:
    """Each rule can be said in terms of parts, and then agrees with the goal's own on states of all sorts."""
    states = random_states(600)
    abstract = abstracted(states, select_by_rule(goal))
    assert abstract.max() <= 4 + 4 * NUM_ABSTRACT_CODES
    tiles = abstract[..., TILES]
    assert not ((tiles >= 2) & (tiles < NUM_CODES)).any()
    objects = np.isin(tiles, [GOAL_OBJECT, GOAL_BOTH])
    locations = np.isin(tiles, [GOAL_LOCATION, GOAL_BOTH, *range(FIRST_LOCATION_DOOR, FIRST_LOCATION_DOOR + 3)])
    x, y, _, carried = agent_of(abstract)
    if isinstance(goal, PickUp):
        met = carried == GOAL_OBJECT
    elif isinstance(goal, GoTo):
        met = np.isin(in_front(abstract), [GOAL_OBJECT, *range(FIRST_GOAL_DOOR, FIRST_GOAL_DOOR + 3)])
    elif isinstance(goal, Open):
        met = (tiles == FIRST_GOAL_DOOR).any(axis=(1, 2))
    elif isinstance(goal, PutNext):
        beside = np.zeros_like(objects)
        beside[:, 1:] |= objects[:, :-1]
        beside[:, :-1] |= objects[:, 1:]
        beside[:, :, 1:] |= objects[:, :, :-1]
        beside[:, :, :-1] |= objects[:, :, 1:]
        met = (beside & locations).any(axis=(1, 2))
    else:
        met = tiles[np.arange(len(tiles)), x, y] == GOAL_TILE
    np.testing.assert_array_equal(met, goal.success(states))
    assert met.any()


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_states_with_the_same_features_have_the_same_verdict(goal: BabyAIGoal) -> None:
    """So a judge needs to see each once; and there are far fewer of them than of states."""
    states = random_states(3000, seed=1)
    keys, met = goal_features(goal, states), goal.success(states)
    _, which = np.unique(keys, return_inverse=True)
    num_met = np.bincount(which, weights=met)
    assert set(num_met / np.bincount(which)) <= {0.0, 1.0}


def test_features_change_with_what_decides_and_with_nothing_else() -> None:
    """A key that moves is nothing to a goal about a ball; the direction is something to going, not to picking up."""
    state, moved, turned = _grid(), _grid(), _grid()
    moved[3, 4, TILES], moved[4, 4, TILES] = EMPTY, state[3, 4, TILES]
    turned[1, 1, AGENT] += 1
    states = np.stack([state, moved, turned])
    assert [len(np.unique(goal_features(goal, states))) for goal in (PickUp(Thing("ball")), GoTo(Thing("ball")))] == [
        1,
        2,
    ]
    assert len(np.unique(goal_features(PickUp(Thing("key")), states))) == 2
    unlocked = _grid()
    unlocked[(*DOORWAY, TILES)] -= 1
    pair = np.stack([state, unlocked])
    assert [len(np.unique(goal_features(goal, pair))) for goal in (Open(Thing("door")), GoTo(Thing("door")))] == [2, 1]


def test_answer_about_one_state_holds_in_others() -> None:
    """Tiles name things by kind and colour, as the rule does; a location may be an empty tile."""
    goal = PutNext(Thing("ball", "red"), Thing("box", "blue"))
    assert Selected.at(_grid(), [(2, 2)], [(8, 3)]) == select_by_rule(goal)
    assert Selected.at(_grid(), [], [(4, 4)]) == select_by_rule(GoToTile(4, 4))
    assert Selected.at(_grid(), [DOORWAY]) == select_by_rule(Open(Thing("door", "red")))


@pytest.mark.parametrize("tile", [(0, 0), (4, 4), (11, 2), (-1, 2)])
def test_answer_that_names_no_thing_is_refused(tile: tuple[int, int]) -> None:
    """A wall, an empty tile, a tile outside."""
    with pytest.raises(DataError, match="goal object is on tile"):
        Selected.at(_grid(), [tile])


def test_abstraction_leaves_fewer_states_and_the_features_fewer_still() -> None:
    """Of states that differ in what does not matter."""
    states = np.stack([_grid(code_of("key", color)) for color in ("red", "green", "blue")] + [_grid(), _grid(x=2)])
    # Three keys in the hand are one obstacle there: 3 of 5 abstract states. The ball is never held and never moves.
    assert shares_left(PickUp(Thing("ball")), states) == {"abstract": 0.6, "features": 0.2}


@pytest.mark.slow
def test_features_of_many_states_and_goals_are_found_in_no_time() -> None:
    """500 goals of 200,000 states are to take seconds: here a hundredth of that."""
    features = StateFeatures(np.repeat(random_states(200), 100, axis=0))
    started = time.process_time()
    for goal in training_goals()[::10]:
        features.keys(goal)
    assert time.process_time() - started < 2.0
