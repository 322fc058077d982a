"""Files that survive a kill: written beside their target, then renamed into place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file so that whoever looks sees either all of it or what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename alone is not, until its folder is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HashedFile:
    """A new file that knows its SHA-256 and is on the disk once closed."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for writing, in place of what was there."""
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Append to the file."""
        self._file.write(content)
        self._digest.update(content)

    def close(self) -> str:
        """Flush to the disk; returns the SHA-256 of all that was written."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        """The file itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close, whatever happened."""
        self.close()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
