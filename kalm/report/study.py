"""What a study file says about its report: which rows, seeds and folders. A report without a study takes all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kalm.core.errors import DataError
from kalm.report.paper import ABLATIONS, OTHER_BEHAVIOUR, Cell
from kalm.report.results import EpisodeRow
from kalm.report.rollout_tables import ComparedImagination
from kalm.report.success_table import ReportRow
from kalm.runs.folder import STORE

_ROW_KEYS = ("experiment", "label", "baseline", "replications", "line", "at")
_COMPARED_KEYS = ("experiment", "label", "paper")


def study_rows(study: Mapping[str, Any] | None, results: Sequence[EpisodeRow]) -> list[ReportRow]:
    """The rows that the study asks for; without any, every experiment that has results.

    Raises:
        DataError: If a row has an unknown key or no experiment, or is half a point of a curve.
    """
    listed = ((study or {}).get("report") or {}).get("rows")
    if listed is None:
        return [ReportRow(name, name) for name in sorted({row.experiment for row in results})]
    entries = _entries(listed, "row", _ROW_KEYS)
    rows = [ReportRow(**{**entry, "replications": tuple(entry.get("replications") or ())}) for entry in entries]
    for row in rows:
        if (row.line is None) != (row.at is None):
            raise DataError(f"{row.experiment} has line {row.line!r} and at {row.at!r}; a point of a curve has both")
    return rows


def curve_quantity(study: Mapping[str, Any] | None) -> str:
    """What the points of the study's curves differ in, for the axis; by default "at"."""
    return str(((study or {}).get("report") or {}).get("curve") or "at")


def compared_imagination(study: Mapping[str, Any] | None) -> list[ComparedImagination]:
    """Whose imagined rollouts the study compares; none without a study, or if it does not ask for it.

    Raises:
        DataError: If an entry has an unknown key, no experiment or an unknown column of the paper.
    """
    listed = ((study or {}).get("report") or {}).get("imagined") or []
    entries = _entries(listed, "imagined entry", _COMPARED_KEYS)
    for column in (entry.get("paper") for entry in entries):
        if column not in (None, *ABLATIONS):
            raise DataError(f"paper is {column!r} in the study's report section; allowed: {', '.join(ABLATIONS)}")
    return [ComparedImagination(entry["experiment"], entry["label"], entry.get("paper")) for entry in entries]


def reported_behaviour(study: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Cell]] | None:
    """The table of the paper that the study names, to stand below its own; None if it names none.

    Raises:
        DataError: If there is no such table.
    """
    name = ((study or {}).get("report") or {}).get("paper")
    if name not in (None, *OTHER_BEHAVIOUR):
        known = ", ".join(OTHER_BEHAVIOUR)
        raise DataError(f"paper is {name!r} in the study's report section; allowed: {known}; none for the main table")
    return None if name is None else OTHER_BEHAVIOUR[name]


def _entries(listed: Sequence[Mapping[str, Any]], kind: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a list in the report section, each with a label."""
    for number, entry in enumerate(listed, start=1):
        if set(entry) - set(keys) or "experiment" not in entry:
            raise DataError(
                f"{kind} {number} of the study's report section is {dict(entry)}; allowed keys: {', '.join(keys)}, "
                "of which experiment is required"
            )
    return [{**entry, "label": entry.get("label") or entry["experiment"]} for entry in listed]


def study_seeds(study: Mapping[str, Any] | None) -> list[int]:
    """The seeds of the stages that are run once a seed; empty without a study."""
    return list((study or {}).get("seeds") or [])


def experiment_seeds(study: Mapping[str, Any] | None, experiment: str) -> list[int]:
    """The seeds that a study runs an experiment with; empty if it runs it once only, and without a study."""
    outputs = [str(output) for stage in (study or {}).get("stages", []) for output in stage.get("outputs") or []]
    own = [output for output in outputs if f"/{experiment}/" in output]
    return study_seeds(study) if not own or any("${seed}" in output for output in own) else []


def belongs_to_study(row: EpisodeRow, study: Mapping[str, Any] | None, report_rows: Sequence[ReportRow]) -> bool:
    """Whether an episode is of an experiment and a seed that the study has; a root may hold other runs as well."""
    seeds = study_seeds(study)
    return any(shown.owns(row) for shown in report_rows) and (not seeds or row.seed in seeds)


def study_folders(study: Mapping[str, Any] | None) -> list[Path]:
    """The folders that the study's stages write to, as far as they exist; empty when it does not say."""
    folders = []
    for stage in (study or {}).get("stages", []):
        for output in stage.get("outputs") or []:
            for seed in study_seeds(study) or [0]:
                path = Path(str(output).replace("${seed}", str(seed)))
                # Beside a store made by a run stands what the run says of it.
                folders.append(path if path.is_dir() and path.name != STORE else path.parent)
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
