"""Conservative Q-learning: learn values by temporal differences, and push down those of actions the data never took.

Paper: Kumar et al. 2020 (arXiv:2006.04779), CQL(H) on double DQN (van Hasselt et al. 2016, arXiv:1509.06461) for
discrete actions, with the hyper-parameters of KALM (arXiv:2404.09248, section 5).

Equation -> function: Bellman error of eq. 1 -> ``td_target``, ``huber_td_loss``; eq. 4 -> ``cql_penalty``.

Differences from the paper: 1. the Bellman error is Huber's, as in DQN and in d3rlpy, which KALM used; 2. one critic,
whose target is copied whole every ``target_update_interval`` updates, again as there.

``torchrl.objectives.DiscreteCQLLoss`` computes the same two terms; it is not used because it reduces them, so that
real and imagined transitions could not be told apart, and because it is slower (tests/benchmarks/policy_throughput.py).

Shape letters: B batch, O observation, E goal embedding, A actions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kalm.errors import KalmError
from kalm.rl.base import OfflineRLModule, require
from kalm.rl.losses.conservative import cql_penalty
from kalm.rl.losses.temporal_difference import huber_td_loss, td_target
from kalm.rl.networks import discrete_critic_network
from kalm.rl.transition_batch import TransitionBatch
from kalm.types import TaskSpec


class CQL(OfflineRLModule):
    """Conservative Q-learning for discrete actions."""

    def __init__(
        self,
        spec: TaskSpec,
        conservative_weight: float = 10.0,
        learning_rate: float = 6.25e-5,
        target_update_rate: float = 1.0,
        target_update_interval: int = 8000,
        **options: Any,
    ) -> None:
        """Build the critic and its target.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            conservative_weight: Weight alpha of the conservative penalty (paper: 10).
            learning_rate: Adam's step size (paper: 6.25e-5, at batch 32).
            target_update_rate: Part of the target that is replaced at each of its updates (d3rlpy: all of it, 1).
            target_update_interval: Updates between two updates of the target (d3rlpy: 8000).
            options: Options that all algorithms share.

        Raises:
            KalmError: If the domain's actions are continuous.
        """
        super().__init__(
            spec,
            learning_rate=learning_rate,
            target_update_rate=target_update_rate,
            target_update_interval=target_update_interval,
            **options,
        )
        require(conservative_weight >= 0, "conservative_weight", conservative_weight, "0 or more")
        if not spec.is_discrete:
            raise KalmError(
                "CQL needs a domain with discrete actions, but this one's are continuous; use kalm.rl.bc.BC"
            )
        self.conservative_weight = conservative_weight
        self.critic = discrete_critic_network(spec, self.hidden_sizes)
        self.target_critic = self.target_of(self.critic)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The temporal-difference error and the weighted conservative penalty."""
        q = self.critic(batch.observation, batch.goal_embedding)
        value = _pick(q, batch.action)
        with torch.no_grad():
            next_action = self.act(batch.next_observation, batch.goal_embedding)
            next_value = _pick(self.target_critic(batch.next_observation, batch.goal_embedding), next_action)
            target = td_target(batch.reward, self.discount, next_value, batch.terminated)
        self.measure("q_mean", value)
        return {
            "td_loss": huber_td_loss(value, target),
            "conservative_loss": self.conservative_weight * cql_penalty(q, batch.action),
        }

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action of the greatest value."""
        return self.critic(observation, goal_embedding).argmax(dim=-1)


def _pick(q: Tensor, action: Tensor) -> Tensor:
    """Value of one action a row: (B, A), (B,) -> (B,)."""
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)
