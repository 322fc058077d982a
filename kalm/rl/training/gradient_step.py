"""Backward pass and optimizer step, without Lightning's bookkeeping around them where nobody would notice.

Lightning calls eight hooks around every update. For networks this small that costs a tenth of the update, so an update
goes straight to torch unless something is there to hook into it. Mixed precision needs nothing more: Lightning puts
its autocast around the whole training step.

Shape letters: S policies side by side.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from kalm.core.errors import KalmError

_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class GradientStep:
    """Minimises a loss by one step, and counts it as one update of the trainer."""

    def __init__(
        self, module: LightningModule, optimizer: LightningOptimizer, clip_norm: float | None, num_policies: int = 1
    ) -> None:
        """Look at what the trainer has, and choose the way.

        Args:
            module: Whose parameters to update; attached to a trainer.
            optimizer: Its only optimizer, as Lightning wraps it.
            clip_norm: Largest norm of the whole gradient; None does not clip.
            num_policies: Policies whose parameters are stacked in the module's, S; the gradient of each is clipped by
                itself.

        Raises:
            KalmError: If gradients are to be clipped that are scaled, as those of half precision are.
        """
        self._module = module
        self._optimizer = optimizer
        self._bare_optimizer: Optimizer = optimizer.optimizer
        self._clip_norm, self._num_policies = clip_norm, num_policies
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._progress = module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        self.is_direct = _is_direct(module)
        if clip_norm is not None and _is_scaled(module):
            raise KalmError(
                f"gradient_clip_norm is {clip_norm} with trainer.precision {module.trainer.precision}, whose gradients "
                "are scaled; use trainer.precision bf16-mixed, or gradient_clip_norm null"
            )

    def __call__(self, loss: Tensor) -> None:
        """Minimise ``loss``, a scalar, by one step."""
        self._bare_optimizer.zero_grad()
        if self.is_direct:
            loss.backward()
            self._clip()
            self._progress.increment_ready()
            self._bare_optimizer.step()
            self._progress.increment_completed()
        else:
            self._module.manual_backward(loss)
            self._clip()
            self._optimizer.step()

    def _clip(self) -> None:
        # Lightning refuses its own gradient_clip_val in manual optimisation.
        if self._clip_norm is None:
            return
        if self._num_policies == 1:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        else:
            clip_each(self._parameters, self._clip_norm)


def clip_each(parameters: Iterable[nn.Parameter], clip_norm: float) -> None:
    """Clip the gradient of each policy as ``torch.nn.utils.clip_grad_norm_`` would clip it alone.

    Args:
        parameters: Stacks, of shape (S, ...).
        clip_norm: Largest norm of one policy's whole gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _is_direct(module: LightningModule) -> bool:
    """Whether going straight to torch does all that Lightning would do: one device, no loss scaling, no hooks."""
    trainer = module.trainer
    hooked = [*trainer.callbacks, module]  # type: ignore[attr-defined]
    return (
        isinstance(trainer.strategy, SingleDeviceStrategy)
        and not _is_scaled(module)
        and not any(is_overridden(hook, one) for one in hooked for hook in _HOOKS)
    )


def _is_scaled(module: LightningModule) -> bool:
    return getattr(module.trainer.precision_plugin, "scaler", None) is not None
