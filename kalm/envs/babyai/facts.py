"""What can be true of a state that a goal may be about, as a list of facts: a learned judge reads these, not tiles.

A fact is a relation and the codes (or the column and row) that it holds between. Nothing here knows which facts meet
which goal: that a judge's labels teach.

Shape letters: S states, W columns, H rows, V possible facts, F facts of the state that has most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array
from kalm.envs.babyai.layout import FIRST_KEY, NUM_CODES, STEPS, TILES, agent_of, in_front

# Relations. The first is of a column and a row, whose symbols are numbered behind the codes; of the others the last has
# two codes and the rest have one.
AT, HOLDS, FACES, NEAR, THERE, BESIDE = range(6)
NO_SECOND = -1
_BLOCK = 8192  # states at once


def possible_facts(width: int, height: int) -> NDArray[np.int64]:
    """Every fact of grids of a size: (relation, first, second), shape (V, 3); the second of most is ``NO_SECOND``."""
    columns, lines = NUM_CODES + np.arange(width), NUM_CODES + width + np.arange(height)
    places = np.stack(np.meshgrid([AT], columns, lines, indexing="ij"), axis=-1).reshape(-1, 3)
    single = np.stack(np.meshgrid([HOLDS, FACES, NEAR, THERE], range(NUM_CODES), [NO_SECOND], indexing="ij"), axis=-1)
    codes = range(NUM_CODES)
    pairs = np.stack(np.meshgrid([BESIDE], codes, codes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.concatenate([places, single.reshape(-1, 3), pairs]).astype(np.int64)


def facts(states: Array) -> NDArray[np.int32]:
    """Facts of states (S, W, H, 2), each a row of ``possible_facts``, shape (S, F); V fills what is left.

    - ``AT``: the agent's tile. ``HOLDS``: what it carries, perhaps nothing. ``FACES``: what is on the tile before it.
    - ``NEAR``: a thing on one of the four tiles around the agent, or on its own.
    - ``THERE``: a thing that is somewhere on the grid.
    - ``BESIDE``: two things on neighbouring tiles, across or down, in both orders.
    """
    blocks = [_facts(states[first : first + _BLOCK]) for first in range(0, len(states), _BLOCK)]
    size = max((block.shape[1] for block in blocks), default=0)
    num_facts = _num_facts(*states.shape[1:3])
    padded = [np.pad(block, ((0, 0), (0, size - block.shape[1])), constant_values=num_facts) for block in blocks]
    return np.concatenate(padded) if padded else np.zeros((0, 0), dtype=np.int32)


def _num_facts(width: int, height: int) -> int:
    return width * height + (4 + NUM_CODES) * NUM_CODES


def _facts(states: Array) -> NDArray[np.int32]:
    width, height = states.shape[1:3]
    single, pair = width * height, width * height + 4 * NUM_CODES  # numbers of the first such facts, less AT
    tiles = np.ascontiguousarray(states[..., TILES])
    x, y, _, carried = agent_of(states)
    every = np.arange(len(states))
    rows, numbers = [every] * 3, [x * height + y, single + carried, single + NUM_CODES + in_front(states)]
    for step_x, step_y in (*STEPS.tolist(), (0, 0)):
        code = tiles[every, x + step_x, y + step_y].astype(np.int64)
        (row,) = np.nonzero(code >= FIRST_KEY)
        rows.append(row)
        numbers.append(single + 2 * NUM_CODES + code[row])
    is_thing = tiles >= FIRST_KEY
    row, column, line = np.nonzero(is_thing)
    rows.append(row)
    numbers.append(single + 3 * NUM_CODES + tiles[row, column, line].astype(np.int64))
    for step_x, step_y in ((1, 0), (0, 1)):
        row, column, line = np.nonzero(is_thing[:, : width - step_x, : height - step_y] & is_thing[:, step_x:, step_y:])
        one = tiles[row, column, line].astype(np.int64)
        other = tiles[row, column + step_x, line + step_y].astype(np.int64)
        rows += [row, row]
        numbers += [pair + one * NUM_CODES + other, pair + other * NUM_CODES + one]
    return _in_rows(np.concatenate(rows), np.concatenate(numbers), len(states), _num_facts(width, height))


def _in_rows(row: Array, number: Array, num_rows: int, filler: int) -> NDArray[np.int32]:
    """Distinct numbers of each row in ascending order, padded with ``filler``."""
    both = np.unique(row * (filler + 1) + number)
    row, number = np.divmod(both, filler + 1)
    place = np.arange(len(row)) - np.searchsorted(row, row)
    result = np.full((num_rows, int(place.max(initial=-1)) + 1), filler, dtype=np.int32)
    result[row, place] = number
    return result
