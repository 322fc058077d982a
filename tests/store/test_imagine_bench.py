"""Import of ImagineBench files: analytic counts, declared masks, and files that attack the reader."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.store.imagine_bench import MaskMeaning, import_imagine_bench
from kalm.store.reader import RolloutStore
from kalm.store.safe_npy import load_npy
from tests.data.rollouts import DOMAIN

LENGTHS = (6, 4, 1, 3)
GOALS = DOMAIN.instructed_goals("easy")[:4]


def arrays(embedding_size: int = 0) -> dict[str, np.ndarray]:
    """Four walks of 6, 4, 1 and 3 recorded steps, padded with zeros to 6 rows."""
    rng = np.random.default_rng(0)
    cells = rng.integers(5, size=(4, 6))
    observations = np.eye(5, dtype=np.float32)[cells]
    embedding = rng.normal(size=(4, 1, embedding_size)).astype(np.float32).repeat(6, axis=1)
    masks = np.arange(6) < np.array(LENGTHS)[:, None]
    observations = np.concatenate([observations, embedding], axis=-1) * masks[..., None]
    rewards = rng.normal(size=(4, 6)) * masks
    return {
        "observations": observations,
        "actions": rng.integers(2, size=(4, 6)) * masks,
        "rewards": rewards.astype(np.float32),
        "masks": masks.astype(np.float64),
    }


def save(path: Path, content: Any) -> Path:
    """Write a file the way the benchmark does: one pickled dictionary in a ``.npy``, or HDF5."""
    if path.suffix == ".npy":
        np.save(path, content)
    else:
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                file.create_dataset(key, data=value, compression="gzip")
    return path


def load(path: Path, tmp_path: Path, masks: MaskMeaning | None = MaskMeaning.padding) -> RolloutStore:
    """Import as imagined rollouts."""
    return import_imagine_bench(path, tmp_path / "store", DOMAIN, GOALS, Source.IMAGINARY, masks)


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
@pytest.mark.parametrize("embedding_size", [0, 7])
def test_padded_rollouts_give_the_analytic_counts(tmp_path: Path, suffix: str, embedding_size: int) -> None:
    """6, 4, 1 and 3 recorded steps have 5 + 3 + 0 + 2 = 10 whole transitions; no end says that the task ended."""
    content = arrays(embedding_size)
    store = load(save(tmp_path / f"file{suffix}", content), tmp_path)
    assert store.rollouts["length"].tolist() == [5, 3, 2]
    assert len(store) == 10
    assert store.transitions[names.TERMINATED].sum() == 0
    assert store.transitions[names.TRUNCATED].nonzero().squeeze(-1).tolist() == [4, 7, 9]
    for index, row in enumerate((0, 1, 3)):
        rollout, steps = store.rollout(index), LENGTHS[row]
        assert np.array_equal(rollout.observations, content["observations"][row, :steps, :5])
        assert np.array_equal(rollout.actions, content["actions"][row, : steps - 1])
        assert np.array_equal(rollout.rewards, content["rewards"][row, : steps - 1])
        assert rollout.instruction == GOALS[row].instruction
        assert rollout.provenance["row"] == row


def test_bootstrap_masks_end_the_task(tmp_path: Path) -> None:
    """0 at step 2 of 6 rows: 3 transitions, the last terminated. No 0: 5, truncated.

    0 in the last row: 5, truncated, because the observation behind it was not recorded.
    """
    content = arrays()
    content["observations"] = np.eye(5, dtype=np.float32)[np.random.default_rng(1).integers(5, size=(4, 6))]
    content["masks"] = np.ones((4, 6))
    content["masks"][0, 2] = content["masks"][1, 5] = content["masks"][3, 0] = 0
    store = load(save(tmp_path / "file.npy", content), tmp_path, MaskMeaning.bootstrap)
    assert store.rollouts["length"].tolist() == [3, 5, 5, 1]
    assert store.transitions[names.TERMINATED].nonzero().squeeze(-1).tolist() == [2, 13]
    assert store.transitions[names.TRUNCATED].nonzero().squeeze(-1).tolist() == [7, 12]
    assert np.array_equal(store.rollout(0).observations, content["observations"][0, :4])


def test_verdicts_are_the_domains(tmp_path: Path) -> None:
    """Success and plausibility by the chain's own rules, for the goals that the caller brought."""
    store = load(save(tmp_path / "file.npy", arrays()), tmp_path)
    for index, row in enumerate((0, 1, 3)):
        rollout = store.rollout(index)
        before, after = rollout.observations[:-1], rollout.observations[1:]
        flags = DOMAIN.plausibility(before, rollout.actions, after)
        assert rollout.is_success == bool(GOALS[row].goal.success(after).any())
        assert rollout.violations == {flag: int(marked.sum()) for flag, marked in flags.items()}


def test_undeclared_masks_are_refused_and_both_meanings_explained(tmp_path: Path) -> None:
    """Two conventions exist, and the wrong one would spoil the values."""
    with pytest.raises(DataError, match=r"padding \(1 = a recorded step.*bootstrap \(0 = the task ended"):
        load(save(tmp_path / "file.npy", arrays()), tmp_path, masks=None)


def test_masks_that_contradict_their_declared_meaning_are_refused(tmp_path: Path) -> None:
    """A hole in padding, and a value that is neither 0 nor 1."""
    content = arrays()
    content["masks"][1, 1] = 0
    with pytest.raises(DataError, match="rollout 1 has 1 behind a 0"):
        load(save(tmp_path / "hole.npy", content), tmp_path)
    content["masks"][1, 1] = 0.5
    with pytest.raises(DataError, match=r"rollout 1 has 0\.5; allowed are 0 and 1"):
        load(save(tmp_path / "half.npy", content), tmp_path / "other")


def test_every_malformed_array_is_named_at_once(tmp_path: Path) -> None:
    """Missing key, wrong rank, wrong size, wrong type, too few goals."""
    content = arrays()
    del content["masks"]
    content["observations"] = content["observations"][:, :, :4]
    content["actions"] = content["actions"][:, 0]
    content["rewards"] = content["rewards"].astype("U8")
    with pytest.raises(DataError) as caught:
        import_imagine_bench(
            save(tmp_path / "file.npy", content), tmp_path / "s", DOMAIN, GOALS[:2], Source.REAL, MaskMeaning.padding
        )
    for problem in (
        "masks: missing; the file has observations, actions, rewards",
        "observations: 4 numbers a step; chain has 5",
        "actions: shape (4,), expected (4, 6, ...)",
        "rewards: dtype <U8, expected numbers",
        "goals: 2 given for 4 rollouts",
    ):
        assert problem in str(caught.value)


def test_extra_columns_that_change_are_no_embedding(tmp_path: Path) -> None:
    """A file of another domain is noticed instead of being cut to size."""
    content = arrays(3)
    content["observations"][0, 2, 6] += 1
    with pytest.raises(DataError, match="rollout 0: what follows the first 5 numbers changes"):
        load(save(tmp_path / "file.npy", content), tmp_path)


def test_bad_actions_are_named_with_rollout_and_step(tmp_path: Path) -> None:
    """By the store's own validation."""
    content = arrays()
    content["actions"][1, 2] = 7
    with pytest.raises(DataError, match="rollout 1: actions: 7 at step 2"):
        load(save(tmp_path / "file.npy", content), tmp_path)


class Attack:
    """Unpickling it would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        """Choose the call."""
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """What a pickle of this asks the reader to do."""
        return self.call


def write_pickle(path: Path, content: bytes) -> Path:
    """A ``.npy`` header for one object, then any pickle."""
    buffer = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(buffer, header)
    path.write_bytes(buffer.getvalue() + content)
    return path


@pytest.mark.parametrize("depth", ["top", "dictionary", "array"])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path: Path, depth: str) -> None:
    """Wherever it hides; the message names what it asked for."""
    attack = Attack(os.system, f"touch {tmp_path / 'ran'}")
    content: Any = {
        "top": attack,
        "dictionary": {**arrays(), "extra": [attack]},
        "array": {**arrays(), "extra": np.array([attack], dtype=object)},
    }[depth]
    path = write_pickle(tmp_path / "file.npy", pickle.dumps(content))
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system, which could run any command"):
        load(path, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [
        eval,
        exec,
        getattr,
        __import__,
        np.load,
        np.ndarray.tofile,
        np.dtype("O").newbyteorder,
        np.lib.format.open_memmap,
    ],
)
def test_callables_besides_the_six_known_names_are_refused(tmp_path: Path, target: Any) -> None:
    """NumPy's own functions, builtins and attribute look-ups."""
    path = write_pickle(tmp_path / "file.npy", pickle.dumps(Attack(target, "x")))
    with pytest.raises(DataError, match="which could run any command|is refused"):
        load_npy(path)


def test_a_declared_shape_allocates_nothing(tmp_path: Path) -> None:
    """An array of 10**15 numbers with 28 bytes behind it."""
    honest = pickle.dumps(np.arange(7, dtype=np.float32), protocol=3)
    assert load_npy(write_pickle(tmp_path / "honest.npy", honest)).tolist() == list(range(7))
    seven, huge = b"K\x07\x85", b"\x8a\x08" + (10**15).to_bytes(8, "little") + b"\x85"  # (7,) and (10**15,)
    assert honest.count(seven) == 1
    path = write_pickle(tmp_path / "huge.npy", honest.replace(seven, huge))
    with pytest.raises(DataError, match=r"shape \(1000000000000000,\) with 7 entries"):
        load_npy(path)


def test_objects_of_every_plain_kind_come_back(tmp_path: Path) -> None:
    """What the restricted reader returns is what NumPy wrote."""
    content = {
        "numbers": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "words": np.array(["red", "blue"]),
        "objects": np.array([None, "x", np.arange(2)], dtype=object),
        "number": np.float32(1.5),
        "list": [1, 2.5, "three", (True, None)],
    }
    loaded = load_npy(save(tmp_path / "file.npy", content))
    assert loaded.keys() == content.keys()
    for key in ("numbers", "columns", "words"):
        assert np.array_equal(loaded[key], content[key])
        assert loaded[key].dtype == content[key].dtype
    assert loaded["objects"][:2].tolist() == [None, "x"]
    assert loaded["objects"][2].tolist() == [0, 1]
    assert loaded["number"] == 1.5
    assert loaded["list"] == [1, 2.5, "three", (True, None)]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello", b"\x93NUMPY\x01\x00\x10\x00" + b"x" * 16])
def test_what_is_no_npy_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Truncated or other files: one message."""
    (tmp_path / "file.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"is not a \.npy file|is refused"):
        load_npy(tmp_path / "file.npy")


def test_hdf5_that_reaches_outside_or_declares_too_much_is_refused_before_reading(tmp_path: Path) -> None:
    """A link to another file, data in another file, a view of another file, a petabyte with nothing stored."""
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["observations"] = np.zeros((4, 6, 5))
    layout = h5py.VirtualLayout((4, 6), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "observations", (4, 6))
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["observations"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/observations")
        file.create_dataset("actions", (4, 6), "i2", external=[(str(tmp_path / "secret.bin"), 0, 48)])
        file.create_virtual_dataset("rewards", layout)
        file.create_dataset("masks", (10**7, 10**7), "f8", chunks=(1000, 1000))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "file.h5", tmp_path)
    for problem in (
        "observations: a ExternalLink",
        "actions: its data lies in other files",
        "rewards: its data lies in other files",
        "masks: declares 800000000000000 bytes, but 0 are stored",
    ):
        assert problem in str(caught.value)
