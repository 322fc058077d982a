"""The networks: numbers worked by hand, and that no way of giving inputs changes what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kalm.rl.networks.mlp import MLP, EnsembleMLP

SIZES = [3, 4, 2]
NETWORKS = pytest.mark.parametrize("network", [MLP(SIZES, [8, 8], 1), EnsembleMLP(3, SIZES, [8, 8], 1)])


def inputs(*leading: int) -> list[Tensor]:
    """Random inputs of the three sizes."""
    return [torch.randn(*leading, size, generator=torch.Generator().manual_seed(size)) for size in SIZES]


def test_two_members_by_hand() -> None:
    """Inputs 1 and 2; member 0: relu(1 + 2 - 1) x 3 + 1 = 7; member 1: relu(-1 - 2 + 0) x 3 + 5 = 5."""
    network = EnsembleMLP(2, [1, 1], [1], 1)
    with torch.no_grad():
        network.first_weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        network.weights[0].copy_(torch.full((2, 1, 1), 3.0))
        network.biases[0].copy_(torch.tensor([[[-1.0]], [[0.0]]]))
        network.biases[1].copy_(torch.tensor([[[1.0]], [[5.0]]]))
    assert network(torch.tensor([1.0]), torch.tensor([2.0])).flatten().tolist() == [7.0, 5.0]


@NETWORKS
def test_inputs_that_broadcast_answer_as_if_repeated(network: nn.Module) -> None:
    """Five actions of each of six transitions, and each of them alone."""
    first, second, _ = inputs(6)
    actions = torch.randn(6, 5, 2)
    together = network(first.unsqueeze(1), second.unsqueeze(1), actions)
    for number in range(5):
        torch.testing.assert_close(together[..., number, :], network(first, second, actions[:, number]))


def ensemble() -> EnsembleMLP:
    """Three members, inputs of the three sizes."""
    return EnsembleMLP(3, SIZES, [8, 8], 1)


@pytest.mark.parametrize("num_given", [1, 2])
def test_inputs_given_ahead_count_as_if_given_together(num_given: int) -> None:
    """Outputs and all gradients are those of the plain call."""
    network, parts = ensemble(), inputs(6)
    plain, shared = network(*parts), network.given(*parts[:num_given])(*parts[num_given:])
    torch.testing.assert_close(shared, plain)
    parameters = list(network.parameters())
    for one, other in zip(
        torch.autograd.grad(shared.square().sum(), parameters),
        torch.autograd.grad(plain.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_inputs_given_ahead_can_be_used_twice() -> None:
    """The first use leaves them as they were."""
    first, second, third = inputs(6)
    for given, others in ((ensemble().given(first, second), [third]), (ensemble().given(first, second, third), [])):
        assert torch.equal(given(*others), given(*others))


def test_several_inputs_for_each_of_those_given_ahead() -> None:
    """Five actions of each of the last four of six transitions."""
    network, (first, second, _) = ensemble(), inputs(6)
    actions = torch.randn(4, 5, 2)
    several = network.given(first, second)[2:](actions)
    torch.testing.assert_close(several, network(first[2:].unsqueeze(1), second[2:].unsqueeze(1), actions))


def test_what_is_frozen_takes_no_gradient_whether_given_ahead_or_not() -> None:
    """Given ahead without gradient, only the columns of the other inputs move; asked frozen, nothing does."""
    network, (first, second, third) = ensemble(), inputs(6)
    network.given(first, second, frozen=True)(third).sum().backward()
    gradient = network.first_weight.grad
    assert gradient is not None
    assert gradient[:, :7].abs().max() == 0
    assert gradient[:, 7:].abs().max() > 0
    network.zero_grad()
    network.given(first, second)(third.requires_grad_(), frozen=True).sum().backward()
    assert third.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())


@NETWORKS
def test_a_frozen_network_takes_no_gradient_and_passes_it_on(network: nn.Module) -> None:
    """The gradient of the inputs is that of the network as it is."""
    parts = [part.requires_grad_() for part in inputs(6)]
    expected = torch.autograd.grad(network(*parts).sum(), parts)
    output = network(*parts, frozen=True)
    for one, other in zip(torch.autograd.grad(output.sum(), parts, retain_graph=True), expected, strict=True):
        torch.testing.assert_close(one, other)
    output.sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_first_members_answer_alone() -> None:
    """Critics that nobody asks cost nothing and change nothing, inputs given ahead or not."""
    network, parts = EnsembleMLP(3, SIZES, [8], 1), inputs(6)
    torch.testing.assert_close(network(*parts, num_members=2), network(*parts)[:2])
    torch.testing.assert_close(network.given(*parts[:2], num_members=1)(parts[2]), network(*parts)[:1])


def test_each_member_reads_its_own_inputs() -> None:
    """Member i on row i of the inputs."""
    network, parts = EnsembleMLP(3, SIZES, [8, 8], 2), inputs(3, 6)
    own = network.each(*parts)
    assert own.shape == (3, 6, 2)
    for member in range(3):
        torch.testing.assert_close(own[member], network(*(part[member] for part in parts))[member])


@NETWORKS
@pytest.mark.parametrize("num_rows", [3000, 5000])
def test_rows_beyond_the_cache_answer_as_they_do_by_themselves(network: nn.Module, num_rows: int) -> None:
    """Two pieces, and three, of which one is shorter; the last input is the same for all rows."""
    first, second, _ = inputs(num_rows)
    third = torch.randn(2)
    together = network(first, second, third)
    alone = [network(*part, third) for part in zip(first.split(1000), second.split(1000), strict=True)]
    torch.testing.assert_close(together, torch.cat(alone, dim=-2))
