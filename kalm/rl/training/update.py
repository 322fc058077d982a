"""One update of a policy: its losses, added up and weighed, one optimizer step, then targets and averages.

Shape letters: S policies side by side, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from kalm.rl.training.gradient_step import GradientStep
from kalm.rl.training.learning_rate import LearningRate
from kalm.rl.training.side_by_side import side_by_side

if TYPE_CHECKING:
    from kalm.rl.base import OfflineRLModule


class Update:
    """Updates all networks of a policy, or of S policies side by side, as the policy's options say."""

    def __init__(self, policy: OfflineRLModule) -> None:
        """Look once at how updates are to be made.

        Args:
            policy: Attached to a trainer, with its optimizer and its final parameters.
        """
        optimizer = cast(LightningOptimizer, policy.optimizers())
        self.gradient_step = GradientStep(policy, optimizer, policy.gradient_clip_norm, policy.num_seeds)
        rates = [group["lr"] for group in policy.configure_optimizers().param_groups]
        self.learning_rate = LearningRate(policy.schedule, optimizer.optimizer, rates, policy.trainer.global_step)
        self._policy = policy
        losses: Callable[[Any], Sequence[dict[str, Tensor]]] = self._losses_and_measurements
        if policy.num_seeds > 1:
            losses = side_by_side(policy, losses, policy.num_seeds)
        self._losses = torch.compile(losses) if policy.compile_losses else losses
        if policy.average is not None:
            policy.average.start({name: p for name, p in policy.named_parameters() if p.requires_grad})

    def __call__(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Make update ``number``, counted from 0.

        Args:
            batch: What the policy's ``losses`` read; rows of policies side by side one after the other, (S * B, ...).
            number: It decides the learning rate, whether targets follow, and what else the policy makes depend on it.

        Returns:
            Every loss, unweighted, and every measurement, one number a row; detached.
        """
        self._policy.begin_update(number)
        losses, measured = self._losses(batch)
        total = torch.stack(list(losses.values())).sum(0, dtype=torch.float32)
        if batch.weight is not None:
            total = total * batch.weight
        # Each policy minimises the mean over its own rows; their sum has the gradients of all.
        loss = total.mean() if self._policy.num_seeds == 1 else total.mean() * self._policy.num_seeds
        self.learning_rate.set(number)
        self.gradient_step(loss)
        self._follow(number)
        return {name: values.detach() for name, values in losses.items()} | measured

    def _losses_and_measurements(self, batch: Any) -> Sequence[dict[str, Tensor]]:
        # Into a new dictionary: one that is older than a compiled function would have to be kept in step with it.
        self._policy.take_measurements()
        losses = self._policy.losses(batch)
        return losses, self._policy.take_measurements()

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Let targets and averages follow their networks."""
        policy = self._policy
        if (number + 1) % policy.target_update_interval == 0:
            for target, network in policy.targets:
                torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), policy.target_update_rate)
        if policy.average is not None:
            policy.average.update(number + 1)
