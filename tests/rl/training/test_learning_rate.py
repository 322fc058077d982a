"""The learning rate of every update, and which one counts after a resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from kalm.core.errors import KalmError
from kalm.rl.bc import BC
from kalm.rl.training.optimization import LearningRateSchedule, ScheduleKind
from tests.rl.helpers import DISCRETE, FixedData, stacked_batch, trainer


class Rates(Callback):
    """Notes the learning rate of every update."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Called right before each update."""
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates_of(folder: Path, num_updates: int, ckpt_path: Path | None = None, **options: Any) -> list[float]:
    """Learning rates of a run; its checkpoint is left in ``folder``."""
    rates = Rates()
    fitted = trainer(folder, num_updates, [rates])
    fitted.fit(BC(DISCRETE, **options), FixedData(DISCRETE, stacked_batch(DISCRETE)), ckpt_path=ckpt_path)
    fitted.save_checkpoint(folder / f"{num_updates}.ckpt")
    return rates.seen


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0]),
    ],
)
def test_factors_by_hand(kind: ScheduleKind, factors: list[float]) -> None:
    """Two updates up (1/2, 2/2), then four down: 1 - p, or (1 + cos(pi p)) / 2, at p = 0, 1/4, 1/2, 3/4, 1; then 0.

    (1 + cos(pi / 4)) / 2 = (1 + 0.707107) / 2 = 0.853553. A constant rate stays at 1.
    """
    schedule = LearningRateSchedule(kind, 2, None if kind == "constant" else 6)
    assert [schedule.factor(update) for update in range(7)] == pytest.approx(factors, abs=1e-6)


def test_every_update_has_the_schedules_learning_rate(tmp_path: Path) -> None:
    """Six updates in steps of two; the optimizer sees what the schedule says."""
    options = {"learning_rate_schedule": "linear", "warmup_updates": 2, "schedule_updates": 6}
    seen = rates_of(tmp_path, 6, learning_rate=0.1, **options)
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])


def test_a_resumed_schedule_goes_on_where_it_stood(tmp_path: Path) -> None:
    """2 + 4 updates have the learning rates of 6."""
    options: dict[str, Any] = {"learning_rate_schedule": "cosine", "schedule_updates": 6}
    whole = rates_of(tmp_path, 6, **options)
    first = rates_of(tmp_path, 2, **options)
    assert first + rates_of(tmp_path, 6, ckpt_path=tmp_path / "2.ckpt", **options) == whole
    assert len(set(whole)) == 6


def test_an_edited_learning_rate_wins_over_the_checkpoint_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The configuration wins over the checkpoint, and says so; nothing is said where nothing was edited."""
    rates_of(tmp_path, 2, learning_rate=0.1)
    said = []
    for rate in (0.1, 0.02):
        caplog.clear()
        assert rates_of(tmp_path, 4, ckpt_path=tmp_path / "2.ckpt", learning_rate=rate) == [rate, rate]
        said.append([record.getMessage() for record in caplog.records if record.levelno == logging.WARNING])
    assert said[0] == []
    assert said[1] == [
        "learning rate of policy: 0.1 -> 0.02; the configuration wins over the checkpoint, from update 2 on"
    ]


def test_a_changing_learning_rate_is_logged(tmp_path: Path) -> None:
    """As ``train/learning_rate``; a constant one is not."""
    for options, expected in (({}, False), ({"warmup_updates": 4}, True)):
        fitted = trainer(tmp_path, 2)
        fitted.fit(BC(DISCRETE, learning_rate=0.4, **options), FixedData(DISCRETE, stacked_batch(DISCRETE)))
        assert ("train/learning_rate" in fitted.callback_metrics) == expected
    assert fitted.callback_metrics["train/learning_rate"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule_updates": 5},
        {"learning_rate_schedule": "linear"},
        {"learning_rate_schedule": "cosine", "schedule_updates": 5, "warmup_updates": 5},
        {"warmup_updates": -1},
    ],
    ids=str,
)
def test_schedules_that_cannot_be_followed_are_refused(options: dict[str, Any]) -> None:
    """At construction, naming the option."""
    with pytest.raises(KalmError, match=r"(schedule_updates|warmup_updates) is .*; it must be"):
        BC(DISCRETE, **options)
