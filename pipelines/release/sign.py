"""Sign again what is registered: after a change of keys, or where a signature never was."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import signing
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release.transaction import transaction
from pipelines.systems.mlflow import artifacts


def sign_version(layout: Layout, model: str, text: str) -> tuple[str, str]:
    """Sign a version's file with the present key, and put the signature beside it.

    The file is downloaded anew, and must be the one that was registered.

    Args:
        layout: The checkout, for its key.
        model: The registered model's name.
        text: The version's number, or an alias.

    Returns:
        The version's name, and the key's fingerprint.

    Raises:
        UserError: If the version is not complete, or its file is not what was registered.
        Unavailable: If the registry does not answer.
    """
    version = registry.find_version(layout, model, text)
    name = f"{model} version {version.number}"
    if not version.complete:
        raise UserError(f"{name}: its registration is not complete; `prong run` mends it")
    layout.state.mkdir(parents=True, exist_ok=True)
    with (
        transaction(layout, model) as held,
        tempfile.TemporaryDirectory(prefix="sign-", dir=layout.state) as scratch,
    ):
        file, bundle = (
            Path(scratch) / version_files.MODEL_FILE,
            Path(scratch) / version_files.SIGNATURE,
        )
        found = artifacts.download(
            layout, version_files.location(layout, version), version_files.MODEL_FILE, file
        )
        if found != version.sha256:
            raise UserError(
                f"{name}: not signed: the registry's file has sha256 {found}, registered is "
                f"{version.sha256}"
            )
        key = signing.sign(layout, file, bundle)
        held.check()
        version_files.put_beside(layout, version, bundle)
    version_files.signer(layout, version)  # as anyone will from now on
    return name, key
