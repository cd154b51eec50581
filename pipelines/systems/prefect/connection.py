"""The way to the Prefect server of this process's surroundings, and what its silence means."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from pipelines.core.errors import Unavailable, UserError

__all__ = ["SyncPrefectClient", "answering", "api", "used_server"]

_NO_SERVER = ("Failed to reach API", "Timed out while attempting to connect")


@contextmanager
def answering(hint: str = "") -> Iterator[None]:
    """Turn what Prefect raises when its server is at fault into a message for the user.

    Args:
        hint: Ends the message.

    Raises:
        UserError: If the server refuses who asks.
        Unavailable: If the server does not answer, or answers with an error.
    """
    try:
        yield
    except (httpx.TransportError, PrefectHTTPStatusError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(_NO_SERVER):
            raise
        if isinstance(error, PrefectHTTPStatusError) and error.response.status_code in (401, 403):
            raise UserError(
                f"Prefect: {_place(error)} refused access (HTTP {error.response.status_code}); set "
                "PREFECT_API_AUTH_STRING or PREFECT_API_KEY to what it asks for. If it is the "
                "checkout's own, its secret was replaced: end the worker and start it again"
            ) from error
        said = " ".join(str(error).split()).partition(" For more information")[0]
        raise Unavailable(f"Prefect: {said or type(error).__name__}{hint}") from error


def _place(error: PrefectHTTPStatusError) -> str:
    url = error.request.url
    return f"{url.scheme}://{url.host}:{url.port}" if url.port else f"{url.scheme}://{url.host}"


def used_server() -> str:
    """Return the settings that say which server is used, as a hint; empty if none is named."""
    address = os.environ.get("PREFECT_API_URL")
    home = os.environ.get("PREFECT_HOME")
    store = f"; its store is {home}: is the disk full?" if home else ""
    return f" (PREFECT_API_URL = {address!r}{store})" if address else ""


@contextmanager
def api() -> Iterator[SyncPrefectClient]:
    """Yield a client of the Prefect server of this process's surroundings.

    Raises:
        UserError: If it refuses who asks.
        Unavailable: If it does not answer.
    """
    with answering(), get_client(sync_client=True) as client:
        yield client
