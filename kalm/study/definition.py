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
its configuration names of what earlier stages wrote, a label by its name under a key ``label`` beside the store's
folder, and ``reads``, files of other origin; it writes what its verb writes and ``writes``, paths in its run folder. A
``test`` that is no episodes, as that of a proxy reward, says what it writes, and writes that alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kalm.core.errors import KalmError
from kalm.runs.folder import LAST, RESULTS_FILE, STORE, describe_folder, run_name

# verb -> what it leaves in the folder of its run ("" for the folder itself); other verbs have no such folder
_LEFT = {"collect": "", "fit": LAST, "predict": STORE, "validate": RESULTS_FILE, "test": RESULTS_FILE, "solve": STORE}
_LABEL = "label"  # the verb that leaves this in a store, which says when it is finished:
_LABEL_FILE = "labels/{name}/label.json"  # as ``kalm.store.labels`` has it, which would bring torch
_SEED_VERBS = ("collect", _LABEL, "solve")  # that call it so
_FROM_CHECKPOINT = ("predict", "validate", "test")  # they take the last checkpoint of their own run, if not told which
_TOGETHER = "together"
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_STUDY_KEYS = ("name", "root", "seeds", "defaults", "stages", "report")
_STAGE_KEYS = ("name", "verb", "config", "experiment", "with", "seeds", "test", "reads", "writes")
_DEFAULT_KEYS = ("config", "with")
_SEED_KEYS = ("seed", "num_seeds", "run")
_ENTRY = "  "  # what is being resolved, under a name that no file uses
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Stage:
    """One command of a study, for one seed or several if it depends on the seed.

    Attributes:
        seed: The seed it is run for, the first one if there are several; or None.
        command: What follows ``python -m kalm``.
        configs: The configuration files among it.
        inputs: Files and rollout stores whose content decides the result.
        outputs: Paths that exist once it is done; the first tells it from other stages.
        num_seeds: How many seeds it is run for; they follow each other.
    """

    name: str
    seed: int | None
    command: tuple[str, ...]
    configs: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    num_seeds: int = 1

    @property
    def label(self) -> str:
        """Name and seed, for people."""
        return self.name if self.seed is None else f"{self.name} {run_name(self.seed, self.num_seeds)}"

    @property
    def verb(self) -> str:
        """What the command does."""
        return self.command[0]


@dataclass(frozen=True)
class Study:
    """A chain of stages, in the order in which they are run, and the report at its end.

    Attributes:
        name: Folder name below ``<root>/study``.
        root: Folder below which everything is written.
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
    """Read a study file; ``root`` and ``seeds`` take the place of the file's.

    Raises:
        KalmError: If the file is missing or malformed; the message names the key and what is allowed.
    """
    file = _read(Path(path), "study file")
    file |= {key: value for key, value in (("root", root), ("seeds", seeds)) if value is not None}
    try:
        return _study(file)
    except KalmError as error:
        raise KalmError(f"study file {path}: {error}") from error


def _read(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    if not path.is_file():
        raise KalmError(f"{what} {path} does not exist; {describe_folder(path.parent)}")
    try:
        file = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise KalmError(f"{what} {path} cannot be read: {error}") from error
    if not isinstance(file, dict):
        raise KalmError(f"{what} {path} is no mapping of keys to values")
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
        kept = {key: f"\\${{{key}}}" for key in _SEED_KEYS} if entry["seeds"] else {}
        try:
            template = _make_stage(_resolved(entry, {**names, **kept}), root, written)
        except KalmError as error:
            raise KalmError(f"stage {entry['name']!r}: {error}") from error
        names[entry["name"]] = template.outputs[entry["seeds"] == _TOGETHER]  # that of one seed
        templates.append(template)
        groups = _groups(seeds, is_joint=entry["seeds"] == _TOGETHER) if entry["seeds"] else []
        if entry["seeds"] and not groups:
            raise KalmError(f"stage {entry['name']!r} is run for seeds, but there are no seeds")
        stages += [_for_seeds(template, group) for group in groups] or [template]
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
    if seeds not in (True, False, _TOGETHER):
        raise KalmError(
            f"seeds of {where} is {seeds!r}; it is true (run once a seed), false or {_TOGETHER} (run once for all "
            "seeds that follow each other)"
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
            f"{', '.join(_SEED_KEYS)} in a stage with seeds: true or {_TOGETHER}"
        ) from error
    return dict(resolved)


def _make_stage(entry: Mapping[str, Any], root: str, written: Sequence[str]) -> Stage:
    """The stage that an entry comes to, with all keys and every ``${...}`` replaced but ``${seed}`` and its like.

    Of what was ``written`` by the stages before it, it reads what its configuration names.
    """
    verb, configs, is_joint = entry["verb"], tuple(entry["config"]), entry["seeds"] == _TOGETHER
    seed_option = "seed" if verb in _SEED_VERBS else "seed_everything"
    given = {
        "root": root,
        "experiment": entry["experiment"],
        seed_option: "${seed}" if entry["seeds"] else None,
        "model.num_seeds": "${num_seeds}" if is_joint else None,
    }
    is_known = verb in _LEFT or verb == _LABEL
    options = {key: value for key, value in given.items() if value is not None and is_known} | entry["with"]
    settings = {seed_option: 0, **_settings(configs, options)}
    folder, outputs = Path(), []
    if verb in _LEFT:
        if not settings.get("experiment"):
            raise KalmError(f"experiment is missing; give one, or a config that has one; its config is {list(configs)}")
        runs = ("${run}", "seed=${seed}") if is_joint else (f"seed={settings[seed_option]}",)
        folders = [Path(root) / settings["experiment"] / run for run in runs]
        folder, outputs = folders[0], [str(one / _LEFT[verb]) for one in folders]
        if verb == "test" and entry["writes"]:
            outputs = []
    elif verb == _LABEL:
        for key in ("store", "name"):
            if not settings.get(key):
                raise KalmError(f"{key} is missing, which decides where a label lies; its config is {list(configs)}")
        folder = Path(_filled(settings["store"], settings))
        outputs = [_label_file(str(folder), settings["name"])]
    outputs += [str(folder / file) for file in entry["writes"]]
    if not outputs:
        known = ", ".join((*_LEFT, _LABEL))
        raise KalmError(f"nothing says what verb {verb!r} writes; give writes: [...], or one of the verbs {known}")
    inputs = _inputs(settings, written)
    if verb in _FROM_CHECKPOINT and settings.get("ckpt_path", "last") == "last":  # null is for what has no weights
        inputs.append(str(folder / LAST))
    words = [word for config in configs for word in ("--config", config)]
    words += [f"--{key}={_typed(value)}" for key, value in options.items()]
    inputs = list(dict.fromkeys([*inputs, *entry["reads"]]))
    return Stage(entry["name"], None, (verb, *words), configs, tuple(inputs), tuple(outputs))


def _for_seeds(stage: Stage, seeds: Sequence[int]) -> Stage:
    """A stage for one seed or for several that follow each other; it reads and writes what each of them does."""

    def filled(text: str, seed: int) -> str:
        run = run_name(seeds[0], len(seeds))
        return text.replace("${seed}", str(seed)).replace("${num_seeds}", str(len(seeds))).replace("${run}", run)

    return replace(
        stage,
        seed=seeds[0],
        num_seeds=len(seeds),
        command=tuple(filled(word, seeds[0]) for word in stage.command),
        configs=tuple(filled(path, seeds[0]) for path in stage.configs),
        inputs=tuple(dict.fromkeys(filled(path, seed) for path in stage.inputs for seed in seeds)),
        outputs=tuple(dict.fromkeys(filled(path, seed) for path in stage.outputs for seed in seeds)),
    )


def _settings(configs: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of some files and options by its dotted key; the later one counts.

    ``init_args`` is left out of the keys, as it may be on the command line.
    """
    settings: dict[str, Any] = {}

    def put(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            name = ".".join(part for part in f"{prefix}{key}".split(".") if part != "init_args")
            if isinstance(value, Mapping):
                put(f"{name}.", value)
            else:
                for below in [known for known in settings if known.startswith(f"{name}.")]:
                    del settings[below]  # such as the stores of imagined rollouts, where those are set to null
                settings[name] = value

    for config in configs:
        put("", _read(Path(config), "configuration"))
    put("", options)
    return settings


def _inputs(settings: Mapping[str, Any], written: Sequence[str]) -> list[str]:
    """The outputs of earlier stages that stand somewhere in the settings; a checkpoint's folder stands for it."""
    named = set(_strings(list(settings.values())))
    named = {_filled(text, settings) for text in named}
    labels = [value for key, value in settings.items() if key.split(".")[-1] == _LABEL and isinstance(value, str)]
    named |= {_label_file(store, label) for label in labels for store in named}
    return [path for path in written if {path, path.removesuffix(f"/{LAST}")} & named]


def _filled(text: str, settings: Mapping[str, Any]) -> str:
    """A text of a configuration with the settings that it names by ``${...}``."""
    return _INTERPOLATION.sub(lambda key: str(settings.get(key[1], key[0])), text)


def _label_file(store: str, name: str) -> str:
    """What is there once a label of a store is finished."""
    return str(Path(store) / _LABEL_FILE.format(name=name))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _strings(part)


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
