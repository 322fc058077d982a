"""Checkpoints that can be trusted in the morning: written durably, verified at once, and never run as code.

Lightning stages a checkpoint in ``$TMPDIR``, moves it across file systems, flushes nothing and swallows some errors.
This plugin writes beside the target, flushes, reads the file back, and only then puts it in place with one rename. A
JSON sidecar (``last.ckpt.json``) holds size, SHA-256, update and versions; a load verifies the digest before anything
is unpickled, and unpickles plain types and tensors only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

import kalm
from kalm.core.durable import file_sha256, sync_folder, write_durably
from kalm.core.errors import CheckpointError, DataError
from kalm.core.provenance import changes
from kalm.runs.folder import describe_folder

POLICY = "kalm_policy"  # key of a checkpoint: algorithm, sizes and number of seeds of the policy it holds


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's checkpoint plugin for every verb; ``kalm/cli/lightning_cli.py`` gives it to the Trainer."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint and its sidecar so that a kill at any moment leaves the previous one good.

        The sidecar goes first and names the digest it replaces as well: between the two renames the old file still
        verifies. Only tensors and plain types are accepted; anything else could not be loaded again.

        Raises:
            CheckpointError: If the file system refuses, or the file that was read back is not the one written.
            DataError: If a weight is not a number.
        """
        path = Path(path)
        if spoilt := _spoilt_weights(checkpoint):
            raise DataError(
                f"training stopped before {path} was saved: {spoilt} not a number. Lower learning_rate or set "
                "gradient_clip_norm, and resume from the checkpoint before"
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            num_bytes, digest = _write(checkpoint, temporary)
            _verify_written(temporary, digest)
            sidecar = {
                "bytes": num_bytes,
                "sha256": digest,
                "update": int(checkpoint.get("global_step", 0)),
                "versions": {
                    "kalm": kalm.__version__,
                    "lightning": lightning.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
                "replaces": file_sha256(path) if path.is_file() else None,
            }
            write_durably(path.with_name(path.name + ".json"), (json.dumps(sidecar, indent=1) + "\n").encode())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError as error:
            raise _storage_error(error, path, _tensor_bytes(checkpoint)) from error
        finally:
            with contextlib.suppress(OSError):  # the folder may be what has vanished
                temporary.unlink()

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Verify a checkpoint's digest, then read tensors and plain types from it, to the CPU by default.

        Args:
            path: Checkpoint file.
            map_location: Where tensors go, as for ``torch.load``.
            weights_only: Loading is always restricted; False is refused.

        Raises:
            CheckpointError: If the file is missing, damaged, holds anything but tensors and plain types, or weights
                that are not numbers: what acts by them acts all the same, and has a success rate.
        """
        if weights_only is False:
            raise CheckpointError(
                f"refused to load {path} with weights_only=False: unpickling may run any command; load it without"
            )
        path = Path(path)
        verify_checkpoint(path)
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            # torch raises UnpicklingError, RuntimeError, EOFError, KeyError ... for one fault: not a plain checkpoint
            raise CheckpointError(
                f"refused to load {path}: it is not a checkpoint of tensors and plain types "
                f"({str(error).splitlines()[0]}). Nothing in it was run. Use a checkpoint that kalm wrote"
            ) from error
        if spoilt := _spoilt_weights(checkpoint):
            others = [other for other in path.parent.glob("update=*.ckpt") if other.resolve() != path.resolve()]
            newest = newest_intact(others)
            advice = f"look at {newest}" if newest else "train again"
            raise CheckpointError(f"refused to load {path}: {spoilt} not a number; {advice}, or lower learning_rate")
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint together with its sidecar."""
        path = Path(path)
        path.unlink(missing_ok=True)
        sidecar_path(path).unlink(missing_ok=True)


def sidecar_path(path: Path) -> Path:
    """The JSON file beside a checkpoint; a link such as ``last.ckpt`` shares that of the file it points to."""
    path = path.resolve() if path.is_symlink() else path
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """What was recorded about a checkpoint when it was written, or None when nothing was.

    Raises:
        CheckpointError: If the sidecar exists and is not readable JSON of the expected form.
    """
    sidecar = sidecar_path(path)
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
        if not isinstance(data["sha256"], str):
            raise TypeError("sha256 is not text")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"sidecar {sidecar} of checkpoint {path} cannot be read ({error!r}); expected JSON with sha256 and bytes. "
            "Without it the checkpoint cannot be verified; delete the sidecar to load it unverified"
        ) from error
    return data


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint with its sidecar before anything in it is looked at.

    Raises:
        CheckpointError: If the file is missing, or differs from what was written; names an intact one if there is.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; {describe_folder(path.parent)}")
    sidecar = read_sidecar(path)
    if sidecar is None:
        rank_zero_warn(f"checkpoint {path} has no sidecar {sidecar_path(path).name}: its digest cannot be verified")
        return
    if file_sha256(path) not in _accepted_digests(sidecar):
        others = newest_intact(candidate for candidate in path.parent.glob("*.ckpt") if candidate != path)
        advice = f"the newest intact checkpoint there is {others}" if others else "no intact checkpoint is left there"
        raise CheckpointError(
            f"checkpoint {path} is damaged: {path.stat().st_size} bytes with another SHA-256 than the "
            f"{sidecar.get('bytes')} bytes that were written; {advice}"
        )


def newest_intact(paths: Iterable[Path]) -> Path | None:
    """The most recently written checkpoint whose digest matches its sidecar; None if there is none."""
    for path in sorted(filter(Path.is_file, paths), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            sidecar = read_sidecar(path)
            if sidecar is not None and file_sha256(path) in _accepted_digests(sidecar):
                return path
        except (CheckpointError, OSError):
            continue
    return None


def require_same_policy(checkpoint: Mapping[str, Any], identity: dict[str, Any]) -> None:
    """Refuse another policy's weights before torch lists every mismatched tensor.

    Raises:
        CheckpointError: If the algorithm, a size or the number of seeds differs.
    """
    found = checkpoint.get(POLICY)
    if found != identity:
        what = "another policy than the configuration asks for" if found else "no policy of kalm"
        raise CheckpointError(
            f"the checkpoint holds {what} ({'; '.join(changes(found or {}, identity))}); name the checkpoint of that "
            "policy, or the configuration that it was made with"
        )


class _HashingFile:
    """A binary file for ``torch.save`` that digests what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, block: bytes) -> int:
        self._file.write(block)
        self._sha256.update(block)
        self.num_bytes += len(block)
        return len(block)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _write(checkpoint: dict[str, Any], temporary: Path) -> tuple[int, str]:
    """Stream a checkpoint to the disk without a second copy in memory; size and digest of what was sent."""
    with temporary.open("wb") as file:
        hashing = _HashingFile(file)
        try:
            torch.save(checkpoint, cast(IO[bytes], hashing))
        except RuntimeError as error:  # torch wraps what write() raises
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that reading back reads the disk, not the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return hashing.num_bytes, hashing.hexdigest()


def _verify_written(temporary: Path, digest: str) -> None:
    """Read a new checkpoint back: its bytes, and that a resume will be able to load it."""
    if file_sha256(temporary) != digest:
        raise CheckpointError(
            f"checkpoint {temporary} reads back different from what was written: the disk or its cable is failing; "
            "the previous checkpoint is untouched"
        )
    try:
        torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint's content cannot be loaded again: {str(error).splitlines()[0]} Keep only tensors and "
            "plain types (numbers, text, lists, dicts) in the state of modules and callbacks"
        ) from error


def _spoilt_weights(checkpoint: Mapping[str, Any]) -> str:
    """Which tensors of a module hold NaN, in words; an empty string if none does."""
    parts = [part for part in checkpoint.values() if isinstance(part, Mapping)]  # the weights; averages of them
    tensors = [(name, one) for part in parts for name, one in part.items() if isinstance(one, torch.Tensor)]
    spoilt = [name for name, one in tensors if one.is_floating_point() and one.isnan().any()]
    more = f" and {len(spoilt) - 1} more tensors are" if len(spoilt) > 1 else " is"
    return f"{spoilt[0]}{more}" if spoilt else ""


def _accepted_digests(sidecar: dict[str, Any]) -> set[str]:
    return {digest for digest in (sidecar["sha256"], sidecar.get("replaces")) if digest}


def _storage_error(error: OSError, path: Path, needed_bytes: int) -> CheckpointError:
    existing = next(folder for folder in (path.parent, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    return CheckpointError(
        f"cannot save checkpoint {path}: {error.strerror or error}; needed about {needed_bytes:,} bytes, free "
        f"{free:,} bytes on that file system. A checkpoint saved earlier is untouched. Free some space or the folder's "
        "permissions, then resume with --ckpt_path last"
    )


def _tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in nested containers: what a checkpoint needs on the disk, all but a little."""
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(map(_tensor_bytes, parts))
