"""What every student shares: the loss over sets of optimal actions, the questions about a goal, acting by sampling.

TEDUO distils the solutions of step 2 into a model that reads instructions (section 3.3). A solved step often has more
than one best action, so a student is not told which one was taken: it minimises -log of the probability of the whole
set. From the instruction alone it also has to say what TEDUO's abstraction says (section 3.1.1): the task, and the
kinds and colours of the things that it is about. It is shown no answers when it acts.

Equation -> function: the loss on sets -> ``set_loss``; the questions' -> ``answer_loss``.

Differences from the paper: it acts closed loop, one action at a time for the state that it sees; and it may remember
what it did in this episode, so as not to repeat it for ever (``repeat_penalty``).

Shape letters: B states, G instructions, A actions, L tokens, E numbers of a token, N answers of a question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import KalmError, require
from kalm.core.names import OBSERVATION, OPTIMAL_ACTIONS
from kalm.data.plan_data import ANSWERS, GOAL, TOKENS, TOKENS_PADDING, StudentSpec
from kalm.envs.base import Domain
from kalm.envs.simulation import Act, Episode, EpisodeResult, evaluate
from kalm.rl.distillation.chunks import Chunks
from kalm.rl.networks.agent_view import AgentView, agent_view
from kalm.rl.training.optimization import GradientStep, LearningRate, LearningRateSchedule, ScheduleKind
from kalm.rl.training.randomness import initialize
from kalm.runs.acting import Repeats, draw_actions, uniform_numbers
from kalm.runs.checkpoint_io import POLICY, require_same_policy
from kalm.runs.evaluated import EvaluatedPolicy

if TYPE_CHECKING:
    from kalm.data.plan_data import PlanData

# Rows of every forward pass when it acts, so that an action cannot depend on how many rows came with it.
_ROWS = 64


def set_loss(logits: Tensor, optimal_actions: Tensor) -> Tensor:
    """Make some optimal action likely, whichever: -log of the probability of all of them together.

    Args:
        logits: Shape (B, A).
        optimal_actions: Which are optimal, at least one in each row, bool of shape (B, A).

    Returns:
        Loss per state, shape (B,), in nats, not reduced.
    """
    best = logits.masked_fill(~optimal_actions, -torch.inf)
    return torch.logsumexp(logits, dim=-1) - torch.logsumexp(best, dim=-1)


def answer_loss(logits: Sequence[Tensor], answers: Tensor, smoothing: float = 0.0) -> Tensor:
    """Make the answer to every question likely: the sum of their cross-entropies.

    Args:
        logits: For each question, shape (G, N).
        answers: Shape (G, number of questions), int64.
        smoothing: Share of the target that all answers have alike (Szegedy et al. 2016, arXiv:1512.00567), in [0, 1).

    Returns:
        Loss per instruction, shape (G,), in nats, not reduced.
    """
    pairs = zip(logits, answers.unbind(1), strict=True)
    losses = [
        functional.cross_entropy(one, answer, reduction="none", label_smoothing=smoothing) for one, answer in pairs
    ]
    return torch.stack(losses).sum(0)


@dataclass(frozen=True, slots=True)
class Instructions:
    """G sentences as the frozen encoder gives them."""

    tokens: Tensor  # (G, L, E)
    padding_mask: Tensor  # True = real token, (G, L)


@dataclass(frozen=True, slots=True)
class ReadInstructions:
    """What a student made of G sentences."""

    meaning: Tensor  # of the student's own choice, (G, ...)
    answers: list[Tensor]  # logits of each question, (G, N)


class Student(EvaluatedPolicy):
    """Base of the students: a subclass says how it reads (``read``) and what it does about it (``logits``)."""

    has_done: Tensor

    def __init__(
        self,
        spec: StudentSpec,
        auxiliary_weight: float = 1.0,
        answer_smoothing: float = 0.1,
        temperature: float = 0.7,
        repeat_penalty: float = 0.0,
        only_seen_actions: bool = False,
        chunks: Chunks | None = None,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        warmup_updates: int = 100,
        learning_rate_schedule: ScheduleKind = "constant",
        schedule_updates: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        num_evaluation_envs: int = 64,
    ) -> None:
        """Check and keep what all students share.

        Args:
            spec: Sizes of states, tokens and questions; the command line takes them from the data.
            auxiliary_weight: How much the questions' loss counts, 0 or more; at 0 nothing is asked.
            answer_smoothing: Share of the questions' targets that all answers have alike, in [0, 1), so that it is not
                sure of what a word means that it has never read.
            temperature: Actions are drawn from the softmax of logits over it (paper: 0.7); 0 takes the likeliest one,
                which may go round in circles.
            repeat_penalty: What an action's logit is marked down by for each time that the episode took it before where
                it stood, faced and carried the same, 0 or more (paper: 0); so it walks out of its circles.
            only_seen_actions: Whether to draw only from the actions that did something in the plans where the same
                thing was in front and in the hand; where nothing was seen, from all.
            chunks: How often it looks while it acts; null at every step (closed loop).
            learning_rate: AdamW's step size.
            weight_decay: AdamW's.
            warmup_updates: Updates over which the learning rate rises from 0.
            learning_rate_schedule: The learning rate after the warm-up: constant, or falling to 0 (linear, cosine).
            schedule_updates: Updates after which it has fallen to 0, the warm-up included; null if it is constant.
            gradient_clip_norm: Largest norm of the whole gradient; null does not clip.
            num_evaluation_envs: Episodes that run side by side in evaluation; the results do not depend on it.

        Raises:
            KalmError: If an option is out of range.
        """
        super().__init__(num_evaluation_envs)
        numbers = {
            "auxiliary_weight": auxiliary_weight, "temperature": temperature, "repeat_penalty": repeat_penalty,
            "weight_decay": weight_decay,
        }  # fmt: skip
        for name, value in numbers.items():
            require(value >= 0, name, value, "0 or more")
        require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
        is_clip_norm = gradient_clip_norm is None or gradient_clip_norm > 0
        require(is_clip_norm, "gradient_clip_norm", gradient_clip_norm, "above 0")
        self.automatic_optimization = False
        self.spec = spec
        require(0 <= answer_smoothing < 1, "answer_smoothing", answer_smoothing, "in [0, 1)")
        self.auxiliary_weight, self.answer_smoothing = auxiliary_weight, answer_smoothing
        self.temperature, self.repeat_penalty = temperature, repeat_penalty
        self.only_seen_actions, self.chunks = only_seen_actions, chunks
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.gradient_clip_norm = gradient_clip_norm
        self.schedule = LearningRateSchedule(learning_rate_schedule, warmup_updates, schedule_updates)
        self._has_weights = False  # drawn by the data's seed, or loaded
        seen = torch.zeros(spec.num_codes**2, spec.action_size, dtype=torch.bool)
        self.register_buffer("has_done", seen)  # by what is in front * num_codes + what is carried; from the plans

    # --- what a student defines --------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, instructions: Instructions) -> ReadInstructions:
        """Read G sentences; it is asked once for all states that share them."""

    @abstractmethod
    def logits(self, view: AgentView, meaning: Tensor, goal: Tensor) -> Tensor:
        """Of each action at B states, shape (B, A).

        Args:
            view: The states.
            meaning: Of G sentences, by ``read``.
            goal: Which of them each state's is, int64 of shape (B,).
        """

    @property
    def sizes(self) -> dict[str, Any]:
        """Its own sizes, which a checkpoint must agree with."""
        return {}

    # --- training ----------------------------------------------------------------------------------------------------

    def losses(self, batch: Mapping[Any, Tensor]) -> dict[str, Tensor]:
        """The losses whose sum is minimised, shape (B,), not reduced; ``batch`` is a minibatch of ``PlanData``."""
        read = self.read(Instructions(batch[TOKENS], batch[TOKENS_PADDING]))
        goal = batch[GOAL]
        logits = self.logits(agent_view(batch[OBSERVATION]), read.meaning, goal)
        losses = {"plan_loss": set_loss(logits, batch[OPTIMAL_ACTIONS])}
        if self.auxiliary_weight:
            of_answers = answer_loss(read.answers, batch[ANSWERS], self.answer_smoothing)
            losses["answer_loss"] = self.auxiliary_weight * of_answers[goal]
        return losses

    def setup(self, stage: str) -> None:
        """Draw the first weights by the data's seed, before a checkpoint puts others in place."""
        if stage == "fit":
            if not self._has_weights:
                initialize(self, self._data.seed, ())
                self._has_weights = True
            self._see_actions()

    def _see_actions(self) -> None:
        """Remember which actions changed anything in the plans, by what was in front and in the hand."""
        for observation, action, next_observation in self._data.transitions():
            view = agent_view(observation)
            is_change = (observation != next_observation).flatten(1).any(1)
            situation = view.in_front(self.spec.outside) * self.spec.num_codes + view.carried
            self.has_done[situation[is_change], action[is_change]] = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; vectors such as biases do not decay."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "name": "matrices", "weight_decay": self.weight_decay},
            {"params": vectors, "name": "vectors", "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)

    def on_train_start(self) -> None:
        """Look once at how updates are to be made; optimizer and parameters are final now."""
        self._gradient_step = GradientStep(self, self.gradient_clip_norm)
        self._rate = LearningRate(self.schedule, self)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Make one update."""
        number = self.trainer.global_step
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum(0).mean()
        if not total.isfinite():
            name = next(name for name, values in losses.items() if not values.isfinite().all())
            raise KalmError(
                f"training stopped at update {number + 1}, before anything was saved: {name} is not finite. Lower "
                "learning_rate or set gradient_clip_norm"
            )
        self._rate.set(number)
        self._gradient_step(total)
        if number % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            means = {f"train/{name}": values.detach().mean() for name, values in losses.items()}
            self.log_dict(means | self._rate.metrics() | {"step": float(number + 1)})

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as every module does; training then goes on from them."""
        self._has_weights = True
        return super().load_state_dict(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which student the weights belong to."""
        checkpoint[POLICY] = self._identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another student."""
        super().on_load_checkpoint(checkpoint)
        require_same_policy(checkpoint, self._identity)

    @property
    def _identity(self) -> dict[str, Any]:
        facts = self.spec.facts()
        del facts["observation"]  # the weights serve grids of other sizes
        return {"algorithm": type(self).__name__, **facts, **self.sizes}

    # --- evaluation --------------------------------------------------------------------------------------------------

    def forward(self, states: Tensor, meaning: Tensor, goal: Tensor) -> Tensor:
        """Logits of the actions to draw from, shape (B, A), at states (B, W, H, 2); see ``logits``."""
        view = agent_view(states)
        logits = self.logits(view, meaning, goal)
        if self.only_seen_actions:
            seen = self.has_done[view.in_front(self.spec.outside) * self.spec.num_codes + view.carried]
            logits = logits.masked_fill(~seen & seen.any(-1, keepdim=True), -torch.inf)
        return logits

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode."""
        act = self.start_episodes(episodes)
        if self.chunks is not None:
            act = self.chunks.between_looks(act, domain)
        return evaluate(act, domain, episodes, self.num_evaluation_envs)

    def start_episodes(self, episodes: Sequence[Episode]) -> Act:
        """Who acts in ``episodes``: what is drawn at a step is decided by the seeds of run and episode and the step."""
        sentences = [episode.instructed.instruction for episode in episodes]
        distinct = list(dict.fromkeys(sentences))
        place = {sentence: number for number, sentence in enumerate(distinct)}
        goal_of = torch.tensor([place[sentence] for sentence in sentences])
        episode_seeds = np.array([episode.seed for episode in episodes], dtype=np.uint64)
        num_taken = np.zeros(len(episodes), dtype=np.uint64)
        past = Repeats(len(episodes), self.spec.action_size)
        with torch.no_grad():
            meaning = self.meaning_of(distinct)

        @torch.no_grad()
        def act(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
            padded = rows + [rows[0]] * (-len(rows) % _ROWS)
            states = torch.from_numpy(
                np.concatenate([observations, observations[:1].repeat(len(padded) - len(rows), 0)])
            )
            chunks = zip(states.split(_ROWS), goal_of[padded].split(_ROWS), strict=True)
            logits = torch.cat([self(part.to(self.device), meaning, goal.to(self.device)) for part, goal in chunks])
            situations = agent_view(states[: len(rows)]).situation.numpy()
            marks = self.repeat_penalty * torch.from_numpy(past.times(rows, situations))
            luck = uniform_numbers(self._data.seed, episode_seeds[rows], num_taken[rows], self.spec.action_size)
            num_taken[rows] += 1
            actions = draw_actions(logits[: len(rows)].cpu() - marks, luck, self.temperature).numpy()
            past.add(rows, situations, actions)
            return actions

        return act

    def meaning_of(self, sentences: Sequence[str]) -> Tensor:
        """What sentences mean, read one at a time, so that none depends on which others were asked for with it."""
        meanings = []
        for sentence in sentences:
            tokens, padding_mask = self._data.encoder.token_vectors([sentence])
            meanings.append(self.read(Instructions(tokens.to(self.device), padding_mask.to(self.device))).meaning)
        return torch.cat(meanings)

    @property
    def _data(self) -> PlanData:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise KalmError(
                f"{type(self).__name__} got no data module, which has seed and sentence encoder; pass "
                "kalm.data.plan_data.PlanData to the trainer as datamodule"
            )
        return cast("PlanData", data)


class AnswerHeads(nn.ModuleList):
    """A linear head for each question."""

    def __init__(self, input_size: int, questions: Sequence[tuple[str, int]]) -> None:
        """One head a question, with as many outputs as it has answers."""
        super().__init__([nn.Linear(input_size, num_answers) for _, num_answers in questions])

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of the answers to each question, (G, N), from features (G, D)."""
        return [head(features) for head in self]
