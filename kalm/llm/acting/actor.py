"""Asks a language model for actions, in many episodes at once.

Each episode is one row that the model reads on: a prompt once, then every real observation and every action that was
taken, each token once thanks to the cache.

Shape letters: B episodes that run now, O numbers in an observation as the codec reads it, A numbers in an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.envs.simulation import Episode
from kalm.language.prompts import generation_prompt
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.generation import choose_action
from kalm.llm.imagination.reader import CachedReader


class Actor:
    """Reads on in every running episode. An episode keeps its row; when it is over, the row goes to a new one."""

    def __init__(self, backbone: Backbone, codec: RolloutCodec, episodes: Sequence[Episode], num_rows: int) -> None:
        """Plan for the episodes; none has begun.

        Args:
            backbone: The language model.
            codec: Its inputs and outputs for observations and actions.
            episodes: What will be run; their prompts are those of rollout generation.
            num_rows: Most of them that run at the same time.
        """
        self._codec = codec
        self._reader = CachedReader(backbone, num_rows)
        self._reader.begin(num_rows)
        self._prompts = [generation_prompt(episode.instructed.instruction) for episode in episodes]
        self._num_tokens = [2 * episode.instructed.goal.max_steps for episode in episodes]
        self._row_of: dict[int, int] = {}  # episode -> row
        # Rows without an episode read on as well, what they saw last: shapes stay, and nobody looks at them.
        self._observation = codec.observation_mean.expand(num_rows, -1).clone()

    @torch.inference_mode()
    def __call__(self, observations: NDArray[Any], episodes: list[int], info: dict[str, Any]) -> NDArray[Any]:
        """The likeliest actions, shape (B,) or (B, A).

        Args:
            observations: What is seen now, shape (B, O).
            episodes: The number of each one's episode, length B.
            info: What the environment says besides; nothing of it is read.
        """
        self._admit(episodes)
        rows = torch.tensor([self._row_of[episode] for episode in episodes], device=self._observation.device)
        self._observation[rows] = torch.from_numpy(observations.astype(np.float32)).to(self._observation.device)
        self._reader.make_room(2)
        hidden = self._reader.extend(self._codec.encode_observation(self._observation))
        action = choose_action(self._codec, hidden, noise=None, temperature=0.0)
        self._reader.extend(self._codec.encode_action(action))
        return action[rows].cpu().numpy()

    def _admit(self, episodes: list[int]) -> None:
        """Free the rows of episodes that are over; give free rows to new ones."""
        self._row_of = {episode: self._row_of[episode] for episode in episodes if episode in self._row_of}
        free = np.setdiff1d(np.arange(len(self._observation)), list(self._row_of.values())).astype(np.int64)
        self._reader.release(free)
        new = [episode for episode in episodes if episode not in self._row_of]
        rows = free[: len(new)].tolist()
        if new:
            num_tokens = max(self._num_tokens[episode] for episode in new)
            self._reader.admit(rows, [self._prompts[episode] for episode in new], num_tokens)
        self._row_of |= dict(zip(new, rows, strict=True))
