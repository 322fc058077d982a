"""Transitions that a model of the world and a policy make up, branching off recorded observations.

Janner et al. 2019 (arXiv:1906.08253): short rollouts, so that the model's errors do not add up.

Shape letters: B batch, H steps of a rollout, O observation, E goal embedding, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm.rl.dynamics.dynamics_ensemble import DynamicsEnsemble
from kalm.rl.networks.gaussian_policies import SquashedGaussian


@dataclass(frozen=True)
class ImaginedTransition:
    """One transition of each rollout.

    Attributes:
        observation: Shape (B, O).
        action: Shape (B, A).
        reward: Shape (B,).
        next_observation: Shape (B, O).
        termination: Probability that the task ended with it, shape (B,).
        survival: Probability that the task had not ended before it, shape (B,).
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    termination: Tensor
    survival: Tensor


def noise_size(num_steps: int, observation_size: int, action_size: int) -> int:
    """Random numbers that ``imagined_transitions`` wants a row."""
    return 1 + num_steps * (action_size + observation_size + 1)


@torch.no_grad()
def imagined_transitions(
    dynamics: DynamicsEnsemble,
    policy: Callable[[Tensor, Tensor], SquashedGaussian],
    observation: Tensor,
    goal_embedding: Tensor,
    num_steps: int,
    noise: Tensor,
) -> ImaginedTransition:
    """Roll the policy out in the model, and draw one step of each rollout, all equally likely.

    Args:
        dynamics: The model.
        policy: What to do at an observation under a goal.
        observation: Where to begin, shape (B, O).
        goal_embedding: Shape (B, E).
        num_steps: Steps of a rollout, H.
        noise: Standard normal numbers, shape (B, ``noise_size``).
    """
    of_step = noise[:, 1:].unflatten(-1, (num_steps, -1))
    action_size = of_step.shape[-1] - observation.shape[-1] - 1
    steps: list[ImaginedTransition] = []
    survival = torch.ones_like(observation[:, 0])
    for number in range(num_steps):
        of_action, of_outcome = of_step[:, number].tensor_split([action_size], dim=-1)
        action, _ = policy(observation, goal_embedding).sample(of_action)
        step = dynamics.step(observation, goal_embedding, action, of_outcome)
        steps.append(
            ImaginedTransition(observation, action, step.reward, step.next_observation, step.termination, survival)
        )
        observation, survival = step.next_observation, survival * (1 - step.termination)
    return _one_of(steps, _uniform(noise[:, 0]))


def _uniform(noise: Tensor) -> Tensor:
    """Numbers spread evenly over [0, 1), from standard normal ones."""
    return 0.5 * (1 + torch.erf(noise / math.sqrt(2)))


def _one_of(steps: list[ImaginedTransition], uniform: Tensor) -> ImaginedTransition:
    """The step of each row that a number in [0, 1) points at."""
    chosen = (uniform * len(steps)).long().clamp(max=len(steps) - 1)

    def pick(field: str) -> Tensor:
        values = torch.stack([getattr(step, field) for step in steps], dim=1)
        index = chosen.view(-1, 1, *[1] * (values.ndim - 2))
        return values.take_along_dim(index, dim=1).squeeze(1)

    return ImaginedTransition(
        pick("observation"), pick("action"), pick("reward"), pick("next_observation"), pick("termination"),
        pick("survival"),
    )  # fmt: skip
