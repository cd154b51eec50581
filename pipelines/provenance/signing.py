"""Signatures beside released models, by the key method of `model-signing`: offline, no account.

A Sigstore bundle lies beside the model, for those who have its folder and not the registry. It is
made once the gates have passed. What `prong` itself goes by is the signed statement
(`pipelines/registry/statements.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path
from pipelines.core.paths import Layout
from pipelines.provenance.keys import fingerprint, public_of, signing_key, trusted_keys

LARGEST_BUNDLE = 2**20
"""Bytes; a bundle of one file has about a thousand."""


class Unsigned(UserError):
    """A model without a signature, or with one that does not hold."""


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().use_file_serialization()  # type: ignore[no-untyped-call]


def sign(layout: Layout, model: Path, bundle: Path) -> str:
    """Sign a model file.

    Args:
        layout: The checkout, for its key.
        model: The file.
        bundle: Where the signature goes, replaced atomically.

    Returns:
        The fingerprint of the key.

    Raises:
        UserError: If the key cannot be used.
    """
    from model_signing import signing

    key = signing_key(layout)
    public = public_of(key)
    try:
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key)
    except ValueError as error:
        raise UserError(f"{key}: {error}; allowed: P-256, P-384, P-521") from None
    with atomic_path(bundle) as temporary:
        config.set_hashing_config(_hashing()).sign(model, temporary)
    return fingerprint(public)


def verify(layout: Layout, model: Path, bundle: Path) -> str:
    """Check that a trusted key signed just these bytes; return its fingerprint.

    Args:
        layout: The checkout, for its key if no setting names others.
        model: The file; its name does not matter.
        bundle: Its signature.

    Raises:
        Unsigned: If there is no bundle, it cannot be read, no trusted key made it, or the bytes
            are others.
        UserError: If a setting is wrong.
    """
    if not bundle.is_file():
        raise Unsigned(f"{model.name}: not signed")
    if bundle.stat().st_size > LARGEST_BUNDLE:
        raise Unsigned(f"{bundle}: too large for a signature")
    keys = trusted_keys(layout)
    reasons = []
    for public in keys:
        reason = _refusal(public, model, bundle)
        if reason is None:
            return fingerprint(public)
        reasons.append(reason)
    known = ", ".join(fingerprint(public)[:12] for public in keys)
    raise Unsigned(
        f"the signature does not hold: {'; '.join(dict.fromkeys(reasons))} (trusted: key {known})"
    )


def _refusal(public: bytes, model: Path, bundle: Path) -> str | None:
    """Return why a signature does not hold by one key, or None if it does."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    def check() -> None:
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(public)
            file.flush()
            config = verifying.Config()  # type: ignore[no-untyped-call]
            config.use_elliptic_key_verifier(public_key=Path(file.name))
            # Told, not guessed from the bundle: the same way of hashing as when it was signed.
            config.set_hashing_config(_hashing()).verify(model, bundle)

    return _said(check, InvalidSignature)


def _said(check: Callable[[], None], invalid: type[Exception]) -> str | None:
    try:
        check()
    except invalid:
        return "it was made by another key, or changed"
    except Exception as error:  # a bundle is not trusted: any error in reading it refuses it
        text = " ".join(str(error).split())
        if "Key mismatch" in text:
            return "it was made by a key that is not trusted"
        if "Signature mismatch" in text or "Hash mismatch" in text:
            return "it is of other bytes"
        return f"it cannot be read ({type(error).__name__}: {text[:200]})"
    return None
