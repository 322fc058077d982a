"""The data module of the Decision Transformer on a language model: real rollouts with returns, and episodes.

Rollouts come as in grounding, behind the prompt of generation, so that both learn from the same sentences and steps.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader

from kalm.data.evaluation_episodes import DEFAULT_EPISODES, EvaluationEpisodes
from kalm.data.grounding_data import check_shown_rollouts
from kalm.data.language_batches import GroundingBatch, GroundingTask
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.symmetry import SymmetryKind
from kalm.data.task_batches import TaskBatches, generation_prompts
from kalm.data.training_data import require_least
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode
from kalm.language.encoder import SentenceEncoder


class ReturnConditionedData(RolloutData):
    """Real rollouts for the goals that they were made for, and the episodes that policies are judged on."""

    undecided = frozenset({"encoder", "evaluation"})

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: RealRollouts,
        batch_size: int = 64,
        tokens_per_prompt: int = 96,
        crop_probability: float = 0.0,
        symmetry: SymmetryKind = SymmetryKind.none,
        num_held_out: int = 200,
        evaluation: EvaluationEpisodes = DEFAULT_EPISODES,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from and the policy is judged in.
            encoder: Its sizes go into ``spec``; link it to the backbone's.
            real: The real rollouts. They need no filter: what failed has a low return, and is not what is asked for.
            batch_size: Rollouts of one update, up to a group that shares a prompt more or less.
            tokens_per_prompt: Rollouts with the same prompt read it together, up to this many tokens.
            crop_probability: How often a rollout is shown from a random later step on, in [0, 1].
            symmetry: As in grounding: under which of the domain's symmetries every rollout is shown.
            num_held_out: Rollouts that are validated on and never trained on.
            evaluation: The episodes to judge a policy on.
            seed: Decides the order of training.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__(locals(), num_held_out)
        self.evaluation = evaluation
        require_least(batch_size=(batch_size, 1))
        check_shown_rollouts(tokens_per_prompt, crop_probability, num_held_out)
        evaluation.check(domain)
        self._batch_size, self._seed = batch_size, seed
        self._shown: Any = {"tokens_per_prompt": tokens_per_prompt, "crop_probability": crop_probability}

    def setup(self, stage: str) -> None:
        """Open the store, so that what is wrong with it shows at once; a test reads none."""
        if stage != "test":
            _ = self.training

    def batch(self, index: int) -> GroundingBatch:
        """Rollouts of update ``index``; a pure function of seed and index."""
        return self._batches(index)

    @cached_property
    def _batches(self) -> TaskBatches:
        task, prompts = GroundingTask.GENERATION, generation_prompts(self.training)
        seed = self._seed, int(task)
        return TaskBatches(
            self.training, task, prompts, None, self._batch_size, **self._shown, symmetries=self.symmetries, seed=seed
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out real rollouts; then validation episodes."""
        return [self.held_out_loader(), self.evaluation.validation_loader(self.domain)]

    def test_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of test episodes."""
        return self.evaluation.test_loader(self.domain)
