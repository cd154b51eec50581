"""Signatures: made offline, verified before anything else looks at a model."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from finished_checkout import FinishedCheckout
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import signing
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking

MODEL = "prong-digits"
Make = Callable[..., FinishedCheckout]


@pytest.fixture(autouse=True)
def _own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (signing.SIGNING_KEY, signing.VERIFYING_KEY):
        monkeypatch.delenv(name, raising=False)


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


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Layout, Path, Path]:
    layout, model, bundle = Layout(tmp_path / "checkout"), tmp_path / "m.onnx", tmp_path / "m.sig"
    model.write_bytes(bytes(range(256)) * 8)
    signing.sign(layout, model, bundle)
    return layout, model, bundle


def test_the_same_bytes_hold_under_any_name(signed: tuple[Layout, Path, Path]) -> None:
    layout, model, bundle = signed
    first = signing.verify(layout, model, bundle)
    renamed = model.rename(model.with_name("another"))
    assert signing.verify(layout, renamed, bundle) == first
    assert len(first) == 64
    private = signing.signing_key(layout)
    assert private.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in private.parent.iterdir()] == ["signing.pem"]


@settings(max_examples=60)
@given(at=st.integers(0, 2047), flip=st.integers(1, 255))
def test_any_changed_byte_of_the_model_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    layout, model, bundle = Layout(folder), folder / "m.onnx", folder / "m.sig"
    content = bytearray(os.urandom(2048))
    model.write_bytes(content)
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
    monkeypatch.setenv(signing.VERIFYING_KEY, str(public))
    with pytest.raises(signing.Unsigned, match="not trusted"):
        signing.verify(layout, model, bundle)  # the checkout's own key no longer counts
    monkeypatch.setenv(signing.SIGNING_KEY, str(private))
    made = signing.sign(layout, model, bundle)
    assert signing.verify(layout, model, bundle) == made
    monkeypatch.setenv(signing.VERIFYING_KEY, str(stranger))
    with pytest.raises(signing.Unsigned, match="not trusted"):
        signing.verify(layout, model, bundle)
    monkeypatch.setenv(signing.VERIFYING_KEY, f"{stranger}:{public}")
    assert signing.verify(layout, model, bundle) == made


def test_a_wrong_setting_names_itself(
    signed: tuple[Layout, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, model, bundle = signed
    for name in (signing.SIGNING_KEY, signing.VERIFYING_KEY):
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
    monkeypatch.setenv(signing.SIGNING_KEY, str(path))
    with pytest.raises(UserError, match="elliptic"):
        signing.sign(layout, model, bundle)


def test_many_first_starts_make_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: signing.trusted_keys(Layout(tmp_path)), range(8)))
    assert len({key for keys in made for key in keys}) == 1
    assert len(list((tmp_path / ".prong/keys").iterdir())) == 1


def folder_of(layout: Layout, number: int) -> Path:
    """Where the store keeps a version."""
    client = tracking.connect(layout)
    where = client.get_model_version_download_uri(MODEL, str(number))
    return Path(where.removeprefix("file://"))


def version_of(layout: Layout) -> registry.Version:
    return registry.list_versions(layout, MODEL)[0]


def test_a_version_is_signed_and_verified_whenever_it_is_loaded(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    version = version_of(made.layout)
    path = version_files.version_file(made.layout, version)
    key = version_files.signer(made.layout, version)
    assert key == signing.fingerprint(signing.trusted_keys(made.layout)[0])
    bundle = folder_of(made.layout, 1) / version_files.SIGNATURE
    bundle.unlink()
    assert (
        version_files.version_file(made.layout, version) == path
    )  # the bundle was kept, and holds
    shutil.rmtree(made.layout.state / "cache")
    with pytest.raises(signing.Unsigned, match="version 1: not signed; `prong sign 1`"):
        version_files.version_file(made.layout, version)
    bundle.write_text("{}")
    with pytest.raises(signing.Unsigned, match="version 1: the signature does not hold"):
        version_files.version_file(made.layout, version)


def test_an_exchanged_model_with_fitting_tags_is_still_refused(checkout: Make) -> None:
    """Who can write in the store can change the hash in the tags, but not sign."""
    made = checkout()
    release.register(made.layout, made.params, None)
    stored = folder_of(made.layout, 1) / version_files.MODEL_FILE
    FinishedCheckout.make(made.layout, 30.0, 1)  # another model, sound in itself
    shutil.copy(made.layout.onnx, stored)
    client = tracking.connect(made.layout)
    forged = signing.hashlib.sha256(stored.read_bytes()).hexdigest()
    client.set_model_version_tag(MODEL, "1", registry.SHA256, forged)
    shutil.rmtree(made.layout.state / "cache")
    with pytest.raises(signing.Unsigned, match="other bytes"):
        version_files.version_file(made.layout, version_of(made.layout))


def test_no_session_is_built_from_an_unsigned_file(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    (folder_of(made.layout, 1) / version_files.SIGNATURE).unlink()
    shutil.rmtree(made.layout.state / "cache")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from pipelines.registry import version_files, versions as registry\n"
        "from pipelines.provenance import signing\n"
        "from pipelines.core.paths import Layout\nlayout = Layout(Path(sys.argv[1]))\n"
        "(version,) = registry.list_versions(layout, 'prong-digits')\n"
        "try:\n    version_files.version_file(layout, version)\n"
        "except signing.Unsigned:\n    print('refused', 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(made.layout.root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == ["refused", "False"]
