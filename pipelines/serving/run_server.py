"""`prong serve`: the version that answers, the HTTP server before it, and their end."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType

import uvicorn
from pythonjsonlogger.json import JsonFormatter

from pipelines.core.paths import Layout
from pipelines.serving.http.application import create_app
from pipelines.serving.http.live import Live
from pipelines.serving.http.metrics import Metrics
from pipelines.serving.http.settings import ServeSettings
from pipelines.serving.http.uvicorn_settings import configuration, require_packages
from pipelines.serving.listening import listen, url
from pipelines.serving.request_log import RequestLog, log_folder
from pipelines.serving.shadow.traffic import ShadowTraffic
from pipelines.serving.watch.following import Following
from pipelines.systems.processes import exit_on_sigterm

LAST_CALL = 1.0
"""Seconds after SIGTERM in which requests are still taken: each answer says that the connection
closes, so that clients that keep theirs lose none."""
_LOGGED = "%(asctime)s %(levelname)s %(name)s %(message)s"


def run_server(layout: Layout, model: str, settings: ServeSettings) -> None:
    """Serve the champion until SIGTERM or Ctrl-C.

    Prints one line once requests are answered. What happens later is logged to stderr as JSON.

    Args:
        layout: The checkout.
        model: The registered model's name.
        settings: Of the command line.

    Raises:
        UserError: If a package is missing, the address cannot be listened on, there is nothing to
            answer from, or it does not run on the provider asked for.
    """
    require_packages()
    exit_on_sigterm()
    with ExitStack() as stack:
        keyed = settings.api_key is not None
        listener = stack.enter_context(listen(settings.host, settings.port, keyed=keyed))
        host, port = listener.getsockname()[:2]
        settings = replace(settings, host=host, port=port)
        _log_as_json()
        live = Live(model)
        log = RequestLog(log_folder(layout, model), settings.log_share, settings.log_inputs)
        stack.callback(log.close)
        metrics = Metrics(live)
        shadow = stack.enter_context(_shadow(layout, live, settings, metrics))
        following = Following(
            layout, live, settings, on_challenger=None if shadow is None else shadow.follow
        )
        stack.callback(following.end)
        following.begin()
        app = create_app(live, settings, log, metrics, shadow, checkout=layout.root)
        gc.collect()
        gc.freeze()  # what stays for good need not be looked at again
        version = live.current.version
        said = f"{model} v{version} is served at {url(listener)}"

        def close() -> None:
            app.draining = True

        server = _Server(
            configuration(app, settings), begun=lambda: print(said, flush=True), closing=close
        )
        server.run(sockets=[listener])


@contextmanager
def _shadow(
    layout: Layout, live: Live, settings: ServeSettings, metrics: Metrics
) -> Iterator[ShadowTraffic | None]:
    """Yield what the challenger is asked through; None if it is to see nothing."""
    if not settings.shadow:
        yield None
        return
    log = RequestLog(log_folder(layout, live.name) / "shadow")
    shadow = ShadowTraffic(layout, live, settings.shadow, log=log, metrics=metrics)
    shadow.begin()
    try:
        yield shadow
    finally:
        shadow.end()
        log.close()


def _log_as_json() -> None:
    """Let all that is logged be one line of JSON each, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    names = {"asctime": "time", "levelname": "level", "name": "logger"}
    handler.setFormatter(JsonFormatter(_LOGGED, rename_fields=names))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("prong", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Server(uvicorn.Server):
    """A server that gives its clients notice before it closes, and then ends with exit code 0."""

    def __init__(
        self, config: uvicorn.Config, *, begun: Callable[[], None], closing: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._begun, self._closing = begun, closing
        self._ends: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        if self.started:
            self._begun()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Give notice at SIGTERM; end at once at a second one, or at Ctrl-C."""
        if sig == signal.SIGTERM:
            if self._ends is None:
                self._closing()
                self._ends = time.monotonic() + LAST_CALL
            else:
                self.should_exit = True
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Say whether to end; called ten times a second."""
        if self._ends is not None and time.monotonic() >= self._ends:
            self.should_exit = True
        return await super().on_tick(counter)
