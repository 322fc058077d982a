"""From a solution to plans: where they start, and the way that best actions lead from there.

Shape letters: S states of a part, A actions, B plans, T steps.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from kalm.rl.planning.empirical_graph import Graph


def choose_starts(
    can_start: NDArray[np.bool_],
    is_start: NDArray[np.bool_],
    num_plans: int,
    start_share: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """States from which plans start, all different: a share where an agent may set out, the others anywhere.

    Args:
        can_start: From which states the goal can be reached, shape (S,).
        is_start: Where an agent may set out, shape (S,).
        num_plans: How many; all there are, where these are fewer.
        start_share: Share of them where an agent may set out, in [0, 1].
        rng: Luck.

    Returns:
        Numbers of states, shape (B,).
    """
    at_start = np.flatnonzero(can_start & is_start)
    num_at_start = min(round(start_share * num_plans), len(at_start))
    first = rng.choice(at_start, num_at_start, replace=False, shuffle=False)
    left = can_start.copy()
    left[first] = False
    elsewhere = np.flatnonzero(left)
    num_elsewhere = min(num_plans - num_at_start, len(elsewhere))
    return np.append(first, rng.choice(elsewhere, num_elsewhere, replace=False, shuffle=False))


def follow_all(
    graph: Graph,
    optimal: NDArray[np.bool_],
    is_goal: NDArray[np.bool_],
    starts: NDArray[np.int64],
    max_length: int,
    seed: int,
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """States and actions of every plan that reaches the goal."""
    length, states, actions = follow(graph.successor, optimal, is_goal, starts, max_length, np.uint64(seed))
    arrived = np.flatnonzero(length > 0)
    paths = [states[row, : length[row] + 1].astype(np.int64) for row in arrived]
    return paths, [actions[row, : length[row]].astype(np.int64) for row in arrived]


@numba.njit(cache=True, nogil=True)
def follow(
    successor: NDArray[np.int32],
    optimal: NDArray[np.bool_],
    is_goal: NDArray[np.bool_],
    starts: NDArray[np.int64],
    max_length: int,
    seed: np.uint64,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Act by best actions from several starts; of equally good ones any is taken, as the seed has it.

    Args:
        successor: Shape (S, A).
        optimal: Shape (S, A).
        is_goal: Shape (S,).
        starts: Shape (B,); none of them a goal.
        max_length: Steps after which it is given up.
        seed: Of the luck.

    Returns:
        Steps to the goal, 0 where it was not reached, shape (B,); states, shape (B, max_length + 1); and actions, shape
        (B, max_length).
    """
    length = np.zeros(len(starts), dtype=np.int64)
    states = np.zeros((len(starts), max_length + 1), dtype=np.int32)
    actions = np.zeros((len(starts), max_length), dtype=np.int32)
    luck = seed
    for row in range(len(starts)):
        state = starts[row]
        states[row, 0] = state
        for step in range(max_length):
            num_best = 0
            for action in range(optimal.shape[1]):
                num_best += optimal[state, action]
            if num_best == 0:
                break
            luck += np.uint64(0x9E3779B97F4A7C15)  # SplitMix64: the same numbers on every machine
            mixed = (luck ^ (luck >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            chosen = int((mixed ^ (mixed >> np.uint64(31))) % np.uint64(num_best))
            taken = 0
            for action in range(optimal.shape[1]):
                if optimal[state, action]:
                    if chosen == 0:
                        taken = action
                    chosen -= 1
            state = successor[state, taken]
            actions[row, step], states[row, step + 1] = taken, state
            if is_goal[state]:
                length[row] = step + 1
                break
    return length, states, actions
