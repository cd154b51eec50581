"""Alerts: a few words by webhook when a run fails, is blocked, makes a champion, or finds drift.

An alert is never worth a run: what cannot be delivered is logged and forgotten. An address often
carries a secret in its path, so that only its host is ever shown.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import asdict, dataclass
from typing import Literal
from urllib.parse import urlsplit

import requests

from pipelines.core.config import AlertsConfig

Event = Literal["failed", "blocked", "promoted", "drift"]
TIMEOUT = 5.0
"""Seconds for a receiver to take the connection, and again to answer."""
TRIES = 3
_LONGEST = 2000
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """What a receiver is told, as the keys of one JSON object; `text` is what chat tools show.

    Attributes:
        event: What happened.
        deployment: Whose run it was.
        flow_run: Prefect's id of the run.
        scheduled: The time it was made for, ISO 8601.
        reason: Why, in one line.
        model: The registered model's name, or empty.
        version: The version it is about, if there is one.
    """

    event: Event
    deployment: str
    flow_run: str
    scheduled: str
    reason: str
    model: str = ""
    version: int | None = None

    def payload(self) -> dict[str, object]:
        """Return the JSON object that is sent, without the secrets of addresses."""
        said = without_secrets(" ".join(self.reason.split()))[:_LONGEST]
        what = f" {self.model} version {self.version}" if self.version is not None else ""
        text = f"{self.deployment}: {self.event}{what}: {said}"
        return {**asdict(self), "reason": said, "text": text}


def without_secrets(text: str) -> str:
    """Return text in which each address shows no more than scheme, host and port."""
    return _URL.sub(lambda found: shown(found[0]), text)


def shown(url: str) -> str:
    """Return scheme, host and port of an address; user, password, path and query are left out."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or ""
    except ValueError:
        return "(an address)"
    rest = "/…" if parts.path.strip("/") or parts.query or parts.fragment else ""
    return f"{parts.scheme}://{host}{port}{rest}"


def address(config: AlertsConfig) -> str:
    """Return where alerts go; empty: nowhere. `$NAME` stands for an environment variable."""
    if config.webhook.startswith("$"):
        return os.environ.get(config.webhook[1:], "")
    return config.webhook


def send(config: AlertsConfig, alert: Alert, *, pause: float = 1.0) -> bool:
    """Post an alert as JSON; return whether it was taken. Never raises.

    Args:
        config: Where to.
        alert: What to say.
        pause: Seconds before the second try; doubled before the third.
    """
    url = address(config)
    if not url:
        return False
    said = "no answer"
    for number in range(TRIES):
        if number:
            time.sleep(pause * 2.0 ** (number - 1))
        try:
            # A redirect would hand the payload to an address that is not configured.
            answer = requests.post(
                url, json=alert.payload(), timeout=TIMEOUT, allow_redirects=False
            )
        except (requests.RequestException, ValueError) as error:  # its text holds the address
            said = type(error).__name__
            continue
        if answer.ok and not answer.is_redirect:
            return True
        said = f"HTTP status {answer.status_code}"
        if answer.status_code < 500 and answer.status_code != 429:
            break
    _log.warning("alert %r was not taken by %s: %s", alert.event, shown(url), said)
    return False
