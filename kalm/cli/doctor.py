"""``python -m kalm doctor``: what is wrong with this machine, installation or world, before a night is lost to it."""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

import kalm
from kalm.core.errors import DataError, SimulatorError
from kalm.envs.base import Domain

Verdict = Literal["ok", "note", "wrong"]

DISTRIBUTION = "kalm-rl"
_MIN_PYTHON = (3, 11)
_COLOURS: dict[Verdict, str] = {"ok": "green", "note": "yellow", "wrong": "bold red"}
_SCARCE_BYTES, _FEW_BYTES = 1 << 30, 5 << 30
_GL_SECONDS = 30

# distribution, versions that must not be used, why. Lower bounds are in pyproject.toml and checked from there.
_KNOWN_BAD = (
    ("lightning", "==2.6.2", "a compromised release"),
    ("lightning", "==2.6.3", "a compromised release"),
    ("lightning", "<2.6.6", "lacks the fix for code execution on loading a checkpoint"),
    ("pytorch-lightning", "==2.6.2", "a compromised release"),
    ("pytorch-lightning", "==2.6.3", "a compromised release"),
    ("torch", "<2.10", "has known ways around weights_only loading"),
    ("tensordict", ">=0.15", "torchrl 0.14 does not work with it"),
    ("d3rlpy", ">=0", "pins an old gymnasium; keep it in an environment of its own"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how bad it is, what was found and what to do."""

    subject: str
    verdict: Verdict
    text: str


def report_domain(domain: Domain, console: Console) -> int:
    """Print every rule of the domain contract that a world breaks; the exit code."""
    from kalm.envs.contract import check_domain  # brings gymnasium and the world's own imports

    name = f"{type(domain).__module__}.{type(domain).__qualname__}"
    problems = check_domain(domain)
    for problem in problems:
        console.print(f"- {problem}", markup=False, soft_wrap=True)
    breach = f"breaks the contract of kalm.envs.base.Domain in {len(problems)} way(s)"
    console.print(f"{name} {breach if problems else 'keeps the contract'}", markup=False, soft_wrap=True)
    return SimulatorError.exit_code if problems else 0


def report(findings: list[Finding], console: Console) -> int:
    """Print the findings; the exit code, which notes alone leave at 0."""
    table = Table(title=f"kalm {kalm.__version__} in {sys.prefix}", show_lines=False)
    for column in ("what", "verdict", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.subject, Text(finding.verdict, style=_COLOURS[finding.verdict]), Text(finding.text))
    console.print(table)
    num_wrong = sum(finding.verdict == "wrong" for finding in findings)
    console.print(f"{num_wrong} thing(s) are wrong; see the table" if num_wrong else "nothing is wrong")
    return SimulatorError.exit_code if num_wrong else 0


def examine(root: Path) -> list[Finding]:
    """Every finding, in the order in which they are worth reading."""
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    # Run from a checkout that was never installed: that is what the check will say.
    needed = [DISTRIBUTION] if installed_version(DISTRIBUTION) is None else metadata.requires(DISTRIBUTION) or []
    checks: list[Callable[[], Iterator[Finding]]] = [
        _check_python,
        lambda: check_name_clash(installed_version),
        lambda: check_requirements(needed, installed_version),
        lambda: check_known_bad(installed_version),
        _check_devices,
        lambda: check_disk(root, shutil.disk_usage(existing).free),
        _check_gl,
        _check_encoder,
    ]
    return [finding for check in checks for finding in check()]


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _check_python() -> Iterator[Finding]:
    is_recent = sys.version_info >= _MIN_PYTHON
    advice = "" if is_recent else f"; kalm needs {'.'.join(map(str, _MIN_PYTHON))} or newer"
    yield Finding("Python", "ok" if is_recent else "wrong", f"{platform.python_version()}{advice}")


def check_name_clash(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Whether the unrelated distribution that is called ``kalm`` is installed over or under ours."""
    other = version_of("kalm")
    if other is None:
        yield Finding("the name kalm", "ok", "no other distribution installs a package of this name")
    else:
        yield Finding(
            "the name kalm",
            "wrong",
            f"distribution 'kalm' {other} is another project with the same import name; each overwrites files of the "
            f"other. pip uninstall kalm {DISTRIBUTION}, then install {DISTRIBUTION} again",
        )


def check_requirements(requirements: list[str], version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Whether every declared dependency is installed in an allowed version."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "ok", version)
        else:
            advice = f"needed: {requirement}. pip install '{requirement}'"
            yield Finding(requirement.name, "wrong", f"{version or 'not installed'}; {advice}")


def check_known_bad(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Versions that install without complaint and must not be used."""
    for distribution, versions, reason in _KNOWN_BAD:
        version, bad = version_of(distribution), SpecifierSet(versions)
        if version is not None and bad.contains(version, prereleases=True):
            yield Finding(distribution, "wrong", f"{version}: {reason}")


def check_disk(root: Path, free: int) -> Iterator[Finding]:
    """Whether a study fits: its stores, checkpoints and logs take a few hundred megabytes."""
    verdict: Verdict = "wrong" if free < _SCARCE_BYTES else "note" if free < _FEW_BYTES else "ok"
    yield Finding("disk", verdict, f"{free / 1e9:.1f} GB free for {root}")


def _check_devices() -> Iterator[Finding]:
    import torch

    yield Finding("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        text = f"none that torch {torch.__version__} can use; the default configurations need none"
        yield Finding("GPU", "note", text)
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield Finding("GPU", "ok", f"{found.name}, {found.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")


def _check_gl() -> Iterator[Finding]:
    """Each way to render, tried in a process of its own: MuJoCo decides once, and a wrong choice can abort."""
    program = [sys.executable, "-c", "import mujoco; mujoco.GLContext(16, 16).make_current()"]
    working = []
    for backend in ("egl", "osmesa"):
        env = {**os.environ, "MUJOCO_GL": backend}
        with contextlib.suppress(subprocess.SubprocessError):  # it failed, or took too long
            subprocess.run(program, env=env, capture_output=True, timeout=_GL_SECONDS, check=True)
            working.append(f"MUJOCO_GL={backend}")
    if working:
        yield Finding("GL", "ok", f"{' or '.join(working)} renders")
    else:
        advice = "For rendered videos install libosmesa6 (Debian, Ubuntu) and set MUJOCO_GL=osmesa"
        yield Finding("GL", "note", f"neither egl nor osmesa renders; drawings are used instead. {advice}")


def _check_encoder() -> Iterator[Finding]:
    from kalm.language.encoder import DEFAULT_MODEL, SentenceEncoder

    try:
        size = SentenceEncoder(cache_dir=None).encode(["is it there?"]).shape[1]
        yield Finding("sentence encoder", "ok", f"{DEFAULT_MODEL}, {size} numbers, digest as published")
    except (DataError, ImportError, OSError) as error:
        yield Finding("sentence encoder", "wrong", str(error))
