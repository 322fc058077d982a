"""Things that look at words: what may not matter does not, and what a sentence names is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kalm.core.errors import DataError, KalmError
from kalm.core.specs import GridObservation, Spec, VectorAction, vector_spec
from kalm.rl.networks.grid_encoder import GridEncoder
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from kalm.rl.networks.token_network import MeanToken, OnTokens, TokenEncoder, WholeSentence

NUM_WORDS, WORD_SIZE = 6, 16
SPEC = vector_spec(5, 3, is_discrete=False, things=((0, 2), (2, 4))).with_goals(NUM_WORDS * WORD_SIZE, NUM_WORDS)


def encoder(spec: Spec = SPEC, is_training: bool = True) -> TokenEncoder:
    """The same two layers of width 32 each time."""
    torch.manual_seed(0)
    return TokenEncoder(spec, [32, 32]).train(is_training)


def sentences(num_words: list[int], longest: int = NUM_WORDS) -> Tensor:
    """Sentences of so many words, the same words each time, zeros behind them; shape (n, L * E)."""
    words = torch.randn(len(num_words), 10, WORD_SIZE, generator=torch.Generator().manual_seed(1))[:, :longest]
    is_word = torch.arange(longest) < torch.tensor(num_words).unsqueeze(1)
    return (words * is_word.unsqueeze(-1)).flatten(1)


@pytest.mark.parametrize("is_training", [True, False], ids=["packed", "in places"])
def test_zeros_behind_a_sentence_change_nothing(is_training: bool) -> None:
    """Room for six words or for ten."""
    observation, num_words = torch.randn(3, 5), [2, 6, 4]
    roomy = vector_spec(5, 3, is_discrete=False, things=SPEC.things).with_goals(10 * WORD_SIZE, 10)
    seen = encoder(SPEC, is_training)(observation, sentences(num_words))
    torch.testing.assert_close(encoder(roomy, is_training)(observation, sentences(num_words, 10)), seen)


def test_training_sees_what_evaluation_sees() -> None:
    """Words that are packed together find their way back: outputs and gradients are alike."""
    observation, goal = torch.randn(4, 5), sentences([2, 6, 1, 4])
    outcomes = []
    for is_training in (True, False):
        network = encoder(SPEC, is_training)
        seen = network(observation, goal)
        outcomes.append([seen, *torch.autograd.grad(seen.square().sum(), list(network.parameters()))])
    for packed, in_places in zip(*outcomes, strict=True):
        torch.testing.assert_close(packed, in_places, atol=1e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_its_place_in_the_batch() -> None:
    """Sentences of several lengths in another order, the longest among them or not."""
    observation, goal = torch.randn(4, 5), sentences([2, 6, 1, 4])
    network, order = encoder(), torch.tensor([3, 0, 2])
    torch.testing.assert_close(network(observation[order], goal[order]), network(observation, goal)[order])


def test_words_have_no_order_but_what_their_vectors_say() -> None:
    """A sentence encoder puts the place of a word into its vector; the places in memory say nothing."""
    observation, goal = torch.randn(2, 5), sentences([6, 6])
    turned = goal.unflatten(-1, (NUM_WORDS, -1)).flip(1).flatten(1)
    torch.testing.assert_close(encoder()(observation, turned), encoder()(observation, goal))


def test_things_are_told_apart_by_their_names_alone() -> None:
    """Two things that change places and names change their outputs, too."""
    observation, goal = torch.randn(2, 5), sentences([3, 5])
    network = encoder()
    before = network(observation, goal).unflatten(-1, (3, -1))
    assert not torch.allclose(before[:, 0], network(observation[:, [2, 3, 0, 1, 4]], goal).unflatten(-1, (3, -1))[:, 1])
    with torch.no_grad():
        network.names.weight.copy_(network.names.weight[[1, 0, 2]])
    after = network(observation[:, [2, 3, 0, 1, 4]], goal).unflatten(-1, (3, -1))
    torch.testing.assert_close(after, before[:, [1, 0, 2]])


def test_numbers_of_no_thing_are_one_more_thing() -> None:
    """Two things of two numbers each and one number left: three tokens; an observation without things is one."""
    assert encoder().columns.tolist() == [[0, 1], [2, 3], [4, 5]]
    whole = vector_spec(4, 3, is_discrete=True).with_goals(NUM_WORDS * WORD_SIZE, NUM_WORDS)
    assert encoder(whole).columns.tolist() == [[0, 1, 2, 3]]


def test_a_sentence_without_words_is_finite() -> None:
    """Rows that fill up a batch hold none."""
    goal = torch.zeros(2, NUM_WORDS * WORD_SIZE)
    for is_training in (True, False):
        assert encoder(SPEC, is_training)(torch.randn(2, 5), goal).isfinite().all()
    assert MeanToken(SPEC, 8)(goal).eq(0).all()


def test_one_sentence_serves_several_observations() -> None:
    """A window of four steps under each of two sentences, and each step alone."""
    observation, goal = torch.randn(2, 4, 5), sentences([3, 6])
    together = encoder()(observation, goal.unsqueeze(1))
    for step in range(4):
        torch.testing.assert_close(together[:, step], encoder()(observation[:, step], goal))


def test_the_mean_of_the_words_is_that_of_the_real_ones() -> None:
    """A sentence of two words and the mean of two sentences of one word each."""
    goal, token = sentences([2]), MeanToken(SPEC, 8)
    first, second = goal.clone(), torch.zeros_like(goal)
    first[:, WORD_SIZE:] = 0
    second[:, :WORD_SIZE] = goal[:, WORD_SIZE : 2 * WORD_SIZE]
    torch.testing.assert_close(token(goal), (token(first) + token(second)) / 2)


def test_a_whole_sentence_stands_beside_what_is_observed() -> None:
    """Five numbers as they came, then the mean token's eight."""
    whole, observation, goal = WholeSentence(SPEC, 8), torch.randn(2, 5), sentences([2, 4])
    found = whole(observation, goal)
    assert found.shape == (2, whole.output_size) == (2, 13)
    assert torch.equal(found[:, :5], observation)
    assert torch.equal(found[:, 5:], whole.token(goal))


def critics() -> OnTokens:
    """Two of continuous actions."""
    network = critic_network(SPEC, [16, 16])
    assert isinstance(network, OnTokens)
    return network


def test_critics_that_are_given_their_first_inputs_answer_as_if_asked_at_once() -> None:
    """Five actions of each of four observations, by both critics, or by the first alone."""
    network, observation, goal = critics(), torch.randn(4, 5), sentences([2, 6, 1, 4])
    action = torch.randn(4, 5, 3)
    several = network.given(observation, goal)(action)
    assert several.shape == (2, 4, 5, 1)
    torch.testing.assert_close(several, network(observation.unsqueeze(1), goal.unsqueeze(1), action))
    first = network.given(observation, goal, num_members=1)(action)
    torch.testing.assert_close(first, several[:1])


def test_what_is_frozen_takes_no_gradient_and_passes_that_of_the_action_on() -> None:
    """Policies learn through critics that they must not train."""
    network, observation, goal = critics(), torch.randn(4, 5), sentences([2, 6, 1, 4])
    plain, given = (torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    network(observation, goal, plain, frozen=True).sum().backward()
    network.given(observation, goal, frozen=True)(given, frozen=True).sum().backward()
    assert plain.grad is not None and given.grad is not None  # noqa: PT018
    torch.testing.assert_close(plain.grad, given.grad)
    assert plain.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_finds_the_thing_that_a_sentence_names() -> None:
    """Three things are high or low; each sentence names one among other words, and the answer is whether it is high.

    A sentence's mean vector says which one, too, but nobody here hands it over. Words stand at any place.
    """
    spec = vector_spec(3, 2, is_discrete=True, things=((0, 1), (1, 2), (2, 3))).with_goals(NUM_WORDS * WORD_SIZE, 6)
    generator = torch.Generator().manual_seed(3)
    words = torch.randn(8, WORD_SIZE, generator=generator)  # the names of three things, and five that mean nothing

    def draw(num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        heights = torch.randn(num_rows, 3, generator=generator)
        named = torch.randint(3, (num_rows,), generator=generator)
        spoken = words[torch.randint(3, 8, (num_rows, NUM_WORDS), generator=generator)]
        length = torch.randint(1, NUM_WORDS + 1, (num_rows,), generator=generator)
        place = (torch.rand(num_rows, generator=generator) * length).long()
        spoken[torch.arange(num_rows), place] = words[named]
        spoken = spoken * (torch.arange(NUM_WORDS) < length.unsqueeze(1)).unsqueeze(-1)
        return heights, spoken.flatten(1), (heights[torch.arange(num_rows), named] > 0).long()

    torch.manual_seed(0)
    network = goal_conditioned_mlp(spec, [32, 32], 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200):
        heights, goal, answer = draw(64)
        loss = functional.cross_entropy(network(heights, goal), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    heights, goal, answer = draw(1000)
    network.eval()
    assert (network(heights, goal).argmax(-1) == answer).float().mean() >= 0.95


def test_what_cannot_be_read_is_refused() -> None:
    """Layers of several widths; grids, which are read under one vector a sentence."""
    with pytest.raises(KalmError, match=r"hidden_sizes is \[32, 16\]; it must be of one width"):
        TokenEncoder(SPEC, [32, 16])
    grid = Spec(GridObservation((5, 4, 2)), VectorAction((-1.0,), (1.0,)), NUM_WORDS * WORD_SIZE, NUM_WORDS)
    with pytest.raises(DataError, match="num_goal_tokens"):
        GridEncoder(grid)
