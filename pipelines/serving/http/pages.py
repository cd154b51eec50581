"""Everything but inference: health, metadata, statistics, and what Triton's clients ask besides.

FastAPI makes the OpenAPI document of these routes; those of inference are added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipelines.serving.http import describe, metrics
from pipelines.serving.http.live import Live, Loaded, NotReady
from pipelines.serving.http.openapi import complete
from pipelines.serving.http.refusal import Refused, body, short, unready
from pipelines.serving.http.request_json import Refusal
from pipelines.serving.http.settings import ServeSettings

_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "Refused, with the reason"},
    401: {"model": Refusal, "description": "A key is needed"},
    403: {"model": Refusal, "description": "Not allowed"},
    404: {"model": Refusal, "description": "No such model or version"},
    503: {"model": Refusal, "description": "No version is loaded yet, or the server is ending"},
}
_TRACE = {
    "trace_level": ["OFF"],
    "trace_rate": "0",
    "trace_count": "0",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
_LOGGING = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


class ServerState(Protocol):
    """What the pages show of the server."""

    draining: bool
    live: Live
    settings: ServeSettings
    metrics: metrics.Metrics

    def loaded(self, model: str, version: str | None) -> Loaded:
        """Return the version that answers, if it is the one that is asked for."""

    def statistics(self) -> list[dict[str, Any]]:
        """Return what each version has answered."""

    def health(self) -> dict[str, Any]:
        """Return the state of the server for people."""


def pages(state: ServerState) -> FastAPI:
    """Return the application that answers all but inference."""
    app = FastAPI(
        title="prong",
        version=describe.server()["version"],
        description="A released model behind the Open Inference Protocol, version 2.",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        responses=_REFUSED,
    )
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(NotReady, _not_ready)
    app.add_exception_handler(Exception, _broken)
    _health(app, state)
    _models(app, state)
    _unserved(app, state)
    inner = app.openapi
    app.openapi = lambda: complete(inner(), state.live.name)  # type: ignore[method-assign]
    return app


async def _unknown(request: Request, error: Exception) -> Response:
    """Answer a path that there is not, in the form of all refusals."""
    assert isinstance(error, HTTPException)
    reason = short(f"{request.method} {request.url.path}: {error.detail}")
    return Response(body(reason), error.status_code, error.headers, "application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {key.decode(): value.decode() for key, value in error.headers}
    return Response(body(error.reason), error.status, headers, "application/json")


async def _not_ready(request: Request, error: Exception) -> Response:
    return await _refused(request, unready(str(error)))


async def _broken(_: Request, error: Exception) -> Response:
    return Response(body("an error of the server"), 500, None, "application/json")


def _health(app: FastAPI, state: ServerState) -> None:
    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Say that the server runs."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        """Say that the server answers; 503 otherwise."""
        _ready(state)
        return {"ready": True}

    @app.get("/v2/models/{model}/ready")
    async def model_ready(model: str) -> dict[str, bool]:
        """Say that the model answers; 503 or 404 otherwise."""
        state.loaded(model, None)
        _ready(state)
        return {"ready": True}

    @app.get("/v2/models/{model}/versions/{version}/ready")
    async def version_ready(model: str, version: str) -> dict[str, bool]:
        """Say that a version answers; 503 or 404 otherwise."""
        state.loaded(model, version)
        _ready(state)
        return {"ready": True}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return the state of the server for people."""
        return state.health()

    @app.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Return counts and times for Prometheus."""
        return Response(state.metrics.text(), media_type=metrics.CONTENT_TYPE)


def _ready(state: ServerState) -> None:
    if state.draining:
        raise unready("the server is ending")
    if not state.live.ready:
        raise unready("no released version is loaded yet")


def _models(app: FastAPI, state: ServerState) -> None:
    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """Return the metadata of the server."""
        return describe.server()

    @app.get("/v2/models/stats")
    async def all_statistics() -> dict[str, Any]:
        """Return what each version has answered."""
        return {"model_stats": state.statistics()}

    @app.post("/v2/repository/index")
    async def index() -> list[dict[str, str]]:
        """Return the model that is served."""
        return describe.index(state.live, state.draining)

    def both(path: str, of: Callable[[Loaded], dict[str, Any]], summary: str) -> None:
        """Add a route of the model, and the same of one of its versions."""

        async def of_model(model: str) -> dict[str, Any]:
            return of(state.loaded(model, None))

        async def of_version(model: str, version: str) -> dict[str, Any]:
            return of(state.loaded(model, version))

        app.get(f"/v2/models/{{model}}{path}", summary=summary)(of_model)
        app.get(f"/v2/models/{{model}}/versions/{{version}}{path}", summary=summary)(of_version)

    name, settings = state.live.name, state.settings
    both("", lambda loaded: describe.model(name, loaded), "Metadata of the model")
    both("/config", lambda loaded: describe.config(name, loaded, settings), "Its configuration")
    both("/stats", lambda loaded: _statistics_of(state, loaded), "What it has answered")


def _statistics_of(state: ServerState, loaded: Loaded) -> dict[str, Any]:
    own = [one for one in state.statistics() if one["version"] == str(loaded.version)]
    return {"model_stats": own}


def _unserved(app: FastAPI, state: ServerState) -> None:
    """Add what Triton's clients can ask and this server does not do: said, never pretended."""

    @app.post("/v2/repository/models/{model}/{action}")
    async def load_or_unload(model: str, action: str) -> None:
        """Refuse to load or unload a model."""
        if action not in ("load", "unload") or model != state.live.name:
            raise Refused(HTTPStatus.NOT_FOUND, f"no model {model!r}, or no action {action!r}")
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"{action}: promotion and rollback decide which version answers, no request does",
        )

    @app.get("/v2/logging")
    async def logging_settings() -> dict[str, Any]:
        """Return how the server logs; it cannot be changed."""
        return _LOGGING

    @app.get("/v2/trace/setting")
    async def trace_settings() -> dict[str, Any]:
        """Return that nothing is traced."""
        return _TRACE

    @app.get("/v2/models/{model}/trace/setting")
    async def trace_settings_of_model(model: str) -> dict[str, Any]:
        """Return that nothing is traced."""
        state.loaded(model, None)
        return _TRACE

    def refuse(path: str, reason: str) -> None:
        async def refused() -> None:
            raise Refused(HTTPStatus.BAD_REQUEST, reason)

        async def refused_model(model: str) -> None:
            await refused()

        async def refused_region(region: str) -> None:
            await refused()

        names = {"{model}": refused_model, "{region}": refused_region}
        chosen = next((made for name, made in names.items() if name in path), refused)
        app.post(path, summary=f"Refused: {reason}")(chosen)

    refuse("/v2/logging", "log settings are fixed when the server starts")
    refuse("/v2/trace/setting", "tracing is not served")
    refuse("/v2/models/{model}/trace/setting", "tracing is not served")
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        _memory(app, f"/v2/{kind}")
        refuse(f"/v2/{kind}/region/{{region}}/register", "shared memory is not served")


def _memory(app: FastAPI, path: str) -> None:
    async def status() -> list[dict[str, Any]]:
        return []

    async def status_of(region: str) -> None:
        raise Refused(HTTPStatus.NOT_FOUND, f"no region {region!r}: shared memory is not served")

    async def unregister() -> JSONResponse:
        return JSONResponse({})

    app.get(f"{path}/status", summary="No region is registered")(status)
    app.get(f"{path}/region/{{region}}/status", summary="No region is registered")(status_of)
    app.post(f"{path}/unregister", summary="Nothing to do")(unregister)
    app.post(f"{path}/region/{{region}}/unregister", summary="No such region")(status_of)
