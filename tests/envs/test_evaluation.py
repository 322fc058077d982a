"""Evaluation: which episodes, that each depends on nothing but itself, and the statistics over them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.evaluation import EVALUATION_SEED_OFFSET, evaluation_episodes, summarize, wilson_interval
from kalm.envs.simulation import Act, Episode, EpisodeResult, evaluate
from tests.chain_domain import LEFT, MAX_STEPS, RIGHT, CellGoal, ChainDomain

DOMAIN = ChainDomain()
ALL_SPLITS = list(DOMAIN.goal_splits)


def walk(direction: int) -> Act:
    """A policy that always steps the same way."""
    return lambda observations, rows, info: np.full(len(rows), direction)


def wander(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
    """A policy that depends on the observation and the episode, so that a mix-up of either shows."""
    return (observations.argmax(-1) * 7 + np.array(rows) * 3) % 5 % 2


def result(split: str, cell: int, is_success: bool) -> EpisodeResult:
    """What is left of an episode for the statistics."""
    instructed = next(row for row in DOMAIN.instructed_goals(split) if row.goal == CellGoal(cell))
    return EpisodeResult(
        episode=Episode(instructed, 0),
        task=instructed.goal.task,
        is_success=is_success,
        num_steps=1,
        episode_return=float(is_success),
        observations=np.zeros((2, 5)),
        actions=np.zeros(1),
    )


def test_every_task_of_a_split_gets_its_share_and_every_instruction_comes_before_a_repeat() -> None:
    """Training has 2 tasks with 3 instructions each: 9 episodes are 5 and 4, no instruction more than twice."""
    episodes = evaluation_episodes(DOMAIN, ["train"], 9, seed=0)
    tasks = Counter(episode.instructed.goal.task for episode in episodes)
    instructions = Counter(episode.instructed.instruction for episode in episodes)
    assert sorted(tasks.values()) == [4, 5]
    assert len(instructions) == 6
    assert max(instructions.values()) == 2


def test_no_two_episodes_share_a_start_within_or_across_evaluation_seeds() -> None:
    """Each (split, task, seed) once; and none below the offset that collection stays under."""
    seeds = [e.seed for s in range(3) for e in evaluation_episodes(DOMAIN, ALL_SPLITS, 40, seed=s)]
    assert len(set(seeds)) == len(seeds) == 3 * 4 * 40
    assert min(seeds) >= EVALUATION_SEED_OFFSET


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others() -> None:
    """The episodes are a function of the seed."""
    first = evaluation_episodes(DOMAIN, ALL_SPLITS, 10, seed=4)
    assert evaluation_episodes(DOMAIN, ALL_SPLITS, 10, seed=4) == first
    other = evaluation_episodes(DOMAIN, ALL_SPLITS, 10, seed=5)
    assert [e.instructed for e in other] != [e.instructed for e in first]


def test_a_users_own_goals_take_the_place_of_the_domains(tmp_path: Path) -> None:
    """Only sentences of the file are evaluated."""
    path = tmp_path / "goals.jsonl"
    row = {"goal": {"type": "cell", "cell": 3}, "instruction": "mine", "goal_split": "easy"}
    path.write_text(json.dumps(row))
    episodes = evaluation_episodes(DOMAIN, ["easy"], 3, seed=0, goals_file=path)
    assert [episode.instructed.instruction for episode in episodes] == ["mine"] * 3
    with pytest.raises(DataError, match="'train' has no instruction in goals file .* with instructions: easy"):
        evaluation_episodes(DOMAIN, ["train"], 3, seed=0, goals_file=path)


@pytest.mark.parametrize(("num_episodes", "seed"), [(0, 0), (10**6, 0), (5, -1)])
def test_numbers_out_of_range_are_refused(num_episodes: int, seed: int) -> None:
    """Each would make starts meet those of another evaluation."""
    with pytest.raises(DataError, match="episodes"):
        evaluation_episodes(DOMAIN, ALL_SPLITS, num_episodes, seed)


def same(one: EpisodeResult, other: EpisodeResult) -> bool:
    """Whether two results agree to the last bit."""
    scalars = ("episode", "task", "is_success", "num_steps", "episode_return")
    return (
        all(getattr(one, name) == getattr(other, name) for name in scalars)
        and np.array_equal(one.observations, other.observations)
        and np.array_equal(one.actions, other.actions)
    )


@pytest.mark.parametrize("num_envs", [1, 3, 7, 64])
def test_results_do_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    """With a policy that would notice rows and episodes being mixed up."""
    episodes = evaluation_episodes(DOMAIN, ALL_SPLITS, 6, seed=1)
    expected = [evaluate(lambda o, r, info, i=i: wander(o, [i], info), DOMAIN, [e])[0] for i, e in enumerate(episodes)]
    found = evaluate(wander, DOMAIN, episodes, num_envs)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))


def test_results_do_not_depend_on_threads_in_a_simulator() -> None:
    """On CLEVR-Robot: one environment and one thread against five and two."""
    domain = ClevrRobot()
    episodes = evaluation_episodes(domain, ["train", "easy"], 4, seed=2)

    def push(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
        assert observations.dtype == np.float64, "nothing is cast on the way"
        return (np.abs(observations).sum(-1) * 1000).astype(int) % 40

    alone = evaluate(push, domain, episodes, num_envs=1, num_threads=1)
    together = evaluate(push, domain, episodes, num_envs=5, num_threads=2)
    assert all(same(*pair) for pair in zip(alone, together, strict=True))


def test_a_finished_row_takes_the_next_episode_at_once() -> None:
    """The policy is asked for as many rows as there are steps in all, and two environments are both busy till the end.

    Walking right never reaches the left end: those episodes take all 12 steps. Four of them on two environments are
    2 x 12 = 24 calls with 2 rows each.
    """
    to_the_left = [row for row in DOMAIN.instructed_goals("train") if row.goal == CellGoal(0)]
    episodes = [Episode(to_the_left[0], seed) for seed in range(4)]
    num_rows: list[int] = []

    def act(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
        num_rows.append(len(rows))
        return np.full(len(rows), RIGHT)

    results = evaluate(act, DOMAIN, episodes, num_envs=2)
    assert num_rows == [2] * 24
    assert [r.num_steps for r in results] == [MAX_STEPS] * 4


def test_a_result_holds_what_happened() -> None:
    """Walking left from cell c reaches the left end in c steps, with one reward of 1 at the end."""
    to_the_left = [row for row in DOMAIN.instructed_goals("train") if row.goal == CellGoal(0)]
    for found in evaluate(walk(LEFT), DOMAIN, [Episode(to_the_left[0], seed) for seed in range(6)], num_envs=4):
        start = int(found.observations[0].argmax())
        assert found.is_success
        assert found.episode_return == 1.0
        assert found.num_steps == start == len(found.actions) == len(found.observations) - 1
        assert found.observations.argmax(-1).tolist() == list(range(start, -1, -1))


def test_evaluation_leaves_global_random_numbers_alone() -> None:
    """What is drawn after an evaluation is what would have been drawn without it."""

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - global on purpose

    def seed() -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - global on purpose
        torch.manual_seed(0)

    seed()
    expected = draw()
    seed()
    evaluate(wander, DOMAIN, evaluation_episodes(DOMAIN, ALL_SPLITS, 5, seed=0))
    assert draw() == expected


def test_an_evaluation_needs_an_environment() -> None:
    """Zero environments would never finish."""
    with pytest.raises(DataError, match="num_envs is 0"):
        evaluate(wander, DOMAIN, evaluation_episodes(DOMAIN, ALL_SPLITS, 1, seed=0), num_envs=0)


def test_wilson_interval_of_five_in_ten() -> None:
    """Centre 1/2; half width 1.96 sqrt(0.25/10 + 3.8416/400) / (1 + 0.38416) = 0.263411."""
    assert wilson_interval(5, 10) == pytest.approx((0.236589, 0.763411), abs=1e-6)


def test_wilson_interval_at_the_ends() -> None:
    """None in ten: upper bound z^2 / (n + z^2) = 3.8416 / 13.8416 = 0.277540; all in ten mirrors it."""
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277540), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((1 - 0.277540, 1.0), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_summary_weighs_tasks_equally_in_the_macro_average_only() -> None:
    """Left end 1 of 1, right end 1 of 3: over episodes 2/4 = 0.5, over tasks (1 + 1/3) / 2 = 2/3."""
    results = [result("train", 0, True)] + [result("train", 4, ok) for ok in (True, False, False)]
    results.append(result("hard", 2, False))
    summary = summarize(results)
    assert list(summary) == ["train", "hard"]
    train = summary["train"]
    assert train.num_episodes == 4
    assert train.success_rate == 0.5
    assert train.macro_success_rate == pytest.approx(2 / 3)
    assert train.task_success_rates == {"left_end": 1.0, "right_end": pytest.approx(1 / 3)}
    assert train.interval == wilson_interval(2, 4)
    assert summary["hard"].success_rate == 0.0
