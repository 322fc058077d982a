"""Tables in which each row stands once: the states and action texts of a store, and the lines of its instructions.

Observations that are grids or texts occur over and over (an expert that crosses the same room in 500 rollouts), so a
store keeps the bytes of each once and gives transitions its row number.

Shape letters: S rows of a table, B rows that are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.durable import HashedFile
from kalm.core.errors import DataError
from kalm.core.specs import GridObservation, Observation
from kalm.store.layout import END_FILE, ROWS_FILE


class RowNumbers:
    """Numbers rows in the order in which each first came; remembers 16 bytes of each, however long they are."""

    def __init__(self) -> None:
        """Know no row yet."""
        self._number_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many different rows came."""
        return len(self._number_of)

    def add(self, rows: Iterable[bytes]) -> tuple[NDArray[np.int64], list[bytes]]:
        """Take rows in.

        Returns:
            The number of each row, and those that had never come before, in order.
        """
        numbers, new = [], []
        for row in rows:
            num_known = len(self._number_of)
            number = self._number_of.setdefault(blake2b(row, digest_size=16).digest(), num_known)
            if number == num_known:
                new.append(row)
            numbers.append(number)
        return np.array(numbers, dtype=np.int64), new


def number_rows(parts: Sequence[list[bytes]]) -> tuple[list[NDArray[np.int64]], Tensor, Tensor]:
    """Rows of several parts as one table.

    Returns:
        For each part the number of each of its rows; the bytes of the different rows one after the other, uint8; and
        behind which byte each of these ends, int64.
    """
    table, numbers, different = RowNumbers(), [], []
    for rows in parts:
        number, new = table.add(rows)
        numbers.append(number)
        different += new
    content = np.frombuffer(bytearray(b"".join(different)), dtype=np.uint8)
    return numbers, torch.from_numpy(content), torch.from_numpy(_ends(different))


class TableFiles:
    """The files of a table in the making: each different row of all shards is written once."""

    def __init__(self, files: Mapping[str, HashedFile], table: str, row_bytes: int | None) -> None:
        """Take the open files of a store; ``row_bytes`` is None for texts."""
        self.numbers = RowNumbers()
        self._files, self._table, self._row_bytes, self._num_bytes = files, table, row_bytes, 0

    def add(self, content: Tensor, end: Tensor) -> NDArray[np.int64]:
        """Take the table of a shard in, as ``number_rows`` made it; returns the numbers its rows have now."""
        joined, ends = content.numpy().tobytes(), end.tolist()
        rows = [joined[start:stop] for start, stop in pairwise([0, *ends])]  # a shard may have no row
        numbers, new = self.numbers.add(rows)
        self._files[f"{self._table}/{ROWS_FILE}"].write(b"".join(new))
        ends_of_new = self._num_bytes + _ends(new)
        self._num_bytes += sum(map(len, new))
        if self._row_bytes is None:
            self._files[f"{self._table}/{END_FILE}"].write(ends_of_new.tobytes())
        return numbers


def to_rows(values: NDArray[Any], spec: Observation | None = None) -> list[bytes]:
    """Observations of a rollout, or texts (without a ``spec``), as the bytes that a table keeps."""
    if not isinstance(spec, GridObservation):
        return [str(value).encode() for value in values]
    content = values.astype(spec.dtype if spec.num_numbers else spec.grid_dtype).tobytes()
    size = spec.dtype.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]


class RowTable:
    """A table of a finished store, by memory map."""

    def __init__(self, folder: Path, row_bytes: int | None, num_rows: int, num_bytes: int) -> None:
        """Open it: S rows of ``row_bytes`` (None for texts), or of ``num_bytes`` together.

        Raises:
            DataError: If the last text ends elsewhere than its bytes do.
        """
        self._rows = torch.from_file(str(folder / ROWS_FILE), shared=False, size=num_bytes, dtype=torch.uint8)
        self._end: Tensor | None = None
        if row_bytes is not None:
            self._rows = self._rows.view(num_rows, row_bytes)
            return
        self._end = torch.from_file(str(folder / END_FILE), shared=False, size=num_rows, dtype=torch.int64)
        if int(self._end[-1]) != num_bytes:
            raise DataError(f"{folder}: its texts end at byte {self._end[-1]} of {num_bytes}; make the store again")

    def texts(self, rows: Tensor) -> list[str]:
        """Texts, for int64 row numbers of shape (B,)."""
        assert self._end is not None
        places = ((int(self._end[row - 1]) if row else 0, int(self._end[row])) for row in rows.tolist())
        return [self._rows[start:end].numpy().tobytes().decode() for start, end in places]

    def observations(self, rows: Tensor, spec: Observation) -> NDArray[Any]:
        """Observations as a ``Rollout`` has them, for int64 row numbers of any shape."""
        if not isinstance(spec, GridObservation):
            texts: NDArray[Any] = np.array(self.texts(rows.reshape(-1)), dtype=np.str_).reshape(rows.shape)
            return texts
        found: NDArray[Any] = self._rows[rows.reshape(-1)].numpy().view(spec.dtype)
        if spec.num_numbers:
            return found.reshape(rows.shape)
        return found["grid"].reshape(*rows.shape, *spec.shape)


def _ends(rows: Sequence[bytes]) -> NDArray[np.int64]:
    return np.cumsum([len(row) for row in rows], dtype=np.int64)
