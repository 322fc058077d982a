"""What a loss sees of stacked minibatches: what is normalised, what belongs to which row."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from kalm.core.errors import KalmError
from kalm.core.names import SOURCE, WEIGHT, Source
from kalm.rl.training.batches import Normalizer, TransitionWeights, unstack
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


@pytest.mark.parametrize(
    ("of_source", "of_transition", "expected"),
    [
        (None, None, None),
        ({"real": 1.0}, None, None),
        ({"imaginary": 0.5}, None, [1.0, 0.5]),
        ({"real": 0.0, "imaginary": 2.0}, None, [0.0, 2.0]),
        (None, [3.0, 4.0], [3.0, 4.0]),
        ({"imaginary": 0.5}, [3.0, 4.0], [3.0, 2.0]),
    ],
)
def test_the_weight_of_a_transition_is_that_of_its_source_times_its_own(
    of_source: dict[str, float] | None, of_transition: list[float] | None, expected: list[float] | None
) -> None:
    """A real transition and an imagined one; nothing where all count alike."""
    batch = TensorDict({SOURCE: torch.tensor([int(Source.REAL), int(Source.IMAGINARY)], dtype=torch.uint8)}, [2])
    if of_transition:
        batch[WEIGHT] = torch.tensor(of_transition)
    weight = TransitionWeights(of_source)(batch)
    assert (weight if weight is None else weight.tolist()) == expected


@pytest.mark.parametrize("weights", [{"real": -1.0}, {"dreamt": 1.0}])
def test_weights_of_sources_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    """Below 0, or of a source that there is not."""
    with pytest.raises(KalmError, match="numbers of 0 or more for real and imaginary"):
        TransitionWeights(weights)


def test_normalised_is_offset_by_the_mean_over_the_spread() -> None:
    """(5 - 1) / 2 = 2; a number that never changes is offset only; without statistics nothing happens."""
    normalizer = Normalizer(2)
    assert normalizer(torch.tensor([5.0, 5.0])).tolist() == [5.0, 5.0]
    normalizer.set_statistics(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
    assert normalizer(torch.tensor([5.0, 5.0])).tolist() == [2.0, 4.0]


def test_normalised_ends_at_the_limit() -> None:
    """(561 - 1) / 2 = 280 standard deviations become 10, -280 become -10; (5 - 1) / 2 = 2 stays."""
    normalizer = Normalizer(3, limit=10.0)
    normalizer.set_statistics(torch.ones(3), torch.full((3,), 2.0))
    assert normalizer(torch.tensor([561.0, -559.0, 5.0])).tolist() == [10.0, -10.0, 2.0]


def test_a_limit_travels_with_the_weights_and_those_of_before_have_none() -> None:
    """What was trained without a limit acts without one, whatever the module that loads it was given."""
    trained, loading = Normalizer(1, limit=3.0), Normalizer(1, limit=10.0)
    loading.load_state_dict(trained.state_dict())
    assert loading(torch.tensor([280.0])).tolist() == [3.0]
    of_before = {name: value for name, value in trained.state_dict().items() if name != "limit"}
    loading.load_state_dict(of_before)
    assert loading(torch.tensor([280.0])).tolist() == [280.0]
    assert "limit" not in of_before
