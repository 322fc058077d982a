"""Acting by a solver's solution: optimal where the data were, at random elsewhere, and run by the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kalm.__main__ import main
from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.envs.babyai.layout import code_of
from kalm.envs.simulation import Episode
from kalm.rl.planning.empirical_graph import UNKNOWN, RecordedParts
from kalm.rl.planning.solve_facts import read_statistics
from kalm.rl.planning.solvers import distances
from kalm.rl.tabular_policy import TabularPolicy
from kalm.store.reader import RolloutStore
from tests.rl.planning.room import GOALS, Room, label_by_rule, random_state, walks

DOMAIN = Room()
SPEC = DOMAIN.spec.with_goals(16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RolloutStore:
    """Random walks in one grid, labelled by the rule."""
    made = walks(tmp_path_factory.mktemp("recorded") / "store", num_rollouts=24, num_steps=150, num_grids=1)
    label_by_rule(made)
    return made


def policy(store: RolloutStore, **options: Any) -> TabularPolicy:
    """By shortest paths unless told otherwise."""
    return TabularPolicy(SPEC, str(store.path), "truth", **options)


def episodes(store: RolloutStore, goal: int, num_episodes: int) -> tuple[list[Episode], list[int]]:
    """Episodes from recorded states from which a goal can be reached, and the fewest steps to it from each."""
    (part,) = RecordedParts(store)
    states = part.observe(np.arange(part.graph.num_states))
    steps = distances(part.graph, GOALS[goal][0].success(states))
    starts = np.flatnonzero((steps != UNKNOWN) & (steps > 0))[:num_episodes]
    instructed = InstructedGoal(*GOALS[goal], goal_split="train")
    return [Episode(instructed, 10**9 + start, states[start]) for start in starts.tolist()], steps[starts].tolist()


@pytest.mark.parametrize("goal", range(5))
def test_from_recorded_states_it_takes_the_fewest_steps(store: RolloutStore, goal: int) -> None:
    """For every kind of goal."""
    wanted, steps = episodes(store, goal, 10)
    results = policy(store).run_episodes(DOMAIN, wanted)
    assert [result.num_steps for result in results] == steps
    assert all(result.is_success for result in results)


def test_elsewhere_it_acts_at_random(store: RolloutStore) -> None:
    """In another grid, or for a goal that is met nowhere: every action about equally often."""
    elsewhere = Episode(InstructedGoal(*GOALS[1], "train"), 10**9, random_state(np.random.default_rng(0), 1), 500)
    nowhere = Episode(InstructedGoal(*GOALS[5], "train"), 10**9, random_state(np.random.default_rng(0)), 500)
    for episode in (elsewhere, nowhere):
        (result,) = policy(store).run_episodes(DOMAIN, [episode])
        share = np.bincount(result.actions, minlength=7) / len(result.actions)
        assert (len(result.actions) < 100) or ((share > 0.08) & (share < 0.22)).all()


def test_what_never_changed_anything_can_be_left_out(store: RolloutStore) -> None:
    """By what was in front and in the hand, so in states that were never seen too: ``done`` never does anything."""
    nowhere = Episode(InstructedGoal(*GOALS[5], "train"), 10**9, random_state(np.random.default_rng(0)), 200)
    (result,) = policy(store, at_random="changing").run_episodes(DOMAIN, [nowhere])
    changed = (result.observations[1:] != result.observations[:-1]).any(axis=(1, 2, 3))
    assert changed.mean() > 0.95
    assert 6 not in result.actions
    (other,) = policy(store).run_episodes(DOMAIN, [nowhere])
    assert (other.observations[1:] != other.observations[:-1]).any(axis=(1, 2, 3)).mean() < 0.8


def test_it_knows_no_more_than_the_first_pairs(store: RolloutStore) -> None:
    """Of state and action: with 40 of them it needs longer in the states that a goal can be reached from with all."""
    wanted, steps = episodes(store, 0, 10)
    few = policy(store, max_pairs=40).run_episodes(DOMAIN, wanted)
    assert sum(result.num_steps for result in few) > sum(steps)
    pairs = {
        (state, action)
        for part in RecordedParts(store, max_pairs=40)
        for state, action in np.argwhere(part.graph.successor != UNKNOWN).tolist()
    }
    assert len(pairs) == 40
    with pytest.raises(DataError, match="max_pairs is 1000000;.* distinct pairs"):
        policy(store, max_pairs=1_000_000).run_episodes(DOMAIN, wanted)


class CornerBlind(Room):
    """The room for whom it never matters what is in the corner."""

    def abstracted(self, states: Any, goal: Any) -> Any:
        """All the rest."""
        kept = states.copy()
        kept[..., 0, 0, 0] = 0
        return kept


def test_what_an_abstraction_takes_for_equal_shares_its_experience(store: RolloutStore) -> None:
    """With something in the corner that the data never had there it acts at random, with the abstraction as ever."""
    wanted, steps = episodes(store, 1, 8)
    changed = []
    for episode in wanted:
        state = np.array(episode.start)
        state[0, 0, 0] = code_of("box", "grey")  # in place of a wall
        changed.append(replace(episode, start=state))
    with_it = policy(store, abstraction=True).run_episodes(CornerBlind(), changed)
    assert [result.num_steps for result in with_it] == steps
    without = policy(store).run_episodes(DOMAIN, changed)
    assert sum(result.num_steps for result in without) > 2 * sum(steps)


def test_a_world_without_an_abstraction_says_so(store: RolloutStore) -> None:
    """By the name of what it would have to define."""
    wanted, _ = episodes(store, 1, 1)
    with pytest.raises(DataError, match="Domain.abstracted"):
        policy(store, abstraction=True).run_episodes(DOMAIN, wanted)


def test_luck_is_an_episodes_own(store: RolloutStore) -> None:
    """However many run side by side."""
    wanted, _ = episodes(store, 3, 7)
    together = policy(store).run_episodes(DOMAIN, wanted)
    alone = [policy(store, num_evaluation_envs=1).run_episodes(DOMAIN, [one])[0] for one in wanted]
    assert all(np.array_equal(one.actions, other.actions) for one, other in zip(together, alone, strict=True))


def test_the_command_line_solves_and_tests(
    store: RolloutStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``solve`` by its YAML, then ``test`` of the policy without a checkpoint: results an episode."""
    room = {"class_path": "tests.rl.planning.room.Room"}
    solving = {
        "root": str(tmp_path),
        "experiment": "room/solve/learned",
        "domain": room,
        "store": str(store.path),
        "label": "truth",
        "solver": {"class_path": "kalm.rl.planning.solvers.TabularQLearning", "init_args": {"tolerance": 1e-5}},
        "judge": {"class_path": "kalm.judging.judge.DomainRule", "init_args": {"domain": room}},
        "is_completed": True,
        "show_progress": False,
    }
    (tmp_path / "solve.yaml").write_text(yaml.safe_dump(solving), encoding="utf-8")
    assert main(["solve", "--config", str(tmp_path / "solve.yaml"), "--num_plans", "3"]) == 0
    said = read_statistics(tmp_path / "room" / "solve" / "learned" / "seed=0")
    assert said["solver"]["tolerance"] == 1e-5
    assert (said["num_plans"], said["is_completed"]) == (3, True)
    assert "upper bound" in capsys.readouterr().out
    testing = {
        "root": str(tmp_path),
        "experiment": "room/tabular/shortest",
        "ckpt_path": None,
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "kalm.callbacks.success_rate.SuccessRate"}],
        },
        "model": {
            "class_path": "kalm.rl.tabular_policy.TabularPolicy",
            "init_args": {"store": str(store.path), "label": "truth"},
        },
        "data": {
            "class_path": "kalm.data.policy_data.PolicyData",
            "init_args": {
                "domain": room,
                "encoder": {"class_path": "tests.word_encoder.WordEncoder"},
                "real": {"path": str(store.path)},
                "evaluation": {"num_test_episodes": 6},
            },
        },
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(testing), encoding="utf-8")
    assert main(["test", "--config", str(tmp_path / "test.yaml")]) == 0
    lines = (tmp_path / "room" / "tabular" / "shortest" / "seed=0" / "results.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 6
    assert all(json.loads(line)["goal_split"] == "train" for line in lines)
