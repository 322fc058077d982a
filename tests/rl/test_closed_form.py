"""N7 and N8: Q-values against a world that is solved by hand, and which ends of a rollout bootstrap."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from kalm.rl.base import OfflineRLModule
from kalm.rl.bcq import BCQ
from kalm.rl.cql import CQL
from kalm.rl.iql import IQL
from kalm.types import TaskSpec
from tests.rl.helpers import FixedData, stacked_batch, trainer
from tests.rl.test_algorithms import CASES as ALGORITHM_CASES
from tests.rl.test_algorithms import each_case

TWO_STATES = TaskSpec(observation_size=2, action_size=2, is_discrete=True, goal_embedding_size=1)

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
}
# Discrete algorithms with Q-values that are not here, and why.
ELSEWHERE: dict[str, str] = {}


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


def test_every_algorithm_with_q_values_is_solved_here_or_elsewhere() -> None:
    """The tests below cannot miss a new one."""
    with_critic = {a.__name__ for a, spec in ALGORITHM_CASES if spec.is_discrete and hasattr(a(spec), "target_critic")}
    assert {"BCQ", "CQL", "IQL"} <= with_critic
    assert with_critic == {solved.algorithm.__name__ for solved in SOLVED.values()} | set(ELSEWHERE)


@pytest.mark.parametrize("name", SOLVED)
def test_values_of_a_two_state_world_equal_the_closed_form(name: str, tmp_path: Path) -> None:
    """N7: to 1e-4, every critic."""
    solved = SOLVED[name]
    policy = solved.algorithm(
        TWO_STATES,
        **solved.options,
        discount=0.5,
        hidden_sizes=[32],
        learning_rate=1e-2,
        learning_rate_schedule="cosine",  # Adam at a constant step size circles the solution
        schedule_updates=2400,
        target_update_rate=1.0,
        target_update_interval=50,
    )
    trainer(tmp_path, max_steps=2400).fit(policy, FixedData(TWO_STATES, two_state_transitions()))
    q = policy.critic(torch.eye(2), policy.goal_embeddings.expand(2, 1))
    torch.testing.assert_close(q, torch.tensor(solved.q).expand_as(q), atol=1e-4, rtol=0)


@each_case
def test_a_truncated_step_still_bootstraps_and_a_terminated_one_does_not(
    algorithm: type[OfflineRLModule], spec: TaskSpec
) -> None:
    """N8 from stored transitions on: ``truncated`` changes no loss; ``terminated`` does where values are learned."""
    torch.manual_seed(0)
    policy = algorithm(spec)
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
