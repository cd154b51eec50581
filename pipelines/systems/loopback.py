"""Servers on loopback that answer only to who is meant: this machine's owner, by the right name.

Three kinds of callers reach a port of 127.0.0.1 and are refused here: other users of the machine
(no secret), web pages that the owner visits (foreign `Origin`), and web pages whose host name was
pointed at this machine after they were loaded, called DNS rebinding (foreign `Host`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ADDRESS = "127.0.0.1"
_NAMES = (ADDRESS, "localhost")
_UNSAFE_FETCHES = (b"cross-site", b"same-site")


def listen(port: int, tries: int = 1) -> socket.socket:
    """Return a socket that listens on a port of loopback, or on one soon after it.

    Args:
        port: The first one tried; 0 for any.
        tries: How many are tried.

    Raises:
        OSError: If all are busy.
    """
    last = min(port + tries, 65536) - 1
    for candidate in range(port, last):
        with suppress(OSError):  # busy
            return socket.create_server((ADDRESS, candidate))
    return socket.create_server((ADDRESS, last))


def port_of(listener: socket.socket) -> int:
    """Return the port on which a socket listens."""
    return int(listener.getsockname()[1])


def hosts(port: int) -> tuple[str, ...]:
    """Return the names, with the port, by which a server on loopback may be called."""
    return tuple(f"{name}:{port}" for name in _NAMES)


def origins(port: int) -> tuple[str, ...]:
    """Return the origins of the web pages that a server on loopback itself serves."""
    return tuple(f"http://{host}" for host in hosts(port))


class Guard:
    """An ASGI application in front of another; it lets pass what the owner sends.

    Attributes:
        credentials: `user:password` that each request must bring by HTTP Basic; None if the
            application asks for a secret by itself.
        open_path: Path that may be read without credentials.
    """

    def __init__(
        self, application: Application, port: int, credentials: str | None, open_path: str = ""
    ) -> None:
        self.credentials, self.open_path = credentials, open_path
        self._application = application
        bare = _NAMES if port == 80 else ()  # browsers leave out the usual port
        self._hosts = {name.encode() for name in (*hosts(port), *bare)}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        refused = self._refuse(scope)
        if refused is None:
            await self._application(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(send, *refused)

    def _refuse(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers = scope["headers"]
        host = _values(headers, b"host")
        if len(host) != 1 or host[0].lower() not in self._hosts:
            return HTTPStatus.FORBIDDEN, "this server is not called by that name (Host)"
        origin = _values(headers, b"origin")
        if any(value not in self._origins for value in origin):
            return HTTPStatus.FORBIDDEN, "no other web page may use this server (Origin)"
        if not origin and _fetched_by_another_page(scope, headers):
            return HTTPStatus.FORBIDDEN, "no other web page may use this server (Sec-Fetch-Site)"
        readable = scope["type"] == "http" and scope["method"] == "GET"
        if self.credentials is None or (readable and scope["path"] == self.open_path):
            return None
        given = _values(headers, b"authorization")
        if len(given) != 1 or not _same(given[0], self.credentials):
            return HTTPStatus.UNAUTHORIZED, "a user name and a password are needed"
        return None


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def _fetched_by_another_page(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Say whether another page fetches something; a link that a person follows is not that."""
    headers = list(headers)
    if not any(value in _UNSAFE_FETCHES for value in _values(headers, b"sec-fetch-site")):
        return False
    followed = scope.get("method") == "GET" and _values(headers, b"sec-fetch-dest") == [b"document"]
    return not followed


def _same(header: bytes, credentials: str) -> bool:
    scheme, _, coded = header.partition(b" ")
    try:
        given = base64.b64decode(coded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == b"basic" and hmac.compare_digest(given, credentials.encode())


def _unframed(send: Send) -> Send:
    """Return `send` with an answer's leave to be shown inside other pages withdrawn."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if not _values(headers, b"x-frame-options"):
                headers.append((b"x-frame-options", b"SAMEORIGIN"))
            message = {**message, "headers": headers}
        await send(message)

    return sent


async def _answer(send: Send, status: HTTPStatus, text: str) -> None:
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Basic realm="prong"'))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(application: Application, listener: socket.socket, log_level: str = "critical") -> None:
    """Serve on a listening socket until told to end.

    Args:
        application: Behind its guard.
        listener: Of `listen`.
        log_level: Of uvicorn.
    """
    import uvicorn

    settings = uvicorn.Config(
        application, log_level=log_level, lifespan="on", interface="asgi3", access_log=False
    )
    uvicorn.Server(settings).run(sockets=[listener])
