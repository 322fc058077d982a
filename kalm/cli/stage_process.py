"""Runs a stage of a study: in this process, or in one of its own where it may use several devices.

Lightning starts the processes of the other devices by the command line of the first one, and all of them stay connected
to the end of the process: so a process can be part of one such run only, and must have been started for it alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

_ON_DEVICES = ("fit", "validate", "test", "predict")  # the verbs that can use several
_OPTIONS = ("devices", "num_nodes", "strategy")  # of the trainer, that may ask for several


def run_stage(command: Sequence[str]) -> int:
    """Run one command line of kalm; its exit code."""
    from kalm.__main__ import main

    if command[0] not in _ON_DEVICES or not (_asks_for_devices(command) or _has_devices()):
        return main(list(command))
    with subprocess.Popen([sys.executable, "-m", "kalm", *command]) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it ends as it would have by itself, and is waited for
            raise
    return code if code >= 0 else 128 - code


def _asks_for_devices(command: Sequence[str]) -> bool:
    options = [f"--trainer.{name}" for name in _OPTIONS]
    if any(argument.split("=")[0] in options for argument in command):
        return True
    return any(set(_OPTIONS) & set(_trainer_of(path)) for path in _config_files(command))


def _config_files(command: Sequence[str]) -> Iterator[Path]:
    for number, argument in enumerate(command):
        name, _, value = argument.partition("=")
        if name == "--config":
            yield Path(value or command[number + 1])


def _trainer_of(path: Path) -> dict[str, object]:
    """Options of the trainer in a configuration; what is wrong with it is the verb's to say."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    trainer = config.get("trainer") if isinstance(config, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def _has_devices() -> bool:
    import torch  # which a verb that is run here needs anyway

    return torch.cuda.device_count() > 1  # the trainer takes all that there are, unless it is told otherwise
