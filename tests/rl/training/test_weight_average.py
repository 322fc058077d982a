"""Averaged weights: what they are, that evaluation acts with them, and that they survive a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from kalm.core.errors import CheckpointError
from kalm.rl.bc import BC
from kalm.rl.training.optimization import WeightAverage
from tests.rl.helpers import DISCRETE, FixedData, chain_data, stacked_batch, trainer


def test_averages_by_hand() -> None:
    """Rate 1/4 over weights 8, 4, 0, 8, 0, 16: plain means 8, 6, 4, 5 while 1/u >= 1/4, then a quarter of the way.

    5 + (0 - 5) / 4 = 3.75; 3.75 + (16 - 3.75) / 4 = 6.8125. The 100 at the start counts for nothing.
    """
    weight, average, seen = torch.tensor([100.0]), WeightAverage(0.25), []
    average.start({"weight": weight})
    for number, value in enumerate([8.0, 4.0, 0.0, 8.0, 0.0, 16.0], start=1):
        weight.fill_(value)
        average.update(number)
        seen.append(average.tensors["weight"].item())
    assert seen == pytest.approx([8.0, 6.0, 4.0, 5.0, 3.75, 6.8125])


def fit(folder: Path, num_updates: int, ckpt_path: Path | None = None, **options: Any) -> BC:
    """A policy on fixed minibatches; its checkpoint is left in ``folder``."""
    lightning.seed_everything(0)
    policy = BC(DISCRETE, hidden_sizes=[8], learning_rate=0.05, **options)
    fitted = trainer(folder, num_updates)
    fitted.fit(policy, FixedData(DISCRETE, stacked_batch(DISCRETE)), ckpt_path=ckpt_path)
    fitted.save_checkpoint(folder / f"{num_updates}.ckpt")
    return policy


def test_training_goes_on_as_without_an_average(tmp_path: Path) -> None:
    """Equal weights; the checkpoint has the averages beside them, which are others."""
    averaging = fit(tmp_path, 10, ema_rate=0.2)
    checkpoint = torch.load(tmp_path / "10.ckpt", weights_only=True)
    plain = fit(tmp_path, 10)
    assert all(torch.equal(*pair) for pair in zip(averaging.parameters(), plain.parameters(), strict=True))
    assert "kalm_average" not in torch.load(tmp_path / "10.ckpt", weights_only=True)
    assert checkpoint["kalm_average"].keys() == dict(plain.named_parameters()).keys()
    for name, average in checkpoint["kalm_average"].items():
        assert torch.equal(checkpoint["state_dict"][name], plain.state_dict()[name])
        assert not torch.equal(average, plain.state_dict()[name])


def test_a_resumed_run_goes_on_with_its_average(tmp_path: Path) -> None:
    """6 + 4 updates equal 10."""
    fit(tmp_path, 10, ema_rate=0.2)
    whole = torch.load(tmp_path / "10.ckpt", weights_only=True)["kalm_average"]
    fit(tmp_path, 6, ema_rate=0.2)
    fit(tmp_path, 10, ckpt_path=tmp_path / "6.ckpt", ema_rate=0.2)
    parts = torch.load(tmp_path / "10.ckpt", weights_only=True)["kalm_average"]
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_evaluation_acts_with_the_average(tmp_path: Path) -> None:
    """Through ``test`` of a loaded checkpoint: as a policy that has the averages for weights, not as the raw one."""
    data, path = chain_data(tmp_path), tmp_path / "policy.ckpt"
    fitted = trainer(tmp_path, 60)
    fitted.fit(BC(data.spec, hidden_sizes=[8], learning_rate=0.05, ema_rate=0.001), data)
    fitted.save_checkpoint(path)
    averages = torch.load(path, weights_only=True)["kalm_average"]
    actions = {}
    for name, ema_rate in (("averaged", 0.001), ("averages as weights", None), ("raw", None)):
        policy = BC(data.spec, hidden_sizes=[8], ema_rate=ema_rate)
        trainer(tmp_path, -1).test(policy, data, ckpt_path=path, verbose=False, weights_only=True)
        if name == "averages as weights":
            policy.load_state_dict({**policy.state_dict(), **averages})
            trainer(tmp_path, -1).test(policy, data, verbose=False)
        actions[name] = [result.actions.tolist() for result in policy.episode_results]
    assert actions["averaged"] == actions["averages as weights"]
    assert actions["averaged"] != actions["raw"]


def test_a_checkpoint_without_averages_is_refused(tmp_path: Path) -> None:
    """The error says what it was trained with."""
    fit(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"ema_rate is 0.1, but .* trained with ema_rate null"):
        fit(tmp_path, 4, ckpt_path=tmp_path / "2.ckpt", ema_rate=0.1)
