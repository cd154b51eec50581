"""Bodies of requests and answers: bounded, unpacked, packed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from concurrent.futures import Executor
from http import HTTPStatus

from pipelines.serving.http.refusal import Refused, bad, busy, large
from pipelines.systems.loopback import Receive

PACKINGS = {b"gzip": 31, b"deflate": 15}
"""Content codings that are read and written → zlib's window bits."""
_PACKED_FROM = 1024
_SECONDS = 60.0
_SOON = 64 * 1024


class Gone(Exception):
    """The client went before its request was whole."""


class BodyMemory:
    """Bytes that bodies in flight may take together."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0

    def take(self, count: int) -> None:
        """Take bytes; `give` must follow.

        Raises:
            Refused: 429 if they would be too many.
        """
        if self._held + count > self._most:
            raise busy("the bodies of requests in flight take too much memory; try again later")
        self._held += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        self._held -= count


def check_length(headers: Mapping[bytes, bytes], most: int) -> None:
    """Look at the length that a body is said to have, before any of it is read.

    Raises:
        Refused: 413 if it is more than `most`.
    """
    said = headers.get(b"content-length", b"0")
    length = int(said) if said.isdigit() and len(said) < 20 else most + 1
    if length > most:
        raise large(f"a body of {said[:20].decode('latin-1')} bytes; allowed: {most} (--max-body)")


async def read(receive: Receive, most: int, memory: BodyMemory) -> bytes:
    """Return the body of a request; its bytes are taken of the memory and must be given back.

    Raises:
        Refused: 413 if it is too large; 408 if it takes too long; 429 if memory is short. Nothing
            is taken then.
        Gone: If the client went; likewise.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        if len(whole) > most:
            raise large(f"a body of more than {most} bytes (--max-body)")
        memory.take(len(whole))
        return whole
    body = bytearray()
    held = 0
    try:
        async with asyncio.timeout(_SECONDS):
            while True:
                if message["type"] != "http.request":
                    raise Gone
                part: bytes = message.get("body", b"")
                if len(body) + len(part) > most:
                    raise large(f"a body of more than {most} bytes (--max-body)")
                memory.take(len(part))
                held += len(part)
                body += part
                if not message.get("more_body"):
                    return bytes(body)
                message = await receive()
    except TimeoutError:
        memory.give(held)
        raise Refused(
            HTTPStatus.REQUEST_TIMEOUT, f"the body took more than {_SECONDS:g} seconds"
        ) from None
    except BaseException:
        memory.give(held)
        raise


def unpacked(body: bytes, coding: bytes, most: int) -> bytes:
    """Return what a packed body holds.

    Args:
        body: Of the request.
        coding: Its `Content-Encoding`.
        most: Bytes that it may unpack to; no more are ever held.

    Raises:
        Refused: 415 if the coding is not known, 413 if it holds too much, 400 if it is damaged.
    """
    bits = PACKINGS.get(coding.strip().lower())
    if bits is None:
        known = ", ".join(name.decode() for name in PACKINGS)
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Encoding {coding[:32].decode('latin-1')}; allowed: {known}",
        )
    unpacker = zlib.decompressobj(bits)
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise bad(f"the body is no {coding.decode('latin-1')} data: {error}") from None
    if len(found) > most:
        raise large(f"the body unpacks to more than {most} bytes (--max-body)")
    if not unpacker.eof or unpacker.unused_data:
        raise bad(f"the body is not one whole {coding.decode('latin-1')} stream")
    return found


def coding_for(accepted: bytes, size: int) -> bytes | None:
    """Return the coding that an answer of some size is packed with; None: it is not."""
    if size < _PACKED_FROM or not accepted:
        return None
    for one in accepted.lower().split(b","):
        name, _, weight = one.partition(b";")
        if name.strip() in PACKINGS and weight.replace(b" ", b"") not in (b"q=0", b"q=0.0"):
            return name.strip()
    return None


async def packed(body: bytes, coding: bytes, pool: Executor) -> bytes:
    """Return an answer packed."""
    if len(body) <= _SOON:
        return _pack(body, coding)
    return await asyncio.get_running_loop().run_in_executor(pool, _pack, body, coding)


def _pack(body: bytes, coding: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, PACKINGS[coding])
    return packer.compress(body) + packer.flush()
