"""What a loss sees of stacked minibatches: what is normalised, what belongs to which row."""

from __future__ import annotations

import torch

from kalm.rl.training.batches import unstack
from tests.rl.helpers import CONTINUOUS, stacked_batch


def test_observation_and_next_observation_are_normalised_alike() -> None:
    """A value of both would otherwise be read in two units."""
    stacked = stacked_batch(CONTINUOUS)
    batches = unstack(stacked, torch.zeros(1, 4), lambda values: 2 * values - 1, torch.zeros(2, 6, 0))
    for number, batch in enumerate(batches):
        assert torch.equal(batch.observation, 2 * stacked["observation"][number] - 1)
        assert torch.equal(batch.next_observation, 2 * stacked["next", "observation"][number] - 1)


def test_every_row_gets_what_is_its_own() -> None:
    """Goal, action, reward, end, noise and weight of the same row of the same minibatch; the stack stays as it was."""
    stacked, noise, weight = stacked_batch(CONTINUOUS), torch.randn(2, 6, 3), torch.rand(2, 6)
    stacked["instruction_id"] = torch.randint(4, (2, 6), generator=torch.Generator().manual_seed(0)).int()
    goals, before = torch.randn(4, 4), stacked.clone()
    for number, batch in enumerate(unstack(stacked, goals, lambda values: values, noise, weight)):
        assert torch.equal(batch.goal_embedding, goals[stacked["instruction_id"][number].long()])
        assert torch.equal(batch.action, stacked["action"][number])
        assert torch.equal(batch.reward, stacked["next", "reward"][number])
        assert torch.equal(batch.terminated, stacked["next", "terminated"][number])
        assert torch.equal(batch.noise, noise[number])
        assert batch.weight is not None
        assert torch.equal(batch.weight, weight[number])
    assert (stacked == before).all()
