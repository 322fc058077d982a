"""Success of a policy on fixed episodes of every goal split, with an honest interval around each rate.

An episode is one instruction and one reset seed, and nothing else: how many environments run side by side, in which
row an episode ends up, and how many threads step the simulator never change its result. Nothing here draws from a
global random number generator, so that evaluating during training leaves the training run as it was.

Shape letters: B episodes that run side by side, T time, O observation, A action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.envs.base import Domain, InstructedGoal

# Evaluation resets from seeds at or above this number; collection and training stay below it.
EVALUATION_SEED_OFFSET = 1_000_000_000
# Each evaluation seed owns this many reset seeds, so that the episodes of two evaluation seeds never meet.
MAX_EPISODES_PER_SEED = 1_000_000

Act = Callable[[NDArray[np.float32], list[int]], NDArray[Any]]


@dataclass(frozen=True)
class Episode:
    """What is to be tried: one instruction from one start.

    Attributes:
        instructed: The goal and the sentence that asks for it.
        seed: Decides the start, and all else that is left to chance.
        start: Observation to start from instead, as nearly as the simulator allows, shape (O,).
    """

    instructed: InstructedGoal
    seed: int
    start: NDArray[Any] | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """What became of one episode.

    Attributes:
        episode: What was tried.
        task: The domain's name for the task, over which success is averaged.
        is_success: Whether the goal was true after some step.
        num_steps: Steps taken, T.
        episode_return: Undiscounted sum of the environment's rewards.
        observations: Shape (T + 1, O).
        actions: Shape (T,) or (T, A).
    """

    episode: Episode
    task: str
    is_success: bool
    num_steps: int
    episode_return: float
    observations: NDArray[np.floating[Any]]
    actions: NDArray[Any]


@dataclass(frozen=True)
class SplitSummary:
    """Success on one goal split.

    Attributes:
        num_episodes: Episodes counted.
        success_rate: Successes over all episodes.
        macro_success_rate: Mean over tasks of each task's success rate.
        interval: Wilson interval of ``success_rate``, 95 %.
        task_success_rates: Success rate of each task, sorted by name.
    """

    num_episodes: int
    success_rate: float
    macro_success_rate: float
    interval: tuple[float, float]
    task_success_rates: dict[str, float]


def evaluation_episodes(
    domain: Domain,
    goal_splits: Sequence[str],
    num_episodes: int,
    seed: int,
    goals_file: str | Path | None = None,
) -> list[Episode]:
    """Choose the episodes of an evaluation: the same for every policy, spread evenly over the tasks of each split.

    Within a task every instruction is used once before any is used again, in an order that ``seed`` decides.

    Args:
        domain: World to evaluate in.
        goal_splits: Splits to cover.
        num_episodes: Episodes a split.
        seed: Evaluation seed; different seeds give disjoint starts.
        goals_file: JSON lines of the user's own goals, in place of the domain's.

    Returns:
        ``num_episodes`` episodes for each split, no two with the same reset seed.

    Raises:
        DataError: If a split has no instruction, or if a number is out of range.
    """
    if seed < 0 or not 0 < num_episodes * len(domain.goal_splits) <= MAX_EPISODES_PER_SEED:
        raise DataError(
            f"cannot lay out {num_episodes} episodes a split from evaluation seed {seed}; the seed must be at least 0 "
            f"and the number of episodes between 1 and {MAX_EPISODES_PER_SEED // len(domain.goal_splits)}"
        )
    own_goals = domain.load_instructed_goals(goals_file) if goals_file is not None else None
    episodes = []
    for split in goal_splits:
        number = domain.goal_splits.index(split)
        if own_goals is None:
            candidates = domain.instructed_goals(split)
        else:
            candidates = [row for row in own_goals if row.goal_split == split]
        if not candidates:
            _raise_empty_split(split, domain, own_goals, goals_file)
        first_seed = EVALUATION_SEED_OFFSET + seed * MAX_EPISODES_PER_SEED + number * num_episodes
        chosen = _spread_over_tasks(domain, candidates, num_episodes, np.random.default_rng([seed, number]))
        episodes += [Episode(row, first_seed + index) for index, row in enumerate(chosen)]
    return episodes


def _raise_empty_split(
    split: str, domain: Domain, own_goals: list[InstructedGoal] | None, goals_file: str | Path | None
) -> None:
    """Name the split without instructions and those that have some."""
    if own_goals is None:
        where, filled = f"domain {domain.name!r}", [s for s in domain.goal_splits if domain.instructed_goals(s)]
    else:
        where, filled = f"goals file {goals_file}", sorted({row.goal_split for row in own_goals})
    raise DataError(
        f"goal split {split!r} has no instruction in {where}; splits with instructions: {', '.join(filled) or 'none'}"
    )


def _spread_over_tasks(
    domain: Domain, candidates: Sequence[InstructedGoal], num_episodes: int, random: np.random.Generator
) -> list[InstructedGoal]:
    """Draw instructions task by task in turn, and within a task without repeats until all are used."""
    by_task: dict[str, list[InstructedGoal]] = {}
    for row in candidates:
        by_task.setdefault(domain.task(row.goal), []).append(row)
    orders = [[rows[i] for i in random.permutation(len(rows))] for rows in by_task.values()]
    num_tasks = len(orders)
    return [orders[i % num_tasks][(i // num_tasks) % len(orders[i % num_tasks])] for i in range(num_episodes)]


def evaluate(
    act: Act,
    domain: Domain,
    episodes: Sequence[Episode],
    num_envs: int = 64,
    num_threads: int | None = None,
) -> list[EpisodeResult]:
    """Run every episode once, with one call of the policy a simulator step for all running episodes together.

    A row whose episode has ended takes the next waiting episode at once. The results do not depend on ``num_envs``
    or ``num_threads`` as long as ``act`` treats its rows independently.

    Args:
        act: The policy: float32 observations of shape (B, O) and the index in ``episodes`` of each row, to actions
            of shape (B,) or (B, A). B shrinks when fewer episodes are left than environments.
        domain: World to run in.
        episodes: What to run.
        num_envs: Most episodes that run side by side.
        num_threads: Threads of the simulator; all cores by default.

    Returns:
        One result an episode, in the order of ``episodes``.
    """
    if num_envs < 1:
        raise DataError(f"num_envs is {num_envs}; evaluation needs at least 1 environment")
    if not episodes:
        return []
    env = domain.make_vector_env(min(num_envs, len(episodes)), num_threads)
    try:
        return _Evaluation(act, domain, episodes, env).run()
    finally:
        env.close()


class _Evaluation:
    """The bookkeeping of one ``evaluate`` call: which episode occupies which row, and what it has done so far."""

    def __init__(self, act: Act, domain: Domain, episodes: Sequence[Episode], env: Any) -> None:
        self.act, self.domain, self.episodes, self.env = act, domain, episodes, env
        self.waiting = deque(range(len(episodes)))
        self.episode_of_row = [self.waiting.popleft() for _ in range(env.num_envs)]
        self.is_running = np.ones(env.num_envs, dtype=np.bool_)
        self.observations: list[list[NDArray[Any]]] = [[] for _ in episodes]
        self.actions: list[list[NDArray[Any]]] = [[] for _ in episodes]
        self.returns = [0.0] * len(episodes)
        self.is_success = [False] * len(episodes)

    def run(self) -> list[EpisodeResult]:
        """Step all rows together until no episode waits and none runs."""
        observation = self._reset(np.ones(self.env.num_envs, dtype=np.bool_))
        shape, dtype = self.env.action_space.shape, self.env.action_space.dtype
        while self.is_running.any():
            rows = np.flatnonzero(self.is_running)
            indices = [self.episode_of_row[row] for row in rows]
            chosen = np.asarray(self.act(observation[rows].astype(np.float32), indices))
            actions = np.zeros(shape, dtype=dtype)  # a row that has nothing left to do gets an action that nobody reads
            actions[rows] = chosen
            observation, reward, terminated, truncated, info = self.env.step(actions)
            is_success = np.asarray(info["is_success"], dtype=np.bool_)
            for row, index in zip(rows, indices, strict=True):
                self.observations[index].append(observation[row].copy())
                self.actions[index].append(actions[row].copy())
                self.returns[index] += float(reward[row])
                self.is_success[index] |= bool(is_success[row])
            observation = self._refill(rows[(terminated | truncated)[rows]], observation)
        return [self._result(index) for index in range(len(self.episodes))]

    def _refill(self, ended: NDArray[np.intp], observation: NDArray[Any]) -> NDArray[Any]:
        """Give each row in ``ended`` the next waiting episode, or retire it."""
        starting = np.zeros(self.env.num_envs, dtype=np.bool_)
        for row in ended:
            if self.waiting:
                self.episode_of_row[row] = self.waiting.popleft()
                starting[row] = True
            else:
                self.is_running[row] = False
        return self._reset(starting) if starting.any() else observation

    def _reset(self, starting: NDArray[np.bool_]) -> NDArray[Any]:
        """Start the episodes that the rows in ``starting`` have been given; other rows stay as they are."""
        current = [self.episodes[index] for index in self.episode_of_row]
        options: dict[str, Any] = {
            "goals": [episode.instructed.goal for episode in current],
            "instructions": [episode.instructed.instruction for episode in current],
            "reset_mask": starting,
        }
        if any(episode.start is not None for episode in current):
            options["observations"] = [episode.start for episode in current]
        observation, _ = self.env.reset(seed=[episode.seed for episode in current], options=options)
        for row in np.flatnonzero(starting):
            self.observations[self.episode_of_row[row]].append(observation[row].copy())
        return observation

    def _result(self, index: int) -> EpisodeResult:
        """Pack what an episode has recorded."""
        episode = self.episodes[index]
        return EpisodeResult(
            episode=episode,
            task=self.domain.task(episode.instructed.goal),
            is_success=self.is_success[index],
            num_steps=len(self.actions[index]),
            episode_return=self.returns[index],
            observations=np.stack(self.observations[index]),
            actions=np.stack(self.actions[index]),
        )


def wilson_interval(num_successes: int, num_trials: int, z: float = 1.96) -> tuple[float, float]:
    """Interval that holds the true success rate, sound for few trials and for rates near 0 and 1 (Wilson, 1927).

    Args:
        num_successes: Trials that succeeded.
        num_trials: Trials made; 0 gives the whole range.
        z: Standard normal quantile; 1.96 for 95 %.

    Returns:
        Lower and upper bound, both in [0, 1].
    """
    if num_trials == 0:
        return 0.0, 1.0
    rate = num_successes / num_trials
    denominator = 1 + z**2 / num_trials
    center = (rate + z**2 / (2 * num_trials)) / denominator
    half_width = z * sqrt(rate * (1 - rate) / num_trials + z**2 / (4 * num_trials**2)) / denominator
    return max(0.0, center - half_width), min(1.0, center + half_width)


def summarize(results: Iterable[EpisodeResult]) -> dict[str, SplitSummary]:
    """Count successes a split and a task; only splits that occur in ``results`` appear, as they come."""
    verdicts: dict[str, dict[str, list[bool]]] = {}
    for result in results:
        split = result.episode.instructed.goal_split
        verdicts.setdefault(split, {}).setdefault(result.task, []).append(result.is_success)
    return {split: _summarize_split(verdicts[split]) for split in verdicts}


def _summarize_split(verdicts: dict[str, list[bool]]) -> SplitSummary:
    """Summary of the verdicts of one split, keyed by task."""
    rates = {task: sum(verdicts[task]) / len(verdicts[task]) for task in sorted(verdicts)}
    num_episodes = sum(len(v) for v in verdicts.values())
    num_successes = sum(sum(v) for v in verdicts.values())
    return SplitSummary(
        num_episodes=num_episodes,
        success_rate=num_successes / num_episodes,
        macro_success_rate=sum(rates.values()) / len(rates),
        interval=wilson_interval(num_successes, num_episodes),
        task_success_rates=rates,
    )
