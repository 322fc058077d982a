"""Facts of states, by hand: who holds, faces, stands near what, and what stands beside what."""

from __future__ import annotations

import numpy as np

from kalm.envs.babyai.facts import AT, BESIDE, FACES, HOLDS, NEAR, NO_SECOND, THERE, facts, possible_facts
from kalm.envs.babyai.layout import NUM_CODES, WALL, code_of, put_agent

KEY, BALL, DOOR = code_of("key", "red"), code_of("ball", "blue"), code_of("door", "grey", "open")
SIZE = (5, 4)


def named(row: np.ndarray) -> set[tuple[int, ...]]:
    """A state's facts as their names."""
    known = possible_facts(*SIZE)
    return {tuple(known[number].tolist()) for number in row if number < len(known)}


def test_facts_of_a_state_by_hand() -> None:
    """A red key beside a blue ball below it; the agent at (3, 1) holds a blue ball and faces left, to the key."""
    tiles = np.zeros(SIZE, dtype=np.uint8)
    tiles[:, 0] = WALL
    tiles[2, 1], tiles[2, 2], tiles[4, 3] = KEY, BALL, DOOR
    state = put_agent(tiles, 3, 1, direction=2, carried=BALL)
    expected = {
        (AT, NUM_CODES + 3, NUM_CODES + 5 + 1),
        (HOLDS, BALL, NO_SECOND),
        (FACES, KEY, NO_SECOND),
        (NEAR, KEY, NO_SECOND),
        *((THERE, code, NO_SECOND) for code in (KEY, BALL, DOOR)),
        (BESIDE, KEY, BALL),
        (BESIDE, BALL, KEY),
    }
    assert named(facts(state[None])[0]) == expected
    # From the tile of the key the agent faces the wall above, which is no thing; two balls apart are beside nothing.
    tiles[2, 1] = 0
    other = put_agent(tiles, 2, 1, direction=3)
    both = facts(np.stack([state, other]))
    assert named(both[0]) == expected
    assert named(both[1]) == {
        (AT, NUM_CODES + 2, NUM_CODES + 5 + 1),
        (HOLDS, 0, NO_SECOND),
        (FACES, WALL, NO_SECOND),
        (NEAR, BALL, NO_SECOND),
        (THERE, BALL, NO_SECOND),
        (THERE, DOOR, NO_SECOND),
    }
    assert both[1].max() == len(possible_facts(*SIZE))  # the shorter row is filled up


def test_possible_facts_are_different_and_symbols_share_no_number() -> None:
    """Columns and rows are numbered behind the codes."""
    known = possible_facts(*SIZE)
    assert len(np.unique(known, axis=0)) == len(known) == 20 + 4 * NUM_CODES + NUM_CODES**2
    assert known[known[:, 0] == AT][:, 1].min() == NUM_CODES
    assert known[known[:, 0] == AT][:, 2].min() == NUM_CODES + 5
