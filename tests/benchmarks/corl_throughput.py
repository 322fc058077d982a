"""Updates a second of CORL's single-file algorithms, from a checkout of theirs; peer_throughput.py runs this file.

    python tests/benchmarks/corl_throughput.py '{"corl": PATH, "algorithm": "BC", "batch_size": 100,
        "arrays": PATH, "seconds": 3, "threads": 2, "clock": "wall"}'

Timed is the body of CORL's loop without wandb: ``replay_buffer.sample``, then ``train`` of the trainer class. Packages
that the files import but whose work is not measured (d4rl, gym, wandb, pyrallis) are replaced by empty modules. CORL's
AWAC and CQL have networks with a third hidden layer; they get the two that all the others have. CQL runs with the
automatic temperature and without the Lagrange multiplier, its defaults. CORL has no discrete actions.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_FILES = {"TD3BC": "td3_bc", "CQL": "cql", "AWAC": "awac", "IQL": "iql", "BC": "any_percent_bc"}
_NUM_WARM_UP_UPDATES = 20


def import_algorithm(checkout: str, name: str) -> Any:
    """CORL's file, with empty modules where it imports what is not needed."""
    for package in ("d4rl", "gym", "wandb", "pyrallis"):
        sys.modules[package] = types.ModuleType(package)
    sys.modules["gym"].Env = object  # type: ignore[attr-defined]
    sys.modules["pyrallis"].wrap = lambda: lambda function: function  # type: ignore[attr-defined]
    sys.path.insert(0, checkout)
    return importlib.import_module(f"algorithms.offline.{_FILES[name]}")


def two_layers(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """The network that all libraries are measured with."""
    return nn.Sequential(
        nn.Linear(num_inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, num_outputs)
    )


def adam(network: nn.Module, rate: float = 3e-4) -> torch.optim.Optimizer:
    """The optimizer as CORL makes it."""
    return torch.optim.Adam(network.parameters(), lr=rate)


def td3_bc(module: Any, num_inputs: int, num_actions: int) -> Callable[[list[Tensor]], Any]:
    """CORL's TD3+BC as its ``train`` function builds it."""
    actor = module.Actor(num_inputs, num_actions, 1.0)
    critics = [module.Critic(num_inputs, num_actions) for _ in range(2)]
    trainer = module.TD3_BC(1.0, actor, adam(actor), critics[0], adam(critics[0]), critics[1], adam(critics[1]))
    return trainer.train


def cql(module: Any, num_inputs: int, num_actions: int) -> Callable[[list[Tensor]], Any]:
    """CORL's CQL as its ``train`` function builds it, but for the third hidden layers and ``bc_steps``."""
    critics = [
        module.FullyConnectedQFunction(num_inputs, num_actions, orthogonal_init=True, n_hidden_layers=2)
        for _ in range(2)
    ]
    actor = module.TanhGaussianPolicy(num_inputs, num_actions, 1.0, orthogonal_init=True)
    actor.base_network = two_layers(num_inputs, 2 * num_actions)
    trainer = module.ContinuousCQL(
        critics[0], adam(critics[0]), critics[1], adam(critics[1]), actor, adam(actor, 3e-5), -num_actions, bc_steps=0
    )
    return trainer.train


def awac(module: Any, num_inputs: int, num_actions: int) -> Callable[[list[Tensor]], Any]:
    """CORL's AWAC as its ``train`` function builds it, but for the third hidden layers."""
    actor = module.Actor(num_inputs, num_actions, 256)
    actor._mlp = two_layers(num_inputs, num_actions)
    critics = [module.Critic(num_inputs, num_actions, 256) for _ in range(2)]
    for critic in critics:
        critic._mlp = two_layers(num_inputs + num_actions, 1)
    trainer = module.AdvantageWeightedActorCritic(
        actor, adam(actor), critics[0], adam(critics[0]), critics[1], adam(critics[1])
    )
    return trainer.update


def iql(module: Any, num_inputs: int, num_actions: int) -> Callable[[list[Tensor]], Any]:
    """CORL's IQL as its ``train`` function builds it."""
    actor = module.GaussianPolicy(num_inputs, num_actions, 1.0)
    critic, value = module.TwinQ(num_inputs, num_actions), module.ValueFunction(num_inputs)
    trainer = module.ImplicitQLearning(1.0, actor, adam(actor), critic, adam(critic), value, adam(value))
    return trainer.train


def bc(module: Any, num_inputs: int, num_actions: int) -> Callable[[list[Tensor]], Any]:
    """CORL's behaviour cloning as its ``train`` function builds it."""
    actor = module.Actor(num_inputs, num_actions, 1.0)
    return module.BC(1.0, actor, adam(actor)).train


_BUILDERS = {"TD3BC": td3_bc, "CQL": cql, "AWAC": awac, "IQL": iql, "BC": bc}


def run(
    buffer: Any, train: Callable[[list[Tensor]], Any], batch_size: int, num_updates: int, clock: Callable[[], float]
) -> float:
    """Updates a second of CORL's loop."""
    began = clock()
    for _ in range(num_updates):
        train([tensor.to("cpu") for tensor in buffer.sample(batch_size)])
    return num_updates / (clock() - began)


def main() -> None:
    """Measure one case and print the rate and versions."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    with np.load(job["arrays"]) as file:
        arrays = dict(file)
    module = import_algorithm(job["corl"], job["algorithm"])
    num_inputs, num_actions = arrays["observation"].shape[1], arrays["action"].shape[1]
    buffer = module.ReplayBuffer(num_inputs, num_actions, len(arrays["observation"]))
    names = {"observation": "observations", "action": "actions", "reward": "rewards"}
    names |= {"next_observation": "next_observations", "terminated": "terminals"}
    buffer.load_d4rl_dataset({names[name]: values for name, values in arrays.items()})
    train = _BUILDERS[job["algorithm"]](module, num_inputs, num_actions)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[job["clock"]]
    run(buffer, train, job["batch_size"], _NUM_WARM_UP_UPDATES, clock)
    rough = run(buffer, train, job["batch_size"], _NUM_WARM_UP_UPDATES, clock)
    num_updates = max(_NUM_WARM_UP_UPDATES, round(rough * job["seconds"]))
    rate = run(buffer, train, job["batch_size"], num_updates, clock)
    sys.stdout.write(json.dumps({"updates_per_second": rate, "versions": {"torch": torch.__version__}}) + "\n")


if __name__ == "__main__":
    main()
