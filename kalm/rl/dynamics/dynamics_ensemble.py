"""A model of the world, learned from transitions, and short rollouts that a policy makes up in it.

Each member of the ensemble is a network that says how far the observation moves and what the reward is, both as normal
distributions, and how likely the task is to end; members differ by their first weights. Chua et al. 2018
(arXiv:1805.12114). Rollouts branch off recorded observations and are short, so that the model's errors do not add up.
Janner et al. 2019 (arXiv:1906.08253).

Shape letters: B batch, N members, H steps of a rollout, O observation, E goal embedding, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.specs import Spec
from kalm.rl.losses import gaussian_log_probability
from kalm.rl.networks.gaussian_policies import SquashedGaussian, softly_bounded, uniform_actions
from kalm.rl.networks.mlp import EnsembleMLP, goal_conditioned_ensemble
from kalm.rl.networks.token_network import OnTokens, WholeSentence
from kalm.rl.training.batches import TransitionBatch

_LOG_DEVIATION_RANGE = (-5.0, 5.0)


class ImaginedStep(NamedTuple):
    """Where the model says that an action leads."""

    next_observation: Tensor  # normalised, (B, O)
    reward: Tensor  # (B,)
    termination: Tensor  # probability that the task ended with the step, (B,)


class ImaginedTransition(NamedTuple):
    """One transition of each rollout."""

    observation: Tensor  # (B, O)
    action: Tensor  # (B, A)
    next_observation: Tensor  # (B, O)
    reward: Tensor  # (B,)
    termination: Tensor  # probability that the task ended with it, (B,)
    survival: Tensor  # probability that the task had not ended before it, (B,)


class DynamicsEnsemble(nn.Module):
    """N models of the same transitions."""

    def __init__(self, spec: Spec, num_members: int, hidden_sizes: Sequence[int]) -> None:
        """Build N members, ``num_members``, with hidden layers of the same widths."""
        super().__init__()
        self.num_outcomes = spec.observation_size + 1  # the change of the observation, and the reward
        output_size = 2 * self.num_outcomes + 1
        self.members = _members(num_members, spec, hidden_sizes, output_size)

    def losses(self, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """How unlikely the members find what happened, and whether the task ended with it.

        Both are negative logarithms of probabilities, each summed over components and averaged over members; shape
        (B,), not reduced. The first may be negative, for it is one of a density.
        """
        output = self.members(batch.observation, batch.goal_embedding, batch.action)
        mean, log_deviation, logit = self._read(output)
        change = batch.next_observation - batch.observation
        outcome = torch.cat([change, batch.reward.unsqueeze(-1)], dim=-1)
        terminated = batch.terminated.to(logit.dtype).expand_as(logit)
        outcome_loss = -gaussian_log_probability(outcome, mean, log_deviation)
        termination_loss = functional.binary_cross_entropy_with_logits(logit, terminated, reduction="none")
        return outcome_loss.mean(0), termination_loss.mean(0)

    def step(self, observation: Tensor, goal_embedding: Tensor, action: Tensor, noise: Tensor) -> ImaginedStep:
        """Draw what follows by standard normal numbers, (B, O + 1).

        Row i asks member i modulo N, so that all members together cost one.
        """
        output = self._of_own_member(observation, goal_embedding, action)
        mean, log_deviation, logit = self._read(output)
        change, reward = (mean + log_deviation.exp() * noise).split([self.num_outcomes - 1, 1], dim=-1)
        return ImaginedStep(observation + change, reward.squeeze(-1), logit.sigmoid())

    def _of_own_member(self, *inputs: Tensor) -> Tensor:
        """The output of each row's member, shape (B, outputs)."""
        num_members, num_rows = self.members.num_members, len(inputs[0])
        padding = -num_rows % num_members
        of_member = [
            functional.pad(part, (0, 0, 0, padding)).unflatten(0, (-1, num_members)).transpose(0, 1) for part in inputs
        ]
        return self.members.each(*of_member).transpose(0, 1).flatten(0, 1)[:num_rows]

    def _read(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and logarithm of the deviation of the outcome, and the logit of termination."""
        mean, log_deviation, logit = output.split([self.num_outcomes, self.num_outcomes, 1], dim=-1)
        return mean, softly_bounded(log_deviation, *_LOG_DEVIATION_RANGE), logit.squeeze(-1)


def _members(num_members: int, spec: Spec, hidden_sizes: Sequence[int], output_size: int) -> Any:
    """Networks over observation, goal embedding and action.

    What an action does to a scene no sentence decides, but only what it is worth, and whether the task is done with it.
    So sentences of words are read as a whole.
    """
    if not spec.num_goal_tokens:
        return goal_conditioned_ensemble(num_members, spec, hidden_sizes, output_size, spec.action_size)
    encoder = WholeSentence(spec, hidden_sizes[0])
    sizes = [encoder.output_size, spec.action_size]
    return OnTokens(encoder, EnsembleMLP(num_members, sizes, hidden_sizes, output_size))


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
    """Roll a policy out in the model, H ``num_steps``, and draw one step of each rollout, all equally likely.

    Rollouts begin at observations (B, O) under goal embeddings (B, E), which the policy reads; standard normal numbers,
    (B, ``noise_size``), decide what is random.
    """
    of_step = noise[:, 1:].unflatten(-1, (num_steps, -1))
    action_size = of_step.shape[-1] - observation.shape[-1] - 1
    steps: list[ImaginedTransition] = []
    survival = torch.ones_like(observation[:, 0])
    for number in range(num_steps):
        of_action, of_outcome = of_step[:, number].tensor_split([action_size], dim=-1)
        action, _ = policy(observation, goal_embedding).sample(of_action)
        step = dynamics.step(observation, goal_embedding, action, of_outcome)
        steps.append(ImaginedTransition(observation, action, *step, survival))
        observation, survival = step.next_observation, survival * (1 - step.termination)
    uniform = 0.5 * (1 + uniform_actions(noise[:, 0]))  # in [0, 1)
    chosen = (uniform * num_steps).long().clamp(max=num_steps - 1)

    def pick(values: Sequence[Tensor]) -> Tensor:
        index = chosen.view(-1, 1, *[1] * (values[0].ndim - 1))
        return torch.stack(list(values), dim=1).take_along_dim(index, dim=1).squeeze(1)

    return ImaginedTransition(*(pick(values) for values in zip(*steps, strict=True)))
