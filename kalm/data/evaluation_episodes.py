"""Episodes to judge a policy on, as a trainer takes them: in lists, the same for every policy and every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from torch.utils.data import DataLoader, Dataset

from kalm.envs.base import Domain
from kalm.envs.evaluation import evaluation_episodes
from kalm.envs.simulation import Episode

_EPISODES_A_BATCH = 128


class EvaluationSeed(IntEnum):
    """Evaluation is the same for every run, whatever its seed; validation and test never share a start."""

    VALIDATION = 0
    TEST = 1


@dataclass(frozen=True)
class EvaluationEpisodes:
    """What a policy is judged on; it decides nothing that is learned.

    Args:
        num_validation_episodes: Episodes a split in validation.
        num_test_episodes: Episodes a split in test.
        goal_splits: Splits to evaluate on; null takes all of the domain's.
        goals_file: JSON lines of your own goals to evaluate on, in place of the domain's.
    """

    num_validation_episodes: int = 40
    num_test_episodes: int = 200
    goal_splits: Sequence[str] | None = None
    goals_file: str | None = None

    def validation_loader(self, domain: Domain) -> DataLoader[list[Episode]]:
        """Lists of validation episodes, the same for every run."""
        return self._loader(domain, self.num_validation_episodes, EvaluationSeed.VALIDATION)

    def test_loader(self, domain: Domain) -> DataLoader[list[Episode]]:
        """Lists of test episodes, the same for every run, none of them used in validation."""
        return self._loader(domain, self.num_test_episodes, EvaluationSeed.TEST)

    def _loader(self, domain: Domain, num_episodes: int, seed: EvaluationSeed) -> DataLoader[list[Episode]]:
        splits = domain.check_goal_splits(self.goal_splits)
        episodes = evaluation_episodes(domain, splits, num_episodes, int(seed), self.goals_file)
        # A list serves as a dataset; PyTorch's types only know its own class.
        dataset = cast("Dataset[list[Episode]]", episodes)
        return DataLoader(dataset, batch_size=_EPISODES_A_BATCH, shuffle=False, collate_fn=list)


DEFAULT_EPISODES = EvaluationEpisodes()
