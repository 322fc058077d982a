"""Training in two parts equals training in one, for every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from kalm.callbacks.every_run import UpdateCheckpoint
from kalm.callbacks.success_rate import SuccessRate
from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import Spec
from kalm.data.choice import RolloutFilter
from kalm.data.rollout_sources import ImaginedRollouts
from kalm.rl.base import OfflineRLModule
from tests.chain_domain import ChainDomain
from tests.data.rollouts import write_store
from tests.rl.helpers import build, chain_data, trainer, world
from tests.rl.test_algorithms import each_case


def fit(
    algorithm: type[OfflineRLModule],
    spec: Spec,
    num_seeds: int,
    stores: Path,
    run: Path,
    max_steps: int,
    ckpt_path: Path | None = None,
) -> dict[str, Any]:
    """Train on real and imagined rollouts, validating and saving on the way; returns the final checkpoint."""
    lightning.seed_everything(0)
    imagined = ImaginedRollouts([str(stores / "imagined")], RolloutFilter.none)
    data = chain_data(stores, world(spec), updates_per_step=5, imagined=imagined)
    policy = build(
        algorithm,
        data.spec,
        hidden_sizes=[16],
        learning_rate=1e-3,
        target_update_rate=0.5,
        target_update_interval=7,
        ema_rate=0.1,
        num_seeds=num_seeds,
    )
    data.sequence_length = policy.sequence_length
    callbacks = [UpdateCheckpoint(every_n_updates=20, num_kept=10), SuccessRate()]
    fitted = trainer(run, max_steps, callbacks, enable_checkpointing=True, limit_val_batches=1.0, val_check_interval=3)
    fitted.fit(policy, data, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(run / f"update={max_steps}.ckpt", weights_only=True)


def imagined(domain: ChainDomain, real: Rollout, goals: Sequence[InstructedGoal]) -> Rollout:
    """The rollout as if it had been imagined for one of ``goals``."""
    instructed = goals[len(real) % len(goals)]
    return domain.label_rollout(instructed, real.observations, real.actions, Source.IMAGINARY, {"model": "walk"})


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested structures of plain types and tensors differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {one.keys() ^ other.keys()}"]
        return [d for key in one for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for n, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}/{n}")]
    return [] if one == other else [f"{path}: {one!r} {other!r}"]


@pytest.mark.parametrize("num_seeds", [1, 2], ids=["one seed", "two seeds"])
@each_case
def test_two_parts_equal_one_run(algorithm: type[OfflineRLModule], spec: Spec, num_seeds: int, tmp_path: Path) -> None:
    """20 + 20 updates equal 40 in weights, targets, averages and optimizer, across a target update and a validation."""
    domain = world(spec)
    easy = domain.instructed_goals("easy")
    write_store(tmp_path / "imagined", [imagined(domain, r, easy) for r in domain.collect(60, seed=1)], domain=domain)
    whole = fit(algorithm, spec, num_seeds, tmp_path, tmp_path / "whole", 40)
    fit(algorithm, spec, num_seeds, tmp_path, tmp_path / "parts", 20)
    parts = fit(algorithm, spec, num_seeds, tmp_path, tmp_path / "parts", 40, tmp_path / "parts" / "update=20.ckpt")
    for key in ("global_step", "state_dict", "optimizer_states", "kalm_policy", "kalm_average"):
        assert differences(whole[key], parts[key]) == []
    lines = [(tmp_path / run / "results.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    anonymous = [sorted(line.replace('"whole"', "run").replace('"parts"', "run") for line in run) for run in lines]
    assert anonymous[0] == anonymous[1]
    assert len(anonymous[0]) == len(set(anonymous[0])) > 0
