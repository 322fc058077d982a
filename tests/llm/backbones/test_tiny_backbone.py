"""The tiny backbone: its cache, its vocabulary, what is and is not in its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kalm.core.errors import DataError
from kalm.language.encoder import SentenceEncoder
from kalm.llm.backbones.tiny_backbone import TinyBackbone
from tests.llm.models import ANSWERS, tiny_backbone
from tests.llm.token_encoder import TokenEncoder

PROMPTS = ["go to the left end", "go", "walk to the end"]


def test_cached_steps_equal_one_full_pass() -> None:
    """Three prompts of different length and five tokens behind each, in one pass and token by token."""
    backbone = tiny_backbone()
    prompts, prompt_mask = backbone.embed_prompts(PROMPTS)
    tokens = torch.randn(3, 5, 32)
    cache = backbone.make_cache(3, prompts.shape[1] + 5)
    backbone.read(prompts, cache)
    cache.trim(prompt_mask.sum(dim=1))
    steps = [backbone.read(tokens[:, [i]], cache) for i in range(5)]
    for row, length in enumerate(prompt_mask.sum(dim=1).tolist()):
        whole = torch.cat([prompts[row, :length], tokens[row]])[None]
        size = whole.shape[1]
        hidden = backbone(whole, torch.arange(size)[None], torch.ones(size, size, dtype=torch.bool).tril()[None, None])
        torch.testing.assert_close(torch.cat(steps, dim=1)[row], hidden[0, length:], atol=1e-5, rtol=1e-4)


def test_dropping_rows_leaves_the_others_as_they_were() -> None:
    """Rows 0 and 2 go on as if row 1, whose place row 2 takes, were still there."""
    backbone = tiny_backbone()
    prompts, prompt_mask = backbone.embed_prompts(PROMPTS)
    tokens = torch.randn(2, 3, 1, 32)
    results = []
    for kept in (np.arange(3), np.array([0, 2])):
        cache = backbone.make_cache(3, prompts.shape[1] + 2)
        backbone.read(prompts, cache)
        cache.trim(prompt_mask.sum(dim=1))
        backbone.read(tokens[0], cache)
        cache.keep(kept)
        results.append(backbone.read(tokens[1][kept], cache))
    torch.testing.assert_close(results[0][[0, 2]], results[1], atol=1e-6, rtol=1e-5)


def test_a_later_token_changes_nothing_before_it() -> None:
    """Causality, with gradients as the witness."""
    backbone = tiny_backbone()
    tokens = torch.randn(1, 4, 32, requires_grad=True)
    hidden = backbone(tokens, torch.arange(4)[None], torch.ones(4, 4, dtype=torch.bool).tril()[None, None])
    hidden[0, 1, 0].backward()
    assert tokens.grad is not None
    assert tokens.grad[0, :2].abs().sum(dim=-1).gt(0).all()
    assert tokens.grad[0, 2:].abs().sum() == 0


def test_prompts_are_encoded_once() -> None:
    """The frozen encoder sees every text a single time, however often it is asked for."""
    backbone = tiny_backbone()
    encoder = backbone._encoder
    assert isinstance(encoder, TokenEncoder)
    for _ in range(2):
        backbone.embed_prompts([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert encoder.texts_seen == PROMPTS[:2]


def test_text_survives_the_vocabulary() -> None:
    """What was tokenized comes back, and nothing after the end of text."""
    backbone = tiny_backbone()
    token_ids = backbone.tokenize(ANSWERS[0])
    assert backbone.end_of_text not in token_ids
    assert backbone.decode([*token_ids, backbone.end_of_text, token_ids[0]]) == ANSWERS[0]


def test_only_known_tokens_can_be_written() -> None:
    """As many scores as distinct words of the answers (go, to, the, left, end, walk, right) and one for the end."""
    backbone = tiny_backbone()
    assert backbone.text_logits(torch.zeros(2, 32)).shape == (2, 8)
    with pytest.raises(DataError, match="never learned to write: jump"):
        backbone.tokenize("jump to the end")


def test_checkpoint_holds_the_vocabulary_and_not_the_encoder(tmp_path: Path) -> None:
    """A fresh backbone takes both from plain tensors, whatever its own vocabulary was."""
    backbone = tiny_backbone()
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    fresh = TinyBackbone(backbone._encoder, hidden_size=32, num_layers=2, num_heads=2, feed_forward_size=48)
    fresh.load_state_dict(load_file(tmp_path / "backbone.safetensors"))
    assert fresh.decode(fresh.tokenize(ANSWERS[1])) == ANSWERS[1]
    torch.testing.assert_close(fresh.text_logits(torch.ones(1, 32)), backbone.text_logits(torch.ones(1, 32)))
    assert not any("encoder" in name for name in backbone.state_dict())


def test_heads_that_do_not_fit_are_refused() -> None:
    """The message names both numbers."""
    with pytest.raises(ValueError, match="num_heads is 5; it must divide hidden_size 32"):
        tiny_backbone(num_heads=5)


def test_works_on_the_installed_encoder(tmp_path: Path) -> None:
    """Real vectors and real WordPiece tokens of all-MiniLM-L6-v2, special tokens included."""
    backbone = TinyBackbone(SentenceEncoder(cache_dir=str(tmp_path)), hidden_size=16, num_heads=2, feed_forward_size=16)
    backbone.learn_vocabulary(["Put the red ball behind the cyan ball."])
    vectors, prompt_mask = backbone.embed_prompts(["Put the red ball behind it.", "Go"])
    assert vectors.shape == (2, 9, 16)
    assert prompt_mask.sum(dim=1).tolist() == [9, 3]
    assert backbone.decode(backbone.tokenize("the cyan ball.")) == "the cyan ball."
