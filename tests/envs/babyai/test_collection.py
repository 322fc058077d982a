"""Collections of BabyAI: no goals, every grid alike, the same by any number of processes and after an interruption."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from kalm.core.names import Source
from kalm.envs.babyai import BabyAI, Open, PickUp, Thing
from kalm.envs.babyai.layout import EMPTY, TILES, agent_of
from kalm.envs.babyai.simulator import next_states
from kalm.store.collect import collect_store, success_by_task

SMALL = {"room_size": 5, "num_rows": 2, "num_cols": 2, "num_training_grids": 3, "num_test_grids": 1}


def test_rollouts_tell_no_goal_and_go_through_the_grids_in_turn() -> None:
    """Nine in three grids: each begins in its grid with empty hands, and every step is what the simulator does."""
    world = BabyAI(**SMALL, num_processes=1)
    grids = world.places("train").grids
    for number, rollout in enumerate(world.collect(9, seed=4)):
        assert (rollout.goal, rollout.instruction, rollout.goal_split) == ({}, "", "")
        assert rollout.source == Source.REAL
        assert rollout.provenance == {"grid": number % 3}
        assert np.array_equal(rollout.observations[0, ..., TILES], grids[number % 3].tiles)
        assert agent_of(rollout.observations[0])[3] == EMPTY
        assert np.array_equal(next_states(rollout.observations[:-1], rollout.actions), rollout.observations[1:])
        assert not rollout.terminated.any()
        assert 0 < len(rollout) <= 500


def test_processes_make_no_difference() -> None:
    """Ninety rollouts by two processes and by one; the later ones alone too."""
    one, two = (BabyAI(**SMALL, random_share=0.8, num_processes=number) for number in (1, 2))
    expected = list(one.collect(90, seed=1))
    for rollouts, same in ((two.collect(90, seed=1), expected), (two.collect(90, seed=1, first=45), expected[45:])):
        for rollout, other in zip(rollouts, same, strict=True):
            assert np.array_equal(rollout.actions, other.actions)
            assert np.array_equal(rollout.observations, other.observations)


def test_a_reader_that_stops_early_leaves_no_process_behind() -> None:
    """Three of ninety rollouts."""
    rollouts = BabyAI(**SMALL, random_share=1.0, num_processes=2).collect(90, seed=1)
    assert len(list(islice(rollouts, 3))) == 3
    rollouts.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("skill", ["a", "b", "c"])
def test_the_bot_does_in_a_skill_grid_what_it_is_for(skill: str) -> None:
    """Each of six rollouts ends as the grid's own goal is met, and the door of A is never closed."""
    world = BabyAI(layout=f"skill_{skill}", num_training_grids=3, num_test_grids=1, num_processes=1)
    goal = Open(Thing("door")) if skill == "b" else PickUp(Thing("box"))
    for rollout in world.collect(6, seed=0):
        met = goal.success(rollout.observations)
        assert met[-1]
        assert not met[:-1].any()
        if skill == "a":
            assert Open(Thing("door")).success(rollout.observations).all()


def test_random_rollouts_are_the_share_that_was_asked_for() -> None:
    """They are known by their length and by actions that the bot has not: done, and 60 % that change nothing."""
    world = BabyAI(**SMALL, random_share=0.5, random_steps=37, num_processes=1)
    lengths = [len(rollout) for rollout in world.collect(60, seed=2)]
    assert 15 <= lengths.count(37) <= 45
    all_random = BabyAI(**SMALL, random_share=1.0, num_processes=1)
    actions = np.concatenate([rollout.actions for rollout in all_random.collect(30, seed=2)])
    assert len(actions) == 30 * 60
    assert (np.bincount(actions, minlength=7) > 200).all()


def test_a_store_keeps_each_state_once_and_no_goal(tmp_path: Path) -> None:
    """And says from which grids it is."""
    world = BabyAI(**SMALL, num_processes=1)
    store = collect_store(world, tmp_path / "store", 30, 0, show_progress=False)
    assert store.num_rollouts == 30
    assert store.instructions == []
    assert success_by_task(world, store) == {}
    assert set(store.goal_splits) == {""}
    assert store.manifest["made_by"]["num_training_grids"] == 3
    assert store.num_states < len(store)
