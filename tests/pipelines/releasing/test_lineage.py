from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from git_commands import commit_all, git
from released_checkout import MODEL, model_of

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, write_text
from pipelines.core.paths import Layout
from pipelines.provenance.lineage import commit, dirty, is_dirty, lineage
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import audit
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel

Make = Callable[..., FinishedCheckout]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    root = tmp_path / "repository" / "project"
    root.mkdir(parents=True)
    write_text(root / "params.yaml", "a: 1\n")
    git(root.parent, "init", "-q")
    commit_all(root.parent)
    return root


def test_a_clean_checkout_names_its_commit(repository: Path) -> None:
    assert commit(repository) == git(repository, "rev-parse", "HEAD")
    assert dirty(repository) == "false"


def test_the_lock_that_each_run_writes_is_not_a_change(repository: Path) -> None:
    write_text(repository / "dvc.lock", "stages: {}\n")
    assert not is_dirty(repository)


@pytest.mark.parametrize("name", ["params.yaml", "new.py", "földer/new file.py"])
def test_changed_and_new_files_are_changes(repository: Path, name: str) -> None:
    write_text(repository / name, "a: 2\n")
    assert dirty(repository) == "true"


def test_outside_a_repository_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (commit(tmp_path), dirty(tmp_path)) == ("unknown", "unknown")
    assert not is_dirty(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not installed
    assert (commit(tmp_path), dirty(tmp_path)) == ("unknown", "unknown")


def test_a_repository_without_commits_has_an_unknown_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) == "unknown"


def test_every_tag_is_a_short_text_and_follows_its_cause(checkout: Make) -> None:
    made = checkout()
    layout = made.layout
    for name in ("prong", "pipelines"):  # the sources are those of the checkout
        write_text(layout.root / name / "__init__.py", "")
    before = lineage(layout, made.params)
    assert all(isinstance(v, str) and 0 < len(v) <= 5000 for v in before.values())
    assert before["onnx_sha256"] == sha256_file(layout.onnx)
    assert (before["device"], before["seed"], before["world_size"]) == ("cpu", "7", "2")
    assert before["torch"].startswith("2.")
    assert before["dvc_lock_sha256"] == "unknown"

    write_text(layout.root / "dvc.lock", "stages: {}\n")
    write_text(layout.root / "prong/method.py", "x = 1\n")
    layout.onnx.write_bytes(b"other")
    after = lineage(layout, made.with_margin(0.5))
    changed = {key for key in after if after[key] != before[key]}
    direct = {"dvc_lock_sha256", "code_hash", "onnx_sha256", "params_hash"}
    assert changed == {*direct, "package_hash", "training_hash"}
    seed = replace(made.params, train=replace(made.params.train, seed=1))
    assert lineage(layout, seed)["params_hash"] != after["params_hash"]


def test_what_is_absent_is_named(checkout: Make) -> None:
    made = checkout()
    (made.layout.reports / "train.json").unlink()
    assert lineage(made.layout, made.params)["device"] == "unknown"
    write_text(made.layout.reports / "train.json", "{")
    with pytest.raises(UserError, match=r"train\.json: not JSON"):
        lineage(made.layout, made.params)
    made.layout.onnx.unlink()
    with pytest.raises(UserError, match=r"model\.onnx: absent"):
        lineage(made.layout, made.params)


def verdicts(layout: Layout, number: int) -> dict[str, str]:
    version = registry.find_version(layout, MODEL, str(number))
    return {link.name: str(link.verdict) for link in audit.walk(layout, version)}


def test_the_registrys_own_file_is_looked_at_and_not_the_cache(
    moved: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_files.champion_file(moved, MODEL)  # lies in the cache from now on
    assert verdicts(moved, 2)["bytes"] == "holds"
    model = model_of(moved, 2)
    content = model.read_bytes()
    monkeypatch.setattr(OnnxModel, "load", lambda *_: pytest.fail("loaded"))
    for change in (content[:-1] + b"?", b"", None):
        if change is None:
            model.unlink()
        else:
            model.write_bytes(change)
        found = verdicts(moved, 2)
        assert found["bytes"] == "broken"
        assert found["data_hash"] == found["code_hash"] == "unknown"
    assert version_files.champion_file(moved, MODEL)[0] == 2


@pytest.mark.parametrize("tag", ["--batch", "HEAD", "", "0" * 39, "0" * 40 + "\n", "É" * 40])
def test_a_tag_that_is_no_commit_is_no_argument_of_git(moved: Layout, tag: str) -> None:
    tracking.connect(moved).set_model_version_tag(MODEL, "2", "lineage.git_commit", tag)
    assert verdicts(moved, 2)["commit"] == "broken"


def test_what_tags_say_is_printed_as_it_is(
    moved: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    version = registry.find_version(moved, MODEL, "2")
    audit.show(version, [audit.Link("commit", "a[/]b", audit.Verdict.UNKNOWN, "odd in [/srv]")])
    assert "a[/]b" in (said := capsys.readouterr().out)
    assert "odd in [/srv]" in said
