"""Imagination: the cache changes nothing, rollouts stop on their own, luck belongs to the rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.data.validation import validate_rollout
from kalm.data.work_item import WorkItem
from kalm.envs.base import InstructedGoal
from kalm.llm.backbone import Backbone
from kalm.llm.generation import CachedReader, Generated, Sampling, generate, imagine
from kalm.llm.grounded_llm import GroundedLLM
from kalm.types import GoalSplit, Source
from tests.chain_domain import CellGoal, ChainDomain
from tests.llm.models import CONTINUOUS, DISCRETE, grounded_llm, one_hot_starts

PROMPTS = ["imagine : go to the left end", "imagine", "imagine : walk", "imagine : walk to the end"]


class UncachedReader:
    """Runs every token of a rollout again for each new one; what the cache must equal."""

    def __init__(self, backbone: Backbone, prompts: Sequence[str]) -> None:
        """Embed the prompts, one row each."""
        vectors, prompt_mask = backbone.embed_prompts(prompts)
        self._backbone = backbone
        self._rows = [row[mask] for row, mask in zip(vectors, prompt_mask, strict=True)]

    def extend(self, vectors: Tensor) -> Tensor:
        """Hidden vectors of the last tokens."""
        self._rows = [torch.cat([row, vector[None]]) for row, vector in zip(self._rows, vectors, strict=True)]
        return torch.cat([self._last_hidden(row) for row in self._rows])

    def keep(self, rows: Tensor) -> None:
        """Drop all rollouts but these."""
        self._rows = [self._rows[row] for row in rows.tolist()]

    def _last_hidden(self, row: Tensor) -> Tensor:
        size = len(row)
        causal = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        hidden: Tensor = self._backbone(row[None], torch.arange(size)[None], causal)[:, -1]
        return hidden


def never(rows: NDArray[Any], before: NDArray[Any], action: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """No goal is ever met."""
    return np.zeros(len(rows), dtype=np.bool_)


def run(model: GroundedLLM, rows: Sequence[int] = (0, 1, 2, 3), cached: bool = True, **options: Any) -> list[Generated]:
    """Generate for some of four prompts, each with its own start, limit and seed."""
    prompts = [PROMPTS[row] for row in rows]
    reader = CachedReader(model.backbone, prompts, 20) if cached else UncachedReader(model.backbone, prompts)
    return generate(
        reader,
        model.codec,
        one_hot_starts([0, 1, 2, 3])[list(rows)],
        np.array([10, 3, 7, 5])[list(rows)],
        [11 + row for row in rows],
        options.pop("reached", never),
        Sampling(**{"end_threshold": 1.0, **options}),
    )


def assert_same(left: Sequence[Generated], right: Sequence[Generated]) -> None:
    """Equal decisions; observations equal but for rounding."""
    for one, other in zip(left, right, strict=True):
        assert one.stopped_by == other.stopped_by
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
        np.testing.assert_allclose(one.observations, other.observations, atol=1e-4)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_generation_equals_running_everything_again(spec: Any, temperature: float) -> None:
    """The same rollouts with and without the cache, while rows drop out one by one."""
    model = grounded_llm(spec)
    assert_same(run(model, temperature=temperature), run(model, cached=False, temperature=temperature))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rollout_does_not_depend_on_its_batch(temperature: float) -> None:
    """Alone or among others, in any place: its luck is its own."""
    model = grounded_llm()
    together = run(model, temperature=temperature)
    assert_same(run(model, [2], temperature=temperature), [together[2]])
    assert_same(run(model, [3, 0], temperature=temperature), [together[3], together[0]])


def test_temperature_draws_by_seed_and_zero_does_not_draw() -> None:
    """At temperature 1 the two actions are both taken; at 0 the likeliest is, step after step."""
    model = grounded_llm()
    hot = np.concatenate([made.actions for made in run(model, temperature=3.0)])
    assert set(hot.tolist()) == {0, 1}
    assert_same(run(model, temperature=0.0), run(model, temperature=0.0))


def test_frequencies_of_drawn_actions_follow_the_scores() -> None:
    """Scores (0, ln 3) at temperature 1 are probabilities 1/4 and 3/4; at temperature 1/2 they are 1/10 and 9/10."""
    model = grounded_llm()
    head = model.codec.action_head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, np.log(3)]))
    for temperature, share in ((1.0, 0.75), (0.5, 0.9)):
        made = generate(
            CachedReader(model.backbone, ["imagine"] * 500, 16),
            model.codec,
            one_hot_starts([0] * 500),
            np.full(500, 8),
            range(500),
            never,
            Sampling(temperature, 1.0),
        )
        assert np.mean([entry.actions for entry in made]) == pytest.approx(share, abs=0.03)


def test_each_rollout_stops_at_its_own_limit() -> None:
    """Limits 10, 3, 7 and 5, one more observation than actions."""
    made = run(grounded_llm())
    assert [len(entry.actions) for entry in made] == [10, 3, 7, 5]
    assert [len(entry.observations) for entry in made] == [11, 4, 8, 6]
    assert {entry.stopped_by for entry in made} == {"limit"}


def test_a_rollout_stops_when_its_goal_is_met() -> None:
    """Rollout 2 meets its goal at its second step; the others go on to their limits."""
    steps = np.zeros(4, dtype=int)

    def reached(
        rows: NDArray[Any], before: NDArray[Any], action: NDArray[Any], after: NDArray[Any]
    ) -> NDArray[np.bool_]:
        steps[rows] += 1
        return (rows == 2) & (steps[rows] == 2)

    made = run(grounded_llm(), reached=reached)
    assert [len(entry.actions) for entry in made] == [10, 3, 2, 5]
    assert [entry.stopped_by for entry in made] == ["limit", "limit", "goal", "limit"]


def test_a_rollout_stops_where_the_model_says_that_it_ends() -> None:
    """An end head that always says yes lets every rollout take one step and no more."""
    model = grounded_llm()
    with torch.no_grad():
        model.codec.end_head.weight.zero_()
        model.codec.end_head.bias.fill_(5.0)
    made = run(model, end_threshold=0.9)
    assert [len(entry.actions) for entry in made] == [1, 1, 1, 1]
    assert {entry.stopped_by for entry in made} == {"end"}
    assert [len(entry.actions) for entry in run(model, end_threshold=0.999)] == [10, 3, 7, 5]


def test_the_rule_sees_the_last_step() -> None:
    """Observation before, action and observation after of each step, chained."""
    seen: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def reached(
        rows: NDArray[Any], before: NDArray[Any], action: NDArray[Any], after: NDArray[Any]
    ) -> NDArray[np.bool_]:
        seen.append((before.copy(), after.copy()))
        return np.zeros(len(rows), dtype=np.bool_)

    made = run(grounded_llm(), [0], reached=reached)
    np.testing.assert_array_equal(np.stack([before[0] for before, _ in seen]), made[0].observations[:-1])
    np.testing.assert_array_equal(np.stack([after[0] for _, after in seen]), made[0].observations[1:])


def test_continuous_actions_stay_in_bounds() -> None:
    """However hot, actions lie in [-1, 1] and are not all at the bounds' one side."""
    actions = np.concatenate([made.actions for made in run(grounded_llm(CONTINUOUS), temperature=5.0)])
    assert actions.shape[1] == 2
    assert (np.abs(actions) <= 1).all()
    assert {-1.0, 1.0} <= set(actions.flatten().tolist())


def test_imagined_rollouts_are_labelled_by_the_domain() -> None:
    """They are imaginary, well-formed, carry their seed, and end where the domain says that the goal is met."""
    domain, model = ChainDomain(), grounded_llm()
    goals = [InstructedGoal(CellGoal(cell), f"go to cell {cell}", GoalSplit.EASY) for cell in range(5)]
    items = [
        WorkItem(goal, one_hot_starts([2])[0], domain.max_steps(goal.goal), seed) for seed, goal in enumerate(goals * 4)
    ]
    rollouts = imagine(model.backbone, model.codec, domain, items, Sampling(1.0, 1.0))
    assert len(rollouts) == 20
    for rollout, item in zip(rollouts, items, strict=True):
        assert rollout.source is Source.IMAGINARY
        assert rollout.goal == item.instructed.goal.to_json()
        assert rollout.provenance["seed"] == item.seed
        assert validate_rollout(rollout, domain.observation_space, domain.action_space) == []
        met = domain.success(item.instructed.goal, rollout.observations[1:])
        assert rollout.is_success == met[-1] == (rollout.provenance["stopped_by"] == "goal")
        assert not met[:-1].any()
    assert 0 < sum(rollout.is_success for rollout in rollouts) < 20


@pytest.mark.parametrize(("name", "value"), [("temperature", -0.1), ("end_threshold", 0.0), ("end_threshold", 1.1)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """The message names the setting and its value."""
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Sampling(**{name: value})
