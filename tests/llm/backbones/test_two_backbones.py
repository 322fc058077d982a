"""Two models for actions and states: each computes and learns what it would alone, and everything else still works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from kalm.callbacks.adapter_folder import AdapterFolder
from kalm.callbacks.every_run import UpdateCheckpoint
from kalm.core.errors import CheckpointError, DataError
from kalm.core.specs import TaskSpec
from kalm.data.language_batches import GeneralText
from kalm.envs.evaluation import evaluation_episodes
from kalm.llm.acting.llm_policy import LLMPolicy
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.backbones.two_backbones import TwoBackbones
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.grounding.reading import RolloutHidden, read_rollouts
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from tests.chain_domain import ChainDomain
from tests.chain_run import kalm
from tests.llm.grounding.test_grounded_llm import LOSSES, trainer
from tests.llm.imagination.test_generation import assert_same, assert_same_rollouts, imagined, run
from tests.llm.models import (
    ANSWERS,
    CONTINUOUS,
    DISCRETE,
    chain_grounding_data,
    hand_made_batch,
    one_rollout_alone,
    tiny_backbone,
)
from tests.llm.small_models import unloaded_backbone

SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
OF_ACTIONS = ("backbone.actions.", "codec.observation_encoder.0.", "codec.action_encoder.0.", "codec.action_head.")
OF_STATES = ("backbone.states.", "codec.observation_encoder.1.", "codec.action_encoder.1.", "codec.change_head.")


def two_backbones(seed: int = 0) -> TwoBackbones:
    """Of different sizes and depths."""
    return TwoBackbones(tiny_backbone(seed), tiny_backbone(seed + 1, hidden_size=24, num_layers=3, num_heads=3))


def two_models(spec: TaskSpec = DISCRETE, cls: type[GroundedLLM] = GroundedLLM) -> Any:
    """Untrained, with output layers that are loud enough for differences to show."""
    model = cls(spec, two_backbones(), inner_size=16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def alone(model: GroundedLLM, spec: TaskSpec, place: int) -> GroundedLLM:
    """One of the two models as the only one, with its encoders and with the heads, as far as they fit it."""
    single = GroundedLLM(spec, model.backbone.parts[place], inner_size=16).eval()
    mine, other = f"_encoder.{place}.", f"_encoder.{1 - place}."
    state = {name.replace(mine, "_encoder."): v for name, v in model.codec.state_dict().items() if other not in name}
    own = single.codec.state_dict()
    single.codec.load_state_dict({**own, **{name: v for name, v in state.items() if v.shape == own[name].shape}})
    return single


@SPECS
def test_no_loss_reaches_the_other_model(spec: TaskSpec) -> None:
    """Actions, ends and text teach one model and its encoders, next states the other; neither gets anything else."""
    model = two_models(spec)
    batch = hand_made_batch(spec.is_discrete)._replace(general_text=GeneralText(ANSWERS, 12))
    for name in (*LOSSES, "general_text_loss"):
        model.zero_grad()
        model.losses(batch)[name].sum().backward()
        touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        is_of_states = name in ("next_observation_loss", "dynamics_loss")
        own = OF_STATES if is_of_states else (*OF_ACTIONS, "codec.end_head.")
        assert {n for n in touched if not n.startswith(own)} == set(), name
        decoder = f"backbone.{'states' if is_of_states else 'actions'}.decoder."
        assert {n for n, _ in model.named_parameters() if n.startswith(decoder)} <= touched, name


@SPECS
def test_each_model_computes_what_it_would_alone(spec: TaskSpec) -> None:
    """Losses of the one on its own are its losses beside the other."""
    model, batch = two_models(spec), hand_made_batch(spec.is_discrete)
    both = model.losses(batch)
    for place, names in (
        (0, ("action_loss", "end_loss", "text_loss")),
        (1, ("next_observation_loss", "dynamics_loss")),
    ):
        single = alone(model, spec, place).losses(batch)
        for name in names:
            torch.testing.assert_close(both[name], single[name], atol=1e-6, rtol=1e-5)


@SPECS
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_generation_equals_running_everything_again(spec: TaskSpec, temperature: float) -> None:
    """With and without the caches; alone, and in rows that others had before; in fixed shapes."""
    model, many = two_models(spec), [0, 1, 2, 3, 3, 1, 0, 2]
    together = run(model, cached=False, temperature=temperature)
    assert_same(run(model, temperature=temperature), together)
    expected = [together[row] for row in many]
    for options in ({"num_rows": 1}, {"num_rows": 3}, {"num_rows": 3, "drops_rows": False, "column_step": 16}):
        assert_same(run(model, many, temperature=temperature, **options), expected)


def test_steps_are_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two caches need Python at a step no more than one."""
    model, real_compile = two_models(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **_: real_compile(step, backend="eager", fullgraph=True))
    assert_same_rollouts(imagined(model, True, 12), imagined(model, False, 12))


def test_a_rollout_reads_the_same_alone_and_packed() -> None:
    """Hidden vectors of both models."""
    model, batch = two_models(), hand_made_batch()
    packed = read_rollouts(model.backbone, model.codec, batch)[:-1]
    apart = [read_rollouts(model.backbone, model.codec, one_rollout_alone(batch, index))[:-1] for index in range(4)]
    for name, one, parts in zip(RolloutHidden._fields, packed, zip(*apart, strict=True), strict=False):
        torch.testing.assert_close(one, torch.cat(parts), atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_two_models_act_as_the_model_of_actions_does() -> None:
    """In the environment nobody asks what the model of states expects."""
    model, domain = two_models(cls=LLMPolicy), ChainDomain()
    single = LLMPolicy(DISCRETE, model.backbone.actions, inner_size=16).eval()
    single.codec.load_state_dict(alone(model, DISCRETE, 0).codec.state_dict())
    episodes = evaluation_episodes(domain, ["train", "easy"], 6, seed=0)
    for one, other in zip(model.run_episodes(domain, episodes), single.run_episodes(domain, episodes), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models grounded in the chain for a few seconds."""
    folder = tmp_path_factory.mktemp("grounded")
    data = chain_grounding_data(folder)
    lightning.seed_everything(0, verbose=False)
    model = GroundedLLM(
        data.spec, two_backbones(), inner_size=32, learning_rate=5e-3, warmup_updates=20, schedule_updates=250
    )
    trainer(folder, max_steps=250).fit(model, datamodule=data)
    return model.eval(), data


def test_two_grounded_models_imagine_rollouts_that_meet_their_goal(grounded: Any) -> None:
    """Nine of ten for training goals on the chain, nearly all of their steps plausible."""
    model, data = grounded
    items = [item for item in data.val_dataloader()[1].dataset if item.instructed.goal_split == "train"]
    rollouts = model.imagine(items)
    assert np.mean([rollout.is_success for rollout in rollouts]) >= 0.9
    assert np.mean([rollout.violations["jumped"] == 0 for rollout in rollouts]) >= 0.9


def test_two_grounded_models_explain_rollouts(grounded: Any) -> None:
    """In words that the model of actions writes."""
    model, data = grounded
    rollouts = [rollout for batch in data.val_dataloader()[0] for rollout in batch.rollouts]
    texts = model.explain(rollouts)
    right = [data.domain.goal_from_json(r.goal).explained_by(t) for r, t in zip(rollouts, texts, strict=True)]
    assert np.mean(right) >= 0.9


def fitted(folder: Path, made: Backbone, max_steps: int, ckpt_path: Path | None = None, **options: Any) -> GroundedLLM:
    """Grounded for so many updates, with a checkpoint of the last."""
    lightning.seed_everything(0, verbose=False)
    data = chain_grounding_data(folder)
    model = GroundedLLM(data.spec, made, inner_size=16, warmup_updates=3, schedule_updates=60, **options)
    run = trainer(
        folder,
        max_steps=max_steps,
        enable_checkpointing=True,
        callbacks=[AdapterFolder(), UpdateCheckpoint(every_n_updates=max_steps)],
        plugins=[VerifiedCheckpointIO()],
    )
    run.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model


def test_two_models_resume_and_pass_their_weights_on(tmp_path: Path) -> None:
    """6 updates equal 4 and 2 resumed ones; a new run without a learning rate keeps what it begins with."""
    whole = fitted(tmp_path / "whole", two_backbones(), 6).state_dict()
    fitted(tmp_path / "parts", two_backbones(), 4)
    last = tmp_path / "parts" / "last.ckpt"
    resumed = fitted(tmp_path / "parts", two_backbones(seed=5), 6, last).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    options = {"weights_from": str(last), "learning_rate": 0.0, "weight_decay": 0.0}
    begun = fitted(tmp_path / "more", two_backbones(seed=7), 1, **options).state_dict()
    assert begun.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in begun.items() if name.startswith("backbone."))


def test_weights_of_one_model_are_refused(tmp_path: Path) -> None:
    """And those of two where there is one."""
    fitted(tmp_path, tiny_backbone(), 1)
    with pytest.raises(CheckpointError, match="another backbone: .*class: 'TinyBackbone' -> 'TwoBackbones'"):
        fitted(tmp_path, two_backbones(), 2, tmp_path / "last.ckpt")


def test_pretrained_models_keep_adapters_of_their_own(
    small_models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two architectures, one tokenizer: two folders for PEFT, a scale each; a fresh pair computes the same."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def pair() -> TwoBackbones:
        return TwoBackbones(
            unloaded_backbone(small_models["llama"], tuning="lora"),
            unloaded_backbone(small_models["qwen2"], tuning="qlora"),
        )

    model = fitted(tmp_path, pair(), 3).eval()
    for name, base in (("actions", "llama"), ("states", "qwen2")):
        plain = AutoModelForCausalLM.from_pretrained(small_models[base])
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter" / name).state_dict()
        learned = {n: p for n, p in getattr(model.backbone, name).model.named_parameters() if p.requires_grad}
        assert learned
        assert all(torch.equal(parameter, adapted[n]) for n, parameter in learned.items())
    facts = json.loads((tmp_path / "adapter" / "kalm.json").read_text(encoding="utf-8"))
    assert facts["token_scales"] == [part.token_scale for part in model.backbone.parts]
    assert facts["backbone"]["actions.model"] == str(small_models["llama"])
    assert facts["backbone"]["states.tuning"] == "qlora"
    fresh = GroundedLLM(DISCRETE, pair(), inner_size=16).eval()
    fresh.configure_model()
    fresh.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    batch = chain_grounding_data(tmp_path).batch(3)
    for one, other in zip(model.losses(batch).values(), fresh.losses(batch).values(), strict=True):
        assert torch.equal(one, other)
    assert kalm("export", "--ckpt_path", tmp_path, "--output", tmp_path / "out") == 4
    assert "holds TwoBackbones; only a model that was grounded on" in capsys.readouterr().err


def test_models_that_cut_texts_differently_are_refused(small_models: Any) -> None:
    """Before anything is learned; the prompt and both numbers of tokens are named."""
    made = TwoBackbones(tiny_backbone(), unloaded_backbone(small_models["llama"], tuning="full"))
    made.load(torch.device("cpu"))
    message = r"of actions reads the prompt 'see elephants' as 2 tokens, the model of states as \d+"
    with pytest.raises(DataError, match=message):
        made.embed_prompts(["go to the left end", "see elephants"])


def test_the_shorter_context_counts(small_models: Any) -> None:
    """A model without a limit sets none."""
    limited = unloaded_backbone(small_models["llama"])
    assert TwoBackbones(tiny_backbone(), limited).context_size == limited.context_size
    assert two_backbones().context_size is None
