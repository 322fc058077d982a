"""Rules by which discrete actions are chosen, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kalm.core.errors import KalmError
from kalm.core.goal import InstructedGoal
from kalm.core.specs import DiscreteAction, Spec, VectorObservation
from kalm.envs.simulation import Episode
from kalm.runs.acting import Acting, ActionChoice
from tests.chain_domain import ChainDomain

SPEC = Spec(VectorObservation(2), DiscreteAction(3))
HERE, NEAR, FAR = [0.0, 0.0], [0.03, 0.04], [0.04, 0.05]  # 0.05 and 0.064 from here


def choice(seed: int = 0, num_episodes: int = 2, **options: Any) -> ActionChoice:
    """Who chooses in episodes that have just begun."""
    goal: InstructedGoal = ChainDomain().instructed_goals("train")[0]
    return ActionChoice(Acting(**options), seed, [Episode(goal, 100 + n) for n in range(num_episodes)], SPEC)


def chosen(chooser: ActionChoice, scores: list[float], state: list[float], episode: int = 0) -> int:
    """The action of one episode."""
    return int(chooser.choose(torch.tensor([scores]), torch.tensor([state]), torch.tensor([episode])))


def test_the_best_is_taken() -> None:
    """Again and again."""
    chooser = choice()
    assert [chosen(chooser, [0.0, 5.0, 4.0], HERE) for _ in range(3)] == [1, 1, 1]


def test_what_was_done_near_by_is_marked_down() -> None:
    """Scores 5, 4, 2 and penalty 2: actions 0 (5), 1 (4 > 3), 0 (3 > 2 = 2), 1 (2 > 1 and before 2), then 2."""
    chooser = choice(rule="no_repeat")
    assert [chosen(chooser, [5.0, 4.0, 2.0], HERE) for _ in range(5)] == [0, 1, 0, 1, 2]


def test_only_what_was_done_near_by_in_this_episode_counts() -> None:
    """A state at 0.05 is near, one at 0.064 is not; the other episode knows nothing, nor do rows of none."""
    chooser = choice(rule="no_repeat")
    assert chosen(chooser, [5.0, 4.0, 2.0], HERE) == 0
    assert chosen(chooser, [5.0, 4.0, 2.0], FAR) == 0
    assert chosen(chooser, [5.0, 4.0, 2.0], HERE, episode=1) == 0
    assert [chosen(chooser, [5.0, 4.0, 2.0], HERE, episode=-1) for _ in range(3)] == [0, 0, 0]
    assert chosen(chooser, [5.0, 4.0, 2.0], NEAR) == 1


def test_a_penalty_is_one_on_log_probabilities() -> None:
    """Q-values 1 and 0 over a temperature of 0.2 are 5 nats apart: it takes three times to make up for them."""
    chooser = choice(rule="no_repeat", temperature=0.2)
    assert [chosen(chooser, [1.0, 0.0, -9.0], HERE) for _ in range(4)] == [0, 0, 0, 1]


def test_actions_are_drawn_in_proportion() -> None:
    """Scores 0 and ln 3 over 1: one in four; the third cannot be; the same seeds draw the same."""
    scores = torch.tensor([[0.0, math.log(3), -math.inf]]).expand(1000, -1)
    numbers, states = torch.arange(1000), torch.zeros(1000, 2)

    drawn = [choice(seed, 1000, rule="sample").choose(scores, states, numbers) for seed in (0, 0, 1)]

    assert float((drawn[0] == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert int(drawn[0].max()) == 1
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "options",
    [{"rule": "best"}, {"temperature": 0.0}, {"penalty": 0.0}, {"radius": -1.0}],
    ids=lambda one: next(iter(one)),
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """Each by its name."""
    with pytest.raises(KalmError, match=next(iter(options))):
        Acting(**options)
