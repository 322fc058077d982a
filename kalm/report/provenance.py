"""What a reader needs to make the numbers again: commands, seeds, version, commit, machine, durations."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kalm
from kalm.core.provenance import git_commit
from kalm.report.results import EpisodeRow


def provenance_lines(
    rows: Sequence[EpisodeRow], study: Mapping[str, Any] | None, durations: Mapping[str, float] | None
) -> list[str]:
    """Everything about how the numbers were made, one fact a line.

    Args:
        rows: The episodes that the tables show; experiments, seeds and updates are read off them.
        study: The study file as a mapping; its stages give the commands.
        durations: Stage name -> seconds.
    """
    return [
        *_command_lines(study),
        *_run_lines(rows),
        f"kalm: {kalm.__version__}, commit {git_commit(Path(kalm.__file__).parent)}",
        f"machine: {machine()}",
        *(f"duration: {stage}: {_minutes(seconds)}" for stage, seconds in (durations or {}).items()),
        *([f"duration: all stages: {_minutes(sum(durations.values()))}"] if durations else []),
    ]


def machine() -> str:
    """Operating system, Python, usable cores and processor model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {cores} cores, {_cpu_model()}"
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def _command_lines(study: Mapping[str, Any] | None) -> list[str]:
    """The stages' commands as they are typed; a stage that runs once a seed keeps its ``${seed}``."""
    lines = []
    for stage in (study or {}).get("stages", []):
        command = stage.get("command", [])
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        lines.append(f"command: python -m kalm {shlex.join(words)}")
    return lines


def _run_lines(rows: Sequence[EpisodeRow]) -> list[str]:
    """One line an experiment: its algorithm, its seeds and the update that was evaluated."""
    lines = []
    for experiment in sorted({row.experiment for row in rows}):
        own = [row for row in rows if row.experiment == experiment]
        algorithms = ", ".join(sorted({row.algorithm for row in own}))
        seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in own}))
        updates = ", ".join(str(update) for update in sorted({row.update for row in own}))
        lines.append(f"run: {experiment} ({algorithms}): seeds {seeds}; evaluated at update {updates}")
    return lines


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
