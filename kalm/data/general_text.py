"""The user's own text, mixed into grounding so that a pretrained model keeps what it knew.

KALM's authors suspect that fine-tuning on rollouts alone costs a language model knowledge, and would mix in general
text. What of it is held out shows the price, whether any is mixed in or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.data.language_batches import GeneralText
from kalm.data.rollout_sources import BY_CONTENT

JSON_LINES = ".jsonl"
_LEAST_TOKENS = 8
_CHARACTERS_PER_TOKEN = 4  # about as many as a tokenizer's words have in English
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 256  # pieces; enough for a mean that shows
_HELD_OUT_BATCH = 32


@dataclass(frozen=True)
class GeneralTextSource:
    """The user's own text: where it lies, and how much of it a batch has.

    Args:
        files: File, or files, of text that the model should not forget how to write: plain text with empty lines
            between texts, or ``.jsonl`` with an object a line that has a ``text``. All of it is read into memory. A
            tenth is held out, whose loss every validation reports.
        num_pieces: Pieces of that text a batch, to be learned beside the rollouts; 0 only validates on it.
        num_tokens: About as many tokens a piece; what is longer is cut, at the context of the model too.
    """

    files: str | list[str] = field(default_factory=list, metadata=BY_CONTENT)
    num_pieces: int = 0
    num_tokens: int = 128

    @property
    def paths(self) -> list[str]:
        """The files as a list."""
        return [self.files] if isinstance(self.files, str) else list(self.files)

    def check(self) -> None:
        """Refuse numbers that are out of range, and text without a file, with a ``DataError``."""
        if self.num_pieces < 0 or self.num_tokens < _LEAST_TOKENS:
            raise DataError(
                f"general_text.num_pieces is {self.num_pieces} and general_text.num_tokens is {self.num_tokens}; they "
                f"must be 0 or more, and {_LEAST_TOKENS} or more"
            )
        if not self.paths:
            raise DataError("general_text.files names no file; give one, or set general_text to null")


class GeneralTextPieces:
    """Texts cut into pieces: the last tenth, or 256, is ``held_out``, the others are for ``training``."""

    def __init__(self, files: Sequence[str], num_tokens: int) -> None:
        """Read files, as ``read_texts`` does, and cut what they hold.

        Args:
            files: In UTF-8.
            num_tokens: About as many tokens a piece; the model reads no more of it.

        Raises:
            DataError: If a file cannot be read, or if there is too little to learn from and to hold out.
        """
        pieces = [piece for text in read_texts(files) for piece in _cut(text, _CHARACTERS_PER_TOKEN * num_tokens)]
        if len(pieces) < 2:
            raise DataError(
                f"general_text.files {', '.join(files)} makes {len(pieces)} piece of {num_tokens} tokens; it takes one "
                "to learn from and one to hold out. Give more text, or set general_text.num_tokens lower"
            )
        num_held_out = min(max(1, round(_HELD_OUT_SHARE * len(pieces))), _MOST_HELD_OUT)
        self.training, self.held_out = pieces[:-num_held_out], pieces[-num_held_out:]
        self._num_tokens = num_tokens
        self._order = lru_cache(maxsize=2)(self._make_order)

    def batch(self, index: int, size: int, seed: Sequence[int]) -> GeneralText:
        """The pieces of batch ``index``; every epoch shows each piece once, in an order of its own."""
        places = range(index * size, (index + 1) * size)
        epochs = (divmod(place, len(self.training)) for place in places)
        return GeneralText([self.training[self._order(epoch, *seed)[rest]] for epoch, rest in epochs], self._num_tokens)

    def held_out_batches(self) -> list[GeneralText]:
        """The pieces that are held out, some at a time."""
        starts = range(0, len(self.held_out), _HELD_OUT_BATCH)
        return [GeneralText(self.held_out[start : start + _HELD_OUT_BATCH], self._num_tokens) for start in starts]

    def _make_order(self, epoch: int, *seed: int) -> NDArray[np.int64]:
        return np.random.default_rng([*seed, epoch]).permutation(len(self.training))


def read_texts(files: Sequence[str]) -> list[str]:
    """The texts of some files, in their order.

    A file that ends in ``.jsonl`` holds an object a line, whose ``text`` counts; any other is plain text, with empty
    lines between texts. All are in UTF-8.

    Raises:
        DataError: If a file is missing, holds no text, or is not what it should be; with the line.
    """
    return [text for file in files for text in _read(Path(file))]


def _read(path: Path) -> list[str]:
    if not path.is_file():
        here = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(
            f"general_text: there is no file {path}; {path.parent} holds {', '.join(here[:10]) or 'nothing'}. Give "
            "files of plain text, or of JSON lines with a text each"
        )
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"general_text: {path} is not UTF-8: {error}. Convert it, with iconv for example") from error
    is_json = path.suffix == JSON_LINES
    texts = list(_text_of_each_line(path, content)) if is_json else re.split(r"\n\s*\n", content)
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise DataError(f"general_text: {path} holds no text; give another file, or set general_text to null")
    return texts


def _text_of_each_line(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"general_text: line {number} of {path} is no JSON: {error}. Each line must be an object such as "
                    '{"text": "..."}; a file of plain text must not end in .jsonl'
                ) from error
            text = entry.get("text") if isinstance(entry, dict) else None
            if not isinstance(text, str):
                raise DataError(
                    f'general_text: line {number} of {path} has no "text" that is a string. Each line must be an '
                    'object such as {"text": "..."}'
                )
            yield text


def _cut(text: str, size: int) -> Iterator[str]:
    """Pieces of at most so many characters, cut in front of spaces where there are any."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = space if space > start else end
        if text[start:end].strip():
            yield text[start:end]
        start = end
