"""Who may ask: who brings the key, and on loopback no web page of another origin."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from http import HTTPStatus

from pipelines.serving.http.refusal import Refused

OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Paths that are answered without a key: what a supervisor asks."""
_NAMES = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
_OTHERS = frozenset({b"cross-site", b"same-site"})
_MOST_KNOWN = 64


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a server that listens on an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gatekeeper:
    """Lets requests pass or refuses them; see also `pipelines.systems.loopback`."""

    def __init__(self, host: str, key: bytes | None) -> None:
        self._key = key
        self._local = is_loopback(host)
        self._known: set[bytes] = set()  # Host headers that were found good

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Let a request pass.

        Raises:
            Refused: 403 if a web page of another origin sends it or the server is called by a
                foreign name, 401 if it lacks the key.
        """
        if self._local:
            self._check_names(headers)
        if self._key is not None and path not in OPEN:
            self._check_key(self._key, headers)

    def _check_names(self, headers: Mapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"")
        if host not in self._known:
            name, _, port = host.lower().rpartition(b":")
            if not port.isdigit():
                name = host.lower()
            if name not in _NAMES:
                raise _forbidden("this server is not called by that name (Host)")
            if len(self._known) < _MOST_KNOWN:
                self._known.add(host)
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() != b"http://" + host.lower():
            raise _forbidden("no other web page may use this server (Origin)")
        if origin is None and headers.get(b"sec-fetch-site") in _OTHERS:
            raise _forbidden("no other web page may use this server (Sec-Fetch-Site)")

    def _check_key(self, key: bytes, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                given = b""
        if not hmac.compare_digest(given.strip(), key):
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "a key is needed (Authorization: Bearer, or X-API-Key)",
                [(b"www-authenticate", b"Bearer")],
            )


def _forbidden(reason: str) -> Refused:
    return Refused(HTTPStatus.FORBIDDEN, reason)
