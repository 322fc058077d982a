"""Imports rollouts from ImagineBench files (Pang et al. 2025), ``.npy`` or HDF5, into a rollout store.

What such a file holds: a dictionary, or the root of an HDF5 file, with

=============  ==========================  ================================================================
observations   (R, T, O) or (R, T, O + E)  each step's observation, perhaps with its sentence embedding behind
actions        (R, T) or (R, T, A)
rewards        (R, T) or (R, T, 1)
masks          (R, T) or (R, T, 1)         0 and 1; what they mean must be said, because two conventions exist
=============  ==========================  ================================================================

Shape letters: R rollouts, T steps (padded), O numbers in an observation, A in an action, E in an embedding.

Differences from the benchmark's own converters: a last step whose next observation was not recorded is dropped (they
make it terminated, with zeros for the next observation); the end of a recording is ``truncated``, not ``terminated``;
the repeated embedding is split off. Sentences are not in the files, so the caller brings one goal a rollout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.validation import raise_problems
from kalm.envs.base import Domain
from kalm.store.reader import RolloutStore
from kalm.store.safe_npy import load_npy
from kalm.store.writer import RolloutStoreWriter

logger = logging.getLogger(__name__)

KEYS = ("observations", "actions", "rewards", "masks")
_SHARD_ROLLOUTS = 500
_MAX_COMPRESSION = 1100  # deflate cannot do better than about 1,030 to 1


class MaskMeaning(Enum):
    """What 1 and 0 in ``masks`` mean.

    ``padding``: 1 is a recorded step, 0 fills the rows behind a rollout's end (ImagineBench's own files).
    ``bootstrap``: 0 says that the task ended with this step, whose next observation is the row behind it; 1 says that
    it went on (d4rl-style code, where ``masks`` is 1 - terminated).
    """

    padding = "padding"
    bootstrap = "bootstrap"


def import_imagine_bench(
    path: str | Path,
    store_path: str | Path,
    domain: Domain,
    goals: Sequence[InstructedGoal],
    source: Source,
    masks: MaskMeaning | None = None,
) -> RolloutStore:
    """Copy a file's rollouts into a new store, with the file's rewards and the domain's verdicts.

    Args:
        path: The file; ``.npy``, or HDF5 under any other suffix.
        store_path: Folder of the new store.
        domain: World that the rollouts come from.
        goals: One goal and sentence for each rollout, in order.
        source: Whether the rollouts are real or imaginary.
        masks: What the file's masks mean.

    Raises:
        DataError: If ``masks`` is not said, or the file is malformed or unsafe, or the goals do not fit it.
    """
    if masks is None:
        raise DataError(
            f"what do the masks of {path} mean? Say one of: padding (1 = a recorded step, 0 = filler behind a "
            "rollout's end; ImagineBench's own files), or bootstrap (0 = the task ended with this step, 1 = it went "
            "on). Taken the wrong way, values are learned as if every cut were a success, or across rollouts"
        )
    with _open(Path(path)) as arrays:
        _check(Path(path), arrays, domain, goals)
        digest = file_sha256(Path(path))
        made_by = {"importer": "imagine_bench", "file_sha256": digest, "masks": masks.name}
        writer = RolloutStoreWriter(store_path, domain.name, domain.spec, domain.plausibility_flags, made_by)
        num_left_out = 0
        for start in range(0, len(goals), _SHARD_ROLLOUTS):
            rows = range(start, min(start + _SHARD_ROLLOUTS, len(goals)))
            rollouts = [_rollout(arrays, row, domain, goals[row], source, masks, digest) for row in rows]
            num_left_out += rollouts.count(None)
            if (name := f"{start:09d}") not in writer.finished_shards:
                writer.append(name, [rollout for rollout in rollouts if rollout is not None])
    if num_left_out:
        logger.warning("%d rollouts of %s record no whole transition and were left out", num_left_out, path)
    return writer.finish()


def _rollout(
    arrays: Mapping[str, Any],
    row: int,
    domain: Domain,
    instructed: InstructedGoal,
    source: Source,
    masks: MaskMeaning,
    digest: str,
) -> Rollout | None:
    """One row of the file, or None where not even one transition is recorded whole."""
    num_steps, is_terminated = _extent(np.asarray(arrays["masks"][row]).reshape(-1), masks, row)
    if not num_steps:
        return None
    size = domain.spec.observation_size
    recorded = np.asarray(arrays["observations"][row])[: num_steps + 1]
    if (recorded[:, size:] != recorded[:1, size:]).any():
        raise DataError(
            f"observations: rollout {row}: what follows the first {size} numbers changes from step to step, so it is "
            "no sentence embedding; check that the file is of this domain"
        )
    observations = recorded[:, :size]
    actions = np.asarray(arrays["actions"][row])[:num_steps]
    if domain.spec.is_discrete:
        actions = actions.reshape(-1)
        if (actions == np.round(actions)).all():  # what is no integer, validation names
            actions = actions.astype(np.int64)
    before, after = observations[:-1], observations[1:]
    flags = domain.plausibility(before, actions, after)
    is_last = np.arange(num_steps) == num_steps - 1
    return Rollout(
        goal=instructed.goal.to_json(),
        instruction=instructed.instruction,
        goal_split=instructed.goal_split,
        source=source,
        observations=observations,
        actions=actions,
        rewards=np.asarray(arrays["rewards"][row], dtype=np.float32).reshape(-1)[:num_steps],
        terminated=is_last & is_terminated,
        truncated=is_last & (not is_terminated),
        is_success=bool(instructed.goal.success(after, before, actions).any()),
        violations={flag: int(marked.sum()) for flag, marked in flags.items()},
        provenance={"file_sha256": digest, "row": row},
    )


def _extent(mask: NDArray[Any], meaning: MaskMeaning, row: int) -> tuple[int, bool]:
    """Transitions that row ``row`` records whole, and whether the last of them ended the task."""
    if not np.isin(mask, (0, 1)).all():
        raise DataError(f"masks: rollout {row} has {mask[~np.isin(mask, (0, 1))][0]}; allowed are 0 and 1")
    zeros = np.flatnonzero(mask == 0)
    first_zero = int(zeros[0]) if len(zeros) else len(mask)
    if meaning is MaskMeaning.bootstrap:
        ends_recorded = first_zero < len(mask) - 1
        return (first_zero + 1 if ends_recorded else len(mask) - 1), ends_recorded
    if mask[first_zero:].any():
        raise DataError(f"masks: rollout {row} has 1 behind a 0, so its 0 is not padding; is the meaning bootstrap?")
    return max(first_zero - 1, 0), False


def _check(path: Path, arrays: Mapping[str, Any], domain: Domain, goals: Sequence[InstructedGoal]) -> None:
    """Every array's rank and size at once, before any row is read."""
    problems = [
        f"{key}: missing; the file has {', '.join(map(str, arrays)) or 'nothing'}" for key in KEYS if key not in arrays
    ]
    shapes = {key: tuple(getattr(arrays[key], "shape", ())) for key in KEYS if key in arrays}
    rows = next((shape[:2] for shape in shapes.values() if len(shape) >= 2), (0, 0))
    size = domain.spec.observation_size
    for key, shape in shapes.items():
        if len(shape) not in ((3,) if key == "observations" else (2, 3)) or shape[:2] != rows:
            problems.append(f"{key}: shape {shape}, expected ({rows[0]}, {rows[1]}, ...)")
        elif key == "observations" and shape[2] < size:
            problems.append(f"{key}: {shape[2]} numbers a step; {domain.name} has {size}")
        elif key in ("rewards", "masks") and shape[2:] not in ((), (1,)):
            problems.append(f"{key}: shape {shape}, expected one number a step")
        elif np.dtype(arrays[key].dtype).kind not in "fiub":
            problems.append(f"{key}: dtype {arrays[key].dtype}, expected numbers")
    if len(goals) != rows[0]:
        problems.append(f"goals: {len(goals)} given for {rows[0]} rollouts; the file has no sentences, bring one each")
    remedy = "kalm.store.imagine_bench lists the arrays that must be there."
    raise_problems(f"{path} cannot be imported", problems, remedy)


@contextmanager
def _open(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".npy":
        content = load_npy(path)
        if not isinstance(content, dict):
            raise DataError(f"{path} holds a {type(content).__name__}, expected a dictionary of {', '.join(KEYS)}")
        yield {str(key): np.asarray(value) for key, value in content.items()}
        return
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is no HDF5 file: {error}; allowed are .npy and HDF5 files") from error
    with file:
        raise_problems(f"{path} is refused", _hdf5_problems(file), "Ask for a file that holds its own data.")
        yield {key: file[key] for key in file}


def _hdf5_problems(file: h5py.File) -> list[str]:
    """What must not be followed or read, found without doing either."""
    problems = []
    for key in file:
        link = file.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            problems.append(f"{key}: a {type(link).__name__}; data must lie in the file itself")
            continue
        dataset = file[key]
        if not isinstance(dataset, h5py.Dataset):
            problems.append(f"{key}: a {type(dataset).__name__}, expected an array")
        elif dataset.external or dataset.is_virtual:
            problems.append(f"{key}: its data lies in other files; data must lie in the file itself")
        elif dataset.nbytes > _MAX_COMPRESSION * dataset.id.get_storage_size():
            problems.append(f"{key}: declares {dataset.nbytes} bytes, but {dataset.id.get_storage_size()} are stored")
    return problems
