"""Imports the simulator, or says what is wrong with its installation."""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from types import ModuleType

from packaging.requirements import Requirement

from kalm.core.errors import SimulatorError


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
