"""Whether a language model does with vectors, positions and masks what packing and caching rely on.

Architectures differ: some scale embeddings or scores outside of their layers, some take positions from where a token
stands in a row, some heed a mask of their own making only. Such a model would train and imagine without an error, and
wrongly. Four tokens in four ways tell, before anything is learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kalm.core.errors import KalmError
from kalm.llm.backbones.backbone import Backbone

_TOKENS, _OTHERS = [3, 5, 7, 9], [11, 13]


@torch.inference_mode()
def require_plain_reading(
    backbone: Backbone, own_scores: Callable[[Tensor], Tensor], name: str, tolerance: float
) -> None:
    """Compare what a backbone makes of a text with what the model itself does.

    Args:
        backbone: With its weights loaded, in evaluation mode.
        own_scores: The model's own scores of the next token, shape (B, L, V), from token ids, int64 of shape (B, L).
        name: Of the model, for the message.
        tolerance: How far scores may be off, as a part of the largest; rounding decides.

    Raises:
        KalmError: If they differ.
    """
    vectors = backbone.embed_tokens(torch.tensor([_TOKENS]))
    expected = own_scores(torch.tensor([_TOKENS]))[0, -1].float()
    ways = {"vectors in place of tokens": _scores_in_one_pass, "a cache": _scores_with_cache}
    if backbone.reads_any_mask:
        ways["several texts behind one prompt"] = _scores_packed
    for what, scores_in_this_way in ways.items():
        try:
            error = (scores_in_this_way(backbone, vectors) - expected).abs().max() / expected.abs().max()
            problem = "" if error <= tolerance else f"its scores are off by {error:.0%} of the largest"
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError) as failure:
            problem = str(failure)
        if problem:
            raise KalmError(
                f"the language model {name} does not read {what} as kalm needs: {problem}. Allowed: models that heed "
                "position_ids and 4-D attention masks, and whose output layer alone makes the scores, such as Llama, "
                "Qwen2 and Mistral"
            )


def _scores_in_one_pass(backbone: Backbone, vectors: Tensor) -> Tensor:
    size = vectors.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=vectors.device).tril()
    hidden = backbone(vectors, torch.arange(size, device=vectors.device)[None], causal[None, None])
    return backbone.text_logits(hidden[0, -1])


def _scores_packed(backbone: Backbone, vectors: Tensor) -> Tensor:
    """A prompt of two tokens, two tokens of another text behind it, then the rest of this one, which skips those."""
    others = backbone.embed_tokens(torch.tensor([_OTHERS]))
    row = torch.cat([vectors[:, :2], others, vectors[:, 2:]], dim=1)
    sees = torch.ones(6, 6, dtype=torch.bool, device=vectors.device).tril()
    sees[4:, 2:4] = False
    hidden = backbone(row, torch.tensor([[0, 1, 2, 3, 2, 3]], device=vectors.device), sees[None, None])
    return backbone.text_logits(hidden[0, -1])


def _scores_with_cache(backbone: Backbone, vectors: Tensor) -> Tensor:
    """A prompt of two tokens, padded to three, then one token after the other."""
    prompt = torch.cat([vectors[:, :2], torch.zeros_like(vectors[:, :1])], dim=1)
    cache = backbone.make_cache(1, len(_TOKENS))
    backbone.read(prompt, cache)
    cache.trim(torch.tensor([2], device=vectors.device))
    for step in (2, 3):
        hidden = backbone.read(vectors[:, [step]], cache)
    return backbone.text_logits(hidden[0, -1])
