"""The grounded language model as the policy itself (KALM, figure 5): it is asked for actions, not for rollouts.

Each episode is one row that the model reads on: the prompt of rollout generation once, then every real observation and
every action that was taken, each token once thanks to the cache. So the model acts as in its imagination, but on what
the environment answers. Nothing is trained; the weights are those of a grounding checkpoint.

Shape letters: B episodes that run now, R rows of the reader, O numbers in an observation, A numbers in an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.envs.base import Domain
from kalm.errors import KalmError
from kalm.evaluation import Episode, EpisodeResult, evaluate
from kalm.language.prompts import generation_prompt
from kalm.llm.backbone import Backbone
from kalm.llm.generation import choose_action
from kalm.llm.grounded_llm import GroundedLLM
from kalm.llm.reader import CachedReader
from kalm.llm.rollout_codec import RolloutCodec
from kalm.types import TaskSpec


class LLMPolicy(GroundedLLM):
    """A grounded model that acts in the environment, likeliest action first; for ``test`` with a ``PolicyData``.

    Attributes:
        results_of_seeds: Results of the latest test, for callbacks: one list, as there is one model.
    """

    def __init__(
        self, spec: TaskSpec, backbone: Backbone, inner_size: int = 256, num_evaluation_envs: int = 64
    ) -> None:
        """Build the model; its weights come with the checkpoint.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            backbone: The language model underneath, as it was grounded.
            inner_size: As it was grounded.
            num_evaluation_envs: Episodes that run side by side; the results do not depend on it, up to rounding.
        """
        super().__init__(spec, backbone, inner_size)
        if num_evaluation_envs < 1:
            raise KalmError(f"num_evaluation_envs is {num_evaluation_envs}; it must be 1 or more")
        self.num_evaluation_envs = num_evaluation_envs
        self.num_updates = 0
        self.results_of_seeds: list[list[EpisodeResult]] = [[]]

    @property
    def episode_results(self) -> list[EpisodeResult]:
        """Results of the latest test."""
        return self.results_of_seeds[0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained on top of others; remember how long they were trained."""
        super().on_load_checkpoint(checkpoint)
        self.num_updates = int(checkpoint["global_step"])

    def on_test_epoch_start(self) -> None:
        """Forget the previous test."""
        self.results_of_seeds = [[]]

    def test_step(self, batch: list[Episode], batch_index: int) -> None:
        """Run episodes and keep their results for the callbacks."""
        self.results_of_seeds[0] += self.run_episodes(self._data.domain, batch)

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode]) -> list[EpisodeResult]:
        """Act in every episode.

        Args:
            domain: World to run in.
            episodes: What to run.

        Returns:
            One result an episode, in the order of ``episodes``.
        """
        actor = _Actor(self.backbone, self.codec, domain, episodes, min(self.num_evaluation_envs, len(episodes)))
        return evaluate(actor, domain, episodes, self.num_evaluation_envs)


class _Actor:
    """Reads on in every running episode. An episode keeps its row; when it is over, the row goes to a new one."""

    def __init__(
        self, backbone: Backbone, codec: RolloutCodec, domain: Domain, episodes: Sequence[Episode], num_rows: int
    ) -> None:
        self._codec = codec
        self._reader = CachedReader(backbone, num_rows)
        self._reader.begin(num_rows)
        self._prompts = [generation_prompt(episode.instructed.instruction) for episode in episodes]
        self._num_tokens = [2 * domain.max_steps(episode.instructed.goal) for episode in episodes]
        self._row_of: dict[int, int] = {}  # episode -> row
        # Rows without an episode read on as well, what they saw last: shapes stay, and nobody looks at them.
        self._observation = codec.observation_mean.expand(num_rows, -1).clone()

    @torch.inference_mode()
    def __call__(self, observations: NDArray[np.float32], episodes: list[int]) -> NDArray[Any]:
        """Actions of shape (B,) or (B, A) for observations of shape (B, O), given the number of each episode."""
        self._admit(episodes)
        rows = torch.tensor([self._row_of[episode] for episode in episodes], device=self._observation.device)
        self._observation[rows] = torch.from_numpy(observations).to(self._observation.device)
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
