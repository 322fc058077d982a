"""Updates a second through Lightning, with everything that ``kalm fit`` does for an update.

That is drawing from the store, the training step, the check for values that are not finite, and the loggers and
callbacks of the command line; not validation and checkpoints, whose number the user chooses. ``fit`` serves
policy_throughput.py, which measures it beside a plain loop; peer_throughput.py runs this file in a process of its own:

    python -m tests.benchmarks.lightning_throughput '{"case": "BC (100)", "store": PATH, "seconds": 3, "threads": 2,
        "clock": "wall"}'
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from kalm.callbacks.every_run import RandomState, UpdateAxis
from kalm.callbacks.throughput import Throughput
from kalm.runs.loggers import MetricsFileLogger, RunTensorBoardLogger
from tests.benchmarks.throughput_cases import CASES, UPDATES_PER_STEP, Case, policy_data

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}

# Few, as 20 updates make a training step; the first run only finds out how many updates fit into the time.
_NUM_WARM_UP_UPDATES = 2 * UPDATES_PER_STEP


class Stopwatch(Callback):
    """Seconds between the first training step and the end, without the set-up."""

    def __init__(self, clock: Clock) -> None:
        """Measure with ``clock``."""
        self.clock = clock
        self.began = self.seconds = 0.0

    def on_train_start(self, *args: Any) -> None:
        """Start."""
        self.began = self.clock()

    def on_train_end(self, *args: Any) -> None:
        """Stop."""
        self.seconds = self.clock() - self.began


def fit(case: Case, store: Path, num_updates: int, clock: Clock, num_seeds: int = 1) -> float:
    """Updates a second through Lightning, each of all policies side by side."""
    torch.manual_seed(0)
    data = policy_data(store, case)
    stopwatch = Stopwatch(clock)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=num_updates,
            log_every_n_steps=10,
            callbacks=[stopwatch, RandomState(0), UpdateAxis(), Throughput()],
            logger=[RunTensorBoardLogger(folder), MetricsFileLogger(f"{folder}/metrics.csv")],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(case.algorithm(data.spec, num_seeds=num_seeds), data)
    return num_updates / stopwatch.seconds


def num_updates_in(rate: float, seconds: float) -> int:
    """Updates that take about so long, in whole training steps."""
    return max(2, round(rate * seconds / UPDATES_PER_STEP)) * UPDATES_PER_STEP


def quieten() -> None:
    """Keep Lightning's advice out of the output."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main() -> None:
    """Measure one case and print the rate and versions."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    quieten()
    case, store, clock = CASES[job["case"]], Path(job["store"]), CLOCKS[job["clock"]]
    rough = fit(case, store, _NUM_WARM_UP_UPDATES, clock)
    rate = fit(case, store, num_updates_in(rough, job["seconds"]), clock)
    versions = {"torch": torch.__version__, "lightning": lightning.__version__}
    sys.stdout.write(json.dumps({"updates_per_second": rate, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
