"""The model of the world and what is imagined with it: numbers worked by hand, and a world that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kalm.core.specs import vector_spec
from kalm.rl.dynamics.dynamics_ensemble import (
    DynamicsEnsemble,
    ImaginedTransition,
    imagined_transitions,
    noise_size,
)
from kalm.rl.networks.gaussian_policies import SquashedGaussian
from tests.rl.constant_networks import make_constant
from tests.rl.helpers import transition_batch

SPEC = vector_spec(observation_size=2, action_size=1, is_discrete=False, goal_embedding_size=1)


def known_model() -> DynamicsEnsemble:
    """Two members: one moves by (1, 2) for a reward of 0.5, one by (-1, 0) for 3; the task ends one time in four."""
    dynamics = DynamicsEnsemble(SPEC, 2, [8])
    end = -math.log(3)
    make_constant(dynamics.members, [[1.0, 2.0, 0.5, 0.0, 0.0, 0.0, end], [-1.0, 0.0, 3.0, 0.0, 0.0, 0.0, end]])
    return dynamics


def test_rows_ask_the_members_in_turn() -> None:
    """Five rows of two members: 1, 2, 1, 2, 1. Noise 1 in the reward of the last row adds its deviation, 1."""
    observation, noise = torch.arange(10.0).view(5, 2), torch.zeros(5, 3)
    noise[4, 2] = 1.0
    step = known_model().step(observation, torch.zeros(5, 1), torch.zeros(5, 1), noise)
    moves = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [1.0, 2.0], [-1.0, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(step.next_observation, observation + moves)
    torch.testing.assert_close(step.reward, torch.tensor([0.5, 3.0, 0.5, 3.0, 1.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(step.termination, torch.full((5,), 0.25))


def test_a_row_gets_what_its_own_member_says_alone() -> None:
    """Of random members, row by row."""
    torch.manual_seed(0)
    dynamics, batch = DynamicsEnsemble(SPEC, 3, [8]), transition_batch(SPEC, num_rows=7)
    inputs = batch.observation, batch.goal_embedding, batch.action
    found = dynamics.step(*inputs, torch.zeros(7, 3)).reward
    of_all = dynamics.members(*inputs)[..., 2]
    torch.testing.assert_close(found, of_all[torch.arange(7) % 3, torch.arange(7)])


def test_deviations_are_bounded() -> None:
    """Whatever a network says: its logarithm stays between -5 and 5, and gradients get through."""
    dynamics = DynamicsEnsemble(SPEC, 1, [8])
    make_constant(dynamics.members, [[0.0, 0.0, 0.0, 100.0, -100.0, 0.0, 0.0]])
    step = dynamics.step(torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 3))
    assert step.next_observation[0].tolist() == pytest.approx([math.exp(5), math.exp(-5)], rel=1e-2)


def standing_still(observation: Tensor, goal_embedding: Tensor) -> SquashedGaussian:
    """A policy of mean 0 and deviation 1 before tanh."""
    return SquashedGaussian(torch.zeros(len(observation), 1), torch.zeros(len(observation), 1))


def imagine(which: float, num_steps: int = 2) -> ImaginedTransition:
    """One row from (10, 20) with the first member; ``which`` draws the step; the second action's noise is 1."""
    noise = torch.zeros(1, noise_size(num_steps, 2, 1))
    noise[0, 0], noise[0, 1 + 4] = which, 1.0
    return imagined_transitions(
        known_model(), standing_still, torch.tensor([[10.0, 20.0]]), torch.zeros(1, 1), num_steps, noise
    )


def test_the_first_step_of_a_rollout() -> None:
    """From (10, 20) by (1, 2), action 0, reward 0.5; certain to be reached."""
    step = imagine(which=-9.0)
    assert step.observation.tolist() == [[10.0, 20.0]]
    assert step.next_observation.tolist() == [[11.0, 22.0]]
    assert step.action.tolist() == [[0.0]]
    assert step.reward.tolist() == [0.5]
    assert step.survival.tolist() == [1.0]


def test_the_second_step_goes_on_from_the_first() -> None:
    """From (11, 22), action tanh(1); reached three times in four."""
    step = imagine(which=9.0)
    assert step.observation.tolist() == [[11.0, 22.0]]
    assert step.next_observation.tolist() == [[12.0, 24.0]]
    assert step.action[0].tolist() == pytest.approx([0.761594], abs=1e-5)
    assert step.survival.tolist() == pytest.approx([0.75])
    assert step.termination.tolist() == pytest.approx([0.25])


@pytest.mark.parametrize(("noise", "step"), [(-0.7, 0), (-0.6, 1), (0.0, 2), (0.6, 2), (0.7, 3)])
def test_all_steps_are_equally_likely(noise: float, step: int) -> None:
    """Of four: quarters of the normal distribution meet at -0.6745, 0 and 0.6745."""
    assert imagine(noise, num_steps=4).observation[0, 0].item() == 10 + step


def test_it_learns_what_follows_from_what_was_done() -> None:
    """The observation moves by a tenth of the action, the reward is its double, and tasks end where it is positive."""
    torch.manual_seed(0)
    dynamics = DynamicsEnsemble(SPEC, 2, [32])
    batch = transition_batch(SPEC, num_rows=256)
    batch = replace(
        batch,
        next_observation=batch.observation + 0.1 * batch.action,
        reward=2 * batch.action.squeeze(-1),
        terminated=batch.action.squeeze(-1) > 0,
    )
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        torch.stack(dynamics.losses(batch)).sum(0).mean().backward()
        optimizer.step()
    action = torch.tensor([[-0.5], [-0.5], [0.5], [0.5]])
    step = dynamics.step(torch.zeros(4, 2), torch.zeros(4, 1), action, torch.zeros(4, 3))
    torch.testing.assert_close(step.next_observation, 0.1 * action.expand(4, 2), atol=0.02, rtol=0)
    torch.testing.assert_close(step.reward, 2 * action.squeeze(-1), atol=0.1, rtol=0)
    assert (step.termination > 0.5).tolist() == [False, False, True, True]
