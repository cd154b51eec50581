"""What lies beside a version, the branch of releases, and the walk back to the sources."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from finished_checkout import FinishedCheckout
from git_commands import commit_all, git

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_file, write_text
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.provenance import bom, keys
from pipelines.provenance import release_branch as releases
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import audit as ancestry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.audit import Verdict
from pipelines.release.sign import sign_version
from pipelines.systems import git as repositories
from pipelines.systems import mlflow as tracking

ROOT = Path(__file__).parents[3]
MODEL = "prong-digits"
Make = Callable[..., FinishedCheckout]


@pytest.fixture
def made(checkout: Make) -> FinishedCheckout:
    """A checkout in a repository, with the lock and the parameters its stages leave."""
    made = checkout()
    root = made.layout.root
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copy(ROOT / ".gitignore", root)
    md5 = hashlib.md5(made.layout.onnx.read_bytes(), usedforsecurity=False).hexdigest()
    out = {"path": "models/model.onnx", "hash": "md5", "md5": md5}
    write_text(root / "dvc.lock", json.dumps({"schema": "2.0", "stages": {"e": {"outs": [out]}}}))
    git(root, "init", "-q")
    commit_all(root)
    return made


def folder_of(layout: Layout, number: int) -> Path:
    client = tracking.connect(layout)
    where = client.get_model_version_download_uri(MODEL, str(number))
    return Path(where.removeprefix("file://"))


def registered(made: FinishedCheckout) -> registry.Version:
    done = release.register(made.layout, made.params, "flow-1")
    return registry.find_version(made.layout, MODEL, str(done.version))


def test_a_bill_of_materials_that_the_schema_takes_lists_what_was_there(
    made: FinishedCheckout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bom, "distributions", distributions)  # all of them
    version = registered(made)
    text = (folder_of(made.layout, 1) / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": version.sha256}]
    assert model["modelCard"]["modelParameters"]["task"] == "classification of images"
    (data,) = [c for c in bill["components"] if c["type"] == "data"]
    card = load_card(made.layout.prepared)
    assert data["hashes"][0]["content"] == card.data_hash
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]
    listed = {c["name"]: c["version"] for c in bill["components"] if c["type"] == "library"}
    here = {
        d.metadata["Name"].lower().replace("_", "-"): d.version
        for d in distributions()
        if d.metadata["Name"]
    }
    assert listed == here
    locks = {c["name"]: c["hashes"][0]["content"] for c in model["components"]}
    assert locks["dvc.lock"] == sha256_file(made.layout.root / "dvc.lock")


def test_the_card_says_what_the_reports_say(made: FinishedCheckout) -> None:
    version = registered(made)
    text = (folder_of(made.layout, 1) / "card.md").read_text()
    test = read_json(made.layout.reports / "evaluation.json")
    for said in (version.sha256, f"{test['test_error']:.2f} %", "uint8 [batch, 1, 28, 28]"):
        assert said in text


def test_what_lies_beside_depends_on_nothing_but_the_model(
    made: FinishedCheckout, tmp_path: Path
) -> None:
    from pipelines.provenance.attachments import write_attachments
    from pipelines.provenance.lineage import lineage

    made_from = lineage(made.layout, made.params)
    figures = {
        "evaluation": read_json(made.layout.reports / "evaluation.json"),
        "verification": read_json(made.layout.reports / "verification.json"),
    }
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        model = shutil.copy(made.layout.onnx, tmp_path / name / "model.onnx")
        write_attachments(made.layout, Path(model), MODEL, made_from, figures)
        found.append([(tmp_path / name / f).read_bytes() for f in ("bom.cdx.json", "card.md")])
    assert found[0] == found[1]


def test_each_release_is_kept_on_a_branch_and_nothing_else_is_touched(
    made: FinishedCheckout,
) -> None:
    root = made.layout.root
    before = git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD")
    registered(made)
    assert (git(root, "status", "--porcelain"), git(root, "rev-parse", "HEAD")) == before
    for name in releases.FILES:
        kept = releases.kept(made.layout, MODEL, 1, name)
        assert kept == (root / name).read_bytes()
    tip = repositories.tip(root, releases.BRANCH)
    assert releases.keep(made.layout, MODEL, 1, "") == tip  # again: no second commit
    write_text(root / "dvc.lock", "stages: {}\n")
    releases.keep(made.layout, MODEL, 2, "")
    assert git(root, "ls-tree", "-r", "--name-only", releases.BRANCH).split() == [
        f"{MODEL}-v{number}/{name}" for number in (1, 2) for name in releases.FILES
    ]
    assert git(root, "fsck", "--strict") == ""


def test_concurrent_writers_lose_no_commit(made: FinishedCheckout) -> None:
    root = made.layout.root
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: releases.keep(made.layout, MODEL, n, ""), range(12)))
    assert len(git(root, "ls-tree", "-r", "--name-only", releases.BRANCH).split()) == 24
    assert int(git(root, "rev-list", "--count", releases.BRANCH)) == 12


def test_without_a_repository_the_copies_in_the_registry_do(checkout: Make, tmp_path: Path) -> None:
    made = checkout()
    write_text(made.layout.root / "dvc.lock", "stages: {}\n")
    version = registered(made)
    kept = ancestry.kept_file(made.layout, version, "dvc.lock", tmp_path)
    assert kept is not None
    assert kept.read_text() == "stages: {}\n"


def links(made: FinishedCheckout, version: registry.Version) -> dict[str, Verdict]:
    return {link.name: link.verdict for link in ancestry.walk(made.layout, version)}


def test_every_link_of_a_sound_version_holds(made: FinishedCheckout) -> None:
    version = registered(made)
    assert links(made, version)["signature"] is Verdict.UNKNOWN  # the gates were not asked yet
    assert promotion.promote(made.layout, made.params, 1).promoted
    found = links(made, registry.find_version(made.layout, MODEL, "1"))
    # The parameters here are the project's own, the model's metadata those of the fixture.
    assert {name for name, verdict in found.items() if verdict is not Verdict.HOLDS} <= {
        "params",
        "params → bytes",
    }
    assert list(found)[:2] == ["bytes", "signature"]
    assert {"data_hash", "code_hash", "dvc.lock", "lock → bytes", "commit", "run"} <= set(found)


def test_tags_that_lie_are_found(made: FinishedCheckout) -> None:
    registered(made)
    client = tracking.connect(made.layout)
    lies = {
        "data_hash": "data_hash",
        "code_hash": "code_hash",
        "dvc_lock_sha256": "dvc.lock",
        "params_hash": "params",
    }
    for tag in lies:
        client.set_model_version_tag(MODEL, "1", f"lineage.{tag}", "0" * 64)
    client.set_model_version_tag(MODEL, "1", "lineage.git_commit", "0" * 40)
    found = links(made, registry.find_version(made.layout, MODEL, "1"))
    assert [found[link] for link in lies.values()] == [Verdict.BROKEN] * len(lies)
    assert found["commit"] is Verdict.UNKNOWN  # it may be in another clone


def test_files_that_do_not_fit_are_found(made: FinishedCheckout) -> None:
    version, folder = registered(made), folder_of(made.layout, 1)
    git(made.layout.root, "branch", "-D", releases.BRANCH)
    out = {"path": "models/model.onnx", "md5": "0" * 32}
    write_text(folder / "dvc.lock", json.dumps({"stages": {"e": {"outs": [out]}}}))
    assert links(made, version)["lock → bytes"] is Verdict.BROKEN
    (folder / version_files.MODEL_FILE).write_bytes(b"{}")
    assert links(made, version)["bytes"] is Verdict.BROKEN


def test_a_version_can_be_signed_anew_and_only_if_its_bytes_are_right(
    made: FinishedCheckout,
) -> None:
    registered(made)
    with pytest.raises(version_files.NotReleased, match="prong promote 1"):
        sign_version(made.layout, MODEL, "1")
    assert promotion.promote(made.layout, made.params, 1).promoted
    version = registry.find_version(made.layout, MODEL, "1")
    old = version_files.signer(made.layout, version)
    keys.rotate(made.layout)
    assert version_files.signer(made.layout, version) == old  # still trusted
    _, key = sign_version(made.layout, MODEL, "champion")
    assert key != old
    version = registry.find_version(made.layout, MODEL, "1")
    assert version_files.signer(made.layout, version) == key
    (folder_of(made.layout, 1) / version_files.MODEL_FILE).write_bytes(b"x")
    with pytest.raises(UserError, match="not signed: the registry's file"):
        sign_version(made.layout, MODEL, "1")
