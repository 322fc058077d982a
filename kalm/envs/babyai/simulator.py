"""BabyAI's seven actions on batches of states: what minigrid does, some thousand times as fast.

Turning and walking change the agent's plane alone; picking up, dropping and toggling change the tile in front too.
Toggling a box destroys it, because the boxes of these grids are empty. An action that can do nothing does nothing; so
does every action towards the outside of the grid, and every action where there is no agent.

Shape letters: B states, W columns, H rows, T steps.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from kalm.envs.babyai import layout

# numba bakes globals in as constants; those of another module only under a name of this one.
_LEFT, _RIGHT, _FORWARD = layout.LEFT, layout.RIGHT, layout.FORWARD
_PICK_UP, _DROP, _TOGGLE = layout.PICK_UP, layout.DROP, layout.TOGGLE
_EMPTY = layout.EMPTY
_FIRST_KEY, _FIRST_BOX, _FIRST_DOOR = layout.FIRST_KEY, layout.FIRST_BOX, layout.FIRST_DOOR
_NUM_CODES = layout.NUM_CODES
_OPEN, _CLOSED, _LOCKED = range(3)


@numba.njit(cache=True)
def step(states: NDArray[np.uint8], actions: NDArray[np.int64]) -> None:
    """Carry out one action, (B,), in each state, (B, W, H, 2), in place; the states are contiguous."""
    num, width, height = states.shape[0], states.shape[1], states.shape[2]
    size = width * height * 2
    flat = states.reshape(num, size)
    # What one step forward adds to a place in a flat state, by direction.
    ahead = (2 * height, 2, -2 * height, -2)
    for row in range(num):
        state, action = flat[row], actions[row]
        here = 1
        while here < size and state[here] == 0:
            here += 2
        if here > size:  # numba reads on behind an array's end, so that nothing here may ask for it
            continue
        agent = int(state[here]) - 1
        direction, carried = agent % 4, agent // 4
        if action in (_LEFT, _RIGHT):
            turned = (direction + (1 if action == _RIGHT else 3)) % 4
            state[here] = 1 + turned + 4 * carried
            continue
        y = (here // 2) % height
        if (direction == 1 and y == height - 1) or (direction == 3 and y == 0):
            continue
        front = here - 1 + ahead[direction]
        if not 0 <= front < size:
            continue
        tile = int(state[front])
        is_door = _FIRST_DOOR <= tile < _NUM_CODES
        door_state = (tile - _FIRST_DOOR) % 3 if is_door else -1
        if action == _FORWARD:
            if tile == _EMPTY or door_state == _OPEN:
                state[front + 1] = state[here]
                state[here] = 0
        elif action == _PICK_UP:
            if _FIRST_KEY <= tile < _FIRST_DOOR and carried == _EMPTY:
                state[front] = _EMPTY
                state[here] = 1 + direction + 4 * tile
        elif action == _DROP:
            if tile == _EMPTY and carried != _EMPTY:
                state[front] = carried
                state[here] = 1 + direction
        elif action == _TOGGLE:
            if _FIRST_BOX <= tile < _FIRST_DOOR:
                state[front] = _EMPTY
            elif door_state == _OPEN:
                state[front] = tile + _CLOSED - _OPEN
            elif door_state == _CLOSED or (door_state == _LOCKED and carried == _FIRST_KEY + (tile - _FIRST_DOOR) // 3):
                state[front] = tile + _OPEN - door_state


def next_states(states: NDArray[np.uint8], actions: NDArray[Any]) -> NDArray[np.uint8]:
    """The states, (B, W, H, 2), that actions, (B,), lead to."""
    after = np.array(states, dtype=np.uint8, order="C")
    step(after, np.asarray(actions, dtype=np.int64))
    return after


def roll_out(state: NDArray[np.uint8], actions: NDArray[Any]) -> NDArray[np.uint8]:
    """All states, (T + 1, W, H, 2), on the way of actions, (T,), from one state, (W, H, 2)."""
    states = np.empty((len(actions) + 1, *state.shape), dtype=np.uint8)
    states[0] = state
    _fill(states, np.asarray(actions, dtype=np.int64))
    return states


@numba.njit(cache=True)
def _fill(states: NDArray[np.uint8], actions: NDArray[np.int64]) -> None:
    for number in range(len(actions)):
        states[number + 1] = states[number]
        step(states[number + 1 : number + 2], actions[number : number + 1])
