"""Leases on an MLflow server, which has no table of ours: names of registered models.

A server gives a name to one registered model only. So the lease of `registry m` is taken by
creating the model `prong-lease.<hash of the name>.8` where 7 is the highest of its kind: of all
who try, one succeeds. Only the holder of the highest number holds the lease. Renewing changes the
model's description, which the server dates by its own clock; a lease that was given back, or whose
date is too old, or whose holder is seen to be dead, may be followed. Lower numbers are removed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from email.utils import parsedate_to_datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from pipelines.systems.liveness import DURATION, LONGEST_LEASE, Number, gone, identity
from pipelines.systems.mlflow.paging import every_page

PREFIX = "prong-lease."
"""Of the names of registered models that are leases."""
_HOLDER, _LASTS = "prong.holder", "prong.lasts"
_RETURNED = "given back"


def _kind(name: str) -> str:
    return f"{PREFIX}{hashlib.sha256(name.encode()).hexdigest()[:16]}."


def _generation(name: str, model: RegisteredModel) -> int | None:
    """Return the number of a lease's generation, or None if a model only looks like one."""
    number = str(model.name).removeprefix(_kind(name))
    return int(number) if re.fullmatch(r"[1-9][0-9]{0,29}", number) else None


def _holder(model: RegisteredModel) -> str:
    said = (model.tags or {}).get(_HOLDER)
    return said if isinstance(said, str) else ""


def _has_expired(model: RegisteredModel, now: float) -> bool:
    """Say whether a lease has run out; so has one whose figures cannot be, or be read."""
    lasts = DURATION.parse((model.tags or {}).get(_LASTS))
    renewed = Number(0.0, 1000 * (now + LONGEST_LEASE)).parse(model.last_updated_timestamp)
    # The header tells whole seconds: one more, so that none is taken too early.
    return lasts is None or renewed is None or now - renewed / 1000 > lasts + 1


def _seconds(date: object) -> float:
    """Return the time of an HTTP header, seconds since 1970; this machine's if it is none."""
    try:
        return parsedate_to_datetime(str(date)).timestamp()
    except (ValueError, OverflowError):
        return time.time()


class ServerLeases:
    """Leases as names of registered models.

    Args:
        client: Of a tracking server.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def _generations(self, name: str) -> dict[int, RegisteredModel]:
        found = every_page(
            lambda token: self._client.search_registered_models(
                f"name LIKE '{_kind(name)}%'", max_results=100, page_token=token
            )
        )
        numbered = ((_generation(name, model), model) for model in found)
        return {number: model for number, model in numbered if number is not None}

    def _now(self) -> float:
        """Return the server's time, seconds since 1970; this machine's if it tells none."""
        response = http_request(  # type: ignore[no-untyped-call]
            host_creds=get_default_host_creds(self._client.tracking_uri),  # type: ignore[no-untyped-call]
            endpoint="/health",
            method="GET",
        )
        return _seconds(response.headers.get("Date"))

    def take(self, name: str, lasts: float) -> int | None:
        """Take a lease if it is free, expired, or its holder is seen to be dead."""
        found = self._generations(name)
        highest = max(found, default=0)
        if highest and not self._free(found[highest]):
            return None
        mine = f"{_kind(name)}{highest + 1}"
        tags = {_HOLDER: json.dumps(identity()), _LASTS: str(lasts)}
        try:
            self._client.create_registered_model(mine, tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return None  # another was first
        # Slept between looking and creating, while others came and went? Then mine is not the
        # highest, though its name was free again.
        now = self._generations(name)
        if max(now) != highest + 1:
            self._remove(mine)
            return None
        for number in now:
            if number <= highest:
                self._remove(f"{_kind(name)}{number}")
        return highest + 1

    def _free(self, model: RegisteredModel) -> bool:
        if model.description == _RETURNED:
            return True
        return _has_expired(model, self._now()) or gone(_holder(model))

    def _remove(self, name: str) -> None:
        try:
            self._client.delete_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def renew(self, name: str, token: int, lasts: float) -> bool:
        """Lengthen a lease unless it has passed to another."""
        return self._write(name, token, f"renewed at {time.time():.3f}")

    def give_back(self, name: str, token: int) -> None:
        """Let the next one in; the number stays, so that tokens go on rising."""
        self._write(name, token, _RETURNED)

    def _write(self, name: str, token: int, description: str) -> bool:
        found = self._generations(name)
        if max(found, default=0) != token or found[token].description == _RETURNED:
            return False
        try:
            self._client.update_registered_model(f"{_kind(name)}{token}", description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return max(self._generations(name), default=0) == token

    def holder(self, name: str) -> str:
        """Return what stands for the holder of a lease: its identity as JSON, if nobody meddled."""
        found = self._generations(name)
        return _holder(found[max(found)]) if found else ""
