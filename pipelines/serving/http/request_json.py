"""The JSON of the Open Inference Protocol, version 2, as one strict parser reads it."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from pipelines.serving.http.refusal import bad, short

_STRICT = ConfigDict(extra="forbid", strict=True)
Name = Annotated[str, Field(min_length=1, max_length=256)]
Parameters = Annotated[dict[Name, bool | int | float | str], Field(max_length=64)]
Shape = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=16)]


@with_config(_STRICT)
class InputTensor(TypedDict):
    """One input: its values stand in `data`, or as bytes behind the JSON."""

    name: Name
    shape: Shape
    datatype: Annotated[str, Field(max_length=32)]
    parameters: NotRequired[Parameters]
    data: NotRequired[list[Any]]


@with_config(_STRICT)
class WantedOutput(TypedDict):
    """An output that the answer should hold."""

    name: Name
    parameters: NotRequired[Parameters]


@with_config(_STRICT)
class InferRequest(TypedDict):
    """A question to the model."""

    id: NotRequired[Annotated[str, Field(max_length=128)]]
    parameters: NotRequired[Parameters]
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=16)]
    outputs: NotRequired[Annotated[list[WantedOutput], Field(max_length=64)]]


class OutputTensor(TypedDict):
    """One output: its values stand in `data`, or as bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: NotRequired[dict[str, Any]]
    data: NotRequired[list[Any]]


class InferAnswer(TypedDict):
    """An answer of the model."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any]
    outputs: list[OutputTensor]


class Refusal(TypedDict):
    """Why a request was not answered."""

    error: str


_REQUEST = TypeAdapter(InferRequest)


def read_request(content: bytes | memoryview) -> InferRequest:
    """Return the request that some JSON is.

    Raises:
        Refused: If it is no JSON, or is no such request; the reason names the place.
    """
    try:
        return _REQUEST.validate_json(bytes(content))
    except ValidationError as error:
        raise bad(_told(error)) from None
    except (RecursionError, ValueError) as error:
        raise bad(f"the request cannot be read: {error}") from None


def _told(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    return short(f"{where}: {found['msg']}" if where else found["msg"])
