"""Signatures of released models, by the key method of `model-signing`: offline, no account.

A signature says that the holder of a key released just these bytes. It lies beside the model, as
a Sigstore bundle, and is verified before anything else looks at the model.

`PRONG_SIGNING_KEY` names a private key (PEM, on the curve P-256, P-384 or P-521), and
`PRONG_VERIFYING_KEY` the public keys to trust, more than one with `:` between them. Without them
the checkout makes a pair of its own, once: good against damage and exchange in the store, not
against somebody who can write in the checkout.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path
from pipelines.core.paths import Layout

if TYPE_CHECKING:  # tenths of a second that only who signs or verifies spends
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

SIGNING_KEY, VERIFYING_KEY = "PRONG_SIGNING_KEY", "PRONG_VERIFYING_KEY"
LARGEST_BUNDLE = 2**20
"""Bytes; a bundle of one file has about a thousand."""


class Unsigned(UserError):
    """A model without a signature, or with one that does not hold."""


def _make_pair(folder: Path) -> Path:
    """Make a private key that only its owner may read, unless another process was first."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / "signing.pem"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor, temporary = tempfile.mkstemp(dir=folder)  # readable by its owner alone
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails where a rename would replace the other's key
        except FileExistsError:
            return path
    finally:
        os.unlink(temporary)
    return path


def _setting(name: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise UserError(f"{name} = {path!r}: no such file; allowed: a key in a PEM file")
    return found


def signing_key(layout: Layout) -> Path:
    """Return the private key; the checkout's own is made if there is none.

    Raises:
        UserError: If `PRONG_SIGNING_KEY` names no file.
    """
    if path := os.environ.get(SIGNING_KEY):
        return _setting(SIGNING_KEY, path)
    return _make_pair(layout.state / "keys")


def _public(private: Path) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(private.read_bytes(), None)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{private}: not a private key that can be used: {error}; allowed: PEM without password"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{private}: a key of another kind; allowed: elliptic curve (P-256 …)")
    return key.public_key()


def _pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def trusted_keys(layout: Layout) -> list[bytes]:
    """Return the public keys whose signatures count, as PEM.

    Raises:
        UserError: If a setting names no file or no key.
    """
    if paths := os.environ.get(VERIFYING_KEY):
        return [_load(_setting(VERIFYING_KEY, path)) for path in paths.split(os.pathsep) if path]
    return [_pem(_public(signing_key(layout)))]


def _load(path: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{VERIFYING_KEY} = {str(path)!r}: no public key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError(f"{VERIFYING_KEY} = {str(path)!r}: allowed: an elliptic curve's key")
    return _pem(key)


def fingerprint(public: bytes) -> str:
    """Return the sha256 of a public key as PEM, in hex; bundles name their key by it."""
    return hashlib.sha256(public).hexdigest()


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
    public = _public(key)
    try:
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key)
    except ValueError as error:
        raise UserError(f"{key}: {error}; allowed: P-256, P-384, P-521") from None
    with atomic_path(bundle) as temporary:
        config.set_hashing_config(_hashing()).sign(model, temporary)
    return fingerprint(_pem(public))


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
