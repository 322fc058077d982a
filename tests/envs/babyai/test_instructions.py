"""Which goals are held out, that the test's words are nobody's before the test, and that sentences mean their goals."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.envs.babyai.goals import GoTo, GoToTile, Open, PickUp, PutNext, Thing
from kalm.envs.babyai.instructions import (
    GOAL_SPLITS,
    goal_of_sentence,
    held_out_goals,
    instructed_goals,
    original_sentence,
    paraphrases,
    training_goals,
)
from kalm.envs.babyai.layout import COLORS, KINDS
from kalm.envs.babyai.wordings import ORIGINAL_WORDS, TEST_WORDS, TRAINING_WORDS, Vocabulary

# Words without which no English instruction can be written.
FUNCTION_WORDS = {"a", "an", "the", "to", "at", "and", "up", "next", "open"}


def test_as_many_goals_of_each_kind_as_the_table_says() -> None:
    """500 are trained and 100 are tested, as in the paper."""
    trained, tested = training_goals(), held_out_goals()
    num_trained = {"pick_up": 17, "go_to": 22, "open": 5, "put_next": 396, "go_to_tile": 60}
    num_tested = {"pick_up": 4, "go_to": 6, "open": 2, "put_next": 76, "go_to_tile": 12}
    assert Counter(goal.task for goal in trained) == num_trained
    assert Counter(goal.task for goal in tested) == num_tested


def test_no_trained_goal_has_the_goal_states_of_a_tested_one() -> None:
    """Nor does the same pair in the other order, which is no second tested goal either."""
    trained = set(training_goals())
    for goal in held_out_goals():
        assert goal not in trained
        if isinstance(goal, PutNext) and goal.place.kind != "door":
            assert PutNext(goal.place, goal.thing) not in trained | set(held_out_goals())


def test_every_color_and_kind_of_a_tested_goal_is_trained_in_goals_of_its_kind() -> None:
    """Only which of them go together is new; of the doors to be opened the colours are trained as doors to go to."""
    words: dict[str, set[str]] = {task: set() for task in ORIGINAL_WORDS.patterns}
    for goal in training_goals():
        words[goal.task] |= {word for thing in goal.things for word in str(thing).split()}
    assert words["pick_up"] == {*COLORS, *KINDS[:3]}
    assert words["go_to"] == words["put_next"] == {*COLORS, *KINDS}
    assert all(thing.color for goal in held_out_goals() for thing in goal.things)


def test_held_out_goals_stay_what_they_are() -> None:
    """Results of one year can be compared with those of another: no library decides what is held out."""
    assert [original_sentence(goal) for goal in held_out_goals()[:12]] == [
        "pick up a grey key",
        "pick up a grey ball",
        "pick up a green box",
        "pick up a purple key",
        "go to a purple key",
        "go to a green ball",
        "go to a green box",
        "go to a red door",
        "go to a red key",
        "go to a purple ball",
        "open a purple door",
        "open a blue door",
    ]


@pytest.mark.parametrize(("width", "height", "room_size"), [(8, 8, 8), (13, 9, 5), (11, 6, 6), (50, 50, 8)])
def test_tiles_are_inside_the_rooms_of_the_grid(width: int, height: int, room_size: int) -> None:
    """Never on a wall, and trained and tested ones differ, on a grid of any size."""
    sizes = (width, height, room_size)
    trained, tested = (
        {g for g in goals if isinstance(g, GoToTile)} for goals in (training_goals(*sizes), held_out_goals(*sizes))
    )
    assert trained
    assert tested
    assert not trained & tested
    for goal in trained | tested:
        for line, size in ((goal.x, width), (goal.y, height)):
            assert 0 < line < size - 1
            assert line % (room_size - 1) > 0


def test_splits_are_places_and_words_of_the_same_goals() -> None:
    """New grids have the training sentences; new words are three for each of the goals in original words."""
    splits = {name: instructed_goals(name) for name in GOAL_SPLITS}
    said = {name: [(one.goal, one.instruction) for one in split] for name, split in splits.items()}
    assert all({one.goal_split for one in split} == {name} for name, split in splits.items())
    assert said["train"] == said["new_grids"]
    assert said["new_goals"] == said["new_grids_and_goals"]
    assert said["new_words"] == said["new_grids_and_words"]
    assert [goal for goal, _ in said["new_words"]][::3] == [goal for goal, _ in said["new_goals"]]
    assert len(set(said["new_words"])) == 3 * len(said["new_goals"])
    assert len({text for _, text in said["new_words"]}) == len(said["new_words"])


def test_unknown_split_is_refused_with_the_names_of_all() -> None:
    """A misspelled split does not become an empty one."""
    with pytest.raises(DataError, match="new_grids_and_words"):
        instructed_goals("new_worlds")


@pytest.mark.parametrize("other", [ORIGINAL_WORDS, TRAINING_WORDS], ids=["original", "training"])
def test_unseen_words_are_unseen(other: Vocabulary) -> None:
    """No synonym of the test is in another vocabulary, no pattern either; patterns share only what English needs."""
    for words in ("kinds", "colors"):
        assert not _words(TEST_WORDS, words) & (_words(other, words) | _words(other, "patterns"))
        assert not _words(other, words) & _words(TEST_WORDS, "patterns")
    assert _words(TEST_WORDS, "patterns") & _words(other, "patterns") <= FUNCTION_WORDS
    for task, patterns in TEST_WORDS.patterns.items():
        assert not set(patterns) & set(other.patterns[task])


def test_no_word_of_the_test_is_in_what_is_trained() -> None:
    """The same, of sentences as they come out."""
    rng = np.random.default_rng(0)
    drawn = {text for goal in training_goals() for text in paraphrases(goal, rng, 20)}
    trained = {one.instruction for one in instructed_goals("train")} | drawn
    tested = [one.instruction for one in instructed_goals("new_words")]
    assert not set(tested) & trained
    seen = {word for text in trained for word in re.findall(r"[a-z]+", text)}
    for text in tested:
        assert not set(re.findall(r"[a-z]+", text)) & seen - FUNCTION_WORDS, text


def test_every_kind_of_goal_has_several_ways_to_say_it() -> None:
    """In the test's words and in the bank, for every kind of goal and thing and every colour."""
    for vocabulary in (TEST_WORDS, TRAINING_WORDS):
        assert set(vocabulary.patterns) == set(ORIGINAL_WORDS.patterns)
        assert set(vocabulary.kinds) == set(KINDS)
        assert set(vocabulary.colors) == set(COLORS)
        for choices in (*vocabulary.patterns.values(), *vocabulary.kinds.values(), *vocabulary.colors.values()):
            assert len(set(choices)) == len(choices) >= 2


def test_paraphrases_are_drawn_by_the_generator_they_are_given() -> None:
    """The same seed draws the same sentences; each keeps the pattern's order of thing and place."""
    goal = PutNext(Thing("ball", "red"), Thing("box", "blue"))
    drawn = paraphrases(goal, np.random.default_rng(3), 40)
    assert drawn == paraphrases(goal, np.random.default_rng(3), 40)
    assert len(set(drawn)) > 30
    for text in drawn:
        words = re.findall(r"[a-z-]+", text)
        red, blue = (
            next(words.index(word) for word in TRAINING_WORDS.colors[color] if word in words)
            for color in ("red", "blue")
        )
        assert red < blue, text


def test_sentences_are_english() -> None:
    """Written out for one goal of each kind."""
    texts: dict[Goal, list[str]] = {one.goal: [] for one in instructed_goals("new_words")}
    for one in instructed_goals("new_words"):
        texts[one.goal].append(one.instruction)
    assert all(" a " + vowel not in text for said in texts.values() for text in said for vowel in "aeiou")
    assert original_sentence(PutNext(Thing("ball", "red"), Thing("box"))) == "put a red ball next to a box"
    assert original_sentence(GoToTile(3, 12)) == "go to the tile (3, 12)"


def test_every_original_sentence_means_its_goal() -> None:
    """There and back, in all splits of original words."""
    for name in GOAL_SPLITS[:4]:
        for one in instructed_goals(name):
            assert goal_of_sentence(one.instruction) == one.goal
            assert one.goal.explained_by(one.instruction)


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("Go to the grey door.", GoTo(Thing("door", "grey"))),
        ("pick up the key", PickUp(Thing("key"))),
        ("open a door", Open(Thing("door"))),
        ("put the red ball next to a  purple door", PutNext(Thing("ball", "red"), Thing("door", "purple"))),
        ("go to the tile (3,12)", GoToTile(3, 12)),
    ],
)
def test_articles_capitals_and_spaces_do_not_matter(text: str, goal: object) -> None:
    """What people write."""
    assert goal_of_sentence(text) == goal


@pytest.mark.parametrize("text", ["", "pick up a door", "open a box", "go to the azure ball", "go to the tile (0, 3)"])
def test_other_sentences_are_refused_with_what_is_allowed(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(DataError, match=r"put \{thing\} next to \{place\}.*purple.*door"):
        goal_of_sentence(text)


def test_missions_of_minigrid_are_understood() -> None:
    """Whatever its own generator says on 40 grids, and the things are those of its instruction."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("minigrid")
    env = gymnasium.make("BabyAI-Synth-v0").unwrapped
    tasks: Counter[str] = Counter()
    for seed in range(40):
        with contextlib.redirect_stdout(io.StringIO()):
            env.reset(seed=seed)
        goal = goal_of_sentence(env.mission)
        tasks[goal.task] += 1
        names = ("desc",) if goal.task != "put_next" else ("desc_move", "desc_fixed")
        described = [getattr(env.instrs, name) for name in names]
        assert goal.things == tuple(Thing(one.type, one.color) for one in described), env.mission
    assert set(tasks) == {"pick_up", "go_to", "open", "put_next"}


def _words(vocabulary: Vocabulary, part: str) -> set[str]:
    choices = [choice for several in getattr(vocabulary, part).values() for choice in several]
    return {word for choice in choices for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", choice))}
