"""Tensors of the Open Inference Protocol: as JSON and as bytes, from and to arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.http.refusal import bad

BYTES = "BYTES"
"""The datatype of texts."""
DATATYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Name of a datatype → numpy's type of the bytes that travel."""
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        name: Of the tensor.
        datatype: One of `DATATYPES`, or `BYTES`.
        shape: Of one example, without the batch's axis.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Elements of one example."""
        return math.prod(self.shape)

    def told(self) -> str:
        """Return datatype and shape in a few words: `UINT8 [n, 1, 28, 28]`."""
        return f"{self.datatype} [{', '.join(map(str, ('n', *self.shape)))}]"

    def check(self, datatype: str, shape: Sequence[int]) -> int:
        """Hold what a request says of this input against the model.

        Returns:
            The examples that it brings, at least 1.

        Raises:
            Refused: If datatype or shape differ, or it brings no example.
        """
        if datatype != self.datatype or tuple(shape[1:]) != self.shape or not shape:
            raise bad(
                f"input {self.name!r} is {datatype[:32]} {list(shape)[:16]}; "
                f"the model takes {self.told()}"
            )
        if shape[0] < 1:
            raise bad(f"input {self.name!r}: a batch of {shape[0]}; needed: at least 1 example")
        return shape[0]


def datatype_of(array: NDArray[Any]) -> str:
    """Return the name of an array's datatype."""
    return _NAMES[array.dtype.kind, array.dtype.itemsize]


def from_json(tensor: Tensor, count: int, data: Sequence[Any]) -> NDArray[Any]:
    """Return the values that JSON gives, nested as the shape or flat in its order.

    A `null` among numbers of type FP64 is a missing one, NaN.

    Args:
        tensor: That it must fit.
        count: Examples that it must bring.
        data: As the JSON holds it.

    Returns:
        [count, *shape]; texts as objects.

    Raises:
        Refused: If it does not fit.
    """
    shape = (count, *tensor.shape)
    flat, kinds = _flattened(tensor.name, shape, data)
    if len(flat) != math.prod(shape):
        raise bad(
            f"input {tensor.name!r}: {len(flat)} values, but the shape {list(shape)} "
            f"needs {math.prod(shape)}"
        )
    if tensor.datatype == BYTES:
        _only(tensor, kinds, {str})
        found = np.empty(len(flat), dtype=object)
        found[:] = flat
        return found.reshape(shape)
    whole = tensor.datatype.startswith("UINT")
    _only(tensor, kinds, {int} if whole else {int, float, type(None)})
    dtype = DATATYPES[tensor.datatype]
    try:
        array = np.array(flat, dtype=dtype.newbyteorder("="))
    except OverflowError:
        raise bad(f"input {tensor.name!r}: a value is beyond the range of {tensor.datatype}") from (
            None
        )
    # JSON has no NaN: only `null` may have become one.
    if not whole and not np.isfinite(array).all():
        lost = int((~np.isfinite(array)).sum())
        if lost != sum(value is None for value in flat):
            raise bad(f"input {tensor.name!r}: a value is no finite number")
    return array.reshape(shape)


def _flattened(
    name: str, shape: tuple[int, ...], data: Sequence[Any]
) -> tuple[Sequence[Any], set[type]]:
    """Return the values of nested lists in order, and their types."""
    flat, kinds = data, set(map(type, data))
    for depth in range(1, len(shape)):
        if list not in kinds:
            break
        if kinds != {list} or set(map(len, flat)) != {shape[depth]}:
            raise bad(f"input {name!r}: its lists do not have the shape {list(shape)}")
        flat = list(chain.from_iterable(flat))
        kinds = set(map(type, flat))
    return flat, kinds


_CALLED = {
    bool: "a truth value",
    dict: "an object",
    float: "a number with a fraction",
    int: "a number",
    list: "a list",
    str: "a text",
    type(None): "null",
}


def _only(tensor: Tensor, kinds: set[type], allowed: set[type]) -> None:
    if wrong := kinds - allowed:
        called = " and ".join(sorted(_CALLED.get(kind, kind.__name__) for kind in wrong))
        raise bad(f"input {tensor.name!r} of type {tensor.datatype} holds {called}")


def from_bytes(tensor: Tensor, count: int, data: memoryview) -> NDArray[Any]:
    """Return the values that bytes give: little endian, row by row.

    Args:
        tensor: That it must fit.
        count: Examples that it must bring.
        data: Of a text: its length in four bytes, and its UTF-8.

    Returns:
        [count, *shape], which may share memory with `data`; texts as objects.

    Raises:
        Refused: If it has another size, or holds no UTF-8.
    """
    shape = (count, *tensor.shape)
    needed = math.prod(shape)
    if tensor.datatype == BYTES:
        return _texts(tensor.name, needed, data).reshape(shape)
    dtype = DATATYPES[tensor.datatype]
    if data.nbytes != needed * dtype.itemsize:
        raise bad(
            f"input {tensor.name!r}: {data.nbytes} bytes, but {tensor.datatype} {list(shape)} "
            f"has {needed * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _texts(name: str, needed: int, data: memoryview) -> NDArray[Any]:
    wrong = f"input {name!r}: its bytes are not {needed} texts, each after its length"
    if data.nbytes < needed * _LENGTH.size:
        raise bad(wrong)
    found: list[str] = []
    at = 0
    while at < data.nbytes:
        start = at + _LENGTH.size
        if start > data.nbytes or len(found) == needed:
            raise bad(wrong)
        at = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if at > data.nbytes:
            raise bad(wrong)
        try:
            found.append(str(data[start:at], "utf-8"))
        except UnicodeDecodeError:
            raise bad(f"input {name!r}: text {len(found)} is not UTF-8") from None
    if len(found) != needed:
        raise bad(wrong)
    texts = np.empty(needed, dtype=object)
    texts[:] = found
    return texts


def to_bytes(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes that travel; texts [n, …] each after its length."""
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    coded = [text.encode() for text in array.ravel()]
    return b"".join(part for text in coded for part in (_LENGTH.pack(len(text)), text))
