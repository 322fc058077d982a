"""States in words, written out by hand for one small grid; and answers as actions."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.envs.babyai.abstraction import abstracted, select_by_rule
from kalm.envs.babyai.goals import Open, PutNext, Thing
from kalm.envs.babyai.layout import EMPTY, NUM_ACTIONS, WALL, code_of, put_agent
from kalm.envs.babyai.text import (
    ACTION_NAMES,
    action_dictionary,
    actions_of_answer,
    state_of_text,
    text_of_actions,
    text_of_state,
)
from tests.envs.babyai.random_states import HEIGHT, WIDTH, random_states


def _grid(door_state: str = "closed", carried: int = EMPTY) -> np.ndarray:
    """Two rooms of 2 by 2 with a purple door at (3, 1): a red ball and a grey key on the left, a blue box behind it."""
    tiles = np.full((7, 4), WALL, dtype=np.uint8)
    tiles[1:3, 1:3] = tiles[4:6, 1:3] = EMPTY
    tiles[3, 1] = code_of("door", "purple", door_state)
    tiles[1, 2], tiles[2, 1], tiles[5, 2] = code_of("ball", "red"), code_of("key", "grey"), code_of("box", "blue")
    return put_agent(tiles, 2, 2, 3, carried)


def test_state_in_words() -> None:
    """Inner walls only; boxes, doors, keys, balls; the agent at (2, 2) looks up."""
    assert text_of_state(_grid()).splitlines() == [
        "0. The following tiles are wall: (3,2)",
        "1. A blue box is on tile (5,2)",
        "2. A closed purple door is on tile (3,1)",
        "3. A grey key is on tile (2,1)",
        "4. A red ball is on tile (1,2)",
        "5. Inventory: []",
        "6. The agent is on tile (2,2)",
        "7. The agent is facing up",
    ]


def test_what_is_carried_and_an_open_door_in_words() -> None:
    """With the right article."""
    text = text_of_state(_grid("open", code_of("key", "yellow")))
    assert "An open purple door is on tile (3,1)" in text
    assert "Inventory: [a yellow key]" in text


def test_abstract_state_in_words() -> None:
    """Put the ball next to the box: the key is in the way, the door has no colour."""
    state = abstracted(_grid(carried=code_of("key", "red")), select_by_rule(PutNext(Thing("ball"), Thing("box"))))
    assert text_of_state(state).splitlines() == [
        "0. The following tiles are wall: (3,2)",
        "1. The following tiles are obstacles: (2,1)",
        "2. The following tiles are open doors: none",
        "3. The following tiles are closed doors: (3,1)",
        "4. The following tiles are locked doors: none",
        "5. A goal object is on tile (1,2)",
        "6. A goal location is on tile (5,2)",
        "7. Inventory: [an obstacle]",
        "8. The agent is on tile (2,2)",
        "9. The agent is facing up",
    ]


def test_door_that_is_the_goal_keeps_its_state_in_words() -> None:
    """Otherwise nobody could say from the text whether it was opened."""
    for state in ("open", "closed", "locked"):
        text = text_of_state(abstracted(_grid(state), select_by_rule(Open(Thing("door", "purple")))))
        assert f"A goal object, a {state} door, is on tile (3,1)".replace("a open", "an open") in text


def test_text_is_read_back_as_the_state() -> None:
    """Whatever the state."""
    for state in random_states(60):
        np.testing.assert_array_equal(state_of_text(text_of_state(state), WIDTH, HEIGHT), state)


@pytest.mark.parametrize(
    "line", ["A goal object is on tile (1,1)", "A red dragon is on tile (1,1)", "A red key is on tile (9,9)", "Hello"]
)
def test_line_of_another_format_is_refused(line: str) -> None:
    """The message quotes it."""
    with pytest.raises(DataError, match=line.replace("(", r"\(").replace(")", r"\)")):
        state_of_text(f"{text_of_state(_grid())}\n8. {line}", 7, 4)


@pytest.mark.parametrize(
    ("text", "actions"), [("2", (2,)), (" 5.\n", (5,)), ("[2, 2,0 ]", (2, 2, 0)), ("[6]", (6,)), ("[1,]", (1,))]
)
def test_answers_are_numbers_or_lists_of_them(text: str, actions: tuple[int, ...]) -> None:
    """And what is written for training is read."""
    assert actions_of_answer(text) == actions
    assert actions_of_answer(text_of_actions(np.array(actions))) == actions


@pytest.mark.parametrize("text", ["", "[]", "7", "[2, 9]", "-1", "2 2", "forward", "The answer is 2", "[2, 2"])
def test_other_answers_are_refused(text: str) -> None:
    """With what is allowed."""
    with pytest.raises(DataError, match="0 to 6 or a list"):
        actions_of_answer(text)


def test_all_actions_have_names() -> None:
    """As a prompt lists them."""
    assert len(ACTION_NAMES) == NUM_ACTIONS
    assert action_dictionary().startswith("{0: turn left, 1: turn right, 2: move forward")
