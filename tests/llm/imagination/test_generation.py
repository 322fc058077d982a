"""Imagination: the cache changes nothing, rollouts stop on their own, luck belongs to the rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import KalmError
from kalm.core.goal import Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.validation import validate_rollout
from kalm.data.language_batches import WorkItem
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.imagination import rollout_engine
from kalm.llm.imagination.generation import Generation, Reader
from kalm.llm.imagination.rollout_engine import ImaginationSettings, RolloutEngine
from kalm.llm.imagination.rows import Generated, GoalTest
from tests.chain_domain import CellGoal, ChainDomain
from tests.llm.models import CONTINUOUS, DISCRETE, grounded_llm, one_hot_starts

INSTRUCTIONS = ["go to the left end", "go", "walk", "walk to the end"]
LIMITS = [10, 3, 7, 5]


class UncachedReader:
    """Runs every token of a rollout again for each new one, row by row; what the cache must equal."""

    def __init__(self, backbone: Backbone, num_rows: int) -> None:
        """Begin with rows that have read nothing."""
        self._backbone = backbone
        self._rows = [torch.zeros(0, backbone.hidden_size)] * num_rows

    def admit(self, rows: Sequence[int], prompts: Sequence[str], num_tokens: int) -> None:
        """Put a prompt into each row."""
        for row, prompt in zip(rows, prompts, strict=True):
            self._rows[row] = self._backbone.embed_prompts([prompt])[0][0]

    def make_room(self, num_tokens: int) -> None:
        """Lists grow by themselves."""

    def extend(self, vectors: Tensor) -> Tensor:
        """Hidden vectors of the last tokens."""
        self._rows = [torch.cat([row, vector[None]]) for row, vector in zip(self._rows, vectors, strict=True)]
        return torch.cat([self._last_hidden(row) for row in self._rows])

    def release(self, rows: NDArray[np.int64]) -> None:
        """Nothing is kept that could be freed."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but these."""
        self._rows = [self._rows[row] for row in rows]

    def _last_hidden(self, row: Tensor) -> Tensor:
        size = len(row)
        causal = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        hidden: Tensor = self._backbone(row[None], torch.arange(size)[None], causal)[:, -1]
        return hidden


def never(goals: Sequence[Goal], *step: NDArray[Any]) -> NDArray[np.bool_]:
    """No goal is ever met."""
    return np.zeros(len(goals), dtype=np.bool_)


def work_item(instruction: str, start: NDArray[np.float32], max_steps: int, seed: int, cell: int = 0) -> WorkItem:
    """What to generate, for a goal that hardly anybody looks at."""
    return WorkItem(InstructedGoal(CellGoal(cell), instruction, "easy"), start, max_steps, seed)


class Pieces:
    """A plan of one piece or more, each of them wanted by its work item."""

    def __init__(self, *items: WorkItem) -> None:
        """Want these, one after the other."""
        self._items = list(items)
        self.made: list[Generated] = []
        self.next_item: WorkItem | None = self._items.pop(0)

    def add(self, piece: Generated) -> None:
        """Take a piece and go on to the next."""
        self.made.append(piece)
        self.next_item = self._items.pop(0) if self._items else None


def made_of(
    reader: Reader,
    model: GroundedLLM,
    items: Sequence[WorkItem],
    num_rows: int,
    is_met: GoalTest = never,
    **options: Any,
) -> list[Generated]:
    """What is generated for each work item, in their order; each finishes once."""
    plans = [Pieces(item) for item in items]
    Generation(reader, model.codec, is_met, **options).carry_out(plans, num_rows)
    assert {len(plan.made) for plan in plans} == {1}
    return [plan.made[0] for plan in plans]


def run(
    model: GroundedLLM,
    rows: Sequence[int] = (0, 1, 2, 3),
    cached: bool = True,
    num_rows: int = 4,
    drops_rows: bool = True,
    column_step: int = 1,
    **options: Any,
) -> list[Generated]:
    """Generate for some of four instructions, each with its own goal, start, limit and seed."""
    starts = one_hot_starts([0, 1, 2, 3])
    items = [work_item(INSTRUCTIONS[row], starts[row], LIMITS[row], 11 + row, cell=row) for row in rows]
    size = min(num_rows, len(items)) if drops_rows else num_rows
    reader = Reader(model.backbone, size, column_step) if cached else UncachedReader(model.backbone, size)
    return made_of(reader, model, items, size, drops_rows=drops_rows, **options)


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


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rollout_does_not_depend_on_its_batch(spec: Any, temperature: float) -> None:
    """Alone or among others, in any place, one, two or three at a time while the others wait for a row."""
    model = grounded_llm(spec)
    together = run(model, temperature=temperature)
    assert_same(run(model, [2], temperature=temperature), [together[2]])
    assert_same(run(model, [3, 0], temperature=temperature), [together[3], together[0]])
    many = [0, 1, 2, 3, 3, 1, 0, 2, 1, 1]
    for num_rows in (1, 2, 3, 7, 10):
        assert_same(run(model, many, num_rows=num_rows, temperature=temperature), [together[row] for row in many])


@pytest.mark.parametrize(("num_rows", "column_step"), [(3, 1), (3, 16), (20, 64)])
def test_fixed_shapes_change_nothing(num_rows: int, column_step: int) -> None:
    """Rows that nothing waits for stay, idle; columns are used by the dozen."""
    model, many = grounded_llm(), [0, 1, 2, 3, 3, 1, 0]
    fixed = run(model, many, num_rows=num_rows, drops_rows=False, column_step=column_step)
    assert_same(fixed, run(model, many))


def test_free_rows_go_to_what_waits() -> None:
    """Ten rollouts of one step in four rows take three steps of the batch, never of more or fewer rows than needed."""
    model, sizes = grounded_llm(), []

    class Counting(Reader):
        def extend(self, vectors: Tensor) -> Tensor:
            sizes.append(len(vectors))
            return super().extend(vectors)

    items = [work_item("go", one_hot_starts([0])[0], 1, seed) for seed in range(10)]
    made_of(Counting(model.backbone, 4), model, items, 4)
    assert sizes == [4, 4, 4, 4, 2, 2]


def test_what_a_plan_wants_after_a_piece_comes_next() -> None:
    """Three links of one chain, before what else waits, each from its own start."""
    model, asked = grounded_llm(), []

    class Noting(Pieces):
        def add(self, piece: Generated) -> None:
            asked.append((self is chain, int(piece.observations[0].argmax())))
            super().add(piece)

    chain = Noting(*(work_item("walk", start, 2, 5) for start in one_hot_starts([1, 2, 3])))
    other = Noting(work_item("go", one_hot_starts([0])[0], 4, 6))
    Generation(Reader(model.backbone, 1), model.codec, never).carry_out([chain, other], 1)
    assert asked == [(True, 1), (True, 2), (True, 3), (False, 0)]


def test_what_is_not_finite_spoils_nothing_but_itself() -> None:
    """Rows are used again after a rollout that ran out of numbers, and columns that it wrote are not read."""
    model, many = grounded_llm(), [0, 1, 2, 3]
    starts = one_hot_starts([0, 1, 2, 3])
    spoiled = [work_item("go", np.full(5, np.nan, dtype=np.float32), 12, seed) for seed in range(2)]
    sound = [work_item(INSTRUCTIONS[row], starts[row], LIMITS[row], 11 + row) for row in many]
    made = made_of(Reader(model.backbone, 2), model, [*spoiled, *sound], 2)
    assert all(np.isnan(entry.observations).any() for entry in made[:2])
    assert_same(made[2:], run(model, many))


def test_each_prompt_is_read_once() -> None:
    """However many rollouts share it, and however many rows there are."""
    model, read = grounded_llm(), []
    embed = model.backbone.embed_prompts
    model.backbone.embed_prompts = lambda prompts: (read.extend(prompts), embed(prompts))[1]  # type: ignore[method-assign]
    run(model, [0, 1, 2, 3] * 3, num_rows=2)
    assert len(read) == len(set(read)) == 4


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
        items = [work_item("go", one_hot_starts([0])[0], 8, seed) for seed in range(500)]
        made = made_of(Reader(model.backbone, 100), model, items, 100, temperature=temperature)
        assert np.mean([entry.actions for entry in made]) == pytest.approx(share, abs=0.03)


def test_each_rollout_stops_at_its_own_limit() -> None:
    """Limits 10, 3, 7 and 5, one more observation than actions."""
    made = run(grounded_llm())
    assert [len(entry.actions) for entry in made] == [10, 3, 7, 5]
    assert [len(entry.observations) for entry in made] == [11, 4, 8, 6]
    assert {entry.stopped_by for entry in made} == {"limit"}


def test_a_rollout_stops_when_its_goal_is_met() -> None:
    """Rollout 2 meets its goal at its second step; the others go on to their limits."""
    steps: Counter[int] = Counter()

    def is_met(goals: Sequence[Any], *step: NDArray[Any]) -> NDArray[np.bool_]:
        steps.update(goal.cell for goal in goals)
        return np.array([goal.cell == 2 and steps[2] == 2 for goal in goals])

    made = run(grounded_llm(), is_met=is_met)
    assert [len(entry.actions) for entry in made] == [10, 3, 2, 5]
    assert [entry.stopped_by for entry in made] == ["limit", "limit", "goal", "limit"]
    assert steps == {0: 10, 1: 3, 2: 2, 3: 5}  # nobody asks about a rollout that has stopped


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

    def is_met(
        goals: Sequence[Goal], before: NDArray[Any], action: NDArray[Any], after: NDArray[Any]
    ) -> NDArray[np.bool_]:
        seen.append((before.copy(), after.copy()))
        return np.zeros(len(goals), dtype=np.bool_)

    made = run(grounded_llm(), [0], is_met=is_met)
    np.testing.assert_array_equal(np.stack([before[0] for before, _ in seen]), made[0].observations[:-1])
    np.testing.assert_array_equal(np.stack([after[0] for _, after in seen]), made[0].observations[1:])


def test_continuous_actions_stay_in_bounds() -> None:
    """However hot, actions lie in [-1, 1] and are not all at the bounds' one side."""
    actions = np.concatenate([made.actions for made in run(grounded_llm(CONTINUOUS), temperature=5.0)])
    assert actions.shape[1] == 2
    assert (np.abs(actions) <= 1).all()
    assert {-1.0, 1.0} <= set(actions.flatten().tolist())


def engine_of(model: GroundedLLM, domain: ChainDomain, **settings: Any) -> RolloutEngine:
    """The model, set up to imagine."""
    return RolloutEngine(model.backbone, model.codec, domain, ImaginationSettings(**settings))


def test_imagined_rollouts_are_labelled_by_the_domain() -> None:
    """They are imaginary, well-formed, carry their seed, and end where the domain says that the goal is met."""
    domain, model = ChainDomain(), grounded_llm()
    goals = [InstructedGoal(CellGoal(cell), f"go to cell {cell}", "easy") for cell in range(5)]
    items = [WorkItem(goal, one_hot_starts([2])[0], goal.goal.max_steps, seed) for seed, goal in enumerate(goals * 4)]
    engine = engine_of(model, domain, temperature=1.0, batch_size=6)
    rollouts = engine.imagine(items)
    assert len(rollouts) == 20
    for rollout, item in zip(rollouts, items, strict=True):
        assert rollout.source is Source.IMAGINARY
        assert rollout.goal == item.instructed.goal.to_json()
        assert rollout.provenance["seed"] == item.seed
        assert validate_rollout(rollout, domain.spec) == []
        met = item.instructed.goal.success(rollout.observations[1:])
        assert rollout.is_success == met[-1] == (rollout.provenance["stopped_by"] == "goal")
        assert not met[:-1].any()
    assert 0 < sum(rollout.is_success for rollout in rollouts) < 20


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("temperature", -0.1, {}),
        ("end_threshold", 0.0, {}),
        ("end_threshold", 1.1, {}),
        ("end_threshold", 1.0, {"goal_test": "end_head"}),
        ("goal_test", "nobody", {}),
        ("batch_size", 0, {}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any, others: dict[str, Any]) -> None:
    """The message names the setting and its value; without the rule, a threshold of 1 would let nothing end."""
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        ImaginationSettings(**{name: value}, **others)


def test_the_model_alone_may_stop_its_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the rule before a rollout is done, nor is one cut by it; by the rule, the same rollouts stop."""
    model, domain, starts = grounded_llm(), ChainDomain(), one_hot_starts([2])
    items = [WorkItem(InstructedGoal(CellGoal(seed % 5), "go", "easy"), starts[0], 6, seed) for seed in range(20)]
    by_rule = engine_of(model, domain, temperature=1.0).imagine(items)
    by_model = engine_of(model, domain, temperature=1.0, goal_test="end_head", end_threshold=0.9999)
    label, asked = domain.label_rollout, []
    monkeypatch.setattr(domain, "label_rollout", lambda *parts: asked.append(parts) or label(*parts))
    monkeypatch.setattr(rollout_engine, "success_of_each", None)
    alone = by_model.imagine(items)
    for one, other in zip(by_rule, alone, strict=True):
        assert other.provenance["stopped_by"] in ("end", "limit")
        np.testing.assert_array_equal(one.actions, other.actions[: len(one)])
    assert {rollout.provenance["stopped_by"] for rollout in by_rule} == {"goal", "limit"}
    assert [len(parts[2]) for parts in asked] == [len(made) for made in alone]
    assert any(len(made) > len(one) for one, made in zip(by_rule, alone, strict=True) if one.is_success)  # gone on


def test_what_was_imagined_before_leaves_no_trace() -> None:
    """Nor prompts that were read in other company: a restarted run is equal to the last bit."""
    model, domain, starts, calls = grounded_llm(), ChainDomain(), one_hot_starts([2, 0]), []
    embed = model.backbone.embed_prompts
    model.backbone.embed_prompts = lambda prompts: (calls.append(list(prompts)), embed(prompts))[1]  # type: ignore[method-assign]
    goals = domain.instructed_goals("train")
    first, second = (
        [WorkItem(goal, start, 5, 0) for start in starts for goal in some] for some in (goals[:3], goals[1:])
    )
    engine, fresh = (engine_of(model, domain, end_threshold=0.5, batch_size=3) for _ in range(2))
    engine.imagine(first)
    calls.clear()
    for one, other in zip(engine.imagine(second), fresh.imagine(second), strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
    assert len(calls) > 1
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]


def test_too_little_memory_says_what_to_change() -> None:
    """How many rollouts were imagined at a time, and the setting that decides it."""
    model, domain = grounded_llm(), ChainDomain()
    engine = engine_of(model, domain, batch_size=3)

    def without_memory(observation: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    model.codec.encode_observation = without_memory  # type: ignore[method-assign]
    goal = domain.instructed_goals("train")[0]
    items = [WorkItem(goal, one_hot_starts([2])[0], 5, seed) for seed in range(7)]
    with pytest.raises(KalmError, match=r"with 3 rollouts.*tried to allocate 20 GiB.*imagination.batch_size lower"):
        engine.imagine(items)


def imagined(model: GroundedLLM, is_compiled: bool, num_items: int) -> list[Rollout]:
    """Two calls of one engine, for goals of different lengths."""
    domain, starts = ChainDomain(), one_hot_starts([2, 0, 4])
    goals = [goal for split in ("easy", "train") for goal in domain.instructed_goals(split)]
    items = [WorkItem(goals[i % len(goals)], starts[i % 3], 3 + i % 9, i) for i in range(num_items)]
    engine = engine_of(model, domain, temperature=1.0, batch_size=4, compile=is_compiled)
    return [*engine.imagine(items[: num_items // 2]), *engine.imagine(items[num_items // 2 :])]


def assert_same_rollouts(left: Sequence[Rollout], right: Sequence[Rollout]) -> None:
    """Equal actions, equal ends; observations equal but for rounding."""
    for one, other in zip(left, right, strict=True):
        assert one.provenance == other.provenance
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_allclose(one.observations, other.observations, atol=1e-4)


def test_steps_are_one_graph_of_fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as a whole, without a fallback to Python, and at most once for each number of columns in use."""
    model, num_compiled = grounded_llm(), []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        num_compiled.append(graph)
        return graph

    real_compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda step, **_: real_compile(step, backend=count, fullgraph=True, dynamic=False)
    )
    compiled = imagined(model, True, 12)
    assert len(num_compiled) == 1
    assert_same_rollouts(compiled, imagined(model, False, 12))


@pytest.mark.slow
def test_compiled_steps_make_the_same_rollouts() -> None:
    """By the compiler that is used, on a CPU."""
    model = grounded_llm()
    assert_same_rollouts(imagined(model, True, 12), imagined(model, False, 12))
