"""What a backbone of Hugging Face refuses, with what to do about it."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kalm.core.errors import KalmError
from kalm.llm.backbones import hugging_face_model
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone
from tests.llm.small_models import ARCHITECTURES, backbone, edit_json, unloaded_backbone


@pytest.fixture
def copy(small_models: dict[str, Path], tmp_path: Path) -> Path:
    """A model's folder to spoil."""
    return Path(shutil.copytree(small_models["llama"], tmp_path / "model"))


def test_a_tokenizer_without_padding_is_refused(copy: Path) -> None:
    """Llama 2 has none. The message says what to set, and that is accepted."""
    edit_json(copy / "tokenizer_config.json", pad_token=None)
    with pytest.raises(KalmError, match="has no pad_token. Set pad_token to a token of its vocabulary .* '<pad>'"):
        unloaded_backbone(copy)
    assert unloaded_backbone(copy, pad_token="<pad>")._tokenizer.pad_token_id == 2


def test_padding_that_is_the_end_of_text_is_refused(copy: Path) -> None:
    """In the tokenizer, as Qwen2.5's, or asked for."""
    edit_json(copy / "tokenizer_config.json", pad_token="</s>")
    with pytest.raises(KalmError, match="has '</s>' as pad_token and as eos_token; .* must differ .* not to '</s>'"):
        unloaded_backbone(copy)
    with pytest.raises(KalmError, match="has '</s>' as pad_token and as eos_token"):
        unloaded_backbone(copy, pad_token="</s>")


def test_padding_outside_the_vocabulary_is_refused(copy: Path) -> None:
    """It would need an embedding that the model does not have."""
    with pytest.raises(KalmError, match=r"pad_token is '\[PAD\]', no token of"):
        unloaded_backbone(copy, pad_token="[PAD]")


def test_a_tokenizer_without_an_end_is_refused(copy: Path) -> None:
    """No answer could end."""
    edit_json(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(KalmError, match="has no eos_token, so that an answer could not end"):
        unloaded_backbone(copy)


def test_4_bits_without_bitsandbytes_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, before anything is loaded; plain LoRA goes on."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(KalmError, match="bitsandbytes is not installed.*pip install bitsandbytes, or set tuning: lora"):
        unloaded_backbone(copy, tuning="qlora")
    assert backbone(copy, tuning="lora").model is not None


def test_4_bits_where_they_cannot_run_are_refused(copy: Path) -> None:
    """An Apple GPU, for example; nothing is loaded in full precision instead."""
    made = unloaded_backbone(copy, tuning="qlora")
    with pytest.raises(KalmError, match="4-bit weights cannot be used on mps; allowed: cuda, cpu, xpu"):
        made.load(torch.device("mps"))
    assert made.model is None


def test_layers_that_stay_in_full_precision_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: here the loader does not heed what it is told."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def heedless(*args: Any, quantization_config: Any, **options: Any) -> nn.Module:
        return load(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", heedless)
    with pytest.raises(KalmError, match="100% of the weights of .* were loaded in full precision .*q_proj"):
        backbone(copy, tuning="qlora")


def test_4_bit_weights_do_not_change_devices(copy: Path) -> None:
    """Loaded on the CPU, wanted on a GPU."""
    made = backbone(copy, tuning="qlora")
    with pytest.raises(KalmError, match="were loaded on cpu and are now wanted on cuda:0; they cannot be moved"):
        made.load(torch.device("cuda:0"))


def test_weights_that_may_run_code_are_refused(copy: Path) -> None:
    """Only pytorch_model.bin: named, with what is allowed; it is not opened."""
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(KalmError, match=r"cannot load the weights .*pytorch_model\.bin[\s\S]*safetensors weights"):
        backbone(copy)


def test_weights_come_from_the_commit_of_the_configuration(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from whatever a branch names by then, and never from a bot's conversion, which is tried for main alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config, load, asked = AutoConfig.from_pretrained(copy), AutoModelForCausalLM.from_pretrained, []
    config._commit_hash = "c" * 40
    monkeypatch.setattr(hugging_face_model, "read_config", lambda settings: config)

    def recorded(*args: Any, **options: Any) -> nn.Module:
        asked.append({name: options[name] for name in ("revision", "use_safetensors", "trust_remote_code")})
        return load(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", recorded)
    made = backbone(copy, tuning="lora", revision="main")
    assert asked == [{"revision": "c" * 40, "use_safetensors": True, "trust_remote_code": False}]
    assert made.description["revision"] == "main"


def test_a_model_with_code_of_its_own_is_refused(copy: Path) -> None:
    """Its code is in the folder and is not run."""
    edit_json(copy / "config.json", model_type="its_own", auto_map={"AutoConfig": "code.Config"})
    (copy / "code.py").write_text("raise SystemExit('its code was run')\n", encoding="utf-8")
    with pytest.raises(KalmError, match=r"cannot load the configuration[\s\S]*needs no code of its own"):
        unloaded_backbone(copy)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The message says that a folder may be given."""
    with pytest.raises(KalmError, match=r"cannot load the configuration of the language model[\s\S]*give its folder"):
        HuggingFaceBackbone(str(tmp_path / "nothing"))


def test_flash_attention_that_is_not_installed_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not replaced by something slower without a word."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flash_attn" else find_spec(name))
    with pytest.raises(KalmError, match="flash_attn is not installed: .* set attention: sdpa"):
        unloaded_backbone(copy, attention="flash_attention_2")


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask", "inputs_embeds"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_reads_in_its_own_way_is_refused(
    small_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, architecture: str, ignored: str
) -> None:
    """One that takes no positions, no masks or no vectors from outside would learn and imagine nonsense in silence."""
    from transformers import LlamaModel, Qwen2Model

    decoder = {"llama": LlamaModel, "qwen2": Qwen2Model}[architecture]
    forward = decoder.forward

    def headstrong(self: nn.Module, input_ids: Any = None, **given: Any) -> Any:
        if given.get(ignored) is not None and input_ids is None:
            given[ignored] = 2 * given[ignored] if ignored == "inputs_embeds" else None
        return forward(self, input_ids, **given)

    monkeypatch.setattr(decoder, "forward", headstrong)
    made = unloaded_backbone(small_models[architecture], tuning="lora")
    with pytest.raises(KalmError, match="does not read .* as kalm needs: [\\s\\S]*Allowed: models that heed"):
        made.load(torch.device("cpu"))
    assert made.model is None


def test_layers_that_do_not_exist_are_refused(copy: Path) -> None:
    """The message lists those that do."""
    with pytest.raises(KalmError, match=r"lora_targets is \['qkv'\].*layers are down_proj, .*q_proj.*; all-linear"):
        backbone(copy, lora_targets=["qkv"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tuning", "qlora8", "tuning is 'qlora8'; it must be one of qlora, lora, full"),
        ("compute_type", "float16", "compute_type is 'float16'; it must be one of bfloat16, float32"),
        ("attention", "eager", "attention is 'eager'; it must be one of sdpa, flash_attention_2"),
        ("lora_rank", 0, "lora_rank is 0; it must be 1 or more"),
        ("lora_dropout", 1.0, "lora_dropout is 1.0; it must be a share, in"),
    ],
)
def test_settings_out_of_range_are_refused(copy: Path, name: str, value: Any, message: str) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(KalmError, match=message):
        unloaded_backbone(copy, **{name: value})


def test_weights_are_needed_before_they_are_used(copy: Path) -> None:
    """A clear word instead of an attribute error."""
    with pytest.raises(KalmError, match="are not loaded; call load"):
        unloaded_backbone(copy).embed_prompts(["go"])
