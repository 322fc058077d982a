"""Success of BC and discrete CQL of kalm and of d3rlpy: same CLEVR-Robot store, networks, hyper-parameters, episodes.

    python -m kalm collect --config conf/clevr_robot/collect.yaml
    python3 -m venv PEER && PEER/bin/pip install torch==2.13.0 d3rlpy
    python -m tests.benchmarks.peer_success --d3rlpy-python PEER/bin/python

kalm trains its seeds side by side. d3rlpy trains on the same transitions, exported with observations and embeddings as
kalm normalises them (success_export.py); its weights go into kalm's network of the same shape, so that one evaluator
judges both. Alike are two layers of 256, Adam at a constant learning rate, batch, updates, discount, the rewards as
stored, and what a terminated and a truncated step mean; in CQL Huber's loss, double DQN with one critic, alpha and the
interval of the target; in BC the weight of the squared log-probabilities (imitation_weight; d3rlpy: beta). Different
remain: random numbers, and that d3rlpy's target follows after updates 1, n + 1, 2n + 1 where kalm's follows after
n, 2n. Two libraries agree on a goal split if the 95 % intervals of their mean over seeds overlap. Fifteen minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import nn

from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import RealRollouts
from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.simulation import EpisodeResult
from kalm.language.encoder import SentenceEncoder
from kalm.report.intervals import Outcomes, success_interval
from kalm.rl.base import OfflineRLModule
from kalm.rl.bc import BC
from kalm.rl.cql import CQL
from tests.benchmarks.success_export import MAX_REAL_ROLLOUTS, export_store

_WORKER = Path(__file__).parent / "d3rlpy_policy.py"
_GOAL_SPLITS = ("train", "rephrase", "easy")
_BATCH_SIZE = 100
# 97.5 % quantiles of Student's t for 2 to 10 seeds.
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Pair:
    """One algorithm in both libraries, with equal hyper-parameters.

    Attributes:
        algorithm: Ours.
        options: Of ours.
        peer_options: The same in d3rlpy's words.
    """

    algorithm: Callable[..., OfflineRLModule]
    options: dict[str, Any]
    peer_options: dict[str, Any]


PAIRS = {
    "BC": Pair(
        BC,
        {"learning_rate": 1e-3, "imitation_weight": 0.01},
        {"learning_rate": 1e-3, "beta": 0.01, "batch_size": _BATCH_SIZE},
    ),
    "CQL": Pair(
        CQL,
        {"learning_rate": 1e-3, "conservative_weight": 10.0, "target_update_interval": 500, "discount": 0.99},
        {"learning_rate": 1e-3, "alpha": 10.0, "target_update_interval": 500, "gamma": 0.99, "batch_size": _BATCH_SIZE},
    ),
}

Results = list[list[EpisodeResult]]  # of each seed


def policy_data(options: argparse.Namespace) -> PolicyData:
    """Real rollouts only, and the episodes that both libraries are judged on."""
    return PolicyData(
        ClevrRobot(),
        SentenceEncoder(cache_dir=options.cache),
        RealRollouts(options.real, max_rollouts=MAX_REAL_ROLLOUTS),
        batch_size=_BATCH_SIZE,
        evaluation=EvaluationEpisodes(num_test_episodes=options.episodes, goal_splits=_GOAL_SPLITS),
    )


def trainer(folder: Path, num_updates: int) -> lightning.Trainer:
    """A trainer that only trains and tests."""
    return lightning.Trainer(
        accelerator="cpu",
        max_steps=num_updates,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def train(pair: Pair, data: PolicyData, options: argparse.Namespace, folder: Path) -> tuple[OfflineRLModule, Results]:
    """Our policies, all seeds together, and what they reached."""
    policy = pair.algorithm(data.spec, num_seeds=options.seeds, **pair.options)
    own = trainer(folder, options.updates)
    own.fit(policy, data)
    own.test(policy, data, verbose=False)
    return policy, policy.results_of_seeds


def train_peer(name: str, seed: int, arrays: Path, options: argparse.Namespace, num_actions: int) -> Path:
    """Let d3rlpy train one seed in a process of its own; the file of its weights."""
    weights = arrays.with_name(f"{name}-{seed}.npz")
    job = {
        **{"algorithm": name, "seed": seed, "arrays": str(arrays), "weights": str(weights), "threads": 1},
        **{"num_updates": options.updates, "num_actions": num_actions, "options": PAIRS[name].peer_options},
    }
    began = time.perf_counter()
    done = subprocess.run([options.d3rlpy_python, str(_WORKER), json.dumps(job)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"d3rlpy failed on {name}, seed {seed}:\n{done.stderr}")
    sys.stderr.write(f"{name}: d3rlpy, seed {seed}: {time.perf_counter() - began:.0f} s, {done.stdout}")
    return weights


def test_peer(weights: Path, pair: Pair, trained: OfflineRLModule, data: PolicyData, folder: Path) -> Results:
    """What d3rlpy's weights reach in our network, whose inputs are normalised as those of our trained policies."""
    policy = pair.algorithm(data.spec, **pair.options)
    for name in ("observation_normalizer", "goal_normalizer"):
        getattr(policy, name).load_state_dict(getattr(trained, name).state_dict())
    network = policy.policy if pair.algorithm is BC else policy.critic
    assert isinstance(network, nn.Module)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    arrays = np.load(weights)
    assert len(arrays.files) == 2 * len(layers)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(torch.from_numpy(arrays[f"weight_{number}"]))
            layer.bias.copy_(torch.from_numpy(arrays[f"bias_{number}"]))
    trainer(folder, 0).test(policy, data, verbose=False)
    return policy.results_of_seeds


def outcomes(results: Results, split: str) -> Outcomes:
    """What each seed made of each episode of one goal split; all seeds run the same."""
    own = [[one for one in of_seed if one.episode.instructed.goal_split == split] for of_seed in results]
    episodes = tuple(("", "", number) for number in range(len(own[0])))
    return Outcomes(tuple(range(len(own))), episodes, np.array([[one.is_success for one in row] for row in own], float))


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t."""
    return _STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def lines(name: str, own: Results, peer: Results) -> list[str]:
    """A line of the table for each goal split."""
    table = []
    for split in _GOAL_SPLITS:
        cells, of_library = [], []
        for found in (outcomes(results, split) for results in (own, peer)):
            values = found.rates.tolist()
            low, high = success_interval([found])
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            cells.append(f"{mean:.3f} ± {deviation:.3f} [{low:.3f}, {high:.3f}]")
            of_library.append(values)
        difference = statistics.mean(of_library[0]) - statistics.mean(of_library[1])
        allowed = half_width(of_library[0]) + half_width(of_library[1])
        verdict = "yes" if abs(difference) <= allowed else "no"
        table.append(f"| {name} | {split} | {' | '.join(cells)} | {difference:+.3f} | {allowed:.3f} | {verdict} |")
    return table


def main() -> None:
    """Train, evaluate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d3rlpy-python", required=True, help="Python of the virtual environment that has d3rlpy.")
    parser.add_argument("--real", default="checkpoints/clevr_robot/collect/expert/seed=0", help="The store.")
    parser.add_argument("--cache", default="checkpoints/.cache", help="Cache of sentence embeddings.")
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(_STUDENT))
    parser.add_argument("--updates", type=int, default=12000)
    parser.add_argument("--episodes", type=int, default=200, help="Test episodes a goal split.")
    parser.add_argument("--jobs", type=int, default=2, help="Processes of d3rlpy at a time, one thread each.")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, pair in PAIRS.items():
            began, data = time.perf_counter(), policy_data(options)
            policy, own = train(pair, data, options, folder)
            sys.stderr.write(f"{name}: kalm, {options.seeds} seeds: {time.perf_counter() - began:.0f} s\n")
            export_store(data, policy, folder / "arrays.npz")
            with ThreadPoolExecutor(options.jobs) as pool:
                jobs = [
                    pool.submit(train_peer, name, seed, folder / "arrays.npz", options, data.spec.action_size)
                    for seed in range(options.seeds)
                ]
                weights = [job.result() for job in jobs]
            peer = [results for file in weights for results in test_peer(file, pair, policy, data, folder)]
            table += lines(name, own, peer)
    sys.stdout.write(
        "| algorithm | goal split | kalm | d3rlpy | difference | allowed | agree |\n|---|---|---|---|---|---|---|\n"
        + "".join(line + "\n" for line in table)
        + f"\nMean ± standard deviation over {options.seeds} seeds [95 % interval over seeds and episodes]; "
        + f"{options.updates} updates, {options.episodes} episodes a split. "
        + "Allowed: the half widths of both 95 % intervals of the mean.\n"
    )


if __name__ == "__main__":
    main()
