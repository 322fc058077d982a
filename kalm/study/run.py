"""Run a study: its stages one after the other, skipping what is done; then the report.

A stage is done when its outputs exist and a marker holds the fingerprint of all that decides them: the command, the
configuration files, the inputs, the version of kalm. Markers belong to outputs rather than to a study, so two studies
share the stages that they have in common, and neither takes what the other has written over for its own. There is no
scheduler here: to spread seeds over machines, run with ``--seeds`` on each.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

import kalm
from kalm.core.durable import file_sha256, write_durably
from kalm.core.errors import KalmError
from kalm.runs.folder import LAST, describe_folder
from kalm.study.definition import Stage, Study

_MANIFEST, _LABEL_MANIFEST = "manifest.json", "label.json"  # of a rollout store, of a label beside it
Call = Callable[[list[str]], int]
Outcome = Literal["done before", "done", "resumed"]

# They add to what they find; fit has --overwrite, test replaces its own lines.
_REMADE_VERBS = ("collect", "label", "solve", "predict")


@dataclass(frozen=True)
class Marker:
    """What is known about the last attempt at a stage.

    Attributes:
        study: Name of the study that made it.
        fingerprint: Of all that decides the result.
        is_finished: Whether the stage came to its end.
        seconds: How long the attempt took; 0 while it runs.
    """

    study: str
    fingerprint: str
    is_finished: bool
    seconds: float


def run_study(study: Study, console: Console, call: Call, redo: list[str] | None = None) -> int:
    """Run every stage that is not done or named in ``redo``, then write the report.

    ``call`` runs one command line of kalm and returns its exit code.

    Returns:
        0, or the exit code of the stage that failed; nothing after it is run.

    Raises:
        KalmError: If a stage is to be run again that does not exist, or one does not write what it should.
    """
    redo = redo or []
    unknown = sorted(set(redo) - {stage.name for stage in study.stages})
    if unknown:
        names = ", ".join(dict.fromkeys(stage.name for stage in study.stages))
        raise KalmError(f"--redo {', '.join(unknown)}: no such stage; the stages are {names}")
    outcomes: list[tuple[Stage, Outcome, float]] = []
    for number, stage in enumerate(study.stages, start=1):
        fingerprint = _fingerprint(stage)
        # The marker of the first output, named by its place below the root.
        place = Path(os.path.relpath(stage.outputs[0], study.root)).as_posix().replace("/", "+")
        marker_path = Path(study.root) / "study" / "stages" / f"{stage.verb}+{place}.json"
        marker = _read_marker(marker_path)
        is_same = marker is not None and marker.fingerprint == fingerprint and stage.name not in redo
        if marker and marker.is_finished and is_same and all(Path(path).exists() for path in stage.outputs):
            outcomes.append((stage, "done before", marker.seconds))
            continue
        is_own = marker is not None and (marker.fingerprint == fingerprint or marker.study == study.name)
        command, outcome = _prepare(stage, is_same, is_own)
        console.rule(Text(f"{number}/{len(study.stages)} {stage.label}"))
        console.print(f"python -m kalm {shlex.join(command)}", markup=False, soft_wrap=True)
        start = time.monotonic()
        if is_own or not any(Path(path).exists() for path in stage.outputs):
            _write_marker(marker_path, Marker(study.name, fingerprint, is_finished=False, seconds=0.0))
        code = call(command)
        if code:
            console.print(
                f"stage {stage.label} failed with exit code {code}; mend it and give the same command again: what is "
                "done stays done, and what was interrupted goes on",
                style="red",
                markup=False,
            )
            return code
        missing = [path for path in stage.outputs if not Path(path).exists()]
        if missing:
            raise KalmError(
                f"stage {stage.label} ended well but did not write {', '.join(missing)}; its outputs in the study file "
                "must be paths that its command writes"
            )
        seconds = time.monotonic() - start
        _write_marker(marker_path, Marker(study.name, fingerprint, is_finished=True, seconds=seconds))
        outcomes.append((stage, outcome, seconds))
        _free_memory()
    return _finish(study, outcomes, console)


def _free_memory() -> None:
    """Give back what a stage needed, so that it does not add to what the next one needs."""
    gc.collect()  # a model and its optimizer hang in reference cycles until somebody looks
    gc.freeze()  # what is left are modules and their likes, which stay: no later collection need look at them
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps what was freed


def _prepare(stage: Stage, is_same: bool, is_own: bool) -> tuple[list[str], Outcome]:
    """The command to give, which depends on what an earlier attempt has left.

    It goes on with that attempt if that would have come to the same. What another study or a person has made is left to
    the verb itself, which refuses to touch it.
    """
    checkpoint = next((Path(path) for path in stage.outputs if path.endswith(LAST)), None)
    if stage.verb == "fit" and checkpoint is not None and checkpoint.exists() and is_own:
        if is_same:
            return [*stage.command, "--ckpt_path", "last"], "resumed"
        return [*stage.command, "--overwrite", "true"], "done"
    if stage.verb in _REMADE_VERBS and is_own and not is_same:
        for path in map(Path, stage.outputs):
            made = path.parent if path.name == _LABEL_MANIFEST else path
            if made.is_dir():
                shutil.rmtree(made)
    return list(stage.command), "resumed" if is_same else "done"


def _finish(study: Study, outcomes: list[tuple[Stage, Outcome, float]], console: Console) -> int:
    """Write the report unless it is there for exactly these results; say what was done."""
    marker_path, output = study.folder / "report.json", study.folder / "report"
    content = [[_fingerprint(stage) for stage in study.stages], dict(study.definition)]
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    marker = _read_marker(marker_path)
    has_run = any(outcome != "done before" for _, outcome, _ in outcomes)
    is_new = has_run or marker is None or marker.fingerprint != fingerprint or not (output / "report.md").is_file()
    if is_new:
        from kalm.report import write_report  # brings matplotlib and torch

        durations = {stage.label: seconds for stage, _, seconds in outcomes}
        write_report([study.root], output, study=study.definition, durations=durations, console=console)
        _write_marker(marker_path, Marker(study.name, fingerprint, is_finished=True, seconds=0.0))
        console.print(_summary(study, outcomes))
    else:
        console.print(
            f"study {study.name} is finished: all {len(outcomes)} stages are done. Its report is "
            f"{output / 'report.md'} and {output / 'report.html'}",
            markup=False,
            soft_wrap=True,
        )
    return 0


def _summary(study: Study, outcomes: list[tuple[Stage, Outcome, float]]) -> Table:
    table = Table(title=Text(f"study {study.name}"))
    table.add_column("stage")
    table.add_column("outcome")
    table.add_column("time", justify="right")
    for stage, outcome, seconds in outcomes:
        table.add_row(Text(stage.label), outcome, _clock(seconds))
    table.add_row("all", "", _clock(sum(seconds for _, _, seconds in outcomes)), end_section=True)
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _read_marker(path: Path) -> Marker | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Marker(str(data["study"]), str(data["fingerprint"]), bool(data["is_finished"]), float(data["seconds"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise KalmError(f"marker {path} cannot be read ({error!r}); delete it to run its stage again") from error


def _write_marker(path: Path, marker: Marker) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps({**asdict(marker), "kalm": kalm.__version__}, indent=1) + "\n").encode())


def _fingerprint(stage: Stage) -> str:
    """SHA-256 of everything that decides what a stage writes.

    Raises:
        KalmError: If a configuration file or an input does not exist.
    """
    content = {
        "kalm": kalm.__version__,
        "command": stage.command,
        "configs": {path: _content_digest(stage, path) for path in stage.configs},
        "inputs": {path: _content_digest(stage, path) for path in stage.inputs},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content_digest(stage: Stage, path: str) -> str:
    """Digest of a file, or of a rollout store through its manifest, which holds the digest of every file.

    A label is its own manifest, which holds them, too.
    """
    found = Path(path)
    for file in (found, found / _MANIFEST):
        if file.is_file():
            return file_sha256(file)
    raise KalmError(
        f"stage {stage.label} reads {path}, which is no file and no finished rollout store; "
        f"{describe_folder(found if found.is_dir() else found.parent)}. A stage before it must write it"
    )
