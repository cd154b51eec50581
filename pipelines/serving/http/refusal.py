"""Requests that are not answered: a status and the reason, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

from pipelines.core.text import shown

Headers = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")
_LONGEST = 600


class Refused(Exception):
    """A request is not answered.

    Attributes:
        status: Of HTTP; 4xx where the client can help it.
        reason: One line for people.
        headers: That the refusal carries besides its type and length.
    """

    def __init__(
        self, status: HTTPStatus, reason: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = short(reason)
        self.headers = list(headers)


def bad(reason: str) -> Refused:
    """Return a refusal of a request that breaks the protocol: 400."""
    return Refused(HTTPStatus.BAD_REQUEST, reason)


def unfit(reason: str) -> Refused:
    """Return a refusal of a well-formed request that the model cannot answer: 422."""
    return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, reason)


def large(reason: str) -> Refused:
    """Return a refusal of what is larger than the server takes: 413."""
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)


def busy(reason: str, seconds: int = 1) -> Refused:
    """Return a refusal of what may be tried again after some seconds: 429."""
    again = (b"retry-after", str(seconds).encode())
    return Refused(HTTPStatus.TOO_MANY_REQUESTS, reason, [again])


def unready(reason: str) -> Refused:
    """Return a refusal because nothing can answer yet, or no longer: 503."""
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, reason, [(b"retry-after", b"1")])


def short(text: str) -> str:
    """Return text as one printable line of bounded length."""
    line = shown(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def body(reason: str) -> bytes:
    """Return the body of a refusal, as Triton's clients read it."""
    return json.dumps({"error": reason}).encode()
