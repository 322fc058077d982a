"""Behaviour cloning against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kalm.core.errors import KalmError
from kalm.rl.bc import BC
from tests.rl.helpers import CONTINUOUS, DISCRETE, transition_batch


def with_constant_output(policy: BC, output: list[float]) -> BC:
    """The policy with an output that no input changes."""
    layer = policy.policy.output
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(output))
    return policy


def test_discrete_losses_of_a_known_policy() -> None:
    """Probabilities (1/2, 1/4, 1/4).

    Imitation: ln 2 = 0.693147 for action 0, ln 4 = 1.386294 for the others. Certainty:
    0.5 x ((ln 2)^2 + 2 (ln 4)^2) / 3 = 0.5 x (0.480453 + 3.843624) / 3 = 0.720680.
    """
    policy = with_constant_output(BC(DISCRETE), [0.693147, 0.0, 0.0])
    batch = transition_batch(DISCRETE, num_rows=12)
    losses = policy.losses(batch)
    expected = [0.693147 if action == 0 else 1.386294 for action in batch.action.tolist()]
    assert {0} < set(batch.action.tolist())
    assert losses["imitation_loss"].tolist() == pytest.approx(expected, abs=1e-5)
    assert losses["certainty_loss"].tolist() == pytest.approx([0.720680] * 12, abs=1e-5)


def test_continuous_loss_of_a_known_policy() -> None:
    """The policy answers tanh(0) = 0 everywhere, so the loss is the mean square of the recorded action."""
    policy = with_constant_output(BC(CONTINUOUS), [0.0, 0.0, 0.0])
    batch = transition_batch(CONTINUOUS)
    losses = policy.losses(batch)
    assert list(losses) == ["imitation_loss"]
    expected = [sum(x * x for x in action) / 3 for action in batch.action.tolist()]
    assert losses["imitation_loss"].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_imitation_weight_scales_the_certainty_loss_alone() -> None:
    """Weight 2 against weight 0.5: four times; the imitation loss stays."""
    batch = transition_batch(DISCRETE)
    light, heavy = BC(DISCRETE, imitation_weight=0.5), BC(DISCRETE, imitation_weight=2.0)
    heavy.load_state_dict(light.state_dict())
    one, other = light.losses(batch), heavy.losses(batch)
    torch.testing.assert_close(other["certainty_loss"], 4 * one["certainty_loss"])
    torch.testing.assert_close(other["imitation_loss"], one["imitation_loss"])


def test_it_does_the_likeliest_action() -> None:
    """Output (1, 3, 2): action 1; continuous: its tanh."""
    batch = transition_batch(DISCRETE)
    discrete = with_constant_output(BC(DISCRETE), [1.0, 3.0, 2.0])
    assert discrete.act(batch.observation, batch.goal_embedding).tolist() == [1] * 6
    continuous = with_constant_output(BC(CONTINUOUS), [0.0, 20.0, -20.0])
    assert continuous.act(batch.observation, batch.goal_embedding)[0].tolist() == pytest.approx([0.0, 1.0, -1.0])


def test_a_negative_imitation_weight_is_refused() -> None:
    """It would reward certainty without bound."""
    with pytest.raises(KalmError, match="imitation_weight is -1"):
        BC(DISCRETE, imitation_weight=-1.0)
