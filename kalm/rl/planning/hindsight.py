"""Hindsight instead of a solution: recorded walks, cut where a label says that they met a goal, as rollouts for it.

Nobody knows what a recorded walk was for. Whatever it met it can be read as an attempt at: from where it began, or from
where it last met the goal, up to the first state that meets it again, which is rewarded. One walk serves many goals.

Cloning these rollouts is the paper's baseline "step 1 + GCBC" (TEDUO, tables 2 and B.3). *Filtered*, they are what
TEDUO clones in WebShop (section 3.2), where the best attempt at a goal is taken and its loops are removed; where every
attempt ends alike, with the goal met, the best are those that make the shortest detours.

Shape letters: S states of a part, V segments, T steps.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kalm.core.names import Source
from kalm.rl.planning.empirical_graph import Part, Walks
from kalm.rl.planning.planner import Planner, PlanSettings, Ways
from kalm.rl.planning.solvers import distances


class Hindsight(Planner):
    """Keeps what was recorded on the way to a goal; it has the place of a solver and says nothing of other states."""

    source: ClassVar[Source] = Source.REAL

    def __init__(self, is_filtered: bool = False) -> None:
        """Say what is kept.

        Args:
            is_filtered: Whether loops are cut out, and those ways are kept that are the least longer than the shortest
                way that is known from where they begin; else any are kept.
        """
        self.is_filtered = is_filtered

    def plan(self, part: Part, is_goal: NDArray[np.bool_], settings: PlanSettings, rng: np.random.Generator) -> Ways:
        """Some of the ways that were walked to a goal, whose best actions are those that were taken.

        One can start wherever any of them passes before its end; ``rng`` decides between ways that are equally good.
        """
        walks = part.walks
        begin, end = segments(walks, is_goal)
        can_start = np.zeros(len(is_goal), dtype=np.bool_)
        steps = [np.arange(*ends) for ends in zip(begin, end, strict=True)]
        for own in steps:
            can_start[walks.state[own]] = True
        if self.is_filtered:
            steps = [own[without_loops(walks.state[own])] for own in steps]
        steps = [own for own in steps if len(own) <= settings.max_length]
        order = rng.permutation(len(steps))
        if self.is_filtered and len(steps):
            shortest = distances(part.graph, is_goal)
            detour = np.array([len(own) - shortest[walks.state[own[0]]] for own in steps])
            order = order[np.argsort(detour[order], kind="stable")]
        chosen = [steps[place] for place in np.sort(order[: settings.num_plans])]
        states = [np.append(walks.state[own], walks.next_state[own[-1]]) for own in chosen]
        actions = [walks.action[own] for own in chosen]
        return Ways(
            can_start, states, actions, [np.eye(part.graph.num_actions, dtype=np.bool_)[own] for own in actions]
        )


def segments(walks: Walks, is_goal: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where walks lead to a goal: the steps ``begin`` to ``end - 1`` of each segment, int64 of shape (V,) each.

    A segment begins with its walk, or in the first state after one that meets the goal; after its last step the goal is
    met, and in no state before.
    """
    # A step that leaves a state of the goal is none of the way to it, nor is one that comes after it in another walk.
    is_on_way = ~is_goal[walks.state]
    end = np.flatnonzero(is_on_way & is_goal[walks.next_state]) + 1
    number = np.arange(len(walks.state))
    first_of_walk = np.repeat(walks.first[:-1], np.diff(walks.first))
    after_goal = np.maximum.accumulate(np.where(is_on_way, 0, number + 1)) if len(number) else number
    return np.maximum(first_of_walk, after_goal)[end - 1], end


def without_loops(states: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which steps to take of a way so that it passes no state twice: from each state as when it was last left.

    Args:
        states: Before each step, shape (T,); the one after the last step is none of them.

    Returns:
        Numbers of steps, ascending; they lead from the first state to the end.
    """
    last = {state: step for step, state in enumerate(states.tolist())}
    step, kept = 0, []
    while step < len(states):
        step = last[int(states[step])]
        kept.append(step)
        step += 1
    return np.array(kept, dtype=np.int64)
