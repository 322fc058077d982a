"""Completing a part: configurations that nobody recorded but a local model predicts, and all steps between their poses.

A completed graph has every pose that can be reached in recorded configurations, and in those that the model predicts
when an agent sets out from where recorded rollouts begin: it may change what it faces (open a door), and take up one
thing. All else that an interaction makes is a leaf (``kalm.rl.planning.completed_part``).

Shape letters: S states, A actions, C configurations, P poses, F configurations at a time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from kalm.envs.locality import NOWHERE, Locality
from kalm.rl.planning.completed_part import CompletedGraph, CompletedPart, Leaves
from kalm.rl.planning.empirical_graph import UNKNOWN, Part
from kalm.rl.planning.local_dynamics import LocalDynamics

MAX_CONFIGURATIONS = 3000  # predicted ones in a part
_LEAF = -2  # in place of a successor: an interaction whose configuration is not in the graph
_AT_ONCE = 128  # configurations whose poses are worked out together


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
        part.walks,
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
    limit = len(configurations) + max_configurations
    frontier = np.flatnonzero(begins.any(axis=1))
    entries, visited = begins[frontier], set(frontier.tolist())
    while len(frontier):
        made = _interactions(configurations[frontier], entries, locality, dynamics)
        names, first_of, outcome = np.unique(made["name"], return_index=True, return_inverse=True)
        first = made[first_of]
        before = configurations[frontier[first["source"]]]
        after, _ = locality.after(before, first["pose"], first["effect"])
        before_hand, after_hand = locality.carried(before), locality.carried(after)
        wanted = np.flatnonzero((before_hand == after_hand) | (before_hand == 0))
        wanted = wanted[np.argsort(first_of[wanted])]
        new = [one for one in wanted.tolist() if int(names[one]) not in number_of][: limit - len(configurations)]
        number_of |= {int(names[one]): len(configurations) + number for number, one in enumerate(new)}
        configurations = np.concatenate([configurations, after[new]])
        numbers = np.array([number_of.get(int(names[one]), UNKNOWN) for one in wanted], dtype=np.int64)
        is_fresh = np.array([number != UNKNOWN and number not in visited for number in numbers], dtype=np.bool_)
        frontier, fresh = numbers[is_fresh], wanted[is_fresh]
        visited.update(frontier.tolist())
        row_of = np.full(len(names), UNKNOWN, dtype=np.int64)
        row_of[fresh] = np.arange(len(fresh))
        rows = row_of[outcome]
        entries = np.zeros((len(fresh), begins.shape[1]), dtype=np.bool_)
        entries[rows[rows != UNKNOWN], made["pose"][rows != UNKNOWN]] = True
    return configurations


_INTERACTION = np.dtype([("source", np.int64), ("pose", np.int64), ("effect", np.int64), ("name", np.uint64)])


def _interactions(
    configurations: NDArray[np.uint8], entries: NDArray[np.bool_], locality: Locality, dynamics: LocalDynamics
) -> NDArray[Any]:
    """All interactions in poses that are reached from ``entries``, (F, P), by steps that change no configuration."""
    found, first = [], 0
    for block in _blocks(configurations):
        found.append(_interactions_of(block, entries[first : first + len(block)], locality, dynamics))
        found[-1]["source"] += first
        first += len(block)
    return np.concatenate(found)


def _interactions_of(
    configurations: NDArray[np.uint8], entries: NDArray[np.bool_], locality: Locality, dynamics: LocalDynamics
) -> NDArray[Any]:
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
    around = np.concatenate([locality.surroundings(block) for block in _blocks(configurations)])
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
