"""`prong init`: what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import own_networks
import pytest
from classifiers import classifier_form
from git_commands import git
from PIL import Image
from ruamel.yaml import YAML

from pipelines.cli.new_project import init
from pipelines.core import own_code, params_file
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data import sources
from pipelines.project.create import create, params_text
from pipelines.project.templates import TEMPLATES
from pipelines.tasks.columns import Column
from pipelines.tasks.form import Form, Value
from pipelines.tasks.named import task_of
from pipelines.training import network
from pipelines.training.network import NetworkSpec
from pipelines.verification.dry_run import try_out

ROOT = Path(__file__).parents[2]
OWN = (".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml")
"""Files of this checkout that a project of the first template has, byte for byte."""


@pytest.fixture(autouse=True)
def _no_repository_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    names = {path.relative_to(root).as_posix(): path for path in found}
    return {name: path.read_bytes() for name, path in names.items() if name[:5] != ".git/"}


def test_an_empty_folder_becomes_what_this_checkout_is(tmp_path: Path) -> None:
    root = tmp_path / "a b/new"
    done = create(root, "digits")
    assert (done.root, done.repository) == (root, True)
    held = files(root)
    assert set(done.written) == set(held)
    for name in OWN:
        assert held[name] == (ROOT / name).read_bytes(), name
    folders = {f"data/{name}/.gitkeep" for name in ("added", "code", "raw", "start")}
    assert set(held) == {*OWN, *folders, "README.md", "data.py", "network.py"}
    assert git(root, "status", "--porcelain").count("??") > 0  # nothing is committed for anybody
    assert Layout.find(root / "data").root == root
    readme = held["README.md"].decode()
    assert readme.startswith("# new\n")
    for line in ("git add -A && git commit", "prong run\n", "prong predict data/"):
        assert f"\n{line}" in readme


def test_the_same_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path, "images")
    assert "\n  prong run\n" in capsys.readouterr().out
    before = files(tmp_path)
    (tmp_path / "README.md").write_text("# My own\n")
    init(tmp_path, "images")
    assert "nothing was changed" in capsys.readouterr().out
    assert files(tmp_path) == {**before, "README.md": b"# My own\n"}
    assert create(tmp_path, "images").written == ()


def test_a_repository_keeps_its_readme_and_what_it_ignores(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / ".gitignore").write_text("secret\n/models/")
    done = create(tmp_path / "below", "digits")
    assert not done.repository
    done = create(tmp_path, "digits")
    assert not done.repository
    assert "README.md" not in done.written
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    lines = (tmp_path / ".gitignore").read_text().splitlines()
    assert lines[:2] == ["secret", "/models/"]
    wanted = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line[0] != "#"]
    assert sorted(line for line in lines if line[0] != "#") == sorted({*wanted, "secret"})


def test_other_files_in_the_way_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text("mine = 1\n")
    (tmp_path / "params.yaml").mkdir()
    (tmp_path / "data").write_text("")
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        create(tmp_path, "digits")
    for name in ("network.py", "params.yaml (not a file)", "data (not a folder)"):
        assert name in str(caught.value)
    assert files(tmp_path) == before
    assert not (tmp_path / ".git").exists()
    for place in ("data", "data/below"):
        with pytest.raises(UserError, match="is a file"):
            create(tmp_path / place, "digits")


def test_another_template_is_refused_as_is_an_unknown_one(tmp_path: Path) -> None:
    create(tmp_path, "digits")
    with pytest.raises(UserError, match=r"already other files: params\.yaml; move"):
        create(tmp_path, "images")
    with pytest.raises(UserError, match=r"--template 'none': allowed: digits, images"):
        create(tmp_path, "none")


def test_without_git_it_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is missing"):
        create(tmp_path / "new", "digits")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_settings_of_every_template_exist(name: str) -> None:
    text = params_text(TEMPLATES[name])
    if text:
        values = YAML(typ="safe").load(text)
        for setting in TEMPLATES[name].settings:
            key, _, value = setting.partition("=")
            section, _, knob = key.partition(".")
            assert str(values[section][knob]) == value.strip("'")


FORMS = {
    "digits": classifier_form("abc", 8, 1, (0.5,), (0.25,)),
    "images": classifier_form("ab", 9, 3, (0.5,) * 3, (0.25,) * 3),
    "table": Form(
        "regression",
        values=(Value("price", 3.0, 2.0),),
        columns=(Column("x", "number", 1.0, 2.0), Column("c", "category", categories=("a", "b"))),
    ),
    "autoencoder": replace(classifier_form("abc", 8, 1, (0.5,), (0.25,)), task="reconstruction"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_its_network_can_be_trained_and_released_as_it_is(tmp_path: Path, name: str) -> None:
    create(tmp_path, name)
    with own_networks.own_modules():
        code = own_code.own_hash("network:build", tmp_path, "train.network")
        shape = task_of(FORMS[name], tmp_path).output_shape
        spec = NetworkSpec(FORMS[name], shape, "prong+", 4, 8, "network:build", code)
        done = try_out(network.build(spec, tmp_path), spec, 20, tmp_path)
    assert done.exported
    assert done.share > 0.5


def test_the_sketch_of_data_reads_the_images_of_a_folder(tmp_path: Path) -> None:
    create(tmp_path, "images")
    for place, colour in (("cat/1.png", "red"), ("dog/2.png", "blue")):
        path = tmp_path / "data/raw" / place
        path.parent.mkdir()
        Image.new("RGB", (5, 4), colour).save(path)
    params_file.edit(tmp_path / "params.yaml", ["data.source=data:examples"])
    config = params_file.load(tmp_path / "params.yaml").data
    with own_networks.own_modules():
        found = sources.read(config, root=tmp_path, downloads=tmp_path, task="auto")
    assert found.classes == ("cat", "dog")
    assert found.images.shape == (2, 3, 4, 4)


def test_the_command_is_there_and_its_mistake_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", "init", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: nothing was written")
    assert len(done.stderr.splitlines()) == 1
