"""4-bit weights on a CPU train as those that they stand for, whatever was evaluated before."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import bitsandbytes.nn.modules as bitsandbytes_modules
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn

from kalm.llm.grounding.grounded_llm import GroundedLLM
from tests.llm.models import DISCRETE, hand_made_batch
from tests.llm.small_models import backbone


def grounded(folder: Path) -> GroundedLLM:
    """A QLoRA model whose adapters do something already, so that all of them have a gradient."""
    torch.manual_seed(0)
    model = GroundedLLM(DISCRETE, backbone(folder, tuning="qlora"), inner_size=16)
    model.configure_model()
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return model


def with_dequantised_weights(model: GroundedLLM) -> GroundedLLM:
    """The same model on plain linear layers that hold what its 4-bit weights stand for."""
    model = copy.deepcopy(model)
    for adapted in [part for part in model.modules() if isinstance(getattr(part, "base_layer", None), Linear4bit)]:
        layer = adapted.base_layer
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).requires_grad_(False)
        plain.weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
        adapted.base_layer = plain
    return model


def evaluate(model: GroundedLLM) -> None:
    """What a validation does: forwards without gradients in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        model.losses(hand_made_batch())


def gradients(model: GroundedLLM) -> dict[str, torch.Tensor]:
    """Of all adapters, from one training forward."""
    model.train()
    torch.cat(list(model.losses(hand_made_batch()).values())).sum().backward()
    return {name: p.grad for name, p in model.backbone.named_parameters() if p.requires_grad and p.grad is not None}


def layers_of(model: nn.Module) -> list[Linear4bit]:
    """All its 4-bit layers."""
    return [part for part in model.modules() if isinstance(part, Linear4bit)]


def test_gradients_after_an_evaluation_are_those_of_dequantised_weights(small_model: Path) -> None:
    """Each adapter's gradient to a thousandth of its length; a repacked layer is 87 % off, or fails for its bias."""
    model = grounded(small_model)
    reference = gradients(with_dequantised_weights(model))
    evaluate(model)
    found = gradients(model)
    assert found.keys() == reference.keys()
    assert len(found) == 2 * 2 * 7
    for name, gradient in reference.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_no_layer_is_repacked_where_the_processor_could(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor with AVX512-BF16, real or pretended: not when loaded, adapted, copied, pickled or evaluated.

    A layer of bitsandbytes' own is repacked there, which shows that the pretence works on any machine.
    """

    class RepackedError(Exception):
        pass

    def refuse(*_: object) -> None:
        raise RepackedError

    monkeypatch.setattr(bitsandbytes_modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bitsandbytes_modules, "_convert_weight_packed_for_cpu", refuse)
    plain = Linear4bit(64, 64, quant_type="nf4").to("cpu").eval()
    with pytest.raises(RepackedError), torch.inference_mode():
        plain(torch.ones(1, 64))
    model = grounded(small_model)
    stream = io.BytesIO()
    torch.save(layers_of(model), stream)
    stream.seek(0)
    pickled = nn.ModuleList(torch.load(stream, weights_only=False))
    for whole in (model, copy.deepcopy(model), pickled):
        assert len(layers_of(whole)) == 2 * 7
        for layer in layers_of(whole.eval()):
            with torch.inference_mode():
                layer(torch.ones(1, layer.in_features))
    evaluate(model)
    assert all(layer.weight.quant_state.nested for layer in layers_of(model))
