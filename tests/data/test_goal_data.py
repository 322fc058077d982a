"""The work of imagination: which goals, from where, in which shards, and what counts as the same work."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.data.goal_data import PAPER_NUM_ROLLOUTS, GoalData, ShardSampler
from kalm.data.rollout_sources import RealRollouts
from kalm.store.reader import is_finished_store
from tests.chain_domain import MAX_STEPS, ChainDomain
from tests.data.rollouts import broken, real_rollouts, write_store
from tests.word_encoder import WordEncoder


def goal_data(folder: Path, **options: Any) -> GoalData:
    """7 rephrased and 5 easy rollouts in shards of 4, from the starts of the chain's real rollouts."""
    if not is_finished_store(folder / "real"):
        write_store(folder / "real", real_rollouts(40))
    defaults = {"num_rollouts": {"rephrase": 7, "easy": 5}, "rollouts_per_shard": 4}
    return GoalData(ChainDomain(), WordEncoder(), RealRollouts(str(folder / "real")), **{**defaults, **options})


def write_goals(path: Path, *instructions: str, goal_split: str = "rephrase") -> str:
    """A user's own goals: be at the left end."""
    goal = {"type": "cell", "cell": 0}
    lines = [json.dumps({"goal": goal, "instruction": text, "goal_split": goal_split}) for text in instructions]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def facts(data: GoalData) -> list[Any]:
    """Everything that decides the work, item by item."""
    return [
        (shard.name, item.instructed, item.start.tolist(), item.max_steps, item.seed)
        for shard in data.all_shards
        for item in shard.items
    ]


def test_work_is_cut_into_shards_whose_names_sort_in_its_order(tmp_path: Path) -> None:
    """7 rephrased rollouts are shards of 4 and 3, 5 easy ones of 4 and 1, whatever order the splits were named in."""
    data = goal_data(tmp_path, num_rollouts={"easy": 5, "rephrase": 7})
    names = [shard.name for shard in data.all_shards]
    assert names == sorted(names)
    assert [(name.split("-")[1], len(shard.items)) for name, shard in zip(names, data.all_shards, strict=True)] == [
        ("rephrase", 4),
        ("rephrase", 3),
        ("easy", 4),
        ("easy", 1),
    ]


def test_instructions_are_used_evenly(tmp_path: Path) -> None:
    """The chain has 4 rephrased instructions: 7 rollouts use three of them twice and one once; 2 use two far apart."""
    seven = goal_data(tmp_path, num_rollouts={"rephrase": 7}).all_shards
    assert sorted(Counter(item.instructed for shard in seven for item in shard.items).values()) == [1, 2, 2, 2]
    (two,) = goal_data(tmp_path, num_rollouts={"rephrase": 2}).all_shards
    assert {item.instructed.goal for item in two.items} == {
        goal.goal for goal in ChainDomain().instructed_goals(two.items[0].instructed.goal_split)
    }


def test_items_start_where_real_rollouts_did_with_the_goal_not_met(tmp_path: Path) -> None:
    """Every start is a real first observation; no rollout begins at its goal."""
    data = goal_data(tmp_path, num_rollouts={"hard": 30})
    starts = {tuple(rollout.observations[0]) for rollout in real_rollouts(40)}
    for item in data.all_shards[0].items:
        assert item.start.dtype == np.float32
        assert tuple(item.start) in starts
        assert not item.instructed.goal.success(item.start)
        assert item.max_steps == MAX_STEPS


def test_only_first_observations_are_starts(tmp_path: Path) -> None:
    """Where those, and no later ones, have sevens."""
    rollouts = real_rollouts(40)
    marked = [np.concatenate([7 * rollout.observations[:1], rollout.observations[1:]]) for rollout in rollouts]
    write_store(tmp_path / "real", [broken(r, observations=o) for r, o in zip(rollouts, marked, strict=True)])
    items = [item for shard in goal_data(tmp_path).all_shards for item in shard.items]
    assert {item.start.max() for item in items} == {7.0}


def test_same_seed_same_work_and_another_seed_another_luck(tmp_path: Path) -> None:
    """Everything about an item follows from the settings; draws differ between items."""
    assert facts(goal_data(tmp_path, seed=1)) == facts(goal_data(tmp_path, seed=1))
    first, other = facts(goal_data(tmp_path, seed=1)), facts(goal_data(tmp_path, seed=2))
    assert [fact[1] for fact in first] == [fact[1] for fact in other]
    seeds = [fact[4] for fact in first + other]
    assert len(set(seeds)) == len(seeds)


def test_cutting_into_other_shards_leaves_the_work_as_it_is(tmp_path: Path) -> None:
    """Shards decide what is made together, not what is made."""
    small, large = (facts(goal_data(tmp_path, rollouts_per_shard=size)) for size in (2, 100))
    assert [fact[1:] for fact in small] == [fact[1:] for fact in large]


def test_the_loader_leaves_out_finished_shards(tmp_path: Path) -> None:
    """One batch of work items for each other shard; who says what is finished is asked when the loader is made."""
    data = goal_data(tmp_path)
    first, second, third, fourth = data.all_shards
    data.finished_shards = lambda: {first.name, third.name}
    assert list(data.predict_dataloader()) == [second, fourth]


@pytest.mark.parametrize("num_devices", [1, 2, 3, 5])
def test_shards_are_dealt_out_to_devices(tmp_path: Path, num_devices: int) -> None:
    """Four shards: every one goes to one device, none to two, and a fifth device gets nothing."""
    shards = goal_data(tmp_path).all_shards
    hands = [list(ShardSampler(shards, num_devices, rank, shuffle=False)) for rank in range(num_devices)]
    assert sorted(place for hand in hands for place in hand) == [0, 1, 2, 3]
    assert {len(hand) for hand in hands} <= {4 // num_devices, 4 // num_devices + 1}
    assert [len(ShardSampler(shards, num_devices, rank, shuffle=False)) for rank in range(num_devices)] == [
        len(hand) for hand in hands
    ]


def test_own_goals_take_the_place_of_the_domains(tmp_path: Path) -> None:
    """Sentences of the file are used, the domain's are not; braces and markup stay what they are."""
    path = write_goals(tmp_path / "goals.jsonl", "home, {now}", "<b>home</b>")
    data = goal_data(tmp_path, goals_file=path, num_rollouts={"rephrase": 4})
    assert [item.instructed.instruction for item in data.all_shards[0].items] == ["home, {now}", "<b>home</b>"] * 2


def test_edited_goals_are_other_work_and_a_copy_is_the_same(tmp_path: Path) -> None:
    """The description, which a store keeps, follows the content of a file and not its path."""
    settings = {"num_rollouts": {"rephrase": 4}}
    path = write_goals(tmp_path / "goals.jsonl", "go home")
    before = goal_data(tmp_path, goals_file=path, **settings).description
    copy = write_goals(tmp_path / "copy.jsonl", "go home")
    assert goal_data(tmp_path, goals_file=copy, **settings).description == before
    write_goals(tmp_path / "goals.jsonl", "go home now")
    assert goal_data(tmp_path, goals_file=path, **settings).description != before
    assert json.loads(json.dumps(before)) == before


def test_split_without_goals_names_those_the_file_has(tmp_path: Path) -> None:
    """Asking for easy rollouts of a file with rephrased goals only."""
    path = write_goals(tmp_path / "goals.jsonl", "go home")
    with pytest.raises(DataError, match="no goal of the split easy; it has rephrase"):
        _ = goal_data(tmp_path, goals_file=path).all_shards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rollouts": {"rephrased": 4}}, "'rephrased'; the splits are train, rephrase, easy, hard"),
        ({"num_rollouts": {}}, "none named; the splits are train"),
        ({"num_rollouts": {"easy": 0}}, "easy is 0; it must be 1 or more"),
        ({"rollouts_per_shard": 0}, "rollouts_per_shard is 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(tmp_path: Path, options: Any, message: str) -> None:
    """The message names the setting and what is allowed."""
    with pytest.raises(DataError, match=message):
        GoalData(ChainDomain(), WordEncoder(), RealRollouts(str(tmp_path / "absent")), **options)


def test_default_is_what_the_paper_imagined() -> None:
    """72,400 easy, 1,680 hard and 5,600 rephrased rollouts."""
    assert PAPER_NUM_ROLLOUTS == {"rephrase": 5600, "easy": 72400, "hard": 1680}


def test_absent_real_rollouts_are_collected(tmp_path: Path) -> None:
    """With the settings given, as for training."""
    data = GoalData(ChainDomain(), WordEncoder(), RealRollouts(str(tmp_path / "new"), num_collected=6), {"easy": 1})
    data.prepare_data()
    assert is_finished_store(tmp_path / "new")
    assert len(data.all_shards) == 1
