"""The data module of grounding: real rollouts as batches of the three tasks, and what to validate on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.utils.data import DataLoader

from kalm.core import names
from kalm.core.errors import DataError
from kalm.data.described_steps import DescribedSteps
from kalm.data.general_text import GeneralTextPieces, GeneralTextSource
from kalm.data.language_batches import (
    GroundingBatch,
    GroundingTask,
    ValidationBatch,
    WorkItem,
    join_batches,
    make_work_items,
)
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.selection import Selection
from kalm.data.sub_goal_batches import SubGoalBatches
from kalm.data.symmetry import SymmetryKind
from kalm.data.task_batches import TaskBatches, generation_prompts, shortest_instructions
from kalm.data.training_data import examined_loader, require_least
from kalm.envs.base import Domain
from kalm.envs.symmetry import texts_under
from kalm.language.encoder import SentenceEncoder
from kalm.language.prompts import DYNAMICS, EXPLANATIONS, generation_prompt

# Beyond the numbers of the tasks, which seed the streams of real rollouts.
_IMAGINED_STREAM, _TEXT_STREAM, _DESCRIBED_STREAM, _SUB_GOAL_STREAM = 1 << 8, 1 << 9, 1 << 10, 1 << 11
# Validation is the same for every run, whatever its seed.
_VALIDATION_SEED = 0
_TASKS = ("generation", "dynamics", "explanation", "description", "sub_goal")  # fields of ``GroundingTasks``
_ITEMS_A_BATCH = 128
_TOKENS_OF_STEP = 3  # observation, action, observation


@dataclass(frozen=True)
class GroundingTasks:
    """How many rollouts a batch has for each task; 0 leaves a task out.

    The paper mixes the three equally; generation is the hardest and the one that imagination needs.

    Args:
        generation: Rollouts for the task goal to rollout.
        dynamics: Rollouts for the task state and action to next state.
        explanation: Rollouts for the task rollout to goal.
        description: Single steps for the task goal to rollout behind a sentence that says what moved and where (paper:
            0); see ``DescribedSteps``.
        steps_per_description: Most of them that share a sentence in a batch.
        sub_goal: States behind sentences of several goals, to say which part is left to do (paper: 0); see
            ``SubGoalBatches``. Imagination by the model's own sub-goals needs it.
        num_explanation_prompts: Wordings in which that task asks, 1 to 8 (paper: 1).
    """

    generation: int = 64
    dynamics: int = 16
    explanation: int = 16
    description: int = 0
    steps_per_description: int = 8
    sub_goal: int = 0
    num_explanation_prompts: int = len(EXPLANATIONS)

    def check(self) -> None:
        """Refuse numbers that are out of range, with a ``DataError`` that names what is allowed."""
        sizes = {name: getattr(self, name) for name in _TASKS}
        require_least(**{f"tasks.{name}": (size, 0) for name, size in sizes.items()})
        require_least(**{"tasks.steps_per_description": (self.steps_per_description, 1)})
        if not any(sizes.values()):
            raise DataError(f"{', '.join(f'tasks.{name}' for name in sizes)} are all 0; one task must be left")
        if not 1 <= self.num_explanation_prompts <= len(EXPLANATIONS):
            raise DataError(
                f"tasks.num_explanation_prompts is {self.num_explanation_prompts}; there are {len(EXPLANATIONS)}"
            )


class GroundingData(RolloutData):
    """Real rollouts, cut into batches of each grounding task."""

    undecided = frozenset({"encoder", "num_imagined", "goal_splits"})
    remedy = "to go on from its weights start another --experiment with model.weights_from"

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: RealRollouts,
        imagined: ImaginedRollouts | None = None,
        tasks: GroundingTasks = GroundingTasks(),
        general_text: GeneralTextSource | None = None,
        tokens_per_prompt: int = 96,
        crop_probability: float = 0.0,
        symmetry: SymmetryKind = SymmetryKind.none,
        num_held_out: int = 200,
        num_imagined: int = 100,
        goal_splits: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from.
            encoder: Its sizes go into ``spec``; link it to the backbone's.
            real: The real rollouts.
            imagined: Imagined rollouts to learn generation from as well, so many of that task's; the paper has none.
                The other tasks, the answers and the statistics stay with real rollouts: what the world does, and what
                was meant, is not for imagination to say.
            tasks: Rollouts of each task in a batch.
            general_text: Text that the model should not forget how to write; null has none (paper).
            tokens_per_prompt: Rollouts with the same prompt read it together, up to this many tokens.
            crop_probability: How often a rollout is shown from a random later step on, in [0, 1]; what is left is a
                rollout for the same goal, from a start that no other has.
            symmetry: Under which of the domain's symmetries every rollout is shown, a random one each time.
            num_held_out: Rollouts that are validated on and never trained on.
            num_imagined: Rollouts a split to imagine in every validation.
            goal_splits: Splits to imagine for; null takes all that are not kept for the test.
            seed: Decides the order of training.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__(locals(), num_held_out)
        tasks.check()
        check_shown_rollouts(tokens_per_prompt, crop_probability, num_held_out)
        require_least(num_imagined=(num_imagined, 0))
        if general_text:
            general_text.check()
        self._num_imagined_generation = imagined.num_rows(tasks.generation, "tasks.generation") if imagined else 0
        self._tasks, self._text_source = tasks, general_text
        self._shown: Any = {"tokens_per_prompt": tokens_per_prompt, "crop_probability": crop_probability}
        self._seed, self._num_imagined, self._goal_splits = (
            seed,
            num_imagined,
            domain.check_learning_splits(goal_splits),
        )

    def setup(self, stage: str) -> None:
        """Open the stores and read the text, so that what is wrong with them shows at once."""
        _ = self.training, self.imagination, self.general_text

    @property
    def fingerprint(self) -> str:
        """Identity of the data: of the store, or, with imagined ones, of all together."""
        parts = [store.fingerprint for store in self.stores]
        return hashlib.sha256("".join(parts).encode()).hexdigest() if len(parts) > 1 else parts[0]

    @cached_property
    def answers(self) -> list[str]:
        """What explanation learns to write of each training rollout: its goal's shortest instruction.

        Which of a goal's wordings somebody had used, no rollout can tell, and learning to guess it would take the
        better part of the effort. (The paper's answers are the rollouts' own instructions.)
        """
        rows = self.training.instruction_rows
        return shortest_instructions(self.store.instructions, rows, self.domain.training_split)

    @cached_property
    def general_text(self) -> GeneralTextPieces | None:
        """The user's own text, if there is any."""
        return GeneralTextPieces(self._text_source.paths, self._text_source.num_tokens) if self._text_source else None

    @property
    def written_texts(self) -> list[str]:
        """Everything that the model has to be able to write."""
        pieces = [*self.general_text.training, *self.general_text.held_out] if self.general_text else []
        return [*(text for row in texts_under(self.answers, self.symmetries) for text in row), *self.answers, *pieces]

    def batch(self, index: int) -> GroundingBatch:
        """Rollouts of every task that is not left out, and text; a pure function of seed and index."""
        joined = join_batches([batches(index) for batches in self._task_batches])
        if not (self.general_text and self._text_source and self._text_source.num_pieces):
            return joined
        seed = self._seed, _TEXT_STREAM
        return joined._replace(general_text=self.general_text.batch(index, self._text_source.num_pieces, seed))

    def val_dataloader(self) -> list[DataLoader[ValidationBatch]]:
        """Held-out real rollouts; then work items of every split, and held-out text, as far as there are any."""
        (starts,) = self.held_out_rollouts.read((names.OBSERVATION,), self.held_out_rollouts.starts)
        items: list[WorkItem] = []
        for split in self._goal_splits if self._num_imagined else ():
            goals, seed = self.domain.instructed_goals(split), (_VALIDATION_SEED, self.domain.goal_splits.index(split))
            items += make_work_items(self.domain, goals, self._num_imagined, starts.numpy(), seed)
        loaders = [self.held_out_loader()]
        if items:
            loaders.append(examined_loader(items, _ITEMS_A_BATCH, lambda some: ValidationBatch(items=some)))
        if self.general_text:
            texts = self.general_text.held_out_batches()
            loaders.append(examined_loader(texts, None, lambda text: ValidationBatch(text=text)))
        return loaders

    @cached_property
    def _task_batches(self) -> list[Callable[[int], GroundingBatch]]:
        tasks, num_imagined = self._tasks, self._num_imagined_generation
        real, imagined = self.training, self.imagination
        generation, dynamics, explanation = GroundingTask.GENERATION, GroundingTask.DYNAMICS, GroundingTask.EXPLANATION
        questions = [EXPLANATIONS[: tasks.num_explanation_prompts]] * len(real)
        # Rollouts, their task, prompts and answers, how many a batch has, and the stream that decides their order.
        shown: list[tuple[Selection, GroundingTask, Sequence[Sequence[str]], Sequence[str] | None, int, int]] = [
            (real, generation, generation_prompts(real), None, tasks.generation - num_imagined, int(generation)),
            (real, dynamics, [[DYNAMICS]] * len(real), None, tasks.dynamics, int(dynamics)),
            (real, explanation, questions, self.answers, tasks.explanation, int(explanation)),
            (imagined, generation, generation_prompts(imagined), None, num_imagined, _IMAGINED_STREAM),
        ]
        common: Any = {**self._shown, "symmetries": self.symmetries}
        batches: list[Callable[[int], GroundingBatch]] = [
            TaskBatches(rollouts, task, prompts, answers, size, **common, seed=(self._seed, stream))
            for rollouts, task, prompts, answers, size, stream in shown
            if size
        ]
        if tasks.description:
            steps = DescribedSteps(self.domain, real)
            told = [list(map(generation_prompt, sentences)) for sentences in steps.sentences]
            common |= {"tokens_per_prompt": _TOKENS_OF_STEP * tasks.steps_per_description, "crop_probability": 0.0}
            seed = self._seed, _DESCRIBED_STREAM
            described = GroundingTask.DESCRIPTION
            batches.append(TaskBatches(steps, described, told, None, tasks.description, **common, seed=seed))
        if tasks.sub_goal:
            seed = self._seed, _SUB_GOAL_STREAM
            some = self.domain, real, self.answers, tasks.sub_goal
            batches.append(SubGoalBatches(*some, symmetries=self.symmetries, seed=seed))
        return batches


def check_shown_rollouts(tokens_per_prompt: int, crop_probability: float, num_held_out: int) -> None:
    """Refuse numbers that rollouts cannot be shown by, or held out, with a ``DataError``."""
    require_least(tokens_per_prompt=(tokens_per_prompt, 1), num_held_out=(num_held_out, 1))
    if not 0 <= crop_probability <= 1:
        raise DataError(f"crop_probability is {crop_probability}; it is a share, in [0, 1]")
