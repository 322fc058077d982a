"""The bridge to minigrid: states go there and back, and goals and verifiers agree on what the bot does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kalm.envs.babyai import BabyAI, GoToTile, Open, PickUp, PutNext, Thing
from kalm.envs.babyai.goals import BabyAIGoal
from kalm.envs.babyai.grids import Grid, make_grid, make_level
from kalm.envs.babyai.layout import DONE, agent_of, code_of, put_agent
from kalm.envs.babyai.minigrid_world import (
    Bot,
    command_of,
    goal_of,
    put_command,
    put_goal,
    put_state,
    random_command,
    state_of,
)

NUM_EPISODES = 8  # of each kind


def bot_episode(level: Any, grid: Grid, rng: np.random.Generator) -> tuple[BabyAIGoal, np.ndarray, list[int], bool]:
    """Goal, states, actions and what the verifier said in the end of one command to the bot."""
    level.np_random = rng
    start = grid.random_state(rng)
    put_state(level, start)
    command = random_command(level)
    put_command(level, command)
    bot, states, actions, is_over = Bot(level), [start], [], False
    while not is_over and len(actions) < 300 and (action := bot.act()) is not None:
        _, _, is_over, _, _ = level.step(action)
        actions.append(action)
        states.append(state_of(level))
    return goal_of(command), np.array(states), actions, is_over


@pytest.mark.parametrize("kind", ["pickup", "goto", "open", "putnext"])
def test_goals_and_verifiers_agree_on_every_step_of_the_bot(kind: str) -> None:
    """The goal comes true at the step at which the verifier says so, and at no step before."""
    level, rng, num_met = make_level("synth", 8, 3, 3), np.random.default_rng(1), 0
    level.action_kinds = [kind]
    while num_met < NUM_EPISODES:
        grid = make_grid(level, num_met)
        goal, states, _, is_met = bot_episode(level, grid, rng)
        if goal.success(states[0]):
            continue  # a verifier waits for an action; no episode begins so
        success = goal.success(states)
        assert success.tolist() == [False] * (len(states) - 1) + [is_met]
        num_met += is_met


def test_going_to_a_tile_is_agreed_on_too() -> None:
    """The way of the bot, once more for each tile that it came to, until minigrid says that it is there."""
    level, rng = make_level("synth", 6, 2, 2), np.random.default_rng(2)
    grid = make_grid(level, 0)
    _, states, actions, _ = bot_episode(level, grid, rng)
    columns, rows, _, _ = agent_of(states)
    tiles = sorted(set(zip(columns.tolist(), rows.tolist(), strict=True)) - {(columns[0], rows[0])})
    assert len(tiles) >= 3
    for tile in tiles:
        goal = GoToTile(*tile)
        put_state(level, states[0])
        put_goal(level, goal)
        endings = [level.step(action)[2] for action in actions]
        assert endings.index(True) + 1 == goal.success(states).argmax()


def test_a_state_that_carries_something_goes_there_and_back() -> None:
    """With a red key in the hand; a door that was opened is open in the rooms of the level too."""
    level = make_level("skill_b", 8, 3, 3)
    grid = make_grid(level, 0)
    tiles = grid.tiles.copy()
    ((x, y),) = np.argwhere(tiles >= 20).tolist()
    tiles[x, y] -= 1  # open
    state = put_agent(tiles, 2, 2, 3, code_of("key", "red"))
    put_state(level, state)
    assert np.array_equal(state_of(level), state)
    assert level.room_grid[0][0].doors[0].is_open
    level.step(DONE)
    assert np.array_equal(state_of(level), state)


def test_goals_and_commands_say_the_same() -> None:
    """There and back, of all five kinds."""
    ball, door = Thing("ball", "red"), Thing("door")
    for goal in (PickUp(ball), Open(door), PutNext(ball, door), GoToTile(3, 4)):
        assert goal_of(command_of(goal)) == goal


@pytest.mark.parametrize("by_bot", [False, True])
def test_evaluation_in_minigrid_gives_what_the_arrays_give(by_bot: bool) -> None:
    """Episodes of four splits, side by side: the same observations, rewards and ends, step by step."""
    worlds = [
        BabyAI(room_size=5, num_rows=2, num_cols=2, num_training_grids=4, num_test_grids=4, simulator=simulator)
        for simulator in ("arrays", "minigrid")
    ]
    rows = [worlds[0].instructed_goals(split)[7] for split in worlds[0].goal_splits[:4]]
    options = {"goals": [row.goal for row in rows], "goal_splits": [row.goal_split for row in rows]}
    envs = [world.make_vector_env(4) for world in worlds]
    seen = [env.reset(seed=3, options=options)[0] for env in envs]
    assert np.array_equal(*seen)
    level, rng = worlds[0].make_level(), np.random.default_rng(0)
    actions = rng.integers(7, size=(120, 4))
    if by_bot:
        for row, instructed in enumerate(rows):
            make_grid(level, 0)
            put_state(level, seen[0][row])
            put_goal(level, instructed.goal)
            bot = Bot(level)
            for number in range(len(actions)):
                if (action := bot.act()) is None:
                    break
                actions[number, row] = action
                level.step(action)
    for taken in actions:
        one, other = (env.step(taken) for env in envs)
        assert all(np.array_equal(*parts) for parts in zip(one[:4], other[:4], strict=True))
    assert not by_bot or one[2].any()
