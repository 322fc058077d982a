"""Updates that do not all record the same: what is stacked, what is logged, what stays as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from kalm.core.specs import TaskSpec
from kalm.rl.base import OfflineRLModule
from kalm.rl.networks.mlp import goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch
from kalm.rl.training.recorded import source_means, stack_recorded
from tests.rl.helpers import CONTINUOUS, FixedData, stacked_batch, trainer


def test_updates_that_left_a_name_out_are_named() -> None:
    """The second of three updates recorded no ``policy``."""
    rows = [
        {"critic": torch.tensor([1.0, 2.0]), "policy": torch.tensor([5.0, 6.0])},
        {"critic": torch.tensor([3.0, 4.0])},
        {"critic": torch.tensor([0.0, 0.0]), "policy": torch.tensor([7.0, 8.0])},
    ]
    stacks, is_recorded = stack_recorded(rows)
    assert stacks["critic"].tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]
    assert stacks["policy"].tolist() == [[5.0, 6.0], [0.0, 0.0], [7.0, 8.0]]
    assert {name: updates.tolist() for name, updates in is_recorded.items()} == {"policy": [True, False, True]}


def test_a_mean_counts_only_updates_that_recorded_the_name() -> None:
    """Real (1, 3) and imaginary (5) of update 0; update 1, all imaginary, recorded nothing: 9 / 3 = 3, 2 and 5."""
    values = {"policy": torch.tensor([[1.0, 3.0, 5.0], [0.0, 0.0, 0.0]])}
    source = torch.tensor([[0, 0, 1], [1, 1, 1]])
    means = source_means(values, source, is_recorded={"policy": torch.tensor([True, False])})
    expected = {"train/policy": 3.0, "train/real/policy": 2.0, "train/imaginary/policy": 5.0}
    assert {name: float(value) for name, value in means.items()} == expected


def test_a_source_of_which_nothing_was_recorded_has_no_mean() -> None:
    """Imaginary rows are in update 1 only, which left the name out."""
    source = torch.tensor([[0, 0], [1, 1]])
    means = source_means({"policy": torch.ones(2, 2)}, source, is_recorded={"policy": torch.tensor([True, False])})
    assert set(means) == {"train/policy", "train/real/policy"}


class EveryThird(OfflineRLModule):
    """Two networks; the second is trained by updates 2, 5, 8 and so on."""

    def __init__(self, spec: TaskSpec, **options: Any) -> None:
        """Build both."""
        super().__init__(spec, **options)
        self.first, self.second = (
            goal_conditioned_mlp(spec, [4], spec.action_size),
            goal_conditioned_mlp(spec, [4], spec.action_size),
        )
        self.is_third = True
        self.weights_before: list[Tensor] = []

    def begin_update(self, number: int) -> None:
        """Keep the second network's weights."""
        self.is_third = number % 3 == 2
        self.weights_before.append(self.second.output.weight.detach().clone())

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Squared outputs; of the second network only at times."""
        losses = {"first_loss": self.first(batch.observation, batch.goal_embedding).square().sum(-1)}
        if self.is_third:
            losses["second_loss"] = self.second(batch.observation, batch.goal_embedding).square().sum(-1)
        return losses

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The first network's output."""
        return torch.tanh(self.first(observation, goal_embedding))


def batch_of(num_updates: int, num_seeds: int) -> TensorDict:
    """K stacked minibatches for one policy, or for several side by side."""
    batch = stacked_batch(CONTINUOUS, num_updates)
    return batch if num_seeds == 1 else torch.stack([batch] * num_seeds, dim=1)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_network_that_an_update_leaves_out_stays_as_it_is(num_seeds: int, tmp_path: Path) -> None:
    """Updates 2 and 5 move the second network, others not even by Adam's moments; numbers go on over training steps."""
    policy = EveryThird(CONTINUOUS, num_seeds=num_seeds)
    trainer(tmp_path, 8).fit(policy, FixedData(CONTINUOUS, batch_of(2, num_seeds)))
    pairs = itertools.pairwise(policy.weights_before)
    assert [bool((before != after).any()) for before, after in pairs] == [False, False, True, False, False, True, False]


class SecondLosses(lightning.Callback):
    """What is logged of the second loss after each training step."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.logged: list[float | None] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Read the trainer's metrics."""
        value = trainer.callback_metrics.get("train/second_loss")
        self.logged.append(None if value is None else float(value))


def test_a_loss_is_logged_as_its_mean_over_the_updates_that_have_it(tmp_path: Path) -> None:
    """Nothing in the first training step of two updates; then the loss of update 2 alone, not half of it."""
    torch.manual_seed(0)
    policy, batch, callback = EveryThird(CONTINUOUS, learning_rate=1e-9), batch_of(2, 1), SecondLosses()
    data = FixedData(CONTINUOUS, batch)
    trainer(tmp_path, 4, [callback]).fit(policy, data)
    output = policy.second(batch["observation"][0], policy.goal_embeddings.expand(6, -1)).detach()
    assert callback.logged == [None, pytest.approx(float(output.square().sum(-1).mean()), rel=1e-4)]
