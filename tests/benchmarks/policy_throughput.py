"""Updates a second of the policy algorithms through Lightning, against a plain PyTorch loop of the same maths.

    python tests/benchmarks/policy_throughput.py [--threads 2] [--repeats 5] [--clock wall] [--seeds 3 5]

The network, the batch and the data have CLEVR-Robot's sizes: 10 + 384 inputs, two layers of 256, 40 actions. The plain
loop holds the transitions in tensors, draws rows at random and runs the same loss functions and the same optimizer.
"Lightning" is everything that ``kalm fit`` does for an update: drawing from the store, the training step, the check for
values that are not finite, logging. Repeats alternate, and medians are compared, because machines drift. Measure with
``--clock cpu --threads 1`` where other work shares the machine.

With ``--seeds`` it measures instead what several policies side by side (``num_seeds``) cost against one.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import QValueActor
from torchrl.objectives import DiscreteCQLLoss

from kalm.data.policy_data import PolicyData
from kalm.data.rollout import Rollout
from kalm.data.writer import RolloutStoreWriter
from kalm.envs.clevr_robot import ClevrRobot
from kalm.loggers import MetricsFileLogger, RunTensorBoardLogger
from kalm.rl.base import OfflineRLModule
from kalm.rl.bc import BC
from kalm.rl.cql import CQL
from kalm.rl.transition_batch import TransitionBatch
from kalm.types import GoalSplit, Source
from tests.word_encoder import WordEncoder

Clock = Callable[[], float]

UPDATES_PER_STEP = 20
NUM_ROLLOUTS = 2000
EMBEDDING_SIZE = 384


@dataclass(frozen=True)
class Case:
    """One algorithm as the paper runs it."""

    algorithm: Callable[..., OfflineRLModule]
    batch_size: int


CASES = {"BC (100)": Case(BC, 100), "CQL (32)": Case(CQL, 32)}
SEED_CASES = {"BC (100)": Case(BC, 100), "CQL (100)": Case(CQL, 100)}


def write_random_store(path: Path) -> None:
    """Rollouts of CLEVR-Robot's sizes with random numbers in them: speed does not depend on what they say."""
    domain, random = ClevrRobot(), np.random.default_rng(0)
    goals = domain.instructed_goals(GoalSplit.TRAIN)
    store = RolloutStoreWriter(
        path, domain.name, domain.observation_space, domain.action_space, domain.plausibility_flags, {}
    )
    low, high = domain.observation_space.low, domain.observation_space.high
    rollouts = []
    for index in range(NUM_ROLLOUTS):
        num_steps = int(random.integers(3, 10))
        instructed = goals[index % len(goals)]
        ends = np.arange(num_steps) == num_steps - 1
        rollout = Rollout(
            goal=instructed.goal.to_json(),
            instruction=instructed.instruction,
            goal_split=GoalSplit.TRAIN,
            source=Source.REAL,
            observations=random.uniform(low, high, (num_steps + 1, len(low))).astype(np.float32),
            actions=random.integers(0, 40, num_steps),
            rewards=random.normal(size=num_steps).astype(np.float32),
            terminated=ends,
            truncated=np.zeros(num_steps, dtype=np.bool_),
            is_success=True,
            violations=dict.fromkeys(domain.plausibility_flags, 0),
        )
        rollouts.append(rollout)
    store.append("all", rollouts)
    store.finish()


def policy_data(path: Path, case: Case) -> PolicyData:
    """The data module on the random store."""
    return PolicyData(
        ClevrRobot(),
        WordEncoder(EMBEDDING_SIZE),
        str(path),
        batch_size=case.batch_size,
        updates_per_step=UPDATES_PER_STEP,
    )


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
    """Updates a second through Lightning, each of all policies, with the loggers that the command line uses."""
    torch.manual_seed(0)
    data = policy_data(store, case)
    stopwatch = Stopwatch(clock)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=num_updates,
            callbacks=[stopwatch],
            logger=[RunTensorBoardLogger(folder), MetricsFileLogger(f"{folder}/metrics.csv")],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(case.algorithm(data.spec, num_seeds=num_seeds), data)
    return num_updates / stopwatch.seconds


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
    for _ in range(num_updates):
        loss = torch.stack(list(policy.losses(next(batches)).values())).sum(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return num_updates / (clock() - began)


def torchrl_cql_loop(store: Path, num_updates: int, clock: Clock) -> float:
    """Updates a second of the plain loop with ``torchrl.objectives.DiscreteCQLLoss`` in place of ours."""
    torch.manual_seed(0)
    case = CASES["CQL (32)"]
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


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_random_store(store)
        if options.seeds:
            compare_seeds(store, options.seeds, options, clock)
            return
        for name, case in CASES.items():
            runs: dict[str, Callable[[], float]] = {
                "plain loop": lambda case=case: loop(case, store, options.updates, clock),
                "Lightning": lambda case=case: fit(case, store, options.updates, clock),
            }
            if case.algorithm is CQL:
                runs["plain loop, torchrl loss"] = lambda: torchrl_cql_loop(store, options.updates, clock)
            rates: dict[str, list[float]] = {label: [] for label in runs}
            for _ in range(options.repeats):
                for label, run in runs.items():
                    rates[label].append(run())
            medians = {label: statistics.median(values) for label, values in rates.items()}
            text = ", ".join(f"{label} {median:.0f}/s" for label, median in medians.items())
            overhead = medians["plain loop"] / medians["Lightning"] - 1
            sys.stdout.write(f"{name}: {text}; overhead of Lightning {overhead:.1%}\n")


if __name__ == "__main__":
    main()
