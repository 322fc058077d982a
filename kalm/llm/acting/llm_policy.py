"""The grounded language model as the policy itself (KALM, figure 5): it is asked for actions, not for rollouts.

It reads the prompt of rollout generation, then every real observation and every action that was taken. So the model
acts as in its imagination, but on what the environment answers. Nothing is trained; the weights are those of a
grounding checkpoint.

Shape letters: B episodes that run now, O numbers in an observation as the codec reads it, A numbers in an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.specs import Spec
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult, evaluate
from kalm.language.prompts import generation_prompt
from kalm.llm.backbones.backbone import Backbone, require_same_backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.generation import Reader, choose_action
from kalm.runs.acting import BEST, Acting, ActionChoice, require_discrete
from kalm.runs.evaluated import EvaluatedPolicy


class LLMPolicy(EvaluatedPolicy):
    """A grounded model that acts in the environment; for ``test`` with a ``PolicyData``."""

    def __init__(
        self,
        spec: Spec,
        backbone: Backbone,
        inner_size: int = 256,
        acting: Acting = BEST,
        num_evaluation_envs: int = 64,
    ) -> None:
        """Build the model; its weights come with the checkpoint.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            backbone: The language model underneath, as it was grounded.
            inner_size: As it was grounded.
            acting: How discrete actions are chosen by their logits; the model reads on what was chosen.
            num_evaluation_envs: Episodes that run side by side; the results do not depend on it, up to rounding.
        """
        super().__init__(num_evaluation_envs)
        require_discrete(acting, spec)
        self.spec, self.acting = spec, acting
        # Under the names that they have in a GroundedLLM, so that its checkpoints fit.
        self.backbone = backbone
        self.codec = RolloutCodec(spec, [part.hidden_size for part in backbone.parts], inner_size)

    def configure_model(self) -> None:
        """Load a pretrained backbone where it will run: Lightning calls this before it restores a checkpoint."""
        self.backbone.load(self.device if self._trainer is None else self.trainer.strategy.root_device)
        self.codec.token_scales = [part.token_scale for part in self.backbone.parts]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained on top of others."""
        require_same_backbone(checkpoint, self.backbone)
        super().on_load_checkpoint(checkpoint)

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode; there is one model, whatever ``number``."""
        choice = None
        if self.acting.rule != "argmax":
            seed = self.trainer.datamodule.seed  # type: ignore[attr-defined]
            choice = ActionChoice(self.acting, seed, episodes, self.spec)
        actor = Actor(self.backbone, self.codec, episodes, min(self.num_evaluation_envs, len(episodes)), choice)
        return evaluate(actor, domain, episodes, self.num_evaluation_envs)


class Actor:
    """Asks a language model for actions, in many episodes at once.

    Each episode is one row that the model reads on: a prompt once, then every real observation and every action that
    was taken, each token once thanks to the cache. When it is over, its row goes to a new one.
    """

    def __init__(
        self,
        backbone: Backbone,
        codec: RolloutCodec,
        episodes: Sequence[Episode],
        num_rows: int,
        choice: ActionChoice | None = None,
    ) -> None:
        """Plan for the episodes, of which at most so many run at the same time; none has begun.

        Without ``choice`` the likeliest action is taken.
        """
        self._codec, self._choice = codec, choice
        self._reader = Reader(backbone, num_rows)
        self._reader.begin(num_rows)
        self._prompts = [generation_prompt(episode.instructed.instruction) for episode in episodes]
        self._num_tokens = [2 * episode.instructed.goal.max_steps for episode in episodes]
        self._row_of: dict[int, int] = {}  # episode -> row
        # Rows without an episode read on as well, what they saw last: shapes stay, and nobody looks at them.
        self._observation = codec.observation_mean.expand(num_rows, -1).clone()

    @torch.inference_mode()
    def __call__(self, observations: NDArray[Any], episodes: list[int], info: dict[str, Any]) -> NDArray[Any]:
        """Actions of shape (B,) or (B, A) at observations, shape (B, O), given each one's episode."""
        self._admit(episodes)
        rows = torch.tensor([self._row_of[episode] for episode in episodes], device=self._observation.device)
        self._observation[rows] = torch.from_numpy(observations.astype(np.float32)).to(self._observation.device)
        self._reader.make_room(2)
        hidden = self._reader.extend(self._codec.encode_observation(self._observation))
        action = choose_action(self._codec, hidden, noise=None, temperature=0.0)
        if self._choice is not None and self._codec.is_discrete:
            scores = self._codec.predict_action(hidden)[rows].float()
            action[rows] = self._choice.choose(scores, torch.from_numpy(observations), torch.tensor(episodes))
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
