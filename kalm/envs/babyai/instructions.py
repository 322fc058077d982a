"""Which goals are trained and which are tested, the sentences of every split, and the goal that a sentence means.

TEDUO trains on 500 goals and tests on 100 whose goal states differ. So do we, on a grid with tiles enough. The digests
of the sentences decide which goals are held out, so that it depends on no generator and no version of a library. A
held-out pair of things is held out in both orders: ball next to box and box next to ball are the same goal states.

==========  ==============  =========================================
goal        training, test  all there are
==========  ==============  =========================================
pick_up     17, 4           18 coloured, 3 of any colour
go_to       22, 6           24 coloured, 4 of any colour
open        5, 2            6 coloured, 1 of any colour
put_next    396, 76         567 pairs of different descriptions
go_to_tile  60, 12          the tiles that no wall can stand on
==========  ==============  =========================================
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count, permutations, product, zip_longest

import numpy as np

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.envs.babyai.goals import GOAL_CLASSES, BabyAIGoal, GoTo, GoToTile, Open, PickUp, PutNext, Thing
from kalm.envs.babyai.layout import COLORS, KINDS
from kalm.envs.babyai.wordings import ORIGINAL_WORDS, TEST_WORDS, TRAINING_WORDS, Vocabulary

# From what the data hold to what they never showed; "new grids" are places, not sentences (TEDUO, table 1).
GOAL_SPLITS = ("train", "new_grids", "new_goals", "new_grids_and_goals", "new_words", "new_grids_and_words")

ROOM_SIZE = 8  # the Synth family's, walls included
SENTENCES_PER_GOAL = 3  # of the splits in unseen words
_NUM_TEST = {"pick_up": 4, "go_to": 6, "open": 2, "put_next": 76, "go_to_tile": 12}
_NUM_TRAINING_PAIRS = 396
_NUM_TRAINING_TILES = 60

_THINGS = tuple(Thing(kind, color) for kind in KINDS for color in (*COLORS, None))


def instructed_goals(
    goal_split: str, width: int = 22, height: int = 22, room_size: int = ROOM_SIZE
) -> list[InstructedGoal]:
    """Every instruction of a split: one sentence a goal, or three a goal in the splits of unseen words.

    Args:
        goal_split: One of ``GOAL_SPLITS``.
        width: Tiles across the grid, walls included; only the goals that name a tile depend on it.
        height: Tiles down the grid, walls included.
        room_size: Tiles across a room, walls included: no goal names a tile of a wall.

    Raises:
        DataError: If there is no such split.
    """
    if goal_split not in GOAL_SPLITS:
        raise DataError(f"goal split is {goal_split!r}; it must be one of {', '.join(GOAL_SPLITS)}")
    if goal_split in ("train", "new_grids"):
        pairs = [(goal, original_sentence(goal)) for goal in training_goals(width, height, room_size)]
    elif goal_split in ("new_goals", "new_grids_and_goals"):
        pairs = [(goal, original_sentence(goal)) for goal in held_out_goals(width, height, room_size)]
    else:
        goals = held_out_goals(width, height, room_size)
        pairs = [(goal, text) for number, goal in enumerate(goals) for text in _unseen_sentences(goal, number)]
    return [InstructedGoal(goal, text, goal_split) for goal, text in pairs]


def training_goals(width: int = 22, height: int = 22, room_size: int = ROOM_SIZE) -> list[BabyAIGoal]:
    """Goals of the training sentences, by kind; fewer tiles where the grid is small."""
    held_out = _held_out()
    single = [goal for goal in _single_goals() if goal not in held_out]
    pairs = [goal for goal in _pairs() if goal not in held_out and _swapped(goal) not in held_out]
    _, tiles = _tiles(width, height, room_size)
    return [*single, *_by_digest(pairs)[:_NUM_TRAINING_PAIRS], *tiles]


def held_out_goals(width: int = 22, height: int = 22, room_size: int = ROOM_SIZE) -> list[BabyAIGoal]:
    """Goals of no training sentence, by kind; the things in them all have a colour."""
    tiles, _ = _tiles(width, height, room_size)
    return [*_held_out(), *tiles]


def original_sentence(goal: BabyAIGoal) -> str:
    """The goal in BabyAI's words, such as ``put a red ball next to a blue box``."""
    return ORIGINAL_WORDS.sentence(goal, lambda words: words[0])


def paraphrases(
    goal: BabyAIGoal, rng: np.random.Generator, n: int, vocabulary: Vocabulary = TRAINING_WORDS
) -> list[str]:
    """Draw sentences that ask for a goal, pattern and words drawn apart; the same one may come twice."""
    return [vocabulary.sentence(goal, lambda words: words[rng.integers(len(words))]) for _ in range(n)]


def goal_of_sentence(text: str) -> BabyAIGoal:
    """The goal that a sentence in BabyAI's words means, whatever its articles.

    Raises:
        DataError: If it is no such sentence; the message says what is allowed.
    """
    words = " ".join(text.lower().split()).rstrip(".")
    for task, pattern in _SENTENCES.items():
        match = re.fullmatch(pattern, words)
        if match and task == "go_to_tile":
            return GoToTile(*map(int, match.groups()))
        if match:
            return GOAL_CLASSES[task](*(Thing(*reversed(name.split())) for name in match.groups()))
    allowed = ", ".join(repr(ORIGINAL_WORDS.patterns[task][0]) for task in _SENTENCES)
    raise DataError(
        f"instruction is {text!r}; it must be one of {allowed}, where a thing or place is 'a' or 'the', perhaps one of "
        f"{', '.join(COLORS)}, and one of {', '.join(KINDS)} (doors are neither picked up nor put somewhere)"
    )


def _thing_pattern(*kinds: str) -> str:
    return rf"(?:an?|the) ((?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join(kinds)}))"


_SENTENCES = {
    "pick_up": f"pick up {_thing_pattern(*KINDS[:3])}",
    "go_to": f"go to {_thing_pattern(*KINDS)}",
    "open": f"open {_thing_pattern(KINDS[3])}",
    "put_next": f"put {_thing_pattern(*KINDS[:3])} next to {_thing_pattern(*KINDS)}",
    "go_to_tile": r"go to the tile \( ?([1-9]\d{0,2}) ?, ?([1-9]\d{0,2}) ?\)",
}


def _unseen_sentences(goal: BabyAIGoal, number: int) -> list[str]:
    """The test's sentences of one goal: all patterns in turn, and with each the words that the goal's number gives."""
    texts = []
    for turn in range(SENTENCES_PER_GOAL):
        choices = count(turn, step=number)

        def choose(words: tuple[str, ...], choices: Iterator[int] = choices) -> str:
            return words[next(choices) % len(words)]

        texts.append(TEST_WORDS.sentence(goal, choose))
    return texts


@cache
def _held_out() -> tuple[BabyAIGoal, ...]:
    """Test goals of the four kinds that name things, key, ball, box and door in turn."""
    chosen: list[BabyAIGoal] = []
    for task in ("pick_up", "go_to", "open", "put_next"):
        pool = [goal for goal in (*_single_goals(), *_pairs()) if goal.task == task]
        pool = _by_digest([goal for goal in pool if all(thing.color for thing in goal.things)])
        pool = [goal for place, goal in enumerate(pool) if _swapped(goal) not in pool[:place]]
        turns = {kind: [goal for goal in pool if goal.things[0].kind == kind] for kind in KINDS}
        in_turn = [goal for goals in zip_longest(*turns.values()) for goal in goals if goal is not None]
        chosen += in_turn[: _NUM_TEST[task]]
    return tuple(chosen)


def _single_goals() -> list[BabyAIGoal]:
    """The 56 goals about one thing."""
    movable = [thing for thing in _THINGS if thing.kind != "door"]
    doors = [thing for thing in _THINGS if thing.kind == "door"]
    return [*map(PickUp, movable), *map(GoTo, _THINGS), *map(Open, doors)]


def _pairs() -> list[BabyAIGoal]:
    """The 567 goals about two things that are described differently."""
    return [PutNext(*pair) for pair in permutations(_THINGS, 2) if pair[0].kind != "door"]


def _swapped(goal: BabyAIGoal) -> BabyAIGoal | None:
    """The other goal that the same states meet, if there is one."""
    if not isinstance(goal, PutNext) or goal.place.kind == "door":
        return None
    return PutNext(goal.place, goal.thing)


def _tiles(width: int, height: int, room_size: int) -> tuple[list[BabyAIGoal], list[BabyAIGoal]]:
    """Test and training goals that name a tile inside a room; rooms share their walls."""
    columns, rows = ([line for line in range(1, size - 1) if line % (room_size - 1)] for size in (width, height))
    goals = _by_digest([GoToTile(x, y) for x, y in product(columns, rows)])
    num_test = min(_NUM_TEST["go_to_tile"], len(goals) // 6)
    return goals[:num_test], goals[num_test : num_test + _NUM_TRAINING_TILES]


def _by_digest(goals: Sequence[BabyAIGoal]) -> list[BabyAIGoal]:
    """Goals in an order without rhyme or reason that is the same for ever and everywhere."""
    return sorted(goals, key=lambda goal: hashlib.sha256(original_sentence(goal).encode()).digest())
