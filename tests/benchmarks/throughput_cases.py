"""What the throughput benchmarks measure: algorithms with the papers' batches, on random transitions of fixed sizes.

Continuous actions: 91 + 384 inputs and 4 action components, as on Meta-World. Discrete ones: 10 + 384 inputs and 40
actions, as on CLEVR-Robot. Speed does not depend on what the numbers say.

Shape letters: N transitions, O observation, E goal embedding, A action, I instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from kalm.core.names import ACTION, INSTRUCTION_ID, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, Source
from kalm.core.rollout import Rollout
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import RealRollouts
from kalm.rl.awac import AWAC
from kalm.rl.base import OfflineRLModule
from kalm.rl.bc import BC
from kalm.rl.cql import CQL
from kalm.rl.iql import IQL
from kalm.rl.td3_bc import TD3BC
from kalm.store.writer import RolloutStoreWriter
from tests.chain_domain import CellGoal, ChainDomain
from tests.word_encoder import WordEncoder

UPDATES_PER_STEP = 20
EMBEDDING_SIZE = 384
NUM_ROLLOUTS = 2000
NUM_INSTRUCTIONS = 500


@dataclass(frozen=True)
class Case:
    """One algorithm as its paper runs it.

    Attributes:
        algorithm: Ours.
        batch_size: Transitions of an update.
        is_discrete: Which of the two sizes of data.
    """

    algorithm: Callable[..., OfflineRLModule]
    batch_size: int
    is_discrete: bool

    @property
    def data_name(self) -> str:
        """Name of the data that it trains on."""
        return "discrete" if self.is_discrete else "continuous"


CASES = {
    "TD3+BC (256)": Case(TD3BC, 256, is_discrete=False),
    "CQL (256)": Case(CQL, 256, is_discrete=False),
    "AWAC (1024)": Case(AWAC, 1024, is_discrete=False),
    "IQL (256)": Case(IQL, 256, is_discrete=False),
    "BC (100)": Case(BC, 100, is_discrete=False),
    "discrete CQL (32)": Case(CQL, 32, is_discrete=True),
    "discrete BC (100)": Case(BC, 100, is_discrete=True),
}


class SizedDomain(ChainDomain):
    """A world of which only the sizes matter."""

    name = "sized"

    def __init__(self, is_discrete: bool) -> None:
        """Choose one of the two sizes."""
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (10 if is_discrete else 91,), np.float32)
        self.action_space = gym.spaces.Discrete(40) if is_discrete else gym.spaces.Box(-1.0, 1.0, (4,), np.float32)


def write_random_store(path: Path, is_discrete: bool) -> None:
    """Rollouts of 3 to 9 steps with random numbers in them."""
    domain, random = SizedDomain(is_discrete), np.random.default_rng(0)
    store = RolloutStoreWriter(path, domain.name, domain.spec, domain.plausibility_flags, {})
    rollouts = []
    for index in range(NUM_ROLLOUTS):
        num_steps = int(random.integers(3, 10))
        actions = random.integers(0, 40, num_steps) if is_discrete else random.uniform(-1, 1, (num_steps, 4))
        rollout = Rollout(
            goal=CellGoal(0).to_json(),
            instruction=f"instruction {index % NUM_INSTRUCTIONS}",
            goal_split="train",
            source=Source.REAL,
            observations=random.normal(size=(num_steps + 1, *domain.observation_space.shape)).astype(np.float32),
            actions=actions if is_discrete else actions.astype(np.float32),
            rewards=random.normal(size=num_steps).astype(np.float32),
            terminated=np.arange(num_steps) == num_steps - 1,
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
        SizedDomain(case.is_discrete),
        WordEncoder(EMBEDDING_SIZE),
        RealRollouts(str(path)),
        batch_size=case.batch_size,
        updates_per_step=UPDATES_PER_STEP,
    )


def export_arrays(store: Path, case: Case, path: Path) -> None:
    """Write the store's transitions for libraries that know no instructions: observation (N, O + E), and so on."""
    data = policy_data(store, case)
    columns = data.stores[0].transitions
    embedding = data.goal_embeddings.numpy()[columns[INSTRUCTION_ID].numpy()]
    np.savez(
        path,
        observation=np.concatenate([columns[OBSERVATION].numpy(), embedding], axis=1),
        action=columns[ACTION].numpy(),
        reward=columns[REWARD].numpy(),
        next_observation=np.concatenate([columns[NEXT_OBSERVATION].numpy(), embedding], axis=1),
        terminated=columns[TERMINATED].numpy(),
    )
