"""Small models of many architectures: each is read as its own library reads it, or refused; none wrongly in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from kalm.core.errors import DataError, KalmError
from kalm.llm.backbones import plain_reading
from kalm.llm.backbones.backbone import TOKEN_STD
from tests.llm.small_models import backbone, edit_json, train_tokenizer, unloaded_backbone

READ = (
    "biogpt", "gemma", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi3",
    "qwen2", "qwen3",
)  # fmt: skip
REFUSED = ("bloom", "cohere", "gemma2", "gpt_oss", "mamba", "mpt")
WITH_EXPERTS = ("mixtral", "qwen3_moe")
CONTEXT_SIZE = 256
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT_SIZE,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Of 400 tokens."""
    return train_tokenizer([f"go to cell {number}" for number in range(100)])


def save(folder: Path, architecture: str, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> Path:
    """A small untrained model."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(architecture, **{**SIZES, **ids, "vocab_size": len(tokenizer), **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", READ)
def test_it_is_read_as_its_own_library_reads_it(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A text of 100 tokens, given as vectors; and states are as long as what the embedding returns, scaled or not."""
    made = backbone(save(tmp_path / "model", architecture, tokenizer), tuning="lora").eval()
    token_ids = torch.randint(3, len(tokenizer), (1, 100), generator=torch.Generator().manual_seed(1))
    causal = torch.ones(100, 100, dtype=torch.bool).tril()[None, None]
    with torch.inference_mode():
        expected = made.own_scores(token_ids)[0]
        found = made.text_logits(made(made.embed_tokens(token_ids), torch.arange(100)[None], causal))[0]
        vectors = made.embed_tokens(torch.arange(made.num_embeddings))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert made.token_scale * TOKEN_STD == pytest.approx(float(vectors.std()), rel=1e-3)


def test_gemma_s_vectors_are_longer_than_its_weights(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """By the root of 64, its hidden size: weights of 0.02 are vectors of 0.16."""
    made = backbone(save(tmp_path / "model", "gemma3_text", tokenizer), tuning="lora")
    assert made.token_scale * TOKEN_STD == pytest.approx(8 * 0.02, rel=0.02)


@pytest.mark.parametrize("architecture", REFUSED)
def test_it_is_refused(architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """With a message of kalm's own, and nothing is left loaded."""
    made = unloaded_backbone(save(tmp_path / "model", architecture, tokenizer), tuning="lora")
    with pytest.raises(
        KalmError, match="cannot load the weights|does not read vectors in place of tokens as kalm needs"
    ):
        made.load(CPU)
    assert made.model is None


@pytest.mark.parametrize("architecture", WITH_EXPERTS)
def test_experts_that_stay_in_full_precision_are_refused(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """They are tensors and no layers: bitsandbytes leaves them as they are. With plain LoRA the model is read."""
    folder = save(tmp_path / "model", architecture, tokenizer)
    with pytest.raises(KalmError, match=r"tuning is qlora, but \d+% of the weights .*experts.* set tuning: lora"):
        backbone(folder, tuning="qlora")
    assert backbone(folder, tuning="lora").model is not None


@pytest.mark.parametrize(
    ("architecture", "changes", "limit", "note"),
    [
        ("mistral", {"sliding_window": 64}, 64, "sliding_window is 64"),
        ("gemma3_text", {"sliding_window": 64}, 64, "sliding_window is 64"),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, CONTEXT_SIZE, ""),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, CONTEXT_SIZE, ""),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
                    "original_max_position_embeddings": 32,
                },
            },
            32,
            "turn otherwise in longer rows",
        ),
    ],
    ids=["mistral's window", "gemma's window", "a window that is not used", "dynamic", "longrope"],
)  # fmt: skip
def test_rows_end_before_what_begins_later(
    architecture: str,
    changes: dict[str, Any],
    limit: int,
    note: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    """A window, or other positions: no row is so long, and the message says why."""
    made = backbone(save(tmp_path / "model", architecture, tokenizer, **changes), tuning="lora")
    made.require_room(limit)
    with pytest.raises(DataError, match=f"reads at most {limit}.*{note}"):
        made.require_room(limit + 1)


def test_a_window_that_nobody_listed_is_found(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins behind the first probe, so that only the second, of 128 tokens, can tell."""
    folder = save(tmp_path / "model", "mistral", tokenizer, sliding_window=64, initializer_range=0.5)
    monkeypatch.setattr(plain_reading, "_BEGIN_LATER", {})
    with pytest.raises(KalmError, match=r"does not read .* as kalm needs: .* \(128 tokens\)"):
        backbone(folder, tuning="lora")


def test_a_model_that_fails_by_itself_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its library's own code, before kalm's: its error becomes a message."""
    made = unloaded_backbone(save(tmp_path / "model", "llama", tokenizer), tuning="lora")

    def fails(token_ids: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'tuple' object has no attribute 'dtype'")

    monkeypatch.setattr(made, "own_scores", fails)
    with pytest.raises(KalmError, match="does not read .*'tuple' object has no attribute 'dtype'"):
        made.load(CPU)


def test_short_models_are_probed_as_far_as_they_go(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Forty tokens: the longer probe does not fit, the shorter one does."""
    folder = save(tmp_path / "model", "llama", tokenizer, max_position_embeddings=40)
    edit_json(folder / "tokenizer_config.json", model_max_length=40)
    assert backbone(folder, tuning="lora").context_size == 40


_WHOLE = """
import sys, torch
from tests.llm.small_models import backbone
import subprocess
import sys
from pathlib import Path
backbone(Path(sys.argv[1]), tuning="full")
sys.stdout.write(str("bitsandbytes" in sys.modules))
"""


def test_a_whole_model_brings_nothing_that_quantises(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Nor its warnings of kernels that are not there."""
    folder = save(tmp_path / "model", "llama", tokenizer)
    command = [sys.executable, "-c", _WHOLE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "False"
    assert "gemm_4bit" not in done.stderr
