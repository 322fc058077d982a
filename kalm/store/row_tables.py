"""Tables in which each row stands once: the states and action texts of a store, and the lines of its instructions.

Observations that are grids or texts occur over and over (an expert that crosses the same room in 500 rollouts), so a
store keeps the bytes of each once and gives transitions its row number.

Shape letters: S rows of a table, B rows that are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import DataError
from kalm.core.specs import GridObservation, Observation

ROWS_FILE = "rows.memmap"
END_FILE = "end.memmap"


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


def joined(rows: list[bytes], first_end: int = 0) -> tuple[bytes, NDArray[np.int64]]:
    """Rows one after the other, and behind which byte each ends, counted from ``first_end``."""
    return b"".join(rows), first_end + np.cumsum([len(row) for row in rows], dtype=np.int64)


def split(content: Tensor, row_bytes: int | None, end: Tensor | None) -> list[bytes]:
    """The rows that ``joined`` joined, of ``row_bytes`` each or ending where ``end`` says."""
    joined_rows = content.numpy().tobytes()
    if row_bytes is None:
        assert end is not None
        ends = end.tolist()
        return [joined_rows[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    return [joined_rows[start : start + row_bytes] for start in range(0, len(joined_rows), row_bytes)]


def to_rows(values: NDArray[Any], spec: Observation | None = None) -> list[bytes]:
    """Observations or texts as the bytes that a table keeps.

    Args:
        values: Observations of a rollout, or texts, along the first axis.
        spec: What the observations are; None for texts.
    """
    if not isinstance(spec, GridObservation):
        return [str(value).encode() for value in values]
    dtype = spec.dtype if spec.num_numbers else spec.grid_dtype
    return split(
        torch.from_numpy(np.frombuffer(values.astype(dtype).tobytes(), np.uint8).copy()), spec.dtype.itemsize, None
    )


class RowTable:
    """A table of a finished store, by memory map."""

    def __init__(self, folder: Path, row_bytes: int | None, num_rows: int, num_bytes: int) -> None:
        """Open it.

        Args:
            folder: Where it lies.
            row_bytes: Bytes of a row; None for texts.
            num_rows: How many rows it has, S.
            num_bytes: Bytes of all rows.

        Raises:
            DataError: If the last text ends elsewhere than its bytes do.
        """
        self.num_rows = num_rows
        self._rows = torch.from_file(str(folder / ROWS_FILE), shared=False, size=num_bytes, dtype=torch.uint8)
        self._end: Tensor | None = None
        if row_bytes is not None:
            self._rows = self._rows.view(num_rows, row_bytes)
            return
        self._end = torch.from_file(str(folder / END_FILE), shared=False, size=num_rows, dtype=torch.int64)
        if int(self._end[-1]) != num_bytes:
            raise DataError(
                f"{folder}: its texts end at byte {int(self._end[-1])} of {num_bytes}; make the store again"
            )

    def texts(self, rows: Tensor) -> list[str]:
        """Texts, for int64 row numbers of shape (B,)."""
        assert self._end is not None
        found = []
        for row in rows.tolist():
            start = int(self._end[row - 1]) if row else 0
            found.append(self._rows[start : int(self._end[row])].numpy().tobytes().decode())
        return found

    def observations(self, rows: Tensor, spec: Observation) -> NDArray[Any]:
        """Observations as a ``Rollout`` has them, for int64 row numbers of any shape.

        Args:
            rows: Row numbers, shape (...).
            spec: What the observations are.
        """
        if not isinstance(spec, GridObservation):
            texts: NDArray[Any] = np.array(self.texts(rows.reshape(-1)), dtype=np.str_).reshape(rows.shape)
            return texts
        found = self._rows[rows.reshape(-1)].numpy().view(spec.dtype)
        grids: NDArray[Any] = (found if spec.num_numbers else found["grid"]).reshape(
            *rows.shape, *(() if spec.num_numbers else spec.shape)
        )
        return grids
