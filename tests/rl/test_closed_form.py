"""Q-values against two worlds that are solved by hand, and which ends of a rollout bootstrap."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.nn import functional

from kalm.core.specs import Spec, vector_spec
from kalm.rl.awac import AWAC
from kalm.rl.base import OfflineRLModule
from kalm.rl.bcq import BCQ
from kalm.rl.combo import COMBO
from kalm.rl.cql import CQL
from kalm.rl.iql import IQL
from kalm.rl.networks.mlp import EnsembleMLP
from kalm.rl.td3_bc import TD3BC
from tests.rl.helpers import FixedData, build, stacked_batch, trainer
from tests.rl.test_algorithms import CASES as ALGORITHM_CASES
from tests.rl.test_algorithms import each_case

TWO_STATES = vector_spec(observation_size=2, action_size=2, is_discrete=True, goal_embedding_size=1)
TWO_STATES_CONTINUOUS = vector_spec(observation_size=2, action_size=1, is_discrete=False, goal_embedding_size=1)

# Q(A, stay), Q(A, move), Q(B, stay), Q(B, move) of the world of ``two_state_transitions``, discount 1/2.
#
# The best policy: V(B) = 2 + V(B)/2 = 4; V(A) = max(V(A)/2, 1 + V(B)/2) = 3. So Q(A, stay) = 3/2, Q(A, move) = 1 + 2,
# Q(B, stay) = 2 + 2, Q(B, move) = 3/2.
BEST = [[1.5, 3.0], [4.0, 1.5]]
# The value an expectile of 3/4 of both actions' values, which are recorded equally often: 3/4 of the better one plus
# 1/4 of the other. With a = V(A), b = V(B): a = 3/4 (1 + b/2) + 1/4 (a/2) and b = 3/4 (2 + b/2) + 1/4 (a/2), that is
# 7a = 6 + 3b and 5b = 12 + a; so b = 90/32 = 2.8125 and a = 5b - 12 = 2.0625. Q(A, stay) = a/2, Q(A, move) = 1 + b/2,
# Q(B, stay) = 2 + b/2, Q(B, move) = a/2.
EXPECTILE = [[1.03125, 2.40625], [3.40625, 1.03125]]
# A policy that copies both actions alike: 3a = 2 + b and 3b = 4 + a, so b = 14/8 = 1.75 and a = 1.25.
EVEN = [[0.625, 1.875], [2.875, 0.625]]
# Q(A, any action), Q(B, any action) of the world of ``alternating_transitions``: a = 1 + b/2 and b = 2 + a/2, so
# a = 8/3 and b = 10/3. No action matters, so neither does how a policy or a penalty chooses among them.
ALTERNATING = [[8 / 3], [10 / 3]]

# The value of the policy that weighs actions by the exponential of their Q-values, both being recorded equally often:
# it moves from A with probability p = 1 / (1 + exp(Q(A, stay) - Q(A, move))), stays in B with r alike. Then
# a = p (1 + b/2) + (1 - p) a/2 and b = r (2 + b/2) + (1 - r) a/2 are met by p = 0.823926, r = 0.927114,
# a = 2.542924, b = 3.629275.
SOFT = [[1.271462, 2.814637], [3.814637, 1.271462]]


@dataclass(frozen=True)
class Solved:
    """An algorithm whose Q-values are known."""

    algorithm: type[OfflineRLModule]
    q: list[list[float]]
    options: dict[str, Any] = field(default_factory=dict)


SOLVED = {
    "CQL without conservatism": Solved(CQL, BEST, {"conservative_weight": 0.0}),
    "BCQ, every action allowed": Solved(BCQ, BEST, {"probability_threshold": 0.0}),
    "BCQ, both actions likely": Solved(BCQ, BEST),
    "IQL": Solved(IQL, EXPECTILE, {"expectile": 0.75}),
    "AWAC at a high temperature": Solved(AWAC, EVEN, {"temperature": 1e6}),
}
SOLVED_CONTINUOUS = {
    "CQL without conservatism": Solved(CQL, ALTERNATING, {"conservative_weight": 0.0}),
    "BCQ": Solved(BCQ, ALTERNATING),
    "IQL": Solved(IQL, ALTERNATING),
    "AWAC": Solved(AWAC, ALTERNATING),
    "TD3BC": Solved(TD3BC, ALTERNATING),
    "COMBO without conservatism or imagination": Solved(
        COMBO,
        ALTERNATING,
        {
            "conservative_weight": 0.0, "real_fraction": 1.0, "num_model_steps": 1, "dynamics_warmup_updates": 0,
            "num_dynamics_members": 1, "dynamics_hidden_sizes": (8,), "num_sampled_actions": 1,
        },
    ),
}  # fmt: skip


def two_state_transitions() -> TensorDict:
    """All four transitions of a world with states A, B and actions stay, move; stacked for K = 20.

    Staying in B earns 2, moving from A to B earns 1, the rest 0; nothing ever ends, every transition is truncated.
    """
    state, next_state = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])
    columns = {
        "observation": torch.eye(2)[state],
        "action": torch.tensor([0, 1, 0, 1]),
        "next": {
            "observation": torch.eye(2)[next_state],
            "reward": torch.tensor([0.0, 1.0, 2.0, 0.0]),
            "terminated": torch.zeros(4, dtype=torch.bool),
            "truncated": torch.ones(4, dtype=torch.bool),
        },
        "instruction_id": torch.zeros(4, dtype=torch.int32),
        "rollout_id": torch.arange(4),
        "step": torch.zeros(4, dtype=torch.int16),
        "source": torch.zeros(4, dtype=torch.uint8),
    }
    return TensorDict(columns, batch_size=[4]).expand(20, 4)


def alternating_transitions() -> TensorDict:
    """A world that goes from A to B and back, whatever is done; two actions in each state, stacked for K = 20.

    Leaving A earns 1, leaving B earns 2; nothing ever ends, every transition is truncated.
    """
    state = torch.arange(4) % 2
    columns = {
        "observation": torch.eye(2)[state],
        "action": torch.tensor([-0.5, 0.5]).repeat_interleave(2).unsqueeze(-1),
        "next": {
            "observation": torch.eye(2)[1 - state],
            "reward": 1.0 + state,
            "terminated": torch.zeros(4, dtype=torch.bool),
            "truncated": torch.ones(4, dtype=torch.bool),
        },
        "instruction_id": torch.zeros(4, dtype=torch.int32),
        "rollout_id": torch.arange(4),
        "step": torch.zeros(4, dtype=torch.int16),
        "source": torch.zeros(4, dtype=torch.uint8),
    }
    return TensorDict(columns, batch_size=[4]).expand(20, 4)


def test_every_algorithm_with_q_values_is_solved_here() -> None:
    """The tests below cannot miss a new one."""
    with_critic = {(a, spec.is_discrete) for a, spec in ALGORITHM_CASES if hasattr(build(a, spec), "target_critic")}
    assert len(with_critic) == 10
    solved = {(one.algorithm, True) for one in SOLVED.values()}
    assert with_critic == solved | {(one.algorithm, False) for one in SOLVED_CONTINUOUS.values()}


def blind(critic: EnsembleMLP) -> None:
    """Take the action, its last input, from a critic's sight: what does not matter needs no learning."""
    nn.init.zeros_(critic.first_weight[:, -1])
    critic.first_weight.register_hook(lambda gradient: functional.pad(gradient[:, :-1], (0, 1)))


def solve(solved: Solved, spec: Spec, transitions: TensorDict, num_updates: int, folder: Path) -> OfflineRLModule:
    """Train until nothing moves any more."""
    policy = solved.algorithm(
        spec,
        **solved.options,
        discount=0.5,
        hidden_sizes=[32],
        learning_rate=1e-2,
        learning_rate_schedule="cosine",  # Adam at a constant step size circles the solution
        schedule_updates=num_updates,
        target_update_rate=1.0,
        target_update_interval=50,
    )
    if not spec.is_discrete:
        blind(policy.critic)
        policy.target_critic.load_state_dict(policy.critic.state_dict())
        policy.load_state_dict(policy.state_dict())  # the weights to begin with
    trainer(folder, max_steps=num_updates).fit(policy, FixedData(spec, transitions))
    return policy


@pytest.mark.parametrize("name", SOLVED)
def test_values_of_a_two_state_world_equal_the_closed_form(name: str, tmp_path: Path) -> None:
    """To 1e-4, every critic."""
    policy = solve(SOLVED[name], TWO_STATES, two_state_transitions(), 2400, tmp_path)
    q = policy.critic(torch.eye(2), policy.goal_embeddings.expand(2, 1))
    torch.testing.assert_close(q, torch.tensor(SOLVED[name].q).expand_as(q), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SOLVED_CONTINUOUS)
def test_values_of_continuous_actions_equal_the_closed_form(name: str, tmp_path: Path) -> None:
    """To 1e-4, every critic, whatever the policy came to do."""
    torch.manual_seed(0)
    policy = solve(SOLVED_CONTINUOUS[name], TWO_STATES_CONTINUOUS, alternating_transitions(), 1000, tmp_path)
    q = policy.critic(torch.eye(2), policy.goal_embeddings.expand(2, 1), torch.zeros(2, 1))
    torch.testing.assert_close(q, torch.tensor(SOLVED_CONTINUOUS[name].q).expand_as(q), atol=1e-4, rtol=0)


@each_case
def test_a_truncated_step_still_bootstraps_and_a_terminated_one_does_not(
    algorithm: type[OfflineRLModule], spec: Spec
) -> None:
    """From stored transitions on: ``truncated`` changes no loss; ``terminated`` does where values are learned."""
    torch.manual_seed(0)
    policy = build(algorithm, spec)
    stacked = stacked_batch(spec, num_updates=1, sequence_length=policy.sequence_length)
    policy.goal_embeddings = torch.zeros(1, spec.goal_embedding_size)
    noise = torch.randn(1, stacked.shape[1], policy.noise_size)

    def losses(terminated: bool, truncated: bool) -> dict[str, list[float]]:
        stacked["next", "terminated"].fill_(terminated)
        stacked["next", "truncated"].fill_(truncated)
        (batch,) = policy.minibatches(stacked, noise, None)
        return {name: loss.tolist() for name, loss in policy.losses(batch).items()}

    learns_values = bool(policy.targets)
    assert losses(terminated=False, truncated=True) == losses(terminated=False, truncated=False)
    assert (losses(terminated=True, truncated=False) != losses(terminated=False, truncated=False)) == learns_values
