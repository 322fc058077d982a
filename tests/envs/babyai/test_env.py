"""Episodes of ``kalm/BabyAI-v0``: where they begin in each split, when their goals can be met, what is invalid."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from kalm.core.errors import DataError, KalmError
from kalm.core.goal import InstructedGoal
from kalm.envs.babyai import BabyAI, GoTo, GoToTile, Open, PickUp, PutNext, Thing
from kalm.envs.babyai.grids import Grid
from kalm.envs.babyai.layout import DONE, EMPTY, FORWARD, LEFT, TILES, WALL, code_of, put_agent
from kalm.envs.babyai.places import Places
from kalm.envs.simulation import Episode, evaluate


@pytest.fixture(scope="module")
def world() -> BabyAI:
    """Four small rooms, a few grids of each kind."""
    return BabyAI(room_size=5, num_rows=2, num_cols=2, num_training_grids=5, num_test_grids=4)


def grid_of(rows: list[str], **things: int) -> Grid:
    """A grid from rows of letters: W is wall, a space floor; other letters are things. All begin left of column 4."""
    codes = {"W": WALL, " ": EMPTY, **things}
    tiles = np.array([[codes[letter] for letter in row] for row in rows], dtype=np.uint8).T
    starts = np.argwhere(tiles == EMPTY)
    return Grid(0, tiles, starts[starts[:, 0] < 4])


def test_every_split_begins_in_its_own_grids(world: BabyAI) -> None:
    """Training grids or test grids, and none of the others."""
    training, test = ({grid.tiles.tobytes() for grid in world.places(split).grids} for split in ("train", "new_grids"))
    assert not training & test
    for split in world.goal_splits:
        rows = world.instructed_goals(split)[::9]
        options = {"goals": [row.goal for row in rows], "goal_splits": [split] * len(rows)}
        seen, info = world.make_vector_env(len(rows)).reset(seed=0, options=options)
        begun = {np.ascontiguousarray(state[..., TILES]).tobytes() for state in seen}
        assert begun <= (test if split in ("new_grids", "new_grids_and_goals", "new_grids_and_words") else training)
        assert len(begun) > 1
        assert not info["is_success"].any()


def test_the_world_says_how_much_time_there_is() -> None:
    """Of three steps the third is the last; a goal is the same with less time, also in its JSON form."""
    world = BabyAI(room_size=5, num_rows=1, num_cols=1, num_training_grids=1, num_test_grids=1, max_steps=3)
    (goal, *_) = [row.goal for row in world.instructed_goals("train")]
    assert goal.max_steps == world.goal_from_json(goal.to_json()).max_steps == 3
    assert goal == BabyAI().goal_from_json(goal.to_json())
    assert "max_steps" not in goal.to_json()
    env = world.make_vector_env(1)
    env.reset(seed=0, options={"goals": [goal]})
    assert [bool(env.step(np.array([DONE]))[3][0]) for _ in range(3)] == [False, False, True]
    with pytest.raises(KalmError, match="max_steps is 0"):
        BabyAI(max_steps=0)


def test_the_sentences_of_new_grids_are_those_of_training_and_no_others() -> None:
    """Three pairs of splits share their sentences; the first pair is what a learner is told."""
    world = BabyAI()
    sentences = [{row.instruction for row in world.instructed_goals(split)} for split in world.goal_splits]
    assert sentences[0] == sentences[1]
    assert sentences[2] == sentences[3]
    assert sentences[4] == sentences[5]
    assert not sentences[0] & sentences[2]
    assert not (sentences[0] | sentences[2]) & sentences[4]
    assert world.told_splits == ("train", "new_grids")


def test_a_goal_behind_a_locked_door_can_be_met_only_where_its_key_is_reached() -> None:
    """A red ball behind a locked door; the key lies on this side, on that side, or nowhere."""
    things = {"D": code_of("door", "red", "locked"), "k": code_of("key", "red"), "b": code_of("ball", "red")}
    ball, door = Thing("ball", "red"), Thing("door", "red")
    with_key = Places([grid_of(["WWWWWWWW", "W k D bW", "WWWWWWWW"], **things)])
    without = Places([grid_of(["WWWWWWWW", "W   D bW", "WWWWWWWW"], **things)])
    behind = Places([grid_of(["WWWWWWWWW", "W   D bkW", "WWWWWWWWW"], **things)])
    for places, is_possible in ((with_key, True), (without, False), (behind, False)):
        for goal in (PickUp(ball), GoTo(ball), Open(door), PutNext(ball, door)):
            assert bool(places.starts(goal)) == is_possible, goal
        assert places.starts(GoTo(door))
    assert with_key.starts(PickUp(Thing("key")))
    with pytest.raises(DataError, match="none of 1 grids"):
        without.draw(PickUp(ball), np.random.default_rng(0))


def test_putting_a_thing_next_to_another_takes_two_that_are_apart() -> None:
    """One ball is not put next to a ball; nor are two that already are."""
    ball = {"b": code_of("ball", "red")}
    goal = PutNext(Thing("ball"), Thing("ball"))
    assert not Places([grid_of(["WWWWWW", "W b  W", "WWWWWW"], **ball)]).starts(goal)
    assert not Places([grid_of(["WWWWWW", "W bb W", "WWWWWW"], **ball)]).starts(goal)
    assert Places([grid_of(["WWWWWW", "Wb b W", "WWWWWW"], **ball)]).starts(goal)


def test_a_tile_to_go_to_is_a_floor_tile_that_can_be_reached() -> None:
    """Not a wall, not a thing, not beyond the grid."""
    places = Places([grid_of(["WWWWW", "W b W", "WWWWW"], b=code_of("ball", "red"))])
    found = [(x, y) for x in range(1, 7) for y in range(1, 4) if places.starts(GoToTile(x, y))]
    assert found == [(1, 1), (3, 1)]


@pytest.mark.parametrize(("layout", "task"), [("skill_a", "pick_up"), ("skill_b", "open"), ("skill_c", "pick_up")])
def test_skill_grids_ask_for_their_skill_alone(layout: str, task: str) -> None:
    """TEDUO's three skills; every split has a sentence."""
    world = BabyAI(layout=layout)
    for split in world.goal_splits:
        assert {row.goal.task for row in world.instructed_goals(split)} == {task}
    assert world.observation_space.shape == (11, 6, 2)


def test_actions_that_change_nothing_are_invalid(world: BabyAI) -> None:
    """Three dones and a turn: three of four actions are invalid, and a step into a wall is."""
    tiles = world.places("train").grids[0].tiles
    start = put_agent(tiles, 1, 1, 3)
    actions = iter([DONE, DONE, LEFT, DONE])
    episode = Episode(InstructedGoal(GoToTile(7, 7), "go there", "train"), 0, start, max_steps=4)
    (result,) = evaluate(lambda *_: np.array([next(actions)]), world, [episode])
    assert result.num_invalid == 3
    env = gym.make("kalm/BabyAI-v0", room_size=5, num_rows=2, num_cols=2).unwrapped
    before, _ = env.reset(seed=0, options={"goal": GoToTile(7, 7), "observation": start})
    assert world.invalid(before, FORWARD, env.step(FORWARD)[0])


def test_what_is_no_state_is_refused(world: BabyAI) -> None:
    """No agent, two agents, a hole or a door in the outer wall, an agent on a wall or in a closed door."""
    env = world.make_vector_env(1)
    good = put_agent(world.places("train").grids[0].tiles, 1, 1, 0)
    nobody, two, hole = good.copy(), good.copy(), good.copy()
    nobody[..., 1] = 0
    two[1, 2, 1] = 1
    hole[0, 1, 0] = EMPTY
    door, buried, stuck = good.copy(), put_agent(good[..., 0], 0, 1, 2), good.copy()
    door[0, 1, 0], stuck[1, 1, 0] = code_of("door", "red", "open"), code_of("door", "red", "closed")
    for state, words in (
        (nobody, "0 agents"),
        (two, "2 agents"),
        (hole, "no wall all around"),
        (door, "no wall all around"),
        (buried, "on a tile that it cannot stand on"),
        (stuck, "on a tile that it cannot stand on"),
    ):
        with pytest.raises(DataError, match=words):
            env.reset(options={"goals": [GoToTile(2, 2)], "observations": [state]})
    stuck[1, 1, 0] = code_of("door", "red", "open")
    assert np.array_equal(env.reset(options={"goals": [GoToTile(2, 2)], "observations": [stuck]})[0][0], stuck)


def test_settings_are_checked() -> None:
    """Each with what it may be."""
    for settings in ({"layout": "maze"}, {"simulator": "real"}, {"random_share": 2.0}, {"num_test_grids": 0}):
        with pytest.raises(KalmError, match=next(iter(settings))):
            BabyAI(**settings)
