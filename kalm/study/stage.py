"""One stage of a study: the command it is, what that command reads and what it writes.

Most of it follows from the stage's configuration files, so that a study file need not say it: they name the experiment,
which decides where the run writes, and the stores and checkpoints that it reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import kalm
from kalm.core.durable import file_sha256
from kalm.core.errors import KalmError
from kalm.runs.folder import describe_folder, run_name

_CHECKPOINT, _MANIFEST = "last.ckpt", "manifest.json"
# verb -> what it leaves in the folder of its run ("" for the folder itself); other verbs have no such folder
_LEFT = {"collect": "", "fit": _CHECKPOINT, "predict": "store", "validate": "results.jsonl", "test": "results.jsonl"}
_FROM_CHECKPOINT = ("predict", "validate", "test")  # they take the last checkpoint of their own run, if not told which
TOGETHER = "together"
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Stage:
    """One command of a study, for one seed or several if it depends on the seed.

    Attributes:
        name: Its name in the study file.
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


def make_stage(entry: Mapping[str, Any], root: str, written: Sequence[str]) -> Stage:
    """The stage that an entry of a study file comes to; what differs from seed to seed stands as ``${seed}`` in it.

    Args:
        entry: All keys of a stage, with every other ``${...}`` replaced.
        root: Folder below which everything is written.
        written: Outputs of the stages before it; it reads those that its configuration names.

    Raises:
        KalmError: If a configuration file cannot be read, or nothing says where the stage writes.
    """
    verb, configs, is_joint = entry["verb"], tuple(entry["config"]), entry["seeds"] == TOGETHER
    seed_option = "seed" if verb == "collect" else "seed_everything"
    given = {
        "root": root,
        "experiment": entry["experiment"],
        seed_option: "${seed}" if entry["seeds"] else None,
        "model.num_seeds": "${num_seeds}" if is_joint else None,
    }
    options = {key: value for key, value in given.items() if value is not None and verb in _LEFT} | entry["with"]
    settings = {seed_option: 0, **_settings(configs, options)}
    folder, outputs = Path(), []
    if verb in _LEFT:
        if not settings.get("experiment"):
            raise KalmError(f"experiment is missing; give one, or a config that has one; its config is {list(configs)}")
        runs = ("${run}", "seed=${seed}") if is_joint else (f"seed={settings[seed_option]}",)
        folders = [Path(root) / settings["experiment"] / run for run in runs]
        folder, outputs = folders[0], [str(one / _LEFT[verb]) for one in folders]
    outputs += [str(folder / file) for file in entry["writes"]]
    if not outputs:
        known = ", ".join(_LEFT)
        raise KalmError(f"nothing says what verb {verb!r} writes; give writes: [...], or one of the verbs {known}")
    inputs = _inputs(settings, written)
    if verb in _FROM_CHECKPOINT and settings.get("ckpt_path") in (None, "last"):
        inputs.append(str(folder / _CHECKPOINT))
    words = [word for config in configs for word in ("--config", config)]
    words += [f"--{key}={_typed(value)}" for key, value in options.items()]
    return Stage(
        name=entry["name"],
        seed=None,
        command=(verb, *words),
        configs=configs,
        inputs=tuple(dict.fromkeys([*inputs, *entry["reads"]])),
        outputs=tuple(outputs),
    )


def for_seeds(stage: Stage, seeds: Sequence[int]) -> Stage:
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


def stage_fingerprint(stage: Stage) -> str:
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
                settings[name] = value

    for config in configs:
        put("", _load(config))
    put("", options)
    return settings


def _load(config: str) -> dict[str, Any]:
    path = Path(config)
    if not path.is_file():
        raise KalmError(f"configuration {config} does not exist; {describe_folder(path.parent)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise KalmError(f"configuration {config} cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def _inputs(settings: Mapping[str, Any], written: Sequence[str]) -> list[str]:
    """The outputs of earlier stages that stand somewhere in the settings; a checkpoint's folder stands for it."""
    named = set(_strings(list(settings.values())))
    named = {_INTERPOLATION.sub(lambda key: str(settings.get(key[1], key[0])), text) for text in named}
    return [path for path in written if {path, path.removesuffix(f"/{_CHECKPOINT}")} & named]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


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
