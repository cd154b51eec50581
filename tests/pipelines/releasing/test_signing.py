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
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.gates.judging import GATES
from pipelines.provenance import keys, signing
from pipelines.registry import statements, version_files
from pipelines.registry import versions as registry
from pipelines.registry.statements import PREFIX as STATEMENT
from pipelines.release import health
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.repair import repair
from pipelines.release.sign import rotate, sign_version
from pipelines.systems import mlflow as tracking

MODEL = "prong-digits"
Make = Callable[..., FinishedCheckout]


@pytest.fixture(autouse=True)
def _own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (keys.SIGNING_KEY, keys.VERIFYING_KEY):
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


def folder_of(layout: Layout, number: int) -> Path:
    """Where the store keeps a version."""
    client = tracking.connect(layout)
    where = client.get_model_version_download_uri(MODEL, str(number))
    return Path(where.removeprefix("file://"))


def release_model(made: FinishedCheckout) -> int:
    """Register the checkout's model and promote it, whatever its error."""
    params = made.with_margin(0.9)
    number = release.register(made.layout, params, None).version
    assert promotion.promote(made.layout, params, number).promoted
    return number


def test_nothing_is_signed_before_the_gates_have_passed(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    layout = made.layout
    assert not (folder_of(layout, 1) / version_files.SIGNATURE).exists()
    version = registry.list_versions(layout, MODEL)[0]
    assert version_files.signer(layout, version) == ""
    with pytest.raises(UserError, match="no version is champion"):
        version_files.champion(layout, MODEL)
    assert promotion.promote(layout, made.params, 1).promoted
    version = registry.list_versions(layout, MODEL)[0]
    own = keys.fingerprint(keys.public_of(keys.signing_key(layout)))
    assert version_files.signer(layout, version) == own
    # With the folder alone anyone can check it.
    folder = folder_of(layout, 1)
    bundle = folder / version_files.SIGNATURE
    assert signing.verify(layout, folder / version_files.MODEL_FILE, bundle) == own
    said = statements.parsed((folder / version_files.STATEMENT).read_text().strip())
    assert said == version_files.champion(layout, MODEL).statement
    assert said is not None
    assert (said.version, said.sha256) == (1, version.sha256)
    assert {gate.gate for gate in said.gates} == set(GATES)


def test_a_lost_statement_is_put_back_from_what_was_seen(checkout: Make) -> None:
    made = checkout()
    release_model(made)
    layout, client = made.layout, tracking.connect(made.layout)
    (key,) = (k for k in client.get_model_version(MODEL, "1").tags if k.startswith(STATEMENT))
    client.delete_model_version_tag(MODEL, "1", key)
    assert version_files.champion(layout, MODEL).version == 1
    assert [one.mended for one in repair(layout, MODEL)] == [True]
    assert key in client.get_model_version(MODEL, "1").tags
    client.set_model_version_tag(MODEL, "1", key, "{}")
    shutil.rmtree(layout.state / "remembered")  # as in a fresh clone
    with pytest.raises(version_files.NotReleased, match=r"no signed statement.*prong promote 1"):
        version_files.champion(layout, MODEL)
    assert not health.standing(layout, MODEL).problems[0].serves


def test_a_refused_version_put_in_the_champions_place_is_not_answered_from(checkout: Make) -> None:
    """Bytes, hash and all tags of a version that the gates refused: who may write can do that."""
    made = checkout()
    release_model(made)
    layout, client = made.layout, tracking.connect(made.layout)
    refused = checkout(noise=200.0)
    number = release.register(layout, made.params, None).version
    assert not promotion.promote(layout, made.params, number).promoted
    theirs, ours = folder_of(layout, number), folder_of(layout, 1)
    shutil.copy(theirs / version_files.MODEL_FILE, ours / version_files.MODEL_FILE)
    for key, value in client.get_model_version(MODEL, str(number)).tags.items():
        if not key.startswith("gate."):
            client.set_model_version_tag(MODEL, "1", key, value)
    shutil.rmtree(layout.state / "cache")
    assert sha256_file(refused.layout.onnx) == sha256_file(ours / version_files.MODEL_FILE)
    for ask in (
        lambda: version_files.champion(layout, MODEL),
        lambda: sign_version(layout, MODEL, "1"),
    ):
        with pytest.raises(UserError, match=r"exchanged|not signed"):
            ask()
    assert not health.standing(layout, MODEL).problems[0].serves
    # The tag is mended; the bytes were nowhere else.
    assert [one.mended for one in repair(layout, MODEL)] == [True, False]
    checkout()  # the same bytes are made again
    assert all(one.mended for one in repair(layout, MODEL))
    assert version_files.champion(layout, MODEL).version == 1
    assert health.standing(layout, MODEL).problems == ()


def test_no_session_is_built_from_a_file_that_nobody_signed(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    tracking.connect(made.layout).set_registered_model_alias(MODEL, "champion", "1")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from pipelines.registry import version_files\n"
        "from pipelines.core.paths import Layout\nlayout = Layout(Path(sys.argv[1]))\n"
        "try:\n    version_files.champion(layout, 'prong-digits')\n"
        "except version_files.NotReleased:\n    print('refused', 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(made.layout.root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == ["refused", "False"]


def test_a_key_is_changed_and_what_the_old_one_signed_stays(checkout: Make) -> None:
    release_model(checkout())
    made = checkout(noise=1.0)
    release_model(made)
    layout = made.layout
    old, new = rotate(layout, MODEL)
    assert old != new
    assert version_files.champion(layout, MODEL).statement.key == new
    keys.distrust(layout, old[:12])
    assert len(keys.trusted_keys(layout)) == 1
    assert version_files.champion(layout, MODEL).version == 2
    assert promotion.rollback(layout, MODEL, None, "").version == 1
    assert repair(layout, MODEL) == []


def test_a_lost_key_is_an_error_and_never_replaced(checkout: Make) -> None:
    made = checkout()
    release_model(made)
    layout = made.layout
    private = keys.signing_key(layout)
    private.unlink()
    worse = checkout(noise=1.0)
    with pytest.raises(keys.LostKey, match=r"signing\.pem: the release key is not here.*--rotate"):
        release.register(layout, worse.params, None)
    assert not private.exists()
    assert version_files.champion(layout, MODEL).version == 1  # its public part is still trusted
    shutil.rmtree(layout.state / "keys")
    with pytest.raises(version_files.NotReleased, match="no trusted key signed it"):
        version_files.champion(layout, MODEL)
    with pytest.raises(keys.LostKey):
        release.register(layout, worse.params, None)
    assert not private.exists()


def test_what_another_checkout_signed_is_neither_signed_again_nor_forged(
    checkout: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkout()
    release_model(made)
    bundle = folder_of(made.layout, 1) / version_files.SIGNATURE
    before = bundle.read_bytes()
    private, public = pair(tmp_path, "stranger")
    monkeypatch.setenv(keys.SIGNING_KEY, str(private))
    monkeypatch.setenv(keys.VERIFYING_KEY, str(public))
    with pytest.raises(UserError, match="no trusted key signed it"):
        sign_version(made.layout, MODEL, "1")
    assert bundle.read_bytes() == before
