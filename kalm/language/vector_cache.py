"""A disk cache of one vector, or one row of vectors, a text; safe when several processes fill it at once.

Each call that computes something new writes one new safetensors file under a name of its own and renames it into
place, so that a reader never sees half a file and writers never wait for each other. A text that two processes
compute at the same moment is stored twice, which costs a little room and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

_HASH_BYTES = 16


class VectorCache:
    """Rows of vectors by the hash of their text.

    Shape letters: L vectors of a text (1 for a sentence embedding, its tokens otherwise), E numbers in a vector.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open a cache; files are read when first asked.

        Args:
            folder: Where the files lie; made on the first write. None keeps vectors in memory only.
        """
        self._folder = folder
        self._rows: dict[bytes, Tensor] = {}
        self._read_files: set[str] = set()

    def get(self, texts: Sequence[str]) -> list[Tensor | None]:
        """What is known of each text: a float32 tensor of shape (L, E), or None."""
        keys = [text_hash(text) for text in texts]
        if any(key not in self._rows for key in keys):
            self._read_new_files()
        return [self._rows.get(key) for key in keys]

    def put(self, vectors: Mapping[str, Tensor]) -> None:
        """Remember new texts, in memory and in one new file.

        Args:
            vectors: For each text a float32 tensor of shape (L, E).
        """
        new = {text_hash(text): rows for text, rows in vectors.items()}
        self._rows.update(new)
        if self._folder is None or not new:
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


def text_hash(text: str) -> bytes:
    """Key of a text in the cache."""
    return hashlib.sha256(text.encode()).digest()[:_HASH_BYTES]
