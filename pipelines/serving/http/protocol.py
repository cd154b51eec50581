"""The Open Inference Protocol, version 2: requests to examples, and outputs to answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.http.live import ALIAS, Loaded
from pipelines.serving.http.refusal import bad, large
from pipelines.serving.http.request_json import InputTensor, WantedOutput, read_request
from pipelines.serving.http.tensor_signature import Signature
from pipelines.serving.http.tensors import (
    BYTES,
    Tensor,
    from_bytes,
    from_json,
    to_bytes,
)

MOST_JSON = 16 * 2**20
"""Most bytes of JSON in one request; larger ones send their tensors as bytes."""
MOST_NUMBERS = 2**24
"""Most numbers in the outputs of one request."""
MOST_NUMBERS_AS_JSON = 2**20
"""Most numbers of one output that is sent as JSON."""
_ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode
_MOST_KNOWN, _LONGEST_KNOWN = 256, 2048  # entries and bytes of requests' JSON that is remembered
_SIZE = "binary_data_size"


@dataclass(frozen=True)
class ChosenOutput:
    """An output that the answer holds.

    Attributes:
        at: Its place among the outputs.
        binary: Whether its values travel as bytes.
        classes: How many likeliest classes stand for it; 0: the values themselves.
    """

    at: int
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Question:
    """A request for inference, checked.

    Attributes:
        id: That the client gave it; empty if it gave none.
        inputs: Examples as the data hold them, [n, *input_shape].
        outputs: That the answer holds, in this order.
    """

    id: str
    inputs: NDArray[Any]
    outputs: tuple[ChosenOutput, ...]


@dataclass(frozen=True)
class _Part:
    """One input of a request: its values, or how many bytes of them lie behind the JSON."""

    tensor: Tensor
    count: int
    size: int
    values: NDArray[Any] | None


@dataclass(frozen=True)
class _Head:
    """The JSON of a request, checked."""

    id: str
    parts: tuple[_Part, ...]
    outputs: tuple[ChosenOutput, ...]


def parse(body: bytes, header_length: int | None, signature: Signature) -> Question:
    """Read the body of a request for inference.

    Args:
        body: JSON, with the bytes of tensors behind it.
        header_length: Bytes of the JSON; None: all.
        signature: Of the version that is asked.

    Raises:
        Refused: If anything about it is wrong.
    """
    if header_length is None:
        header_length = len(body)
    if not 0 < header_length <= len(body):
        raise bad(
            f"a body of {len(body)} bytes, of which {header_length} are JSON "
            "(Inference-Header-Content-Length)"
        )
    if header_length > MOST_JSON:
        raise large(
            f"{header_length} bytes of JSON; allowed: {MOST_JSON}; send tensors as bytes instead"
        )
    text = body[:header_length]
    head = signature.known.get(text)
    if head is None:
        head = _head(text, signature)
        if not head.id and all(part.values is None for part in head.parts):
            # A client sends the same JSON again and again; only the bytes behind it differ.
            if len(signature.known) >= _MOST_KNOWN:
                signature.known.clear()
            if len(text) <= _LONGEST_KNOWN:
                signature.known[text] = head
    examples = signature.examples(_given(head.parts, memoryview(body)[header_length:]))
    return Question(head.id, examples, head.outputs)


def _head(text: bytes, signature: Signature) -> _Head:
    request = read_request(text)
    settings = request.get("parameters", {})
    for key, value in settings.items():
        if key.startswith("sequence_") and value not in (0, "", False):
            raise bad(f"parameter {key!r}: the model keeps no state between requests")
    name = request.get("id", "")
    if not name.isprintable():
        raise bad("id: allowed are printable characters")
    parts = _parts(request["inputs"], signature)
    outputs = _outputs(request.get("outputs", ()), settings, signature)
    _bounded(parts[0].count, outputs, signature)
    return _Head(name, parts, outputs)


def _parts(tensors: Sequence[InputTensor], signature: Signature) -> tuple[_Part, ...]:
    known = {tensor.name: tensor for tensor in signature.inputs}
    found: dict[str, _Part] = {}
    for one in tensors:
        name = one["name"]
        tensor = known.get(name)
        if tensor is None:
            raise bad(f"input {name!r}: the model takes {', '.join(known)}")
        if name in found:
            raise bad(f"input {name!r} occurs twice")
        count = tensor.check(one["datatype"], one["shape"])
        if count * signature.numbers > MOST_NUMBERS:
            most = MOST_NUMBERS // signature.numbers
            raise large(f"a batch of {count}; allowed in one request: {most}")
        settings = one.get("parameters", {})
        _no_shared_memory(f"input {name!r}", settings)
        size = settings.get(_SIZE)
        if size is None:
            if "data" not in one:
                raise bad(f"input {name!r} has neither data nor {_SIZE}")
            found[name] = _Part(tensor, count, 0, from_json(tensor, count, one["data"]))
            continue
        if "data" in one:
            raise bad(f"input {name!r} has data and {_SIZE}")
        if type(size) is not int or size < 0:
            raise bad(f"input {name!r}: {_SIZE} = {size}; needed: a number of bytes")
        found[name] = _Part(tensor, count, size, None)
    if absent := [name for name in known if name not in found]:
        raise bad(f"lacks the input {', '.join(map(repr, absent))}")
    return tuple(found.values())


def _given(parts: Sequence[_Part], rest: memoryview) -> dict[str, NDArray[Any]]:
    """Return the values of the inputs by name."""
    given = {}
    for part in parts:
        name, values = part.tensor.name, part.values
        if values is None:
            if part.size > rest.nbytes:
                raise bad(
                    f"input {name!r}: {_SIZE} = {part.size}, but {rest.nbytes} bytes are left "
                    "behind the JSON"
                )
            values = from_bytes(part.tensor, part.count, rest[: part.size])
            rest = rest[part.size :]
        given[name] = values
    if rest.nbytes:
        raise bad(f"{rest.nbytes} bytes behind the JSON belong to no input")
    return given


def _outputs(
    wanted: Sequence[WantedOutput], settings: Mapping[str, Any], signature: Signature
) -> tuple[ChosenOutput, ...]:
    usual = _truth("binary_data_output", settings.get("binary_data_output", False))
    names = [output.name for output in signature.outputs]
    if not wanted:
        return tuple(ChosenOutput(at, usual) for at in range(len(names)))
    found: dict[str, ChosenOutput] = {}
    for one in wanted:
        name, own = one["name"], one.get("parameters", {})
        if name not in names:
            raise bad(f"output {name!r}: the model gives {', '.join(names)}")
        if name in found:
            raise bad(f"output {name!r} occurs twice")
        _no_shared_memory(f"output {name!r}", own)
        at = names.index(name)
        classes = own.get("classification", 0)
        if classes:
            known = len(signature.form.classes)
            if not signature.scored(at):
                raise bad(f"output {name!r}: classification, but it has no scores of classes")
            if type(classes) is not int or not classes >= 1:
                raise bad(f"output {name!r}: classification = {classes}; allowed: 1 to {known}")
            classes = min(classes, known)
        found[name] = ChosenOutput(
            at, _truth("binary_data", own.get("binary_data", usual)), int(classes)
        )
    return tuple(found.values())


def _truth(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise bad(f"parameter {name!r} = {value}; allowed: true, false")
    return value


def _no_shared_memory(where: str, settings: Mapping[str, Any]) -> None:
    if any(name.startswith("shared_memory_") for name in settings):
        raise bad(f"{where}: shared memory is not served; send the values")


def _bounded(examples: int, outputs: Sequence[ChosenOutput], signature: Signature) -> None:
    """Refuse an answer that would be too large as JSON."""
    for one in outputs:
        numbers = examples * (one.classes or signature.outputs[one.at].numbers)
        if not one.binary and numbers > MOST_NUMBERS_AS_JSON:
            raise large(
                f"output {signature.outputs[one.at].name!r} would have {numbers} numbers; allowed "
                f"as JSON: {MOST_NUMBERS_AS_JSON}; ask for binary_data instead"
            )


def answer(
    name: str,
    loaded: Loaded,
    request: str,
    outputs: Sequence[ChosenOutput],
    arrays: tuple[NDArray[Any], NDArray[Any]],
) -> tuple[bytes, int | None]:
    """Write the body of an answer.

    Args:
        name: Of the model.
        loaded: The version that answered.
        request: Id of the request.
        outputs: That the answer holds.
        arrays: Raw outputs and answers, finite, [n, …].

    Returns:
        The body, and how many bytes of it are JSON if bytes of tensors follow.
    """
    signature = loaded.signature
    told: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for one in outputs:
        array, tensor = arrays[one.at], signature.outputs[one.at]
        if one.classes:
            array = classified(array, signature.form.classes, one.classes)
            tensor = Tensor(tensor.name, BYTES, (one.classes,))
        said: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(array.shape),
        }
        if one.binary:
            content = to_bytes(array)
            said["parameters"] = {_SIZE: len(content)}
            behind.append(content)
        else:
            said["data"] = array.ravel().tolist()
        told.append(said)
    head = _ENCODE(
        {
            "model_name": name,
            "model_version": str(loaded.version),
            "id": request,
            "parameters": {"alias": ALIAS},
            "outputs": told,
        }
    ).encode()
    return (b"".join((head, *behind)), len(head)) if behind else (head, None)


def classified(scores: NDArray[Any], classes: Sequence[str], count: int) -> NDArray[np.object_]:
    """Return the likeliest classes as Triton writes them: `score:place:name`.

    Args:
        scores: [n, classes].
        classes: Their names.
        count: How many are named, at most those there are.

    Returns:
        Texts [n, count], likeliest first; of equal scores the earlier class first.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    found = np.empty(order.shape, dtype=object)
    for row, places in enumerate(order.tolist()):
        found[row] = [f"{scores[row, at]:f}:{at}:{classes[at]}" for at in places]
    return found
