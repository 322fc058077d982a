"""Calls that run what they read, or swallow what goes wrong, do not occur in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("kalm", "callbacks") for path in (REPOSITORY / folder).rglob("*.py"))
# ImagineBench's files are pickled. This module reads them with an unpickler that builds arrays and nothing else;
# tests/store/test_imagine_bench.py attacks it.
AUDITED = REPOSITORY / "kalm" / "store" / "safe_npy.py"
CHECKED = [path for path in SOURCES if path != AUDITED]

BANNED_CALLS = {
    "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load",
    "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
}  # fmt: skip
UNPICKLERS = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
BANNED_KEYWORDS = {("allow_pickle", True), ("weights_only", False), ("shell", True), ("trust_remote_code", True)}


def problems(tree: ast.AST) -> Iterator[str]:
    """Every breach in one file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in BANNED_CALLS:
                yield f"line {node.lineno}: {ast.unparse(node.func)}(...)"
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in BANNED_KEYWORDS:
                    yield f"line {node.lineno}: {keyword.arg}={keyword.value.value}"
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in {k.arg for k in node.keywords}:
                yield f"line {node.lineno}: torch.load without weights_only"
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        if UNPICKLERS & set(imported):
            yield f"line {node.lineno}: imports {', '.join(imported)}"
        if isinstance(node, ast.ExceptHandler):
            names = "" if node.type is None else ast.unparse(node.type)
            is_silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None or (is_silent and names in ("Exception", "BaseException")):
                yield f"line {node.lineno}: except {names}: swallows everything"


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_source_runs_nothing_that_it_reads(path: Path) -> None:
    """Outside the one audited module."""
    found = list(problems(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == []


def test_every_source_was_looked_at() -> None:
    """The walk above cannot pass on an empty list, and the exception covers files that exist."""
    assert len(SOURCES) > 50
    assert REPOSITORY / "kalm" / "runs" / "checkpoint_io.py" in SOURCES
    assert len(CHECKED) == len(SOURCES) - 1


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "numpy.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)",
        "torch.load(path)",
        "yaml.load(text, Loader=Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "from pickle import loads",
        "import os, pickle",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    g()",
    ],
)
def test_each_breach_would_be_found(line: str) -> None:
    """The rule bites."""
    assert len(list(problems(ast.parse(line)))) == 1
