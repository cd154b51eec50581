"""Register: how an ONNX file becomes a version of the registry, and the challenger.

Every fact about a version is written before an alias points to it, so that the alias
always leads to a complete version. What a crash leaves half-done, the next command finishes.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.core import faults
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout

if TYPE_CHECKING:  # MLflow is imported when a step is called, not with the flow
    from pipelines.registry.versions import Version
    from pipelines.release.transaction import Transaction

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """What `register` came to.

    Attributes:
        model: The registered model's name.
        version: The version that holds these bytes.
        created: False if it was there before.
        run_id: The training's run.
        onnx_sha256: Of the file.
    """

    model: str
    version: int
    created: bool
    run_id: str
    onnx_sha256: str


def register(layout: Layout, params: Params, flow_run_id: str | None) -> Registration:
    """Register `models/model.onnx` in a transaction of its own; see `register_in`."""
    from pipelines.release.transaction import transaction

    sha256 = exported(layout)
    with transaction(layout, params.model_name) as held:
        return register_in(held, params, sha256, flow_run_id)


def exported(layout: Layout) -> str:
    """Return the sha256 of `models/model.onnx`: what is to be registered.

    To be asked before the lease is taken, so that nobody waits for a file that is not there.

    Raises:
        UserError: If the file is absent.
    """
    if not layout.onnx.is_file():
        raise UserError(f"{layout.onnx}: absent; the stage export makes it")
    return sha256_file(layout.onnx)


def _keep_stored(held: Transaction, version: Version) -> None:
    """Put a registered version's file into the store again if the store has lost it."""
    from pipelines.release import upload

    if not upload.is_whole(held.layout, version):
        held.check()
        if not upload.put_back(held.layout, version, version.sha256):
            raise UserError(
                f"{version.model} version {version.number}: the registry's file is gone or was "
                "exchanged, and the store does not take it again"
            )
        _log.warning("%s version %d: its file was lost and put back", held.model, version.number)


def register_in(
    held: Transaction, params: Params, sha256: str, flow_run_id: str | None
) -> Registration:
    """Register `models/model.onnx` unless a version holds these bytes already.

    Args:
        held: The transaction; all DVC stages of its checkout are up to date.
        params: The checkout's parameters.
        sha256: Of the ONNX file; see `exported`.
        flow_run_id: Prefect's id of the run, if there is one.

    Raises:
        UserError: If a report is absent or damaged, the ONNX file was changed meanwhile, or the
            store cannot be used.
        Unavailable: If the store does not answer.
    """
    from pipelines.release import upload

    layout, client = held.layout, held.client
    return registered(
        held,
        sha256,
        lambda: upload.new_version(layout, client, params, sha256, flow_run_id, held.check),
    )


def registered(
    held: Transaction, sha256: str, new_version: Callable[[], tuple[int, str]]
) -> Registration:
    """Register bytes unless a version holds them already.

    Intent, upload, download again, compare, create the version with its tags, wait until it is
    READY, mark it complete, make it challenger.

    Args:
        held: The transaction.
        sha256: Of the bytes.
        new_version: Makes a complete version of them; returns its number and its run.

    Raises:
        UserError: As `new_version` does, or if the store cannot be used.
        Unavailable: If the store does not answer.
    """
    from pipelines.registry import versions as registry
    from pipelines.registry.intents import Intent
    from pipelines.release import upload

    faults.point("register.lease")
    layout, model = held.layout, held.model
    broken = []
    for version in registry.versions(held.client, model):
        if version.sha256 == sha256 and version.complete:
            _keep_stored(held, version)
            return Registration(model, version.number, False, version.run_id, sha256)
        if version.sha256 == sha256:
            broken.append(version)
    held.intend(Intent("register", uuid.uuid4().hex, sha256=sha256))
    faults.point("register.intent")
    for version in broken:
        if upload.finish(layout, held.client, version):
            number, run_id = version.number, version.run_id
            break
    else:
        number, run_id = new_version()
    held.move(registry.CHALLENGER, number)
    faults.point("register.challenger")
    held.done()
    faults.point("register.done")
    return Registration(model, number, True, run_id, sha256)
