"""Stores of grids, texts and of rollouts without a goal: states stand once, and come back as they went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from kalm.core import names
from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import (
    DiscreteAction,
    GridObservation,
    Spec,
    TextAction,
    TextObservation,
    VectorAction,
    spec_of_spaces,
)
from kalm.data.selection import StoreLine
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.rl.bc import BC
from kalm.rl.dynamics.dynamics_check import DynamicsCheck
from kalm.store.reader import RolloutStore
from kalm.store.writer import RolloutStoreWriter
from tests.data.rollouts import DOMAIN, broken, real_rollouts, write_store
from tests.store.test_store import digests, same

PLAIN = Spec(GridObservation((4, 4, 3)), DiscreteAction(7))
WITH_NUMBERS = Spec(GridObservation((4, 4, 3), num_numbers=2, is_wide=True), VectorAction((-1.0,), (1.0,)))
TEXT = Spec(TextObservation(), TextAction())
PAGES = ("search page", "résumé of a shoe \U0001f45f", "", "cart")


def rollout(observations: np.ndarray, actions: np.ndarray, **fields: Any) -> Rollout:
    """One that was made for nothing in particular and ran out of data."""
    num_steps = len(actions)
    nothing = {"goal": {}, "instruction": "", "goal_split": "", "source": Source.REAL, "is_success": False}
    return Rollout(
        **{
            **nothing,
            "rewards": np.zeros(num_steps, np.float32),
            "terminated": np.zeros(num_steps, np.bool_),
            **fields,
        },
        observations=observations,
        actions=actions,
        truncated=np.arange(num_steps) == num_steps - 1,
    )


def walks(spec: Spec, num_rollouts: int, seed: int = 0) -> list[Rollout]:
    """Random walks over few states."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(num_rollouts):
        states = rng.integers(4, size=6)
        actions: np.ndarray
        if isinstance(spec.observation, TextObservation):
            observations, actions = np.array(PAGES)[states], np.array(["click[buy]", "click[back]"])[states[1:] % 2]
        else:
            grids = np.arange(4)[:, None, None, None] * np.ones((4, 4, 4, 3), dtype=np.int64)
            observations = grids[states]
            if spec.observation.num_numbers:  # type: ignore[union-attr]
                together = np.zeros(6, dtype=spec.observation.dtype)  # type: ignore[union-attr]
                together["grid"], together["numbers"] = observations - 2, states[:, None] / 4
                observations = together
            actions = states[1:] if isinstance(spec.action, DiscreteAction) else states[1:, None] / 4
        made.append(rollout(observations, actions, provenance={"number": number}))
    return made


def stored(path: Path, spec: Spec, rollouts: list[Rollout], shard_size: int = 3) -> RolloutStore:
    """A finished store of a world without flags."""
    writer = RolloutStoreWriter(path, "elsewhere", spec, (), {}, command="walk")
    for start in range(0, len(rollouts), shard_size):
        writer.append(f"{start:03d}", rollouts[start : start + shard_size])
    return writer.finish()


@pytest.mark.parametrize("spec", [PLAIN, WITH_NUMBERS, TEXT], ids=["grid", "grid with numbers", "text"])
def test_rollouts_come_back_and_states_stand_once(tmp_path: Path, spec: Spec) -> None:
    """Ten rollouts over four states, however they are cut into shards: one file, four rows."""
    rollouts = walks(spec, 10)
    store = stored(tmp_path / "store", spec, rollouts)
    assert store.num_states == 4
    assert RolloutStore(tmp_path / "store", verify=True).spec == spec
    for index, expected in enumerate(rollouts):
        found = store.rollout(index)
        assert found.observations.dtype.kind == expected.observations.dtype.kind or spec is PLAIN
        assert found.actions.dtype.kind == expected.actions.dtype.kind
        assert same(found, broken(expected, actions=expected.actions.astype(found.actions.dtype)))
    other = stored(tmp_path / "other", spec, rollouts, shard_size=10)
    assert digests(tmp_path / "store") == digests(tmp_path / "other")
    assert store.fingerprint == other.fingerprint


@pytest.mark.parametrize("spec", [PLAIN, WITH_NUMBERS, TEXT], ids=["grid", "grid with numbers", "text"])
def test_a_shard_that_nothing_came_of_leaves_the_others_alone(tmp_path: Path, spec: Spec) -> None:
    """As when no goal of a shard can be solved: the store is that of its other shards."""
    store_writer = RolloutStoreWriter(tmp_path / "gap", "elsewhere", spec, (), {}, command="walk")
    for shard, some in (("0", walks(spec, 2)), ("1", []), ("2", walks(spec, 4)[2:])):
        store_writer.append(shard, some)
    assert store_writer.finish().num_states == 4
    stored(tmp_path / "whole", spec, walks(spec, 4))
    assert digests(tmp_path / "gap") == digests(tmp_path / "whole")


def test_read_looks_states_up(tmp_path: Path) -> None:
    """Grids and numbers of both sides of a transition, at rows of any shape."""
    rollouts = walks(WITH_NUMBERS, 10)
    store = stored(tmp_path / "store", WITH_NUMBERS, rollouts)
    rows = torch.tensor([[3, 7], [49, 3]])
    keys = (names.OBSERVATION, names.NUMBERS, names.NEXT_OBSERVATION, names.NEXT_NUMBERS, names.ACTION)
    grid, numbers, next_grid, next_numbers, action = store.read(keys, rows)
    assert {*keys, names.REWARD} < set(store.keys)
    assert all(len(column) == 2 for column in store.read(store.keys, rows))
    assert (grid.dtype, grid.shape) == (torch.int16, (2, 2, 4, 4, 3))
    assert (numbers.dtype, numbers.shape) == (torch.float32, (2, 2, 2))
    assert action.shape == (2, 2, 1)
    for place, row in enumerate(rows.flatten().tolist()):
        before, after = rollouts[row // 5].observations[row % 5 : row % 5 + 2]
        assert np.array_equal(grid.flatten(0, 1)[place], before["grid"])
        assert np.array_equal(next_grid.flatten(0, 1)[place], after["grid"])
        assert np.array_equal(numbers.flatten(0, 1)[place], before["numbers"])
        assert np.array_equal(next_numbers.flatten(0, 1)[place], after["numbers"])


def test_several_stores_in_one_line_look_their_own_states_up(tmp_path: Path) -> None:
    """Rows of both; a transition that was made for no goal says so, also beside stores that have instructions."""
    both = [walks(PLAIN, 3, seed) for seed in range(2)]
    line = StoreLine([stored(tmp_path / str(seed), PLAIN, both[seed]) for seed in range(2)])
    rows = torch.tensor([29, 0, 16])  # 15 transitions each
    grid, instruction_id, rollout_id = line.read([names.OBSERVATION, names.INSTRUCTION_ID, names.ROLLOUT_ID], rows)
    expected = [both[row // 15][row % 15 // 5].observations[row % 5] for row in rows.tolist()]
    assert np.array_equal(grid, expected)
    assert instruction_id.tolist() == [-1, -1, -1]
    assert rollout_id.tolist() == [5, 0, 3]


def test_texts_are_read_by_their_rows_and_are_no_tensors(tmp_path: Path) -> None:
    """``state`` says which; asking for a tensor of them, or for numbers that are not there, is refused."""
    rollouts = walks(TEXT, 4)
    store = stored(tmp_path / "store", TEXT, rollouts)
    states, actions = store.read([names.STATE, names.ACTION], torch.arange(5))
    assert store.observations(states).tolist() == rollouts[0].observations[:-1].tolist()
    assert store.action_texts(actions) == rollouts[0].actions.tolist()
    for key in (names.OBSERVATION, names.NEXT_NUMBERS, "smell"):
        with pytest.raises(DataError, match="have no"):
            store.read([key], torch.arange(5))


def test_vectors_are_read_as_they_are(tmp_path: Path) -> None:
    """Columns as they lie; a state is the next observation of a transition."""
    store = write_store(tmp_path / "store", real_rollouts(9))
    rows = torch.tensor([4, 0])
    for key in store.transitions.keys(True, True):
        assert torch.equal(store.read([key], rows)[0], store.transitions[key][rows])
    assert store.num_states == len(store)
    assert np.array_equal(store.observations(rows), store.transitions[names.NEXT_OBSERVATION][rows])


def test_rollouts_with_and_without_a_goal_share_a_store(tmp_path: Path) -> None:
    """The one without has no instruction and no split, and the rule says nothing about it."""
    with_goal = real_rollouts(3)
    aimless = broken(with_goal[1], goal={}, instruction="", goal_split="", is_success=False)
    store = write_store(tmp_path / "store", [with_goal[0], aimless, with_goal[2]], shard_size=2)
    assert store.goal_splits.tolist() == ["train", "", "train"]
    assert store.rollouts["instruction_id"][1] == -1
    assert store.labels("domain_rule").abstained.tolist() == [False, True, False]
    assert same(store.rollout(1), aimless)
    assert same(store.rollout(2), with_goal[2])
    with pytest.raises(DataError, match="goal: empty, but its instruction is 'go'"):
        write_store(tmp_path / "other", [broken(aimless, instruction="go")])


@pytest.mark.parametrize(
    ("spec", "fields", "problem"),
    [
        (
            PLAIN,
            {"observations": np.full((6, 4, 4, 3), 256)},
            "observations: 256 at step 0, column 0, 0, 0; allowed are",
        ),
        (PLAIN, {"observations": np.zeros((6, 4, 4, 3))}, "observations: dtype float64, expected an integer array"),
        (
            WITH_NUMBERS,
            {"observations": np.zeros((6, 4, 4, 3), int)},
            r"observations\['grid'\]: NoneType, expected an int",
        ),
        (TEXT, {"observations": np.zeros(6)}, "observations: dtype float64, expected a string array of shape \\(6,\\)"),
        (TEXT, {"actions": np.zeros(5, int)}, "actions: dtype int64, expected a string array"),
    ],
)
def test_what_is_of_another_kind_is_named(tmp_path: Path, spec: Spec, fields: dict[str, Any], problem: str) -> None:
    """Field, what was found, what is allowed."""
    with pytest.raises(DataError, match=problem):
        stored(tmp_path / "store", spec, [broken(walks(spec, 1)[0], **fields)])


def test_a_damaged_state_table_is_found(tmp_path: Path) -> None:
    """Its size is in the manifest, and where texts end is checked against their bytes, whatever the manifest says."""
    stored(tmp_path / "store", TEXT, walks(TEXT, 4))
    end, manifest = tmp_path / "store" / "states" / "end.memmap", tmp_path / "store" / "manifest.json"
    content, digest = bytearray(end.read_bytes()), file_sha256(end)
    content[-8] ^= 1
    end.write_bytes(content)
    with pytest.raises(DataError, match=r"states/end.memmap: its content changed"):
        RolloutStore(tmp_path / "store")
    manifest.write_text(manifest.read_text().replace(digest, file_sha256(end)))
    with pytest.raises(DataError, match="its texts end at byte"):
        RolloutStore(tmp_path / "store")
    end.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"states/end.memmap: 24 bytes, expected 32"):
        RolloutStore(tmp_path / "store")


def test_eight_hundred_thousand_transitions_of_a_large_grid_fit_into_400_megabytes(tmp_path: Path) -> None:
    """33 bytes a transition and 22 * 22 * 3 + 5 * 4 a state, of which there are 200,000: 321 MB.

    Measured on a small store of such grids: its files have exactly these sizes.
    """
    spec = Spec(GridObservation((22, 22, 3), num_numbers=5), DiscreteAction(7))
    rng = np.random.default_rng(0)
    states = np.zeros(10, dtype=spec.observation.dtype)  # type: ignore[union-attr]
    states["grid"] = rng.integers(11, size=states["grid"].shape)
    rollouts = [rollout(states[rng.integers(10, size=21)], rng.integers(7, size=20)) for _ in range(30)]
    store = stored(tmp_path / "store", spec, rollouts)
    state_bytes = 22 * 22 * 3 + 5 * 4
    assert store.manifest["bytes_per_transition"] == 33
    assert (tmp_path / "store" / "states" / "rows.memmap").stat().st_size == 10 * state_bytes
    columns = sum(path.stat().st_size for path in (tmp_path / "store" / "transitions").rglob("*.memmap"))
    assert columns == 33 * len(store) == 33 * 600
    assert 800_000 * 33 + 200_000 * state_bytes < 400e6


def test_a_policy_of_vectors_refuses_grids_and_texts() -> None:
    """At construction: that is when it asks how large an observation is; of grids, those without an agent."""
    makers = (BC, lambda spec: RolloutCodec(spec, [8], 8), lambda spec: DynamicsCheck(spec))
    for make in makers:
        with pytest.raises(
            DataError, match=r"observations are .*grid.*this reads (vectors|grids that one agent walks on)"
        ):
            make(PLAIN)
        with pytest.raises(DataError, match="kind text|actions are texts"):
            make(TEXT)
    with pytest.raises(DataError, match="actions are texts"):
        _ = TEXT.is_discrete


@pytest.mark.parametrize(
    ("observation", "action", "expected"),
    [
        (gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), gym.spaces.Discrete(7), PLAIN),
        (
            gym.spaces.Dict(
                grid=gym.spaces.Box(-2, 300, (4, 4, 3), np.int64), numbers=gym.spaces.Box(0.0, 1.0, (2,), np.float32)
            ),
            gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
            WITH_NUMBERS,
        ),
        (gym.spaces.Text(10), gym.spaces.Text(10), TEXT),
        (DOMAIN.observation_space, DOMAIN.action_space, DOMAIN.spec),
    ],
)
def test_spaces_say_the_kind_and_json_keeps_it(observation: Any, action: Any, expected: Spec) -> None:
    """From Gymnasium's spaces, and through a manifest and back."""
    spec = spec_of_spaces(observation, action)
    assert spec == expected
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == expected


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (gym.spaces.Box(0.0, 1.0, (4, 4), np.float32), gym.spaces.Discrete(2), "flatten the observation"),
        (gym.spaces.Box(0, 2**20, (4,), np.int64), gym.spaces.Discrete(2), "integers of 16 bits"),
        (DOMAIN.observation_space, gym.spaces.Box(-np.inf, 1.0, (2,), np.float32), "no finite bounds"),
        (DOMAIN.observation_space, gym.spaces.Discrete(2, start=1), r"neither Discrete\(A\) from 0"),
    ],
)
def test_spaces_of_no_kind_are_refused(observation: Any, action: Any, message: str) -> None:
    """With what is allowed."""
    with pytest.raises(DataError, match=message):
        spec_of_spaces(observation, action)


def plans(num_rollouts: int) -> list[Rollout]:
    """Walks on grids with what was best at each step: what was done, and now and then something else too."""
    rng = np.random.default_rng(3)
    made = []
    for walk in walks(PLAIN, num_rollouts):
        optimal = rng.random((len(walk), 7)) < 0.3
        optimal[np.arange(len(walk)), walk.actions] = True
        made.append(broken(walk, optimal_actions=optimal))
    return made


def test_a_store_of_plans_keeps_all_best_actions(tmp_path: Path) -> None:
    """A column of its own, which its manifest announces, which is read by its key, and which whole rows leave out."""
    made = plans(9)
    writer = RolloutStoreWriter(tmp_path / "store", "grids", PLAIN, (), {}, "solve", has_optimal_actions=True)
    writer.append("0", made[:5])
    writer.append("1", made[5:])
    writer.finish()
    store = RolloutStore(tmp_path / "store", verify=True)
    assert store.has_optimal_actions
    assert store.manifest["has_optimal_actions"] is True
    for index, rollout in enumerate(made):
        assert same(store.rollout(index), rollout)
    (found,) = store.read((names.OPTIMAL_ACTIONS,), torch.tensor([[0, 1], [7, 3]]))
    assert (found.dtype, found.shape) == (torch.bool, (2, 2, 7))
    assert np.array_equal(found[0].numpy(), made[0].optimal_actions[:2])
    assert names.OPTIMAL_ACTIONS not in store.keys


def test_other_stores_say_nothing_of_best_actions(tmp_path: Path) -> None:
    """Neither a column nor a word in the manifest: their files are what they were."""
    writer = RolloutStoreWriter(tmp_path / "store", "grids", PLAIN, (), {}, "walk")
    writer.append("0", walks(PLAIN, 3))
    store = writer.finish()
    assert not store.has_optimal_actions
    assert "optimal" not in (store.path / "manifest.json").read_text(encoding="utf-8")
    assert store.rollout(0).optimal_actions is None
    with pytest.raises(DataError, match="have no 'optimal_actions'"):
        store.read((names.OPTIMAL_ACTIONS,), torch.zeros(1, dtype=torch.int64))


def test_best_actions_are_checked(tmp_path: Path) -> None:
    """All or none of a store's rollouts have them; what was done is among them; the shape and the kind are right."""
    writer = RolloutStoreWriter(tmp_path / "plans", "grids", PLAIN, (), {}, "solve", has_optimal_actions=True)
    plain = RolloutStoreWriter(tmp_path / "plain", "grids", PLAIN, (), {}, "walk")
    (plan,) = plans(1)
    none_best = np.zeros((len(plan), 7), np.bool_)
    none_best[:, 0] = True
    with pytest.raises(DataError, match=r"optimal_actions: None, expected an array of shape \(T, A\)"):
        writer.append("0", walks(PLAIN, 1))
    with pytest.raises(DataError, match="optimal_actions: an array, expected None; this is no store of plans"):
        plain.append("0", [plan])
    with pytest.raises(DataError, match=r"optimal_actions: \[0\] at step \d, where [1-6] was taken; it must be among"):
        writer.append("0", [broken(plan, optimal_actions=none_best, actions=np.full(len(plan), 3))])
    with pytest.raises(DataError, match=r"optimal_actions: shape \(5, 6\), expected a bool array of shape \(5, 7\)"):
        writer.append("0", [broken(plan, optimal_actions=plan.optimal_actions[:, :6])])
    with pytest.raises(DataError, match="optimal_actions: dtype int64"):
        writer.append("0", [broken(plan, optimal_actions=plan.optimal_actions.astype(np.int64))])
    with pytest.raises(DataError, match="only discrete actions can be listed"):
        RolloutStoreWriter(tmp_path / "text", "pages", TEXT, (), {}, "solve", has_optimal_actions=True)


def test_a_store_that_was_begun_without_best_actions_is_not_gone_on_with(tmp_path: Path) -> None:
    """And the other way round."""
    RolloutStoreWriter(tmp_path / "store", "grids", PLAIN, (), {}, "walk")
    with pytest.raises(DataError, match="has_optimal_actions: None -> True"):
        RolloutStoreWriter(tmp_path / "store", "grids", PLAIN, (), {}, "solve", has_optimal_actions=True)
