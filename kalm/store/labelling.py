"""TEDUO's hindsight labels: a judge is asked which states of a store meet which goals (arXiv:2412.06877, 3.1.2).

Of a goal, states that do not differ in what matters to it are one question, and a judge is asked each question once.

Shape letters: S states of the store, Q questions about a goal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kalm.core.errors import DataError
from kalm.core.goal import Goal, InstructedGoal
from kalm.envs.base import Domain
from kalm.judging.judge import DOMAIN_RULE, Judge, Verdict, verdict
from kalm.store.labels import GOAL_STATE, LABEL_MANIFEST, Labels, LabelWriter, label_folder
from kalm.store.reader import RolloutStore

GOALS_PER_SHARD = 10
PAPER_MAX_STATES = 5000  # TEDUO, appendix C.5


class Keep(Enum):
    """Which verdicts are written."""

    all = "all"  # a row for each question
    alike = "alike"  # and, while the limit has room, for states like those asked: what a proxy network learns from
    met = "met"  # a row for each state, asked or equal to one that was, that meets the goal: what a solver reads


@dataclass(frozen=True)
class AskedGoals:
    """Of the goals of one task, how many were met somewhere, and how often the judge was asked and said what."""

    num_goals: int
    num_goals_met: int
    num_asked: int
    num_met: int
    num_abstained: int


def distinct_goals(domain: Domain, goal_split: str | None = None) -> list[InstructedGoal]:
    """Each goal of a split, by default the training split, once, with the first of its sentences.

    Raises:
        DataError: If the split is unknown or kept for the test.
    """
    (split,) = domain.check_learning_splits([goal_split or domain.training_split])
    rows = domain.instructed_goals(split)
    return list({row.goal: row for row in reversed(rows)}.values())[::-1]


def some_goals(goals: Sequence[InstructedGoal], num_goals: int, seed: int) -> list[InstructedGoal]:
    """So many of some goals, drawn by a seed, in their order; what is chosen stays so where more are chosen.

    Raises:
        DataError: If there are not so many.
    """
    if not 1 <= num_goals <= len(goals):
        raise DataError(f"max_goals is {num_goals}; it must be in [1, {len(goals)}], or null for all training goals")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(goals))[:num_goals])
    return [goals[number] for number in chosen.tolist()]


def label_store(
    domain: Domain,
    store: RolloutStore,
    judge: Judge,
    name: str = "",
    max_states_per_goal: int | None = PAPER_MAX_STATES,
    keep: Keep = Keep.all,
    seed: int = 0,
    goals: Sequence[InstructedGoal] | None = None,
    show_progress: bool = True,
) -> Labels:
    """Label a store's states by goals, or go on with a label that was interrupted, or open one that is there.

    Args:
        domain: The store's world.
        store: Whose states.
        judge: Who is asked.
        name: The label's; the judge's by default.
        max_states_per_goal: Questions about one goal at most (paper: 5000), of ``alike`` also rows; None asks all.
        keep: Which verdicts are written.
        seed: Decides which states stand for those like them, and which are asked about where not all are.
        goals: What is asked; by default the distinct goals of the training split.
        show_progress: Draw a progress bar.

    Raises:
        DataError: If the name is taken by what is no label of goals and states, or by one that was made otherwise; or
            if no state meets any goal, so that there is nothing to keep.
    """
    name = name or judge.name
    if name in (DOMAIN_RULE, *store.plausibility_flags):
        raise DataError(f"name is {name!r}, a label that {store.path} came with; give this one another name")
    goals = distinct_goals(domain) if goals is None else goals
    made_by = {
        "verb": "label",
        "max_states_per_goal": max_states_per_goal,
        "keep": keep.name,
        "seed": seed,
        "goals_sha256": _sha256(goals),
    }
    found = _finished(store, judge, name, made_by)
    if found is not None:
        return found
    writer = LabelWriter(store, judge, GOAL_STATE, made_by, name=name)
    shards = {f"{first:06d}": goals[first : first + GOALS_PER_SHARD] for first in range(0, len(goals), GOALS_PER_SHARD)}
    missing = {shard: asked for shard, asked in shards.items() if shard not in writer.finished_shards}
    columns = (TextColumn("label"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show_progress) as progress:
        left = sum(map(len, missing.values()))
        bar = progress.add_task("label", total=len(goals), completed=len(goals) - left)
        states = store.observations(torch.arange(store.num_states)) if missing else np.zeros(0)
        features = domain.goal_features(states) if missing else None
        # The first recorded of like states share more than what makes them alike: hands are empty before they are full.
        order = np.random.default_rng(seed).permutation(len(states))
        for shard, some in missing.items():
            asked = [
                _ask(
                    judge,
                    goal.goal,
                    states,
                    _questions(order, features and features(goal.goal)),
                    max_states_per_goal,
                    keep,
                    _luck(seed, goal.goal),
                )
                for goal in some
            ]
            _write(writer, shard, some, asked)
            progress.advance(bar, len(some))
    return writer.finish()


def asked_by_task(domain: Domain, labels: Labels) -> dict[str, AskedGoals]:
    """What a label that ``label_store`` made says of each task, sorted by its name."""
    counts: dict[str, list[NDArray[np.int64]]] = {}
    for row in labels.goals:
        numbers = [1, row["num_met"] > 0, row["num_asked"], row["num_met"], row["num_abstained"]]
        counts.setdefault(domain.goal_from_json(row["goal"]).task, []).append(np.array(numbers, dtype=np.int64))
    return {task: AskedGoals(*np.sum(rows, axis=0).tolist()) for task, rows in sorted(counts.items())}


@dataclass(frozen=True, eq=False)
class _Asked:
    """Rows to write about one goal, and what was asked for them."""

    said: Verdict
    state: NDArray[np.int64]
    counts: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Questions:
    """The questions that there are about a goal.

    Attributes:
        asked: A state that stands for each, shape (Q,).
        of_state: Which one each state poses, shape (S,).
        order: All states in the order in which they are taken, shape (S,).
    """

    asked: NDArray[np.int64]
    of_state: NDArray[np.int64]
    order: NDArray[np.int64]

    def alike(self, chosen: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
        """At most so many states that pose one of the chosen questions, as many of each as there are."""
        question = self.of_state[self.order]
        grouped = np.argsort(question, kind="stable")
        rank = np.empty(len(question), dtype=np.int64)
        rank[grouped] = np.arange(len(question)) - np.searchsorted(question[grouped], question[grouped])
        turns = np.argsort(rank, kind="stable")
        turns = turns[np.isin(question[turns], chosen)]
        return np.sort(self.order[turns[:most]])


def _questions(order: NDArray[np.int64], features: NDArray[np.integer[Any]] | None) -> _Questions:
    """States with equal features pose one question; without features no two do."""
    if features is None:
        return _Questions(np.arange(len(order)), np.arange(len(order)), order)
    _, first, found = np.unique(features[order], return_index=True, return_inverse=True)
    of_state = np.empty(len(order), dtype=np.int64)
    of_state[order] = found
    return _Questions(order[first], of_state, order)


def _ask(
    judge: Judge,
    goal: Goal,
    states: NDArray[Any],
    questions: _Questions,
    max_states: int | None,
    keep: Keep,
    luck: np.random.Generator,
) -> _Asked:
    """Put every question about one goal, or ``max_states`` of them, to the judge."""
    asked = questions.asked
    chosen = np.arange(len(asked))
    if max_states is not None and max_states < len(asked):
        chosen = np.sort(luck.choice(len(asked), max_states, replace=False))
    said = judge.judge_states(goal, states[asked[chosen]])
    counts = {"num_asked": len(said), "num_met": int(said.met.sum()), "num_abstained": int(said.abstained.sum())}
    if keep is Keep.all:
        return _Asked(said, asked[chosen], counts)
    if keep is Keep.alike:
        state = questions.alike(chosen, max_states)
    else:
        state = np.flatnonzero(np.isin(questions.of_state, chosen[said.met]))
    answer = np.searchsorted(chosen, questions.of_state[state])
    return _Asked(verdict(said.met[answer], said.score[answer], said.abstained[answer]), state, counts)


def _write(writer: LabelWriter, shard: str, goals: Sequence[InstructedGoal], asked: Sequence[_Asked]) -> None:
    said = [one.said for one in asked]
    fields = ("met", "score", "abstained")
    joined = Verdict(*(np.concatenate([getattr(one, field) for one in said]) for field in fields))
    rows = [
        {"goal": goal.goal.to_json(), "instruction": goal.instruction, **one.counts}
        for goal, one in zip(goals, asked, strict=True)
    ]
    goal = np.repeat(np.arange(len(goals)), [len(one.state) for one in asked])
    writer.append(shard, joined, rows, goal, np.concatenate([one.state for one in asked]))


def _finished(store: RolloutStore, judge: Judge, name: str, made_by: Mapping[str, Any]) -> Labels | None:
    """The label if it is finished and was made like this."""
    if not (store.path / label_folder(name) / LABEL_MANIFEST).is_file():
        return None
    labels = store.labels(name)
    expected = {**judge.provenance, **made_by}
    if labels.provenance == json.loads(json.dumps(expected)):
        return labels
    raise DataError(
        f"label {name!r} of {store.path} was made by {labels.provenance}, not by {expected}; give this one another "
        "name, or delete the label's folder to make it anew"
    )


def _luck(seed: int, goal: Goal) -> np.random.Generator:
    """By the goal itself, so that more goals or another order change nothing of what is asked about this one."""
    digest = hashlib.sha256(json.dumps(goal.to_json(), sort_keys=True).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _sha256(goals: Sequence[InstructedGoal]) -> str:
    lines = (json.dumps([row.goal.to_json(), row.instruction], sort_keys=True) for row in goals)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
