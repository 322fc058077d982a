"""Whether a language model reads vectors, positions and masks as kalm relies on, and up to how many tokens it does.

Architectures differ: some scale embeddings or scores outside of their layers, some take positions from where a token
stands in a row, some heed a mask of their own making only. Such a model would train and imagine without an error, and
wrongly. A few tokens, and then more of them, read in several ways tell, before anything is learned.

What begins later than a probe is long is no probe's to find: it is listed here, and rows end before it begins.

Shape letters: S tokens of the probe, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kalm.core.errors import KalmError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone

_PROBES = (4, 128)  # tokens; the first shows what is wrong at all, the second what is wrong from some token on
# Names in configurations of what begins after so many tokens, and what that is. Kalm's masks know nothing of it.
_BEGIN_LATER = {
    "sliding_window": "some of its layers see no further back",
    "attention_chunk_size": "some of its layers see one chunk of this size",
    "window_size": "some of its layers see no further back",
    "index_topk": "its layers see this many tokens, chosen by themselves",
}
_CHANGING_ROPES = ("dynamic", "longrope")  # other rotations for longer rows, also of the tokens that came before


def readable_tokens(config: PretrainedConfig) -> tuple[int | None, str]:
    """Most tokens that a model reads in a row as kalm needs, or None; and what limits them, if not its length."""
    limits = [(size, f"{name} is {size}: {what}") for name, size, what in _later_structures(config)]
    length = getattr(config, "max_position_embeddings", None)
    if length is not None:
        limits.append((length, ""))
    return min(limits, default=(None, ""), key=lambda limit: limit[0])


def _later_structures(config: PretrainedConfig) -> Iterator[tuple[str, int, str]]:
    kinds = getattr(config, "layer_types", None)
    for name, what in _BEGIN_LATER.items():
        size = getattr(config, name, None)
        is_off = name == "sliding_window" and (
            getattr(config, "use_sliding_window", True) is False
            or (kinds is not None and not any("sliding" in kind for kind in kinds))
        )
        if isinstance(size, int) and size > 0 and not is_off:
            yield name, size, what
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in _CHANGING_ROPES:
            name = "original_max_position_embeddings"
            size = rope.get(name) or getattr(config, name, None) or config.max_position_embeddings
            yield name, size, f"its positions ({rope['rope_type']}) turn otherwise in longer rows"


@torch.inference_mode()
def require_plain_reading(backbone: HuggingFaceBackbone, name: str, tolerance: float) -> None:
    """Compare what a model says to the same tokens, given in each way that kalm gives them.

    Args:
        backbone: The model, loaded.
        name: For the message.
        tolerance: How far scores may be off by rounding, as a part of the largest.

    Raises:
        KalmError: If scores differ from the model's own by more.
    """
    ways: dict[str, Any] = {"vectors in place of tokens": _scores_in_one_pass, "a cache": _scores_with_cache}
    if backbone.reads_any_mask:
        ways["several texts behind one prompt"] = _scores_packed
    for size in _PROBES:
        if backbone.context_size is not None and size + 2 > backbone.context_size:
            continue
        token_ids = (3 + 2 * torch.arange(size + 2)) % backbone.num_embeddings
        for what, scores_in_this_way in ways.items():
            problem = _problem(backbone, token_ids, scores_in_this_way, tolerance)
            if problem:
                raise KalmError(
                    f"the language model {name} does not read {what} as kalm needs: {problem} ({size} tokens). "
                    "Allowed: models that heed position_ids and 4-D attention masks, and whose output layer alone "
                    "makes the scores, such as Llama, Qwen2 and Mistral"
                )


def _problem(backbone: HuggingFaceBackbone, token_ids: Tensor, scores_in_this_way: Any, tolerance: float) -> str:
    """What is wrong with one way of reading; the last two tokens belong to another text."""
    try:
        expected = backbone.own_scores(token_ids[None, :-2])[0, -1].float()
        vectors = backbone.embed_tokens(token_ids[None])
        found = scores_in_this_way(backbone, vectors[:, :-2], vectors[:, -2:])
        error = (found - expected).abs().max() / expected.abs().max()
        return "" if error <= tolerance else f"its scores are off by {error:.0%} of the largest"
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError) as failure:
        return str(failure)


def _scores_in_one_pass(backbone: HuggingFaceBackbone, vectors: Tensor, others: Tensor) -> Tensor:
    size = vectors.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=vectors.device).tril()
    hidden = backbone(vectors, torch.arange(size, device=vectors.device)[None], causal[None, None])
    return backbone.text_logits(hidden[0, -1])


def _scores_packed(backbone: HuggingFaceBackbone, vectors: Tensor, others: Tensor) -> Tensor:
    """Half of the tokens, two tokens of another text behind them, then the rest, which skips those."""
    size, half = vectors.shape[1], vectors.shape[1] // 2
    row = torch.cat([vectors[:, :half], others, vectors[:, half:]], dim=1)
    positions = torch.arange(size, device=vectors.device)
    sees = torch.ones(size + 2, size + 2, dtype=torch.bool, device=vectors.device).tril()
    sees[half + 2 :, half : half + 2] = False
    packed = torch.cat([positions[: half + 2], positions[half:]])
    hidden = backbone(row, packed[None], sees[None, None])
    return backbone.text_logits(hidden[0, -1])


def _scores_with_cache(backbone: HuggingFaceBackbone, vectors: Tensor, others: Tensor) -> Tensor:
    """Half of the tokens and padding behind them, then all but the last one, then that."""
    size, half = vectors.shape[1], vectors.shape[1] // 2
    prompt = torch.cat([vectors[:, :half], torch.zeros_like(vectors[:, :1])], dim=1)
    cache = backbone.make_cache(1, size)
    backbone.read(prompt, cache)
    cache.trim(torch.tensor([half], device=vectors.device))
    backbone.read(vectors[:, half:-1], cache)
    hidden = backbone.read(vectors[:, -1:], cache)
    return backbone.text_logits(hidden[0, -1])
