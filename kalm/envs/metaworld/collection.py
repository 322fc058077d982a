"""Real rollouts of the experts: many episodes at once, in an order and with numbers that only the seed decides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import InstructedGoal
from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.expert import expert
from kalm.envs.metaworld.vector_env import MetaWorldVectorEnv

NUM_RESET_SEEDS = 1_000_000_000  # resets of a collection stay below; those of evaluation begin here
NUM_ENVS = 250  # episodes at once; more waste less on waiting for the longest one


def expert_rollouts(domain: MetaWorld, numbers: range, seed: int, action_noise: float) -> Iterator[Rollout]:
    """Rollouts of the experts under the training instructions, taken in turn in a shuffled order.

    Args:
        domain: Whose goals and rules.
        numbers: Which rollouts of the collection to make.
        seed: With a rollout's number it decides everything about that rollout.
        action_noise: Standard deviation of normal noise on each number of an action, carried out and recorded.

    Yields:
        Rollouts, in the order of their numbers; those that fail within the step limit too.
    """
    instructed = domain.instructed_goals(domain.training_split)
    order = np.random.default_rng(seed).permutation(len(instructed))
    for first in range(0, len(numbers), NUM_ENVS):
        chunk = numbers[first : first + NUM_ENVS]
        yield from run_experts(domain, [instructed[order[n % len(order)]] for n in chunk], seed, chunk, action_noise)


def run_experts(
    domain: MetaWorld, instructed: list[InstructedGoal], seed: int, numbers: range, action_noise: float
) -> Iterator[Rollout]:
    """One rollout for each instruction, all at once; ``numbers`` and ``seed`` decide the chance of each."""
    env = MetaWorldVectorEnv(domain, len(instructed))
    try:
        goals = [entry.goal for entry in instructed]
        seeds = [_reset_seed(seed, number) for number in numbers]
        rngs = [np.random.default_rng([seed, number, 1]) for number in numbers]
        experts = [expert(domain.task(goal)) for goal in goals]
        observation, _ = env.reset(seed=seeds, options={"goals": goals})
        observations, actions = [observation], []
        num_steps = np.zeros(len(goals), dtype=np.int64)
        running = np.ones(len(goals), dtype=np.bool_)
        while running.any():
            rows = np.flatnonzero(running)
            action = np.zeros((len(goals), 4), dtype=np.float32)
            with warnings.catch_warnings():
                # The package's policies ask for more than an action may hold, and say so at every step.
                warnings.filterwarnings("ignore", message="Constant.s. may be too high")
                for row in rows:
                    action[row] = experts[row](observation[row])
            for row in rows if action_noise > 0 else ():
                action[row] = np.clip(action[row] + action_noise * rngs[row].standard_normal(4), -1.0, 1.0)
            observation, _, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            num_steps[rows] += 1
            running = ~(terminated | truncated)
    finally:
        env.close()
    all_observations, all_actions = np.stack(observations, axis=1), np.stack(actions, axis=1)
    for entry, length, seen, taken in zip(instructed, num_steps, all_observations, all_actions, strict=True):
        yield domain.label_rollout(entry, seen[: length + 1], taken[:length], source=Source.REAL)


def _reset_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) % NUM_RESET_SEEDS
