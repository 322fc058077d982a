"""Learning from good and bad rollouts: every algorithm that reads rewards does better than copying what was done.

The data are walks on the chain, on the line where actions are continuous, or in the corridor, which is a grid: half go
the right way nine times in ten, half the wrong way. The wrong ones last longer, so most transitions go away from the
goal, and behaviour cloning does too. It says nothing about real tasks, where cloning may well win; the papers of all
algorithms but cloning claim as much as is asked for here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kalm.core.specs import Spec
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import RealRollouts
from kalm.envs.evaluation import summarize
from kalm.rl.base import OfflineRLModule
from kalm.rl.bc import BC
from kalm.store.reader import is_finished_store
from tests.data.rollouts import write_store
from tests.rl.helpers import trainer, world
from tests.rl.test_algorithms import CASES, KINDS, kind_of
from tests.word_encoder import WordEncoder

pytestmark = pytest.mark.slow

# Where the defaults, which the papers tuned for other rewards and more updates, hold on to the data too much for a
# reward of 1, or learn too slowly for a thousand updates.
OPTIONS: dict[tuple[str, bool], dict[str, Any]] = {
    ("CQL", True): {"conservative_weight": 0.05},
    ("CQL", False): {"conservative_weight": 0.05, "policy_learning_rate": 1e-3},
    ("IQL", True): {"inverse_temperature": 30.0},
    ("IQL", False): {"inverse_temperature": 30.0},
    ("AWAC", True): {"temperature": 1 / 30},
    ("AWAC", False): {"temperature": 1 / 30},
    ("BCQ", True): {"probability_threshold": 0.05},
    ("BCQ", False): {"max_perturbation": 1.0},  # its model of the data has two modes to tell apart, and no time to
    ("TD3BC", False): {"value_weight": 10.0},
    ("COMBO", False): {
        "conservative_weight": 0.05, "real_fraction": 0.9, "policy_learning_rate": 1e-3, "num_model_steps": 1,
        "dynamics_warmup_updates": 200, "dynamics_hidden_sizes": (32, 32), "num_dynamics_members": 3,
    },
    ("DecisionTransformer", True): {"context_length": 4, "embedding_size": 32},
    ("DecisionTransformer", False): {"context_length": 4, "embedding_size": 32},
}  # fmt: skip
LEARNERS = [(algorithm, spec) for algorithm, spec in CASES if algorithm is not BC]
BASELINE = 0.6  # what cloning must stay under, for the data to be mixed indeed
each_kind = pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)


def mixed_data(spec: Spec, folder: Path, **options: Any) -> PolicyData:
    """Walks of both kinds, in turn."""
    domain = world(spec)
    if not is_finished_store(folder / "real"):
        good, bad = (domain.collect(150, seed=seed, mistake_rate=rate) for seed, rate in ((0, 0.1), (1, 0.9)))
        rollouts = [rollout for pair in zip(good, bad, strict=True) for rollout in pair]
        write_store(folder / "real", rollouts, domain=domain)
    real = RealRollouts(str(folder / "real"), **options)
    evaluation = EvaluationEpisodes(num_test_episodes=100, goal_splits=["train"])
    return PolicyData(domain, WordEncoder(), real, batch_size=32, evaluation=evaluation)


def success_rate(algorithm: type[OfflineRLModule], spec: Spec, folder: Path, **data_options: Any) -> float:
    """Of 100 test episodes, after 1000 updates."""
    data = mixed_data(spec, folder, **data_options)
    policy = algorithm(
        data.spec,
        **OPTIONS.get((algorithm.__name__, spec.is_discrete), {}),
        hidden_sizes=[64, 64],
        learning_rate=1e-3,
        discount=0.8,
        target_update_rate=1.0,
        target_update_interval=50,
        warmup_updates=0,
    )
    data.sequence_length = policy.sequence_length
    trainer(folder, 1000).fit(policy, data)
    trainer(folder, -1).test(policy, data, verbose=False)
    return summarize(policy.episode_results)["train"].success_rate


@each_kind
def test_cloning_does_what_most_of_the_data_do(spec: Spec, tmp_path: Path) -> None:
    """It walks away from the goal."""
    assert success_rate(BC, spec, tmp_path) < BASELINE


@each_kind
def test_cloning_the_best_rollouts_reaches_the_goal(spec: Spec, tmp_path: Path) -> None:
    """Filtered cloning: the half that earned most, sooner counting for more."""
    assert success_rate(BC, spec, tmp_path, top_return_fraction=0.5, return_discount=0.9) >= 0.95


@pytest.mark.parametrize(
    ("algorithm", "spec"), LEARNERS, ids=[f"{algorithm.__name__}-{kind_of(spec)}" for algorithm, spec in LEARNERS]
)
def test_what_reads_rewards_reaches_the_goal(algorithm: type[OfflineRLModule], spec: Spec, tmp_path: Path) -> None:
    """From the same transitions."""
    assert success_rate(algorithm, spec, tmp_path) >= 0.95
