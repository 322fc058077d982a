"""What policies that were trained side by side leave: for each seed a run as it would have been alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kalm.callbacks.every_run import UpdateCheckpoint, point_to
from kalm.core.errors import CheckpointError
from kalm.rl.training.side_by_side import checkpoint_of
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from kalm.runs.folder import LAST

if TYPE_CHECKING:
    from kalm.rl.base import OfflineRLModule


def write_seed_runs(
    together: Path, policy: OfflineRLModule, folders: Sequence[Path], save_config: Callable[[int, Path], None]
) -> None:
    """Write the last checkpoint of each policy, and its configuration, into a folder of its own.

    Args:
        together: The folder of the run that trained them all.
        policy: The policies side by side.
        folders: A folder for each of them.
        save_config: Writes the configuration of policy ``number`` into a folder.
    """
    checkpoint_io, source = VerifiedCheckpointIO(), (together / LAST).resolve()
    checkpoint = checkpoint_io.load_checkpoint(source)
    stacked = dict(policy.named_parameters()).keys()
    data = policy.trainer.datamodule  # type: ignore[attr-defined]
    of_data = type(data).__qualname__  # where Lightning keeps what decides the data
    for number, folder in enumerate(folders):
        own = checkpoint_of(checkpoint, stacked, number)
        kept = {"saved": [source.name]}
        own["callbacks"] = {
            key: kept if key == UpdateCheckpoint().state_key else state for key, state in own["callbacks"].items()
        }
        own[of_data] = {**own[of_data], "seed": data.seed + number}
        folder.mkdir(parents=True, exist_ok=True)
        save_config(number, folder)
        checkpoint_io.save_checkpoint(own, folder / source.name)
        point_to(folder / LAST, source.name)


def refuse_occupied(folders: Sequence[Path]) -> None:
    """Keep a new run from taking the place of runs that are there already.

    Raises:
        CheckpointError: If one of the folders holds a run.
    """
    occupied = [str(folder) for folder in folders if (folder / LAST).exists()]
    if occupied:
        raise CheckpointError(
            f"{', '.join(occupied)} already {'hold runs' if len(occupied) > 1 else 'holds a run'} ({LAST}), which "
            "this run would replace when it ends. To keep them choose another --experiment or --seed_everything; to "
            "delete them and start afresh add --overwrite true"
        )
