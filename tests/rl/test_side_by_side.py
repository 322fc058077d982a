"""Several policies in one process: each becomes what it becomes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from kalm.rl.base import OfflineRLModule
from kalm.rl.side_by_side import policy_of
from kalm.types import TaskSpec
from tests.rl.helpers import FixedData, stacked_batch, trainer
from tests.rl.test_algorithms import each_case

SEEDS = (3, 4, 5)


def fit(
    algorithm: type[OfflineRLModule], batch: TensorDict, spec: TaskSpec, seed: int, folder: Path, **options: Any
) -> OfflineRLModule:
    """Six updates on fixed minibatches; a target update falls on the third."""
    policy = algorithm(spec, hidden_sizes=[16, 16], target_update_rate=0.5, target_update_interval=3, **options)
    data = FixedData(spec, batch)
    data.seed = seed
    trainer(folder, 6).fit(policy, data)
    return policy


def minibatches_of(algorithm: type[OfflineRLModule], spec: TaskSpec, seed: int) -> TensorDict:
    """Two updates' minibatches, different ones for every seed."""
    sequence_length = algorithm(spec).sequence_length
    batch = stacked_batch(spec, num_updates=2 + seed, num_rows=8, sequence_length=sequence_length)[-2:]
    batch["weight"] = torch.linspace(0.5, 1.5, batch.numel()).view(batch.shape)
    return batch


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_clip_norm": 0.05, "ema_rate": 0.4, "source_weights": {"imaginary": 0.3}, "warmup_updates": 4}],
    ids=["plain", "all options"],
)
@each_case
def test_each_policy_equals_its_own_single_run(
    algorithm: type[OfflineRLModule], spec: TaskSpec, options: dict[str, Any], tmp_path: Path
) -> None:
    """Up to rounding: weights, targets and averages, with minibatches, noise and first weights of its own seed."""
    batches = [minibatches_of(algorithm, spec, seed) for seed in SEEDS]
    together = fit(algorithm, torch.stack(batches, dim=1), spec, SEEDS[0], tmp_path, num_seeds=3, **options)
    for number, (seed, batch) in enumerate(zip(SEEDS, batches, strict=True)):
        alone = fit(algorithm, batch, spec, seed, tmp_path, **options)
        for found, expected in (
            (policy_of(dict(together.named_parameters()), number), dict(alone.named_parameters())),
            (together.acting_weights(number), alone.acting_weights()),
        ):
            assert found.keys() == expected.keys()
            for name in expected:
                assert_close(found[name], expected[name], name)


def assert_close(found: Tensor, expected: Tensor, name: str) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4, msg=lambda text: f"{name}: {text}")
