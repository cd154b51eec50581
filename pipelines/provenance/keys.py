"""The release key: what it signs counts as released.

`PRONG_SIGNING_KEY` names a private key (PEM, on the curve P-256, P-384 or P-521), and
`PRONG_VERIFYING_KEY` the public keys to trust, more than one with `:` between them. Without them
the checkout makes a pair of its own with its first release, in `.prong/keys`. A key that is lost
later is an error and never replaced by itself: a new one would take what the lost one signed for
forged, or let a forgery pass for a beginning.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path
from pipelines.core.paths import Layout

if TYPE_CHECKING:  # tenths of a second that only who signs or verifies spends
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SIGNING_KEY, VERIFYING_KEY = "PRONG_SIGNING_KEY", "PRONG_VERIFYING_KEY"
_PRIVATE, _TRUSTED, _RETIRED = "signing.pem", "trusted", "retired"


class LostKey(UserError):
    """The private key is not where it was, and something was signed before."""


def _folder(layout: Layout) -> Path:
    return layout.state / "keys"


def _setting(name: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise UserError(f"{name} = {path!r}: no such file; allowed: a key in a PEM file")
    return found


def has_key(layout: Layout) -> bool:
    """Say whether there is a private key to sign with.

    Raises:
        UserError: If `PRONG_SIGNING_KEY` names no file.
    """
    if path := os.environ.get(SIGNING_KEY):
        return _setting(SIGNING_KEY, path).is_file()
    return (_folder(layout) / _PRIVATE).is_file()


def signing_key(layout: Layout, *, may_make: bool = False) -> Path:
    """Return the private key.

    Args:
        layout: The checkout.
        may_make: Whether the checkout's own pair is made if there is none: only where nothing was
            ever signed.

    Raises:
        UserError: If `PRONG_SIGNING_KEY` names no file.
        LostKey: If there is none and none may be made.
    """
    if path := os.environ.get(SIGNING_KEY):
        return _setting(SIGNING_KEY, path)
    path_of_own = _folder(layout) / _PRIVATE
    if path_of_own.is_file():
        # A checkout of an earlier version has the private part alone.
        _keep_public(layout, public_of(path_of_own))
        return path_of_own
    if not may_make:
        raise LostKey(
            f"{path_of_own}: the release key is not here, and releases were signed before; put it "
            f"back from a backup, let {SIGNING_KEY} name the key of the team, or make a new one "
            "with `prong keys --rotate` (what the old one signed stays valid as long as its "
            "public part is trusted: `prong keys`)"
        )
    _make_pair(layout)
    return path_of_own


def _make_pair(layout: Layout) -> None:
    """Make a private key that only its owner may read, unless another process was first."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = _folder(layout)
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
        # The public part first: a private key that was used is always trusted, also once lost.
        _keep_public(layout, public_of(Path(temporary)))
        try:
            os.link(temporary, folder / _PRIVATE)  # a rename would replace another's key
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)


def _keep_public(layout: Layout, public: bytes) -> None:
    path = _folder(layout) / _TRUSTED / f"{fingerprint(public)[:16]}.pem"
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_bytes(public)


def rotate(layout: Layout) -> tuple[str, str]:
    """Put a new pair in the place of the checkout's own; what the old one signed stays valid.

    Returns:
        The fingerprints of the old key (empty if it was lost) and of the new one.

    Raises:
        UserError: If `PRONG_SIGNING_KEY` is set: then the key is not the checkout's to change.
    """
    if os.environ.get(SIGNING_KEY):
        raise UserError(
            f"{SIGNING_KEY} is set: the key is changed where it is kept; add the new public key to "
            f"{VERIFYING_KEY} first, beside the old one"
        )
    private, old = _folder(layout) / _PRIVATE, ""
    if private.is_file():
        public = public_of(private)
        _keep_public(layout, public)
        old = fingerprint(public)
        retired = _folder(layout) / _RETIRED / f"{old[:16]}.pem"
        retired.parent.mkdir(mode=0o700, exist_ok=True)
        private.replace(retired)
    _make_pair(layout)
    return old, fingerprint(public_of(private))


def distrust(layout: Layout, text: str) -> str:
    """Trust one of the checkout's keys no more; return its fingerprint.

    Args:
        layout: The checkout.
        text: The beginning of the fingerprint, 8 digits at least.

    Raises:
        UserError: If it names no key, more than one, or the one that signs now.
    """
    names = sorted((_folder(layout) / _TRUSTED).glob("*.pem"))
    known = {fingerprint(load_public(path)): path for path in names}
    found = [key for key in known if len(text) >= 8 and key.startswith(text.lower())]
    if len(found) != 1:
        shown = ", ".join(key[:16] for key in known) or "none"
        raise UserError(f"key {text!r}: allowed: the first 8 digits or more of one of: {shown}")
    if has_key(layout) and fingerprint(public_of(signing_key(layout))) == found[0]:
        raise UserError(f"key {text!r}: it signs now; `prong keys --rotate` makes another first")
    known[found[0]].unlink()
    return found[0]


def _private_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path}: not a private key that can be used: {error}; allowed: PEM without password"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path}: a key of another kind; allowed: elliptic curve (P-256 …)")
    return key


def public_of(private: Path) -> bytes:
    """Return the public part of a private key, as PEM.

    Raises:
        UserError: If the file holds no such key.
    """
    from cryptography.hazmat.primitives import serialization

    return (
        _private_key(private)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def load_public(path: Path) -> bytes:
    """Return the public key in a file, as PEM.

    Raises:
        UserError: If it holds none.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r}: no public key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError(f"{str(path)!r}: a key of another kind; allowed: elliptic curve (P-256 …)")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def trusted_keys(layout: Layout) -> list[bytes]:
    """Return the public keys whose signatures count, as PEM; none where nothing was ever signed.

    Those that `PRONG_VERIFYING_KEY` names, and no others. If it is not set: the checkout's own,
    retired ones too, and that of the private key in use.

    Raises:
        UserError: If a setting names no file or no key.
    """
    if paths := os.environ.get(VERIFYING_KEY):
        return [
            load_public(_setting(VERIFYING_KEY, path)) for path in paths.split(os.pathsep) if path
        ]
    found = [load_public(path) for path in sorted((_folder(layout) / _TRUSTED).glob("*.pem"))]
    if has_key(layout):
        own = os.environ.get(SIGNING_KEY) or str(_folder(layout) / _PRIVATE)
        found.insert(0, public_of(Path(own).expanduser()))
    return list(dict.fromkeys(found))


def fingerprint(public: bytes) -> str:
    """Return the sha256 of a public key as PEM, in hex; signatures name their key by it."""
    return hashlib.sha256(public).hexdigest()


def sign_text(private: Path, kind: str, text: str) -> tuple[str, str]:
    """Sign a text (ECDSA with SHA-256).

    Args:
        private: The key.
        kind: What the text is, such as `history`; no signature of one kind passes for another's.
        text: What is signed.

    Returns:
        The key's fingerprint, and the signature in base64.

    Raises:
        UserError: If the key cannot be used.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _private_key(private)
    signature = key.sign(_message(kind, text), ec.ECDSA(hashes.SHA256()))
    return fingerprint(public_of(private)), base64.b64encode(signature).decode()


def is_signed(trusted: Sequence[bytes], kind: str, text: str, key: str, signature: str) -> bool:
    """Say whether a trusted key signed a text.

    Args:
        trusted: Public keys as PEM.
        kind: What the text is.
        text: What was signed.
        key: Fingerprint of the key.
        signature: In base64.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    for public in trusted:
        if fingerprint(public) != key:
            continue
        loaded = serialization.load_pem_public_key(public)
        assert isinstance(loaded, ec.EllipticCurvePublicKey)
        try:
            value = base64.b64decode(signature, validate=True)
            loaded.verify(value, _message(kind, text), ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True
    return False


def _message(kind: str, text: str) -> bytes:
    return f"prong {kind} 1\n{text}".encode("utf-8", "surrogatepass")
