"""Where one run writes: ``<root>/<experiment>/seed=<n>/``, and what a checkpoint name means there.

Policies that are trained side by side write to ``seeds=<first>-<last>/`` together, in the end to ``seed=<n>/`` each.
"""

from __future__ import annotations

import re
from pathlib import Path

from kalm.core.errors import CheckpointError, KalmError

# What a run leaves in its folder, by the stage that writes it.
LAST = "last.ckpt"  # fit: a link to the newest checkpoint
METRICS_FILE = "metrics.csv"  # fit: one row a logged update
VALIDATED_FILE = "validated.json"  # fit: the last update whose validation is written down
RESULTS_FILE = "results.jsonl"  # validation and test: one line an episode
STORE = "store"  # imagination: the folder of the rollout store
REJECTED_FILE = "rejected.json"  # beside it: shard -> reason -> rollouts that no store should hold
TASKS_FILE = "tasks.json"  # beside it: verdicts task by task
SOLVED_FILE = "solved.json"  # solve: how much of each kind of goal could be solved, beside a store of plans
PROXY_FILE = "proxy_reward.json"  # test of a proxy reward: how often it is right

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_NUM_PARTS = 3
_FILES = (VALIDATED_FILE, RESULTS_FILE)
_WRITTEN = ("*.ckpt", "*.ckpt.json", "config*.yaml", "metrics*.csv", *_FILES, "events.out.tfevents.*", ".*.tmp")
_BARE_NAME = re.compile(r"[A-Za-z0-9=_.-]+")


def run_folder(root: str, experiment: str, seed: int, num_seeds: int = 1) -> Path:
    """The folder of a run of ``<domain>/<stage>/<name>`` below a root; ``seed`` is the first of ``num_seeds``.

    Raises:
        KalmError: If ``experiment`` could lead out of ``root``, or holds characters that a path should not.
    """
    parts = experiment.split("/")
    if len(parts) != _NUM_PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise KalmError(
            f"experiment {experiment!r} cannot name a folder below {root!r}; use <domain>/<stage>/<name> with letters, "
            "digits and . _ = + - only, each part starting with a letter or digit, for example clevr_robot/bc/kalm"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise KalmError(f"seed_everything is {seed!r}; a run needs a whole number of at least 0, for example 0")
    return Path(root) / experiment / run_name(seed, num_seeds)


def run_name(seed: int, num_seeds: int = 1) -> str:
    """Name of the folder of a run; ``seed`` is the first of several."""
    return f"seed={seed}" if num_seeds == 1 else f"seeds={seed}-{seed + num_seeds - 1}"


def seed_of(folder: Path) -> int | None:
    """The seed of a run, or the first of several, that writes to ``folder``; None if the folder has another name."""
    match = re.fullmatch(r"seed=(\d+)|seeds=(\d+)-\d+", folder.name)
    return int(match[1] or match[2]) if match else None


def find_checkpoint(name: str, folder: Path, option: str = "--ckpt_path") -> Path:
    """Turn what a user gives as ``--ckpt_path`` into a file.

    Args:
        name: A file; a folder that holds ``last.ckpt``; or a bare name such as ``last`` or ``update=2000``, which is
            looked for in the run's own folder.
        folder: The run's folder.
        option: What the name was given as, for the message.

    Raises:
        CheckpointError: If there is no such file; a run never starts afresh in silence.
    """
    given = Path(name)
    candidates = [given, given / LAST]
    if _BARE_NAME.fullmatch(name):
        candidates = [folder / f"{name}.ckpt", folder / name, *candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    searched = folder if _BARE_NAME.fullmatch(name) else (given if given.is_dir() else given.parent)
    raise CheckpointError(
        f"{option} {name}: no such checkpoint; {describe_folder(searched)}. Give the path of a .ckpt file, or train "
        f"first: the same command with the verb fit and without {option}"
    )


def describe_folder(folder: Path) -> str:
    """What is in a folder, for an error message."""
    if not folder.is_dir():
        nearest = next(parent for parent in folder.absolute().parents if parent.is_dir())
        return f"folder {folder} does not exist; {nearest} holds {_names(nearest)}"
    return f"folder {folder} holds {_names(folder)}"


def _names(folder: Path, most: int = 20) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"


def clear_run(folder: Path) -> None:
    """Delete what a run writes directly into its folder; files of other kinds and folders stay."""
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            if path.is_symlink() or path.is_file():
                path.unlink()
