"""Hindsight: which parts of recorded walks become rollouts for a goal, by hand; and stores of them that learners read.

The walks of the hand-worked cases go through states 0 to 5 of one part by an action that says where to:

    walk 0: 0 -> 1 -> 2 -> 1 -> 3 -> 4 -> 3        walk 1: 3 -> 5 -> 3        walk 2: 0 -> 5

State 3 meets the goal. Walk 0 meets it after its 4th step, leaves it, and meets it again after its 6th. Walk 1 begins
in it, leaves it and comes back. Walk 2 never meets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kalm.core.errors import KalmError
from kalm.core.names import Source
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import RealRollouts
from kalm.rl.planning.empirical_graph import Part, Walks, graph_of
from kalm.rl.planning.hindsight import Hindsight, segments, without_loops
from kalm.rl.planning.planner import PlanSettings, Ways
from kalm.rl.planning.solve import solve_store
from kalm.rl.planning.solve_facts import read_statistics
from kalm.store.reader import RolloutStore
from tests.rl.planning.room import Room, label_by_rule, walks
from tests.store.test_store import digests
from tests.word_encoder import WordEncoder

PATHS = ([0, 1, 2, 1, 3, 4, 3], [3, 5, 3], [0, 5])
NUM_STATES = 6
IS_GOAL = np.arange(NUM_STATES) == 3


def part(paths: Any = PATHS) -> Part:
    """The walks along some paths; an action has the number of the state that it leads to."""
    state = np.concatenate([path[:-1] for path in paths])
    next_state = np.concatenate([path[1:] for path in paths])
    first = np.cumsum([0, *(len(path) - 1 for path in paths)])
    graph = graph_of(state, next_state, next_state, NUM_STATES, NUM_STATES)
    recorded = Walks(first, state, next_state, next_state)
    everything = np.arange(NUM_STATES)
    return Part("one", graph, everything, everything == 0, lambda chosen: chosen, recorded)


def found(hindsight: Hindsight, paths: Any = PATHS, num_ways: int = 10, max_length: int = 10, seed: int = 0) -> Ways:
    """What is kept of walks along some paths for the goal in state 3."""
    settings = PlanSettings(num_plans=num_ways, max_length=max_length)
    return hindsight.plan(part(paths), IS_GOAL, settings, np.random.default_rng(seed))


def test_a_segment_ends_where_the_goal_is_met_and_begins_behind_where_it_was() -> None:
    """Steps 0 to 3 and 5 of walk 0 (0-1-2-1-3 and 4-3), and step 7, the second of walk 1 (5-3)."""
    begin, end = segments(part().walks, IS_GOAL)
    assert begin.tolist() == [0, 5, 7]
    assert end.tolist() == [4, 6, 8]
    ways = found(Hindsight())
    assert [way.tolist() for way in ways.states] == [[0, 1, 2, 1, 3], [4, 3], [5, 3]]
    assert [way.tolist() for way in ways.actions] == [[1, 2, 1, 3], [3], [3]]
    assert np.flatnonzero(ways.can_start).tolist() == [0, 1, 2, 4, 5]


def test_nothing_is_found_where_the_goal_was_never_met() -> None:
    """Walk 2 alone; and a walk that stays in the goal from its beginning on."""
    for path in ([0, 5], [3, 3]):
        ways = found(Hindsight(), [path])
        assert ways.states == []
        assert not ways.can_start.any()


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2, 1], [0, 3]),  # 1 -> 2 -> 1 is cut out
        ([0, 0, 0], [2]),  # standing still is a loop
        ([0, 1, 2, 0, 2, 4, 2], [3, 6]),  # all is forgotten on coming back to 0, and 2 -> 4 -> 2 later on
    ],
)
def test_loops_are_cut_out(states: list[int], kept: list[int]) -> None:
    """Each state is left once, as when it was last left."""
    assert without_loops(np.array(states)).tolist() == kept


def test_filtered_ways_have_no_loops_and_the_shortest_detours() -> None:
    """0-1-2-1-3 becomes 0-1-3. From 0 it is two steps, so 0-1-3 makes no detour, and 0-2-4-5-3 one of two steps."""
    assert found(Hindsight(is_filtered=True)).states[0].tolist() == [0, 1, 3]
    paths = ([0, 2, 4, 5, 3], [0, 1, 3], [0, 2, 1, 3])
    for seed in range(5):
        best = found(Hindsight(is_filtered=True), paths, num_ways=2, seed=seed)
        assert [way.tolist() for way in best.states] == [[0, 1, 3], [0, 2, 1, 3]]
    seen = {tuple(found(Hindsight(), paths, num_ways=1, seed=seed).states[0]) for seed in range(20)}
    assert len(seen) == 3  # any is taken where nothing is filtered


def test_longer_ways_are_left_out() -> None:
    """Of 4, 1 and 1 steps."""
    assert [len(way) for way in found(Hindsight(), max_length=3).actions] == [1, 1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RolloutStore:
    """Random walks in two grids, labelled by the rule."""
    made = walks(tmp_path_factory.mktemp("recorded") / "store", num_rollouts=24, num_steps=100)
    label_by_rule(made)
    return made


@pytest.mark.parametrize("is_filtered", [False, True], ids=["all", "filtered"])
def test_a_store_of_hindsight(store: RolloutStore, tmp_path: Path, is_filtered: bool) -> None:
    """Recorded steps under a goal that the last one alone meets and is rewarded for; figures; the same again."""
    settings = PlanSettings(num_plans=5)
    made = solve_store(Room(), store, "truth", Hindsight(is_filtered), tmp_path / "one", settings)
    recorded = set()
    for number in range(store.num_rollouts):
        walk = store.rollout(number)
        steps = zip(walk.observations[:-1], walk.actions, walk.observations[1:], strict=True)
        recorded |= {(one.tobytes(), int(action), other.tobytes()) for one, action, other in steps}
    counts: dict[tuple[str, str], int] = {}
    for number in range(made.num_rollouts):
        rollout = made.rollout(number)
        goal = Room().goal_from_json(rollout.goal)
        assert goal.success(rollout.observations).tolist() == [False] * len(rollout) + [True]
        assert rollout.rewards.tolist() == [0] * (len(rollout) - 1) + [1]
        assert rollout.terminated.tolist() == [False] * (len(rollout) - 1) + [True]
        assert (rollout.source, rollout.is_success, rollout.goal_split) == (Source.REAL, True, "train")
        states = [state.tobytes() for state in rollout.observations]
        assert set(zip(states[:-1], rollout.actions.tolist(), states[1:], strict=True)) <= recorded
        assert len(set(states)) == len(states) or not is_filtered
        assert rollout.optimal_actions is not None
        assert (rollout.optimal_actions.argmax(1) == rollout.actions).all()
        assert (rollout.optimal_actions.sum(1) == 1).all()
        pair = rollout.instruction, rollout.provenance["grid"]
        counts[pair] = counts.get(pair, 0) + 1
    assert 1 <= max(counts.values()) <= 5
    kinds = read_statistics(tmp_path / "one")["kinds"]
    assert sum(kind["num_plans"] for kind in kinds.values()) == made.num_rollouts
    assert 0 < kinds["go_to"]["solvable_share"] <= 1
    again = solve_store(Room(), store, "truth", Hindsight(is_filtered), tmp_path / "two", settings, num_threads=1)
    assert digests(again.path) == digests(made.path)


def test_learners_read_it_like_any_store(store: RolloutStore, tmp_path: Path) -> None:
    """Minibatches of grids with goals, and windows with the return that is still to come: 1 at every step."""
    made = solve_store(Room(), store, "truth", Hindsight(), tmp_path)
    data = PolicyData(Room(), WordEncoder(), RealRollouts(str(made.path)), batch_size=8, updates_per_step=2)
    batch = data.batch(0)
    assert batch["observation"].shape == (2, 8, 7, 7, 2)
    assert batch["observation"].dtype == torch.uint8
    assert (batch["instruction_id"] >= 0).all()
    assert torch.equal(batch["next", "reward"] == 1, batch["next", "terminated"])
    windows = PolicyData(Room(), WordEncoder(), RealRollouts(str(made.path)), batch_size=8, sequence_length=4)
    assert (windows.batch(0)["return_to_go"] == 1).all()


def test_hindsight_completes_nothing(store: RolloutStore, tmp_path: Path) -> None:
    """It is of what was recorded."""
    with pytest.raises(KalmError, match="is_completed is True; it must be false with hindsight"):
        solve_store(Room(), store, "truth", Hindsight(), tmp_path, PlanSettings(is_completed=True))
