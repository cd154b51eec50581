"""Requests of the Open Inference Protocol, and their answers as arrays."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from served import Reply

TYPES = {"u1": "UINT8", "u2": "UINT16", "f4": "FP32", "f8": "FP64"}


def coded(array: NDArray[Any]) -> bytes:
    """An array as Triton's client sends it."""
    if array.dtype.kind != "O":
        return array.tobytes()
    texts = [text.encode() for text in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def tensor(name: str, array: NDArray[Any], binary: bool = False) -> dict[str, Any]:
    kind = "BYTES" if array.dtype.kind == "O" else TYPES[array.dtype.str[1:]]
    made: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": kind}
    if binary:
        made["parameters"] = {"binary_data_size": len(coded(array))}
    else:
        made["data"] = array.tolist()
    return made


def question(
    arrays: dict[str, NDArray[Any]], binary: bool = False, **more: Any
) -> tuple[bytes, bytes]:
    """The JSON of a request, and the bytes behind it."""
    inputs = [tensor(name, array, binary) for name, array in arrays.items()]
    behind = b"".join(map(coded, arrays.values())) if binary else b""
    return json.dumps({"inputs": inputs, **more}).encode(), behind


def outputs(reply: Reply) -> dict[str, NDArray[Any]]:
    """The outputs of an answer by name."""
    assert reply.status == 200, reply.body
    head = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    told, rest = json.loads(reply.body[:head]), reply.body[head:]
    numpy_types = {name: code for code, name in TYPES.items()}
    found = {}
    for one in told["outputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if one["datatype"] == "BYTES":
            values: Any = one["data"] if size is None else _texts(rest[:size])
            array = np.array(values, dtype=object)
        elif size is None:
            array = np.array(one["data"], numpy_types[one["datatype"]])
        else:
            array = np.frombuffer(rest[:size], numpy_types[one["datatype"]])
        rest = rest[size or 0 :]
        found[one["name"]] = array.reshape(one["shape"])
    assert not rest
    return found


def _texts(data: bytes) -> list[str]:
    found = []
    while data:
        (length,) = struct.unpack("<I", data[:4])
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return found
