"""Several policies in one process: each becomes what it becomes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from kalm.core.errors import DataError
from kalm.core.specs import Spec
from kalm.rl.base import OfflineRLModule
from kalm.rl.bc import BC
from kalm.rl.cql import CQL
from kalm.rl.training.side_by_side import policy_of
from tests.rl.helpers import DISCRETE, FixedData, build, chain_data, stacked_batch, trainer
from tests.rl.test_algorithms import each_case

SEEDS = (3, 4, 5)


def fit(
    algorithm: type[OfflineRLModule],
    batch: TensorDict,
    spec: Spec,
    seed: int,
    folder: Path,
    precision: Any = 32,
    **options: Any,
) -> OfflineRLModule:
    """Six updates on fixed minibatches; a target update falls on the third."""
    policy = build(algorithm, spec, hidden_sizes=[16, 16], target_update_rate=0.5, target_update_interval=3, **options)
    data = FixedData(spec, batch)
    data.seed = seed
    trainer(folder, 6, precision=precision).fit(policy, data)
    return policy


def minibatches_of(algorithm: type[OfflineRLModule], spec: Spec, seed: int) -> TensorDict:
    """Two updates' minibatches, different ones for every seed."""
    sequence_length = build(algorithm, spec).sequence_length
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
    algorithm: type[OfflineRLModule], spec: Spec, options: dict[str, Any], tmp_path: Path
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


def test_a_policy_gets_the_same_in_any_company(tmp_path: Path) -> None:
    """On the chain's rollouts: the policy of seed 4 out of seeds 3, 4 and out of seeds 4, 5, 6, and alone."""
    found = []
    for first_seed, num_seeds in ((3, 2), (4, 3), (4, 1)):
        data = chain_data(tmp_path, seed=first_seed)
        policy = CQL(data.spec, hidden_sizes=[16], learning_rate=1e-3, num_seeds=num_seeds)
        trainer(tmp_path, 20).fit(policy, data)
        found.append(policy.acting_weights(4 - first_seed))
    for other in found[1:]:
        for name in other:
            assert_close(other[name], found[0][name], name)


@each_case
def test_mixed_precision_side_by_side(algorithm: type[OfflineRLModule], spec: Spec, tmp_path: Path) -> None:
    """bf16-mixed and ``vmap`` together: finite, other numbers than in full precision, in which the weights stay."""
    batch = torch.stack([minibatches_of(algorithm, spec, seed) for seed in SEEDS[:2]], dim=1)
    half, full = (
        dict(fit(algorithm, batch, spec, SEEDS[0], tmp_path, precision, num_seeds=2).named_parameters())
        for precision in ("bf16-mixed", 32)
    )
    assert {parameter.dtype for parameter in half.values()} == {torch.float32}
    assert any(not torch.equal(half[name], full[name]) for name in full)
    assert all(parameter.isfinite().all() for parameter in half.values())


def test_what_is_not_finite_is_named_with_its_seed(tmp_path: Path) -> None:
    """A reward of the second policy's second update, row 4: transition 12 of its stack, step 0 of rollout 4."""
    batch = torch.stack([stacked_batch(DISCRETE, num_rows=8)] * 3, dim=1)
    batch["next", "reward"][1, 1, 4] = float("nan")
    with pytest.raises(DataError, match=r"reward is not finite in rollout 4, step 0 \(real\), policy of seed 4"):
        fit(CQL, batch, DISCRETE, SEEDS[0], tmp_path, num_seeds=3)


def test_a_gradient_that_is_not_finite_is_named_with_its_seed(tmp_path: Path) -> None:
    """Only the third policy's part of one bias is spoilt."""

    class Spoilt(BC):
        def on_train_start(self) -> None:
            super().on_train_start()
            factors = torch.tensor([[1.0], [1.0], [float("nan")]])
            self.policy.output.bias.register_hook(lambda gradient: gradient * factors)

    batch = torch.stack([stacked_batch(DISCRETE, num_updates=1)] * 3, dim=1)
    with pytest.raises(DataError, match=r"gradient of policy\.output\.bias was not finite, policy of seed 5"):
        fit(Spoilt, batch, DISCRETE, SEEDS[0], tmp_path, num_seeds=3)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_compiled_losses_are_the_same(num_seeds: int, tmp_path: Path) -> None:
    """Up to rounding, with what is measured on the way; for one policy and for two side by side."""
    batch = stacked_batch(DISCRETE, num_rows=8)
    batch = batch if num_seeds == 1 else torch.stack([batch, stacked_batch(DISCRETE, 4, num_rows=8)[2:]], dim=1)
    outcomes, metrics = [], []
    for is_compiled in (False, True):
        policy = fit(CQL, batch, DISCRETE, SEEDS[0], tmp_path, num_seeds=num_seeds, compile=is_compiled)
        outcomes.append(dict(policy.named_parameters()))
        metrics.append(policy.trainer.callback_metrics)
    for name in outcomes[0]:
        assert_close(outcomes[1][name], outcomes[0][name], name)
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[1]["train/q_mean"] == pytest.approx(metrics[0]["train/q_mean"].item(), abs=1e-5)
