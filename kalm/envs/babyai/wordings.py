"""Three vocabularies that say the same goals: BabyAI's own, the test's, and one that a learner may be trained with.

A vocabulary is data: patterns by kind of goal, words by kind of thing and by colour. ``TEST_WORDS`` are TEDUO's tables
C.9 to C.11; nothing trains on them. ``TRAINING_WORDS`` share no word with them (a test compares the two), so a learner
that trained on the bank still meets the test's words for the first time at the test.

An article stands before every description, and it is always ``a`` (or ``an``): any thing that fits the description
meets the goal, whereas BabyAI's missions say ``the`` where one grid happens to hold only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kalm.envs.babyai.goals import BabyAIGoal, GoToTile, Thing

Choose = Callable[[tuple[str, ...]], str]


@dataclass(frozen=True)
class Vocabulary:
    """Ways to say a goal.

    Attributes:
        patterns: By ``goal.task``; the fields are {thing} and {place}, or {x} and {y}.
        kinds: Nouns by kind of thing.
        colors: Adjectives by colour.
    """

    patterns: dict[str, tuple[str, ...]]
    kinds: dict[str, tuple[str, ...]]
    colors: dict[str, tuple[str, ...]]

    def sentence(self, goal: BabyAIGoal, choose: Choose) -> str:
        """The goal in words; ``choose`` picks one of several, first of the patterns, then of the words in order."""
        pattern = choose(self.patterns[goal.task])
        if isinstance(goal, GoToTile):
            return pattern.format(x=goal.x, y=goal.y)
        names = (self._description(thing, choose) for thing in goal.things)
        return pattern.format(**dict(zip(("thing", "place"), names, strict=False)))

    def _description(self, thing: Thing, choose: Choose) -> str:
        words = [] if thing.color is None else [choose(self.colors[thing.color])]
        name = " ".join([*words, choose(self.kinds[thing.kind])])
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


ORIGINAL_WORDS = Vocabulary(
    patterns={
        "pick_up": ("pick up {thing}",),
        "go_to": ("go to {thing}",),
        "open": ("open {thing}",),
        "put_next": ("put {thing} next to {place}",),
        "go_to_tile": ("go to the tile ({x}, {y})",),
    },
    kinds={kind: (kind,) for kind in ("key", "ball", "box", "door")},
    colors={color: (color,) for color in ("red", "green", "blue", "purple", "yellow", "grey")},
)

TEST_WORDS = Vocabulary(
    patterns={
        "pick_up": ("grab {thing}", "acquire {thing}", "collect {thing}"),
        "go_to": ("move to {thing}", "reach {thing}", "navigate to {thing}"),
        "open": ("push {thing} open", "swing open {thing}"),
        "put_next": (
            "set {thing} and {place} next to each other",
            "position {thing} alongside {place}",
            "place {thing} beside {place}",
        ),
        "go_to_tile": (
            "move to the location at the coordinate ({x}, {y})",
            "reach the position at ({x}, {y})",
            "navigate to the point ({x}, {y})",
        ),
    },
    kinds={
        "key": ("passcode", "lock-opener", "unlocker"),
        "ball": ("sphere", "globe", "orb"),
        "box": ("container", "crate", "chest"),
        "door": ("portal", "gate", "hatch"),
    },
    colors={
        "red": ("scarlet", "crimson", "ruby"),
        "green": ("emerald", "jade", "lime"),
        "blue": ("azure", "cobalt", "navy"),
        "purple": ("violet", "lavender", "mauve"),
        "yellow": ("golden", "amber", "canary"),
        "grey": ("ash", "charcoal", "silver"),
    },
)

# BabyAI's own words are part of the bank, so that a learner does not forget them.
TRAINING_WORDS = Vocabulary(
    patterns={
        "pick_up": (
            *ORIGINAL_WORDS.patterns["pick_up"],
            "pick {thing} up",
            "take {thing}",
            "get hold of {thing}",
            "lift {thing}",
            "fetch {thing}",
            "have {thing} in your hand",
        ),
        "go_to": (
            *ORIGINAL_WORDS.patterns["go_to"],
            "walk to {thing}",
            "head for {thing}",
            "approach {thing}",
            "find {thing} and stop before it",
            "travel to {thing}",
            "stand in front of {thing}",
        ),
        "open": (
            *ORIGINAL_WORDS.patterns["open"],
            "pull {thing} open",
            "throw open {thing}",
            "get {thing} open",
            "make {thing} stand open",
            "leave {thing} open",
            "undo {thing}",
        ),
        "put_next": (
            *ORIGINAL_WORDS.patterns["put_next"],
            "put {thing} near {place}",
            "drop {thing} right by {place}",
            "lay {thing} down close to {place}",
            "bring {thing} to {place} and drop it there",
            "leave {thing} adjacent to {place}",
            "make {thing} the neighbour of {place}",
        ),
        "go_to_tile": (
            *ORIGINAL_WORDS.patterns["go_to_tile"],
            "walk to tile ({x}, {y})",
            "stand on the square ({x}, {y})",
            "head for the cell ({x}, {y})",
            "go to column {x}, row {y}",
            "step onto the field with x = {x} and y = {y}",
        ),
    },
    kinds={
        "key": ("key", "latchkey", "skeleton key", "house key", "metal key"),
        "ball": ("ball", "marble", "bead", "football", "rubber ball"),
        "box": ("box", "carton", "case", "parcel", "bin"),
        "door": ("door", "doorway", "entrance", "exit", "wooden door"),
    },
    colors={
        "red": ("red", "vermilion", "cherry", "carmine", "maroon", "tomato-coloured"),
        "green": ("green", "olive", "mint", "moss", "viridian", "leaf-coloured"),
        "blue": ("blue", "sapphire", "indigo", "cerulean", "ultramarine", "sky-coloured"),
        "purple": ("purple", "plum", "lilac", "magenta", "amethyst", "aubergine-coloured"),
        "yellow": ("yellow", "lemon", "mustard", "saffron", "straw", "banana-coloured"),
        "grey": ("grey", "gray", "slate", "pewter", "graphite", "smoke-coloured"),
    },
)
