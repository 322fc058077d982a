"""Updates a second of d3rlpy, in its own virtual environment; peer_throughput.py runs this file there.

    PYTHON_OF_D3RLPY tests/benchmarks/d3rlpy_throughput.py '{"algorithm": "BC", "is_discrete": true,
        "batch_size": 100, "arrays": PATH, "seconds": 3, "threads": 2, "clock": "wall"}'

Timed is ``algo.fit`` on an ``MDPDataset``: its own sampling and its own loop, with nothing logged, no progress bar, no
scaler and no evaluation. Its option for speed, ``compile_graph``, does nothing without a GPU. The networks are its
default: two layers of 256. CQL goes without the Lagrange multiplier, as ours and as the authors' code by default.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import d3rlpy
import numpy as np
import structlog
import torch

_NUM_WARM_UP_UPDATES = 20


def build(algorithm: str, is_discrete: bool, batch_size: int) -> Any:
    """The algorithm with d3rlpy's defaults."""
    algos = d3rlpy.algos
    config = {
        ("TD3BC", False): algos.TD3PlusBCConfig,
        ("CQL", False): algos.CQLConfig,
        ("AWAC", False): algos.AWACConfig,
        ("IQL", False): algos.IQLConfig,
        ("BC", False): algos.BCConfig,
        ("CQL", True): algos.DiscreteCQLConfig,
        ("BC", True): algos.DiscreteBCConfig,
    }[algorithm, is_discrete]
    options = {"alpha_learning_rate": 0.0} if config is algos.CQLConfig else {}
    return config(batch_size=batch_size, **options).create(device="cpu")


def fit(algo: Any, dataset: Any, num_updates: int, clock: Callable[[], float]) -> float:
    """Updates a second of d3rlpy's own loop."""
    began = clock()
    algo.fit(
        dataset,
        n_steps=num_updates,
        n_steps_per_epoch=num_updates,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    return num_updates / (clock() - began)


def main() -> None:
    """Measure one case and print the rate and versions."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    arrays = np.load(job["arrays"])
    dataset = d3rlpy.dataset.MDPDataset(
        observations=arrays["observation"],
        actions=arrays["action"],
        rewards=arrays["reward"],
        terminals=arrays["terminated"].astype(np.float32),
        action_size=40 if job["is_discrete"] else None,
    )
    algo = build(job["algorithm"], job["is_discrete"], job["batch_size"])
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[job["clock"]]
    rough = fit(algo, dataset, _NUM_WARM_UP_UPDATES, clock)  # with the building of the networks
    rough = fit(algo, dataset, max(_NUM_WARM_UP_UPDATES, round(rough)), clock)
    rate = fit(algo, dataset, max(_NUM_WARM_UP_UPDATES, round(rough * job["seconds"])), clock)
    versions = {"torch": torch.__version__, "d3rlpy": d3rlpy.__version__}
    sys.stdout.write(json.dumps({"updates_per_second": rate, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
