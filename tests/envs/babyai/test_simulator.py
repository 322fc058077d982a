"""Tests of the array simulator: it does what minigrid does, on every kind of tile, with everything in the hand."""

from itertools import product

import numpy as np
import pytest

from kalm.envs.babyai.grids import make_grid, make_level, reset_quietly
from kalm.envs.babyai.layout import (
    DROP,
    EMPTY,
    FIRST_DOOR,
    FORWARD,
    LEFT,
    NUM_ACTIONS,
    NUM_CODES,
    RIGHT,
    STEPS,
    TOGGLE,
    WALL,
    agent_of,
    code_of,
    in_front,
    put_agent,
)
from kalm.envs.babyai.minigrid_world import Bot, put_command, put_state, random_command, state_of
from kalm.envs.babyai.simulator import next_states, roll_out


def test_every_action_on_every_tile_with_everything_in_the_hand_is_that_of_minigrid() -> None:
    """38 tiles in front, 19 contents of the hand, 7 actions: 5,054 steps, each in one of the four directions."""
    level = make_level("skill_b", 8, 3, 3)
    reset_quietly(level, 0)
    empty = np.full((11, 6), WALL, dtype=np.uint8)
    empty[1:-1, 1:-1] = EMPTY
    cases = list(product(range(NUM_CODES), [EMPTY, *range(2, FIRST_DOOR)], range(NUM_ACTIONS)))
    states, expected, actions = [], [], []
    for number, (tile, carried, action) in enumerate(cases):
        tiles, direction = empty.copy(), number % 4
        tiles[3, 2] = tile
        state = put_agent(tiles, *((2, 2), (3, 1), (4, 2), (3, 3))[direction], direction, carried)
        assert in_front(state) == tile
        put_state(level, state)
        assert np.array_equal(state_of(level), state)
        level.step(action)
        states.append(state)
        actions.append(action)
        expected.append(state_of(level))
    after = next_states(np.array(states), np.array(actions))
    assert np.array_equal(after, np.array(expected))
    assert (after != np.array(states)).any(axis=(1, 2, 3)).mean() > 0.2


@pytest.mark.parametrize("by_bot", [False, True])
def test_long_random_and_bot_rollouts_are_those_of_minigrid(by_bot: bool) -> None:
    """6,000 random steps, and what the bot does for six commands."""
    level, rng, num_steps, is_carrying = make_level("synth", 6, 3, 3), np.random.default_rng(0), 0, 0
    for number in range(6):
        grid = make_grid(level, number)
        start = grid.random_state(rng)
        put_state(level, start)
        put_command(level, random_command(level))
        bot = Bot(level)
        actions, states = [], [start]
        for _ in range(1000):
            action = bot.act() if by_bot else int(rng.choice(NUM_ACTIONS, p=[0.15, 0.15, 0.35, 0.15, 0.1, 0.08, 0.02]))
            if action is None:
                break
            *_, terminated, _, _ = level.step(action)
            actions.append(action)
            states.append(state_of(level))
            is_carrying += level.carrying is not None
            if terminated and by_bot:
                break
        assert np.array_equal(roll_out(start, np.array(actions)), np.array(states))
        num_steps += len(actions)
    assert num_steps >= (100 if by_bot else 6000)
    assert is_carrying > 0


def test_a_batch_is_its_rows_and_what_was_given_is_left_alone() -> None:
    """70 states in one call, and each alone."""
    grid = make_grid(make_level("synth", 8, 1, 1), 0)
    states = np.stack([grid.random_state(np.random.default_rng(seed)) for seed in range(70)])
    before, actions = states.copy(), np.arange(70) % NUM_ACTIONS
    after = next_states(states, actions)
    assert np.array_equal(states, before)
    alone = [next_states(states[row : row + 1], actions[row : row + 1])[0] for row in range(70)]
    assert np.array_equal(after, np.stack(alone))


def test_a_box_that_is_toggled_is_gone_and_a_locked_door_wants_its_own_key() -> None:
    """A red box; a blue door with a red key, which cannot be dropped into the door, and with a blue one."""
    tiles = np.full((3, 3), WALL, dtype=np.uint8)
    tiles[1, 1] = EMPTY
    tiles[2, 1] = code_of("box", "red")
    state = put_agent(tiles, 1, 1, 0)
    assert in_front(next_states(state[None], [TOGGLE])[0]) == EMPTY
    tiles[2, 1] = code_of("door", "blue", "locked")
    for color, expected in (("red", "locked"), ("blue", "open")):
        state = put_agent(tiles, 1, 1, 0, code_of("key", color))
        after = next_states(state[None], [TOGGLE])[0]
        assert in_front(after) == code_of("door", "blue", expected)
        assert agent_of(after)[3] == code_of("key", color)
        assert np.array_equal(next_states(state[None], [DROP])[0], state)


def test_nobody_leaves_the_grid_and_where_nobody_is_nothing_happens() -> None:
    """In open doors on each border, of grids that are wider than high, facing out: no action but turning does anything.

    A state that the environments refuse, but that a model of the world may come to. From the inside, doors are entered.
    """
    doors = {0: (5, 2), 1: (2, 3), 2: (0, 2), 3: (2, 0)}  # by the direction that leads out
    tiles = np.full((6, 4), WALL, dtype=np.uint8)
    tiles[1:-1, 1:-1] = EMPTY
    for x, y in doors.values():
        tiles[x, y] = code_of("door", "red", "open")
    corners = [(0, 0, 2), (0, 0, 3), (5, 3, 0), (5, 3, 1)]
    facing_out = [
        put_agent(tiles, *place, direction, carried) for direction, place in doors.items() for carried in (0, 9)
    ]
    states = np.stack([*facing_out, *(put_agent(tiles, *corner) for corner in corners)])
    for action in range(NUM_ACTIONS):
        assert np.array_equal(next_states(states, [action] * len(states)), states) == (action not in (LEFT, RIGHT))
    inside = np.stack([put_agent(tiles, x - STEPS[way][0], y - STEPS[way][1], way) for way, (x, y) in doors.items()])
    entered = np.stack([put_agent(tiles, *place, way) for way, place in doors.items()])
    assert np.array_equal(next_states(inside, [FORWARD] * 4), entered)
    empty = np.stack([tiles, np.zeros_like(tiles)], axis=-1)[None]
    for action in range(NUM_ACTIONS):
        assert np.array_equal(next_states(empty, [action]), empty)
