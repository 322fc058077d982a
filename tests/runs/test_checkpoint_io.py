"""Checkpoints: durable, verified before anything is unpickled, and never run as code."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from kalm.core.durable import file_sha256
from kalm.core.errors import CheckpointError, DataError
from kalm.runs.checkpoint_io import VerifiedCheckpointIO, newest_intact, sidecar_path
from tests.chain_run import kalm, run_folder_of, write_config


def state(update: int = 7) -> dict[str, Any]:
    """What Lightning hands over, in miniature."""
    return {"global_step": update, "state_dict": {"weight": torch.arange(1000.0)}, "loops": {"epoch": [0, None]}}


def saved(folder: Path, name: str = "update=7.ckpt", update: int = 7) -> Path:
    """A checkpoint on the disk."""
    VerifiedCheckpointIO().save_checkpoint(state(update), folder / name)
    return folder / name


class RunsCommand:
    """Pickles to a call of ``os.system``: unpickling it without restriction creates a file."""

    def __init__(self, witness: Path) -> None:
        """Name the file."""
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """What pickle records."""
        return os.system, (f"touch {self.witness}",)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Round trip, with a sidecar that tells size, digest, update and versions."""
    path = saved(tmp_path)
    loaded = VerifiedCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(1000.0))
    assert loaded["loops"] == {"epoch": [0, None]}
    sidecar = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
    assert sidecar["bytes"] == path.stat().st_size
    assert sidecar["update"] == 7
    assert sidecar["versions"]["torch"] == torch.__version__
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["update=7.ckpt", "update=7.ckpt.json"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_refused_and_an_intact_one_named(tmp_path: Path, share: float) -> None:
    """Found by its digest; the message offers the newest good one."""
    good, bad = saved(tmp_path, "update=7.ckpt"), saved(tmp_path, "update=8.ckpt")
    bad.write_bytes(bad.read_bytes()[: int(share * bad.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"is damaged.*newest intact checkpoint there is {good}"):
        VerifiedCheckpointIO().load_checkpoint(bad)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    """Anywhere in the file, tensors included."""
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is damaged.*no intact checkpoint is left"):
        VerifiedCheckpointIO().load_checkpoint(path)


def test_malicious_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    """At the plugin, with and without a sidecar that vouches for the bytes."""
    path, witness = tmp_path / "evil.ckpt", tmp_path / "witness"
    torch.save({"global_step": 1, "state_dict": RunsCommand(witness)}, path)
    with pytest.warns(UserWarning, match="no sidecar"), pytest.raises(CheckpointError, match="Nothing in it was run"):
        VerifiedCheckpointIO().load_checkpoint(path)
    forged = {"sha256": file_sha256(path), "bytes": path.stat().st_size, "update": 1}
    sidecar_path(path).write_text(json.dumps(forged), encoding="utf-8")
    with pytest.raises(CheckpointError, match="Nothing in it was run"):
        VerifiedCheckpointIO().load_checkpoint(path)
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore:.*no sidecar")
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_malicious_checkpoint_is_refused_by_every_verb(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line: exit code 4, and the command in the file has not been run."""
    config = write_config(tmp_path)
    path, witness = tmp_path / "evil.ckpt", tmp_path / "witness"
    hyper_parameters = {"_class_path": "subprocess.Popen", "args": RunsCommand(witness)}
    torch.save({"global_step": 1, "state_dict": {}, "hyper_parameters": hyper_parameters}, path)
    assert kalm(verb, "--config", config, "--ckpt_path", str(path)) == 4
    assert "refused to load" in capsys.readouterr().err
    assert not witness.exists()


@pytest.mark.parametrize("verb", [("test",), ("validate",), ("fit", "--ckpt_path", "last")], ids=lambda v: v[0])
def test_weights_that_are_no_numbers_reach_no_success_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    """One weight of a policy is NaN: by argmax it would act all the same. Exit 4, and no line of results."""
    config = write_config(tmp_path, **{"trainer.max_steps": 40, "trainer.limit_val_batches": 0})
    assert kalm("fit", "--config", config) == 0
    last = run_folder_of(tmp_path) / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    name = next(name for name in checkpoint["state_dict"] if name.endswith("weight"))
    checkpoint["state_dict"][name][0, 0] = float("nan")
    torch.save(checkpoint, last.resolve())
    sidecar_path(last).write_text(json.dumps({"sha256": file_sha256(last), "update": 40}))
    capsys.readouterr()
    assert kalm(*verb, "--config", config) == 4
    assert f"{name} is not a number; look at {last.with_name('update=30.ckpt')}" in capsys.readouterr().err
    assert not (run_folder_of(tmp_path) / "results.jsonl").exists()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """Weights or averages of them; the checkpoint before stays the last."""
    path = saved(tmp_path)
    before = file_sha256(path)
    for part in ("state_dict", "kalm_average"):
        spoilt = {**state(), part: {"weight": torch.tensor([1.0, float("nan")]), "other": torch.tensor(float("nan"))}}
        with pytest.raises(DataError, match="weight and 1 more tensors are not a number"):
            VerifiedCheckpointIO().save_checkpoint(spoilt, path)
    assert file_sha256(path) == before


def test_unrestricted_loading_cannot_be_asked_for(tmp_path: Path) -> None:
    """There is no fallback, not even on request."""
    path = saved(tmp_path)
    with pytest.raises(CheckpointError, match="unpickling may run any command"):
        VerifiedCheckpointIO().load_checkpoint(path, weights_only=bool(0))


def test_state_that_could_not_be_loaded_again_is_refused_when_saving(tmp_path: Path) -> None:
    """A class instance in a callback's state shows at the first save, not at the resume."""
    with pytest.raises(CheckpointError, match="cannot be loaded again.*plain types"):
        VerifiedCheckpointIO().save_checkpoint(
            {"callbacks": {"mine": Path("x")}, "global_step": 1}, tmp_path / "a.ckpt"
        )
    assert list(tmp_path.iterdir()) == []


def test_kill_between_the_two_renames_leaves_a_checkpoint_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new sidecar vouches for the old file too, until the new file is in place."""
    path = saved(tmp_path, "last.ckpt", update=1)
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, "last.ckpt", update=2)
    assert VerifiedCheckpointIO().load_checkpoint(path)["global_step"] == 1


def test_full_disk_names_path_and_bytes_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """A real refusal of the operating system: for a moment, files of this process may not grow beyond 100 kB."""
    path = saved(tmp_path, "last.ckpt", update=1)
    large = {"global_step": 2, "state_dict": torch.zeros(100_000)}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            VerifiedCheckpointIO().save_checkpoint(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"cannot save checkpoint {path}: File too large" in str(caught.value)
    assert "needed about 400,000 bytes, free " in str(caught.value)
    assert VerifiedCheckpointIO().load_checkpoint(path)["global_step"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.json"]


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """Never swallowed: here a file stands where the folder should be."""
    (tmp_path / "run").touch()
    with pytest.raises(CheckpointError, match="cannot save checkpoint"):
        saved(tmp_path / "run")


def test_deleting_a_checkpoint_deletes_its_sidecar(tmp_path: Path) -> None:
    """No orphans; and deleting twice is no error."""
    path = saved(tmp_path)
    VerifiedCheckpointIO().remove_checkpoint(path)
    VerifiedCheckpointIO().remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_newest_intact_passes_over_damaged_ones(tmp_path: Path) -> None:
    """By time of writing, not by name."""
    older, newer, newest = (saved(tmp_path, f"{name}.ckpt") for name in ("c", "b", "a"))
    for age, path in enumerate((newest, newer, older)):
        os.utime(path, (1000 - age, 1000 - age))
    newest.write_bytes(b"")
    assert newest_intact(tmp_path.glob("*.ckpt")) == newer


def test_training_writes_through_the_plugin_and_keeps_two(tmp_path: Path) -> None:
    """What a run leaves: the two newest checkpoints with sidecars that match, and last.ckpt naming the newest."""
    config = write_config(tmp_path)
    assert kalm("fit", "--config", config, "--trainer.limit_val_batches", "0") == 0
    folder = run_folder_of(tmp_path)
    names = sorted(path.name for path in folder.glob("*.ckpt*"))
    assert names == ["last.ckpt", "update=100.ckpt", "update=100.ckpt.json", "update=90.ckpt", "update=90.ckpt.json"]
    assert (folder / "last.ckpt").resolve() == (folder / "update=100.ckpt").resolve()
    assert VerifiedCheckpointIO().load_checkpoint(folder / "last.ckpt")["global_step"] == 100
