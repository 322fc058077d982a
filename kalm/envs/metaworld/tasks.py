"""The 22 tasks: the paper's name, the scene and the scripted policies of the ``metaworld`` package, what is observed.

Shape letters: none; this file is a table and imports no simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

# Meta-World has had several reward functions; kalm's potentials follow this one, and scenes are built with it.
REWARD_FUNCTION_VERSION = "v2"

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Entity:
    """How one entity of the observation is read from a scene.

    Attributes:
        name: One of ``layout.ENTITIES``.
        body: MuJoCo body that gives the orientation, and the position unless ``site`` or ``geom`` does. A joint of
            this body is what moves the entity.
        site: Site that gives the position, if any.
        geom: Geom that gives the position, if any.
        offset: Added to the position, in the world's frame.
    """

    name: str
    body: str
    site: str | None = None
    geom: str | None = None
    offset: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: Ours: the package's without the version.
        goal_split: Split of the task's goal; training tasks have rephrased instructions besides.
        scene: Key of the package's ``ALL_V3_ENVIRONMENTS``, or of ``composed_scenes.COMPOSED_SCENES``.
        policies: Scripted policies of ``metaworld.policies`` that solve it, one a stage.
        entities: What is in the scene.
        rest_hand: Where the hand waits at the beginning.
        anchor: The body that a layout places, and its position minus the target location; None if there is none.
    """

    name: str
    goal_split: str
    scene: str
    policies: tuple[str, ...]
    entities: tuple[Entity, ...]
    rest_hand: Vector
    anchor: tuple[str, Vector] | None = None

    @property
    def paper_name(self) -> str:
        """Name in the paper, which used the v2 scenes."""
        return self.name if self.scene == self.name else f"{self.name}-v2"


_PUCK = Entity("target_object", "obj")
_WALL = Entity("wall", "wall")
_BUTTON = Entity("button", "button", offset=(0.0, -0.193, 0.0))
_HANDLE = Entity("handle", "door_link", geom="handle")
_UNLOCKED_END = Entity("lock", "lock_link", site="lockStartUnlock")
_LOCKED_END = Entity("lock", "lock_link", site="lockStartLock")
_COFFEE = (Entity("coffee_mug", "obj"), Entity("coffee_button", "cmbutton", site="buttonStart"))
_HAMMER = (Entity("hammer", "hammerbody"), Entity("nail", "nail_link"))


def _window(site: str) -> tuple[Entity, ...]:
    return (Entity("window", "windowb_a", site=site),)


def _faucet(site: str) -> tuple[Entity, ...]:
    return (Entity("faucet", "faucet_link2", site=site, offset=(0.0, 0.0, -0.01)),)


_NEAR: Vector = (0.0, 0.4, 0.2)
_OVER: Vector = (0.0, 0.6, 0.2)
_ASIDE: Vector = (-0.5, 0.6, 0.2)
_HOLE: Vector = (0.0, 0.1, 0.0)  # the hole that a button sinks into, to the box
_UNLOCK_AT: Vector = (-0.1, 0.158, -0.061)  # the lever's place when unlocked, to the safe
_LOCK_AT: Vector = (0.0, 0.158, 0.039)
_TRAIN, _EASY, _HARD = "train", "easy", "hard"


def _package_task(
    name: str,
    goal_split: str,
    policy: str,
    entities: tuple[Entity, ...],
    rest_hand: Vector,
    anchor: tuple[str, Vector] | None = None,
) -> Task:
    return Task(name, goal_split, f"{name}-v3", (policy,), entities, rest_hand, anchor)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _package_task("reach", _TRAIN, "SawyerReachV3Policy", (_PUCK,), _OVER),
        _package_task("push", _TRAIN, "SawyerPushV3Policy", (_PUCK,), _OVER),
        _package_task("pick-place", _TRAIN, "SawyerPickPlaceV3Policy", (_PUCK,), _OVER),
        _package_task("button-press", _TRAIN, "SawyerButtonPressV3Policy", (_BUTTON,), _NEAR, ("box", _HOLE)),
        _package_task("door-unlock", _TRAIN, "SawyerDoorUnlockV3Policy", (_UNLOCKED_END,), _OVER, ("door", _UNLOCK_AT)),
        _package_task("door-open", _TRAIN, "SawyerDoorOpenV3Policy", (_HANDLE,), _OVER, ("door", (0.3, 0.45, 0.0))),
        _package_task(
            "window-open",
            _TRAIN,
            "SawyerWindowOpenV3Policy",
            _window("handleOpenStart"),
            _NEAR,
            ("window", (-0.2, 0.0, 0.0)),
        ),
        _package_task(
            "faucet-open",
            _TRAIN,
            "SawyerFaucetOpenV3Policy",
            _faucet("handleStartOpen"),
            _NEAR,
            ("faucetBase", (-0.175, 0.0, -0.125)),
        ),
        _package_task(
            "coffee-push", _TRAIN, "SawyerCoffeePushV3Policy", _COFFEE, _NEAR, ("coffee_machine", (0.0, 0.22, 0.0))
        ),
        _package_task(
            "coffee-button", _TRAIN, "SawyerCoffeeButtonV3Policy", _COFFEE, _NEAR, ("coffee_machine", (0.0, 0.19, -0.3))
        ),
        _package_task("reach-wall", _EASY, "SawyerReachWallV3Policy", (_PUCK, _WALL), _OVER),
        _package_task("push-wall", _EASY, "SawyerPushWallV3Policy", (_PUCK, _WALL), _OVER),
        _package_task("pick-place-wall", _EASY, "SawyerPickPlaceWallV3Policy", (_PUCK, _WALL), _OVER),
        _package_task(
            "button-press-wall", _EASY, "SawyerButtonPressWallV3Policy", (_BUTTON, _WALL), _NEAR, ("box", _HOLE)
        ),
        _package_task("door-lock", _EASY, "SawyerDoorLockV3Policy", (_LOCKED_END,), _OVER, ("door", _LOCK_AT)),
        _package_task("door-close", _EASY, "SawyerDoorCloseV3Policy", (_HANDLE,), _ASIDE, ("door", (-0.2, 0.2, 0.0))),
        _package_task(
            "window-close",
            _EASY,
            "SawyerWindowCloseV3Policy",
            _window("handleCloseStart"),
            _NEAR,
            ("window", (0.0, 0.0, 0.0)),
        ),
        _package_task(
            "faucet-close",
            _EASY,
            "SawyerFaucetCloseV3Policy",
            _faucet("handleStartClose"),
            _NEAR,
            ("faucetBase", (0.175, 0.0, -0.125)),
        ),
        Task(
            "make-coffee",
            _HARD,
            "make-coffee",
            ("SawyerCoffeePushV3Policy", "SawyerCoffeeButtonV3Policy"),
            _COFFEE,
            _NEAR,
            ("coffee_machine", (0.0, 0.22, 0.0)),
        ),
        Task(
            "locked-door-open",
            _HARD,
            "locked-door-open",
            ("SawyerDoorUnlockV3Policy", "SawyerDoorOpenV3Policy"),
            (_HANDLE, _UNLOCKED_END),
            _OVER,
            ("door", (0.3, 0.45, 0.0)),
        ),
        _package_task("hammer", _HARD, "SawyerHammerV3Policy", _HAMMER, _NEAR),
        _package_task("soccer", _HARD, "SawyerSoccerV3Policy", (Entity("soccer_ball", "soccer_ball"),), _OVER,
                      ("goal_whole", (0.0, 0.0, 0.0))),
    )
}  # fmt: skip


def name_problem(name: object) -> str | None:
    """What is wrong with a task's name, with the right one where it can be told; None if nothing is."""
    if isinstance(name, str) and name in TASKS:
        return None
    base = str(name).removesuffix("-v1").removesuffix("-v2")
    if base != name and base in TASKS:
        scene = TASKS[base].scene
        return (
            f"task is {name!r}, a name of Meta-World's older scenes; the scene here is {scene!r}, and the task is "
            f"called {base!r}"
        )
    return f"task is {name!r}; it must be one of {', '.join(TASKS)}"
