"""The rooms of the tree stand on each other: what lies higher imports what lies lower, never the other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kalm"

# From the ground up. Rooms on one floor do not know each other.
FLOORS = (
    ("core",), ("language",), ("envs",), ("judging",), ("store",), ("runs",), ("data",), ("rl", "llm"), ("callbacks",),
    ("report",), ("study",), ("cli",),
)  # fmt: skip
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The command line's door, and the package's face, which holds the version and what scripts use.
OUTSIDE = {"__main__", "__init__"}
# Worlds know the contract that all worlds share, and no world another.
WORLDS = sorted(path.parent.name for path in (PACKAGE / "envs").glob("*/__init__.py"))
HEAVY_IN_RL = {"transformers", "peft", "bitsandbytes"}


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name below ``kalm`` and file of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path
    for path in sorted((PACKAGE / "callbacks").resolve().glob("*.py")):
        yield f"callbacks.{path.stem}", path


def imports(path: Path, with_types: bool = True) -> Iterator[str]:
    """Everything that a file imports, at its top or in a function; also for types only unless told otherwise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {child for node in for_types for child in ast.walk(node)} if not with_types else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in left_out:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node not in left_out:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(with_types: bool = True) -> Iterator[tuple[str, str]]:
    """Importing module and imported name, both below ``kalm``."""
    for name, path in modules():
        for imported in imports(path, with_types):
            if imported.startswith("kalm."):
                yield name, imported.removeprefix("kalm.")


def room(name: str) -> str:
    """The room of a module."""
    return name.split(".")[0]


def test_every_room_has_its_floor() -> None:
    """A new package has to say where it stands."""
    assert {room(name) for name, _ in modules()} - OUTSIDE == FLOOR_OF.keys()


def test_no_arrow_points_upwards() -> None:
    """Also not between rooms of one floor, and also not for types only."""
    upward = [
        f"{name} -> {imported}"
        for name, imported in arrows()
        if room(name) in FLOOR_OF and room(imported) in FLOOR_OF and room(name) != room(imported)
        if FLOOR_OF[room(imported)] >= FLOOR_OF[room(name)]
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("world", WORLDS)
def test_no_world_is_known_outside_of_itself(world: str) -> None:
    """A world is named in configurations, by its class path, and nowhere in the code."""
    knowing = [name for name, imported in arrows() if f"envs.{world}" in imported and f"envs.{world}" not in name]
    assert not knowing


def test_no_file_imports_itself_in_a_circle() -> None:
    """Files of one room run each other's code in one direction only.

    That a world and its environment name each other in their signatures is no circle.
    """
    files = {name for name, _ in modules()}
    uses: dict[str, set[str]] = {name: set() for name in files}
    for name, imported in arrows(with_types=False):
        target = imported if imported in files else imported.rpartition(".")[0]
        if target in files and target != name:
            uses[name].add(target)
    while True:  # take away what uses nothing that is left, until only circles are left
        leaves = {name for name, used in uses.items() if not used & uses.keys()}
        if not leaves:
            break
        uses = {name: used for name, used in uses.items() if name not in leaves}
    assert not uses, {name: sorted(used & uses.keys()) for name, used in uses.items()}


def test_offline_rl_needs_no_language_model_library() -> None:
    """And language models need no world's simulator."""
    brought = {(room(name), imported.split(".")[0]) for name, path in modules() for imported in imports(path)}
    assert not {library for where, library in brought if where == "rl"} & HEAVY_IN_RL
    assert not {library for where, library in brought if where == "llm"} & {"mujoco", "metaworld", "minigrid"}
