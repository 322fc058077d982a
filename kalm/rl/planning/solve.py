"""TEDUO's second step from end to end: a store and a label of it become a store of plans (section 3.2, appendix C.6).

Part by part (grid by grid) every goal that is met somewhere is solved, and its solution is followed from many starts,
a share of them where recorded rollouts begin: in each state one of the best actions, in each next state the most
frequent successor, until the label says that the goal is met. A plan is an imaginary rollout; with each step stand all
actions that were equally good. Nothing asks an environment what an action does, and only plans that reach their goal
are kept. With hindsight in a solver's place nothing is planned: what was recorded on the way to the goal stands in a
store of the same form (``kalm/rl/planning/hindsight.py``).

Shape letters: S states of a part, A actions, B plans, T steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kalm.core.durable import write_durably
from kalm.core.errors import DataError, require
from kalm.core.goal import Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.judging.judge import Judge
from kalm.rl.planning.completed_part import CompletedPart
from kalm.rl.planning.completion import complete
from kalm.rl.planning.empirical_graph import UNKNOWN, Part, RecordedParts
from kalm.rl.planning.local_dynamics import learn_local_dynamics
from kalm.rl.planning.planner import Planner, PlanSettings
from kalm.rl.planning.solve_facts import by_kind, solve_provenance
from kalm.runs.folder import SOLVED_FILE, STORE
from kalm.store.labels import Labels
from kalm.store.reader import RolloutStore, is_finished_store
from kalm.store.sealing import to_json
from kalm.store.writer import RolloutStoreWriter

_STATISTICS = "statistics"  # a file for each shard, while the store is unfinished
_GOALS_PER_SHARD = 50  # what a kill can cost, and what is in memory at once
_STATES_AT_ONCE = 8192  # that a judge sees


def solve_store(
    domain: Domain,
    store: RolloutStore,
    label: str,
    solver: Planner,
    folder: str | Path,
    settings: PlanSettings | None = None,
    judge: Judge | None = None,
    num_threads: int | None = None,
    show_progress: bool = False,
) -> RolloutStore:
    """Make a store of plans, or go on with one that was interrupted, or open one that is there.

    Args:
        domain: World that the store is of.
        store: What was recorded: states in a table, discrete actions, no goals needed.
        label: Name of a label of the store that says in which states which goals are met. A state that it does not
            mention counts as one where they are not.
        solver: How goals are solved; or hindsight, for what was recorded.
        folder: Where the store of plans goes, as ``store``, and figures about it, as ``solved.json``.
        settings: How plans are made.
        judge: Says whether goals are met in states that were never recorded, where the graph is completed; without one
            they are not.
        num_threads: Goals that are solved at the same time; the plans do not depend on it.
        show_progress: Whether to draw a progress bar.

    Raises:
        DataError: If the store or its label is of another kind, the folder holds another store, the graph cannot be
            completed, or no goal can be reached from anywhere.
    """
    settings, folder = settings or PlanSettings(), Path(folder)
    is_possible = not (settings.is_completed and solver.source is Source.REAL)
    require(is_possible, "is_completed", settings.is_completed, "false with hindsight, which is of what was recorded")
    labels = store.labels(label)
    if labels.goal is None:
        raise DataError(f"label {label!r} of {store.path} is about rollouts; solving needs one about goals and states")
    made_by = solve_provenance(store, label, labels, solver, settings, judge)
    if is_finished_store(folder / STORE):
        plans = RolloutStore(folder / STORE)
        if plans.manifest["made_by"] == json.loads(to_json(made_by)):
            return plans
        raise DataError(
            f"rollout store {plans.path} was made by {plans.manifest['made_by']}, not by {made_by}; name another "
            "folder, or delete this one to solve anew"
        )
    flags = domain.plausibility_flags
    writer = RolloutStoreWriter(folder / STORE, domain.name, domain.spec, flags, made_by, has_optimal_actions=True)
    work, written = _Work(domain, store, labels, solver, settings, judge), list[str]()
    own = {"label": label, "solver": made_by["solver"]["name"], "is_oracle": made_by["is_oracle"]}
    (folder / _STATISTICS).mkdir(exist_ok=True)
    columns = (TextColumn("solve"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show_progress) as progress, ThreadPoolExecutor(num_threads) as pool:
        bar = progress.add_task("solve", total=len(work.parts) * len(work.goals))
        for number, part_name in enumerate(work.parts.names):
            shards = {f"{number:06d}-{first:06d}": goals for first, goals in work.blocks}
            missing = [shard for shard in shards if shard not in writer.finished_shards]
            part = work.part(number) if missing else None
            written += shards
            for shard, goals in shards.items():
                if part is not None and shard in missing:
                    solved = list(pool.map(partial(work.solve, number, part), goals))
                    figures = [one.figures for one in solved]
                    write_durably(folder / _STATISTICS / f"{shard}.json", to_json(figures))
                    provenance = {**own, settings.part_key: part_name}
                    writer.append(shard, [plan for one in solved for plan in work.rollouts(one, part, provenance)])
                progress.advance(bar, len(goals))
    plans = writer.finish()
    # Of these shards alone: an earlier store in this folder, which was deleted, may have had more.
    figures = [row for shard in written for row in json.loads((folder / _STATISTICS / f"{shard}.json").read_bytes())]
    write_durably(folder / SOLVED_FILE, to_json({**made_by, "kinds": by_kind(figures)}, indent=1) + b"\n")
    return plans


@dataclass(frozen=True, eq=False)
class _Solved:
    """What came of one goal in one part: B plans one after the other, and figures about them."""

    instructed: InstructedGoal
    figures: dict[str, Any]
    states: Sequence[NDArray[np.int64]] = ()  # of each plan, shape (T + 1,)
    actions: Sequence[NDArray[np.int64]] = ()  # of each plan, shape (T,)
    optimal: Sequence[NDArray[np.bool_]] = ()  # of each plan, shape (T, A)


class _Work:
    """Everything that is to be solved."""

    def __init__(
        self,
        domain: Domain,
        store: RolloutStore,
        labels: Labels,
        solver: Planner,
        settings: PlanSettings,
        judge: Judge | None,
    ) -> None:
        self._domain, self._solver, self._settings, self._judge = domain, solver, settings, judge
        self.goals = [
            InstructedGoal(
                domain.goal_from_json(row["goal"]), row["instruction"], row.get("goal_split", domain.training_split)
            )
            for row in labels.goals
        ]
        self.parts = RecordedParts(store, settings.part_key)
        self._locality = domain.locality
        if settings.is_completed:
            if self._locality is None:
                raise DataError(
                    f"is_completed is True, but {domain.name} does not say what its actions depend on (Domain.locality)"
                )
            self._dynamics = learn_local_dynamics(self._locality, self.parts, domain.spec.action_size)
        # The states in which goals are met, those of each part together.
        assert labels.goal is not None
        assert labels.state is not None
        met = labels.met.numpy()
        goal, state = labels.goal.numpy()[met].astype(np.int64), labels.state.numpy()[met].astype(np.int64)
        part = self.parts.part_of_state[state]
        order = np.lexsort((state, goal, part))
        self._met_goal, self._met_state = goal[order], state[order]
        self._met_bounds = np.searchsorted(part[order], np.arange(len(self.parts) + 1))

    @property
    def blocks(self) -> Iterator[tuple[int, range]]:
        """Goals that share a shard, and the first of them."""
        for first in range(0, len(self.goals), _GOALS_PER_SHARD):
            yield first, range(first, min(first + _GOALS_PER_SHARD, len(self.goals)))

    def part(self, number: int) -> Part:
        """A part, completed if that is wanted."""
        part = self.parts[number]
        if self._settings.is_completed:
            assert self._locality is not None
            part = complete(part, self._locality, self._dynamics, self._settings.max_configurations)
            part.prepare({self._locality.aspect(goal.goal) for goal in self.goals})
        _ = part.graph.predecessors  # made once, before threads share it
        return part

    def solve(self, number: int, part: Part, goal: int) -> _Solved:
        """Solve one goal in part ``number``, and follow its solution from several starts."""
        instructed, settings = self.goals[goal], self._settings
        is_goal, is_recorded = self._is_goal(number, part, goal), part.states != UNKNOWN
        figures: dict[str, Any] = {"task": instructed.goal.task, "num_goal_states": int(is_goal.sum())}
        if not is_goal.any():
            return _Solved(instructed, figures)
        rng = np.random.default_rng([settings.seed, number, goal])
        ways = self._solver.plan(part, is_goal, settings, rng)
        figures |= {
            "solvable": _share(ways.can_start | is_goal, is_recorded),
            "solvable_at_start": _share(ways.can_start | is_goal, part.is_start),
            "num_plans": len(ways.actions),
            "num_steps": sum(map(len, ways.actions)),
        }
        return _Solved(instructed, figures, ways.states, ways.actions, ways.optimal)

    def rollouts(self, solved: _Solved, part: Part, provenance: dict[str, Any]) -> Iterator[Rollout]:
        """Plans as rollouts, imaginary unless recorded: rewards by the label, ``is_success`` by the domain's rule."""
        if not solved.actions:
            return
        goal = solved.instructed.goal
        ends = np.cumsum([0, *map(len, solved.states)])
        path, lasts = np.concatenate(solved.states), ends[1:] - 1
        last_actions = np.array([actions[-1] for actions in solved.actions])
        observations = part.observe(np.delete(path, lasts))
        seen_last = part.observe_next(path[lasts - 1], last_actions, path[lasts])
        observations = np.insert(observations, lasts - np.arange(len(lasts)), seen_last, axis=0)
        for (start, end), actions, optimal in zip(pairwise(ends), solved.actions, solved.optimal, strict=True):
            seen = observations[start:end]
            is_last = np.arange(len(actions)) == len(actions) - 1
            implausible = self._domain.plausibility(seen[:-1], actions, seen[1:])
            yield Rollout(
                goal=goal.to_json(),
                instruction=solved.instructed.instruction,
                goal_split=solved.instructed.goal_split,
                source=self._solver.source,
                observations=seen,
                actions=actions,
                rewards=is_last.astype(np.float32),
                terminated=is_last,
                truncated=np.zeros_like(is_last),
                is_success=bool(goal.success(seen[1:], seen[:-1], actions).any()),
                violations={flag: int(marked.sum()) for flag, marked in implausible.items()},
                provenance=provenance,
                optimal_actions=optimal,
            )

    def _is_goal(self, number: int, part: Part, goal: int) -> NDArray[np.bool_]:
        """In which states of part ``number`` a goal is met, shape (S,): by the label, elsewhere by the judge."""
        bounds = self._met_bounds[number : number + 2]
        of_part = self._met_goal[bounds[0] : bounds[1]]
        first, last = bounds[0] + np.searchsorted(of_part, [goal, goal + 1])
        is_recorded = part.states != UNKNOWN
        is_goal = np.zeros(len(part.states), dtype=np.bool_)
        recorded = part.states[is_recorded]
        is_goal[np.searchsorted(recorded, self._met_state[first:last])] = True
        if self._judge is None or not isinstance(part, CompletedPart):
            return is_goal
        wanted = self.goals[goal].goal
        aspect = part.locality.aspect(wanted)
        chosen = part.representatives(aspect)
        met = np.zeros(len(chosen.state), dtype=np.bool_)
        met[chosen.of_predicted] = self._judged(wanted, part.observe(chosen.state[chosen.of_predicted]))
        is_goal[part.num_recorded : part.num_states] = met[chosen.of_state[part.num_recorded :]]
        if aspect != "state":
            interactions = part.leaves.chosen(is_goal)
            kinds = np.flatnonzero(interactions != UNKNOWN)
            states, effects = (array[interactions[kinds]] for array in (part.leaves.state, part.leaves.effect))
            is_goal[part.num_states + kinds] = self._judged(wanted, part.made_by(states, effects))
        return is_goal

    def _judged(self, goal: Goal, states: NDArray[Any]) -> NDArray[np.bool_]:
        """In which states (B, ...) the judge says that a goal is met, shape (B,)."""
        assert self._judge is not None
        blocks = [states[first : first + _STATES_AT_ONCE] for first in range(0, len(states), _STATES_AT_ONCE)]
        met = [self._judge.judge_states(goal, block).met for block in blocks]
        return np.concatenate([np.zeros(0, dtype=np.bool_), *met])


def _share(found: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(found[among].mean()) if among.any() else 0.0
