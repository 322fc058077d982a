"""A study file: which stages there are and in which order.

    name: clevr_robot_mine
    root: checkpoints            # folder below which everything is written
    seeds: [0, 1, 2]
    defaults:                    # by verb: files go on top of a stage's own, values of `with` beneath its own
      fit: {config: conf/overlay/smoke.yaml}
    stages:
      - {name: imagine, verb: predict, config: conf/clevr_robot/imagine.yaml}
      - name: bc
        config: conf/clevr_robot/bc.yaml             # or a list, as --config may be given again
        experiment: clevr_robot/bc/mine              # without it, the file's own
        with: {data.imagined: ["${imagine}"], trainer.max_steps: 500}   # what would be --data.imagined=[...] and so on
        seeds: together
        test: true

A stage is a verb, ``fit`` if none is said, its configuration and what differs from it. ``seeds: true`` runs it once a
seed, ``seeds: together`` once for all that follow each other, which are trained side by side. ``test: true`` adds the
stage ``<name>-test``, once a seed, with the same configuration; a mapping in place of ``true`` is more ``with`` for it.
``${...}`` names a key of the file, or a stage before this one, for what that stage writes; ``${seed}``,
``${num_seeds}`` and ``${run}`` (name of the run's folder) can be used in stages with seeds. A stage reads whatever
its configuration names of what earlier stages wrote, and ``reads``, files of other origin; it writes what its verb
writes and ``writes``, paths in its run folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kalm.core.errors import KalmError
from kalm.runs.folder import describe_folder
from kalm.study.stage import TOGETHER, Stage, for_seeds, make_stage, stage_fingerprint

_STUDY_KEYS = ("name", "root", "seeds", "defaults", "stages", "report")
_STAGE_KEYS = ("name", "verb", "config", "experiment", "with", "seeds", "test", "reads", "writes")
_DEFAULT_KEYS = ("config", "with")
_SEED_KEYS = ("seed", "num_seeds", "run")
_ENTRY = "  "  # what is being resolved, under a name that no file uses
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Study:
    """A chain of stages and the report at its end.

    Attributes:
        name: Folder name below ``<root>/study``.
        root: Folder below which everything is written.
        seeds: Seeds of the stages that are run once a seed.
        stages: All stages in the order in which they are run.
        definition: For the report: name, root, seeds and report as in the file, and a command and outputs a stage, in
            which ``${seed}`` and its like are left standing.
    """

    name: str
    root: str
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    definition: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the study keeps its report."""
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
    file |= {key: value for key, value in (("root", root), ("seeds", seeds)) if value is not None}
    try:
        return _study(file)
    except KalmError as error:
        raise KalmError(f"study file {path}: {error}") from error


def combined_fingerprint(study: Study) -> str:
    """SHA-256 of all stages and of the report section: what decides the report."""
    content = [[stage_fingerprint(stage) for stage in study.stages], dict(study.definition)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise KalmError(f"study file {path} does not exist; {describe_folder(path.parent)}")
    try:
        file = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError) as error:
        raise KalmError(f"study file {path} cannot be read: {error}") from error
    if not isinstance(file, dict):
        raise KalmError(f"study file {path} is no mapping; its keys are {', '.join(_STUDY_KEYS)} and your own")
    return {str(key): value for key, value in file.items()}


def _study(file: Mapping[str, Any]) -> Study:
    for key in ("name", "root", "stages"):
        if key not in file:
            raise KalmError(f"{key!r} is missing; its keys are {', '.join(_STUDY_KEYS)} and your own")
    names = {key: value for key, value in file.items() if key not in ("stages", "defaults")}
    plain = _resolved({key: names.get(key) for key in ("name", "root", "seeds", "report")}, names)
    name, root, seeds = str(plain["name"]), str(plain["root"]), plain["seeds"] or []
    if not _NAME.fullmatch(name):
        raise KalmError(f"study name {name!r} cannot name a folder; use letters, digits and _ . - only")
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise KalmError(f"seeds are {seeds}; they must be whole numbers of at least 0, each once")
    templates, stages = list[Stage](), list[Stage]()
    for entry in _entries(file):
        if entry["name"] in names:
            raise KalmError(f"several stages or keys are called {entry['name']}; give each its own name")
        written = [output for stage in (*stages, *templates) for output in stage.outputs]
        template = _template(entry, names, root, written)
        names[entry["name"]] = template.outputs[entry["seeds"] == TOGETHER]  # that of one seed
        templates.append(template)
        groups = _groups(seeds, is_joint=entry["seeds"] == TOGETHER) if entry["seeds"] else []
        if entry["seeds"] and not groups:
            raise KalmError(f"stage {entry['name']!r} is run for seeds, but there are no seeds")
        stages += [for_seeds(template, group) for group in groups] or [template]
    first = {(stage.verb, stage.outputs[0]): stage.label for stage in reversed(stages)}
    for stage in stages:
        other = first[stage.verb, stage.outputs[0]]
        if other != stage.label:
            raise KalmError(f"stages {other} and {stage.label} both write {stage.outputs[0]}; give one an experiment")
    shown = [{"name": one.name, "command": [*one.command], "outputs": [*one.outputs]} for one in templates]
    return Study(name, root, tuple(seeds), tuple(stages), {**plain, "stages": shown})


def _entries(file: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All stages with every key filled in, each followed by the test that it asks for."""
    defaults = _mapping(file.get("defaults"), "defaults", None)
    for given in file["stages"] or []:
        where = f"stage {given.get('name', '?')!r}" if isinstance(given, dict) else "a stage"
        entry = _complete(_mapping(given, where, _STAGE_KEYS), defaults, where)
        yield entry
        if entry["test"]:
            options = {**entry["with"], **(entry["test"] if isinstance(entry["test"], dict) else {})}
            own = {"name": f"{entry['name']}-test", "verb": "test", "with": options, "seeds": bool(entry["seeds"])}
            yield _complete({"config": entry["config"], "experiment": entry["experiment"], **own}, defaults, where)


def _complete(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A stage with every key, and with the defaults of its verb."""
    name, verb = str(given.get("name", "")), str(given.get("verb", "fit"))
    seeds, test = given.get("seeds", False), given.get("test", False)
    default = _mapping(defaults.get(verb), f"defaults of {verb}", _DEFAULT_KEYS)
    if not _NAME.fullmatch(name):
        raise KalmError(f"a stage has name {name!r}; it needs one of letters, digits and _ . - only")
    if seeds not in (True, False, TOGETHER):
        raise KalmError(
            f"seeds of {where} is {seeds!r}; it is true (run once a seed), false or {TOGETHER} (run once for all seeds "
            "that follow each other)"
        )
    if not isinstance(test, bool | dict) or (test and verb != "fit"):
        raise KalmError(f"test of {where}, whose verb is {verb}, is {test!r}; it is true or more `with`, after a fit")
    lists = {key: [*_list(given.get(key)), *_list(default.get(key))] for key in ("config", "reads", "writes")}
    options = {**_mapping(default.get("with"), f"with of {verb}"), **_mapping(given.get("with"), f"with of {where}")}
    scalars = {"name": name, "verb": verb, "experiment": given.get("experiment"), "seeds": seeds, "test": test}
    return {**scalars, **lists, "with": options}


def _mapping(value: Any, where: str, allowed: Sequence[str] | None = None) -> dict[str, Any]:
    """A mapping, empty if there is none, with no key but those that are allowed."""
    if not isinstance(value, dict | None):
        raise KalmError(f"{where} is {value!r}; it must be a mapping{' of ' + ', '.join(allowed) if allowed else ''}")
    for key in value or {}:
        if allowed and key not in allowed:
            raise KalmError(f"unknown key {key!r} in {where}; did you mean {_nearest(str(key), allowed)!r}?")
    return value or {}


def _list(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [] if value is None else [value])]


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _groups(seeds: list[int], is_joint: bool) -> list[list[int]]:
    """Seeds one by one; or joined where they follow each other without a gap: 0, 1, 2, 5 -> 0, 1, 2 and 5."""
    groups: list[list[int]] = []
    for seed in seeds:
        if is_joint and groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _template(entry: Mapping[str, Any], names: Mapping[str, Any], root: str, written: Sequence[str]) -> Stage:
    """A stage in which only ``${seed}`` and its like are left to be replaced."""
    seeds = {key: f"\\${{{key}}}" for key in _SEED_KEYS} if entry["seeds"] else {}
    try:
        return make_stage(_resolved(entry, {**names, **seeds}), root, written)
    except KalmError as error:
        raise KalmError(f"stage {entry['name']!r}: {error}") from error


def _resolved(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with every ``${...}`` replaced by what ``names`` says."""
    try:
        scope = OmegaConf.create({**names, _ENTRY: dict(values)})
        resolved: Any = OmegaConf.to_container(scope[_ENTRY], resolve=True)
    except OmegaConfBaseException as error:
        missing = re.search(r"'(.+)' not found", str(error))
        near = f"; did you mean {_nearest(missing[1], names)!r}?" if missing else ""
        raise KalmError(
            f"{str(error).splitlines()[0]}{near}. ${{...}} may name a key of the file, a stage before this one, or "
            f"{', '.join(_SEED_KEYS)} in a stage with seeds: true or {TOGETHER}"
        ) from error
    return dict(resolved)
