"""Key pairs as people make them."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipelines.core.paths import Layout
from pipelines.provenance import keys


def pair(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """Make a key pair as `openssl ecparam -genkey` and `openssl ec -pubout` do."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def share_key(first: Layout, other: Layout) -> None:
    """Give a checkout the key of another, as all have it who share a registry."""
    keys.signing_key(first, may_make=True)
    if first != other:
        shutil.copytree(first.state / "keys", other.state / "keys")
