"""The data module of the students: steps of solved plans, grouped by instruction, and episodes to be judged on.

Shape letters: G instructions of a minibatch, n states for each, B = G * n, L tokens, E numbers of a token, A actions,
Q questions, W columns, H rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader
from torchrl.data import RandomSampler, ReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.storages import Storage
from torchrl.data.replay_buffers.writers import ImmutableDatasetWriter

from kalm.core import names
from kalm.core.errors import DataError, require
from kalm.core.goal import InstructedGoal
from kalm.core.specs import Spec
from kalm.data.evaluation_episodes import DEFAULT_EPISODES, EvaluationEpisodes
from kalm.data.minibatches import Updates
from kalm.data.rollout_sources import BY_CONTENT
from kalm.data.selection import Selection
from kalm.data.training_data import TrainingData, require_least
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode
from kalm.language.encoder import SentenceEncoder
from kalm.store.collect import open_domain_store
from kalm.store.reader import RolloutStore

# Keys of a minibatch beside those of transitions.
TOKENS = "tokens"  # of each of G sentences, (G, L, E)
TOKENS_PADDING = "tokens_padding"  # True = real token, (G, L)
SENTENCE = "sentence"  # of each of the G, its place among ``all_sentences``, (G,)
GOAL = "goal"  # which of the G sentences each of B states is with
ANSWERS = "answers"  # to the questions about each of G goals, (G, Q)

_GOAL_STREAM, _SENTENCE_STREAM, _STEP_STREAM, _NOISE_STREAM = range(4)  # of random words


@dataclass(frozen=True)
class StudentSpec(Spec):
    """What a student needs to know before it sees data; ``goal_embedding_size`` is that of a token.

    Attributes:
        num_codes: Codes of tiles.
        outside: Code that is seen beyond the grid.
        max_size: Most columns and rows of a grid.
        questions: Each question about a goal, and how many answers it has.
    """

    num_codes: int = 0
    outside: int = 0
    max_size: int = 0
    questions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Plans:
    """Solved plans.

    Args:
        stores: Folders of stores whose rollouts say which actions are optimal, as ``python -m kalm solve`` writes them.
    """

    stores: list[str] = field(metadata=BY_CONTENT)


class PlanData(TrainingData):
    """Steps of plans to learn from, a minibatch for each update, and the episodes that a student is judged on.

    Attributes:
        seed: Decides which steps each update gets.
    """

    undecided: ClassVar[frozenset[str]] = frozenset({"evaluation"})

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        plans: Plans,
        task_weights: dict[str, float] | None = None,
        num_goals: int = 32,
        num_states: int = 8,
        paraphrase: bool = False,
        token_noise: float = 1.0,
        evaluation: EvaluationEpisodes = DEFAULT_EPISODES,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the plans are for and the student is judged in.
            encoder: Turns the words of instructions into vectors; it is not trained.
            plans: What is learned from.
            task_weights: How often a goal of each task is drawn, in proportion; goals of one task are drawn alike. Null
                draws the tasks alike.
            num_goals: Instructions of one update, G.
            num_states: States of one update for each instruction, so that reading is shared by so many.
            paraphrase: Whether each instruction is shown in the domain's own or in one of its training paraphrases, a
                random one each time.
            token_noise: Standard deviation of the noise on the tokens' vectors that training reads, in units of the
                spread of their numbers: what is near a word, as other words for the same are, then means the same.
            evaluation: The episodes to judge a student on.
            seed: Decides which steps each update gets.

        Raises:
            DataError: If a number is out of range, a split is unknown, or the world is no grid that one agent walks on.
        """
        super().__init__(locals())
        self.domain, self.encoder, self.evaluation, self.seed = domain, encoder, evaluation, seed
        self._plans, self._paraphrase, self._token_noise = plans, paraphrase, token_noise
        require(token_noise >= 0, "token_noise", token_noise, "0 or more")
        self._task_weights = task_weights
        self._num_goals, self._num_states = num_goals, num_states
        require_least(num_goals=(num_goals, 1), num_states=(num_states, 1), seed=(seed, 0))
        evaluation.check(domain)
        if not plans.stores:
            raise DataError("plans.stores names none; name the folders that python -m kalm solve wrote")
        if task_weights is not None and (not task_weights or min(task_weights.values()) < 0):
            raise DataError(f"task_weights is {task_weights}; give each task a weight of 0 or more, or null")
        grid = domain.agent_grid
        base = domain.spec.with_goals(encoder.embedding_size)
        self.spec = StudentSpec(
            base.observation,
            base.action,
            base.goal_embedding_size,
            num_codes=grid.num_codes,
            outside=grid.outside,
            max_size=grid.max_size,
            questions=tuple(grid.questions.items()),
        )

    def prepare_data(self) -> None:
        """Refuse stores that are missing, before training begins."""
        if self._verb in (None, "fit"):
            _ = self.stores

    def setup(self, stage: str) -> None:
        """Open the stores for training, so that what is wrong with them shows at once; evaluation needs none."""
        if stage == "fit":
            _ = self.buffer

    @cached_property
    def stores(self) -> list[RolloutStore]:
        """The stores of plans."""
        stores = [open_domain_store(self.domain, path) for path in self._plans.stores]
        others = [str(store.path) for store in stores if not store.has_optimal_actions]
        if others:
            raise DataError(
                f"plans.stores names {', '.join(others)}, whose rollouts do not say which actions are optimal; name "
                "folders that python -m kalm solve wrote"
            )
        return stores

    @cached_property
    def selection(self) -> Selection:
        """All plans."""
        return Selection.whole(self.stores)

    @cached_property
    def goals(self) -> list[InstructedGoal]:
        """The distinct instructions that have plans, in the order in which the stores first name them."""
        return [
            InstructedGoal(self.domain.goal_from_json(json.loads(goal)), sentence, split)
            for goal, sentence, split in self._goals_and_numbers[0]
        ]

    @cached_property
    def sentences(self) -> list[list[str]]:
        """What may be shown for each of ``goals``: its own sentence first, then its training paraphrases if asked."""
        more = self.domain.paraphrases if self._paraphrase else lambda goal: ()
        return [[goal.instruction, *more(goal)] for goal in self.goals]

    @cached_property
    def all_sentences(self) -> list[str]:
        """``sentences`` in one line, those of goal 0 first."""
        return [sentence for own in self.sentences for sentence in own]

    def batch(self, index: int) -> TensorDict:
        """The minibatch of update ``index``, a pure function of seed and index.

        Returns:
            Batch size (): ``observation`` (B, W, H, 2), ``optimal_actions`` (B, A) and ``goal``, (B,), which of the G
            instructions each state is with; ``sentence`` (G,), its place in ``all_sentences``, ``tokens`` (G, L, E),
            ``tokens_padding`` (G, L) and ``answers`` (G, Q).
        """
        updates = Updates(self.seed, index)
        self._sampler.updates = updates
        rows, goals = self.buffer.sample(self._num_goals * self._num_states), self._sampler.goals()
        words = updates.numbers(_SENTENCE_STREAM, self._num_goals)[0]
        shown = torch.tensor([
            self._first_sentence[goal] + int(word) % len(self.sentences[goal])
            for goal, word in zip(goals.tolist(), words.tolist(), strict=True)
        ])  # fmt: skip
        tokens, is_token = self._tokens
        longest = int(is_token[shown].sum(1).max())
        observation, optimal_actions = self.selection.read((names.OBSERVATION, names.OPTIMAL_ACTIONS), rows)
        return TensorDict(
            {
                names.OBSERVATION: observation,
                names.OPTIMAL_ACTIONS: optimal_actions,
                SENTENCE: shown,
                GOAL: torch.arange(self._num_goals).repeat_interleave(self._num_states),
                TOKENS: self._noisy(tokens[shown, :longest], updates),
                TOKENS_PADDING: is_token[shown, :longest],
                ANSWERS: self._answers[goals],
            }
        )

    def _noisy(self, tokens: Tensor, updates: Updates) -> Tensor:
        """Token vectors (G, L, E) with the noise of one update."""
        if not self._token_noise:
            return tokens
        generator = torch.Generator().manual_seed(int(updates.numbers(_NOISE_STREAM, 1)))
        return tokens + self._token_noise * self._token_spread * torch.randn(tokens.shape, generator=generator)

    def transitions(self, num_rows: int = 10_000) -> Iterator[list[Tensor]]:
        """Observation, action and next observation of every step of every plan, some at a time."""
        keys = names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION
        for rows in self.selection.rows().split(num_rows):
            yield self.selection.read(keys, rows)

    def val_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of validation episodes."""
        return self.evaluation.validation_loader(self.domain)

    def test_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of test episodes."""
        return self.evaluation.test_loader(self.domain)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; leave episodes as they are."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    @cached_property
    def _goals_and_numbers(self) -> tuple[list[tuple[str, str, str]], Tensor]:
        """Distinct instructions, goals as JSON text; and which of them each rollout of the line has, int64 (R,)."""
        number_of: dict[tuple[str, str, str], int] = {}
        numbers = []
        for store in self.stores:
            keys = [
                (json.dumps(row.goal, sort_keys=True), row.instruction, row.goal_split) for row in store.instructions
            ]
            own = torch.tensor([number_of.setdefault(key, len(number_of)) for key in keys])
            instruction = store.rollouts[names.INSTRUCTION_ID].long()
            if (instruction < 0).any():
                raise DataError(f"{store.path} has rollouts without a goal; plans have one: name what solve wrote")
            numbers.append(own[instruction])
        return list(number_of), torch.cat(numbers)

    @cached_property
    def buffer(self) -> ReplayBuffer:
        """TorchRL's buffer of row numbers, goal by goal."""
        order = self._goals_and_numbers[1].argsort(stable=True)
        storage = TensorStorage(self.selection.rows(order))
        return ReplayBuffer(storage=storage, sampler=self._sampler, writer=ImmutableDatasetWriter())

    @cached_property
    def _sampler(self) -> GoalSampler:
        goals, number = self._goals_and_numbers
        steps = torch.zeros(len(goals), dtype=torch.int64).index_add_(0, number, self.selection.line.lengths)
        return GoalSampler(self._goal_weights(steps), steps.numpy(), self._num_goals)

    def _goal_weights(self, steps: Tensor) -> NDArray[np.float64]:
        """How likely each goal is drawn, shape (number of goals,); 0 for one without a step."""
        tasks = np.array([goal.goal.task for goal in self.goals])
        weights = dict.fromkeys(sorted(set(tasks)), 1.0) if self._task_weights is None else self._task_weights
        unknown = sorted(set(tasks) - set(weights))
        if unknown:
            raise DataError(
                f"task_weights has none for {', '.join(unknown)}, of which there are plans; 0 leaves one out"
            )
        has_steps = steps.numpy() > 0
        share = {task: weight / max(1, ((tasks == task) & has_steps).sum()) for task, weight in weights.items()}
        found = np.array([share[task] for task in tasks]) * has_steps
        if not found.sum():
            raise DataError(f"no plan is of a task with a weight; task_weights is {weights}, plans are of {set(tasks)}")
        return found / found.sum()

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        """Vectors of all sentences' tokens, and which are real; of goal 0 first, as ``_first_sentence`` counts them."""
        return self.encoder.token_vectors(self.all_sentences)

    @cached_property
    def _token_spread(self) -> float:
        """Standard deviation of the numbers of all real tokens' vectors."""
        tokens, is_token = self._tokens
        return float(tokens[is_token].std())

    @cached_property
    def _first_sentence(self) -> list[int]:
        return [0, *np.cumsum([len(own) for own in self.sentences]).tolist()]

    @cached_property
    def _answers(self) -> Tensor:
        grid = self.domain.agent_grid
        found = [grid.answers(goal.goal.to_json()) for goal in self.goals]
        return torch.tensor([[answers[question] for question in grid.questions] for answers in found])


class GoalSampler(RandomSampler):
    """Draws G goals for an update by their weights, and as many steps of each, with replacement."""

    def __init__(self, weights: NDArray[np.float64], num_steps: NDArray[np.int64], num_goals: int) -> None:
        """Say how likely each goal is, and how many steps it has in the storage, which are equally likely."""
        super().__init__()
        self._ends, self._num_steps, self._num_goals = weights.cumsum(), num_steps, num_goals
        self._first = num_steps.cumsum() - num_steps
        self.updates = Updates()

    def goals(self) -> Tensor:
        """Which goals the one update draws, int64 of shape (G,)."""
        words = self.updates.words(_GOAL_STREAM, self._num_goals)[0]
        luck = (words >> np.uint64(11)).astype(np.float64) / 2.0**53 * self._ends[-1]
        return torch.from_numpy(np.searchsorted(self._ends, luck, side="right"))

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Places in the storage, those of one goal after the other; shape (batch_size,)."""
        goals = self.goals().numpy().repeat(batch_size // self._num_goals)
        words = self.updates.words(_STEP_STREAM, batch_size)[0] % self._num_steps[goals].astype(np.uint64)
        return torch.from_numpy(self._first[goals] + words.astype(np.int64)), {}
