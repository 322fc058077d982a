"""Graphs completed by a local model of the dynamics: what nobody recorded but the model predicts.

Three kinds of nodes. *Recorded states* come first, and what was recorded of them always holds. *Predicted states* are
all poses that can be reached in recorded configurations, and in those that the model predicts when an agent sets out
from where recorded rollouts begin: it may change what it faces (open a door), and take up one thing. *Leaves* stand for
what an interaction makes that leads to none of these, such as a thing put down anywhere: a plan can end there, and does
not go on from there. Leaves of one kind are one node, because there are as many as there are free tiles for each thing
in each configuration; what it looks like where a plan ended is worked out when it is asked for.

Shape letters: S states, A actions, C configurations, P poses, F configurations at a time, I interactions, K kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from kalm.envs.locality import NOWHERE, Aspect, Locality
from kalm.rl.planning.empirical_graph import UNKNOWN, Edges, Graph, Part
from kalm.rl.planning.local_dynamics import LocalDynamics

MAX_CONFIGURATIONS = 3000  # predicted ones in a part
_LEAF = -2  # in place of a successor: an interaction whose configuration is not in the graph
_AT_ONCE = 128  # configurations whose poses are worked out together


@dataclass(frozen=True, eq=False)
class CompletedGraph(Graph):
    """A graph of recorded and of predicted edges.

    Attributes:
        recorded: The recorded edges of its first states.
    """

    recorded: Edges | None = None

    @cached_property
    def edges(self) -> Edges:
        """Predicted edges, and in place of them the recorded ones where an action was taken."""
        assert self.recorded is not None
        num_pairs = len(self.recorded.start) - 1
        is_predicted = (self.successor != UNKNOWN).reshape(-1)
        is_predicted[:num_pairs] &= np.diff(self.recorded.start) == 0
        count = is_predicted.astype(np.int64)
        count[:num_pairs] += np.diff(self.recorded.start)
        start = np.append(0, np.cumsum(count))
        next_state, probability = np.empty(start[-1], dtype=np.int32), np.ones(start[-1])
        predicted = start[:-1][is_predicted]
        next_state[predicted] = self.successor.reshape(-1)[is_predicted]
        is_recorded = np.ones(start[-1], dtype=np.bool_)
        is_recorded[predicted] = False
        next_state[is_recorded], probability[is_recorded] = self.recorded.next_state, self.recorded.probability
        return Edges(start, next_state, probability)


class Leaves(NamedTuple):
    """What interactions make that lead out of the graph; one of them for each kind and configuration is kept.

    Attributes:
        kind: In [0, K), int64, shape (I,).
        state: In which it happens, int64, shape (I,).
        effect: As the world numbers effects, int64, shape (I,).
        num_kinds: K.
    """

    kind: NDArray[np.int64]
    state: NDArray[np.int64]
    effect: NDArray[np.int64]
    num_kinds: int

    def chosen(self, is_goal: NDArray[np.bool_]) -> NDArray[np.int64]:
        """One interaction of each kind, (K,), that happens where a goal is not met; ``UNKNOWN`` if there is none."""
        found = np.full(self.num_kinds, UNKNOWN, dtype=np.int64)
        unmet = np.flatnonzero(~is_goal[self.state])[::-1]
        found[self.kind[unmet]] = unmet  # the first of each kind comes last, and stays
        return found


class Representatives(NamedTuple):
    """States that stand for others.

    Attributes:
        state: Their numbers, int64, shape (B,).
        of_state: Which of them stands for each state, in [0, B), int64, shape (S,).
        of_predicted: Those that stand for a predicted state.
    """

    state: NDArray[np.int64]
    of_state: NDArray[np.int64]
    of_predicted: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CompletedPart(Part):
    """A part with all that a local model predicts: recorded states, predicted ones, leaves.

    Attributes:
        locality: Of the world.
        configurations: Recorded ones, then predicted ones, uint8, shape (C, K).
        configuration: Which of them each state has, int64, shape (S,) without leaves, as the next two.
        pose: Of the agent in each state.
        situation: What the agent faces and carries in each state.
        effects: What each action does in each situation, int64, shape (W, A).
        leaves: Kind k of them is node S + k.
    """

    locality: Locality
    configurations: NDArray[np.uint8]
    configuration: NDArray[np.int64]
    pose: NDArray[np.int64]
    situation: NDArray[np.int64]
    effects: NDArray[np.int64]
    leaves: Leaves
    _found: dict[Aspect, Representatives] = field(default_factory=dict)

    @property
    def num_states(self) -> int:
        """How many there are without leaves, S."""
        return len(self.configuration)

    @cached_property
    def num_recorded(self) -> int:
        """How many of its states were recorded; they come first."""
        return int((self.states != UNKNOWN).sum())

    @cached_property
    def _carried(self) -> NDArray[np.int64]:
        """In each configuration, shape (C,)."""
        return self.locality.carried(self.configurations)

    @cached_property
    def _exchanges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """States before and after steps that change what is carried, leaves aside."""
        states, next_states = [], []
        for action in range(self.graph.num_actions):
            target = self.graph.successor[: self.num_states, action]
            state = np.flatnonzero((target != UNKNOWN) & (target < self.num_states))
            hands = (self._carried[self.configuration[at]] for at in (state, target[state]))
            state = state[np.not_equal(*hands)]
            states.append(state)
            next_states.append(target[state].astype(np.int64))
        return np.concatenate(states), np.concatenate(next_states)

    def used_for(self, is_goal: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """States that matter for a goal, shape (S + K,).

        These are all but the predicted ones in which something is carried whose taking up or putting down does not meet
        the goal: from there one could only bring it back first.

        Args:
            is_goal: Where the goal is met, shape (S + K,).
        """
        before, after = self._exchanges
        meets = np.flatnonzero(is_goal[after] & ~is_goal[before])
        ends = is_goal[self.num_states + self.leaves.kind] & ~is_goal[self.leaves.state]
        states = np.concatenate([before[meets], after[meets], self.leaves.state[ends]])
        wanted = np.append(np.unique(self._carried[self.configuration[states]]), 0)
        is_used = np.isin(self._carried, wanted)
        is_used[: 1 + self.configuration[: self.num_recorded].max()] = True
        return np.append(is_used[self.configuration], np.ones(self.leaves.num_kinds, dtype=np.bool_))

    def prepare(self, aspects: Iterable[Aspect]) -> None:
        """Work out what goals will need, once, before threads share it."""
        _ = self.graph.predecessors, self.num_recorded, self._exchanges
        for aspect in aspects:
            self.representatives(aspect)

    def representatives(self, aspect: Aspect) -> Representatives:
        """States that stand for all others, as far as an aspect of a state matters; leaves are none of them."""
        if aspect not in self._found:
            every = np.arange(self.num_states)
            if aspect == "arrangement":
                _, same = np.unique(self.locality.arrangements(self.configurations), return_inverse=True)
                value = same[self.configuration]
            else:
                value = every if aspect == "state" else getattr(self, aspect)
            _, first, of_state = np.unique(value, return_index=True, return_inverse=True)
            self._found[aspect] = Representatives(first, of_state, np.unique(of_state[self.num_recorded :]))
        return self._found[aspect]

    def made_by(self, states: NDArray[np.int64], effects: NDArray[np.int64]) -> NDArray[Any]:
        """What effects (B,) make of states (B,), if the agent stays where it is."""
        made = self.locality.after(self.configurations[self.configuration[states]], self.pose[states], effects)
        return self.locality.join(made, self.pose[states])

    def observe_next(
        self, states: NDArray[np.int64], actions: NDArray[np.int64], next_states: NDArray[np.int64]
    ) -> NDArray[Any]:
        """What is seen after steps that lead to ``next_states``; leaves are worked out."""
        seen = self.observe(np.where(next_states < self.num_states, next_states, states))
        ends = np.flatnonzero(next_states >= self.num_states)
        seen[ends] = self.made_by(states[ends], self.effects[self.situation[states[ends]], actions[ends]])
        return seen


def complete(
    part: Part, locality: Locality, dynamics: LocalDynamics, max_configurations: int = MAX_CONFIGURATIONS
) -> CompletedPart:
    """Add to a recorded part what the model predicts; only states that can be reached from recorded ones are kept."""
    recorded, pose = locality.split(part.observe(np.arange(part.graph.num_states)))
    _, first, configuration = np.unique(locality.names(recorded), return_index=True, return_inverse=True)
    begins = np.zeros((len(first), locality.situations(recorded[:1]).shape[1]), dtype=np.bool_)
    begins[configuration[part.is_start], pose[part.is_start]] = True
    configurations = _with_predicted(recorded[first], begins, locality, dynamics, max_configurations)
    situations = np.concatenate([locality.situations(block) for block in _blocks(configurations)])
    num_poses = situations.shape[1]
    successor = _successors(configurations, locality, dynamics)
    own = configuration * num_poses + pose  # of the recorded states
    was_taken = part.graph.successor != UNKNOWN
    successor[own] = np.where(was_taken, own[part.graph.successor], successor[own])
    order, number_of = _reached(successor, own)
    kept = successor[order]
    del successor
    of_configuration, of_pose = np.divmod(order, num_poses)
    situation = situations.reshape(-1)[order]
    is_leaf = kept == _LEAF
    kept = np.where(kept < 0, UNKNOWN, number_of[kept])
    leaves, kinds = _leaves(is_leaf, situation, order, configurations, locality, dynamics)
    kept[is_leaf] = len(order) + kinds
    kept = np.concatenate([kept, np.full((leaves.num_kinds, kept.shape[1]), UNKNOWN, dtype=np.int32)])
    states = np.full(len(kept), UNKNOWN, dtype=np.int64)
    states[: len(own)] = part.states
    is_start = np.zeros(len(kept), dtype=np.bool_)
    is_start[: len(order)] = np.isin(of_configuration, np.flatnonzero(begins.any(axis=1)))

    def observe(chosen: NDArray[np.int64]) -> NDArray[Any]:
        return locality.join(configurations[of_configuration[chosen]], of_pose[chosen])

    return CompletedPart(
        part.name,
        CompletedGraph(kept, recorded=part.graph.edges),
        states,
        is_start,
        observe,
        locality,
        configurations,
        of_configuration,
        of_pose,
        situation,
        dynamics.effect,
        leaves,
    )


def _blocks(configurations: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [configurations[first : first + _AT_ONCE] for first in range(0, len(configurations), _AT_ONCE)]


def _with_predicted(
    configurations: NDArray[np.uint8],
    begins: NDArray[np.bool_],
    locality: Locality,
    dynamics: LocalDynamics,
    max_configurations: int,
) -> NDArray[np.uint8]:
    """Configurations (C, K) and those that are predicted from where rollouts begin, one interaction after the other.

    What is carried is never let go of: the configurations in which a thing lies elsewhere have no end.

    Args:
        configurations: Recorded ones.
        begins: Poses in which rollouts begin, shape (C, P).
        locality: Of the world.
        dynamics: Learned ones.
        max_configurations: Predicted ones at most; those that fewest interactions make come first.
    """
    number_of = {int(name): number for number, name in enumerate(locality.names(configurations))}
    num_recorded = len(configurations)
    visited = set(np.flatnonzero(begins.any(axis=1)).tolist())
    frontier = np.array(sorted(visited), dtype=np.int64)
    entries = begins[frontier]
    while len(frontier):
        found: list[NDArray[Any]] = []
        for first in range(0, len(frontier), _AT_ONCE):
            chosen = slice(first, first + _AT_ONCE)
            found.append(_interactions(configurations[frontier[chosen]], entries[chosen], locality, dynamics))
            found[-1]["source"] += first
        made = np.concatenate(found)
        new_names, first_of, place = np.unique(made["name"], return_index=True, return_inverse=True)
        first_of_name = made[first_of]
        source = configurations[frontier[first_of_name["source"]]]
        after = locality.after(source, first_of_name["pose"], first_of_name["effect"])
        before_hand, after_hand = locality.carried(source), locality.carried(after)
        wanted = np.flatnonzero((before_hand == after_hand) | (before_hand == 0))
        number = np.full(len(new_names), UNKNOWN, dtype=np.int64)
        added: list[int] = []
        for one in wanted[np.argsort(first_of[wanted])].tolist():
            name = int(new_names[one])
            if name not in number_of and len(configurations) + len(added) - num_recorded < max_configurations:
                number_of[name] = len(configurations) + len(added)
                added.append(one)
            there = number_of.get(name)
            if there is not None and there not in visited:
                visited.add(there)
                number[one] = there
        configurations = np.concatenate([configurations, after[added]])
        fresh = np.flatnonzero(number != UNKNOWN)
        row_of = np.full(len(new_names), UNKNOWN, dtype=np.int64)
        row_of[fresh] = np.arange(len(fresh))
        entries = np.zeros((len(fresh), begins.shape[1]), dtype=np.bool_)
        is_entry = row_of[place] != UNKNOWN
        entries[row_of[place][is_entry], made["pose"][is_entry]] = True
        frontier = number[fresh]
    return configurations


_INTERACTION = np.dtype([("source", np.int64), ("pose", np.int64), ("effect", np.int64), ("name", np.uint64)])


def _interactions(
    configurations: NDArray[np.uint8], entries: NDArray[np.bool_], locality: Locality, dynamics: LocalDynamics
) -> NDArray[Any]:
    """All interactions in poses that are reached from ``entries``, (F, P), by steps that change no configuration."""
    names, situations = locality.names(configurations), locality.situations(configurations)
    num_poses, num_actions = situations.shape[1], dynamics.num_actions
    moves = np.full((situations.size, num_actions), UNKNOWN, dtype=np.int32)
    offset = np.arange(len(configurations))[:, None] * num_poses
    candidates = []
    for action in range(num_actions):
        effect = np.where(situations == NOWHERE, UNKNOWN, dynamics.effect[situations, action])
        next_name, next_pose = locality.outcomes(configurations, names, effect)
        stays = (effect >= 0) & (next_name == names[:, None])
        moves[:, action] = np.where(stays, offset + next_pose, UNKNOWN).reshape(-1)
        row, pose = np.nonzero((effect >= 0) & ~stays)
        made = np.empty(len(row), dtype=_INTERACTION)
        made["source"], made["pose"] = row, pose
        made["effect"], made["name"] = effect[row, pose], next_name[row, pose]
        candidates.append(made)
    _, number_of = _reached(moves, np.flatnonzero(entries.reshape(-1)))
    found = np.concatenate(candidates)
    return found[number_of[found["source"] * num_poses + found["pose"]] != UNKNOWN]


def _successors(configurations: NDArray[np.uint8], locality: Locality, dynamics: LocalDynamics) -> NDArray[np.int32]:
    """Predicted successors of every pose in every configuration, shape (C * P, A), ``_LEAF`` where it is none."""
    names = locality.names(configurations)
    order = np.argsort(names)
    found, at = [], 0
    for block in _blocks(configurations):
        situations = locality.situations(block)
        num_poses = situations.shape[1]
        successor = np.empty((situations.size, dynamics.num_actions), dtype=np.int32)
        for action in range(dynamics.num_actions):
            effect = np.where(situations == NOWHERE, UNKNOWN, dynamics.effect[situations, action])
            next_name, next_pose = locality.outcomes(block, names[at : at + len(block)], effect)
            place = order[np.minimum(np.searchsorted(names, next_name, sorter=order), len(names) - 1)]
            target = np.where(names[place] == next_name, place * num_poses + next_pose, _LEAF)
            successor[:, action] = np.where(effect >= 0, target, UNKNOWN).reshape(-1)
        found.append(successor)
        at += len(block)
    return np.concatenate(found)


def _leaves(
    is_leaf: NDArray[np.bool_],
    situation: NDArray[np.int64],
    place: NDArray[np.int64],
    configurations: NDArray[np.uint8],
    locality: Locality,
    dynamics: LocalDynamics,
) -> tuple[Leaves, NDArray[np.int64]]:
    """Leaves of states in places (S,), a number for each pose in each configuration; and the kind of each of them."""
    state, action = np.nonzero(is_leaf)
    effect = dynamics.effect[situation[state], action]
    around = np.concatenate([locality.surroundings(block).astype(np.int32) for block in _blocks(configurations)])
    num_poses = around.shape[1]
    around = around.reshape(-1)[place[state]]
    _, of_effect = np.unique(effect, return_inverse=True)
    surroundings, of_surroundings = np.unique(around, return_inverse=True)
    kinds, kind = np.unique(of_effect * len(surroundings) + of_surroundings, return_inverse=True)
    _, kept = np.unique(kind * len(configurations) + place[state] // num_poses, return_index=True)
    return Leaves(kind[kept], state[kept], effect[kept], len(kinds)), kind


@numba.njit(cache=True)
def _reached(successor: NDArray[np.int32], first: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """States that are reached from ``first``, these first; and the place of each state among them, or -1."""
    number_of = np.full(len(successor), -1, dtype=np.int32)
    order = np.empty(len(successor), dtype=np.int64)
    end = 0
    for state in first:
        number_of[state] = end
        order[end] = state
        end += 1
    place = 0
    while place < end:
        for action in range(successor.shape[1]):
            target = successor[order[place], action]
            if target >= 0 and number_of[target] < 0:
                number_of[target] = end
                order[end] = target
                end += 1
        place += 1
    return order[:end].copy(), number_of
