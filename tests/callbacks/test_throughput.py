"""The throughput callback on a clock that the test turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from kalm.callbacks import throughput
from kalm.rl.bc import BC
from tests.rl.helpers import DISCRETE, FixedData, chain_data, stacked_batch, trainer


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        """Start at an arbitrary time."""
        self.now = 100.0

    def __call__(self) -> float:
        """The present time."""
        return self.now


class Work(Callback):
    """Makes every training step take 3 s and every wait for data 1 s; a validation takes an hour."""

    def __init__(self, clock: Clock) -> None:
        """Turn ``clock``."""
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        """Runs after the throughput callback has taken the time."""
        self.clock.now += 3.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Runs after the throughput callback has taken the time."""
        self.clock.now += 1.0

    def on_validation_start(self, *args: Any) -> None:
        """Runs before the throughput callback takes the time again."""
        self.clock.now += 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock in place of the machine's."""
    turned = Clock()
    monkeypatch.setattr(throughput, "perf_counter", turned)
    return turned


def test_rates_and_wait_share(tmp_path: Path, clock: Clock) -> None:
    """Two steps of 2 updates x 6 transitions: 4 updates and 24 transitions in 3 + 1 + 3 = 7 s, 1 s of it waiting."""
    fitted = trainer(tmp_path, 4, [throughput.Throughput(), Work(clock)], log_every_n_steps=2)
    fitted.fit(BC(DISCRETE), FixedData(DISCRETE, stacked_batch(DISCRETE)))
    metrics = fitted.callback_metrics
    assert metrics["throughput/updates_per_second"] == pytest.approx(4 / 7)
    assert metrics["throughput/transitions_per_second"] == pytest.approx(24 / 7)
    assert metrics["throughput/wait_share"] == pytest.approx(1 / 7)


def test_validation_counts_as_neither_work_nor_waiting(tmp_path: Path, clock: Clock) -> None:
    """A validation after the first of two steps; its hour, and the wait before it, are left out: 10 updates in 6 s."""
    data = chain_data(tmp_path)
    callbacks = [throughput.Throughput(), Work(clock)]
    options = {"log_every_n_steps": 2, "limit_val_batches": 1, "val_check_interval": 1}
    fitted = trainer(tmp_path, 10, callbacks, **options)
    fitted.fit(BC(data.spec), data)
    assert fitted.callback_metrics["throughput/updates_per_second"] == pytest.approx(10 / 6)
    assert fitted.callback_metrics["throughput/wait_share"] == 0.0
