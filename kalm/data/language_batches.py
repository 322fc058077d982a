"""What a language model is given: rollouts behind prompts, flat over steps and without padding; texts; work to imagine.

Shape letters: B prompts, R rollouts, n steps of all rollouts, O numbers in an observation, A numbers in a continuous
action, M first observations to choose from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.core.rollout import Rollout
from kalm.data.selection import returns_to_go
from kalm.envs.base import Domain

_MAX_TRIES = 100


class GroundingTask(IntEnum):
    """What the language model is taught (KALM, section 3.1)."""

    GENERATION = 0  # goal in, rollout out
    DYNAMICS = 1  # states and actions in, next states out
    EXPLANATION = 2  # rollout in, goal out
    SUB_GOAL = 3  # goal of several parts and state in, the part to pursue next out; not in the paper
    DESCRIPTION = 4  # what moved and where in, the step out, as in generation but without an end; not in the paper


class GeneralText(NamedTuple):
    """Texts that belong to no rollout, to be continued from their beginning."""

    texts: Sequence[str] = ()
    max_tokens: int = 0  # that are read of each, what a tokenizer puts in front included


@dataclass(frozen=True, eq=False)
class WorkItem:
    """Everything that decides an imagined rollout but the model."""

    instructed: InstructedGoal  # the goal and the sentence that asks for it
    start: NDArray[np.float32]  # observation to start from, shape (O,)
    max_steps: int  # after which the rollout is truncated
    seed: int  # of the rollout's own random draws, so that it does not depend on its batch

    def identity(self, provenance: str) -> str:
        """Hash of goal, sentence, start, limit and seed, and of ``provenance``, which names model and prompt."""
        facts = json.dumps([self.instructed.to_json(), self.max_steps, self.seed, provenance], sort_keys=True)
        return hashlib.sha256(facts.encode() + self.start.astype("<f4").tobytes()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class WorkShard:
    """Work items that are imagined together and stored together; names sort in the order of the work."""

    name: str
    items: list[WorkItem]


class ValidationBatch(NamedTuple):
    """What is validated on at a time, mostly of one kind."""

    rollouts: Sequence[Rollout] = ()  # real ones, held out, to be predicted and explained
    items: Sequence[WorkItem] = ()  # to be imagined
    text: GeneralText = GeneralText()  # held out


class GroundingBatch(NamedTuple):
    """Rollouts behind their prompts. Several rollouts may follow one prompt; they do not see each other."""

    prompts: list[str]  # B of them
    prompt_of_rollout: Tensor  # which of them each rollout follows, int64 of shape (R,), never falling
    task: Tensor  # ``GroundingTask`` of each rollout, int64 of shape (R,)
    lengths: Tensor  # steps of each rollout, int64 of shape (R,); 0 where a state is all there is
    observation: Tensor  # before each step, float32 of shape (n, O); rollouts one after the other
    action: Tensor  # of each step, int64 of shape (n,) or float32 of shape (n, A)
    next_observation: Tensor  # after each step, float32 of shape (n, O)
    final_observation: Tensor  # after the last step of each rollout, float32 of shape (R, O)
    is_terminated: Tensor  # whether the last step of each rollout met its goal, bool of shape (R,)
    return_to_go: Tensor  # rewards of each step and of all later ones of its rollout, float32 of shape (n,)
    answers: list[str]  # the text to be written behind each rollout; empty where nothing is to be written
    general_text: GeneralText = GeneralText()  # beside the rollouts


def batch_rollouts(rollouts: Sequence[Rollout], prompts: Sequence[str], task: GroundingTask) -> GroundingBatch:
    """Make a batch of rollouts in memory, none of them empty, one prompt each, without answers."""
    actions = np.concatenate([rollout.actions for rollout in rollouts])
    lengths = torch.tensor([len(rollout) for rollout in rollouts])
    rewards = torch.from_numpy(np.concatenate([rollout.rewards for rollout in rollouts]))
    return GroundingBatch(
        prompts=list(prompts),
        prompt_of_rollout=torch.arange(len(rollouts)),
        task=torch.full((len(rollouts),), int(task)),
        lengths=lengths,
        observation=torch.from_numpy(np.concatenate([r.observations[:-1] for r in rollouts]).astype(np.float32)),
        action=torch.from_numpy(actions.astype(np.int64 if actions.dtype.kind in "iu" else np.float32)),
        next_observation=torch.from_numpy(np.concatenate([r.observations[1:] for r in rollouts]).astype(np.float32)),
        final_observation=torch.from_numpy(np.stack([r.observations[-1] for r in rollouts]).astype(np.float32)),
        is_terminated=torch.tensor([bool(rollout.terminated[-1]) for rollout in rollouts]),
        return_to_go=returns_to_go(rewards, lengths),
        answers=[""] * len(rollouts),
    )


def batch_states(
    observation: Tensor, prompts: Sequence[str], task: GroundingTask, no_action: Tensor, answers: Sequence[str] = ()
) -> GroundingBatch:
    """Make a batch of states that nothing leads to, each behind a prompt of its own: rollouts of no step.

    Args:
        observation: The states, float32 of shape (R, O).
        prompts: R of them.
        task: What the states are for.
        no_action: An action column without rows, shape (0,) or (0, A).
        answers: The text behind each; none where there are none.
    """
    number, device = len(observation), observation.device
    return GroundingBatch(
        prompts=list(prompts),
        prompt_of_rollout=torch.arange(number, device=device),
        task=torch.full((number,), int(task), device=device),
        lengths=torch.zeros(number, dtype=torch.int64, device=device),
        observation=observation[:0],
        action=no_action,
        next_observation=observation[:0],
        final_observation=observation,
        is_terminated=torch.zeros(number, dtype=torch.bool, device=device),
        return_to_go=torch.zeros(0, device=device),
        answers=list(answers) or [""] * number,
    )


def join_batches(batches: Sequence[GroundingBatch]) -> GroundingBatch:
    """Put batches behind each other, so that the model runs once over all of them."""
    first_prompt = np.cumsum([0, *(len(batch.prompts) for batch in batches)])
    shifted = [batch.prompt_of_rollout + int(first) for batch, first in zip(batches, first_prompt, strict=False)]
    columns: dict[str, Any] = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name, value in batches[0]._asdict().items()
        if isinstance(value, Tensor)
    }
    return GroundingBatch(
        prompts=[prompt for batch in batches for prompt in batch.prompts],
        answers=[answer for batch in batches for answer in batch.answers],
        **columns | {"prompt_of_rollout": torch.cat(shifted)},
    )


def make_work_items(
    domain: Domain,
    instructed_goals: Sequence[InstructedGoal],
    num_rollouts: int,
    starts: NDArray[np.float32],
    seed: Sequence[int],
) -> list[WorkItem]:
    """Spread rollouts evenly over instructions, each from a start of its own at which its goal is not yet met.

    Args:
        domain: Whose goals they are.
        instructed_goals: Instructions to cycle through; fewer rollouts than that take evenly spaced ones.
        num_rollouts: Work items to make.
        starts: First observations of real rollouts, shape (M, O), for goals that the domain has no own ones for.
        seed: Numbers that decide the draws; item i depends on them and on i alone.

    Raises:
        DataError: If an instruction's goal is already met at every start that is tried.
    """
    count = len(instructed_goals)
    items = []
    for index in range(num_rollouts):
        place, in_full_round = index % count, index < num_rollouts // count * count
        instructed = instructed_goals[place if in_full_round else place * count // (num_rollouts % count)]
        rng = np.random.default_rng([*seed, index])
        start = _draw_start(domain, instructed, starts, rng)
        items.append(WorkItem(instructed, start, instructed.goal.max_steps, int(rng.integers(2**31))))
    return items


def _draw_start(
    domain: Domain, instructed: InstructedGoal, starts: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    own = domain.first_observation(instructed.goal, rng)
    if own is not None:
        return own.astype(np.float32)
    for _ in range(_MAX_TRIES):
        start = starts[rng.integers(len(starts))]
        if not instructed.goal.success(start):
            return start
    raise DataError(
        f"the goal of {instructed.instruction!r} is already met at each of {_MAX_TRIES} starts drawn from "
        f"{len(starts)} real rollouts; remove it, or collect rollouts that begin elsewhere"
    )
