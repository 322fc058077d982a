"""Success of a policy on fixed episodes of every goal split, with an honest interval around each rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.envs.base import Domain
from kalm.envs.simulation import MAX_COLLECTION_SEED, Episode, EpisodeResult

# Evaluation resets from seeds at or above this number; collection and training stay below it.
EVALUATION_SEED_OFFSET = MAX_COLLECTION_SEED
# Each evaluation seed owns this many reset seeds, so that the episodes of two evaluation seeds never meet.
MAX_EPISODES_PER_SEED = 1_000_000


@dataclass(frozen=True)
class SplitSummary:
    """Success on one goal split."""

    num_episodes: int
    success_rate: float  # over all episodes
    macro_success_rate: float  # mean over tasks
    interval: tuple[float, float]  # Wilson's of the success rate, 95 %
    task_success_rates: dict[str, float]  # sorted by name


def evaluation_episodes(
    domain: Domain, goal_splits: Sequence[str], num_episodes: int, seed: int, goals_file: str | Path | None = None
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
        candidates = domain.instructed_goals(split) if own_goals is None else own_goals
        candidates = [row for row in candidates if row.goal_split == split]
        if not candidates:
            _raise_empty_split(split, domain, own_goals, goals_file)
        first_seed = EVALUATION_SEED_OFFSET + seed * MAX_EPISODES_PER_SEED + number * num_episodes
        chosen = _spread_over_tasks(candidates, num_episodes, np.random.default_rng([seed, number]))
        episodes += [Episode(row, first_seed + index) for index, row in enumerate(chosen)]
    return episodes


def _raise_empty_split(
    split: str, domain: Domain, own_goals: list[InstructedGoal] | None, goals_file: str | Path | None
) -> None:
    if own_goals is None:
        where, filled = f"domain {domain.name!r}", [s for s in domain.goal_splits if domain.instructed_goals(s)]
    else:
        where, filled = f"goals file {goals_file}", sorted({row.goal_split for row in own_goals})
    raise DataError(
        f"goal split {split!r} has no instruction in {where}; splits with instructions: {', '.join(filled) or 'none'}"
    )


def _spread_over_tasks(
    candidates: Sequence[InstructedGoal], num_episodes: int, random: np.random.Generator
) -> list[InstructedGoal]:
    """Draw instructions task by task in turn, and within a task without repeats until all are used."""
    by_task: dict[str, list[InstructedGoal]] = {}
    for row in candidates:
        by_task.setdefault(row.goal.task, []).append(row)
    orders = [[rows[i] for i in random.permutation(len(rows))] for rows in by_task.values()]
    num_tasks = len(orders)
    return [orders[i % num_tasks][(i // num_tasks) % len(orders[i % num_tasks])] for i in range(num_episodes)]


def wilson_interval(num_successes: int, num_trials: int, z: float = 1.96) -> tuple[float, float]:
    """Interval in [0, 1] that holds the true success rate, sound for few trials and for rates near 0 and 1.

    By Wilson (1927); ``z`` is a standard normal quantile, 1.96 for 95 %. No trial gives the whole range.
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
