"""uvicorn's parser of connections, with bounds on the size and the time of a request's headers."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipelines.serving.http import refusal

MOST_HEAD = 64 * 1024
"""Most bytes of a request's first line and headers."""
HEAD_SECONDS = 30.0
"""How long these may take, also from the start of the connection."""
_LARGE = f"headers of more than {MOST_HEAD} bytes"
# A client can break the protocol as often as it likes; that must not fill the log.
_QUIET = logging.getLogger("uvicorn.error.connections")
_QUIET.setLevel(logging.ERROR)
_CONTINUE = b"HTTP/1.1 100 "
_FRAMES = 16  # bytes around one byte of a body that is sent in chunks


class _Joining:
    """The transport of one answer, which sends its head together with its body.

    uvicorn writes them one after the other, and each write costs a call of the system and wakes the
    client.
    """

    __slots__ = ("_head", "_open", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._open = True

    def write(self, data: bytes) -> None:
        """Send what comes; the head of the answer only with what follows it."""
        if not self._open or data.startswith(_CONTINUE):
            self._transport.write(data)
        elif not self._head:
            self._head = data
        else:
            self._transport.writelines((self._head, data))
            self._open = False

    def is_closing(self) -> bool:
        """Say whether the connection ends."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection after what was written."""
        if self._open and self._head:
            self._transport.write(self._head)
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _QUIET
        self._given = self._body = 0  # bytes of this request: all, and those of its body
        self._head = True  # whether its headers are not complete
        self._large = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a client that says nothing is not waited for."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is too much for one request's headers."""
        if self._head and self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)
        self._given += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        beside = self._given - self._body
        if beside > MOST_HEAD and (self._head or beside > MOST_HEAD + _FRAMES * self._body):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _LARGE)

    def on_headers_complete(self) -> None:
        """Note that the headers are whole, and count them where they came with much else."""
        self._head = False
        self._stop()
        if self._given > MOST_HEAD:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MOST_HEAD:
                self._large = True
                raise ValueError(_LARGE)  # the parser stops, and says so by `send_400_response`
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["method"] != "HEAD":
            self.cycle.transport = _Joining(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Count the body, which the application bounds."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin to count for the next request."""
        self._given = self._body = 0
        self._head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses."""
        if self._large:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _LARGE)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"no request within {HEAD_SECONDS:g} seconds")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer outside the application, and close; not into an answer that has begun."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = refusal.body(reason)
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
