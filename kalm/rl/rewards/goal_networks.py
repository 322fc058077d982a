"""The paper's proxy reward: one small network a goal, trained side by side (TEDUO, appendix C.5).

Each is a convolution of 32 channels and kernel 2 x 2, a hidden layer of 32 and one output; ReLU between, dropout of 0.1
before each linear layer, a learning rate of 1e-5, at most 3,000 epochs, and in the end the weights of the lowest loss
on held-out states. It knows a goal by its number alone, so it answers about no goal that it was not trained on.

Where the paper does not say: the grid enters as the eight binary digits of each of its integers, which loses nothing
and needs no knowledge of what they mean; and minibatches hold as many states that meet a goal as do not.

Shape letters: B goals, N states of each, G networks, W columns, H rows, C integers a tile, D numbers behind the
convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import DataError, require
from kalm.core.specs import GridObservation, Spec
from kalm.data.labelled_goals import Part
from kalm.rl.rewards.base import REWARD, ProxyReward

_KERNEL, _BITS = 2, 8


class GoalNetworks(ProxyReward):
    """G networks; ``LabelData`` with ``form: grid`` and ``max_goals: G``. In evaluation the best weights answer."""

    best_loss: Tensor

    def __init__(
        self,
        spec: Spec,
        num_goals: int = 12,
        num_channels: int = 32,
        hidden_size: int = 32,
        dropout: float = 0.1,
        learning_rate: float = 1e-5,
        examine_every_n_updates: int = 500,
        precision: float = 0.95,
    ) -> None:
        """Build them with random weights.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            num_goals: Networks, G; set ``max_goals`` of the data to it.
            num_channels: Channels of the convolution (paper: 32).
            hidden_size: Width of the hidden layer (paper: 32).
            dropout: Share of numbers dropped before each linear layer, in [0, 1) (paper: 0.1).
            learning_rate: Adam's (paper: 1e-5).
            examine_every_n_updates: Updates between two looks at the loss on held-out states.
            precision: Least precision of the thresholds on held-out labels, in (0, 1] (paper: 0.95).
        """
        sizes = {"num_goals": num_goals, "num_channels": num_channels, "hidden_size": hidden_size, "dropout": dropout}
        super().__init__(sizes, precision)
        require(num_goals >= 1, "num_goals", num_goals, "1 or more")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        require(examine_every_n_updates >= 1, "examine_every_n_updates", examine_every_n_updates, "1 or more")
        grid = spec.observation
        if not isinstance(grid, GridObservation) or len(grid.shape) != 3 or grid.num_numbers or grid.is_wide:
            raise DataError(f"observations are {grid}; these networks read grids of bytes, (W, H, C), and no numbers")
        width, height, depth = grid.shape
        size = (width - _KERNEL + 1) * (height - _KERNEL + 1) * num_channels
        self._dropout, self._learning_rate, self._every = dropout, learning_rate, examine_every_n_updates
        shapes = {
            "convolution": ((num_goals, num_channels, _BITS * depth, _KERNEL, _KERNEL), _BITS * depth * _KERNEL**2),
            "convolution_bias": ((num_goals, num_channels), _BITS * depth * _KERNEL**2),
            "hidden": ((num_goals, size, hidden_size), size),
            "hidden_bias": ((num_goals, hidden_size), size),
            "output": ((num_goals, hidden_size), hidden_size),
            "output_bias": ((num_goals,), hidden_size),
        }
        # PyTorch's own first weights: uniform within one over the root of the numbers that come in.
        self.weights = nn.ParameterDict(
            {
                name: torch.empty(shape).uniform_(-1, 1) / math.sqrt(entering)
                for name, (shape, entering) in shapes.items()
            }
        )
        for name, value in self.weights.items():
            self.register_buffer(f"best_{name}", value.detach().clone())
        self.register_buffer("best_loss", torch.full((num_goals,), torch.inf))
        self._examined_at = -1

    def setup(self, stage: str) -> None:
        """Compare the goals with the networks that there are."""
        if self.data.max_goals is None or len(self.data.learned_goals) > self.sizes["num_goals"]:
            raise DataError(
                f"num_goals is {self.sizes['num_goals']}, max_goals is {self.data.max_goals}; let them be equal"
            )

    def log_likelihood(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log P(met) and log P(not met), shape (B, N), of goals whose number is known."""
        goal, grid = batch["goal"], batch["state"]
        weights = {
            name: (value if self.training else getattr(self, f"best_{name}"))[goal]
            for name, value in self.weights.items()
        }
        digits = grid.flatten(0, 1).permute(0, 3, 1, 2)[:, :, None].int() >> torch.arange(
            _BITS, device=grid.device
        ).view(-1, 1, 1)
        num_goals, num_states = grid.shape[:2]
        entered = (digits & 1).float().flatten(1, 2).unflatten(0, (num_goals, num_states))
        # Networks side by side are the groups of one convolution.
        together = entered.transpose(0, 1).flatten(1, 2)
        seen = functional.conv2d(
            together, weights["convolution"].flatten(0, 1), weights["convolution_bias"].flatten(), groups=num_goals
        )
        seen = self._drop(seen.relu().unflatten(1, (num_goals, -1)).flatten(2).transpose(0, 1))
        hidden = self._drop(torch.baddbmm(weights["hidden_bias"][:, None], seen, weights["hidden"]).relu())
        logit = (hidden * weights["output"][:, None]).sum(-1) + weights["output_bias"][:, None]
        return functional.logsigmoid(logit), functional.logsigmoid(-logit)

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the held-out states now and then."""
        if self.global_step % self._every == 0:
            self._keep_the_best()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Choose thresholds for the best weights, and say which goal is which."""
        self._keep_the_best()
        checkpoint["state_dict"] = self.state_dict()  # the best ones may have changed just now
        super().on_save_checkpoint(checkpoint)
        checkpoint[REWARD]["instructions"] = [goal.instruction for goal in self.data.learned_goals]

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self._learning_rate)

    def _drop(self, numbers: Tensor) -> Tensor:
        return functional.dropout(numbers, self._dropout, self.training)

    @torch.no_grad()
    def _keep_the_best(self) -> None:
        """Of each goal, keep the weights if their loss on its held-out states is the lowest so far."""
        if self._examined_at == self.global_step:
            return
        self._examined_at = self.global_step
        kept = {name: getattr(self, f"best_{name}").clone() for name in self.weights}
        for name, value in self.weights.items():
            getattr(self, f"best_{name}").copy_(value)
        is_better = torch.zeros_like(self.best_loss, dtype=torch.bool)
        for one in self.data.examined(Part.calibration, only_known=True):
            probability = torch.from_numpy(self.probabilities(one.batch)).clamp(1e-6, 1 - 1e-6)
            loss = functional.binary_cross_entropy(probability, torch.from_numpy(one.met).float())
            place = int(one.batch["goal"])
            is_better[place] = loss < self.best_loss[place]
            self.best_loss[place] = torch.minimum(self.best_loss[place], loss.to(self.device))
        for name, value in kept.items():
            best = getattr(self, f"best_{name}")
            best[~is_better] = value[~is_better]
