"""The data module of imagination: which rollouts to imagine, for which goals, from which real first observations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from functools import cached_property
from typing import Any, cast

import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.core.names import TaskSpec
from kalm.data.goal_starts import make_work_items
from kalm.data.task_spec import task_spec
from kalm.data.work_item import WorkShard
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.store.domain_store import collect_if_absent, open_domain_store

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


class GoalData(LightningDataModule):
    """Goals to imagine rollouts for.

    Attributes:
        spec: Sizes for the model; known before any data is read.
        domain: The world.
        encoder: The frozen sentence encoder.
        finished_shards: Says which shards an earlier run has stored. It is asked when the dataloader is made, which is
            the first moment at which Lightning has loaded the weights that decide whether old shards still count.
    """

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: str,
        num_rollouts: Mapping[str, int] = PAPER_NUM_ROLLOUTS,
        goals_file: str | None = None,
        num_collected_rollouts: int = 10000,
        collect_seed: int = 0,
        rollouts_per_shard: int = 1024,
        seed: int = 0,
    ) -> None:
        """Describe the work; nothing is read yet.

        Args:
            domain: The world to imagine.
            encoder: The same as the model's.
            real: Folder of the store of real rollouts, whose first observations imagination starts from; collected
                there when absent.
            num_rollouts: Rollouts to imagine for each goal split (paper: 5600 rephrase, 72400 easy, 1680 hard).
            goals_file: JSON lines of your own goals, in place of the domain's.
            num_collected_rollouts: Real rollouts to collect when ``real`` is absent.
            collect_seed: Seed of that collection.
            rollouts_per_shard: Rollouts that are handed to the model and stored at once; what a kill can cost. Make it
                several times the model's ``imagination_batch_size``, so that the batch is seldom half empty.
            seed: Decides the first observations and the model's luck.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.domain, self.encoder = domain, encoder
        self.spec: TaskSpec = task_spec(domain, encoder)
        splits = domain.check_goal_splits(list(num_rollouts))
        self._num_rollouts = {split: num_rollouts[split] for split in domain.goal_splits if split in splits}
        for name, value in (*num_rollouts.items(), ("rollouts_per_shard", rollouts_per_shard)):
            if value < 1:
                raise DataError(f"{name} is {value}; it must be 1 or more. Leave out a split to imagine nothing for it")
        self._real, self._goals_file, self._seed = real, goals_file, seed
        self._num_collected_rollouts, self._collect_seed = num_collected_rollouts, collect_seed
        self._rollouts_per_shard = rollouts_per_shard
        self.finished_shards: Callable[[], Collection[str]] = set

    def prepare_data(self) -> None:
        """Collect the real store when it is absent."""
        collect_if_absent(self.domain, self._real, self._num_collected_rollouts, self._collect_seed)

    @property
    def description(self) -> dict[str, Any]:
        """What decides the work, as plain JSON types; kept with the store."""
        return {
            "num_rollouts": dict(self._num_rollouts),
            "goals_sha256": self._goals_sha256,
            "rollouts_per_shard": self._rollouts_per_shard,
            "seed": self._seed,
            "real": open_domain_store(self.domain, self._real).fingerprint,
        }

    @cached_property
    def _goals_sha256(self) -> str:
        """Identity of the goals themselves: a file may be edited, and lie elsewhere tomorrow."""
        lines = (
            json.dumps(goal.to_json(), sort_keys=True) for split in self._num_rollouts for goal in self._goals_of(split)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def all_shards(self) -> list[WorkShard]:
        """All work, in order."""
        shards = []
        for split, num_rollouts in self._num_rollouts.items():
            number = self.domain.goal_splits.index(split)
            items = make_work_items(
                self.domain, self._goals_of(split), num_rollouts, self._starts, (self._seed, number)
            )
            for first in range(0, num_rollouts, self._rollouts_per_shard):
                # The split's number comes first, so that names sort in the order of the splits.
                name = f"{number}-{split}-{first:09d}"
                shards.append(WorkShard(name, items[first : first + self._rollouts_per_shard]))
        return sorted(shards, key=lambda shard: shard.name)

    @cached_property
    def _starts(self) -> NDArray[Any]:
        store = open_domain_store(self.domain, self._real)
        starts: NDArray[Any] = store.transitions[names.OBSERVATION][store.rollouts["start"]].numpy()
        return starts

    def _goals_of(self, split: str) -> list[InstructedGoal]:
        if self._goals_file is None:
            return self.domain.instructed_goals(split)
        goals = self.domain.load_instructed_goals(self._goals_file)
        chosen = [goal for goal in goals if goal.goal_split == split]
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
