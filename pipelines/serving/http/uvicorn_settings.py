"""How uvicorn serves: what it needs, and how it is set."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from pipelines.core.errors import UserError
from pipelines.serving.http.settings import ServeSettings

if TYPE_CHECKING:
    import uvicorn

    from pipelines.systems.loopback import Application

KEEP_ALIVE = 75
"""Seconds that a connection may wait for its next request."""


def require_packages() -> None:
    """Check that what makes the server fast is there.

    Raises:
        UserError: Naming the package that is absent.
    """
    for name in ("uvicorn", "httptools", "uvloop"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"the package {name} is not installed, and serving needs it: pip install {name}"
            )


def configuration(application: Application, settings: ServeSettings) -> uvicorn.Config:
    """Return how uvicorn serves an application: its own signal handlers and logs stay as they are.

    Args:
        application: Of `pipelines.serving.http.application.create_app`.
        settings: Of the server.

    Raises:
        UserError: If httptools or uvloop is absent.
    """
    require_packages()
    import uvicorn

    from pipelines.serving.http.bounded import BoundedProtocol

    return uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        backlog=2048,
    )
