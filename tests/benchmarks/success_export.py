"""Exports a rollout store for libraries that know neither instructions nor truncated steps with a known successor.

Shape letters: N rows, O observation, E goal embedding, R rollouts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kalm.core.names import ACTION, INSTRUCTION_ID, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED
from kalm.data.policy_data import PolicyData
from kalm.rl.base import OfflineRLModule

MAX_REAL_ROLLOUTS = 6400  # the paper's


@torch.no_grad()
def export_store(data: PolicyData, policy: OfflineRLModule, path: Path) -> None:
    """Write the real transitions in use as rows in the order of their rollouts.

    d3rlpy takes the next observation from the next row, and drops a rollout's last row unless the rollout terminated.
    So a truncated rollout gets one more row, with the observation after its last action; that row is the one dropped,
    and both libraries see the same transitions.

    Args:
        data: Its first store is exported, as far as it is used.
        policy: Already trained on ``data``: it normalises observations and embeddings.
        path: Gets observation, (N, O + E); action and reward, (N,); terminated and truncated, (N,).
    """
    store = data.stores[0]
    columns = store.transitions
    of_sentence = dict(zip(data.instructions, policy.goal_normalizer(data.goal_embeddings), strict=True))
    pieces: dict[str, list[np.ndarray]] = {
        name: [] for name in ("observation", "action", "reward", "terminated", "truncated")
    }
    for row in data.training.rollouts.tolist():
        start, length = int(store.rollouts["start"][row]), int(store.rollouts["length"][row])
        steps = slice(start, start + length)
        is_terminated = bool(columns[TERMINATED][steps][-1])
        num_added = 0 if is_terminated else 1
        seen = torch.cat([columns[OBSERVATION][steps], columns[NEXT_OBSERVATION][steps][length - num_added :]])
        sentence = store.instructions[int(store.rollouts[INSTRUCTION_ID][row])].instruction
        goal = of_sentence[sentence].expand(len(seen), -1)
        ends = np.arange(len(seen)) == len(seen) - 1
        pieces["observation"].append(torch.cat([policy.observation_normalizer(seen), goal], dim=1).numpy())
        pieces["action"].append(np.pad(columns[ACTION][steps].numpy(), (0, num_added)))
        pieces["reward"].append(np.pad(columns[REWARD][steps].numpy(), (0, num_added)))
        pieces["terminated"].append((ends & is_terminated).astype(np.float32))
        pieces["truncated"].append((ends & (not is_terminated)).astype(np.float32))
    np.savez(path, **{name: np.concatenate(parts) for name, parts in pieces.items()})
