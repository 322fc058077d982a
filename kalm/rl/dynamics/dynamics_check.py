"""A judge of imagined steps that took no part in imagining: an ensemble that learned the world from real data alone.

A language model that imagines rollouts and learns from those that meet their goals may come to cheat: states that do
its will meet every goal. So a small model is trained on the real transitions only, without goals, to say how far each
action moves the observation. It judges in two ways. A step is marked that is farther from the members' mean than all
but a few real steps are that they never saw. And a rollout that meets its goal is marked if its actions do so in too
few of the members' own worlds, each of which errs in its own way: single steps may all be credible, and yet the goal
owe itself to errors that add up.

COMBO's model (``dynamics_ensemble.py``) says how uncertain it is and what is earned, for one goal; this one knows no
goals, whose imagined ones the real data lack.

Shape letters: B transitions, R rollouts, N members, O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kalm.core import names
from kalm.core.errors import CheckpointError, DataError, require
from kalm.core.goal import success_of_each
from kalm.core.rollout import Rollout
from kalm.core.specs import TaskSpec
from kalm.envs.base import Domain
from kalm.rl.networks.mlp import EnsembleMLP
from kalm.runs.checkpoint_io import VerifiedCheckpointIO

_JUDGE = "kalm_dynamics_check"


class DynamicsCheck(LightningModule):
    """The ensemble, how it is trained on ``TransitionData``, and the limit that its held-out rollouts give.

    ``kalm.judging.dynamics_veto`` makes two judges of it.

    Attributes:
        error_limit: Error above which a step is marked; known once a checkpoint was loaded by ``load_dynamics_check``.
    """

    observation_mean: Tensor
    observation_std: Tensor
    change_std: Tensor
    least_outcome: Tensor
    greatest_outcome: Tensor

    def __init__(
        self,
        spec: TaskSpec,
        num_members: int = 3,
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 1e-3,
        schedule_updates: int = 4000,
        false_alarm_rate: float = 0.001,
    ) -> None:
        """Build it with random weights.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            num_members: Members, N.
            hidden_sizes: Width of each hidden layer of each.
            learning_rate: Adam's, at first.
            schedule_updates: Updates over which it falls to 0 along half a cosine; set it to ``trainer.max_steps``.
            false_alarm_rate: Share of real steps of held-out rollouts to be marked for nothing, in (0, 1).
        """
        super().__init__()
        require(num_members >= 1, "num_members", num_members, "1 or more")
        require(len(hidden_sizes) > 0 and min(hidden_sizes) > 0, "hidden_sizes", hidden_sizes, "widths of 1 or more")
        require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
        require(schedule_updates >= 1, "schedule_updates", schedule_updates, "1 or more")
        require(0 < false_alarm_rate < 1, "false_alarm_rate", false_alarm_rate, "in (0, 1)")
        self.spec = spec
        self._sizes = {"num_members": num_members, "hidden_sizes": list(hidden_sizes)}
        self._learning_rate, self._schedule_updates = learning_rate, schedule_updates
        self._false_alarm_rate = false_alarm_rate
        inputs = [spec.observation_size, spec.action_size]
        self.num_members = num_members
        self.members = EnsembleMLP(num_members, inputs, hidden_sizes, spec.observation_size)
        self.error_limit = torch.inf
        size = (spec.observation_size,)
        self.register_buffer("observation_mean", torch.zeros(size))
        self.register_buffer("observation_std", torch.ones(size))
        self.register_buffer("change_std", torch.ones(size))
        self.register_buffer("least_outcome", torch.full(size, -torch.inf))
        self.register_buffer("greatest_outcome", torch.full(size, torch.inf))

    def setup(self, stage: str) -> None:
        """Take the statistics of the training data."""
        if stage == "fit":
            of_observation, of_change, of_outcome = self.trainer.datamodule.moments  # type: ignore[attr-defined]
            self.observation_mean.copy_(of_observation.mean)
            self.observation_std.copy_(of_observation.std)
            self.change_std.copy_(of_change.std)
            self.least_outcome.copy_(of_outcome.least)
            self.greatest_outcome.copy_(of_outcome.greatest)

    def losses(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Squared error of the change, in units of the spread of changes: mean over members and numbers, shape (B,).

        Of observations (B, O) and actions, int64 of shape (B,) or float of shape (B, A).
        """
        change = (next_observation - observation) / self.change_std
        return (self._changes(observation, action) - change).square().mean(dim=(0, 2))

    def errors(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """How far a step, as in ``losses``, is from what members expect on average: root mean square, shape (B,)."""
        change = (next_observation - observation) / self.change_std
        return (self._changes(observation, action).mean(0) - change).square().mean(-1).sqrt()

    @torch.inference_mode()
    def num_confirming(self, domain: Domain, rollouts: Sequence[Rollout]) -> NDArray[np.int64]:
        """In how many members' worlds the actions of a rollout, which is not empty, meet its goal; shape (R,)."""
        goals = [domain.goal_from_json(rollout.goal) for rollout in rollouts]
        num_steps = np.array([len(rollout) for rollout in rollouts])
        start = torch.from_numpy(np.stack([rollout.observations[0] for rollout in rollouts]).astype(np.float32))
        worlds = start.repeat(self.num_members, 1, 1)  # (N, R, O)
        is_met = np.zeros(worlds.shape[:2], dtype=np.bool_)
        for step in range(num_steps.max()):
            # Who has no action left gets the last one again; what it leads to is not looked at.
            actions = np.stack([rollout.actions[min(step, len(rollout) - 1)] for rollout in rollouts])
            taken = self._action_numbers(torch.from_numpy(actions)).expand(len(worlds), -1, -1)
            changes = self.members.each(self._normalised(worlds), taken)
            after = (worlds + changes * self.change_std).clamp(self.least_outcome, self.greatest_outcome)
            for member, (before, reached) in enumerate(zip(worlds.numpy(), after.numpy(), strict=True)):
                is_met[member] |= (step < num_steps) & success_of_each(goals, reached, before, actions)
            worlds = after
        counts: NDArray[np.int64] = is_met.sum(axis=0)
        return counts

    def training_step(self, batch: dict[Any, Tensor], batch_index: int) -> Tensor:
        """One update."""
        loss = self.losses(*_columns(batch)).mean()
        if not torch.isfinite(loss):
            raise DataError(
                f"dynamics/loss is {loss.item()} at update {self.global_step}; it must be finite. Check the rollouts "
                "for extreme numbers, or lower learning_rate"
            )
        self.log("dynamics/loss", loss.detach(), batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, whose rate falls to zero."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self._learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._schedule_updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how the model is built, and find the limit of the weights that are being saved."""
        held_out = self.trainer.datamodule.held_out  # type: ignore[attr-defined]
        with torch.no_grad():
            errors = self.errors(*(column.to(self.device) for column in _columns(held_out)))
        limit = float(torch.quantile(errors.double().cpu(), 1 - self._false_alarm_rate))
        checkpoint[_JUDGE] = {**self._sizes, "error_limit": limit, "median_error": float(errors.median())}

    def _changes(self, observation: Tensor, action: Tensor) -> Tensor:
        """What each member expects, in units of the spread of changes, shape (N, B, O)."""
        return self.members(self._normalised(observation), self._action_numbers(action))

    def _normalised(self, observation: Tensor) -> Tensor:
        return (observation - self.observation_mean) / self.observation_std

    def _action_numbers(self, action: Tensor) -> Tensor:
        """Actions as numbers, shape (B, A): one-hot where they are indices."""
        return functional.one_hot(action, self.spec.action_size).float() if self.spec.is_discrete else action


def load_dynamics_check(path: Path, domain: Domain) -> DynamicsCheck:
    """The model of a checkpoint, ready to judge, on the CPU.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or of something else.
    """
    checkpoint = VerifiedCheckpointIO().load_checkpoint(path)
    if _JUDGE not in checkpoint:
        raise CheckpointError(
            f"{path} holds no dynamics check; train one: python -m kalm fit --config conf/clevr_robot/dynamics.yaml"
        )
    facts = checkpoint[_JUDGE]
    check = DynamicsCheck(domain.spec, facts["num_members"], facts["hidden_sizes"])
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    expected = {name: tuple(tensor.shape) for name, tensor in check.state_dict().items()}
    if found != expected:
        raise CheckpointError(f"{path} is of another world than {domain.name}: its tensors have other shapes")
    check.load_state_dict(checkpoint["state_dict"])
    check.error_limit = facts["error_limit"]
    return check.eval()


def _columns(batch: dict[Any, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return batch[names.OBSERVATION], batch[names.ACTION], batch[names.NEXT_OBSERVATION]
