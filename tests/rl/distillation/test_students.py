"""What holds for every student in kalm/rl/distillation; a new one is found and tested with no edit but its name."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kalm.rl.distillation
from kalm.core.errors import CheckpointError
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.envs.babyai.layout import EMPTY, TILES, WALL, code_of, put_agent
from kalm.envs.evaluation import summarize
from kalm.rl.distillation.student import Instructions, Student, answer_loss, set_loss
from kalm.runs.acting import draw_actions, uniform_numbers
from tests.rl.distillation.room_domain import room_data
from tests.rl.helpers import trainer

# Smaller than their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "ImitationStudent": {"num_channels": 8, "radius": 4, "meaning_size": 32, "hidden_size": 32},
    "PlannerStudent": {"hidden_size": 64, "num_queries": 4, "query_size": 16},
}


def students() -> list[type[Student]]:
    """Every student, found by looking."""
    package = kalm.rl.distillation
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    members = {member for module in modules for _, member in inspect.getmembers(module, inspect.isclass)}
    found = [member for member in members if issubclass(member, Student) and member is not Student]
    return sorted(found, key=lambda student: student.__name__)


each_student = pytest.mark.parametrize("student", students(), ids=lambda student: student.__name__)


def build(student: type[Student], spec: Any, **options: Any) -> Student:
    """A small one."""
    return student(spec, **{"warmup_updates": 5, **OPTIONS.get(student.__name__, {}), **options})


def state(module: Student) -> dict[str, Tensor]:
    """Its tensors."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def actions(module: Student, data: Any, folder: Path) -> list[list[int]]:
    """What it does in the test episodes."""
    trainer(folder, -1).test(module, data, verbose=False)
    return [result.actions.tolist() for result in module.episode_results]


def test_the_students_are_found() -> None:
    """None drops out of the suite without notice."""
    assert [student.__name__ for student in students()] == sorted(OPTIONS)


@each_student
def test_losses_are_one_number_a_state_and_do_not_depend_on_the_others(student: type[Student], tmp_path: Path) -> None:
    """Half of a minibatch has the losses that it has in the whole."""
    data = room_data(tmp_path)
    module, batch = build(student, data.spec), data.batch(0)
    whole = module.losses(batch)
    assert set(whole) == {"plan_loss", "answer_loss"}
    half = {**batch, **{key: batch[key][:8] for key in ("observation", "optimal_actions", "goal")}}
    for name, loss in module.losses(half).items():
        assert whole[name].shape == (16,)
        torch.testing.assert_close(loss, whole[name][:8])


@each_student
def test_every_parameter_is_trained(student: type[Student], tmp_path: Path) -> None:
    """Some loss moves each of them."""
    data = room_data(tmp_path)
    module = build(student, data.spec)
    torch.stack(list(module.losses(data.batch(0)).values())).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_student
def test_a_saved_student_acts_the_same_after_loading(student: type[Student], tmp_path: Path) -> None:
    """Fit two updates, save, load with weights_only into a fresh student, compare what it does in episodes."""
    data = room_data(tmp_path)
    module = build(student, data.spec, only_seen_actions=True)
    fitted = trainer(tmp_path, max_steps=2)
    fitted.fit(module, data)
    fitted.save_checkpoint(tmp_path / "student.ckpt")
    checkpoint = torch.load(tmp_path / "student.ckpt", weights_only=True)
    loaded = build(student, data.spec, only_seen_actions=True)
    loaded.on_load_checkpoint(checkpoint)
    loaded.load_state_dict(checkpoint["state_dict"])
    assert actions(loaded, data, tmp_path) == actions(module, data, tmp_path)
    with pytest.raises(CheckpointError, match="size"):
        build(student, data.spec, hidden_size=8).on_load_checkpoint(checkpoint)


@each_student
def test_the_weights_serve_larger_worlds(student: type[Student], tmp_path: Path) -> None:
    """A checkpoint of grids of 5 x 5 tiles in a student of grids of 50 x 50, where it sees what is two tiles away."""
    data = room_data(tmp_path)
    trained = build(student, data.spec)
    checkpoint: dict[str, Any] = {"global_step": 0}
    trained.on_save_checkpoint(checkpoint)
    larger = replace(data.spec, observation=replace(data.spec.observation, shape=(50, 50, 2)))
    module = build(student, larger)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(trained.state_dict())
    tiles = np.full((50, 50), WALL, dtype=np.uint8)
    tiles[1:-1, 1:-1] = EMPTY
    states = np.stack([put_agent(tiles, 25, 25, 0)] * 2)
    states[1, 27, 25, TILES] = code_of("ball", "red")
    tokens, padding_mask = data.encoder.token_vectors(["go to the red ball"])
    read = module.read(Instructions(tokens, padding_mask))
    with torch.no_grad():
        logits = module(torch.from_numpy(states), read.meaning, torch.zeros(2, dtype=torch.int64))
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@each_student
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(student: type[Student], tmp_path: Path) -> None:
    """Six updates at once, and three and three, leave the same weights to the last bit."""
    outcomes = []
    for stops in ((6,), (3, 6)):
        path = None
        for stop in stops:
            torch.manual_seed(stop)  # what was drawn before makes no difference
            module = build(student, room_data(tmp_path).spec, learning_rate_schedule="cosine", schedule_updates=6)
            run = trainer(tmp_path, max_steps=stop)
            run.fit(module, room_data(tmp_path), ckpt_path=path, weights_only=True)
            path = tmp_path / f"{len(stops)}-{stop}.ckpt"
            run.save_checkpoint(path)
        outcomes.append(state(module))
    assert [name for name in outcomes[0] if not torch.equal(outcomes[0][name], outcomes[1][name])] == []


@each_student
def test_actions_do_not_depend_on_how_many_episodes_run_side_by_side(student: type[Student], tmp_path: Path) -> None:
    """Rows of one shape, and luck that knows episode and step only."""
    outcomes = []
    for num_envs in (5, 64):
        data = room_data(tmp_path)
        module = build(student, data.spec, num_evaluation_envs=num_envs)
        trainer(tmp_path, max_steps=1).fit(module, data)
        outcomes.append(actions(module, data, tmp_path))
    assert outcomes[0] == outcomes[1]
    other = room_data(tmp_path, seed=1)
    module = build(student, other.spec)
    trainer(tmp_path, max_steps=1).fit(module, other)
    assert actions(module, other, tmp_path) != outcomes[0]


@each_student
def test_it_learns_a_small_world(student: type[Student], tmp_path: Path) -> None:
    """From plans it goes to three goals from 200 other starts, in no more than twice the steps."""
    episodes = EvaluationEpisodes(num_validation_episodes=6, num_test_episodes=200)
    data = room_data(tmp_path, num_goals=8, num_states=8, evaluation=episodes)
    schedule = {"learning_rate": 5e-3, "learning_rate_schedule": "cosine", "schedule_updates": 250}
    module = build(student, data.spec, temperature=0.5, **schedule)
    trainer(tmp_path, max_steps=250).fit(module, data)
    trainer(tmp_path, -1).test(module, data, verbose=False)
    assert summarize(module.episode_results)["train"].success_rate >= 0.92
    lengths = [result.num_steps for result in module.episode_results]
    assert np.mean(lengths) < 12


def test_the_loss_of_a_set_is_that_of_its_whole_probability() -> None:
    """Logits ln 1, ln 2, ln 5 of 8: the set of the first two has 3/8, of all three 1."""
    logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(2, 3)
    optimal = torch.tensor([[True, True, False], [True, True, True]])
    assert set_loss(logits, optimal).tolist() == pytest.approx([math.log(8 / 3), 0.0], abs=1e-6)


def test_the_loss_of_answers_is_the_sum_over_questions() -> None:
    """Two even answers and three even ones: ln 2 + ln 3, whatever is right."""
    logits = [torch.zeros(2, 2), torch.zeros(2, 3)]
    expected = math.log(2) + math.log(3)
    assert answer_loss(logits, torch.tensor([[0, 2], [1, 0]])).tolist() == pytest.approx([expected, expected])


def test_draws_follow_the_softmax_over_the_temperature() -> None:
    """Logits ln 1 and ln 3 at temperature 0.5 have odds 1 to 9; at 0 the likelier one is always taken."""
    logits = torch.tensor([1.0, 3.0]).log().expand(20_000, 2)
    episodes = np.arange(20_000, dtype=np.uint64)
    luck = uniform_numbers(0, episodes, np.zeros_like(episodes), 2)
    assert float(draw_actions(logits, luck, 0.5).double().mean()) == pytest.approx(0.9, abs=0.01)
    assert draw_actions(logits, luck, 0.0).unique().tolist() == [1]
    assert draw_actions(torch.tensor([[-torch.inf, 0.0]]), luck[:1], 1.0).tolist() == [1]


def test_luck_is_a_function_of_seed_episode_and_step() -> None:
    """Rows that are asked for together or alone get the same numbers; another seed, episode or step gets others."""
    episodes, steps = np.array([5, 7, 5], dtype=np.uint64), np.array([0, 0, 1], dtype=np.uint64)
    together = uniform_numbers(3, episodes, steps, 4)
    assert np.array_equal(together[1:2], uniform_numbers(3, episodes[1:2], steps[1:2], 4))
    assert len(np.unique(np.concatenate([together, uniform_numbers(4, episodes, steps, 4)]))) == 24
    assert ((together > 0) & (together < 1)).all()


def test_what_was_done_in_a_situation_is_marked_down_there(tmp_path: Path) -> None:
    """Logits 1 of an action, 0 of another, neither of which moves the agent, and 0.6 off for each repetition.

    The one stands at 1, 0.4 and -0.2 before the steps 0, 1 and 2, then at -0.2 and, taken in step 3, at -0.8; the other
    at 0 until it is taken in step 2, then at -0.6, so that it is taken again in step 4.
    """
    data = room_data(tmp_path)
    (student,) = [one for one in students() if one.__name__ == "PlannerStudent"]
    module = build(student, data.spec, temperature=0.0, repeat_penalty=0.6)
    logits = torch.full((7,), -torch.inf)
    logits[6], logits[5] = 1.0, 0.0
    module.forward = lambda states, meaning, goal: logits.expand(len(states), -1)  # type: ignore[method-assign]
    for row in actions(module, data, tmp_path):
        assert row[:5] == [6, 6, 5, 6, 5]


def test_actions_that_never_did_anything_are_not_drawn(tmp_path: Path) -> None:
    """In the plans only walking changes anything, and nothing but turning where a wall is in front."""
    data = room_data(tmp_path)
    (student,) = [one for one in students() if one.__name__ == "PlannerStudent"]
    module = build(student, data.spec, only_seen_actions=True)
    trainer(tmp_path, max_steps=1).fit(module, data)
    assert module.has_done.any(0).tolist() == [True, True, True, False, False, False, False]
    assert all(action in (0, 1, 2) for row in actions(module, data, tmp_path) for action in row)
