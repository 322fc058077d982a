"""The transformer: what a token sees, and what falls out."""

from __future__ import annotations

import pytest
import torch

from kalm.rl.networks.transformer import CausalTransformer, separable_dropout


def test_a_token_sees_itself_and_those_before_it() -> None:
    """Changing token 3 of 6 changes outputs 3, 4 and 5 and no other."""
    torch.manual_seed(0)
    transformer = CausalTransformer(8, [16, 16], num_heads=2, dropout=0.5)
    tokens = torch.randn(4, 6, 8)
    changed = tokens.clone()
    changed[:, 3, 0] += 1
    difference = (transformer(changed) - transformer(tokens)).abs().amax(dim=(0, 2))
    assert difference[:3].tolist() == [0.0] * 3
    assert (difference[3:] > 1e-4).all()


def test_the_kinds_of_attention_agree() -> None:
    """The plain kind, which ``vmap`` needs, gives what torch's own choice gives, and so do the gradients."""
    torch.manual_seed(0)
    one, plain = (CausalTransformer(8, [16], 2, 0.0, is_side_by_side) for is_side_by_side in (False, True))
    plain.load_state_dict(one.state_dict())
    tokens = torch.randn(4, 6, 8)
    outputs = [transformer(tokens) for transformer in (one, plain)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for parameter, other in zip(one.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_dropout_depends_on_the_noise_alone() -> None:
    """Without noise nothing falls out; with the same noise the same does; torch's own generator is not touched."""
    torch.manual_seed(0)
    transformer = CausalTransformer(8, [16, 16], num_heads=2, dropout=0.5)
    tokens, noise = torch.randn(4, 6, 8), torch.randn(4, transformer.noise_size(6))
    assert noise.shape[1] == 5 * (6 + 8)  # the input, and two parts of two layers
    state = torch.get_rng_state()
    assert torch.equal(transformer(tokens, noise), transformer(tokens, noise))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(transformer(tokens, noise), transformer(tokens, -noise))
    assert not torch.equal(transformer(tokens, noise), transformer(tokens))


def test_without_dropout_no_noise_is_needed() -> None:
    """A rate of 0 asks for none."""
    assert CausalTransformer(8, [16], num_heads=2, dropout=0.0).noise_size(6) == 0


def test_every_place_of_dropout_has_noise_of_its_own() -> None:
    """Any of the numbers changes the output."""
    torch.manual_seed(0)
    transformer = CausalTransformer(4, [8], num_heads=1, dropout=0.5)
    tokens = torch.randn(1, 2, 4)
    size = transformer.noise_size(2)
    zeros = torch.zeros(1, size)  # uniform numbers of 1/2, whose sums are 1, whose fraction is 0: all falls out
    for first in range(0, size, 6):  # two tokens and four components a place
        noise = zeros.clone()
        noise[0, first : first + 2] = -10.0  # uniform numbers of 0: nothing falls out there
        assert not torch.equal(transformer(tokens, noise), transformer(tokens, zeros))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_numbers_with_its_probability_and_in_pairs_independently(rate: float) -> None:
    """Over 20,000 draws of 3 x 4 numbers: each falls out at ``rate``, any two at its square, what stays is scaled."""
    noise = torch.randn(20_000, 3 + 4, generator=torch.Generator().manual_seed(0))
    dropped = separable_dropout(torch.ones(20_000, 3, 4), noise, rate)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    falls_out = (dropped == 0).flatten(1).double()
    together = falls_out.T @ falls_out / len(falls_out)
    sigma = (rate / 20_000) ** 0.5
    torch.testing.assert_close(together.diagonal(), torch.full((12,), rate, dtype=torch.double), atol=5 * sigma, rtol=0)
    pairs = together[~torch.eye(12, dtype=torch.bool)]
    torch.testing.assert_close(pairs, torch.full_like(pairs, rate**2), atol=5 * sigma, rtol=0)
