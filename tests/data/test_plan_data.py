"""Minibatches of plans: pure functions of seed and update, by the weights of tasks, each with its own sentence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from kalm.core.errors import CheckpointError, DataError
from kalm.data.plan_data import PlanData, Plans
from kalm.envs.babyai.layout import agent_of
from tests.chain_domain import ChainDomain
from tests.data.rollouts import write_store
from tests.rl.distillation.room_domain import RoomDomain, RoomEncoder, plans, room_data, steps_to_go


def test_an_update_gets_the_same_states_whatever_was_asked_for_before(tmp_path: Path) -> None:
    """Update 3 is update 3; another update and another seed have others."""
    data = room_data(tmp_path)
    third = data.batch(3)
    fresh = room_data(tmp_path)
    for key, value in fresh.batch(3).items():
        assert torch.equal(value, third[key])
    assert not torch.equal(data.batch(4)["observation"], third["observation"])
    assert not torch.equal(room_data(tmp_path, seed=1).batch(3)["observation"], third["observation"])


def test_a_minibatch_has_states_of_its_goals_and_what_is_optimal_there(tmp_path: Path) -> None:
    """Walking as the answers say brings the agent nearer by one step, for each of the actions that are optimal."""
    data, sizes = room_data(tmp_path), (4, 4)
    batch = data.batch(0)
    assert batch["observation"].shape == (16, 5, 5, 2)
    assert batch["optimal_actions"].shape == (16, 7)
    assert batch["goal"].tolist() == [row // sizes[1] for row in range(16)]
    assert batch["answers"].shape == (4, len(data.spec.questions))
    tokens, is_token = data.encoder.token_vectors([goal.instruction for goal in data.goals])
    goal_of = [
        next(number for number in range(len(data.goals)) if torch.equal(shown[mask], tokens[number][is_token[number]]))
        for shown, mask in zip(batch["tokens"], batch["tokens_padding"], strict=True)
    ]
    for row in range(16):
        state = batch["observation"][row].numpy()
        assert not data.goals[goal_of[row // 4]].goal.success(state)
        steps = steps_to_go(state, data.goals[goal_of[row // 4]].goal)  # type: ignore[arg-type]
        assert steps[state.tobytes()] > 0
        assert batch["optimal_actions"][row].any()
    assert agent_of(batch["observation"].numpy())[0].min() >= 1


def test_tasks_are_drawn_by_their_weights_and_goals_of_a_task_alike(tmp_path: Path) -> None:
    """Three to one for the tile; of the two things each has half of the rest."""
    data = room_data(tmp_path, task_weights={"go_to": 1.0, "go_to_tile": 3.0}, num_goals=64, num_states=1)
    task = [name for name, _ in data.spec.questions].index("task")
    answers = torch.cat([data.batch(index)["answers"] for index in range(20)])
    shares = Counter(map(tuple, answers.tolist()))
    assert len(shares) == 3
    assert sum(number for row, number in shares.items() if row[task] == 4) / 1280 == pytest.approx(0.75, abs=0.04)
    assert all(number / 1280 == pytest.approx(0.125, abs=0.03) for row, number in shares.items() if row[task] != 4)


def test_a_task_without_a_weight_is_refused(tmp_path: Path) -> None:
    """Silence would be taken for a weight."""
    with pytest.raises(DataError, match="go_to_tile"):
        room_data(tmp_path, task_weights={"go_to": 1.0}).batch(0)
    assert room_data(tmp_path, task_weights={"go_to": 1.0, "go_to_tile": 0.0}).batch(0) is not None


def test_paraphrases_are_shown_only_if_asked(tmp_path: Path) -> None:
    """The states stay the same ones; about half of the sentences change."""
    plain = room_data(tmp_path, num_goals=32, num_states=1)
    varied = room_data(tmp_path, num_goals=32, num_states=1, paraphrase=True)
    assert plain.sentences[0] == ["go to the red ball"]
    assert varied.sentences[0] == ["go to the red ball", "walk to the red ball"]
    one, other = plain.batch(0), varied.batch(0)
    assert torch.equal(one["observation"], other["observation"])
    is_changed = (one["tokens"] != other["tokens"]).flatten(1).any(1)
    assert 4 < int(is_changed.sum()) < 28


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path: Path) -> None:
    """What decides the minibatches is in the checkpoint; what it is evaluated on is not."""
    found = room_data(tmp_path).state_dict()
    assert found["num_states"] == 4
    assert not [name for name in found if "evaluation" in name]
    other = room_data(tmp_path, num_states=2)
    assert other.state_dict() != found
    data = room_data(tmp_path)
    data.trainer = type("Fitting", (), {"state": type("State", (), {"fn": "fit"})(), "world_size": 1})()
    with pytest.raises(CheckpointError, match="num_states"):
        data.load_state_dict(other.state_dict())


def test_stores_that_are_no_plans_are_refused(tmp_path: Path) -> None:
    """Rollouts of another kind do not say what is optimal."""
    rollouts = [type(one)(**{**vars(one), "optimal_actions": None}) for one in plans(3)]
    write_store(tmp_path / "rollouts", rollouts, domain=RoomDomain())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="do not say which actions are optimal"):
        PlanData(RoomDomain(), RoomEncoder(), Plans([str(tmp_path / "rollouts")])).batch(0)


def test_noise_on_tokens_is_decided_by_seed_and_update(tmp_path: Path) -> None:
    """Its spread is what was asked for, in units of the vectors' own; the same update is shown the same."""
    plain, noisy = room_data(tmp_path), room_data(tmp_path, token_noise=0.5)
    batches = [plain.batch(update) for update in range(100)]
    noise = [noisy.batch(update)["tokens"] - batch["tokens"] for update, batch in enumerate(batches)]
    spread = float(torch.cat([batch["tokens"][batch["tokens_padding"]] for batch in batches]).std())
    assert float(torch.cat([one.flatten() for one in noise]).std()) == pytest.approx(0.5 * spread, rel=0.1)
    assert torch.equal(noisy.batch(3)["tokens"], room_data(tmp_path, token_noise=0.5).batch(3)["tokens"])
    assert noise[3][0, 0].tolist() != noise[4][0, 0].tolist()


def test_a_world_that_is_no_grid_is_refused() -> None:
    """The message says what students read."""
    with pytest.raises(DataError, match="no grid"):
        PlanData(ChainDomain(), RoomEncoder(), Plans(["nowhere"]))
