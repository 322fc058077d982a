"""The language model as a student: what it learns from plans, what is kept of it, and how it acts in BabyAI."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from kalm.core.errors import CheckpointError, KalmError
from kalm.core.names import OBSERVATION, OPTIMAL_ACTIONS, Source
from kalm.core.rollout import Rollout
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.plan_data import GOAL, SENTENCE, PlanData, Plans
from kalm.envs.babyai import BabyAI
from kalm.envs.babyai.goals import BabyAIGoal
from kalm.envs.babyai.layout import LEFT, NUM_ACTIONS, RIGHT
from kalm.envs.babyai.simulator import next_states
from kalm.envs.simulation import Episode, EpisodeResult
from kalm.llm.acting.llm_student import LLMStudent
from kalm.llm.backbones.smollm2 import FOLDER
from kalm.llm.local_language_model import LocalLanguageModel
from kalm.store.writer import RolloutStoreWriter
from tests.chain_run import kalm
from tests.llm.small_models import CHAT_TEMPLATE, edit_json, save_small_model, unloaded_backbone
from tests.rl.distillation.room_domain import RoomEncoder
from tests.rl.helpers import trainer

MAX_STEPS = 6
SENTENCE_OF_PLANS = "go to the tile (1, 1)"


@pytest.fixture(scope="module")
def world() -> BabyAI:
    """Two rooms of nine tiles each."""
    return BabyAI(room_size=5, num_rows=1, num_cols=2, num_training_grids=1, num_test_grids=1)


@pytest.fixture(scope="module")
def chat_model(world: BabyAI, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small instructed model whose tokenizer knows the words in which states are told."""
    texts = [message["content"] for message in world.conversation(start_of(world), SENTENCE_OF_PLANS)]
    folder = save_small_model(
        tmp_path_factory.mktemp("models") / "chat", "qwen2", [*texts, *world.action_answers], 5, context_size=1024
    )
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    return folder


def start_of(world: BabyAI) -> Any:
    """Some state of the training grid."""
    return world.places("train").grids[0].random_state(np.random.default_rng(0))


def plans(world: BabyAI) -> list[Rollout]:
    """Three steps that only turn, where turning to either side is optimal, and then some other step."""
    instructed = next(row for row in world.instructed_goals("train") if row.instruction == SENTENCE_OF_PLANS)
    states = [start_of(world)]
    actions = np.array([LEFT, LEFT, RIGHT])
    for action in actions:
        states.append(next_states(states[-1][None], np.array([action]))[0])
    optimal = np.zeros((3, NUM_ACTIONS), dtype=np.bool_)
    optimal[:, [LEFT, RIGHT]] = True
    is_last = np.arange(3) == 2
    return [
        Rollout(
            goal=instructed.goal.to_json(),
            instruction=instructed.instruction,
            goal_split="train",
            source=Source.IMAGINARY,
            observations=np.stack(states),
            actions=actions,
            rewards=is_last.astype(np.float32),
            terminated=is_last,
            truncated=np.zeros_like(is_last),
            is_success=False,
            optimal_actions=optimal,
        )
    ]


@pytest.fixture(scope="module")
def data_folder(world: BabyAI, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the plans."""
    folder = tmp_path_factory.mktemp("plans") / "store"
    writer = RolloutStoreWriter(folder, world.name, world.spec, (), {}, "make plans", (), True)
    writer.append("all", plans(world))
    writer.finish()
    return folder


@pytest.fixture
def data(world: BabyAI, data_folder: Path) -> PlanData:
    """Minibatches of four of their states."""
    episodes = EvaluationEpisodes(1, 1, goal_splits=["train"])
    return PlanData(world, RoomEncoder(), Plans([str(data_folder)]), num_goals=2, num_states=2, evaluation=episodes)


def build(data: PlanData, chat_model: Path, tuning: str, **options: Any) -> LLMStudent:
    """A student on the small model; weights are not loaded."""
    settings: dict[str, Any] = {"warmup_updates": 0, "schedule_updates": 10, "learning_rate": 0.01, **options}
    return LLMStudent(data.spec, unloaded_backbone(chat_model, tuning=tuning), **settings)


def fitted(module: LLMStudent, data: PlanData, folder: Path, max_steps: int = 1) -> Any:
    """Its trainer, after so many updates."""
    made = trainer(folder, max_steps)
    made.fit(module, data)
    return made


def weights(module: LLMStudent) -> dict[str, Tensor]:
    """What a checkpoint would hold."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def everything(module: LLMStudent) -> dict[str, Tensor]:
    """All parameters, those that are frozen too."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def episodes_of(world: BabyAI, num: int = 3) -> list[Episode]:
    """Short ones with the same goal."""
    rows = [row for row in world.instructed_goals("train") if row.goal.task == "put_next"]
    return [Episode(rows[number], seed=number, max_steps=MAX_STEPS) for number in range(num)]


def taken(results: list[EpisodeResult]) -> list[list[int]]:
    """Actions of each episode."""
    return [result.actions.tolist() for result in results]


def loss_by_hand(module: LLMStudent, states: Tensor) -> list[float]:
    """Probabilities of ``LocalLanguageModel``, added up over left and right: minus the log of that, for each state."""
    conversations = [BabyAI().conversation(state.numpy(), SENTENCE_OF_PLANS) for state in states]
    with torch.inference_mode():
        scores = LocalLanguageModel(module.backbone).log_probabilities(conversations, BabyAI().action_answers)
    return (-(scores[:, LEFT].exp() + scores[:, RIGHT].exp()).log()).tolist()


def test_the_loss_is_that_of_all_optimal_answers_together(data: PlanData, chat_model: Path, tmp_path: Path) -> None:
    """One number a state, by hand; where every answer is optimal, less than where two are."""
    module = build(data, chat_model, "full")
    fitted(module, data, tmp_path)
    module.eval()
    batch = data.batch(0)

    with torch.inference_mode():
        loss = module.losses(batch)["plan_loss"]

    assert batch[SENTENCE][batch[GOAL]].tolist() == [0] * 4
    assert batch[OPTIMAL_ACTIONS].nonzero()[:, 1].tolist() == [LEFT, RIGHT] * 4
    assert loss.tolist() == pytest.approx(loss_by_hand(module, batch[OBSERVATION]), rel=1e-5)
    batch[OPTIMAL_ACTIONS][0] = True
    with torch.inference_mode():
        again = module.losses(batch)["plan_loss"]
    assert 0 < again[0] < loss[0]
    assert again[1:].tolist() == loss[1:].tolist()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_updates_teach_it_the_plans_and_train_what_is_to_be_trained(
    tuning: str, data: PlanData, chat_model: Path, tmp_path: Path
) -> None:
    """Six updates make left and right likelier; a checkpoint of adapters holds nothing else; nothing else has moved."""
    module = build(data, chat_model, tuning)
    module.configure_model()
    states, before = data.batch(0)[OBSERVATION], everything(module)
    untrained = np.mean(loss_by_hand(module, states))

    fitted(module, data, tmp_path, max_steps=6)

    assert np.mean(loss_by_hand(module, states)) < untrained - 0.3
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    moved = {name for name, value in everything(module).items() if not torch.equal(value, before[name])}
    assert moved == trained
    if tuning == "lora":
        assert set(weights(module)) == trained
        assert all("lora" in name for name in trained)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_saved_student_acts_the_same_after_loading(
    tuning: str, data: PlanData, world: BabyAI, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of a checkpoint that torch reads with weights_only, into a student that was never trained."""
    module = build(data, chat_model, tuning)
    fitted(module, data, tmp_path, 2).save_checkpoint(tmp_path / "student.ckpt")
    episodes = episodes_of(world)
    expected = taken(module.eval().run_episodes(world, episodes))

    monkeypatch.setattr(BabyAIGoal, "max_steps", MAX_STEPS)
    loaded = build(data, chat_model, tuning)
    trainer(tmp_path, -1).test(loaded, data, ckpt_path=tmp_path / "student.ckpt", verbose=False, weights_only=True)

    assert loaded.num_updates == 2
    for name, value in weights(module).items():
        assert torch.equal(weights(loaded)[name], value), name
    assert taken(loaded.eval().run_episodes(world, episodes)) == expected
    other = build(data, chat_model, "full" if tuning == "lora" else "lora")
    with pytest.raises(CheckpointError, match="tuning"):
        other.on_load_checkpoint(torch.load(tmp_path / "student.ckpt", weights_only=True))


def test_it_acts_by_seeds_alone(data: PlanData, world: BabyAI, chat_model: Path, tmp_path: Path) -> None:
    """The same actions again, one episode at a time, and backwards; others under another seed; none that is invalid."""
    module = build(data, chat_model, "full")
    fitted(module, data, tmp_path)
    module.eval()
    episodes = episodes_of(world)

    expected = taken(module.run_episodes(world, episodes))

    assert all(len(actions) == MAX_STEPS for actions in expected)
    assert {action for actions in expected for action in actions} <= set(range(NUM_ACTIONS))
    assert taken(module.run_episodes(world, episodes)) == expected
    assert taken(module.run_episodes(world, episodes[::-1]))[::-1] == expected
    module.num_evaluation_envs = 1
    assert taken(module.run_episodes(world, episodes)) == expected
    data.seed = 1
    assert taken(module.run_episodes(world, episodes)) != expected
    module.temperature = 0.0
    likeliest = taken(module.run_episodes(world, episodes))
    data.seed = 0
    assert taken(module.run_episodes(world, episodes)) == likeliest


def test_settings_are_checked(data: PlanData, chat_model: Path, tmp_path: Path) -> None:
    """Before weights are loaded; and a model that cannot hold a conversation says so."""
    for name, value in (("temperature", -0.1), ("learning_rate", 0.0), ("warmup_updates", 10)):
        with pytest.raises(KalmError, match=f"{name} is {value}"):
            build(data, chat_model, "full", **{name: value})
    shutil.copytree(chat_model, tmp_path / "mute")
    edit_json(tmp_path / "mute" / "tokenizer_config.json", chat_template=None)
    module = build(data, tmp_path / "mute", "full")
    with pytest.raises(KalmError, match="has no chat template"):
        fitted(module, data, tmp_path)


FILES = sorted((Path(__file__).parents[3] / "conf" / "babyai").glob("llm_student*.yaml"))


def test_both_files_are_found() -> None:
    """One model of the hub, one out of the package index."""
    assert [path.stem for path in FILES] == ["llm_student", "llm_student_smollm2_135m_instruct"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_update_runs_from_the_file(path: Path, chat_model: Path, data_folder: Path, tmp_path: Path) -> None:
    """4-bit weights and adapters as it says, but for a small model, world and batch; the model is pinned."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    backbone = config["model"]["init_args"]["backbone"]["init_args"]
    assert re.fullmatch("[0-9a-f]{40}", backbone["revision"]) if "revision" in backbone else backbone["model"] == FOLDER
    assert config["model"]["init_args"]["schedule_updates"] == config["trainer"]["max_steps"]
    options = [f"--model.backbone.model={chat_model}", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    options += [f"--data.plans.stores=[{data_folder}]", "--data.num_goals=2", "--model.backbone.compute_type=float32"]
    options += ["--data.domain.room_size=5", "--data.domain.num_rows=1", "--data.domain.num_cols=2"]
    assert (
        kalm(
            "fit",
            "--config",
            path,
            "--config",
            path.parents[1] / "overlay" / "smoke.yaml",
            "--root",
            tmp_path,
            *options,
        )
        == 0
    )
    checkpoint = torch.load(tmp_path / config["experiment"] / "seed=0" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]
    assert all("lora" in name for name in checkpoint["state_dict"])
