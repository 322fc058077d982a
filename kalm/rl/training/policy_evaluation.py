"""Runs a trained policy on episodes: encodes their instructions and feeds the network rows of one fixed shape.

Shape letters: B episodes that run side by side, O observation, E goal embedding, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult, evaluate

# Observations (B, O) as the environment gives them, goal embeddings (B, E) and the number of each row's episode (B,),
# -1 for a row that nobody asked for, to actions.
EpisodePolicy = Callable[[Tensor, Tensor, Tensor], Tensor]

# Rows of every forward pass. Matrix products of another shape may round differently, and a policy near a tie would
# then act differently; with one shape a row's action cannot depend on how many rows came with it.
_ROWS = 64


def evaluate_policy(
    policy: EpisodePolicy,
    device: torch.device,
    embed: Callable[[Sequence[str]], Tensor],
    domain: Domain,
    episodes: Sequence[Episode],
    num_envs: int,
) -> list[EpisodeResult]:
    """Run every episode with a policy on ``device``, ``num_envs`` side by side: one result an episode, in their order.

    The policy is asked once a step of each episode, in order; ``embed`` makes goal embeddings of sentences as they were
    made for its training.
    """
    sentences = [episode.instructed.instruction for episode in episodes]
    distinct = list(dict.fromkeys(sentences))
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    embeddings = embed(distinct)[[row_of[sentence] for sentence in sentences]]  # a row an episode

    @torch.no_grad()
    def act(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
        num_padding = -len(rows) % _ROWS
        if observations.dtype.kind == "f":
            observations = observations.astype(np.float32)
        padding = [(0, num_padding), *[(0, 0)] * (observations.ndim - 1)]
        observation = torch.from_numpy(np.pad(observations, padding))
        goal_embedding = embeddings[rows + [0] * num_padding]
        episode = torch.tensor(rows + [-1] * num_padding)
        chunks = zip(observation.split(_ROWS), goal_embedding.split(_ROWS), episode.split(_ROWS), strict=True)
        actions = [policy(part.to(device), goals.to(device), numbers) for part, goals, numbers in chunks]
        return torch.cat(actions)[: len(rows)].cpu().numpy()

    return evaluate(act, domain, episodes, num_envs)
