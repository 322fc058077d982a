"""The grounded language model as the policy itself (KALM, figure 5): it is asked for actions, not for rollouts.

It reads the prompt of rollout generation, then every real observation and every action that was taken. So the model
acts as in its imagination, but on what the environment answers. Nothing is trained; the weights are those of a
grounding checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kalm.core.errors import KalmError
from kalm.core.names import TaskSpec
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult, evaluate
from kalm.llm.acting.actor import Actor
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.grounded_llm import GroundedLLM


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
        actor = Actor(self.backbone, self.codec, episodes, min(self.num_evaluation_envs, len(episodes)))
        return evaluate(actor, domain, episodes, self.num_evaluation_envs)
