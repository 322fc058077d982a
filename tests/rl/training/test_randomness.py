"""First weights and noise: functions of the seed, and the noise of the update as well."""

from __future__ import annotations

import torch
from torch import nn

from kalm.rl.training.randomness import initialize, update_noise


def weights(module: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_every_kind_of_layer_is_drawn_anew_and_the_generator_left_alone() -> None:
    """Also attention, whose method torch hides; equal seeds give equal weights, whatever the generator's state."""
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4), nn.TransformerEncoderLayer(4, 2, 8))
    drawn = []
    for seed, state in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        initialize(module, seed, [])
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(weights(module))
    assert all(torch.equal(*pair) for pair in zip(drawn[0], drawn[1], strict=True))
    matrices = [(one, other) for one, other in zip(drawn[0], drawn[2], strict=True) if one.ndim == 2]
    assert len(matrices) == 6
    assert not any(torch.equal(*pair) for pair in matrices)


def test_targets_are_copies_of_their_networks() -> None:
    """After drawing, not before."""
    network, target = nn.Linear(2, 2), nn.Linear(2, 2)
    initialize(nn.ModuleList([network, target]), 0, [(target, network)])
    assert all(torch.equal(*pair) for pair in zip(weights(network), weights(target), strict=True))


def test_noise_is_another_for_every_seed_and_every_update() -> None:
    """Two policies side by side, three updates: six draws, no two alike, each as its seed has it alone."""
    together = update_noise([3, 4], range(10, 13), num_rows=5, size=2)
    assert together.shape == (3, 10, 2)
    draws = [together[update, 5 * number : 5 * number + 5] for update in range(3) for number in range(2)]
    assert not any(torch.equal(one, other) for index, one in enumerate(draws) for other in draws[:index])
    for number, seed in enumerate((3, 4)):
        own = slice(5 * number, 5 * number + 5)
        assert torch.equal(update_noise([seed], range(10, 13), 5, 2), together[:, own])
        assert torch.equal(update_noise([seed], range(12, 13), 5, 2), together[2:, own])
