"""What leaves kalm: the adapter folder for PEFT, and the merged model that ``python -m kalm export`` writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kalm.callbacks.adapter_folder import AdapterFolder
from kalm.callbacks.every_run import UpdateCheckpoint
from kalm.core.errors import CheckpointError
from kalm.language.prompts import prompts_hash
from kalm.llm.grounding import export
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from tests.chain_run import kalm
from tests.llm.grounding.test_grounded_llm import trainer
from tests.llm.grounding.test_hugging_face_grounding import TUNINGS, model_on
from tests.llm.models import chain_grounding_data, tiny_backbone

IDS = [[5, 60, 33, 200, 7]]

# A process that has never heard of kalm: transformers and peft alone. Left to itself, bitsandbytes evaluates 4-bit
# weights with a kernel in bfloat16 on processors with AVX512-BF16, some 3 % off; that is its own affair, and switched
# off here, so that what is compared is what the folder holds.
WITHOUT_KALM = """
import json, sys
sys.modules["kalm"] = None
import bitsandbytes.nn.modules
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
nf4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)
jobs, ids = json.loads(sys.argv[1])
answers = []
for base, folder, is_quantised in jobs:
    options = {"quantization_config": nf4} if is_quantised else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(ids)).logits[0, -1].tolist()
    answers.append([logits, AutoTokenizer.from_pretrained(folder).decode(ids[0])])
print(json.dumps(answers))
"""


@torch.inference_mode()
def scores(model: GroundedLLM) -> torch.Tensor:
    """The same scores out of kalm's own reading."""
    made: Any = model.eval().backbone
    size = len(IDS[0])
    causal = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    hidden = made(made.embed_tokens(torch.tensor(IDS)), torch.arange(size)[None], causal)
    return made.text_logits(hidden[0, -1])


def grounded_run(base: Path, folder: Path, tuning: str) -> GroundedLLM:
    """Four updates, with a checkpoint and an adapter folder after the last, as on the command line."""
    data = chain_grounding_data(folder)
    model = model_on(base, data, tuning)
    run = trainer(
        folder,
        max_steps=4,
        enable_checkpointing=True,
        callbacks=[AdapterFolder(), UpdateCheckpoint(every_n_updates=4)],
        plugins=[VerifiedCheckpointIO()],
    )
    run.fit(model, datamodule=data)
    return model


def test_adapters_open_in_peft_without_kalm(small_models: Any, tmp_path: Path) -> None:
    """The same logits in a process that cannot import kalm, 4-bit or not; not those of the base."""
    cases = [(small_models["llama"], "qlora"), (small_models["qwen2"], "lora")]
    models = [grounded_run(base, tmp_path / tuning, tuning) for base, tuning in cases]
    jobs = [(str(base), str(tmp_path / tuning / "adapter"), tuning == "qlora") for base, tuning in cases]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_KALM, json.dumps([jobs, IDS])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for model, (logits, text) in zip(models, json.loads(done.stdout.splitlines()[-1]), strict=True):
        torch.testing.assert_close(torch.tensor(logits), scores(model), atol=1e-4, rtol=1e-4)
        assert text == model.backbone._tokenizer.decode(IDS[0])
        with model.backbone.model.disable_adapter():
            assert (scores(model) - torch.tensor(logits)).abs().max() > 0.01


def test_the_adapter_folder_says_what_it_was_made_from(small_models: Any, tmp_path: Path) -> None:
    """Base model, revision, weights, prompts, data, update; heads as safetensors; no pickles."""
    model = grounded_run(small_models["llama"], tmp_path, "qlora")
    facts = json.loads((tmp_path / "adapter" / "kalm.json").read_text(encoding="utf-8"))
    assert facts["backbone"]["model"] == str(small_models["llama"])
    assert facts["backbone"]["revision"] == "main"
    assert facts["backbone"]["frozen"] == model.backbone.frozen_fingerprint
    assert facts["prompts_sha256"] == prompts_hash()
    assert facts["data_fingerprint"] == chain_grounding_data(tmp_path).fingerprint
    assert facts["update"] == 4
    heads = load_file(tmp_path / "adapter" / "kalm_heads.safetensors")
    assert heads.keys() == model.codec.state_dict().keys()
    assert all(torch.equal(value, heads[name]) for name, value in model.codec.state_dict().items())
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}
    assert not list(tmp_path.glob(".adapter*"))


def test_a_folder_that_cannot_be_written_leaves_the_old_one(
    small_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the error names the folder, what was there stays, nothing half-written is left."""
    model = grounded_run(small_models["llama"], tmp_path, "lora")
    before = (tmp_path / "adapter" / "kalm.json").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_durably", full)
    with pytest.raises(CheckpointError, match="cannot write the folder .*adapter: No space left on device"):
        export.write_adapter_folder(tmp_path / "adapter", model.backbone, model.codec, update=5)
    assert (tmp_path / "adapter" / "kalm.json").read_bytes() == before
    assert not list(tmp_path.glob(".adapter*"))


def test_a_fresh_run_leaves_no_old_adapter(tmp_path: Path) -> None:
    """Nor does a backbone without an adapter write one."""
    (tmp_path / "adapter").mkdir()
    data = chain_grounding_data(tmp_path)
    run = trainer(tmp_path, max_steps=1, callbacks=[AdapterFolder()])
    run.fit(GroundedLLM(data.spec, tiny_backbone(), inner_size=8, schedule_updates=60), datamodule=data)
    run.save_checkpoint(tmp_path / "it.ckpt")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("tuning", TUNINGS)
def test_export_writes_a_plain_model_that_computes_the_same(small_model: Path, tmp_path: Path, tuning: str) -> None:
    """No adapter is left, and transformers alone gives the logits of the grounded model, 4-bit errors included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = grounded_run(small_model, tmp_path, tuning)
    output = tmp_path / "exported"
    assert kalm("export", "--ckpt_path", tmp_path, "--output", output, "--dtype", "float32") == 0
    plain = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = plain(input_ids=torch.tensor(IDS)).logits[0, -1]
    torch.testing.assert_close(logits, scores(model), atol=1e-4, rtol=1e-4)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert not (output / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(output).decode(IDS[0]) == model.backbone._tokenizer.decode(IDS[0])
    assert load_file(output / "kalm_heads.safetensors").keys() == model.codec.state_dict().keys()


def test_export_refuses_what_it_cannot_do(
    small_models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full folder, another base, a checkpoint of the tiny model: a message each, and exit codes 2, 4 and 4."""
    grounded_run(small_models["llama"], tmp_path / "run", "qlora")
    arguments = ["export", "--ckpt_path", tmp_path / "run", "--output"]
    assert kalm(*arguments, tmp_path / "run") == 2
    assert "is not empty; give a folder that is" in capsys.readouterr().err
    assert kalm(*arguments, tmp_path / "out", "--model", small_models["qwen2"]) == 4
    assert "was trained on other weights than those of" in capsys.readouterr().err
    moved = shutil.copytree(small_models["llama"], tmp_path / "moved")
    assert kalm(*arguments, tmp_path / "out", "--model", moved) == 0
    data = chain_grounding_data(tmp_path / "run")
    run = trainer(tmp_path, max_steps=1, plugins=[VerifiedCheckpointIO()])
    run.fit(GroundedLLM(data.spec, tiny_backbone(), inner_size=8, schedule_updates=60), datamodule=data)
    run.save_checkpoint(tmp_path / "tiny.ckpt")
    capsys.readouterr()
    assert kalm("export", "--ckpt_path", tmp_path / "tiny.ckpt", "--output", tmp_path / "other") == 4
    assert "holds TinyBackbone; only a model that was grounded on" in capsys.readouterr().err
