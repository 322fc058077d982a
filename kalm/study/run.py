"""``python -m kalm run``: the stages of a study one after the other, in this process, skipping what is done.

A study is a YAML file: ``name``, ``root``, ``seeds`` and ``stages``. A stage is a command line of kalm, in which
``${root}``, ``${seed}`` and any other top-level key of the file may stand, the paths it reads and those it writes. With
``seeds: true`` it is run once a seed. With ``seeds: together`` it is run once for all seeds that follow each other:
``${seed}`` is the first, ``${num_seeds}`` their number, ``${run}`` the name of their run folder, and an output with
``${seed}`` stands for one a seed. A stage is done when a marker file holds the fingerprint of all that decides its
result (command, configuration files, inputs, version of kalm) and its outputs exist. There is no scheduler here: to
spread seeds over machines, run with ``--seeds`` on each.
"""

from __future__ import annotations

import gc
import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

import kalm
from kalm.cli.usage import usage_error
from kalm.core.durable import write_durably
from kalm.core.errors import KalmError
from kalm.study.definition import Stage, Study, combined_fingerprint, load_study, stage_fingerprint

Call = Callable[[list[str]], int]
Outcome = Literal["done before", "done", "resumed"]

_REMADE_VERBS = ("collect", "predict")  # they add to what they find; fit has --overwrite, test replaces its own lines


@dataclass(frozen=True)
class Marker:
    """What is known about the last attempt at a stage.

    Attributes:
        fingerprint: Of all that decides the result.
        is_finished: Whether the stage came to its end.
        seconds: How long the attempt took; 0 while it runs.
    """

    fingerprint: str
    is_finished: bool
    seconds: float


def run_verb(verb: str, arguments: list[str]) -> int:
    """Run a study.

    Args:
        verb: ``run``.
        arguments: What follows the verb on the command line.

    Returns:
        0, or the exit code of the stage that failed.
    """
    parser = ArgumentParser(prog=f"python -m kalm {verb}", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("study", type=str, help="Study file, for example conf/study/clevr_robot_demo.yaml.")
    parser.add_argument("--root", type=str | None, default=None, help="Folder to write below, in place of the file's.")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="Seeds, in place of the file's.")
    parser.add_argument("--redo", type=str, nargs="+", default=[], help="Names of stages to run even if they are done.")
    try:
        config = parser.parse_args(arguments)
    except ArgumentError as error:
        raise usage_error(error, parser) from error
    study = load_study(config.study, root=config.root, seeds=config.seeds)
    unknown = sorted(set(config.redo) - {stage.name for stage in study.stages})
    if unknown:
        names = ", ".join(dict.fromkeys(stage.name for stage in study.stages))
        raise KalmError(f"--redo {', '.join(unknown)}: no such stage; the stages are {names}")
    return run_study(study, Console(), _call_kalm, redo=config.redo)


def run_study(study: Study, console: Console, call: Call, redo: list[str] | None = None) -> int:
    """Run every stage that is not done, then write the report.

    Args:
        study: What to run.
        console: Where to say what happens.
        call: Runs one command line of kalm and returns its exit code.
        redo: Names of stages to run even if they are done.

    Returns:
        0, or the exit code of the stage that failed; nothing after it is run.
    """
    outcomes: list[tuple[Stage, Outcome, float]] = []
    for number, stage in enumerate(study.stages, start=1):
        fingerprint = stage_fingerprint(stage)
        marker = _read_marker(_marker_path(study, stage))
        if _is_done(stage, marker, fingerprint) and stage.name not in (redo or []):
            outcomes.append((stage, "done before", marker.seconds if marker else 0.0))
            continue
        command, outcome = _prepare(stage, marker, fingerprint, is_redone=stage.name in (redo or []))
        console.rule(Text(f"{number}/{len(study.stages)} {stage.label}"))
        console.print(f"python -m kalm {shlex.join(command)}", markup=False, soft_wrap=True)
        start = time.monotonic()
        _write_marker(_marker_path(study, stage), Marker(fingerprint, is_finished=False, seconds=0.0))
        code = call(command)
        if code:
            console.print(
                f"stage {stage.label} failed with exit code {code}; mend it and give the same command again: what is "
                "done stays done, and what was interrupted goes on",
                style="red",
                markup=False,
            )
            return code
        _check_outputs(stage)
        seconds = time.monotonic() - start
        _write_marker(_marker_path(study, stage), Marker(fingerprint, is_finished=True, seconds=seconds))
        outcomes.append((stage, outcome, seconds))
        gc.collect()  # a model and its optimizer hang in reference cycles until somebody looks
    return _finish(study, outcomes, console)


def _call_kalm(command: list[str]) -> int:
    from kalm.__main__ import main

    return main(command)


def _prepare(stage: Stage, marker: Marker | None, fingerprint: str, is_redone: bool) -> tuple[list[str], Outcome]:
    """The command to give, which depends on what an earlier attempt has left."""
    is_same = marker is not None and marker.fingerprint == fingerprint and not is_redone
    checkpoint = next((Path(path) for path in stage.outputs if path.endswith("last.ckpt")), None)
    if stage.verb == "fit" and checkpoint is not None and checkpoint.exists() and marker is not None:
        # Without a marker the folder is somebody's own run: the verb itself refuses to touch it.
        if is_same:
            return [*stage.command, "--ckpt_path", "last"], "resumed"
        return [*stage.command, "--overwrite", "true"], "done"
    if stage.verb in _REMADE_VERBS and marker is not None and not is_same:
        for path in map(Path, stage.outputs):
            if path.is_dir():
                shutil.rmtree(path)
    return list(stage.command), "resumed" if is_same else "done"


def _is_done(stage: Stage, marker: Marker | None, fingerprint: str) -> bool:
    return (
        marker is not None
        and marker.is_finished
        and marker.fingerprint == fingerprint
        and all(Path(path).exists() for path in stage.outputs)
    )


def _check_outputs(stage: Stage) -> None:
    missing = [path for path in stage.outputs if not Path(path).exists()]
    if missing:
        raise KalmError(
            f"stage {stage.label} ended well but did not write {', '.join(missing)}; its outputs in the study file "
            "must be paths that its command writes"
        )


def _finish(study: Study, outcomes: list[tuple[Stage, Outcome, float]], console: Console) -> int:
    """Write the report unless it is there for exactly these results; say what was done."""
    marker_path, output = study.folder / "report.json", study.folder / "report"
    fingerprint = combined_fingerprint(study)
    marker = _read_marker(marker_path)
    has_run = any(outcome != "done before" for _, outcome, _ in outcomes)
    is_new = has_run or marker is None or marker.fingerprint != fingerprint or not (output / "report.md").is_file()
    if is_new:
        from kalm.report import write_report  # brings matplotlib and torch

        durations = {stage.label: seconds for stage, _, seconds in outcomes}
        write_report([study.root], output, study=study.definition, durations=durations, console=console)
        _write_marker(marker_path, Marker(fingerprint, is_finished=True, seconds=0.0))
    if is_new:
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


def _marker_path(study: Study, stage: Stage) -> Path:
    return study.folder / "stages" / f"{stage.label.replace(' ', '-')}.json"


def _read_marker(path: Path) -> Marker | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Marker(str(data["fingerprint"]), bool(data["is_finished"]), float(data["seconds"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise KalmError(f"marker {path} cannot be read ({error!r}); delete it to run its stage again") from error


def _write_marker(path: Path, marker: Marker) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps({**asdict(marker), "kalm": kalm.__version__}, indent=1) + "\n").encode())
