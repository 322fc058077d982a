"""What Meta-World brings: its modules, once its installation is checked, and its scenes, with two that it lacks.

Each of these two is made of the scenes of its two parts:

- ``make-coffee`` is the scene of coffee-push with a spring behind the machine's button: the package's button stays
  where it was pushed, so that pressing it before the mug is there would count.
- ``locked-door-open`` is the scene of door-open with the bolt of door-unlock on its door. The lever begins locked; as
  long as it is, a constraint holds the closed door.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import mujoco
import numpy as np
from packaging.requirements import Requirement

from kalm.core.errors import SimulatorError
from kalm.envs.metaworld.success import UNLOCKED_ANGLE
from kalm.envs.metaworld.tasks import Task

BUTTON_SPRING = 20.0  # newtons a metre: less than a newton where the button stops, which a finger overcomes
LOCKED_ANGLE = np.pi / 2  # of the lever at the beginning; 0 is wide open
LEVER_SHIFT = np.array([-0.1, 0.0, 0.0])  # towards the hinge, so that a hand fits between the lever and the handle
CLOSED_ANGLE = 0.02  # a door opened less than this can be bolted


@cache
def import_metaworld(module: str = "metaworld") -> ModuleType:
    """A module of the ``metaworld`` package, once MuJoCo is known to be the version that the package was made for.

    Raises:
        SimulatorError: If a package is missing, or MuJoCo's version is another; the message says what to install.
    """
    try:
        pins = [Requirement(line) for line in metadata.requires("metaworld") or []]
        installed = metadata.version("mujoco")
    except metadata.PackageNotFoundError as error:
        raise SimulatorError(
            f"the package {error.name} is not installed; Meta-World needs it: pip install -c constraints.txt -e ."
        ) from error
    for pin in pins:
        if pin.name == "mujoco" and not pin.specifier.contains(installed):
            raise SimulatorError(
                f"mujoco {installed} is installed, but metaworld {metadata.version('metaworld')} needs mujoco "
                f"{pin.specifier}; with another one its scenes behave differently: pip install 'mujoco{pin.specifier}'"
            )
    return importlib.import_module(module)


import_metaworld()

from metaworld.asset_path_utils import full_V3_path_for  # noqa: E402  # after the check of the installation
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.envs.sawyer_coffee_push_v3 import SawyerCoffeePushEnvV3  # noqa: E402
from metaworld.envs.sawyer_door_v3 import SawyerDoorEnvV3  # noqa: E402


class MakeCoffeeEnv(SawyerCoffeePushEnvV3):
    """Push the mug under the coffee machine, then press the machine's button."""

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model, data = super()._initialize_simulation()
        model.jnt_stiffness[model.joint("goal_slidey").id] = BUTTON_SPRING
        return model, data


class LockedDoorEnv(SawyerDoorEnvV3):
    """Turn the lever of a door's bolt, then pull the door open by its handle."""

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = locked_door_spec().compile()
        return model, mujoco.MjData(model)

    def reset_model(self) -> Any:
        """Lay out as door-open does, with the lever in its locked position."""
        super().reset_model()
        self.data.joint("lock_joint").qpos = LOCKED_ANGLE
        mujoco.mj_forward(self.model, self.data)
        return self._get_obs()


def locked_door_spec() -> mujoco.MjSpec:
    """The scene of door-open with the lever of door-unlock on the door and a constraint that holds it shut."""
    spec = mujoco.MjSpec.from_file(full_V3_path_for("sawyer_xyz/sawyer_door_pull.xml"))
    locked = mujoco.MjSpec.from_file(full_V3_path_for("sawyer_xyz/sawyer_door_lock.xml"))
    lever_there, door = locked.body("lock_link"), spec.body("door_link")
    lever = door.add_body(name="lock_link", pos=lever_there.pos + LEVER_SHIFT)
    for joint in lever_there.joints:
        lever.add_joint(name="lock_joint", type=joint.type, axis=joint.axis, range=joint.range, limited=joint.limited,
                        armature=joint.armature, damping=joint.damping)  # fmt: skip
    for geom in lever_there.geoms:
        copied = ("type", "pos", "quat", "size", "mass", "density", "contype", "conaffinity", "condim", "friction",
                  "solref", "solimp", "group", "rgba", "material", "meshname")  # fmt: skip
        lever.add_geom(**{name: getattr(geom, name) for name in copied})
    for site in lever_there.sites:
        lever.add_site(name=site.name, pos=site.pos, size=site.size, rgba=site.rgba)
    spec.add_equality(name="bolt", type=mujoco.mjtEq.mjEQ_JOINT, name1="doorjoint", data=[0.0] * 11)
    return spec


def bolt(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Let the bolt hold the door in the coming step exactly if the lever is locked and the door is shut."""
    is_locked = abs(data.qpos[model.joint("lock_joint").qposadr[0]]) > UNLOCKED_ANGLE
    is_shut = abs(data.qpos[model.joint("doorjoint").qposadr[0]]) < CLOSED_ANGLE
    data.eq_active[model.equality("bolt").id] = is_locked and is_shut


COMPOSED_SCENES = {"make-coffee": MakeCoffeeEnv, "locked-door-open": LockedDoorEnv}


def build_scene(task: Task) -> Any:
    """The package's environment of a task, made to draw layouts from its own generator."""
    env_class = COMPOSED_SCENES[task.scene] if task.is_composed else ALL_V3_ENVIRONMENTS[task.scene]
    env = env_class(reward_function_version="v2")  # of several; it is the one that kalm's potentials follow
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    env._partially_observable = False
    return env
