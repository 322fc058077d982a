"""Separate models for actions and states: the first wish of KALM's authors, who had one for both.

Both read the same prompts, states and actions, each in vectors of its own; what they make of a token lies side by side.
Actions, ends and text are read off one, next states off the other. So no parameter serves two masters: what one model
learns cannot disturb the other. Text belongs to the model of actions, which has to know what was asked for; the world
does what it does whatever was asked for.

Shape letters: B rows, L tokens of a prompt, S new tokens of a row, H hidden size of both models together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import DataError
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.backbones.key_value_cache import KeyValueCache, RowMemory


class TwoBackbones(Backbone):
    """Two language models side by side; any two that cut texts into the same number of tokens.

    General text is learned by the model of actions alone.

    The output layer for text of the model of states has nothing to learn.
    """

    def __init__(self, actions: Backbone, states: Backbone) -> None:
        """Put two models side by side.

        Args:
            actions: Actions, ends and text are read off this one.
            states: Next states are read off this one.
        """
        super().__init__()
        self.actions, self.states = actions, states
        self.hidden_size = actions.hidden_size + states.hidden_size
        self.end_of_text = actions.end_of_text
        sizes = [part.context_size for part in self.parts if part.context_size is not None]
        self.context_size = min(sizes, default=None)
        self.reads_any_mask = actions.reads_any_mask and states.reads_any_mask

    @property
    def parts(self) -> tuple[Backbone, ...]:  # noqa: D102
        return self.actions, self.states

    def load(self, device: torch.device) -> None:  # noqa: D102
        for part in self.parts:
            part.load(device)

    def save_adapter(self, folder: Path) -> bool:
        """Write the folders ``actions`` and ``states``, as far as these models have adapters."""
        return any([self.actions.save_adapter(folder / "actions"), self.states.save_adapter(folder / "states")])

    @property
    def identity(self) -> dict[str, Any]:  # noqa: D102
        return {"class": type(self).__name__, **_of_both(self.actions.identity, self.states.identity)}

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102
        return {"class": type(self).__name__, **_of_both(self.actions.description, self.states.description)}

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors of both models, (B, L, H); and True at real tokens, (B, L).

        Raises:
            DataError: If the models cut a prompt into different numbers of tokens.
        """
        (of_actions, prompt_mask), (of_states, other_mask) = (part.embed_prompts(prompts) for part in self.parts)
        if not torch.equal(prompt_mask, other_mask):
            sizes = zip(prompt_mask.sum(dim=1).tolist(), other_mask.sum(dim=1).tolist(), strict=True)
            prompt, (size, other) = next(entry for entry in zip(prompts, sizes, strict=True) if len(set(entry[1])) > 1)
            raise DataError(
                f"the model of actions reads the prompt {prompt[:60]!r} as {size} tokens, the model of states as "
                f"{other}; both must read the same rows. Choose two models with the same tokenizer, such as two of one "
                "family"
            )
        return torch.cat([of_actions, of_states], dim=-1), prompt_mask

    def forward(  # noqa: D102
        self, embeddings: Tensor, positions: Tensor, attention_mask: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        assert cache is None or isinstance(cache, JoinedCache)
        caches = [None, None] if cache is None else cache.parts
        vectors = embeddings.split([part.hidden_size for part in self.parts], dim=-1)
        of_each = zip(self.parts, vectors, caches, strict=True)
        return torch.cat([part(own, positions, attention_mask, memory) for part, own, memory in of_each], dim=-1)

    def make_cache(self, num_rows: int, num_columns: int, column_step: int = 1) -> KeyValueCache:  # noqa: D102
        return JoinedCache([part.make_cache(num_rows, num_columns, column_step) for part in self.parts])

    def learn_vocabulary(self, texts: Sequence[str]) -> None:  # noqa: D102
        self.actions.learn_vocabulary(texts)

    def tokenize(self, text: str) -> list[int]:  # noqa: D102
        return self.actions.tokenize(text)

    @property
    def beginning_of_text(self) -> list[int]:  # noqa: D102
        return self.actions.beginning_of_text

    def decode(self, token_ids: Sequence[int]) -> str:  # noqa: D102
        return self.actions.decode(token_ids)

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Vectors of text that is being written: nothing for the model of states, off which no text is read.

        No state or action stands behind such a text, so that nothing it makes of these zeros reaches a result.
        """
        vectors = self.actions.embed_tokens(token_ids)
        return torch.cat([vectors, vectors.new_zeros(*token_ids.shape, self.states.hidden_size)], dim=-1)

    def text_logits(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.actions.text_logits(hidden[..., : self.actions.hidden_size])

    @property
    def frozen_fingerprint(self) -> str:  # noqa: D102
        return f"{self.actions.frozen_fingerprint} and {self.states.frozen_fingerprint}"


class JoinedCache(KeyValueCache):
    """What both decoders remember: a cache without layers of its own that keeps others in step with itself.

    Positions and attention masks are its own; a decoder is given its part, where it writes its keys and values.
    """

    def __init__(self, parts: Sequence[KeyValueCache]) -> None:
        """Join empty caches, one a decoder, all planned for the same rows and columns on one device."""
        first = parts[0]
        super().__init__(0, first.num_rows, first.num_columns, first.lengths.device, column_step=first.column_step)
        self.parts = list(parts)
        self._fix_addresses()

    def make_room(self, num_tokens: int) -> None:  # noqa: D102
        super().make_room(num_tokens)
        for part in self.parts:
            part.make_room(num_tokens)

    def advance(self, num_tokens: int) -> None:  # noqa: D102
        super().advance(num_tokens)
        for part in self.parts:
            part.advance(num_tokens)

    def trim(self, lengths: Tensor) -> None:  # noqa: D102
        super().trim(lengths)
        for part in self.parts:
            part.trim(lengths)

    def forget(self, rows: NDArray[np.int64]) -> None:  # noqa: D102
        super().forget(rows)
        for part in self.parts:
            part.forget(rows)

    def memory(self, row: int) -> RowMemory:  # noqa: D102
        memories = [part.memory(row) for part in self.parts]
        return RowMemory(tuple(own.keys[0] for own in memories), tuple(own.values[0] for own in memories))

    def recall(self, row: int, memory: RowMemory) -> None:  # noqa: D102
        self._count(row, memory.num_tokens)
        for part, keys, values in zip(self.parts, memory.keys, memory.values, strict=True):
            part.recall(row, RowMemory((keys,), (values,)))

    def restart(self, num_rows: int) -> None:  # noqa: D102
        super().restart(num_rows)
        for part in self.parts:
            part.restart(num_rows)

    def keep(self, rows: NDArray[np.int64]) -> None:  # noqa: D102
        super().keep(rows)
        for part in self.parts:
            part.keep(rows)

    def reserve(self, num_columns: int) -> None:  # noqa: D102
        super().reserve(num_columns)
        for part in self.parts:
            part.reserve(num_columns)


def _of_both(actions: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    """In one level, so that a message can name the one entry that differs."""
    of_actions = {f"actions.{key}": value for key, value in actions.items()}
    return of_actions | {f"states.{key}": value for key, value in states.items()}
