"""The data module of grounding: real rollouts as batches of the three tasks, and what to validate on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import cycle, islice
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kalm import types
from kalm.data.domain_store import collect_if_absent, open_domain_store, parse_goal_splits
from kalm.data.filters import RolloutFilter, select_rollouts
from kalm.data.goal_starts import make_work_items
from kalm.data.grounding_batch import GroundingBatch, GroundingTask, join_batches
from kalm.data.index_batches import IndexedBatches
from kalm.data.moments import Moments
from kalm.data.store import InstructionRow, RolloutStore
from kalm.data.task_batches import TaskBatches
from kalm.data.task_spec import task_spec
from kalm.data.work_item import WorkItem
from kalm.envs.base import Domain
from kalm.errors import DataError
from kalm.language.encoder import SentenceEncoder
from kalm.language.prompts import DYNAMICS, EXPLANATIONS, generation_prompt
from kalm.types import GoalSplit, TaskSpec

# Validation is the same for every run, whatever its seed.
_VALIDATION_SEED = 0
_ROLLOUTS_A_BATCH = 128
_CHUNK = 1 << 16


class GroundingData(LightningDataModule):
    """Real rollouts, cut into batches of each grounding task.

    Attributes:
        spec: Sizes for the model; known before any data is read.
        domain: The world.
        encoder: The frozen sentence encoder.
    """

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: str,
        filter: RolloutFilter = RolloutFilter.success,
        max_rollouts: int | None = None,
        num_collected_rollouts: int = 10000,
        collect_seed: int = 0,
        num_generation: int = 64,
        num_dynamics: int = 16,
        num_explanation: int = 16,
        tokens_per_prompt: int = 96,
        crop_probability: float = 0.0,
        relabel: bool = False,
        num_held_out: int = 200,
        num_imagined: int = 100,
        goal_splits: Sequence[str] = ("train", "rephrase", "easy", "hard"),
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from.
            encoder: Tells about how long a text is; link it to the backbone's.
            real: Folder of the store of real rollouts; collected there when absent.
            filter: What a rollout must be to be learned from; one that missed its goal explains nothing (paper: all).
            max_rollouts: Use the first so many rollouts; null uses all (paper: 100000).
            num_collected_rollouts: Real rollouts to collect when ``real`` is absent.
            collect_seed: Seed of that collection.
            num_generation: Rollouts a batch for the task goal to rollout; 0 leaves the task out. The paper mixes
                the three tasks equally; generation is the hardest and the one that imagination needs.
            num_dynamics: Rollouts a batch for the task state and action to next state; 0 leaves it out.
            num_explanation: Rollouts a batch for the task rollout to goal; 0 leaves it out.
            tokens_per_prompt: Rollouts with the same prompt read it together, up to this many tokens.
            crop_probability: How often a rollout is shown from a random later step on, in [0, 1]; what is left is a
                rollout for the same goal, from a start that no other has.
            relabel: Whether every rollout is shown under a random one of the domain's relabellings each time, such as
                the colours of equal balls exchanged: far more different true rollouts than were collected.
            num_held_out: Rollouts that are validated on and never trained on.
            num_imagined: Rollouts a split to imagine in every validation.
            goal_splits: Splits to imagine for.
            seed: Decides the order of training.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__()
        self.domain, self.encoder = domain, encoder
        self.spec: TaskSpec = task_spec(domain, encoder)
        self._real, self._filter, self._max_rollouts = real, filter, max_rollouts
        self._num_collected_rollouts, self._collect_seed = num_collected_rollouts, collect_seed
        self._task_sizes = {
            GroundingTask.GENERATION: num_generation,
            GroundingTask.DYNAMICS: num_dynamics,
            GroundingTask.EXPLANATION: num_explanation,
        }
        self._tokens_per_prompt, self._crop_probability, self._seed = tokens_per_prompt, crop_probability, seed
        self._relabellings = domain.relabellings if relabel else ()
        self._num_held_out, self._num_imagined = num_held_out, num_imagined
        self._goal_splits = parse_goal_splits(goal_splits)
        for name, value, least in (
            *((f"num_{task.name.lower()}", size, 0) for task, size in self._task_sizes.items()),
            ("tokens_per_prompt", tokens_per_prompt, 1),
            ("num_held_out", num_held_out, 1),
            ("num_imagined", num_imagined, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise DataError(f"{name} is {value}; it must be {least} or more")
        if not 0 <= crop_probability <= 1:
            raise DataError(f"crop_probability is {crop_probability}; it is a share, in [0, 1]")
        if relabel and not self._relabellings:
            raise DataError(f"relabel is true, but the domain {domain.name} has no relabellings; set it to false")
        if not any(self._task_sizes.values()):
            raise DataError("num_generation, num_dynamics and num_explanation are all 0; one task must be left")

    def prepare_data(self) -> None:
        """Collect the real store when it is absent."""
        collect_if_absent(self.domain, self._real, self._num_collected_rollouts, self._collect_seed)

    def setup(self, stage: str) -> None:
        """Open the store, so that what is wrong with it shows at once."""
        if len(self._chosen) <= self._num_held_out:
            raise DataError(
                f"{len(self._chosen)} rollouts of {self._real} pass filter: {self._filter.name}; with num_held_out "
                f"{self._num_held_out} none is left to train on. Collect more, or lower num_held_out"
            )

    @cached_property
    def store(self) -> RolloutStore:
        """The real rollouts."""
        return open_domain_store(self.domain, self._real)

    @property
    def fingerprint(self) -> str:
        """Identity of the data, for resuming."""
        return self.store.fingerprint

    @cached_property
    def answers(self) -> list[str]:
        """What explanation learns to write of each training rollout: its goal's shortest instruction.

        Which of a goal's wordings somebody had used, no rollout can tell, and learning to guess it would take the
        better part of the effort. (The paper's answers are the rollouts' own instructions.)
        """
        rows = [row for row in self.store.instructions if row.goal_split is GoalSplit.TRAIN]
        shortest: dict[str, str] = {}
        for row in sorted(rows, key=lambda row: (len(row.instruction), row.instruction)):
            shortest.setdefault(_key(row.goal), row.instruction)
        return [shortest[_key(row.goal)] for row in self._instruction_rows]

    @property
    def observation_mean(self) -> Tensor:
        """Mean of the training observations, float32 of shape (O,)."""
        return self._moments[0].mean

    @property
    def observation_std(self) -> Tensor:
        """Their standard deviation, float32 of shape (O,); 1 where a number never changes."""
        return self._moments[0].std

    @property
    def change_std(self) -> Tensor:
        """Standard deviation of the change in one step, float32 of shape (O,); 0 where a number never changes."""
        return self._moments[1].spread

    @property
    def outcome_range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest of each number after a step of the training rollouts, float32 of shape (O,) each."""
        return self._moments[2].least, self._moments[2].greatest

    def batch(self, index: int) -> GroundingBatch:
        """Rollouts of every task that is not left out; a pure function of seed and index."""
        return join_batches([batches(index) for batches in self._task_batches])

    def train_dataloader(self) -> DataLoader[GroundingBatch]:
        """Batches without end, going on where the trainer's update counter stands."""
        return IndexedBatches(self.batch, start=self._first_batch).dataloader()

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out real rollouts; then, if any are to be imagined, work items of every split."""
        held_out = [self.store.rollout(int(row)) for row in self._held_out]
        loaders = [_lists_of(held_out)]
        if self._num_imagined:
            loaders.append(_lists_of(self._work_items(np.stack([r.observations[0] for r in held_out]))))
        return loaders

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; leave lists of rollouts and work items as they are."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _first_batch(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    @cached_property
    def _chosen(self) -> Tensor:
        return select_rollouts(self.store, self._filter, self._max_rollouts)

    @property
    def _held_out(self) -> NDArray[np.int64]:
        return self._chosen[len(self._chosen) - self._num_held_out :].numpy()

    @property
    def _training(self) -> NDArray[np.int64]:
        return self._chosen[: len(self._chosen) - self._num_held_out].numpy()

    @cached_property
    def _task_batches(self) -> list[TaskBatches]:
        count = len(self._training)
        answer_tokens = [len(answer.split()) for answer in self.answers]  # nearly: punctuation is not counted
        nothing = [""] * count, [0] * count
        texts = {
            GroundingTask.GENERATION: (
                [generation_prompt(row.instruction) for row in self._instruction_rows],
                *nothing,
            ),
            GroundingTask.DYNAMICS: ([DYNAMICS] * count, *nothing),
            GroundingTask.EXPLANATION: (list(islice(cycle(EXPLANATIONS), count)), self.answers, answer_tokens),
        }
        return [
            TaskBatches(
                self.store,
                self._training,
                task,
                *texts[task],
                rollouts_per_batch=size,
                tokens_per_prompt=self._tokens_per_prompt,
                crop_probability=self._crop_probability,
                relabellings=self._relabellings,
                seed=(self._seed, int(task)),
            )
            for task, size in self._task_sizes.items()
            if size
        ]

    @cached_property
    def _moments(self) -> tuple[Moments, Moments, Moments]:
        """Of observations, changes and next observations, read piece by piece: memory does not grow with the store."""
        of_observation, of_change, of_outcome = Moments(), Moments(), Moments()
        transitions = self.store.transitions
        starts, lengths = (
            self.store.rollouts[key][torch.from_numpy(self._training)].long() for key in ("start", "length")
        )
        ends = lengths.cumsum(0)
        steps = torch.arange(int(ends[-1])) + (starts - (ends - lengths)).repeat_interleave(lengths)
        for piece in steps.split(_CHUNK):
            observation, outcome = (transitions[key][piece] for key in (types.OBSERVATION, types.NEXT_OBSERVATION))
            of_observation.add(observation)
            of_change.add(outcome - observation)
            of_outcome.add(outcome)
        return of_observation, of_change, of_outcome

    @cached_property
    def _instruction_rows(self) -> list[InstructionRow]:
        """Goal and sentence of each training rollout."""
        table = self.store.instructions
        return [table[row] for row in self.store.rollouts[types.INSTRUCTION_ID][self._training].tolist()]

    def _work_items(self, starts: NDArray[np.float32]) -> list[WorkItem]:
        return [
            item
            for split in self._goal_splits
            for item in make_work_items(
                self.domain,
                self.domain.instructed_goals(split),
                self._num_imagined,
                starts,
                (_VALIDATION_SEED, int(split)),
            )
        ]


def _key(goal: Mapping[str, Any]) -> str:
    return json.dumps(goal, sort_keys=True)


def _lists_of(entries: Sequence[Any]) -> DataLoader[Any]:
    # A list serves as a dataset; PyTorch's types only know its own class.
    return DataLoader(cast("Dataset[Any]", entries), batch_size=_ROLLOUTS_A_BATCH, shuffle=False, collate_fn=list)
