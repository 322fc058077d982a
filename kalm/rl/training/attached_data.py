"""What a policy takes from the data module of its trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lightning import LightningModule

from kalm.core.errors import DataError, KalmError
from kalm.core.specs import TaskSpec

if TYPE_CHECKING:
    from kalm.data.policy_data import PolicyData


def attached_data(module: LightningModule) -> PolicyData:
    """The trainer's data module.

    Raises:
        KalmError: If the trainer has none.
    """
    data = getattr(module.trainer, "datamodule", None)
    if data is None:
        raise KalmError(
            f"{type(module).__name__} got no data module; pass kalm.data.policy_data.PolicyData to the trainer as "
            "datamodule: observation statistics and goal embeddings come from it"
        )
    return cast("PolicyData", data)


def check_fit(algorithm: str, spec: TaskSpec, sequence_length: int, data: PolicyData, max_updates: int) -> None:
    """Refuse data that a policy cannot read, and updates that training steps cannot hit exactly.

    Args:
        algorithm: The policy's name.
        spec: Sizes that it was built for.
        sequence_length: Steps of the windows that it reads; 1 for transitions.
        data: The data module.
        max_updates: ``trainer.max_steps``.

    Raises:
        DataError: If the sizes, or the lengths of windows, differ.
        KalmError: If ``max_updates`` is no multiple of the updates of a training step.
    """
    if data.spec != spec:
        raise DataError(f"the policy was built for {spec}, but the data have {data.spec}; give both one domain")
    if data.sequence_length != sequence_length:
        raise DataError(
            f"{algorithm} reads windows of {sequence_length} steps, but data.sequence_length is "
            f"{data.sequence_length}; set data.sequence_length to {sequence_length}"
        )
    per_step = data.updates_per_step
    if max_updates % per_step and max_updates != -1:
        raise KalmError(
            f"trainer.max_steps is {max_updates}, which is no multiple of data.updates_per_step {per_step}; "
            f"use {max_updates // per_step * per_step or per_step} updates, or an updates_per_step that divides it"
        )
