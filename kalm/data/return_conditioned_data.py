"""The data module of the Decision Transformer on a language model: real rollouts with returns, and episodes.

Rollouts come as in grounding, behind the prompt of generation, so that both learn from the same sentences and steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from kalm.core.errors import DataError
from kalm.data.episode_lists import EvaluationSeed, episode_loader
from kalm.data.filters import RolloutFilter
from kalm.data.grounding_data import GroundingData
from kalm.data.windows import RolloutStatistics, rollout_statistics
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode
from kalm.language.encoder import SentenceEncoder


class ReturnConditionedData(GroundingData):
    """Real rollouts for the goals that they were made for, and the episodes that policies are judged on."""

    _instead = "start afresh under another --experiment"

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: str,
        filter: RolloutFilter = RolloutFilter.none,
        max_rollouts: int | None = None,
        num_collected_rollouts: int = 10000,
        collect_seed: int = 0,
        batch_size: int = 64,
        tokens_per_prompt: int = 96,
        crop_probability: float = 0.0,
        relabel: bool = False,
        mirror: bool = False,
        num_held_out: int = 200,
        num_validation_episodes: int = 40,
        num_test_episodes: int = 200,
        goal_splits: Sequence[str] | None = None,
        goals_file: str | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from and the policy is judged in.
            encoder: Tells about how long a text is; link it to the backbone's.
            real: Folder of the store of real rollouts; collected there when absent.
            filter: What a rollout must be to be learned from. None is needed: what failed has a low return, and
                is not what is asked for.
            max_rollouts: Use the first so many real rollouts; null uses all.
            num_collected_rollouts: Real rollouts to collect when ``real`` is absent.
            collect_seed: Seed of that collection.
            batch_size: Rollouts of one update, up to a group that shares a prompt more or less.
            tokens_per_prompt: Rollouts with the same prompt read it together, up to this many tokens.
            crop_probability: How often a rollout is shown from a random later step on, in [0, 1].
            relabel: As in grounding: whether every rollout is shown under a random one of the domain's relabellings.
            mirror: As in grounding: whether every rollout is shown in a random one of the domain's mirrors.
            num_held_out: Rollouts that are validated on and never trained on.
            num_validation_episodes: Episodes a split in validation.
            num_test_episodes: Episodes a split in test.
            goal_splits: Splits to evaluate on; null takes all of the domain's.
            goals_file: JSON lines of your own goals to evaluate on, in place of the domain's.
            seed: Decides the order of training.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; it must be 1 or more")
        super().__init__(
            domain,
            encoder,
            real,
            filter=filter,
            max_rollouts=max_rollouts,
            num_collected_rollouts=num_collected_rollouts,
            collect_seed=collect_seed,
            num_generation=batch_size,
            num_dynamics=0,
            num_explanation=0,
            tokens_per_prompt=tokens_per_prompt,
            crop_probability=crop_probability,
            relabel=relabel,
            mirror=mirror,
            num_held_out=num_held_out,
            num_imagined=0,
            goal_splits=goal_splits,
            seed=seed,
        )
        self._num_validation_episodes, self._num_test_episodes = num_validation_episodes, num_test_episodes
        self._goals_file = goals_file
        # What decides which rollouts an update gets, beside the store, the seed and the update.
        self._choices = {
            "filter": filter.name,
            "max_rollouts": max_rollouts,
            "batch_size": batch_size,
            "tokens_per_prompt": tokens_per_prompt,
            "crop_probability": crop_probability,
            "relabel": relabel,
            "mirror": mirror,
            "num_held_out": num_held_out,
        }

    def prepare_data(self) -> None:
        """Collect the real store when it is absent and the stage reads it: episodes need none."""
        if not self._is_test:
            super().prepare_data()

    def setup(self, stage: str) -> None:
        """Open the store, so that what is wrong with it shows at once."""
        if stage != "test":
            super().setup(stage)

    def state_dict(self) -> dict[str, Any]:
        """What decides, with seed and update, which rollouts an update gets; Lightning puts it into checkpoints."""
        return {"real": self.store.fingerprint[:12], **self._choices}

    @property
    def rollout_statistics(self) -> RolloutStatistics:
        """Returns and lengths of the rollouts that are trained on."""
        return rollout_statistics([self.store], [torch.from_numpy(self._training)])

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out real rollouts; then validation episodes, the same for every policy."""
        episodes = self._episodes(self._num_validation_episodes, EvaluationSeed.VALIDATION)
        return [*super().val_dataloader(), episodes]

    def test_dataloader(self) -> DataLoader[list[Episode]]:
        """Test episodes, the same for every policy, none of them used in validation."""
        return self._episodes(self._num_test_episodes, EvaluationSeed.TEST)

    def _episodes(self, num_episodes: int, seed: EvaluationSeed) -> DataLoader[list[Episode]]:
        return episode_loader(self.domain, self._goal_splits, num_episodes, seed, self._goals_file)

    @property
    def _is_test(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "test"
