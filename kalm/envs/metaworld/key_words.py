"""The words that give a task away: what a text must name to describe it, and what it must not."""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PUCK = _words("puck disc cylinder")
_WALL = _words("wall walls")
_BUTTON = _words("button buttons knob switch")
_DOOR = _words("door doors safe")
_LOCK = _words("lock locks locked unlock unlocks unlocked bolt unbolt latch unlatch lever locking unlocking")
_COFFEE = _words("coffee machine spout espresso brewer maker")
_MUG = _words("mug mugs cup cups")
_WINDOW = _words("window windows pane sash")
_FAUCET = _words("faucet faucets tap spigot")
_NAIL = _words("nail nails")
_BALL = _words("ball balls football soccer")
_ARM = _words("reach gripper hand arm fingers fingertips robot")
_GOAL = _words("target goal point spot location position mark marked marker")
_PUSH = _words("push pushing slide sliding shove move steer nudge scoot glide drag propel")
_LIFT = _words("pick lift grasp grab grip carry raise take hold hoist air elevate")
_OPEN = _words("open opened opening opens")
_CLOSE = _words("close closed closing closes shut")
_UNDO = _words("unlock unlocks unlocked unlocking undo undone release loosen free unbolt unlatch")
_SERVE = _words("make brew fill serve prepare")
_START = _words("button start switch run")
_THINGS = _PUCK | _WALL | _BUTTON | _DOOR | _COFFEE | _MUG | _WINDOW | _FAUCET | _NAIL | _BALL | _words("hammer")


@dataclass(frozen=True)
class KeyWords:
    """What a text that describes a task holds.

    Attributes:
        needed: Groups of words; one of each group must occur.
        forbidden: Words that make it another task.
    """

    needed: tuple[frozenset[str], ...]
    forbidden: frozenset[str] = frozenset()

    def describe(self, words: set[str]) -> bool:
        """Whether a text of these words describes the task."""
        return all(words & group for group in self.needed) and not words & self.forbidden


KEY_WORDS: dict[str, KeyWords] = {
    "reach": KeyWords((_ARM, _GOAL), _THINGS),
    "push": KeyWords((_PUCK, _PUSH), _LIFT | _WALL),
    "pick-place": KeyWords((_PUCK, _LIFT), _WALL),
    "button-press": KeyWords((_BUTTON,), _WALL | _COFFEE | _MUG),
    "door-unlock": KeyWords((_LOCK, _UNDO), _OPEN),
    "door-open": KeyWords((_DOOR, _OPEN), _LOCK | _CLOSE),
    "window-open": KeyWords((_WINDOW, _OPEN), _CLOSE),
    "faucet-open": KeyWords((_FAUCET, _OPEN | {"on"}), _CLOSE | {"off"}),
    "coffee-push": KeyWords((_MUG, _COFFEE), _SERVE | _START),
    "coffee-button": KeyWords((_BUTTON, _COFFEE), _MUG | _SERVE),
    "reach-wall": KeyWords((_WALL, _GOAL), _PUCK | _BUTTON),
    "push-wall": KeyWords((_PUCK, _WALL, _PUSH), _LIFT),
    "pick-place-wall": KeyWords((_PUCK, _WALL, _LIFT)),
    "button-press-wall": KeyWords((_BUTTON, _WALL)),
    "door-lock": KeyWords((_DOOR, _LOCK), _UNDO | _OPEN),
    "door-close": KeyWords((_DOOR, _CLOSE), _LOCK),
    "window-close": KeyWords((_WINDOW, _CLOSE)),
    "faucet-close": KeyWords((_FAUCET, _CLOSE | {"off"})),
    "make-coffee": KeyWords((_COFFEE, _SERVE | _MUG, _SERVE | _START)),
    "locked-door-open": KeyWords((_LOCK, _OPEN)),
    "hammer": KeyWords((_NAIL,)),
    "soccer": KeyWords((_BALL, _words("goal net score"))),
}
