"""Which episodes a policy is validated and tested on, as its data module describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader

from kalm.data.training_data import examined_loader
from kalm.envs.base import Domain
from kalm.envs.evaluation import evaluation_episodes
from kalm.envs.simulation import Episode

# Evaluation is the same for every run, whatever its seed; validation and test never share a start.
_VALIDATION_SEED, _TEST_SEED = 0, 1
_EPISODES_A_BATCH = 128


@dataclass(frozen=True)
class EvaluationEpisodes:
    """What a policy is judged on, the same for every policy and every run; it decides nothing that is learned.

    Args:
        num_validation_episodes: Episodes a split in validation.
        num_test_episodes: Episodes a split in test.
        goal_splits: Splits to evaluate on; null takes all of the domain's.
        validation_splits: Splits to validate on, where some are not to be seen before the test; null takes all that are
            tested but those of unseen sentences, which the domain keeps for the test.
        goals_file: JSON lines of your own goals to evaluate on, in place of the domain's.
    """

    num_validation_episodes: int = 40
    num_test_episodes: int = 200
    goal_splits: Sequence[str] | None = None
    goals_file: str | None = None
    validation_splits: Sequence[str] | None = None

    def check(self, domain: Domain) -> None:
        """Refuse with a ``DataError`` splits that a domain does not have, before anything is read."""
        domain.check_goal_splits(self.goal_splits)
        domain.check_learning_splits(self.validation_splits)

    def validation_loader(self, domain: Domain) -> DataLoader[list[Episode]]:
        """Lists of validation episodes.

        Raises:
            DataError: If all splits that are tested are kept for the test, and none is named for validation.
        """
        splits = self.validation_splits
        if splits is None and self.goal_splits is not None:
            splits = [split for split in self.goal_splits if split not in domain.unseen_splits]
        splits = domain.check_learning_splits(splits)
        return self._loader(domain, splits, self.num_validation_episodes, _VALIDATION_SEED)

    def test_loader(self, domain: Domain) -> DataLoader[list[Episode]]:
        """Lists of test episodes, none of them used in validation."""
        return self._loader(domain, self.goal_splits, self.num_test_episodes, _TEST_SEED)

    def _loader(
        self, domain: Domain, goal_splits: Sequence[str] | None, num_episodes: int, seed: int
    ) -> DataLoader[list[Episode]]:
        splits = domain.check_goal_splits(goal_splits)
        episodes = evaluation_episodes(domain, splits, num_episodes, seed, self.goals_file)
        return examined_loader(episodes, _EPISODES_A_BATCH, list)


DEFAULT_EPISODES = EvaluationEpisodes()
