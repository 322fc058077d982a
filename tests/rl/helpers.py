"""What the tests of the policies share: hand-made batches, data of two small worlds, and a quiet trainer."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from tensordict import TensorDict

import kalm.rl
from kalm.core.specs import DiscreteAction, GridObservation, Spec, VectorObservation, vector_spec
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.statistics import RolloutStatistics
from kalm.data.training_data import IndexedBatches
from kalm.rl.base import OfflineRLModule
from kalm.rl.training.batches import TransitionBatch
from kalm.store.reader import is_finished_store
from tests.chain_domain import ChainDomain
from tests.corridor_domain import CorridorDomain
from tests.data.rollouts import arguments, write_store
from tests.line_domain import LineDomain
from tests.word_encoder import WordEncoder

DISCRETE = vector_spec(observation_size=5, action_size=3, is_discrete=True, goal_embedding_size=4)
CONTINUOUS = vector_spec(observation_size=5, action_size=3, is_discrete=False, goal_embedding_size=4)
WORDS, CONTINUOUS_WORDS = (
    vector_spec(5, 3, is_discrete, things=((0, 2), (2, 4))).with_goals(goal_embedding_size=3 * 8, num_goal_tokens=3)
    for is_discrete in (True, False)
)
GRID = Spec(GridObservation((5, 4, 2)), DiscreteAction(3), goal_embedding_size=4)
MAX_NOISE_SIZE = 256  # more than any algorithm asks for


def algorithms() -> list[type[OfflineRLModule]]:
    """Every algorithm in kalm/rl, found by looking."""
    modules = [importlib.import_module(f"kalm.rl.{module.name}") for module in pkgutil.iter_modules(kalm.rl.__path__)]
    members = {member for module in modules for _, member in inspect.getmembers(module, inspect.isclass)}
    found = [m for m in members if issubclass(m, OfflineRLModule) and m is not OfflineRLModule]
    return sorted(found, key=lambda algorithm: algorithm.__name__)


# Where an algorithm's defaults take more updates than a test has.
OPTIONS: dict[str, dict[str, Any]] = {
    "COMBO": {"policy_learning_rate": 1e-3, "dynamics_warmup_updates": 0, "dynamics_hidden_sizes": (32,)},
    "CQL": {"policy_learning_rate": 1e-3},
}


def build(algorithm: type[OfflineRLModule], spec: Spec, **options: Any) -> OfflineRLModule:
    """A policy that gets somewhere within a few updates, by all of its losses."""
    return algorithm(spec, **{**OPTIONS.get(algorithm.__name__, {}), **options})


def transition_batch(spec: Spec, num_rows: int = 6, seed: int = 0) -> TransitionBatch:
    """Random transitions, every second one terminated."""
    generator = torch.Generator().manual_seed(seed)
    continuous = torch.rand(num_rows, spec.action_size, generator=generator) * 2 - 1
    discrete = torch.randint(spec.action_size, (num_rows,), generator=generator)
    return TransitionBatch(
        observation=observations(spec, num_rows, generator),
        goal_embedding=torch.randn(num_rows, spec.goal_embedding_size, generator=generator),
        action=discrete if spec.is_discrete else continuous,
        reward=torch.randn(num_rows, generator=generator),
        next_observation=observations(spec, num_rows, generator),
        terminated=torch.arange(num_rows) % 2 == 1,
        noise=torch.randn(num_rows, MAX_NOISE_SIZE, generator=generator),
        weight=torch.rand(num_rows, generator=generator),
    )


def observations(spec: Spec, num_rows: int, generator: torch.Generator) -> torch.Tensor:
    """Random vectors; or random codes on a grid, and an agent somewhere that carries something."""
    if isinstance(spec.observation, VectorObservation):
        return torch.randn(num_rows, spec.observation_size, generator=generator)
    assert isinstance(spec.observation, GridObservation)
    width, height, _ = spec.observation.shape
    codes = torch.randint(60, (num_rows, width * height), generator=generator)
    place = torch.randint(width * height, (num_rows, 1), generator=generator)
    mark = torch.randint(1, 241, (num_rows, 1), generator=generator)
    agent = torch.zeros_like(codes).scatter_(1, place, mark)
    return torch.stack([codes, agent], dim=-1).view(num_rows, width, height, 2).to(torch.uint8)


def world(spec: Spec) -> ChainDomain:
    """The small world with the kinds of observation and action that ``spec`` has."""
    if isinstance(spec.observation, GridObservation):
        return CorridorDomain()
    return ChainDomain() if spec.is_discrete else LineDomain()


def chain_data(folder: Path, domain: ChainDomain | None = None, **options: Any) -> PolicyData:
    """The rollouts of the chain, of the line or of the corridor, written to ``folder`` on first use."""
    domain = domain or ChainDomain()
    if not is_finished_store(folder / "real"):
        write_store(folder / "real", list(domain.collect(200, seed=0)), domain=domain)
    defaults = {
        "real": RealRollouts(str(folder / "real")),
        "batch_size": 16,
        "updates_per_step": 5,
        "evaluation": EvaluationEpisodes(num_validation_episodes=8, num_test_episodes=20),
    }
    return PolicyData(domain, WordEncoder(), **arguments(defaults, **options))


def trainer(folder: Path, max_steps: int, callbacks: Iterable[lightning.Callback] = (), **options: Any) -> Any:
    """A quiet trainer on the CPU that writes to ``folder``."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return lightning.Trainer(
        default_root_dir=folder, max_steps=max_steps, callbacks=list(callbacks), **{**defaults, **options}
    )


def stacked_batch(spec: Spec, num_updates: int = 2, num_rows: int = 6, sequence_length: int = 1) -> TensorDict:
    """K stacked minibatches as the data module hands them over; half of the rows imagined.

    With a sequence length above 1 the rows are windows, every one with a step less than the one before.
    """
    if sequence_length > 1:
        return _stacked_windows(spec, num_updates, num_rows, sequence_length)
    batches = [transition_batch(spec, num_rows, seed) for seed in range(num_updates)]
    size = (num_updates, num_rows)
    return TensorDict(
        {
            "observation": torch.stack([b.observation for b in batches]),
            "action": torch.stack([b.action for b in batches]),
            "next": {
                "observation": torch.stack([b.next_observation for b in batches]),
                "reward": torch.stack([b.reward for b in batches]),
                "terminated": torch.stack([b.terminated for b in batches]),
                "truncated": torch.zeros(size, dtype=torch.bool),
            },
            "rollout_id": torch.arange(num_updates * num_rows).view(size) // 3,
            "step": torch.arange(num_updates * num_rows).view(size) % 3,
            "instruction_id": torch.zeros(size, dtype=torch.int32),
            "source": (torch.arange(num_rows) % 2).to(torch.uint8).expand(size).clone(),
            "goal_split": torch.zeros(size, dtype=torch.uint8),
        },
        batch_size=size,
    )


def _stacked_windows(spec: Spec, num_updates: int, num_rows: int, sequence_length: int) -> TensorDict:
    size, step = (num_updates, num_rows, sequence_length), torch.arange(sequence_length)
    windows = stacked_batch(spec, num_updates, num_rows * sequence_length)
    windows = TensorDict({key: windows[key].unflatten(1, size[1:]) for key in windows.keys(True, True)}, size)
    of_window = torch.arange(num_rows).view(-1, 1)
    windows["step"] = step.expand(size).clone()
    windows["padding_mask"] = (step < sequence_length - of_window % sequence_length).expand(size).clone()
    windows["source"] = (of_window % 2).to(torch.uint8).expand(size).clone()
    windows["return_to_go"] = windows["next", "reward"].flip(-1).cumsum(-1).flip(-1)
    return windows


def loss_batch(policy: OfflineRLModule, num_rows: int = 6, seed: int = 0) -> Any:
    """What the losses of a policy read: random, the third of the rows with the same goal, weighed."""
    generator = torch.Generator().manual_seed(seed)
    stacked = stacked_batch(policy.spec, seed + 1, num_rows, policy.sequence_length)[seed:]
    goal = (torch.arange(num_rows) % 3).view(1, -1, *[1] * (stacked.ndim - 2))
    stacked["instruction_id"] = goal.expand(stacked.shape).clone()
    policy.goal_embeddings = torch.randn(3, policy.spec.goal_embedding_size, generator=generator)
    noise = torch.randn(1, num_rows, policy.noise_size, generator=generator)
    (batch,) = policy.minibatches(stacked, noise, torch.rand(stacked.shape, generator=generator))
    return batch


class FixedData(lightning.LightningDataModule):
    """Hands the same stacked minibatches over at every step, with what a policy asks of its data module."""

    def __init__(self, spec: Spec, batch: TensorDict) -> None:
        """Keep ``batch``, batch size (K, B)."""
        super().__init__()
        self.spec = spec
        self.updates_per_step = batch.shape[0]
        self.sequence_length = batch.shape[-1] if "padding_mask" in batch.keys() else 1  # noqa: SIM118
        self.seed = 0
        self.goal_embeddings = torch.randn(1, spec.goal_embedding_size, generator=torch.Generator().manual_seed(9))
        self.domain = world(spec)
        if isinstance(spec.observation, VectorObservation):
            self.observation_mean = torch.zeros(spec.observation_size)
            self.observation_std = torch.ones(spec.observation_size)
        self.rollout_statistics = RolloutStatistics(0.5, 2.0, torch.linspace(-1, 1, 11), max_length=20)
        self._batch = batch

    def train_dataloader(self) -> Any:
        """The same batch without end."""
        return IndexedBatches(lambda index: self._batch, start=lambda: 0).dataloader()
