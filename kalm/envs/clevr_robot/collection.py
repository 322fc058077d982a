"""Real rollouts of the expert: many episodes at once, in an order and with numbers that only the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain, Goal, InstructedGoal
from kalm.envs.clevr_robot.expert import candidate_pushes, has_failed, look_ahead_action, place_action
from kalm.envs.clevr_robot.goals import PlaceGoal
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS, NUM_ACTIONS
from kalm.envs.clevr_robot.vector_env import ClevrRobotVectorEnv

NUM_RESET_SEEDS = 1_000_000_000  # resets of a collection stay below; those of evaluation begin here
NUM_ENVS = 500  # episodes at once; more waste less on waiting for the longest one


def expert_rollouts(domain: Domain, numbers: range, seed: int, action_noise: float) -> Iterator[Rollout]:
    """Rollouts of the expert under the training instructions, taken in turn in a shuffled order.

    Args:
        domain: Whose goals and rules.
        numbers: Which rollouts of the collection to make.
        seed: With a rollout's number it decides everything about that rollout.
        action_noise: Share of uniformly random actions, carried out and recorded like the expert's.

    Yields:
        Rollouts, in the order of their numbers; those that fail within the step limit too.
    """
    instructed = domain.instructed_goals(domain.training_split)
    order = np.random.default_rng(seed).permutation(len(instructed))
    for first in range(0, len(numbers), NUM_ENVS):
        chunk = numbers[first : first + NUM_ENVS]
        yield from _run(domain, [instructed[order[n % len(order)]] for n in chunk], seed, chunk, action_noise)


def _run(
    domain: Domain, instructed: list[InstructedGoal], seed: int, numbers: range, action_noise: float
) -> Iterator[Rollout]:
    env = ClevrRobotVectorEnv(domain, len(instructed))
    goals = [entry.goal for entry in instructed]
    seeds = [int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) % NUM_RESET_SEEDS for number in numbers]
    noise = [np.random.default_rng([seed, number, 1]) for number in numbers]
    source, target, direction = _indices(goals)
    observation, _ = env.reset(seed=seeds, options={"goals": goals})
    observations, actions = [observation], []
    num_steps = np.zeros(len(goals), dtype=np.int64)
    running = np.ones(len(goals), dtype=np.bool_)
    is_stuck = np.zeros(len(goals), dtype=np.bool_)
    while running.any():
        rows = np.flatnonzero(running)
        action = np.zeros(len(goals), dtype=np.int64)
        action[rows] = place_action(observation[rows], source[rows], target[rows], direction[rows])
        stuck = np.flatnonzero(running & is_stuck)
        if len(stuck):
            outcome = env.try_actions(stuck, candidate_pushes(source[stuck], target[stuck]))
            action[stuck] = look_ahead_action(
                observation[stuck], outcome, source[stuck], target[stuck], direction[stuck]
            )
        if action_noise > 0:
            for row in rows:
                if noise[row].random() < action_noise:
                    action[row] = noise[row].integers(NUM_ACTIONS)
        before = observation
        observation, _, terminated, truncated, _ = env.step(action)
        is_stuck = has_failed(before, action, observation)
        observations.append(observation)
        actions.append(action)
        num_steps[rows] += 1
        running = ~(terminated | truncated)
    env.close()
    all_observations, all_actions = np.stack(observations, axis=1), np.stack(actions, axis=1)
    for entry, length, seen, taken in zip(instructed, num_steps, all_observations, all_actions, strict=True):
        yield domain.label_rollout(entry, seen[: length + 1], taken[:length], source=Source.REAL)


def _indices(goals: Sequence[Goal]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Source ball, target ball and direction of each goal as the indices that the expert takes."""
    placements = [goal for goal in goals if isinstance(goal, PlaceGoal)]
    if len(placements) < len(goals):
        raise TypeError("the expert solves placements only, and the training goals hold others")
    names = list(DIRECTIONS)
    source = np.array([COLORS.index(goal.source) for goal in placements])
    target = np.array([COLORS.index(goal.target) for goal in placements])
    return source, target, np.array([names.index(goal.direction) for goal in placements])
