"""The 22 tasks: the paper's name, the scene and the scripted policies of the ``metaworld`` package, what is observed.

It is a table and imports no simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Entity:
    """How one entity of the observation is read from a scene.

    A MuJoCo body gives the orientation, and the position unless a site or a geom does. A joint of the body is what
    moves the entity.
    """

    name: str  # one of ``layout.ENTITIES``
    body: str
    site: str | None = None
    geom: str | None = None
    offset: Vector = (0.0, 0.0, 0.0)  # added to the position, in the world's frame


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str  # ours: the package's without the version
    goal_split: str  # of the task's goal; training tasks have rephrased instructions besides
    entities: tuple[Entity, ...]  # what is in the scene
    anchor: tuple[str, Vector] | None = None  # the body that a layout places, if any, and its position minus the target
    is_composed: bool = False  # whether the package lacks it, see ``package``

    @property
    def scene(self) -> str:
        """Key of the package's ``ALL_V3_ENVIRONMENTS``, or of ``package.COMPOSED_SCENES``."""
        return self.name if self.is_composed else f"{self.name}-v3"

    @property
    def paper_name(self) -> str:
        """Name in the paper, which used the v2 scenes."""
        return self.name if self.is_composed else f"{self.name}-v2"


_PUCK = Entity("target_object", "obj")
_WALL = Entity("wall", "wall")
_BUTTON = Entity("button", "button", offset=(0.0, -0.193, 0.0))
_HANDLE = Entity("handle", "door_link", geom="handle")
_UNLOCKED_END = Entity("lock", "lock_link", site="lockStartUnlock")
_LOCKED_END = Entity("lock", "lock_link", site="lockStartLock")
_COFFEE = (Entity("coffee_mug", "obj"), Entity("coffee_button", "cmbutton", site="buttonStart"))


def _window(site: str) -> tuple[Entity, ...]:
    return (Entity("window", "windowb_a", site=site),)


def _faucet(site: str) -> tuple[Entity, ...]:
    return (Entity("faucet", "faucet_link2", site=site, offset=(0.0, 0.0, -0.01)),)


_BUTTON_BOX = ("box", (0.0, 0.1, 0.0))  # from the hole that a button sinks into
_OPEN_DOOR = ("door", (0.3, 0.45, 0.0))
_PUSH_MACHINE = ("coffee_machine", (0.0, 0.22, 0.0))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("reach", "train", (_PUCK,)),
        Task("push", "train", (_PUCK,)),
        Task("pick-place", "train", (_PUCK,)),
        Task("button-press", "train", (_BUTTON,), _BUTTON_BOX),
        Task("door-unlock", "train", (_UNLOCKED_END,), ("door", (-0.1, 0.158, -0.061))),  # safe to lever
        Task("door-open", "train", (_HANDLE,), _OPEN_DOOR),
        Task("window-open", "train", _window("handleOpenStart"), ("window", (-0.2, 0.0, 0.0))),
        Task("faucet-open", "train", _faucet("handleStartOpen"), ("faucetBase", (-0.175, 0.0, -0.125))),
        Task("coffee-push", "train", _COFFEE, _PUSH_MACHINE),
        Task("coffee-button", "train", _COFFEE, ("coffee_machine", (0.0, 0.19, -0.3))),
        Task("reach-wall", "easy", (_PUCK, _WALL)),
        Task("push-wall", "easy", (_PUCK, _WALL)),
        Task("pick-place-wall", "easy", (_PUCK, _WALL)),
        Task("button-press-wall", "easy", (_BUTTON, _WALL), _BUTTON_BOX),
        Task("door-lock", "easy", (_LOCKED_END,), ("door", (0.0, 0.158, 0.039))),
        Task("door-close", "easy", (_HANDLE,), ("door", (-0.2, 0.2, 0.0))),
        Task("window-close", "easy", _window("handleCloseStart"), ("window", (0.0, 0.0, 0.0))),
        Task("faucet-close", "easy", _faucet("handleStartClose"), ("faucetBase", (0.175, 0.0, -0.125))),
        Task("make-coffee", "hard", _COFFEE, _PUSH_MACHINE, is_composed=True),
        Task("locked-door-open", "hard", (_HANDLE, _UNLOCKED_END), _OPEN_DOOR, is_composed=True),
        Task("hammer", "hard", (Entity("hammer", "hammerbody"), Entity("nail", "nail_link"))),
        Task("soccer", "hard", (Entity("soccer_ball", "soccer_ball"),), ("goal_whole", (0.0, 0.0, 0.0))),
    )
}


def name_problem(name: object) -> str | None:
    """What is wrong with a task's name, with the right one where it can be told; None if nothing is."""
    if isinstance(name, str) and name in TASKS:
        return None
    base = str(name).removesuffix("-v1").removesuffix("-v2")
    if base != name and base in TASKS:
        here = f"the scene here is {TASKS[base].scene!r}, and the task is called {base!r}"
        return f"task is {name!r}, a name of Meta-World's older scenes; {here}"
    return f"task is {name!r}; it must be one of {', '.join(TASKS)}"
