"""General text as a language model reads it: each text for itself, every token predicted from those before it.

In front of a text stands what the model's tokenizer puts in front of any, a beginning or nothing. Where a text ends is
not learned: it may be a piece of a longer one.

Shape letters: B texts, t tokens of all texts with what stands in front, m tokens to be predicted, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kalm.data.grounding_batch import GeneralText
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.packing import counts, pack


class EmbeddedTexts(NamedTuple):
    """Texts ready to be read, one after the other.

    Attributes:
        vectors: Of each token, shape (t, H).
        lengths: Tokens of each text, int64 of shape (B,).
        before: The token before each one that is to be predicted, int64 of shape (m,), in [0, t).
        target: What is to be predicted there, int64 of shape (m,).
    """

    vectors: Tensor
    lengths: Tensor
    before: Tensor
    target: Tensor


def embed_texts(backbone: Backbone, text: GeneralText, device: torch.device) -> EmbeddedTexts:
    """Cut texts to what is to be read of them, and embed that.

    Args:
        backbone: The language model.
        text: Texts; none is allowed.
        device: Of the model.
    """
    most = text.max_tokens if backbone.context_size is None else min(text.max_tokens, backbone.context_size)
    beginning = backbone.beginning_of_text
    ids_of = [[*beginning, *backbone.tokenize(entry)][:most] for entry in text.texts]
    token_ids = torch.tensor([token_id for ids in ids_of for token_id in ids], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(ids) for ids in ids_of], dtype=torch.int64, device=device)
    is_predicted = counts(lengths) > 0  # all but the first, which has nothing before it
    return EmbeddedTexts(
        vectors=backbone.embed_tokens(token_ids),
        lengths=lengths,
        before=is_predicted.nonzero().flatten() - 1,
        target=token_ids[is_predicted],
    )


def read_texts(backbone: Backbone, text: GeneralText, device: torch.device) -> tuple[Tensor, Tensor]:
    """Run over texts alone.

    Args:
        backbone: The language model.
        text: One text or more.
        device: Of the model.

    Returns:
        Hidden vectors where tokens are predicted, shape (m, H); what is to be predicted, int64 of shape (m,).
    """
    texts = embed_texts(backbone, text, device)
    no_rollouts = torch.zeros(0, dtype=torch.int64, device=device)
    packing = pack(
        texts.lengths, no_rollouts, no_rollouts, no_rollouts, text.max_tokens if backbone.reads_any_mask else None
    )
    rows = packing.rows([packing.prompt_slot], [texts.vectors])
    hidden = backbone(rows, packing.positions, packing.attention_mask).flatten(0, 1)
    return hidden[packing.prompt_slot[texts.before]], texts.target
