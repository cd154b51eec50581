"""The server as an ASGI application: requests in, answers out.

Inference does not pass through a framework: its requests are read here. All other paths are those
of `pages`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import secrets
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from pipelines.serving.http import bodies, describe, protocol, refusal, uploads
from pipelines.serving.http.batching import Batcher
from pipelines.serving.http.guard import Gatekeeper
from pipelines.serving.http.live import ALIAS, Live, Loaded, NotReady, ShadowReceiver
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.pages import pages
from pipelines.serving.http.recording import Recorder
from pipelines.serving.http.refusal import Headers, Refused, bad, busy, unready
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.telling import Teller
from pipelines.serving.request_log import RequestLog
from pipelines.systems.loopback import Message, Receive, Scope, Send

_INFER = re.compile(r"/v2/models/(.+?)(?:/versions/([^/]+))?/infer")
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_FILES_AT_ONCE = 2
_BODIES_IN_MEMORY = 8
_MOST_TOP = 1000
_LOG = logging.getLogger(__name__)


class Exchange:
    """One request, on its way.

    Attributes:
        headers: By name in lower case; of equal names the last.
        id: Of the request: what the client calls it, else a new one.
        arrived: `time.perf_counter()`.
        version: That answers; empty until it is known.
        begun: Whether its answer is being sent.
    """

    __slots__ = ("arrived", "begun", "headers", "id", "receive", "scope", "version")

    def __init__(self, scope: Scope, receive: Receive, new_id: Callable[[], str]) -> None:
        self.arrived = time.perf_counter()
        self.scope, self.receive = scope, receive
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.version, self.begun = "", False
        given = self.headers.get(b"x-request-id")
        sane = given is not None and _SANE_ID.fullmatch(given)
        self.id = given.decode() if given is not None and sane else new_id()


class Server:
    """The ASGI application.

    Attributes:
        draining: Set it when the server ends: it is not ready from then on, answers what comes all
            the same, and asks clients to close their connections.
    """

    def __init__(
        self,
        live: Live,
        settings: ServeSettings,
        log: RequestLog | None,
        metrics: Metrics,
        shadow: ShadowReceiver | None,
        checkout: Path,
    ) -> None:
        self.live, self.settings, self.metrics = live, settings, metrics
        self.draining = False
        self._log = log
        self._guard = Gatekeeper(settings.host, settings.api_key)
        recorder = Recorder(live, log, metrics, shadow, settings.drift_rate)
        self._batcher = Batcher(settings, metrics, recorder)
        self._teller = Teller(checkout)
        self._memory = bodies.BodyMemory(_BODIES_IN_MEMORY * settings.max_body)
        self._files = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="files")
        self._in_files = 0
        self._start, self._count = secrets.token_hex(6), itertools.count(1)
        self._pages = pages(self)
        metrics.watch(lambda: self._batcher.waiting, lambda: log.lost if log else 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        call = Exchange(scope, receive, self._new_id)
        path: str = scope["path"]
        route, status = "other", 500
        try:
            self._guard.check(path, call.headers)
            if found := _INFER.fullmatch(path):
                route = "infer"
                status = await self._answer(call, send, self._infer(call, *found.groups()))
            elif path == "/predict":
                route = "predict"
                status = await self._answer(call, send, self._predict(call))
            else:
                status = await self._page(call, send)
        except bodies.Gone:
            return
        except Refused as refused:
            status = refused.status
            await self._refuse(call, send, refused)
        except NotReady as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            await self._refuse(call, send, unready(str(error)))
        except Exception:
            _LOG.exception("a request failed: %s", call.id)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            if not call.begun:
                broken = Refused(HTTPStatus(status), "an error of the server")
                await self._refuse(call, send, broken)
        finally:
            seconds = time.perf_counter() - call.arrived
            self.metrics.answered(route, call.version, int(status), seconds)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._batcher.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._batcher.close()
                self._files.shutdown(wait=False, cancel_futures=True)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _new_id(self) -> str:
        return f"{self._start}-{next(self._count):x}"

    def loaded(self, model: str, version: str | None) -> Loaded:
        """Return the version that answers, if it is the one that is asked for.

        Raises:
            Refused: 404 if it is not.
            NotReady: If there is none yet.
        """
        if model != self.live.name:
            raise Refused(HTTPStatus.NOT_FOUND, f"no model {model!r}; served is {self.live.name!r}")
        loaded = self.live.current
        if version is not None and version != str(loaded.version):
            raise Refused(
                HTTPStatus.NOT_FOUND,
                f"version {version!r} of {model!r} is not the one that answers, "
                f"which is {loaded.version} ({ALIAS})",
            )
        return loaded

    def statistics(self) -> list[dict[str, Any]]:
        """Return what each version has answered, as Triton's clients read it."""
        totals = sorted(self._batcher.totals.items())
        return [one.told(self.live.name, version) for version, one in totals]

    def health(self) -> dict[str, Any]:
        """Return the state of the server for people."""
        log = self._log
        return describe.health(
            self.live,
            draining=self.draining,
            waiting=self._batcher.waiting,
            lost=log.lost if log else 0,
            log=log.problem if log else "",
        )

    async def _answer(self, call: Exchange, send: Send, made: Any) -> int:
        """Send what a handler makes: a body and its headers."""
        if call.scope["method"] != "POST":
            made.close()
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "allowed: POST", [(b"allow", b"POST")])
        content, headers = await made
        coding = bodies.coding_for(call.headers.get(b"accept-encoding", b""), len(content))
        if coding:
            content = await bodies.packed(content, coding, self._files)
            headers += [(b"content-encoding", coding), (b"vary", b"accept-encoding")]
        await self._send(call, send, HTTPStatus.OK, headers, content)
        return HTTPStatus.OK

    async def _send(
        self, call: Exchange, send: Send, status: HTTPStatus, headers: Headers, content: bytes
    ) -> None:
        headers.append((b"content-length", str(len(content)).encode()))
        headers += self._common(call)
        call.begun = True
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _common(self, call: Exchange) -> Headers:
        """Return the headers that each answer carries."""
        headers: Headers = []
        if call.id.isascii() and _SANE_ID.fullmatch(call.id.encode()):
            headers.append((b"x-request-id", call.id.encode()))
        if call.version:
            version = (b"x-model-version", call.version.encode())
            headers += [version, (b"x-model-alias", ALIAS.encode())]
        if self.draining:
            headers.append((b"connection", b"close"))
        return headers

    async def _refuse(self, call: Exchange, send: Send, refused: Refused) -> None:
        headers = [refusal.JSON, *refused.headers]
        if refused.status is HTTPStatus.REQUEST_TIMEOUT:
            headers.append((b"connection", b"close"))
        await self._send(call, send, refused.status, headers, refusal.body(refused.reason))

    async def _page(self, call: Exchange, send: Send) -> int:
        """Let the pages answer; return the status."""
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, call.begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), *self._common(call)]
            await send(message)

        await self._pages(call.scope, call.receive, noted)
        return status

    async def _body(self, call: Exchange) -> tuple[bytes, int]:
        """Return the body of a request, and the bytes taken of the memory for bodies."""
        headers, most = call.headers, self.settings.max_body
        bodies.check_length(headers, most)
        body = await bodies.read(call.receive, most, self._memory)
        held = len(body)
        coding = headers.get(b"content-encoding")
        if coding and coding.lower() != b"identity":
            try:
                loop = asyncio.get_running_loop()
                body = await loop.run_in_executor(self._files, bodies.unpacked, body, coding, most)
                self._memory.take(len(body))
                held += len(body)
            except BaseException:
                self._memory.give(held)
                raise
        return body, held

    async def _infer(
        self, call: Exchange, model: str, version: str | None
    ) -> tuple[bytes, Headers]:
        loaded = self.loaded(model, version)
        call.version = str(loaded.version)
        if self._batcher.full():
            raise busy("too many requests wait; try again later")
        body, held = await self._body(call)
        try:
            question = protocol.parse(body, _header_length(call.headers), loaded.signature)
            call.id = question.id or call.id
            arrays = await self._batcher.ask(loaded, call.id, question.inputs, call.arrived)
            content, head = protocol.answer(model, loaded, call.id, question.outputs, arrays)
        finally:
            self._memory.give(held)
        if head is None:
            return content, [refusal.JSON]
        size = (b"inference-header-content-length", str(head).encode())
        return content, [(b"content-type", b"application/octet-stream"), size]

    async def _predict(self, call: Exchange) -> tuple[bytes, Headers]:
        loaded = self.live.current
        call.version = str(loaded.version)
        top = _top(call.scope["query_string"])
        if self._batcher.full() or self._in_files >= self.settings.queue:
            raise busy("too many requests wait; try again later")
        body, held = await self._body(call)
        self._in_files += 1
        try:
            most = protocol.MOST_NUMBERS_AS_JSON // loaded.signature.numbers
            kind = call.headers.get(b"content-type", b"")
            form = loaded.model.form
            names, inputs = await asyncio.get_running_loop().run_in_executor(
                self._files, lambda: uploads.examples(uploads.uploads(body, kind), form, most)
            )
            _, answers = await self._batcher.ask(loaded, call.id, inputs, call.arrived)
        finally:
            self._in_files -= 1
            self._memory.give(held)
        told = self._teller.told(self.live.name, loaded, call.id, names, inputs, answers, top)
        return json.dumps(told, ensure_ascii=False, allow_nan=False).encode(), [refusal.JSON]


def _header_length(headers: dict[bytes, bytes]) -> int | None:
    said = headers.get(b"inference-header-content-length")
    if said is None:
        return None
    if not (said.isdigit() and len(said) < 12):
        raise bad("Inference-Header-Content-Length must be a number of bytes")
    return int(said)


def _top(query: bytes) -> int:
    try:
        values = parse_qs(query.decode(), max_num_fields=16).get("top", ["3"])
        top = int(values[-1]) if len(values[-1]) < 6 else 0
    except ValueError:
        top = 0
    if not 1 <= top <= _MOST_TOP:
        raise bad(f"top: allowed are 1 to {_MOST_TOP}")
    return top


def create_app(
    live: Live,
    settings: ServeSettings,
    log: RequestLog | None,
    metrics: Metrics,
    shadow: ShadowReceiver | None = None,
    *,
    checkout: Path | None = None,
) -> Server:
    """Return the server as an ASGI application; it starts with its lifespan.

    Args:
        live: The version that answers; it may come later.
        settings: Of the server.
        log: Where answered requests are written; None: nowhere.
        metrics: Of the same `live`.
        shadow: Where a copy of the traffic goes; None: nowhere.
        checkout: A path in the checkout that holds the code of the user's own task; default: the
            current folder.
    """
    # What clients send makes Pillow warn; Python would print and remember every such text.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Server(live, settings, log, metrics, shadow, checkout or Path())
