"""Trains one policy with d3rlpy, in its own virtual environment; peer_success.py runs this file there.

    PYTHON_OF_D3RLPY tests/benchmarks/d3rlpy_policy.py '{"algorithm": "BC", "arrays": PATH, "weights": PATH, "seed": 0,
        "num_updates": 12000, "options": {"batch_size": 100}, "threads": 1}'

The linear layers of the trained network are written in the order in which they act: weight_0, bias_0, weight_1, ...
"""

from __future__ import annotations

import json
import logging
import sys

import d3rlpy
import numpy as np
import structlog
import torch
from torch import nn


def main() -> None:
    """Train and write the weights."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    d3rlpy.seed(job["seed"])
    arrays = np.load(job["arrays"])
    dataset = d3rlpy.dataset.MDPDataset(
        observations=arrays["observation"],
        actions=arrays["action"],
        rewards=arrays["reward"],
        terminals=arrays["terminated"],
        timeouts=arrays["truncated"],
        action_size=job["num_actions"],
    )
    config = {"BC": d3rlpy.algos.DiscreteBCConfig, "CQL": d3rlpy.algos.DiscreteCQLConfig}[job["algorithm"]]
    algo = config(**job["options"]).create(device="cpu")
    algo.fit(
        dataset,
        n_steps=job["num_updates"],
        n_steps_per_epoch=1000,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    network = algo.impl.modules.imitator if job["algorithm"] == "BC" else algo.impl.modules.q_funcs
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    weights = {f"weight_{number}": layer.weight.detach().numpy() for number, layer in enumerate(layers)}
    biases = {f"bias_{number}": layer.bias.detach().numpy() for number, layer in enumerate(layers)}
    np.savez(job["weights"], **weights, **biases)
    sys.stdout.write(json.dumps({"num_transitions": dataset.transition_count, "d3rlpy": d3rlpy.__version__}) + "\n")


if __name__ == "__main__":
    main()
