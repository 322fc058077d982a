"""The one module that reads pickles: ``.npy`` files of objects, by an unpickler that can make arrays and nothing else.

NumPy stores a dictionary of arrays as a pickle, and a pickle is a program. The unpickler here knows six names, each of
which leads to a class of this file rather than to NumPy's own: no callable of any other module can be reached, no
attribute is looked up, and an array's bytes must be in the file (a declared shape alone allocates nothing).
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError

_PLAIN_DTYPE = re.compile(r"[<>|=]?(b1|\?|[iu][1248]|f[248]|[SU][1-9]\d{0,5}|O8?)")
_MAX_DEPTH = 20
_UNREADABLE = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(EOFError, OSError, MemoryError, RecursionError, pickle.UnpicklingError),
)


def load_npy(path: str | Path) -> Any:
    """Read a ``.npy`` file, of numbers or of objects.

    Returns:
        An array; or, for a file that holds one object, that object: plain containers, numbers, strings and arrays.

    Raises:
        DataError: If the file is no ``.npy`` file, or its pickle asks for anything but arrays and plain containers. The
            message names what was asked for; nothing of it was run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not _holds_objects(file):
                file.seek(0)
                return np.load(file)  # refuses pickles by default
            result = _ArrayUnpickler(file).load()
        value = _plain(result, {}, 0)
        return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"{path} is not a .npy file that can be read: {error}") from error


class _Dtype:
    """Stands for ``numpy.dtype`` while a pickle is read."""

    def __init__(self, name: object = None, *_: object) -> None:
        if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
            raise DataError(f"it has an array of type {name!r}; allowed are numbers, strings and objects")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, fields = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(field is not None for field in fields):
            raise DataError("it has an array of a structured type; allowed are numbers, strings and objects")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for ``numpy.ndarray`` while a pickle is read; takes its bytes from the pickle, never from elsewhere."""

    content: NDArray[Any] | list[Any] | None = None
    shape: tuple[int, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise DataError("it has a malformed array")
        self.shape = tuple(shape)
        wanted = math.prod(self.shape)
        found = len(content) if dtype.dtype == object else len(content) // dtype.dtype.itemsize
        if wanted != found:
            raise DataError(f"it has an array of shape {self.shape} with {found} entries instead of {wanted}")
        if dtype.dtype == object:
            self.content = list(content)
        else:
            flat = np.frombuffer(content if isinstance(content, bytes) else content.encode("latin1"), dtype.dtype)
            self.content = flat.reshape(self.shape, order="F" if is_fortran else "C")


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    """Stands for NumPy's function of that name, which begins every pickled array."""
    if kind is not _Array or shape != (0,):
        raise DataError("it has a malformed array")
    return _Array()


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    """Stands for NumPy's function of that name, which makes a number."""
    if not isinstance(dtype, _Dtype) or dtype.dtype == object or len(content) != dtype.dtype.itemsize:
        raise DataError("it has a malformed number")
    return np.frombuffer(content, dtype.dtype)[0]


class _ArrayUnpickler(pickle.Unpickler):
    _KNOWN = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise DataError(
                f"its pickle asks for {module}.{name}, which could run any command. Allowed are arrays, numbers, "
                "strings and plain containers; ask whoever made the file for one without it"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("its pickle refers to an object outside the file")


def _holds_objects(file: BinaryIO) -> bool:
    """Read the header; leaves the file where the content begins."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return bool(read_header(file)[2].hasobject)


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Put real arrays where the stand-ins are; each shared value once, so that sharing cannot blow up."""
    if depth > _MAX_DEPTH:
        raise DataError(f"its containers are nested deeper than {_MAX_DEPTH}")
    if id(value) in done:
        return done[id(value)]
    result: Any
    if isinstance(value, _Array):
        result = value.content
        if isinstance(result, list):
            cells = np.empty(len(result), dtype=object)
            for index, cell in enumerate(result):
                cells[index] = _plain(cell, done, depth + 1)
            result = cells.reshape(value.shape)
    elif isinstance(value, dict):
        if not all(isinstance(key, (str, int)) for key in value):
            raise DataError("it has a dictionary whose keys are neither strings nor integers")
        result = {key: _plain(entry, done, depth + 1) for key, entry in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_plain(entry, done, depth + 1) for entry in value)
    elif value is None or isinstance(value, (str, bytes, bool, int, float, np.generic)):
        result = value
    else:
        raise DataError(f"it has a value of type {type(value).__name__}")
    done[id(value)] = result
    return result
