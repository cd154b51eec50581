"""Signatures: made offline, verified before anything else looks at a model."""

from __future__ import annotations

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from key_pairs import pair

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import keys, signing


@pytest.fixture(autouse=True)
def _own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (keys.SIGNING_KEY, keys.VERIFYING_KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Layout, Path, Path]:
    layout, model, bundle = Layout(tmp_path / "checkout"), tmp_path / "m.onnx", tmp_path / "m.sig"
    model.write_bytes(bytes(range(256)) * 8)
    keys.signing_key(layout, may_make=True)
    signing.sign(layout, model, bundle)
    return layout, model, bundle


def test_the_same_bytes_hold_under_any_name(signed: tuple[Layout, Path, Path]) -> None:
    layout, model, bundle = signed
    first = signing.verify(layout, model, bundle)
    renamed = model.rename(model.with_name("another"))
    assert signing.verify(layout, renamed, bundle) == first
    assert len(first) == 64
    private = keys.signing_key(layout)
    assert private.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in private.parent.iterdir()) == ["signing.pem", "trusted"]


@settings(max_examples=60)
@given(at=st.integers(0, 2047), flip=st.integers(1, 255))
def test_any_changed_byte_of_the_model_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    layout, model, bundle = Layout(folder), folder / "m.onnx", folder / "m.sig"
    content = bytearray(os.urandom(2048))
    model.write_bytes(content)
    keys.signing_key(layout, may_make=True)
    signing.sign(layout, model, bundle)
    content[at] ^= flip
    model.write_bytes(content)
    with pytest.raises(signing.Unsigned, match="other bytes"):
        signing.verify(layout, model, bundle)


def what_is_signed(bundle: str) -> tuple[str, bytes, list[bytes]]:
    """Return the type and content of what a bundle signs, and the signatures."""
    envelope = json.loads(bundle)["dsseEnvelope"]
    signatures = [base64.b64decode(one["sig"]) for one in envelope["signatures"]]
    return envelope["payloadType"], base64.b64decode(envelope["payload"]), signatures


def test_a_bundle_with_a_changed_character_says_the_same_or_is_refused(
    signed: tuple[Layout, Path, Path],
) -> None:
    layout, model, bundle = signed
    text = bundle.read_text()
    first, refused = what_is_signed(text), 0
    for at in range(0, len(text), 7):
        changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        bundle.write_text(changed)
        try:
            signing.verify(layout, model, bundle)
        except signing.Unsigned:
            refused += 1
        else:
            assert what_is_signed(changed) == first, at
    assert refused > 0


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\x00", b"x" * 2**20 + b"x"])
def test_a_file_that_is_not_a_bundle_is_refused(
    signed: tuple[Layout, Path, Path], content: bytes
) -> None:
    layout, model, bundle = signed
    bundle.write_bytes(content)
    with pytest.raises(signing.Unsigned):
        signing.verify(layout, model, bundle)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_key_of_ones_own_and_only_trusted_ones_count(
    signed: tuple[Layout, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    curve: ec.EllipticCurve,
) -> None:
    layout, model, bundle = signed
    private, public = pair(tmp_path, "release", curve)
    _, stranger = pair(tmp_path, "stranger")
    monkeypatch.setenv(keys.VERIFYING_KEY, str(public))
    with pytest.raises(signing.Unsigned, match="not trusted"):
        signing.verify(layout, model, bundle)  # the checkout's own key no longer counts
    monkeypatch.setenv(keys.SIGNING_KEY, str(private))
    made = signing.sign(layout, model, bundle)
    assert signing.verify(layout, model, bundle) == made
    monkeypatch.setenv(keys.VERIFYING_KEY, str(stranger))
    with pytest.raises(signing.Unsigned, match="not trusted"):
        signing.verify(layout, model, bundle)
    monkeypatch.setenv(keys.VERIFYING_KEY, f"{stranger}:{public}")
    assert signing.verify(layout, model, bundle) == made


def test_a_wrong_setting_names_itself(
    signed: tuple[Layout, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, model, bundle = signed
    for name in (keys.SIGNING_KEY, keys.VERIFYING_KEY):
        monkeypatch.setenv(name, str(tmp_path / "absent.pem"))
        with pytest.raises(UserError, match=rf"{name} = .*absent\.pem.*allowed"):
            signing.verify(layout, model, bundle)
        monkeypatch.setenv(name, str(model))
        with pytest.raises(UserError, match=r"m\.onnx"):
            signing.verify(layout, model, bundle)
        monkeypatch.delenv(name)
    key = rsa.generate_private_key(65537, 2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    monkeypatch.setenv(keys.SIGNING_KEY, str(path))
    with pytest.raises(UserError, match="elliptic"):
        signing.sign(layout, model, bundle)


def test_many_first_starts_make_one_key(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: keys.signing_key(layout, may_make=True), range(8)))
    assert set(made) == {layout.state / "keys/signing.pem"}
    assert keys.public_of(made[0]) in keys.trusted_keys(layout)


def test_a_signature_is_of_its_kind_its_text_and_its_key(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    private = keys.signing_key(layout, may_make=True)
    other = keys.signing_key(Layout(tmp_path / "other"), may_make=True)
    trusted = keys.trusted_keys(layout)
    key, signature = keys.sign_text(private, "history", "text")
    assert keys.is_signed(trusted, "history", "text", key, signature)
    assert not keys.is_signed(trusted, "intent", "text", key, signature)
    assert not keys.is_signed(trusted, "history", "texts", key, signature)
    assert not keys.is_signed(trusted, "history", "text", key, signature[:-4] + "AAAA")
    assert not keys.is_signed(trusted, "history", "text", key, "?")
    theirs, signature = keys.sign_text(other, "history", "text")
    assert not keys.is_signed(trusted, "history", "text", theirs, signature)
    assert not keys.is_signed(trusted, "history", "text", key, signature)
