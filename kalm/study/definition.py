"""A study file: which stages there are, and what decides the result of each."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import kalm
from kalm.core.durable import file_sha256
from kalm.core.errors import KalmError
from kalm.runs.folder import describe_folder, run_name

_STUDY_KEYS = ("name", "root", "seeds", "stages", "report")
_STAGE_VALUES = ("seed", "num_seeds", "run")
_STAGE_KEYS = ("name", "command", "seeds", "inputs", "outputs")
_TOGETHER = "together"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Stage:
    """One command of a study, for one seed or several if it depends on the seed.

    Attributes:
        name: Its name in the study file.
        seed: The seed it is run for, the first one if there are several; or None.
        num_seeds: How many seeds it is run for; they follow each other.
        command: What follows ``python -m kalm``.
        inputs: Files and rollout stores whose content decides the result.
        outputs: Paths that exist once it is done.
    """

    name: str
    seed: int | None
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    num_seeds: int = 1

    @property
    def label(self) -> str:
        """Name and seed, for people and for the marker's file name."""
        return self.name if self.seed is None else f"{self.name} {run_name(self.seed, self.num_seeds)}"

    @property
    def verb(self) -> str:
        """What the command does."""
        return self.command[0]


@dataclass(frozen=True)
class Study:
    """A chain of stages and the report at its end.

    Attributes:
        name: Folder name below ``<root>/study``.
        root: Folder below which everything is written.
        seeds: Seeds of the stages that are run once a seed.
        stages: All stages in the order in which they are run.
        definition: The study file, resolved but for ``${seed}`` and its like; the report shows its commands and needs
            its rows.
    """

    name: str
    root: str
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    definition: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the study keeps its markers and its report."""
        return Path(self.root) / "study" / self.name


def load_study(path: str | Path, root: str | None = None, seeds: list[int] | None = None) -> Study:
    """Read a study file.

    Args:
        path: YAML file.
        root: Used in place of the file's.
        seeds: Used in place of the file's.

    Raises:
        KalmError: If the file is missing or malformed; the message names the key and what is allowed.
    """
    file = _read(Path(path))
    if root is not None:
        file["root"] = root
    if seeds is not None:
        file["seeds"] = seeds
    for key in ("name", "root", "stages"):
        if key not in file:
            raise KalmError(f"study file {path} lacks {key!r}; its keys are {', '.join(_STUDY_KEYS)} and your own")
    plain = _resolved(file, path, exclude="stages")
    name, chosen = str(plain["name"]), plain.get("seeds") or []
    if not _NAME.fullmatch(name):
        raise KalmError(f"study name {name!r} cannot name a folder; use letters, digits and _ . - only")
    if not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in chosen):
        raise KalmError(f"seeds of study {path} are {chosen}; they must be whole numbers of at least 0")
    stages = [stage for index in range(len(file["stages"])) for stage in _expand(file, index, chosen, path)]
    labels = [stage.label for stage in stages]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise KalmError(f"study file {path} has several stages called {', '.join(repeated)}; give each its own name")
    for key in _STAGE_VALUES:
        file[key] = rf"\${{{key}}}"  # stands for itself where a command is shown rather than run
    definition = _resolved(file, path)
    return Study(name, str(plain["root"]), tuple(chosen), tuple(stages), definition)


def stage_fingerprint(stage: Stage) -> str:
    """SHA-256 of everything that decides what a stage writes.

    Raises:
        KalmError: If a configuration file or an input does not exist.
    """
    configs = [
        value for flag, value in zip(stage.command, stage.command[1:], strict=False) if flag in ("--config", "-c")
    ]
    content = {
        "kalm": kalm.__version__,
        "command": stage.command,
        "configs": {path: _content_digest(stage, path) for path in configs},
        "inputs": {path: _content_digest(stage, path) for path in stage.inputs},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def combined_fingerprint(study: Study) -> str:
    """SHA-256 of all stages and of the report section: what decides the report."""
    content = [[stage_fingerprint(stage) for stage in study.stages], dict(study.definition)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise KalmError(f"study file {path} does not exist; {describe_folder(path.parent)}")
    try:
        file = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError) as error:
        raise KalmError(f"study file {path} cannot be read: {error}") from error
    if not isinstance(file, DictConfig):
        raise KalmError(f"study file {path} is no mapping; its keys are {', '.join(_STUDY_KEYS)} and your own")
    return file


def _expand(file: DictConfig, index: int, seeds: list[int], path: str | Path) -> list[Stage]:
    """One stage, or one for each seed."""
    entry = file["stages"][index]
    if not isinstance(entry, DictConfig):
        raise KalmError(f"study file {path}: a stage is {entry!r}; it must have the keys {', '.join(_STAGE_KEYS)}")
    for key in entry:
        if key not in _STAGE_KEYS:
            close = difflib.get_close_matches(str(key), _STAGE_KEYS, n=1, cutoff=0.0)[0]
            raise KalmError(
                f"study file {path}: unknown key {key!r} in stage {entry.get('name', '?')!r}; did you mean {close!r}?"
            )
    by_seed = entry.get("seeds", False)
    if by_seed not in (True, False, _TOGETHER):
        raise KalmError(
            f"study file {path}: seeds of stage {entry.get('name')!r} is {by_seed!r}; it is true (run once a seed), "
            f"false or {_TOGETHER} (run once for all seeds that follow each other)"
        )
    if by_seed and not seeds:
        raise KalmError(f"study file {path}: stage {entry.get('name')!r} is run for seeds, but there are no seeds")
    if by_seed == _TOGETHER:
        return [_stage(file, index, group, path) for group in _consecutive(seeds)]
    return [_stage(file, index, [seed], path) for seed in seeds] if by_seed else [_stage(file, index, [], path)]


def _consecutive(seeds: list[int]) -> list[list[int]]:
    """Seeds in groups that follow each other without a gap: 0, 1, 2, 5 -> 0, 1, 2 and 5."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _stage(file: DictConfig, index: int, seeds: list[int], path: str | Path) -> Stage:
    """A stage for one seed, for several together, or for none; in its outputs ``${seed}`` is each of them."""
    plain = _resolved_stage(file, index, seeds, seeds[0] if seeds else None, path)
    of_each = [_resolved_stage(file, index, seeds, seed, path) for seed in seeds] or [plain]
    command = [str(part) for part in plain.get("command") or []]
    name = str(plain.get("name", ""))
    if not _NAME.fullmatch(name) or not command:
        raise KalmError(
            f"study file {path}: a stage has name {name!r} and command {command}; it needs a name of letters, digits "
            "and _ . - and a command, a list that starts with a verb"
        )
    inputs = tuple(map(str, plain.get("inputs") or []))
    outputs = tuple(dict.fromkeys(str(output) for one in of_each for output in one.get("outputs") or []))
    return Stage(name, seeds[0] if seeds else None, tuple(command), inputs, outputs, max(1, len(seeds)))


def _resolved_stage(
    file: DictConfig, index: int, seeds: list[int], seed: int | None, path: str | Path
) -> dict[str, Any]:
    scope = file.copy()
    if seed is not None:
        for key, value in zip(_STAGE_VALUES, (seed, len(seeds), run_name(seeds[0], len(seeds))), strict=True):
            scope[key] = value
    try:
        plain: Any = OmegaConf.to_container(scope["stages"][index], resolve=True)
    except OmegaConfBaseException as error:
        name, first = scope["stages"][index].get("name"), str(error).splitlines()[0]
        raise KalmError(
            f"study file {path}, stage {name!r}: {first}. ${{...}} may name root, {', '.join(_STAGE_VALUES)} (in a "
            f"stage with seeds: true or {_TOGETHER}) or a top-level key of the file"
        ) from error
    return plain


def _resolved(file: DictConfig, path: str | Path, exclude: str | None = None) -> dict[str, Any]:
    scope = file.copy()
    if exclude is not None:
        del scope[exclude]
    try:
        container = OmegaConf.to_container(scope, resolve=True)
    except OmegaConfBaseException as error:
        raise KalmError(f"study file {path}: {str(error).splitlines()[0]}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _content_digest(stage: Stage, path: str) -> str:
    """Digest of a file, or of a rollout store through its manifest, which holds the digest of every file."""
    found = Path(path)
    if found.is_dir() and (found / _MANIFEST).is_file():
        return file_sha256(found / _MANIFEST)
    if found.is_file():
        return file_sha256(found)
    raise KalmError(
        f"stage {stage.label} reads {path}, which is no file and no finished rollout store; "
        f"{describe_folder(found if found.is_dir() else found.parent)}. A stage before it must write it"
    )
