"""Inputs and outputs for states and actions: statistics, changes, discrete and continuous actions."""

from __future__ import annotations

from dataclasses import replace

import torch

from kalm.core.specs import VectorObservation
from kalm.llm.grounding.rollout_codec import RolloutCodec
from tests.llm.models import CONTINUOUS, DISCRETE


def test_a_change_is_measured_in_its_spread_and_applied_again() -> None:
    """From 1 to 3 with a spread of 4 is a change of 0.5; applied to 1 it gives 3."""
    codec = RolloutCodec(DISCRETE, hidden_sizes=[8], inner_size=8)
    codec.set_statistics(torch.zeros(5), torch.ones(5), torch.tensor([4.0, 1, 1, 1, 1]))
    change = codec.change(torch.ones(5), torch.tensor([3.0, 1, 1, 1, 0]))
    assert change.tolist() == [0.5, 0, 0, 0, -1]
    assert codec.apply_change(torch.ones(5), change).tolist() == [3, 1, 1, 1, 0]


def test_no_step_leads_out_of_the_range_of_the_data() -> None:
    """In [-1, 2]: 1 + 4 stops at 2, 0 - 0.5 is free; 3, which lies outside, may stay or come back, not go on."""
    codec = RolloutCodec(DISCRETE, hidden_sizes=[8], inner_size=8)
    codec.set_range(torch.full((5,), -1.0), torch.full((5,), 2.0))
    observation = torch.tensor([1.0, 0.0, 0.0, 3.0, 3.0])
    assert codec.apply_change(observation, torch.tensor([4.0, -0.5, -9.0, 1.0, -2.0])).tolist() == [2, -0.5, -1, 3, 1]


def test_what_is_not_there_neither_appears_nor_counts() -> None:
    """Numbers 1 and 2 are a thing, 3 and 4 another; only the thing that has a number other than 0 changes."""
    spec = replace(CONTINUOUS, observation=VectorObservation(5, entities=((1, 3), (3, 5))))
    codec = RolloutCodec(spec, hidden_sizes=[8], inner_size=8)
    codec.set_statistics(torch.zeros(5), torch.ones(5), torch.tensor([1.0, 1, 1, 0, 1]))
    observation = torch.tensor([[0.0, 0, 0, 0, -2], [0, 0, 5, 0, 0], [0, 0, 0, 0, 0]])
    expected = [[True, False, False, False, True], [True, True, True, False, False], [True] + [False] * 4]
    assert codec.can_change(observation).tolist() == expected
    moved = codec.apply_change(observation, torch.full((3, 5), 0.5)) - observation
    assert moved.tolist() == [[0.5 * value for value in row] for row in expected]
    change = codec.change(observation, observation + 0.25)
    assert change.tolist() == [[0.25 * value for value in row] for row in expected]


def test_observations_are_normalised_before_they_are_encoded() -> None:
    """Mean 2, deviation 0.5: 3 is encoded as 2 was without statistics."""
    codec = RolloutCodec(DISCRETE, hidden_sizes=[8], inner_size=8)
    plain = codec.encode_observation(torch.full((5,), 2.0))
    codec.set_statistics(torch.full((5,), 2.0), torch.full((5,), 0.5), torch.ones(5))
    torch.testing.assert_close(codec.encode_observation(torch.full((5,), 3.0)), plain)


def test_statistics_travel_with_the_weights() -> None:
    """They are in the state dict, and a loaded codec encodes alike."""
    codec, other = (RolloutCodec(DISCRETE, hidden_sizes=[8], inner_size=8) for _ in range(2))
    codec.set_statistics(torch.ones(5), torch.full((5,), 3.0), torch.full((5,), 2.0))
    codec.set_range(torch.zeros(5), torch.ones(5))
    other.load_state_dict(codec.state_dict())
    assert other.change_std.tolist() == [2.0] * 5
    assert other.greatest_outcome.tolist() == [1.0] * 5
    torch.testing.assert_close(other.encode_observation(torch.zeros(5)), codec.encode_observation(torch.zeros(5)))


def test_shapes_of_discrete_and_continuous_actions() -> None:
    """One token an action either way; two numbers come out, as scores or as the action."""
    for spec, action in ((DISCRETE, torch.tensor([0, 1, 1])), (CONTINUOUS, torch.zeros(3, 2))):
        codec = RolloutCodec(spec, hidden_sizes=[8], inner_size=8)
        assert codec.encode_action(action).shape == (3, 8)
        assert codec.predict_action(torch.zeros(3, 8)).shape == (3, 2)
        assert codec.predict_end(torch.zeros(3, 8)).shape == (3,)


def test_encoders_of_one_model_keep_their_names() -> None:
    """Checkpoints of before there could be two still fit."""
    names = RolloutCodec(DISCRETE, hidden_sizes=[8], inner_size=8).state_dict().keys()
    assert {"observation_encoder.0.weight", "observation_encoder.4.bias", "action_encoder.weight"} <= names
