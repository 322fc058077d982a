"""Episodes to judge a policy on, as a trainer takes them: in lists, the same for every policy and every run."""

from __future__ import annotations

from collections.abc import Sequence
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


def episode_loader(
    domain: Domain,
    goal_splits: Sequence[str],
    num_episodes: int,
    seed: EvaluationSeed,
    goals_file: str | None = None,
) -> DataLoader[list[Episode]]:
    """Lists of episodes.

    Args:
        domain: World to evaluate in.
        goal_splits: Splits to cover.
        num_episodes: Episodes a split.
        seed: What they are for.
        goals_file: JSON lines of the user's own goals, in place of the domain's.

    Raises:
        DataError: If a split has no instruction, or the number is out of range.
    """
    episodes = evaluation_episodes(domain, goal_splits, num_episodes, int(seed), goals_file)
    # A list serves as a dataset; PyTorch's types only know its own class.
    dataset = cast("Dataset[list[Episode]]", episodes)
    return DataLoader(dataset, batch_size=_EPISODES_A_BATCH, shuffle=False, collate_fn=list)
