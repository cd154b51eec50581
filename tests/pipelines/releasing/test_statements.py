"""Statements: what a trusted key let through is answered from, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from key_pairs import pair
from stored_versions import MODEL

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.gates.judging import GATES
from pipelines.provenance import keys, signing
from pipelines.registry import statements, version_files
from pipelines.registry import versions as registry
from pipelines.registry.intents import INTENT
from pipelines.registry.statements import PREFIX as STATEMENT
from pipelines.release import health
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.repair import repair
from pipelines.release.sign import rotate, sign_version
from pipelines.release.transaction import repaired_state
from pipelines.systems import mlflow as tracking

Make = Callable[..., FinishedCheckout]


@pytest.fixture(autouse=True)
def _own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (keys.SIGNING_KEY, keys.VERIFYING_KEY):
        monkeypatch.delenv(name, raising=False)


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


@pytest.mark.slow
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


def test_who_can_only_verify_reads_and_is_not_stopped_by_a_forged_intent(
    checkout: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkout()
    release_model(made)
    layout, client = made.layout, tracking.connect(made.layout)
    (public,) = (layout.state / "keys/trusted").iterdir()
    kept = public.rename(layout.root / "release.pub")
    shutil.rmtree(layout.state / "keys")
    monkeypatch.setenv(keys.VERIFYING_KEY, str(kept))
    client.set_registered_model_tag(MODEL, INTENT, "forged")
    assert version_files.champion(layout, MODEL).version == 1
    assert repaired_state(layout, MODEL).bad_intent
    checkout(noise=1.0)
    client.set_registered_model_alias(MODEL, "challenger", "1")
    with pytest.raises(keys.LostKey):
        release.register(layout, made.params, None)
    assert not (layout.state / "keys/signing.pem").exists()
