"""A backbone of Hugging Face reads and writes as the model itself does, packed, cached and quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit

from kalm.core.errors import DataError
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.grounding.losses import text_loss
from kalm.llm.grounding.reading import read_rollouts
from tests.llm.imagination.test_generation import assert_same, assert_same_rollouts, imagined, run
from tests.llm.models import ANSWERS, DISCRETE, hand_made_batch, one_rollout_alone
from tests.llm.small_models import CONTEXT_SIZE, backbone, unloaded_backbone

PROMPTS = ["Imagine how to do this: go to the left end", "go", "Predict what every action changes."]


def grounded(folder: Path, **options: object) -> GroundedLLM:
    """Untrained encoders and heads around a small pretrained model, loud enough for differences to show."""
    torch.manual_seed(0)
    model = GroundedLLM(DISCRETE, backbone(folder, **options), inner_size=16)
    model.configure_model()
    with torch.no_grad():
        for parameter in model.codec.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def causal_lm(made: HuggingFaceBackbone) -> torch.nn.Module:
    """The model of transformers inside."""
    return made._causal_lm


@pytest.mark.parametrize("tuning", ["qlora", "lora", "full"])
def test_text_is_scored_as_the_model_itself_does(small_model: Path, tuning: str) -> None:
    """Prompt vectors through the decoder and the output layer, against the model's own logits of the same ids."""
    made = backbone(small_model, tuning=tuning).eval()
    vectors, prompt_mask = made.embed_prompts(PROMPTS[:1])
    size = vectors.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    logits = made.text_logits(made(vectors, torch.arange(size)[None], causal))
    ids = torch.tensor([made._tokenizer(PROMPTS[0])["input_ids"]])
    assert prompt_mask.all()
    torch.testing.assert_close(logits, causal_lm(made)(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("compute_type", ["float32", "bfloat16"])
def test_cached_steps_equal_one_full_pass(small_model: Path, compute_type: str) -> None:
    """Prompts of different length and five tokens behind each, in one pass and token by token."""
    made = backbone(small_model, compute_type=compute_type).eval()
    prompts, prompt_mask = made.embed_prompts(PROMPTS)
    tokens = 0.1 * torch.randn(3, 5, made.hidden_size, generator=torch.Generator().manual_seed(0))
    cache = made.make_cache(3, prompts.shape[1] + 5)
    made.read(prompts, cache)
    cache.trim(prompt_mask.sum(dim=1))
    steps = [made.read(tokens[:, [i]], cache) for i in range(5)]
    tolerance = 1e-4 if compute_type == "float32" else 0.1
    for row, length in enumerate(prompt_mask.sum(dim=1).tolist()):
        whole = torch.cat([prompts[row, :length], tokens[row]])[None]
        size = whole.shape[1]
        hidden = made(whole, torch.arange(size)[None], torch.ones(size, size, dtype=torch.bool).tril()[None, None])
        torch.testing.assert_close(torch.cat(steps, dim=1)[row], hidden[0, length:], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_generation_equals_running_everything_again(small_model: Path, temperature: float) -> None:
    """The same rollouts with and without the cache, while rows drop out one by one."""
    model = grounded(small_model)
    assert_same(run(model, temperature=temperature), run(model, cached=False, temperature=temperature))


def test_steps_of_any_architecture_are_one_graph(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a model of transformers, read through kalm's cache, needs Python at each step."""
    model = grounded(small_model)
    real_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **_: real_compile(step, backend="eager", fullgraph=True))
    assert_same_rollouts(imagined(model, True, 8), imagined(model, False, 8))


@pytest.mark.parametrize("reads_any_mask", [True, False], ids=["packed", "one-rollout-a-row"])
def test_a_rollout_reads_the_same_alone_and_among_others(small_model: Path, reads_any_mask: bool) -> None:
    """Packed behind shared prompts, or in rows of their own without any mask, as flash attention needs it."""
    model, batch = grounded(small_model), hand_made_batch()
    model.backbone.reads_any_mask = reads_any_mask
    together = read_rollouts(model.backbone, model.codec, batch)[:-1]
    model.backbone.reads_any_mask = True
    alone = [read_rollouts(model.backbone, model.codec, one_rollout_alone(batch, index))[:-1] for index in range(4)]
    for left, parts in zip(together, zip(*alone, strict=True), strict=True):
        right = torch.cat(parts)
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


def test_labels_are_the_answer_and_its_end_and_nothing_else(small_model: Path) -> None:
    """Ids of the answer in the model's own vocabulary, then the end of text, once; never a prompt, never padding."""
    model, batch = grounded(small_model), hand_made_batch()
    batch = batch._replace(answers=["", "", "", ANSWERS[1]])
    made = model.backbone
    hidden = read_rollouts(made, model.codec, batch)
    tokenizer = made._tokenizer
    assert hidden.text_target.tolist() == [*tokenizer(ANSWERS[1])["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.pad_token_id not in hidden.text_target.tolist()
    assert tokenizer.pad_token_id != made.end_of_text == tokenizer.eos_token_id
    losses = text_loss(made.text_logits(hidden.text), hidden.text_target)
    assert torch.equal(model.losses(batch)["text_loss"], losses)
    assert losses.shape == hidden.text_target.shape


def test_padding_reaches_no_result(small_model: Path) -> None:
    """Another token in its place changes nothing."""
    model, batch = grounded(small_model), hand_made_batch()
    before = read_rollouts(model.backbone, model.codec, batch)
    model.backbone._tokenizer.pad_token = "</s>"
    after = read_rollouts(model.backbone, model.codec, batch)
    assert all(torch.equal(left, right) for left, right in zip(before[:-1], after[:-1], strict=True))


def test_text_survives_the_tokenizer(small_model: Path) -> None:
    """What was tokenized comes back, and nothing after the end of text."""
    made = backbone(small_model)
    token_ids = made.tokenize("walk to the right end")
    assert made.end_of_text not in token_ids
    assert made.decode([*token_ids, made.end_of_text, token_ids[0]]) == "walk to the right end"


def test_qlora_holds_every_layer_in_doubly_quantised_nf4(small_model: Path) -> None:
    """All seven linear layers of both decoder layers; 16 values, a constant each 64 weights, itself quantised."""
    made = backbone(small_model, tuning="qlora")
    layers = [part for part in made.modules() if isinstance(part, Linear4bit)]
    assert len(layers) == 2 * 7
    for layer in layers:
        assert layer.weight.dtype is torch.uint8
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
    assert all(parameter.dtype is torch.float32 for parameter in made.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("tuning", ["qlora", "lora", "full"])
def test_what_is_trained(small_model: Path, tuning: str) -> None:
    """Adapters on both sides of every linear layer, or everything."""
    made = backbone(small_model, tuning=tuning)
    trained = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    assert len(trained) == (2 * 2 * 7 if tuning != "full" else len(list(made.parameters())))
    assert tuning == "full" or all("lora_" in name for name in trained)


def test_layers_to_adapt_are_chosen_by_name(small_model: Path) -> None:
    """Queries and values, as in the LoRA paper."""
    made = backbone(small_model, lora_targets=["q_proj", "v_proj"], lora_rank=3)
    trained = {name.split(".")[-4] for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained == {"q_proj", "v_proj"}
    assert {min(p.shape) for p in made.parameters() if p.requires_grad} == {3}


def test_quantised_weights_are_never_moved_or_cast(small_model: Path) -> None:
    """Lightning moves a module to the CPU when it is done, and precision plugins cast it."""
    model = grounded(small_model, tuning="qlora")
    before = {name: parameter.data_ptr() for name, parameter in model.backbone.named_parameters()}
    model.to(torch.bfloat16).to("meta")
    assert {name: parameter.data_ptr() for name, parameter in model.backbone.named_parameters()} == before
    assert model.codec.end_head.weight.device.type == "meta"


def test_weights_are_loaded_once_and_not_before_they_are_needed(small_model: Path) -> None:
    """Sizes are known from the configuration."""
    made = unloaded_backbone(small_model)
    assert (made.hidden_size, made.context_size, made.model) == (64, CONTEXT_SIZE, None)
    assert made.state_dict() == {}
    made.load(torch.device("cpu"))
    loaded = made.model
    made.load(torch.device("cpu"))
    assert made.model is loaded is not None


def test_gradient_checkpointing_changes_no_gradient(small_model: Path) -> None:
    """The same losses and the same gradients of all that is trained; hidden vectors are computed twice."""
    gradients = []
    for gradient_checkpointing in (False, True):
        model = grounded(small_model, gradient_checkpointing=gradient_checkpointing).train()
        torch.cat(list(model.losses(hand_made_batch()).values())).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        assert any(
            part.gradient_checkpointing for part in model.modules() if hasattr(part, "gradient_checkpointing")
        ) is (gradient_checkpointing)
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_vectors_of_states_are_about_as_long_as_those_of_text(small_model: Path) -> None:
    """Within a factor of three; without scaling they would drown the text of a pretrained model."""
    model = GroundedLLM(DISCRETE, backbone(small_model))
    model.configure_model()
    text = model.backbone.embed_prompts(PROMPTS)[0].std()
    action = model.codec.encode_action(torch.tensor([0, 1])).std()
    assert 1 / 3 < action / text < 3


def test_what_is_longer_than_the_context_is_refused(small_model: Path) -> None:
    """A prompt, a rollout that is read, and room for one that is imagined: all name the number that is allowed."""
    model, batch = grounded(small_model), hand_made_batch()
    made = model.backbone
    with pytest.raises(DataError, match=f"tokens; .* reads at most {CONTEXT_SIZE}. Shorten the instruction"):
        made.embed_prompts(["go left " * CONTEXT_SIZE])
    with pytest.raises(DataError, match=f"reads at most {CONTEXT_SIZE}. Shorten the instruction, allow fewer steps"):
        made.make_cache(1, CONTEXT_SIZE + 1)
    with pytest.raises(DataError, match=f"reads at most {CONTEXT_SIZE}. .* collect shorter rollouts"):
        read_rollouts(made, model.codec, batch._replace(answers=["", "", "", "go left " * CONTEXT_SIZE]))


def test_losses_are_finite_in_bfloat16(small_model: Path) -> None:
    """And near those in float32."""
    means = []
    for compute_type in ("float32", "bfloat16"):
        losses = grounded(small_model, compute_type=compute_type).losses(hand_made_batch())
        assert all(values.dtype is torch.float32 for values in losses.values())
        means.append([float(values.detach().mean()) for values in losses.values()])
    np.testing.assert_allclose(*means, rtol=0.1)
