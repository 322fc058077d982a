"""What a policy takes from the data module of its trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lightning import LightningModule

from kalm.core.errors import DataError, KalmError

if TYPE_CHECKING:
    from kalm.data.policy_data import PolicyData
    from kalm.rl.base import OfflineRLModule


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


def check_fit(policy: OfflineRLModule, data: PolicyData) -> None:
    """Refuse data that the policy cannot read, and updates that training steps cannot hit exactly.

    Raises:
        DataError: If the sizes, or the lengths of windows, differ.
        KalmError: If ``max_steps`` is no multiple of the updates of a training step.
    """
    if data.spec != policy.spec:
        raise DataError(f"the policy was built for {policy.spec}, but the data have {data.spec}; give both one domain")
    if data.sequence_length != policy.sequence_length:
        raise DataError(
            f"{type(policy).__name__} reads windows of {policy.sequence_length} steps, but data.sequence_length is "
            f"{data.sequence_length}; set data.sequence_length to {policy.sequence_length}"
        )
    max_steps, per_step = policy.trainer.max_steps, data.updates_per_step
    if max_steps % per_step and max_steps != -1:
        raise KalmError(
            f"trainer.max_steps is {max_steps}, which is no multiple of data.updates_per_step {per_step}; "
            f"use {max_steps // per_step * per_step or per_step} updates, or an updates_per_step that divides it"
        )


def take_statistics(policy: OfflineRLModule, data: PolicyData) -> None:
    """Give the policy the table of goal embeddings, and its normalisers the data's statistics."""
    if policy.normalize_observation:
        policy.observation_normalizer.set_statistics(data.observation_mean, data.observation_std)
    if policy.normalize_goal_embedding:
        mean = data.goal_embeddings.mean(0)
        policy.goal_normalizer.set_statistics(mean, (data.goal_embeddings - mean).square().mean().sqrt())
    policy.goal_embeddings = policy.goal_normalizer(data.goal_embeddings.to(policy.device))
