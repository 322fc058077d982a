"""Writes a rollout store: whole shards while rollouts come in, one merge at the end (``sealing.py``).

The merge reads one shard at a time and remembers 16 bytes of each different state. Equal rollouts in equal order give
equal files, however they were cut into shards and however often the run was killed.

A shard holds the columns of ``layout`` under the names they have in the store, but its rollouts, transitions,
instructions, states and provenance are numbered from 0 in the shard; the merge renumbers them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tensordict import TensorDict
from torch import Tensor

from kalm.core import names
from kalm.core.durable import HashedFile, file_sha256, write_durably
from kalm.core.errors import DataError
from kalm.core.rollout import Rollout
from kalm.core.specs import DiscreteAction, Spec
from kalm.core.validation import raise_problems, validate_rollout
from kalm.judging.judge import DOMAIN_RULE, Judge, Verdict, rule_provenance, verdict
from kalm.store import layout
from kalm.store.labels import LABEL_MANIFEST, ROLLOUT, label_facts, label_folder
from kalm.store.layout import END_FILE, ROWS_FILE
from kalm.store.reader import RolloutStore
from kalm.store.row_tables import RowNumbers, TableFiles, number_rows, to_rows
from kalm.store.sealing import ShardFolder, bytes_tensor, manifest_bytes, shard_facts, shard_files, to_json


class RolloutStoreWriter:
    """Appends shards of rollouts to a folder and finishes it into a ``RolloutStore`` with labels beside it."""

    def __init__(
        self,
        path: str | Path,
        domain: str,
        spec: Spec,
        plausibility_flags: Sequence[str],
        made_by: Mapping[str, Any],
        command: str | None = None,
        judges: Sequence[Judge] = (),
        has_optimal_actions: bool = False,
    ) -> None:
        """Begin a store, or go on with one that was begun with the same settings.

        Args:
            path: Folder of the store.
            domain: Name of the domain that the rollouts come from.
            spec: What observations and actions are.
            plausibility_flags: Names of the domain's flags, which every rollout's ``violations`` holds.
            made_by: Plain JSON types that say how the rollouts are made, for the manifest; nothing that differs
                between two equal runs (times, hosts).
            command: Command line that goes on with an unfinished store; None takes that of this process.
            judges: Whose verdicts come with each shard, besides the domain's own.
            has_optimal_actions: Whether it is a store of plans, whose rollouts all have ``optimal_actions``.

        Raises:
            DataError: If the store is finished already, or was begun with other settings, or if a store of plans is
                asked for whose actions are not discrete.
        """
        self.path, self._spec = Path(path), spec
        if has_optimal_actions and not isinstance(spec.action, DiscreteAction):
            raise DataError(f"has_optimal_actions is True; only discrete actions can be listed, not {spec.action}")
        self._has_optimal_actions = has_optimal_actions
        self._flags = tuple(layout.check_name("plausibility flag", flag) for flag in plausibility_flags)
        by_rule = rule_provenance(domain)
        self._judges = {DOMAIN_RULE: (False, by_rule), **dict.fromkeys(self._flags, (True, by_rule))}
        if taken := sorted(self._judges.keys() & {judge.name for judge in judges}):
            raise DataError(f"judges: {', '.join(taken)} would stand in for the domain's own; give them other names")
        self._judges |= {layout.check_name("label", judge.name): (judge.is_veto, judge.provenance) for judge in judges}
        self._given = {judge.name for judge in judges}
        self._description = {
            "schema_version": layout.SCHEMA_VERSION,
            "domain": layout.check_name("domain", domain),
            "spec": spec.to_json(),
            "plausibility_flags": [name for name, (is_veto, _) in self._judges.items() if is_veto],
            "made_by": dict(made_by),
        }
        if has_optimal_actions:  # not mentioned otherwise, so that such stores stay what they were
            self._description["has_optimal_actions"] = True
        self._columns: layout.Tables = {
            layout.TRANSITIONS: layout.transition_columns(spec, has_optimal_actions),
            layout.ROLLOUTS: layout.rollout_columns(),
            **{label_folder(name): layout.label_columns(is_veto) for name, (is_veto, _) in self._judges.items()},
        }
        self._tables = layout.row_tables(spec)
        self._shards = ShardFolder(self.path, layout.MANIFEST, "rollout store", self._description, command)

    @property
    def finished_shards(self) -> set[str]:
        """Names of the shards that are complete on disk."""
        return self._shards.finished

    @property
    def rejected(self) -> dict[str, Counter[str]]:
        """Rollouts that were left out, by reason, of each finished shard."""
        return {path.stem: Counter(shard_facts(path)["rejected"]) for path in shard_files(self.path)}

    def append(
        self,
        shard: str,
        rollouts: Sequence[Rollout],
        verdicts: Mapping[str, Verdict] | None = None,
        rejected: Mapping[str, int] | None = None,
    ) -> None:
        """Store a shard, whole or not at all.

        Args:
            shard: Its name; shards are merged in the order of their names, so pad numbers with zeros.
            rollouts: Its rollouts; may be empty, so that a shard whose every rollout was rejected counts as done.
            verdicts: Of each judge that the writer was begun with, about these rollouts.
            rejected: Rollouts that were left out of it, by reason.

        Raises:
            DataError: If a rollout is malformed (all problems are listed), the shard exists, or verdicts are missing.
        """
        name = self._shards.check_new(shard)
        problems = []
        for index, rollout in enumerate(rollouts):
            problems += [f"rollout {index}: {problem}" for problem in validate_rollout(rollout, self._spec)]
            if not (isinstance(rollout.violations, Mapping) and set(rollout.violations) == set(self._flags)):
                expected = f"expected a count for each of {', '.join(self._flags) or 'none'}"
                problems.append(f"rollout {index}: violations: {rollout.violations!r}, {expected}")
            if (rollout.optimal_actions is not None) != self._has_optimal_actions:
                found = "None" if rollout.optimal_actions is None else "an array"
                wanted = "an array of shape (T, A)" if self._has_optimal_actions else "None; this is no store of plans"
                problems.append(f"rollout {index}: optimal_actions: {found}, expected {wanted}")
        given = {label: len(said) for label, said in (verdicts or {}).items()}
        if given != dict.fromkeys(self._given, len(rollouts)):
            expected = f"{len(rollouts)} of each of {', '.join(self._given) or 'none'}"
            problems.append(f"verdicts: {given}, expected {expected}")
        raise_problems(f"shard {name!r} of {self.path} cannot be stored", problems, "Mend what makes these rollouts.")
        said = {**self._recorded_verdicts(rollouts), **(verdicts or {})}
        counts = {layout.ROLLOUTS: len(rollouts), layout.TRANSITIONS: sum(map(len, rollouts))}
        self._shards.write(name, self._encode(rollouts, said), {**counts, "rejected": dict(rejected or {})})

    def finish(self) -> RolloutStore:
        """Merge the shards, in the order of their names, and seal the store.

        Raises:
            DataError: If there is no rollout in any shard.
        """
        shards = shard_files(self.path)
        facts = [shard_facts(shard) for shard in shards]
        totals = {table: sum(fact[table] for fact in facts) for table in (layout.ROLLOUTS, layout.TRANSITIONS)}
        if not totals[layout.ROLLOUTS]:
            raise DataError(f"no rollout was stored in {self.path}; a store needs at least one")
        for table in (*self._columns, *self._tables):
            shutil.rmtree(self.path / table, ignore_errors=True)
            (self.path / table).mkdir(parents=True)
        for table, num_rows in totals.items():
            _allocate(self.path / table, self._columns[table], num_rows)
        digests, num_table_rows = self._merge(shards, facts)
        for table in totals:
            for meta in sorted((self.path / table).rglob("meta.json")):
                digests[f"{meta.relative_to(self.path)}"] = file_sha256(meta)
        self._seal({f"num_{table}": num_rows for table, num_rows in {**totals, **num_table_rows}.items()}, digests)
        return RolloutStore(self.path)

    def _recorded_verdicts(self, rollouts: Sequence[Rollout]) -> dict[str, Verdict]:
        """What the domain's rule said when the rollouts were made: it is not asked twice."""
        length = np.array([len(rollout) for rollout in rollouts], dtype=np.int64)
        met = [rollout.is_success for rollout in rollouts]
        said = {DOMAIN_RULE: verdict(met, abstained=[not rollout.goal for rollout in rollouts])}
        for flag in self._flags:
            marked = np.array([rollout.violations[flag] for rollout in rollouts], dtype=np.int32)
            said[flag] = verdict(marked == 0, 1 - marked / np.maximum(length, marked), num_marked=marked)
        return said

    def _encode(self, rollouts: Sequence[Rollout], verdicts: Mapping[str, Verdict]) -> dict[str, Tensor]:
        """The columns of a shard, by the names of their files."""
        lines = [[_instruction_line(rollout)] if rollout.goal else [] for rollout in rollouts]
        of_instructions, instructions, _ = number_rows(lines)
        instruction_id = [int(number[0]) if len(number) else -1 for number in of_instructions]
        provenance = [to_json(dict(rollout.provenance)) + b"\n" for rollout in rollouts]
        length = list(map(len, rollouts))
        per_transition: dict[layout.Key, Iterable[NDArray[Any]]] = {
            names.OBSERVATION: (rollout.observations[:-1] for rollout in rollouts),
            names.ACTION: (rollout.actions for rollout in rollouts),
            names.NEXT_OBSERVATION: (rollout.observations[1:] for rollout in rollouts),
            names.REWARD: (rollout.rewards for rollout in rollouts),
            names.TERMINATED: (rollout.terminated for rollout in rollouts),
            names.TRUNCATED: (rollout.truncated for rollout in rollouts),
            names.ROLLOUT_ID: [np.repeat(np.arange(len(rollouts)), length)],
            names.STEP: (np.arange(steps) for steps in length),
            names.INSTRUCTION_ID: [np.repeat(np.array(instruction_id, dtype=np.int64), length)],
            names.SOURCE: [np.repeat([int(rollout.source) for rollout in rollouts], length)],
        }
        if self._has_optimal_actions:
            best = [rollout.optimal_actions for rollout in rollouts]
            per_transition[names.OPTIMAL_ACTIONS] = [actions for actions in best if actions is not None]
        columns: dict[str, Tensor] = {}
        for table in self._tables:
            if table == layout.STATES:
                rows = [to_rows(rollout.observations, self._spec.observation) for rollout in rollouts]
            else:
                rows = [to_rows(rollout.actions) for rollout in rollouts]
            numbers, columns[f"{table}/{ROWS_FILE}"], columns[f"{table}/{END_FILE}"] = number_rows(rows)
            if table == layout.STATES:
                per_transition[names.STATE] = [number[:-1] for number in numbers]
                per_transition[names.NEXT_STATE] = [number[1:] for number in numbers]
            else:
                per_transition[names.ACTION] = numbers
        per_rollout: dict[layout.Key, Sequence[Any]] = {
            "start": _starts(length),
            "length": length,
            names.INSTRUCTION_ID: instruction_id,
            names.SOURCE: [rollout.source for rollout in rollouts],
            "provenance_start": _starts([len(line) for line in provenance]),
        }
        parts: dict[str, Mapping[Any, Iterable[NDArray[Any]]]] = {
            layout.TRANSITIONS: per_transition,
            layout.ROLLOUTS: {key: [np.array(values, dtype=np.int64)] for key, values in per_rollout.items()},
            **{label_folder(name): {key: [said] for key, said in vars(verdicts[name]).items()} for name in verdicts},
        }
        for table, forms in self._columns.items():
            columns |= {layout.column_file(table, key): _column(parts[table][key], forms[key]) for key in forms}
        columns[layout.INSTRUCTIONS] = instructions
        columns[layout.PROVENANCE] = bytes_tensor(b"".join(provenance))
        return columns

    def _merge(self, shards: list[Path], facts: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, int]]:
        """Append every shard to the store's files; returns the SHA-256 of each file and the rows of each table."""
        offsets = dict.fromkeys((layout.ROLLOUTS, layout.TRANSITIONS, layout.PROVENANCE), 0)
        lines = RowNumbers()
        columns = [layout.column_file(table, key) for table, forms in self._columns.items() for key in forms]
        of_tables = [name for table, row_bytes in self._tables.items() for name in layout.table_files(table, row_bytes)]
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(HashedFile(self.path / name))
                for name in (*columns, *of_tables, layout.INSTRUCTIONS, layout.PROVENANCE)
            }
            tables = {table: TableFiles(files, table, row_bytes) for table, row_bytes in self._tables.items()}
            for shard, fact in zip(shards, facts, strict=True):
                with safe_open(shard, framework="pt") as tensors:
                    text = tensors.get_tensor(layout.INSTRUCTIONS).numpy().tobytes()
                    numbers, new = lines.add(text.splitlines(keepends=True))
                    files[layout.INSTRUCTIONS].write(b"".join(new))
                    renumbered = {names.INSTRUCTION_ID: numbers}
                    for table, made in tables.items():
                        numbers = made.add(*(tensors.get_tensor(f"{table}/{file}") for file in (ROWS_FILE, END_FILE)))
                        keys = (names.STATE, "next/state") if table == layout.STATES else (names.ACTION,)
                        renumbered |= dict.fromkeys(keys, numbers)
                    for name in columns:
                        values = _renumber(name, tensors.get_tensor(name), renumbered, offsets)
                        files[name].write(values.numpy().tobytes())
                    provenance = tensors.get_tensor(layout.PROVENANCE).numpy().tobytes()
                    files[layout.PROVENANCE].write(provenance)
                offsets = {key: offsets[key] + fact.get(key, len(provenance)) for key in offsets}
            digests = {name: file.close() for name, file in files.items()}
        return digests, {table: len(made.numbers) for table, made in tables.items()}

    def _seal(self, counts: Mapping[str, int], digests: Mapping[str, str]) -> None:
        own = {name: digest for name, digest in digests.items() if not name.startswith(f"{layout.LABELS}/")}
        row_bytes = sum(form.row_bytes for form in self._columns[layout.TRANSITIONS].values())
        content = manifest_bytes(self.path, {**self._description, **counts, "bytes_per_transition": row_bytes}, own)
        # Before the store's own: a store that is finished has its verdicts.
        for name, (is_veto, provenance) in self._judges.items():
            folder = label_folder(name)
            files = {f"{key}.memmap": digests[layout.column_file(folder, key)] for key in self._columns[folder]}
            facts = label_facts(ROLLOUT, is_veto, provenance, hashlib.sha256(content).hexdigest())
            facts["num_rows"] = counts[f"num_{layout.ROLLOUTS}"]
            write_durably(self.path / folder / LABEL_MANIFEST, manifest_bytes(self.path / folder, facts, files))
        self._shards.seal(content, digests)


def _instruction_line(rollout: Rollout) -> bytes:
    row = {"goal": dict(rollout.goal), "instruction": rollout.instruction, "goal_split": rollout.goal_split}
    return to_json(row) + b"\n"


def _starts(length: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(length[:-1], dtype=np.int64).tolist()] if length else []


def _column(parts: Iterable[NDArray[Any]], form: layout.Column) -> Tensor:
    """Parts of a column one after the other, in the type that the layout gives it."""
    arrays = list(parts)
    if not arrays:
        return torch.zeros(0, *form.shape, dtype=form.dtype)
    return torch.from_numpy(np.concatenate(arrays)).to(form.dtype).contiguous()


def _allocate(folder: Path, columns: Mapping[layout.Key, layout.Column], num_rows: int) -> None:
    """Make the files that TensorDict's memory-mapped format needs; their content comes with the merge."""
    rows = TensorDict(batch_size=[num_rows])
    for key, form in columns.items():
        rows[key] = torch.zeros((), dtype=form.dtype).expand(num_rows, *form.shape)
    rows.memmap_like(str(folder))


def _renumber(name: str, values: Tensor, numbers_of: dict[str, NDArray[Any]], offsets: dict[str, int]) -> Tensor:
    """Turn a shard's own numbering into the store's."""
    if name.startswith(f"{layout.LABELS}/"):
        return values
    key = name.removesuffix(".memmap").split("/", 1)[1]
    if key in numbers_of:
        # Behind the numbers stands that of no instruction, so that -1 stays -1.
        numbers = torch.from_numpy(np.append(numbers_of[key], -1))
        return numbers[values.long()].to(values.dtype)
    counted = {names.ROLLOUT_ID: layout.ROLLOUTS, "start": layout.TRANSITIONS, "provenance_start": layout.PROVENANCE}
    return values + offsets[counted[key]] if key in counted else values
