"""Updates a second of the policy algorithms through Lightning, against a plain PyTorch loop of the same maths.

    python -m tests.benchmarks.policy_throughput [--threads 2] [--repeats 5] [--clock wall] [--seeds 3 5]

The cases are those of throughput_cases.py. The plain loop holds the transitions in tensors, draws rows at random and
runs the same loss functions, the same optimizer and the same target updates. "Lightning" is everything that ``kalm
fit`` does for an update, see lightning_throughput.py. The two alternate, and medians are compared, because machines
drift. Measure with ``--clock cpu --threads 1`` where other work shares the machine.

With ``--seeds`` it measures instead what several policies side by side (``num_seeds``) cost against one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import QValueActor
from torchrl.objectives import DiscreteCQLLoss

from kalm.data.policy_data import PolicyData
from kalm.rl.base import OfflineRLModule
from kalm.rl.bc import BC
from kalm.rl.cql import CQL
from kalm.rl.training.batches import TransitionBatch
from tests.benchmarks.lightning_throughput import CLOCKS, Clock, fit, num_updates_in, quieten
from tests.benchmarks.throughput_cases import CASES, Case, policy_data, write_random_store

SEED_CASES = {
    "discrete BC (100)": CASES["discrete BC (100)"],
    "discrete CQL (100)": Case(CQL, 100, is_discrete=True),
}


def random_batches(data: PolicyData, policy: OfflineRLModule, batch_size: int) -> Iterator[TransitionBatch]:
    """What a plain loop does for data: tensors in memory, rows drawn at random."""
    columns = data.stores[0].transitions
    normalize = policy.observation_normalizer
    observation, next_observation = normalize(columns["observation"]), normalize(columns["next", "observation"])
    action, reward = columns["action"].clone(), columns["next", "reward"].clone()
    terminated, instruction_id = columns["next", "terminated"].clone(), columns["instruction_id"].long()
    embeddings = data.goal_embeddings
    while True:
        rows = torch.randint(len(action), (batch_size,))
        yield TransitionBatch(
            observation=observation[rows],
            goal_embedding=embeddings[instruction_id[rows]],
            action=action[rows],
            reward=reward[rows],
            next_observation=next_observation[rows],
            terminated=terminated[rows],
            noise=torch.randn(batch_size, policy.noise_size),
        )


def loop(case: Case, store: Path, num_updates: int, clock: Clock, **options: Any) -> float:
    """Updates a second of a plain PyTorch loop."""
    torch.manual_seed(0)
    data = policy_data(store, case)
    policy = case.algorithm(data.spec, **options)
    optimizer = policy.configure_optimizers()
    batches = random_batches(data, policy, case.batch_size)
    next(batches)
    began = clock()
    for number in range(num_updates):
        policy.begin_update(number)
        loss = torch.stack(list(policy.losses(next(batches)).values())).sum(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(policy, number)
    return num_updates / (clock() - began)


@torch.no_grad()
def follow(policy: OfflineRLModule, number: int) -> None:
    """Let the targets follow their networks."""
    if (number + 1) % policy.target_update_interval == 0:
        for target, network in policy.targets:
            torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), policy.target_update_rate)


def torchrl_cql_loop(store: Path, num_updates: int, clock: Clock) -> float:
    """Updates a second of the plain loop with ``torchrl.objectives.DiscreteCQLLoss`` in place of ours."""
    torch.manual_seed(0)
    case = CASES["discrete CQL (32)"]
    data = policy_data(store, case)
    policy = CQL(data.spec)
    module = TensorDictModule(policy.critic, in_keys=["observation", "goal_embedding"], out_keys=["action_value"])
    actor = QValueActor(module.module, in_keys=["observation", "goal_embedding"], action_space="categorical")
    loss_module = DiscreteCQLLoss(actor, action_space="categorical", loss_function="smooth_l1")
    loss_module.make_value_estimator(gamma=0.99)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=6.25e-5, fused=True)
    batches = random_batches(data, policy, case.batch_size)
    began = clock()
    for _ in range(num_updates):
        losses = loss_module(as_tensordict(next(batches)))
        loss = losses["loss_qvalue"] + 10.0 * losses["loss_cql"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return num_updates / (clock() - began)


def as_tensordict(batch: TransitionBatch) -> TensorDict:
    """The batch with TorchRL's keys; building it is part of the price of TorchRL's losses."""

    def column(values: Tensor) -> Tensor:
        return values.unsqueeze(-1)

    following = {
        "observation": batch.next_observation,
        "goal_embedding": batch.goal_embedding,
        "reward": column(batch.reward),
        "terminated": column(batch.terminated),
        "done": column(batch.terminated),
    }
    fields = {"observation": batch.observation, "goal_embedding": batch.goal_embedding, "action": batch.action}
    return TensorDict({**fields, "next": following}, batch_size=[len(batch.action)])


def compare_seeds(store: Path, all_num_seeds: list[int], options: argparse.Namespace, clock: Clock) -> None:
    """What an update of several policies costs against one of one policy."""
    for name, case in SEED_CASES.items():
        rates: dict[int, list[float]] = {num_seeds: [] for num_seeds in (1, *all_num_seeds)}
        for _ in range(options.repeats):
            for num_seeds, own in rates.items():
                own.append(fit(case, store, options.updates, clock, num_seeds))
        medians = {num_seeds: statistics.median(values) for num_seeds, values in rates.items()}
        several = ", ".join(
            f"{num_seeds} seeds {median:.0f}/s each, {medians[1] / median:.2f} times the cost of one"
            for num_seeds, median in medians.items()
            if num_seeds > 1
        )
        sys.stdout.write(f"{name}: 1 seed {medians[1]:.0f}/s, {several}\n")


def compare_loops(name: str, case: Case, store: Path, options: argparse.Namespace) -> None:
    """Measure one case and print its line of the table."""
    clock = CLOCKS[options.clock]
    runs: dict[str, Callable[[int], float]] = {
        "plain": lambda num_updates: loop(case, store, num_updates, clock),
        "Lightning": lambda num_updates: fit(case, store, num_updates, clock),
    }
    if case.algorithm is CQL and case.is_discrete:
        runs["torchrl"] = lambda num_updates: torchrl_cql_loop(store, num_updates, clock)
    num_updates = num_updates_in(loop(case, store, num_updates_in(1.0, 20.0), clock), options.seconds)
    rates: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(options.repeats):
        for label, run in runs.items():
            rates[label].append(run(num_updates))
    medians = {label: statistics.median(values) for label, values in rates.items()}
    overhead = medians["plain"] / medians["Lightning"] - 1
    torchrl = f"{medians['torchrl']:.0f}" if "torchrl" in medians else "-"
    sys.stdout.write(f"| {name} | {medians['plain']:.0f} | {medians['Lightning']:.0f} | {overhead:.1%} | {torchrl} |\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="How long each loop runs in a repeat.")
    parser.add_argument("--updates", type=int, default=2000, help="With --seeds: updates of each run.")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        for is_discrete in (False, True):
            write_random_store(Path(folder) / Case(BC, 1, is_discrete).data_name, is_discrete)
        if options.seeds:
            compare_seeds(Path(folder) / "discrete", options.seeds, options, CLOCKS[options.clock])
            return
        sys.stdout.write(
            "| algorithm (batch) | plain loop | Lightning | overhead | plain loop, torchrl loss |\n"
            "|---|---|---|---|---|\n"
        )
        for name in options.cases:
            compare_loops(name, CASES[name], Path(folder) / CASES[name].data_name, options)


if __name__ == "__main__":
    main()
