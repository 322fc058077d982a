"""The data module of imagination: which rollouts to imagine, for which goals, from which real first observations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from functools import cached_property
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.core.validation import raise_problems
from kalm.data.language_batches import WorkShard, make_work_items
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.training_data import require_least
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder

# What the paper imagined on CLEVR-Robot.
PAPER_NUM_ROLLOUTS = {"rephrase": 5600, "easy": 72400, "hard": 1680}


class ShardSampler(DistributedSampler[int]):
    """Deals shards out to the devices of a run like cards: each goes to one, and a device may get none.

    PyTorch's own sampler hands some out twice, so that all devices get equally many; Lightning's for predictions does
    not, but refuses to let a device go without.
    """

    def __iter__(self) -> Iterator[int]:
        """Places of this device's shards, in order."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many they are."""
        return len(self._places)

    @property
    def _places(self) -> range:
        return range(self.rank, len(cast("Sized", self.dataset)), self.num_replicas)


class GoalData(RolloutData):
    """Goals to imagine rollouts for.

    Attributes:
        finished_shards: Says which shards an earlier run has stored. It is asked when the dataloader is made, which is
            the first moment at which Lightning has loaded the weights that decide whether old shards still count.
    """

    # What is imagined is decided by the goals themselves, not by the file they lie in; the encoder is the model's.
    undecided = frozenset({"encoder", "goals_file"})

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: RealRollouts,
        num_rollouts: Mapping[str, int] = PAPER_NUM_ROLLOUTS,
        goals_file: str | None = None,
        rollouts_per_shard: int = 1024,
        seed: int = 0,
    ) -> None:
        """Describe the work; nothing is read yet.

        Args:
            domain: The world to imagine.
            encoder: The same as the model's.
            real: The real rollouts, whose first observations imagination starts from.
            num_rollouts: Rollouts to imagine for each goal split (paper: 5600 rephrase, 72400 easy, 1680 hard).
            goals_file: JSON lines of your own goals, in place of the domain's.
            rollouts_per_shard: Rollouts that are handed to the model and stored at once; what a kill can cost. Make it
                several times the model's ``imagination_batch_size``, so that the batch is seldom half empty.
            seed: Decides the first observations and the model's luck.

        Raises:
            DataError: If a number is out of range, or a split is unknown or kept for the test.
        """
        super().__init__(locals())
        self.allow_zero_length_dataloader_with_multiple_devices = True
        splits = domain.check_learning_splits(list(num_rollouts))
        self._num_rollouts = {split: num_rollouts[split] for split in domain.goal_splits if split in splits}
        require_least(rollouts_per_shard=(rollouts_per_shard, 1), **{s: (n, 1) for s, n in num_rollouts.items()})
        self._goals_file, self._seed, self._rollouts_per_shard = goals_file, seed, rollouts_per_shard
        self.finished_shards: Callable[[], Collection[str]] = set

    @property
    def description(self) -> dict[str, Any]:
        """What decides the work, as plain JSON types; kept with the store."""
        return {**self._decisions, "num_rollouts": self._num_rollouts, "goals_sha256": self._goals_sha256}

    @cached_property
    def _goals_sha256(self) -> str:
        """Identity of the goals themselves: a file may be edited, and lie elsewhere tomorrow."""
        goals = (goal for split in self._num_rollouts for goal in self._goals_of(split))
        lines = (json.dumps(goal.to_json(), sort_keys=True) for goal in goals)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def all_shards(self) -> list[WorkShard]:
        """All work, in order."""
        shards = []
        for split, num_rollouts in self._num_rollouts.items():
            number = self.domain.goal_splits.index(split)
            seed = self._seed, number
            items = make_work_items(self.domain, self._goals_of(split), num_rollouts, self._starts, seed)
            for first in range(0, num_rollouts, self._rollouts_per_shard):
                # The split's number comes first, so that names sort in the order of the splits.
                name = f"{number}-{split}-{first:09d}"
                shards.append(WorkShard(name, items[first : first + self._rollouts_per_shard]))
        return sorted(shards, key=lambda shard: shard.name)

    @cached_property
    def _starts(self) -> NDArray[Any]:
        (observation,) = self.training.read((names.OBSERVATION,), self.training.starts)
        starts: NDArray[Any] = observation.numpy()
        return starts

    def _goals_of(self, split: str) -> list[InstructedGoal]:
        if self._goals_file is None:
            return self.domain.instructed_goals(split)
        goals = self.domain.load_instructed_goals(self._goals_file)
        chosen = [goal for goal in goals if goal.goal_split == split]
        raise_problems(
            f"{self._goals_file} asks to imagine what only a test may show",
            self.domain.kept_for_the_test((goal.instruction, goal.goal_split) for goal in chosen),
            "Write other sentences.",
        )
        if not chosen:
            found = sorted({goal.goal_split for goal in goals})
            raise DataError(
                f"{self._goals_file} has no goal of the split {split}; it has {', '.join(found) or 'no goal'}. "
                "Add some, or leave the split out of num_rollouts"
            )
        return chosen

    def predict_dataloader(self) -> DataLoader[WorkShard]:
        """One batch a shard that is left to do; of several devices, each gets its part of them."""
        finished = self.finished_shards()
        # A list serves as a dataset; PyTorch's types only know its own class.
        left = cast("Dataset[Any]", [shard for shard in self.all_shards if shard.name not in finished])
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(left, batch_size=None, sampler=ShardSampler(left, world_size, rank, shuffle=False))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Work items stay what they are; the model makes the tensors."""
        return batch
