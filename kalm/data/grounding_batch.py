"""The form in which rollouts reach grounding: one batch a task, flat over steps, without padding.

Shape letters: B prompts, R rollouts, n steps of all rollouts, O numbers in an observation, A numbers in a continuous
action.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kalm.data.rollout import Rollout


class GroundingTask(Enum):
    """What the language model is taught (KALM, section 3.1); the names are what logs say.

    ``generation``: goal in, rollout out. ``dynamics``: states and actions in, next states out. ``explanation``:
    rollout in, goal out.
    """

    generation = "generation"
    dynamics = "dynamics"
    explanation = "explanation"


class TaskBatch(NamedTuple):
    """Rollouts behind their prompts. Several rollouts may follow one prompt; they do not see each other.

    Attributes:
        prompts: The B prompts.
        prompt_of_rollout: Which of them each rollout follows, int64 of shape (R,), never falling.
        lengths: Steps of each rollout, int64 of shape (R,).
        observation: Before each step, float32 of shape (n, O); rollouts one after the other.
        action: Of each step, int64 of shape (n,) or float32 of shape (n, A).
        next_observation: After each step, float32 of shape (n, O).
        is_terminated: Whether the last step of each rollout met its goal, bool of shape (R,).
        answers: For explanation the R texts to be written, else empty.
    """

    prompts: list[str]
    prompt_of_rollout: Tensor
    lengths: Tensor
    observation: Tensor
    action: Tensor
    next_observation: Tensor
    is_terminated: Tensor
    answers: list[str]


def batch_rollouts(rollouts: Sequence[Rollout], prompts: Sequence[str], answers: Sequence[str] = ()) -> TaskBatch:
    """Make a batch of rollouts in memory, one prompt each.

    Args:
        rollouts: R rollouts, none of them empty.
        prompts: R prompts.
        answers: R texts to be written, or none at all.
    """
    actions = np.concatenate([rollout.actions for rollout in rollouts])
    return TaskBatch(
        prompts=list(prompts),
        prompt_of_rollout=torch.arange(len(rollouts)),
        lengths=torch.tensor([len(rollout) for rollout in rollouts]),
        observation=torch.from_numpy(np.concatenate([r.observations[:-1] for r in rollouts]).astype(np.float32)),
        action=torch.from_numpy(actions.astype(np.int64 if actions.dtype.kind in "iu" else np.float32)),
        next_observation=torch.from_numpy(np.concatenate([r.observations[1:] for r in rollouts]).astype(np.float32)),
        is_terminated=torch.tensor([bool(rollout.terminated[-1]) for rollout in rollouts]),
        answers=list(answers),
    )
