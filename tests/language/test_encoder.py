"""The frozen sentence encoder: the recipe, its independence of company, its cache and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from kalm.core.errors import DataError, KalmError
from kalm.language import encoder as encoder_module
from kalm.language.encoder import SentenceEncoder, verify_default_weights

TEXTS = ["put the red ball behind the blue one", "swap them", "put the green ball left of the blue one", "swap them"]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    """The installed default, without a disk cache."""
    return SentenceEncoder(cache_dir=None)


def test_size_is_known_without_loading_weights() -> None:
    """MiniLM-L6 has 384 numbers a vector; asking for them loads neither weights nor tokenizer."""
    encoder = SentenceEncoder(cache_dir=None)
    assert encoder.embedding_size == 384
    assert "_weights" not in vars(encoder)
    assert "tokenizer" not in vars(encoder)


def test_embedding_is_the_normalised_mean_of_plain_padded_transformers_output(encoder: SentenceEncoder) -> None:
    """The sentence-transformers recipe by hand: pad, mask, average, scale to length 1."""
    tokens = encoder.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder._weights(**tokens).last_hidden_state
    weight = tokens["attention_mask"].unsqueeze(-1).float()
    expected = functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    embedding = encoder.encode(TEXTS)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(4))
    assert torch.equal(embedding[1], embedding[3])


def test_close_meanings_are_closer_than_far_ones(encoder: SentenceEncoder) -> None:
    """The weights are really pretrained: a paraphrase beats an unrelated sentence."""
    a, b, c = encoder.encode(["push the red ball left", "move the red sphere to the left", "the stock market fell"])
    assert a @ b > 0.6 > 0.3 > a @ c


def test_token_vectors_average_to_the_embedding(encoder: SentenceEncoder) -> None:
    """The mean over the real tokens, normalised, is the sentence embedding; padding is zero."""
    vectors, attention_mask = encoder.token_vectors(TEXTS)
    lengths = [len(ids) for ids in encoder.tokenizer(TEXTS)["input_ids"]]
    assert attention_mask.sum(1).tolist() == lengths
    assert vectors.shape == (4, max(lengths), 384)
    assert vectors[~attention_mask].abs().max() == 0
    mean = vectors.sum(1) / attention_mask.sum(1, keepdim=True)
    torch.testing.assert_close(functional.normalize(mean, dim=-1), encoder.encode(TEXTS), atol=1e-6, rtol=1e-5)


def test_a_text_has_the_same_vector_in_any_company(encoder: SentenceEncoder) -> None:
    """Bit for bit: alone, among others, in another order."""
    others = [f"roll the ball number {i} to the wall" for i in range(11)]
    alone = SentenceEncoder(cache_dir=None)
    alone.__dict__["_weights"], alone.__dict__["tokenizer"] = encoder._weights, encoder.tokenizer
    together = encoder.encode([*others, *TEXTS])
    for index in (0, 10, 12):
        assert torch.equal(alone.encode([[*others, *TEXTS][index]])[0], together[index])


def test_cache_answers_without_weights(tmp_path: Path, encoder: SentenceEncoder) -> None:
    """A second process reads sentence and token vectors from disk and never loads the model."""
    first, second = (SentenceEncoder(cache_dir=str(tmp_path)) for _ in range(2))
    first.__dict__["_weights"], first.__dict__["tokenizer"] = encoder._weights, encoder.tokenizer
    embedding, (vectors, attention_mask) = first.encode(TEXTS), first.token_vectors(TEXTS)
    assert torch.equal(second.encode(TEXTS[::-1]), embedding.flip(0))
    assert torch.equal(second.token_vectors(TEXTS)[0], vectors)
    assert torch.equal(second.token_vectors(TEXTS)[1], attention_mask)
    assert "_weights" not in vars(second)


def test_a_damaged_cache_file_is_passed_over(tmp_path: Path, encoder: SentenceEncoder) -> None:
    """A truncated file costs a recomputation and a warning, not a run."""
    first, second = (SentenceEncoder(cache_dir=str(tmp_path)) for _ in range(2))
    for one in (first, second):
        one.__dict__["_weights"], one.__dict__["tokenizer"] = encoder._weights, encoder.tokenizer
    embedding = first.encode(TEXTS)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(second.encode(TEXTS), embedding)


def test_too_long_and_empty_sentences_are_refused(encoder: SentenceEncoder) -> None:
    """Nothing is truncated in silence."""
    with pytest.raises(DataError, match=r"has 302 tokens.*at most 256"):
        encoder.encode(["ball " * 300])
    with pytest.raises(DataError, match="empty sentence"):
        encoder.encode([" "])


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    """The digest of the default weights is checked before they are used."""
    forged = tmp_path / "model.safetensors"
    forged.write_bytes(b"not the weights")
    with pytest.raises(KalmError, match="expected 53aa5117"):
        verify_default_weights(forged)


def test_a_folder_of_pickled_weights_is_refused(tmp_path: Path) -> None:
    """Only safetensors are read."""
    source = Path(encoder_module._installed_default())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, tmp_path / name)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(KalmError, match="safetensors"):
        SentenceEncoder(model=str(tmp_path), cache_dir=None).encode(["hello"])


def test_a_folder_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """A configuration that asks for remote code is not obeyed."""
    code = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"
    (tmp_path / "custom.py").write_text(code)
    config = {"model_type": "mine", "hidden_size": 8, "auto_map": {"AutoModel": "custom.M", "AutoConfig": "custom.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(KalmError, match="code"):
        SentenceEncoder(model=str(tmp_path), cache_dir=None).encode(["hello"])
    assert not (tmp_path / "ran").exists()


def test_another_encoder_by_folder(tmp_path: Path, encoder: SentenceEncoder) -> None:
    """Any Hugging Face encoder: here a tiny BERT built from a configuration."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    other = SentenceEncoder(model=str(tmp_path), cache_dir=None)
    assert other.embedding_size == 16
    assert other.encode(TEXTS).shape == (4, 16)
    assert other.fingerprint != encoder.fingerprint
