"""The data module of grounding: real rollouts as batches of the three tasks, and what to validate on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from kalm.core import names
from kalm.core.changes import changes
from kalm.core.errors import CheckpointError, DataError
from kalm.core.names import TaskSpec
from kalm.data.filters import RolloutFilter, select_rollouts
from kalm.data.general_text import GeneralTextPieces
from kalm.data.grounding_batch import GroundingBatch, GroundingTask, join_batches
from kalm.data.grounding_validation import validation_loaders
from kalm.data.index_batches import IndexedBatches
from kalm.data.joined_rollouts import JoinedRollouts
from kalm.data.moments import Moments
from kalm.data.symmetry import RelabelledNumbers
from kalm.data.task_batches import TaskBatches
from kalm.data.task_spec import task_spec
from kalm.data.task_texts import dynamics_texts, explanation_texts, generation_texts, shortest_instructions
from kalm.data.transition_moments import transition_moments
from kalm.data.verified_rollouts import verified_rollouts
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.language.prompts import EXPLANATIONS
from kalm.store.domain_store import collect_if_absent, open_domain_store
from kalm.store.reader import InstructionRow, RolloutStore

# Beyond the numbers of the tasks, which seed the streams of real rollouts.
_IMAGINED_STREAM, _TEXT_STREAM = 1 << 8, 1 << 9
_LEAST_TEXT_TOKENS = 8


class GroundingData(LightningDataModule):
    """Real rollouts, cut into batches of each grounding task.

    Attributes:
        spec: Sizes for the model; known before any data is read.
        domain: The world.
        encoder: The frozen sentence encoder.
    """

    # What to do, other than resuming, with a run whose data have changed.
    _instead = "to go on from its weights start another --experiment with model.weights_from"

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: str,
        filter: RolloutFilter = RolloutFilter.success,
        imagined: Sequence[str] = (),
        imagined_filter: RolloutFilter = RolloutFilter.both,
        imagined_fraction: float = 0.5,
        num_least_imagined: int = 0,
        max_rollouts: int | None = None,
        num_collected_rollouts: int = 10000,
        collect_seed: int = 0,
        num_generation: int = 64,
        num_dynamics: int = 16,
        num_explanation: int = 16,
        num_explanation_prompts: int = len(EXPLANATIONS),
        general_text: str | list[str] | None = None,
        num_general_text: int = 0,
        general_text_tokens: int = 128,
        tokens_per_prompt: int = 96,
        crop_probability: float = 0.0,
        relabel: bool = False,
        mirror: bool = False,
        num_held_out: int = 200,
        num_imagined: int = 100,
        goal_splits: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from.
            encoder: Tells about how long a text is; link it to the backbone's.
            real: Folder of the store of real rollouts; collected there when absent.
            filter: What a rollout must be to be learned from; one that missed its goal explains nothing (paper: all).
            imagined: Folders of stores of imagined rollouts to learn generation from as well; the paper has none. The
                other tasks, the answers and the statistics stay with real rollouts: what the world does, and what was
                meant, is not for imagination to say.
            imagined_filter: What an imagined rollout must be: none, plausible, success or both.
            imagined_fraction: Part of the rollouts of generation that are imagined, in (0, 1], to the nearest rollout.
            num_least_imagined: Imagined rollouts that each task should have; where fewer pass the filter, those of the
                highest return join that pass all of it but success.
            max_rollouts: Use the first so many real rollouts; null uses all (paper: 100000).
            num_collected_rollouts: Real rollouts to collect when ``real`` is absent.
            collect_seed: Seed of that collection.
            num_generation: Rollouts a batch for the task goal to rollout; 0 leaves the task out. The paper mixes
                the three tasks equally; generation is the hardest and the one that imagination needs.
            num_dynamics: Rollouts a batch for the task state and action to next state; 0 leaves it out.
            num_explanation: Rollouts a batch for the task rollout to goal; 0 leaves it out.
            num_explanation_prompts: Wordings in which that task asks, 1 to 8 (paper: 1).
            general_text: File, or files, of text that the model should not forget how to write: plain text with empty
                lines between texts, or ``.jsonl`` with an object a line that has a ``text``. All of it is read into
                memory. A tenth is held out, whose loss every validation reports; null has none (paper).
            num_general_text: Pieces of that text a batch, to be learned beside the rollouts; 0 only validates on it.
            general_text_tokens: About as many tokens a piece; what is longer is cut, at the context of the model too.
            tokens_per_prompt: Rollouts with the same prompt read it together, up to this many tokens.
            crop_probability: How often a rollout is shown from a random later step on, in [0, 1]; what is left is a
                rollout for the same goal, from a start that no other has.
            relabel: Whether every rollout is shown under a random one of the domain's relabellings each time, such as
                the colours of equal balls exchanged: far more different true rollouts than were collected. Sentences
                must name whatever is exchanged.
            mirror: Whether every rollout is shown in a random one of the domain's mirrors each time. Motions to the
                other side are then in the data too, though none of them was recorded.
            num_held_out: Rollouts that are validated on and never trained on.
            num_imagined: Rollouts a split to imagine in every validation.
            goal_splits: Splits to imagine for; null takes all of the domain's.
            seed: Decides the order of training.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__()
        self.domain, self.encoder = domain, encoder
        self.spec: TaskSpec = task_spec(domain, encoder)
        self._real, self._filter, self._max_rollouts = real, filter, max_rollouts
        self._imagined, self._imagined_filter = list(imagined), imagined_filter
        self._num_least_imagined = num_least_imagined
        self._num_imagined_generation = round(num_generation * imagined_fraction) if self._imagined else 0
        self._num_collected_rollouts, self._collect_seed = num_collected_rollouts, collect_seed
        self._task_sizes = {
            GroundingTask.GENERATION: num_generation - self._num_imagined_generation,
            GroundingTask.DYNAMICS: num_dynamics,
            GroundingTask.EXPLANATION: num_explanation,
        }
        self._tokens_per_prompt, self._crop_probability, self._seed = tokens_per_prompt, crop_probability, seed
        self._num_explanation_prompts = num_explanation_prompts
        self._text_files = [general_text] if isinstance(general_text, str) else list(general_text or ())
        self._num_general_text, self._general_text_tokens = num_general_text, general_text_tokens
        self._relabellings = domain.symmetries if relabel else domain.mirror_images if mirror else ()
        self._num_held_out, self._num_imagined = num_held_out, num_imagined
        self._goal_splits = domain.check_goal_splits(goal_splits)
        for name, value, least in (
            ("num_generation", num_generation, 0),
            ("num_dynamics", num_dynamics, 0),
            ("num_explanation", num_explanation, 0),
            ("num_least_imagined", num_least_imagined, 0),
            ("num_explanation_prompts", num_explanation_prompts, 1),
            ("num_general_text", num_general_text, 0),
            ("general_text_tokens", general_text_tokens, _LEAST_TEXT_TOKENS),
            ("tokens_per_prompt", tokens_per_prompt, 1),
            ("num_held_out", num_held_out, 1),
            ("num_imagined", num_imagined, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise DataError(f"{name} is {value}; it must be {least} or more")
        if num_explanation_prompts > len(EXPLANATIONS):
            raise DataError(f"num_explanation_prompts is {num_explanation_prompts}; there are {len(EXPLANATIONS)}")
        if not 0 <= crop_probability <= 1:
            raise DataError(f"crop_probability is {crop_probability}; it is a share, in [0, 1]")
        if relabel and not self._relabellings:
            raise DataError(f"relabel is true, but the domain {domain.name} has no relabellings; set it to false")
        if mirror and relabel:
            raise DataError("relabel and mirror are both true; set one of them to false")
        if mirror and not self._relabellings:
            raise DataError(f"mirror is true, but the domain {domain.name} has no mirror images; set it to false")
        if self._imagined and not 0 < self._num_imagined_generation <= num_generation:
            raise DataError(
                f"imagined_fraction {imagined_fraction} of num_generation {num_generation} makes "
                f"{self._num_imagined_generation} imagined rollouts; it must make 1 to {num_generation}. To ground on "
                "real rollouts only, leave imagined empty"
            )
        if num_general_text and not self._text_files:
            raise DataError(f"num_general_text is {num_general_text}, but general_text names no file; give one")
        if not (num_generation or num_dynamics or num_explanation):
            raise DataError("num_generation, num_dynamics and num_explanation are all 0; one task must be left")

    def prepare_data(self) -> None:
        """Collect the real store when it is absent."""
        collect_if_absent(self.domain, self._real, self._num_collected_rollouts, self._collect_seed)

    def setup(self, stage: str) -> None:
        """Open the stores and read the text, so that what is wrong with them shows at once."""
        if len(self._chosen) <= self._num_held_out:
            raise DataError(
                f"{len(self._chosen)} rollouts of {self._real} pass filter: {self._filter.name}; with num_held_out "
                f"{self._num_held_out} none is left to train on. Collect more, or lower num_held_out"
            )
        if self._imagined and not len(self._imagined_rollouts):
            raise DataError(
                f"no rollout of {', '.join(self._imagined)} passes imagined_filter: {self._imagined_filter.name}; "
                "imagine more, raise num_least_imagined, or leave imagined empty"
            )
        _ = self.general_text

    @cached_property
    def store(self) -> RolloutStore:
        """The real rollouts."""
        return open_domain_store(self.domain, self._real)

    @cached_property
    def imagined_stores(self) -> list[RolloutStore]:
        """The stores of imagined rollouts."""
        return [open_domain_store(self.domain, path) for path in self._imagined]

    @property
    def fingerprint(self) -> str:
        """Identity of the data: of the store, or, with imagined ones, of all together."""
        parts = [store.fingerprint for store in (self.store, *self.imagined_stores)]
        return hashlib.sha256("".join(parts).encode()).hexdigest() if len(parts) > 1 else parts[0]

    def state_dict(self) -> dict[str, Any]:
        """What decides, with seed and update, which rollouts an update gets; Lightning puts it into checkpoints."""
        text = {}
        if self.general_text:
            text = {
                "general_text": self.general_text.fingerprint[:12],
                "num_general_text": self._num_general_text,
                "general_text_tokens": self._general_text_tokens,
            }
        return {
            "real": self.store.fingerprint[:12],
            "imagined": [store.fingerprint[:12] for store in self.imagined_stores],
            "filter": self._filter.name,
            "imagined_filter": self._imagined_filter.name,
            "num_least_imagined": self._num_least_imagined,
            "num_imagined_generation": self._num_imagined_generation,
            **{f"num_{task.name.lower()}": size for task, size in self._task_sizes.items()},
            **text,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with other data than those of the checkpoint."""
        is_resumed = self.trainer is not None and self.trainer.state.fn == "fit"
        changed = changes(state_dict, self.state_dict()) if is_resumed else []
        if changed:
            raise CheckpointError(
                f"the run cannot go on with other data than it began with: {'; '.join(changed)}. Set those back, "
                f"or {self._instead}"
            )

    @cached_property
    def answers(self) -> list[str]:
        """What explanation learns to write of each training rollout: its goal's shortest instruction.

        Which of a goal's wordings somebody had used, no rollout can tell, and learning to guess it would take the
        better part of the effort. (The paper's answers are the rollouts' own instructions.)
        """
        return shortest_instructions(self.store.instructions, self._instruction_rows, self.domain.training_split)

    @cached_property
    def general_text(self) -> GeneralTextPieces | None:
        """The user's own text, if there is any."""
        return GeneralTextPieces(self._text_files, self._general_text_tokens) if self._text_files else None

    @property
    def written_texts(self) -> list[str]:
        """Everything that the model has to be able to write."""
        pieces = [*self.general_text.training, *self.general_text.held_out] if self.general_text else []
        return [*self.answers, *pieces]

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
        """Least and greatest of each number after a step of the rollouts as shown, float32 of shape (O,) each."""
        ends = torch.stack([self._moments[2].least, self._moments[2].greatest])
        if self._relabellings:
            every = torch.arange(len(self._relabellings)).repeat_interleave(2)
            numbers = RelabelledNumbers(self._relabellings)
            ends = torch.cat([ends, numbers.observation(ends.repeat(len(self._relabellings), 1), every)])
        return ends.amin(0), ends.amax(0)

    def batch(self, index: int) -> GroundingBatch:
        """Rollouts of every task that is not left out, and text; a pure function of seed and index."""
        joined = join_batches([batches(index) for batches in self._task_batches])
        if not (self.general_text and self._num_general_text):
            return joined
        seed = self._seed, _TEXT_STREAM
        return joined._replace(general_text=self.general_text.batch(index, self._num_general_text, seed))

    def train_dataloader(self) -> DataLoader[GroundingBatch]:
        """Batches without end, going on where the trainer's update counter stands."""
        return IndexedBatches(self.batch, start=self._first_batch).dataloader()

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Held-out real rollouts; then work items of every split, and held-out text, as far as there are any."""
        held_out = [self.store.rollout(int(row)) for row in self._held_out]
        texts = self.general_text.held_out_batches() if self.general_text else []
        return validation_loaders(self.domain, held_out, self._goal_splits, self._num_imagined, texts)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; leave what is validated on as it is: rollouts, work items, texts, episodes."""
        has_tensors = isinstance(batch, GroundingBatch)
        return super().transfer_batch_to_device(batch, device, dataloader_idx) if has_tensors else batch

    def _first_batch(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    @cached_property
    def _chosen(self) -> Tensor:
        return select_rollouts(self.store, self._filter, self._max_rollouts)

    @cached_property
    def _imagined_rollouts(self) -> JoinedRollouts:
        """The imagined rollouts that may be learned from."""
        chosen = verified_rollouts(self.domain, self.imagined_stores, self._imagined_filter, self._num_least_imagined)
        return JoinedRollouts(self.imagined_stores, [rows.numpy() for rows in chosen])

    @property
    def _held_out(self) -> NDArray[np.int64]:
        return self._chosen[len(self._chosen) - self._num_held_out :].numpy()

    @property
    def _training(self) -> NDArray[np.int64]:
        return self._chosen[: len(self._chosen) - self._num_held_out].numpy()

    @cached_property
    def _task_batches(self) -> list[TaskBatches]:
        real = JoinedRollouts([self.store], [self._training])
        texts = {
            GroundingTask.GENERATION: generation_texts(self._instruction_rows),
            GroundingTask.DYNAMICS: dynamics_texts(len(real)),
            GroundingTask.EXPLANATION: explanation_texts(self.answers, self._num_explanation_prompts),
        }
        shown = partial(
            TaskBatches,
            tokens_per_prompt=self._tokens_per_prompt,
            crop_probability=self._crop_probability,
            relabellings=self._relabellings,
        )
        batches = [
            shown(real, task, texts[task], size, seed=(self._seed, int(task)))
            for task, size in self._task_sizes.items()
            if size
        ]
        if self._num_imagined_generation:
            imagined = self._imagined_rollouts
            seed, own = (self._seed, _IMAGINED_STREAM), generation_texts(imagined.instruction_rows)
            batches.append(shown(imagined, GroundingTask.GENERATION, own, self._num_imagined_generation, seed=seed))
        return batches

    @cached_property
    def _moments(self) -> tuple[Moments, Moments, Moments]:
        return transition_moments(self.store, torch.from_numpy(self._training))

    @cached_property
    def _instruction_rows(self) -> list[InstructionRow]:
        """Goal and sentence of each training rollout."""
        table = self.store.instructions
        return [table[row] for row in self.store.rollouts[names.INSTRUCTION_ID][self._training].tolist()]
