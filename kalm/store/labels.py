"""Labels: what a judge wrote about a store, in a folder beside its data; any number of judges may write their own.

```
store/labels/<name>/
  label.json           written last: a label without it is unfinished
  met.memmap           whether the goal is met; for a veto: whether nothing was marked
  score.memmap         how sure the judge is, in [0, 1]
  abstained.memmap     where it would not say
  num_marked.memmap    of a veto only: steps it holds against the rollout
  goals.jsonl          of goals x states only: row g has the goal and the sentence of goal g
  goal.memmap          of goals x states only: which goal a row is about
  state.memmap         of goals x states only: which state, a row of the store's state table
```

A label has one of two shapes. ``rollout``: a row for each of the store's R rollouts, about its own goal.
``goal_state``: as many rows as somebody asked for, each about one goal and one state. Where states have no table
(vectors), state n is the next observation of transition n.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tensordict import TensorDict
from torch import Tensor

from kalm.core.durable import HashedFile
from kalm.core.errors import DataError
from kalm.core.validation import raise_problems
from kalm.judging.judge import DOMAIN_RULE, Judge, Verdict, rule_provenance
from kalm.store import layout
from kalm.store.checking import Checked, changed_files
from kalm.store.row_tables import RowNumbers
from kalm.store.sealing import (
    ShardFolder,
    bytes_tensor,
    command_to_finish,
    file_problems,
    manifest_bytes,
    shard_facts,
    shard_files,
    to_json,
)

if TYPE_CHECKING:
    from kalm.store.reader import RolloutStore

LABEL_MANIFEST = "label.json"
ROLLOUT, GOAL_STATE = "rollout", "goal_state"
_GOALS = "goals.jsonl"
_REMEDY = "Delete the label's folder and have the judge write it again."


def label_folder(name: str) -> str:
    """Where a label lies in its store."""
    return f"{layout.LABELS}/{layout.check_name('label', name)}"


def label_facts(shape: str, is_veto: bool, provenance: Mapping[str, Any], store_manifest_sha256: str) -> dict[str, Any]:
    """What a label's manifest says but for its files and ``num_rows``."""
    facts: dict[str, Any] = {"shape": shape, "is_veto": is_veto, "provenance": dict(provenance)}
    return facts | {"store_manifest_sha256": store_manifest_sha256}


@dataclass(frozen=True, eq=False)
class Labels:
    """A finished label, open for reading by private memory maps; L verdicts, L = R for a label a rollout.

    Attributes:
        provenance: What the judge said of itself, in plain JSON types.
        is_veto: Whether it marks what is implausible rather than saying that goals are met.
        met: Bool, shape (L,).
        score: Float32 in [0, 1], shape (L,).
        abstained: Bool, shape (L,).
        num_marked: Int32, shape (L,); of a veto only.
        goal: Row of ``goals``, int32, shape (L,); of goals x states only.
        state: Which state of the store, int32, shape (L,); of goals x states only.
        goals: Goal (JSON form) and instruction of each goal; of goals x states only.
    """

    provenance: Mapping[str, Any]
    is_veto: bool
    met: Tensor
    score: Tensor
    abstained: Tensor
    num_marked: Tensor | None = None
    goal: Tensor | None = None
    state: Tensor | None = None
    goals: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        """How many verdicts it holds, L."""
        return len(self.met)


def label_manifest(store: Path, name: str) -> bytes:
    """Content of a label's manifest.

    Raises:
        DataError: If the store has no such label, or it is unfinished; the message has those that are there.
    """
    path = store / label_folder(name) / LABEL_MANIFEST
    if path.is_file():
        return path.read_bytes()
    if command := command_to_finish(path.parent):
        raise DataError(f"label {path.parent} is unfinished; run this again, it goes on where it stopped: {command}")
    found = sorted(other.parent.name for other in (store / layout.LABELS).glob(f"*/{LABEL_MANIFEST}"))
    raise DataError(f"rollout store {store} has no label {name!r}; it has {', '.join(found) or 'none'}")


def read_labels(store: Path, name: str, manifest_sha256: str, num_rollouts: int, verify: bool = False) -> Labels:
    """Open a label of the store whose manifest has that SHA-256; ``verify`` reads every file, changed or not.

    Raises:
        DataError: If it is missing, unfinished, damaged, or about another store; every problem is named.
    """
    folder = store / label_folder(name)
    try:
        facts = json.loads(label_manifest(store, name))
        columns = _columns(facts["shape"], facts["is_veto"])
        num_rows, files = int(facts["num_rows"]), dict(facts["files"])
        problems = list(_problems(facts, manifest_sha256, num_rollouts))
        problems += file_problems(folder, LABEL_MANIFEST, _expected(facts, columns), files)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / LABEL_MANIFEST} is no label's manifest: {error!r}. {_REMEDY}") from error
    what = f"label {folder} is damaged or of another store"
    raise_problems(what, problems, _REMEDY)
    checked = Checked(folder, files, verify)
    raise_problems(what, changed_files(folder, files, checked.unknown), _REMEDY)
    checked.note()
    mapped = layout.map_columns(store, label_folder(name), columns, num_rows)
    lines = (folder / _GOALS).read_text(encoding="utf-8").splitlines() if _GOALS in files else []
    goals = [json.loads(line) for line in lines]
    return Labels(facts["provenance"], facts["is_veto"], **{str(key): mapped[key] for key in mapped}, goals=goals)


def old_verdicts(rollouts: TensorDict, name: str, known: Sequence[str], domain: str) -> Labels:
    """A label of a store of schema version 1 or 2, out of the columns of its rollouts.

    Raises:
        DataError: If ``name`` is not among ``known``, the names that the store has verdicts of.
    """
    if name not in known:
        raise DataError(f"a rollout store without labels has no label {name!r}; it has {', '.join(known)}")
    if name == DOMAIN_RULE:
        columns = {"met": rollouts["is_success"], "score": rollouts["is_success"].float()}
    else:
        marked = rollouts["violations", name]
        score = (1 - marked.double() / rollouts["length"].maximum(marked)).float()
        columns = {"met": marked == 0, "score": score, "num_marked": marked}
    abstained = torch.zeros_like(columns["met"])
    return Labels(rule_provenance(domain), name != DOMAIN_RULE, **columns, abstained=abstained)


class LabelWriter:
    """Appends a judge's verdicts to a label of a finished store, shard by shard, and seals it."""

    def __init__(
        self,
        store: RolloutStore,
        judge: Judge,
        shape: str,
        made_by: Mapping[str, Any] | None = None,
        command: str | None = None,
        name: str | None = None,
    ) -> None:
        """Begin a label, or go on with one that was begun with the same store, judge and settings.

        Args:
            store: What is judged.
            judge: Who judges; its name is the label's unless there is another.
            shape: ``rollout`` or ``goal_state``.
            made_by: Plain JSON types beyond the judge's provenance that decide what is asked.
            command: Command line that goes on with it when it is found unfinished; None takes that of this process.
            name: The label's.

        Raises:
            DataError: If the label is finished, or was begun otherwise.
        """
        if shape not in (ROLLOUT, GOAL_STATE):
            raise DataError(f"shape is {shape!r}; it must be {ROLLOUT} or {GOAL_STATE}")
        self._store, self._folder = store, store.path / label_folder(name or judge.name)
        provenance = {**judge.provenance, **(made_by or {})}
        self._facts = label_facts(shape, judge.is_veto, provenance, store.manifest_sha256)
        self._columns = _columns(shape, judge.is_veto)
        self._shards = ShardFolder(self._folder, LABEL_MANIFEST, "label", self._facts, command)

    @property
    def finished_shards(self) -> set[str]:
        """Names of the shards that are complete on disk."""
        return self._shards.finished

    def append(
        self,
        shard: str,
        verdict: Verdict,
        goals: Sequence[Mapping[str, Any]] = (),
        goal: NDArray[np.integer[Any]] | None = None,
        state: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """Store verdicts, whole or not at all: about the next rollouts of the store, or about pairs of goal and state.

        Args:
            shard: Its name; shards follow each other in the order of their names.
            verdict: Of S rows.
            goals: Plain JSON types of each goal: its JSON form under ``goal``, a sentence under ``instruction``.
            goal: Which of ``goals`` each verdict is about, shape (S,).
            state: Which state of the store, shape (S,).

        Raises:
            DataError: If the shard exists, the label is of another shape, or a row names no goal or state.
        """
        places = {}
        if goal is not None and state is not None:
            places = {"goal": (goal, len(goals)), "state": (state, self._store.num_states)}
        shape = GOAL_STATE if places else ROLLOUT
        if shape != self._facts["shape"]:
            raise DataError(f"label {self._folder} has the shape {self._facts['shape']}, these verdicts are {shape}")
        problems = [
            f"{key}: shape {rows.shape}, from {rows.min(initial=0)} to {rows.max(initial=0)}; expected shape "
            f"({len(verdict)},) in [0, {size})"
            for key, (rows, size) in places.items()
            if rows.shape != (len(verdict),) or ((rows < 0) | (rows >= size)).any()
        ]
        what = f"shard {shard!r} of {self._folder} cannot be stored"
        raise_problems(what, problems, "Mend what makes these labels.")
        values = {**vars(verdict), **{key: rows for key, (rows, _) in places.items()}}
        columns = {str(key): torch.from_numpy(values[str(key)]).to(form.dtype) for key, form in self._columns.items()}
        columns[_GOALS] = bytes_tensor(b"".join(to_json(dict(row)) + b"\n" for row in goals))
        self._shards.write(self._shards.check_new(shard), columns, {"num_rows": len(verdict)})

    def finish(self) -> Labels:
        """Merge the shards, in the order of their names, and seal the label.

        Raises:
            DataError: If a label a rollout has more or fewer rows than the store has rollouts.
        """
        shards, goals, is_sparse = shard_files(self._folder), RowNumbers(), self._facts["shape"] == GOAL_STATE
        num_rows = sum(shard_facts(shard)["num_rows"] for shard in shards)
        if not is_sparse and num_rows != self._store.num_rollouts:
            raise DataError(f"label {self._folder} has {num_rows} rows of {self._store.num_rollouts} rollouts; go on")
        if not num_rows:
            raise DataError(f"no verdict was stored in {self._folder}; a label needs at least one")
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(HashedFile(self._folder / name))
                for name in (*(f"{key}.memmap" for key in self._columns), *([_GOALS] if is_sparse else []))
            }
            for shard in shards:
                with safe_open(shard, framework="pt") as tensors:
                    numbers, new = goals.add(tensors.get_tensor(_GOALS).numpy().tobytes().splitlines(keepends=True))
                    if is_sparse:
                        files[_GOALS].write(b"".join(new))
                    for key in self._columns:
                        values = tensors.get_tensor(str(key))
                        if key == "goal":
                            values = torch.from_numpy(numbers)[values.long()].to(values.dtype)
                        files[f"{key}.memmap"].write(values.numpy().tobytes())
            digests = {name: file.close() for name, file in files.items()}
        self._shards.seal(manifest_bytes(self._folder, {**self._facts, "num_rows": num_rows}, digests), digests)
        return self._store.labels(self._folder.name)


def _columns(shape: str, is_veto: bool) -> dict[layout.Key, layout.Column]:
    places: tuple[layout.Key, ...] = ("goal", "state") if shape == GOAL_STATE else ()
    return dict.fromkeys(places, layout.Column(torch.int32)) | layout.label_columns(is_veto)


def _problems(facts: Mapping[str, Any], manifest_sha256: str, num_rollouts: int) -> Iterator[str]:
    if facts["store_manifest_sha256"] != manifest_sha256:
        yield f"store_manifest_sha256: {facts['store_manifest_sha256']}, that of the store is {manifest_sha256}"
    if facts["shape"] == ROLLOUT and facts["num_rows"] != num_rollouts:
        yield f"num_rows: {facts['num_rows']}, the store has {num_rollouts} rollouts"


def _expected(facts: Mapping[str, Any], columns: Mapping[layout.Key, layout.Column]) -> dict[str, int | None]:
    """Bytes of each file that there must be."""
    expected: dict[str, int | None] = {_GOALS: None} if facts["shape"] == GOAL_STATE else {}
    return expected | {f"{key}.memmap": form.row_bytes * facts["num_rows"] for key, form in columns.items()}
