"""Grounding: which loss teaches what, exact resuming, plain checkpoints, and learning on the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from kalm.core.errors import CheckpointError, DataError
from kalm.data.grounding_data import GroundingData
from kalm.data.language_batches import GroundingTask
from kalm.data.training_data import IndexedBatches
from kalm.language.prompts import UNSEEN_EXPLANATION
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from tests.data.rollouts import real_rollouts, write_store
from tests.llm.models import (
    CONTINUOUS,
    DISCRETE,
    chain_grounding_data,
    grounded_llm,
    hand_made_batch,
    tiny_backbone,
)

LOSSES = {"action_loss", "next_observation_loss", "end_loss", "dynamics_loss", "text_loss"}


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """A silent CPU trainer."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "gradient_clip_val": 1.0,
    }
    return lightning.Trainer(**{**defaults, **options})


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_losses_are_one_number_a_token(spec: Any) -> None:
    """The batch has 4 generated steps with 6 observations, 2 dynamics steps, an answer of 5 words and its end."""
    losses = grounded_llm(spec).losses(hand_made_batch(spec.is_discrete))
    assert {name: tuple(values.shape) for name, values in losses.items()} == {
        "dynamics_loss": (2,),
        "text_loss": (6,),
        "action_loss": (4,),
        "next_observation_loss": (4,),
        "end_loss": (6,),
    }


def test_a_task_that_is_left_out_has_no_loss(tmp_path: Path) -> None:
    """The ablations of the paper: without dynamics, without explanation, generation alone."""
    model = grounded_llm()
    for options, missing in (
        ({"tasks__dynamics": 0}, {"dynamics_loss"}),
        ({"tasks__explanation": 0}, {"text_loss"}),
        ({"tasks__dynamics": 0, "tasks__explanation": 0}, {"dynamics_loss", "text_loss"}),
        ({"tasks__generation": 0}, {"action_loss", "next_observation_loss", "end_loss"}),
    ):
        data = chain_grounding_data(tmp_path, **options)
        model.backbone.learn_vocabulary(data.answers)
        assert set(model.losses(data.batch(0))) == LOSSES - missing


def test_each_loss_teaches_its_own_heads() -> None:
    """Gradients reach exactly the heads that a loss reads, and the backbone always."""
    model, heads = grounded_llm(), ("action_head", "change_head", "end_head", "text_head")
    intended = {
        "action_loss": {"action_head"},
        "next_observation_loss": {"change_head"},
        "dynamics_loss": {"change_head"},
        "end_loss": {"end_head"},
        "text_loss": {"text_head"},
    }
    assert intended.keys() == LOSSES
    for name, expected in intended.items():
        model.zero_grad()
        model.losses(hand_made_batch())[name].sum().backward()
        touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert {head for head in heads if any(head in n for n in touched)} == expected
        assert any("backbone.decoder" in n for n in touched)


def test_only_a_terminated_rollout_ends() -> None:
    """An end head that says yes everywhere is right at one of the two last observations only: the other was cut off."""
    model = grounded_llm()
    with torch.no_grad():
        model.codec.end_head.weight.zero_()
        model.codec.end_head.bias.fill_(20.0)
    assert (model.losses(hand_made_batch())["end_loss"] < 1).tolist() == [False] * 4 + [True, False]


def test_reading_does_not_change_the_batch() -> None:
    """Losses leave what they are given as it was."""
    batch, untouched = hand_made_batch(), hand_made_batch()
    grounded_llm().losses(batch)
    for left, right in zip(batch, untouched, strict=True):
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    """12 updates in one go against 7, a checkpoint and 5: weights, moments and learning rate equal, tensors plain."""
    data = chain_grounding_data(tmp_path)
    states = []
    for stops in ([12], [7, 12]):
        path: Path | None = None
        for stop in stops:
            model = GroundedLLM(data.spec, tiny_backbone(), inner_size=16, warmup_updates=3, schedule_updates=12)
            run = trainer(tmp_path, max_steps=stop)
            run.fit(model, datamodule=chain_grounding_data(tmp_path), ckpt_path=path, weights_only=True)
            path = tmp_path / f"{len(stops)}-{stop}.ckpt"
            run.save_checkpoint(path)
        states.append(torch.load(path, weights_only=True))
    whole, resumed = states
    assert whole["global_step"] == resumed["global_step"] == 12
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[0])
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]


def test_the_learning_rate_rises_and_falls() -> None:
    """Warm-up of 2 and end at 6: 1/2, 1, then 4/4 to 0 in quarters."""
    model = GroundedLLM(
        DISCRETE, tiny_backbone(), inner_size=8, learning_rate=1.0, warmup_updates=2, schedule_updates=6
    )
    configured: Any = model.configure_optimizers()
    scheduler, rates = configured["lr_scheduler"]["scheduler"], []
    for _ in range(7):
        rates.append(scheduler.get_last_lr()[0])
        configured["optimizer"].step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_a_number_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    """The loss is named, with the update."""
    data = chain_grounding_data(tmp_path)
    bad = data.batch(0)._replace(observation=torch.full_like(data.batch(0).observation, torch.nan))

    class NotANumber(GroundingData):
        def train_dataloader(self) -> Any:
            return IndexedBatches(lambda index: bad, start=lambda: 0).dataloader()

    data.__class__ = NotANumber
    model = GroundedLLM(data.spec, tiny_backbone(), inner_size=8, schedule_updates=60)
    with pytest.raises(DataError, match="ground/dynamics_loss is nan at update 0"):
        trainer(tmp_path, max_steps=2).fit(model, datamodule=data)


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[GroundedLLM, GroundingData, lightning.Trainer]:
    """A model grounded in the chain for a few seconds."""
    folder = tmp_path_factory.mktemp("grounded")
    data = chain_grounding_data(folder)
    lightning.seed_everything(0, verbose=False)
    model = GroundedLLM(
        data.spec, tiny_backbone(), inner_size=32, learning_rate=5e-3, warmup_updates=20, schedule_updates=250
    )
    run = trainer(folder, max_steps=250, limit_val_batches=1.0, val_check_interval=250, check_val_every_n_epoch=None)
    run.fit(model, datamodule=data)
    return model.eval(), data, run


def test_a_grounded_model_imagines_rollouts_that_meet_their_goal(grounded: Any) -> None:
    """Nine of ten for training goals on the chain, nearly all of their steps plausible."""
    model, data, _ = grounded
    items = [item for item in data.val_dataloader()[1].dataset if item.instructed.goal_split == "train"]
    rollouts = model.imagine(items)
    assert len(rollouts) == 12
    assert np.mean([rollout.is_success for rollout in rollouts]) >= 0.9
    assert np.mean([rollout.violations["jumped"] == 0 for rollout in rollouts]) >= 0.9


def test_a_grounded_model_explains_rollouts(grounded: Any) -> None:
    """Which end was walked to, in words; an unseen prompt is answered too."""
    model, data, _ = grounded
    rollouts = [rollout for batch in data.val_dataloader()[0] for rollout in batch.rollouts]
    for prompt in ((), (UNSEEN_EXPLANATION,)):
        texts = model.explain(rollouts, *prompt)
        right = [data.domain.goal_from_json(r.goal).explained_by(text) for r, text in zip(rollouts, texts, strict=True)]
        assert np.mean(right) >= 0.9
    best = model.explain(rollouts, num_answers=4)
    right = [data.domain.goal_from_json(r.goal).explained_by(text) for r, text in zip(rollouts, best, strict=True)]
    assert np.mean(right) >= 0.9


def test_validation_reports_one_step_matches(grounded: Any) -> None:
    """Held-out actions are the expert's, which errs three times in ten; next states are near certain."""
    _, _, run = grounded
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert 0.6 <= metrics["imagine/train/action_match"] <= 0.9
    assert metrics["imagine/train/state_match"] >= 0.9
    assert metrics["ground/held_out_next_observation_loss"] < 0.1


def test_validation_leaves_training_as_it_was(tmp_path: Path) -> None:
    """The same weights with and without imagining every few updates."""
    states = []
    for val_batches in (0, 1.0):
        lightning.seed_everything(1, verbose=False)
        data = chain_grounding_data(tmp_path)
        model = GroundedLLM(data.spec, tiny_backbone(), inner_size=8, warmup_updates=2, schedule_updates=9)
        options = {"limit_val_batches": val_batches, "val_check_interval": 3, "check_val_every_n_epoch": None}
        trainer(tmp_path, max_steps=9, **options).fit(model, datamodule=data)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_provenance_names_the_weights() -> None:
    """Equal weights, equal hash; one changed number, another hash. It hides nothing that a rollout says of itself."""
    model = grounded_llm()
    before = model.provenance()
    assert not before.keys() & {"seed", "stopped_by", "links"}
    assert before == grounded_llm().provenance()
    with torch.no_grad():
        model.codec.end_head.bias += 1e-3
    assert before["model_sha256"] != model.provenance()["model_sha256"]


def grounded_once(folder: Path) -> Path:
    """The checkpoint of five updates."""
    run = trainer(folder, max_steps=5, plugins=[VerifiedCheckpointIO()])
    run.fit(new_model(folder), datamodule=chain_grounding_data(folder))
    run.save_checkpoint(folder / "first" / "last.ckpt")
    return folder / "first"


def new_model(folder: Path, **options: Any) -> GroundedLLM:
    """One whose weights, statistics and vocabulary are still its own."""
    lightning.seed_everything(1, verbose=False)
    return GroundedLLM(chain_grounding_data(folder).spec, tiny_backbone(), inner_size=16, **options)


def test_a_run_may_begin_with_the_weights_of_another(tmp_path: Path) -> None:
    """All that the first run's checkpoint holds, its statistics too; updates and optimizer begin at zero."""
    first = grounded_once(tmp_path)
    model = new_model(tmp_path, weights_from=str(first), learning_rate=0.0, weight_decay=0.0)
    write_store(tmp_path / "other" / "real", real_rollouts(100, seed=7))
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, datamodule=chain_grounding_data(tmp_path / "other"))
    expected = torch.load(first / "last.ckpt", weights_only=True)["state_dict"]
    assert run.global_step == 1
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == expected.keys()


def test_a_resumed_run_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    """``weights_from`` counts at the beginning alone: 3 updates and 2 resumed ones equal 5, and not the first run."""
    first, states = grounded_once(tmp_path), []
    for stops in ([5], [3, 5]):
        path: Path | None = None
        for stop in stops:
            run = trainer(tmp_path, max_steps=stop)
            model = new_model(tmp_path, weights_from=str(first))
            run.fit(model, datamodule=chain_grounding_data(tmp_path), ckpt_path=path, weights_only=True)
            path = tmp_path / f"{len(stops)}-{stop}.ckpt"
            run.save_checkpoint(path)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    begun = torch.load(first / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(states[0]["codec.action_head.weight"], begun["codec.action_head.weight"])


def test_weights_that_are_not_there_or_of_another_backbone_are_refused(tmp_path: Path) -> None:
    """Named, before training; imagination does not look for them."""
    first = grounded_once(tmp_path)
    missing = new_model(tmp_path, weights_from=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="model.weights_from .*nowhere: no such checkpoint"):
        trainer(tmp_path, max_steps=1).fit(missing, datamodule=chain_grounding_data(tmp_path))
    content = torch.load(first / "last.ckpt", weights_only=True)
    content["backbone"]["frozen"] = "another"
    torch.save(content, tmp_path / "foreign.ckpt")
    foreign = new_model(tmp_path, weights_from=str(tmp_path / "foreign.ckpt"))
    with pytest.warns(UserWarning, match="no sidecar"), pytest.raises(CheckpointError, match="another backbone"):
        trainer(tmp_path, max_steps=1).fit(foreign, datamodule=chain_grounding_data(tmp_path))


def test_described_steps_teach_actions_and_next_states_but_no_end() -> None:
    """A step is over where its sentence is; where a rollout ends it does not say. Eight steps of four rollouts."""
    batch = hand_made_batch()
    told = batch._replace(task=torch.full_like(batch.task, GroundingTask.DESCRIPTION), answers=[""] * 4)
    losses = grounded_llm().losses(told)
    assert {name: len(values) for name, values in losses.items()} == {"action_loss": 8, "next_observation_loss": 8}
