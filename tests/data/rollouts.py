"""Rollouts and stores for the data tests, out of the chain world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDict

from kalm.core import names
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.policy_data import PolicyData
from kalm.envs.base import Domain
from kalm.store.reader import RolloutStore
from kalm.store.writer import RolloutStoreWriter
from tests.chain_domain import ChainDomain

DOMAIN = ChainDomain()


def real_rollouts(num_rollouts: int, seed: int = 0) -> list[Rollout]:
    """Real rollouts of the chain's expert."""
    return list(DOMAIN.collect(num_rollouts, seed))


def arguments(defaults: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Arguments of a constructor; ``real__max_rollouts=5`` replaces a field of an object among the defaults."""
    found = dict(defaults)
    for name, value in options.items():
        owner, _, part = name.partition("__")
        found[owner] = replace(found[owner], **{part: value}) if part else value
    return found


def splits_of(data: PolicyData, batch: TensorDict) -> NDArray[np.str_]:
    """Goal split of every row of a batch, told by its rollout, of the batch's shape."""
    splits: NDArray[np.str_] = np.concatenate([store.goal_splits for store in data.stores])
    return splits[batch[names.ROLLOUT_ID].numpy()]


def imagined_rollouts(num_rollouts: int, goal_split: str, seed: int = 0) -> list[Rollout]:
    """Random walks under the goals of a split; every third one jumps, many miss their goal."""
    goals = DOMAIN.instructed_goals(goal_split)
    rollouts = []
    for index in range(num_rollouts):
        rng = np.random.default_rng([seed, index])
        cells = np.clip(2 + np.cumsum([0, *rng.choice([-1, 1], size=6)]), 0, 4)
        if index % 3 == 0:
            cells[3] = (cells[2] + 2) % 5
        observations = np.eye(5, dtype=np.float32)[cells]
        actions = (np.diff(cells) > 0).astype(np.int64)
        provenance = {"model": "walk", "seed": index}
        instructed = goals[index % len(goals)]
        rollouts.append(DOMAIN.label_rollout(instructed, observations, actions, Source.IMAGINARY, provenance))
    return rollouts


def writer(path: Path, domain: Domain = DOMAIN, **made_by: Any) -> RolloutStoreWriter:
    """A writer for rollouts of the chain, or of another world."""
    return RolloutStoreWriter(path, domain.name, domain.spec, domain.plausibility_flags, made_by, command="make chains")


def write_store(
    path: Path, rollouts: Sequence[Rollout], shard_size: int = 1000, domain: Domain = DOMAIN
) -> RolloutStore:
    """A finished store."""
    store_writer = writer(path, domain)
    for start in range(0, len(rollouts), shard_size):
        store_writer.append(f"{start:06d}", rollouts[start : start + shard_size])
    return store_writer.finish()


def broken(rollout: Rollout, **fields: Any) -> Rollout:
    """The rollout with some fields replaced, whatever their types."""
    return replace(rollout, **fields)
