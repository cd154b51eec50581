"""The safetensors file of one split, written and read without a copy of it in memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path

Tensors = dict[str, NDArray[Any]]
_NAMES = {"u1": "U8", "u2": "U16", "f4": "F32", "f8": "F64", "i8": "I64"}
"""numpy's type → that of the format, in the order in which the format aligns them, last first."""
_PART = 2**26
"""Bytes that are written at once."""
MAPPED = 2**28
"""Inputs of so many bytes stay in their file, and their pages are read when they are needed; ranks
on one machine share them. Smaller ones are read at once."""


def write(path: Path, tensors: Tensors) -> None:
    """Write tensors as `safetensors` does, byte for byte.

    Args:
        path: Is replaced atomically, so that what is mapped from an older file stays.
        tensors: Of the types that the splits have.

    Raises:
        OSError: Also if the disk is full, for which a mapped output would end the process.
    """
    kinds = list(_NAMES)
    order = sorted(tensors, key=lambda name: (-kinds.index(_kind(tensors[name])), name))
    header, at = {}, 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": _NAMES[_kind(array)],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            _write(file, tensors[name])


def _kind(array: NDArray[Any]) -> str:
    return array.dtype.str[1:]


def _write(file: IO[bytes], array: NDArray[Any]) -> None:
    """Write an array's values in order, little end first."""
    rows = max(1, _PART * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        part = np.ascontiguousarray(array[start : start + rows])
        file.write(part.astype(part.dtype.newbyteorder("<"), copy=False).data)


def read(path: Path, names: frozenset[str], large: str) -> Tensors:
    """Read tensors.

    Args:
        path: Written by `write`, or by anyone else.
        names: All that it must hold.
        large: The tensor that is mapped from the file, not writable, if it is large.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a whole file of this format, or holds other tensors.
    """
    if not path.stat().st_size:
        raise UserError(f"{path}: corrupt or truncated: it is empty")
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header against the size
            if set(file.keys()) != names:
                raise UserError(
                    f"{path}: contains {sorted(file.keys())}, not {', '.join(sorted(names))}"
                )
            mapped = _mapped(path, large)
            return {
                name: mapped if name == large and mapped is not None else file.get_tensor(name)
                for name in names
            }
    except SafetensorError as error:
        raise UserError(f"{path}: corrupt or truncated: {error}") from None


def _mapped(path: Path, name: str) -> NDArray[Any] | None:
    """Return a tensor of a file whose header is checked; None if it is small or not there."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(length)).get(name)
    if found is None:
        return None
    start, end = found["data_offsets"]
    kinds = {said: kind for kind, said in _NAMES.items()}
    if end - start < MAPPED or found["dtype"] not in kinds:
        return None
    dtype, shape = np.dtype(f"<{kinds[found['dtype']]}"), tuple(found["shape"])
    return np.asarray(np.memmap(path, dtype, mode="r", offset=8 + length + start, shape=shape))
