"""Breaks the code on purpose, one place at a time, and asks whether a test notices.

``python -m tests.benchmarks.mutants kalm/rl/iql.py kalm/rl/losses.py --sample 40`` draws 40 one-place changes
("mutants") of the files named, runs the tests for each and lists the mutants that no test kills: each is a fault that
the tests would let pass, or a change that makes no difference.

A mutant is tried in a fork of a process that has the heavy libraries loaded, so that it costs the tests and nothing
else; whatever runs in a process of its own sees the code as it is.

Changes: a comparison turned into its neighbour (``<`` and ``<=``, ``==`` and ``!=``), ``+`` and ``-``, ``*`` and ``/``,
``and`` and ``or``, a condition negated, a number one higher, True and False, ``min`` and ``max``, a keyword argument
left out, a method call that only changes a tensor's values (``detach``, ``abs``, ``clamp``, ...) left out.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
_COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
_NAMED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}
_LEFT_OUT = {"detach", "abs", "clamp", "square", "sqrt", "mean", "exp", "neg", "contiguous"}
_HEAVY = ("torch", "lightning", "tensordict", "torchrl.data", "transformers", "matplotlib.pyplot", "pytest")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: The file, below the root of the repository.
        line: Where in it.
        change: What was changed, for people.
        source: The whole file after the change.
    """

    path: Path
    line: int
    change: str
    source: str

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return ".".join(self.path.with_suffix("").parts)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of one file; docstrings, annotations and error messages are left alone."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for number, node in enumerate(ast.walk(tree)):
        for variant in _variants(node):
            changed = copy.deepcopy(tree)
            place = next(other for index, other in enumerate(ast.walk(changed)) if index == number)
            before = ast.unparse(place)
            after = variant(place)
            if after is not place:
                _replace(changed, place, after)
            text = f"{before[:70]}  ->  {ast.unparse(after)[:70]}".replace("\n", " ")
            yield Mutant(path, getattr(node, "lineno", 0), text, ast.unparse(ast.fix_missing_locations(changed)))


def _variants(node: ast.AST) -> Iterator[object]:
    """Functions that change a copy of ``node``, or return what is to stand in its place."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        yield lambda place: _set(place, "ops", [_COMPARED[type(place.ops[0])]()])
    if isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED and not _is_text(node):
        yield lambda place: _set(place, "op", _COMPUTED[type(place.op)]())
    if isinstance(node, ast.BoolOp):
        yield lambda place: _set(place, "op", ast.Or() if isinstance(place.op, ast.And) else ast.And())
    if isinstance(node, ast.If | ast.IfExp) and not _only_raises(node):
        yield lambda place: _set(place, "test", ast.UnaryOp(ast.Not(), place.test))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield lambda place: _set(place, "value", not place.value if isinstance(place.value, bool) else place.value + 1)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _NAMED:
            yield _renamed
        if name in _LEFT_OUT and isinstance(node.func, ast.Attribute):
            yield lambda place: place.func.value
        for index in range(len(node.keywords) if name not in ("Column", "field", "dataclass") else 0):
            yield lambda place, index=index: _without_keyword(place, index)


def _set(place: ast.AST, field: str, value: object) -> ast.AST:
    setattr(place, field, value)
    return place


def _renamed(place: ast.Call) -> ast.AST:
    if isinstance(place.func, ast.Attribute):
        place.func.attr = _NAMED[place.func.attr]
    elif isinstance(place.func, ast.Name):
        place.func.id = _NAMED[place.func.id]
    return place


def _without_keyword(place: ast.Call, index: int) -> ast.AST:
    place.keywords = place.keywords[:index] + place.keywords[index + 1 :]
    return place


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.JoinedStr | ast.List) for side in (node.left, node.right))


def _only_raises(node: ast.If | ast.IfExp) -> bool:
    return isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list):
                setattr(parent, field, [new if entry is old else entry for entry in value])


def tests_of(path: Path) -> list[str]:
    """Where the tests of a file are: the file of its name first, then all of its room."""
    room = ROOT / "tests" / Path(*path.parts[1:-1])
    while not room.is_dir():
        room = room.parent
    own = sorted(str(found.relative_to(ROOT)) for found in room.rglob(f"test_{path.stem}.py"))
    return [*own, str(room.relative_to(ROOT))]


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Has one module loaded from another source."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name == self._mutant.module:
            return importlib.util.spec_from_file_location(name, ROOT / self._mutant.path, loader=self)
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._mutant.source, module.__file__ or "", "exec"), module.__dict__)


def verdict(mutant: Mutant, tests: Sequence[str], seconds: int) -> str:
    """``killed``, ``survived`` or ``timeout`` (which counts as killed: somebody would notice)."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        import pytest

        sys.meta_path.insert(0, _Mutated(mutant))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--deselect", "tests/study"]
        os._exit(int(pytest.main([*options, *tests])))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return "timeout"


def main() -> None:
    """Try mutants; print those that survive, and the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="Files, or folders for all files in them.")
    parser.add_argument("--tests", nargs="+", default=None, help="Tests to run; by default those of the file's room.")
    parser.add_argument("--sample", type=int, default=None, help="Mutants to draw; all by default.")
    parser.add_argument("--seed", type=int, default=0, help="Which are drawn.")
    parser.add_argument("--seconds", type=int, default=240, help="Longest that the tests of a mutant may take.")
    options = parser.parse_args()
    os.chdir(ROOT)
    files = [path for given in options.files for path in (sorted(given.rglob("*.py")) if given.is_dir() else [given])]
    mutants = [mutant for path in files if path.name != "__init__.py" for mutant in mutants_of(path)]
    num_all = len(mutants)
    if options.sample is not None:
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, num_all))
    for name in _HEAVY:
        importlib.import_module(name)
    verdicts = []
    for mutant in sorted(mutants, key=lambda one: (one.path, one.line)):
        verdicts.append(verdict(mutant, options.tests or tests_of(mutant.path), options.seconds))
        if verdicts[-1] == "survived":
            sys.stdout.write(f"{mutant.path}:{mutant.line}  {mutant.change}\n")
            sys.stdout.flush()
    counts = {name: verdicts.count(name) for name in ("killed", "timeout", "survived")}
    sys.stdout.write(f"{len(mutants)} of {num_all} mutants tried: {counts}\n")


if __name__ == "__main__":
    main()
