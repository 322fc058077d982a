"""Stores of plans: right by the simulator, which made no step of them; the same however often they were interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kalm.core.errors import DataError, KalmError
from kalm.core.names import Source
from kalm.envs.babyai.simulator import next_states
from kalm.judging.judge import DomainRule
from kalm.rl.planning import solve
from kalm.rl.planning.planner import PlanSettings
from kalm.rl.planning.solve import solve_store
from kalm.rl.planning.solve_facts import read_statistics, solver_facts
from kalm.rl.planning.solvers import ShortestPath, TabularQLearning
from kalm.store.reader import RolloutStore
from tests.rl.planning.room import GOALS, Room, label_by_rule, tiles, walks
from tests.store.test_store import digests

DOMAIN = Room()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RolloutStore:
    """Random walks in two grids, labelled by the rule."""
    made = walks(tmp_path_factory.mktemp("recorded") / "store", num_rollouts=24, num_steps=100)
    label_by_rule(made)
    return made


def test_plans_reach_their_goals_in_the_simulator(store: RolloutStore, tmp_path: Path) -> None:
    """Each step is what the simulator does, the last one alone meets the goal, and best actions lead nearer."""
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, PlanSettings(num_plans=5))
    assert {sentence for _, sentence in GOALS[:3]} <= {row.instruction for row in plans.instructions}
    assert "pick up a box" not in {row.instruction for row in plans.instructions}
    for index in range(plans.num_rollouts):
        plan = plans.rollout(index)
        goal = DOMAIN.goal_from_json(plan.goal)
        assert np.array_equal(next_states(plan.observations[:-1], plan.actions), plan.observations[1:])
        assert goal.success(plan.observations).tolist() == [False] * len(plan) + [True]
        assert (plan.source, plan.is_success, plan.goal_split) == (Source.IMAGINARY, True, "train")
        assert plan.rewards.tolist() == [0] * (len(plan) - 1) + [1]
        assert plan.optimal_actions is not None
        assert plan.optimal_actions[np.arange(len(plan)), plan.actions].all()
        assert plan.provenance["grid"] in ("000000", "000001")
        assert (plan.provenance["is_oracle"], plan.provenance["solver"]) == (True, "ShortestPath")


def test_starts_differ_and_figures_tell_what_was_solved(store: RolloutStore, tmp_path: Path) -> None:
    """At most as many plans as were asked for, from different states; figures by kind of goal beside the store."""
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, PlanSettings(num_plans=5))
    starts: dict[tuple[str, str], list[bytes]] = {}
    for index in range(plans.num_rollouts):
        plan = plans.rollout(index)
        starts.setdefault((plan.instruction, plan.provenance["grid"]), []).append(plan.observations[0].tobytes())
    assert all(len(set(found)) == len(found) <= 5 for found in starts.values())
    said = read_statistics(tmp_path)
    kinds = said["kinds"]
    assert said["is_oracle"] is True
    assert sum(kind["num_plans"] for kind in kinds.values()) == plans.num_rollouts
    assert kinds["pick_up"]["num_pairs"] == 4  # two goals, two grids
    assert kinds["pick_up"]["num_pairs_met"] == 2
    assert 0 < kinds["go_to"]["solvable_share"] <= 1
    lengths = plans.rollouts["length"].numpy()
    steps = sum(kind["mean_length"] * kind["num_plans"] for kind in kinds.values())
    assert steps == pytest.approx(lengths.sum())


def test_what_an_earlier_solving_left_is_not_counted(store: RolloutStore, tmp_path: Path) -> None:
    """Figures of a store that was deleted, which had a part more."""
    solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, PlanSettings(num_plans=2))
    said = read_statistics(tmp_path)
    (earlier,) = (tmp_path / "statistics").glob("000001-*.json")
    shutil.copy(earlier, earlier.with_name("000002-000000.json"))
    shutil.rmtree(tmp_path / "store")
    solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, PlanSettings(num_plans=2))
    assert read_statistics(tmp_path) == said


def test_an_interrupted_solving_goes_on_and_ends_the_same(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second grid: what is done stays done, and every file is what it would have been."""
    monkeypatch.setattr(solve, "_GOALS_PER_SHARD", 2)
    whole = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "whole", num_threads=1)
    part_of, calls = solve._Work.part, []

    def killed(work: solve._Work, number: int) -> object:
        calls.append(number)
        if number == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return part_of(work, number)

    monkeypatch.setattr(solve._Work, "part", killed)
    with pytest.raises(KeyboardInterrupt):
        solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "again")
    resumed = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "again")
    assert calls == [0, 1, 1]
    assert digests(resumed.path) == digests(whole.path)
    assert read_statistics(tmp_path / "again") == read_statistics(tmp_path / "whole")
    opened = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "again")
    assert opened.manifest_sha256 == resumed.manifest_sha256
    with pytest.raises(DataError, match="name another folder"):
        solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "again", PlanSettings(seed=1))


def test_q_learning_makes_the_same_plans(store: RolloutStore, tmp_path: Path) -> None:
    """Near goals: the paper's solver and the search find the same best actions, and luck is that of the seed."""
    paths = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "paths")
    learned = solve_store(DOMAIN, store, "truth", TabularQLearning(), tmp_path / "learned")
    for name in ("transitions/action.memmap", "transitions/optimal_actions.memmap", "states/rows.memmap"):
        assert (paths.path / name).read_bytes() == (learned.path / name).read_bytes()


def test_a_completed_graph_solves_more_and_is_right(store: RolloutStore, tmp_path: Path) -> None:
    """With a judge for states that nobody recorded; all of its plans hold in the simulator, too."""
    settings = PlanSettings(num_plans=20, is_completed=True)
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "more", settings, DomainRule(DOMAIN))
    recorded = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "less", PlanSettings(num_plans=20))
    for index in range(plans.num_rollouts):
        plan = plans.rollout(index)
        assert np.array_equal(next_states(plan.observations[:-1], plan.actions), plan.observations[1:])
        assert DOMAIN.goal_from_json(plan.goal).success(plan.observations).tolist() == [False] * len(plan) + [True]
    more, less = (read_statistics(tmp_path / name)["kinds"] for name in ("more", "less"))
    assert all(more[task]["solvable_share"] >= less[task]["solvable_share"] for task in less)
    assert sum(kind["solvable_share"] for kind in more.values()) > sum(kind["solvable_share"] for kind in less.values())
    assert plans.num_states > recorded.num_states
    assert plans.manifest["made_by"]["judge_of_predicted_states"]["is_oracle"] is True


def test_one_thing_is_put_beside_the_other_though_nobody_ever_did(tmp_path: Path) -> None:
    """Things were carried and put down, never beside each other: it is planned from all poses of where walks begin."""
    store = walks(tmp_path / "recorded", num_rollouts=12, num_steps=60)
    label_by_rule(store)
    states = store.observations(torch.arange(store.num_states))
    goal, sentence = GOALS[3]
    assert not goal.success(states).any()
    settings = PlanSettings(num_plans=20, is_completed=True, start_share=1.0)
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path / "plans", settings, DomainRule(DOMAIN))
    figures = read_statistics(tmp_path / "plans")["kinds"]["put_next"]
    assert (figures["num_pairs"], figures["num_pairs_met"], figures["solvable_share_at_start"]) == (2, 2, 1.0)
    made = [plan for index in range(plans.num_rollouts) if (plan := plans.rollout(index)).instruction == sentence]
    assert len(made) == 2 * 20
    for plan in made:
        assert np.array_equal(next_states(plan.observations[:-1], plan.actions), plan.observations[1:])
        assert goal.success(plan.observations).tolist() == [False] * len(plan) + [True]


@pytest.mark.parametrize(("share", "least"), [(1.0, 8), (0.5, 4), (0.0, 0)])
def test_plans_start_where_an_agent_may_set_out(store: RolloutStore, tmp_path: Path, share: float, least: int) -> None:
    """The share of them that was asked for at least, where so many such starts can be solved."""
    settings = PlanSettings(num_plans=8, is_completed=True, start_share=share)
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, settings, DomainRule(DOMAIN))
    begin = {number: tiles(number) for number in range(2)}
    num_at_start: dict[tuple[str, str], int] = {}
    for index in range(plans.num_rollouts):
        plan = plans.rollout(index)
        pair, first = (plan.instruction, plan.provenance["grid"]), plan.observations[0]
        is_begin = np.array_equal(first[..., 0], begin[int(plan.provenance["grid"])]) and first[..., 1].max() <= 4
        num_at_start[pair] = num_at_start.get(pair, 0) + int(is_begin)
    assert min(num_at_start.values()) >= least
    if share == 0.0:
        assert sum(num_at_start.values()) < 4 * len(num_at_start)


def test_without_a_judge_only_recorded_states_are_goals(store: RolloutStore, tmp_path: Path) -> None:
    """A predicted state has no label: the end of every plan was recorded."""
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, PlanSettings(is_completed=True))
    seen = {state.tobytes() for state in store.observations(torch.arange(store.num_states))}
    ends = [plans.rollout(index).observations[-1].tobytes() for index in range(plans.num_rollouts)]
    assert set(ends) <= seen


def test_longer_plans_are_left_out(store: RolloutStore, tmp_path: Path) -> None:
    """Three steps are enough for some."""
    plans = solve_store(DOMAIN, store, "truth", ShortestPath(), tmp_path, PlanSettings(max_length=3))
    assert 1 <= plans.rollouts["length"].max() <= 3


def test_what_cannot_be_solved_is_refused(store: RolloutStore, tmp_path: Path) -> None:
    """A label of rollouts, a completion of a world without locality, numbers out of range."""
    with pytest.raises(DataError, match="is about rollouts"):
        solve_store(DOMAIN, store, "domain_rule", ShortestPath(), tmp_path)

    class Elsewhere(Room):
        locality = None  # type: ignore[assignment]

    with pytest.raises(DataError, match=r"does not say what its actions depend on \(Domain.locality\)"):
        solve_store(Elsewhere(), store, "truth", ShortestPath(), tmp_path, PlanSettings(is_completed=True))
    with pytest.raises(KalmError, match="num_plans is 0"):
        PlanSettings(num_plans=0)
    with pytest.raises(KalmError, match="start_share is 1.5"):
        PlanSettings(start_share=1.5)
    assert json.dumps(solver_facts(TabularQLearning()))
