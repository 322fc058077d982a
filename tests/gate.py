"""Says whether two runs of the smoke studies came to the same numbers: ``python -m tests.gate OLD_ROOT NEW_ROOT``.

For a redesign, which moves code and must not move a number. Compared to the last bit: observations, actions, rewards,
ends and verdicts of every rollout store, with the goals and sentences they belong to; ``metrics.csv`` but for times;
``results.jsonl``, ``tasks.json`` and ``rejected.json``. Files are read as they lie, without kalm, so that old and new
code need not understand each other's.
"""

from __future__ import annotations

import csv
import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

_COLUMNS = {  # what a column is called here -> the ends of the paths it has had
    "observation": ("transitions/observation.memmap",),
    "action": ("transitions/action.memmap",),
    "next observation": ("transitions/next/observation.memmap",),
    "reward": ("transitions/next/reward.memmap",),
    "terminated": ("transitions/next/terminated.memmap",),
    "truncated": ("transitions/next/truncated.memmap",),
    "length": ("rollouts/length.memmap",),
    "success": ("rollouts/is_success.memmap", "labels/domain_rule/met.memmap"),
}
_TIMES = ("throughput/", "time", "seconds")


def digests(root: Path) -> dict[str, Any]:
    """Everything below ``root`` that must stay the same: name -> value."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("manifest.json")):
        found |= {f"{path.parent.relative_to(root)} {name}": value for name, value in _store(path.parent).items()}
    for path in sorted(root.rglob("metrics*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {key: value for key, value in row.items() if value and not key.startswith(_TIMES)}
                for row in csv.DictReader(file)
            ]
        found |= {f"{path.relative_to(root)}:{number}": row for number, row in enumerate(rows)}
    for name in ("results.jsonl", "tasks.json", "rejected.json"):
        for path in sorted(root.rglob(name)):
            lines = path.read_text(encoding="utf-8").splitlines() if name.endswith("l") else [path.read_text("utf-8")]
            found |= {f"{path.relative_to(root)}:{number}": json.loads(line) for number, line in enumerate(lines)}
    return found


def _store(folder: Path) -> dict[str, Any]:
    """Digest of every column, and of the list of goals and sentences, a rollout each."""
    columns = {name: _digest(folder, ends) for name, ends in _COLUMNS.items()}
    flags = {path.stem: path for path in (folder / "rollouts" / "violations").glob("*.memmap")}
    flags |= {path.parent.name: path for path in (folder / "labels").glob("*/num_marked.memmap")}
    columns |= {f"violations {flag}": sha256(path.read_bytes()).hexdigest()[:16] for flag, path in flags.items()}
    sentences = [json.loads(line) for line in (folder / "instructions.jsonl").read_text("utf-8").splitlines()]
    ids = memoryview((folder / "rollouts" / "instruction_id.memmap").read_bytes()).cast("i")
    said = json.dumps([sentences[number] for number in ids], sort_keys=True)
    return {**columns, "sentences": sha256(said.encode()).hexdigest()[:16]}


def _digest(folder: Path, ends: tuple[str, ...]) -> str:
    path = next((folder / end for end in ends if (folder / end).is_file()), None)
    return "absent" if path is None else sha256(path.read_bytes()).hexdigest()[:16]


def main(old: str, new: str) -> int:
    """Print every difference; 0 if there is none."""
    before, after = digests(Path(old)), digests(Path(new))
    different = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    for key in different[:40]:
        sys.stdout.write(f"{key}\n  old {str(before.get(key))[:400]}\n  new {str(after.get(key))[:400]}\n")
    sys.stdout.write(f"{len(before)} values before, {len(after)} after, {len(different)} differ\n")
    return 1 if different or not before else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
