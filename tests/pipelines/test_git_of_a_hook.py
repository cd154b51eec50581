"""A hook of another repository, with all that git exports, starts what belongs to this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from git_commands import commit_all, git
from small_checkout import SOURCE

from pipelines.core.environment import ONE_REPOSITORY
from pipelines.systems.git import ask, commit_files, tip

PROGRAM = """
import os, sys; from pathlib import Path
root = Path(sys.argv[1])
from pipelines.core.environment import set_up
from pipelines.core.paths import Layout
if sys.argv[2] == "set up":
    set_up(Layout(root))
from pipelines.systems.dvc.reproduce import open_repo
with open_repo(root) as repo:
    print(repo.scm.root_dir)
    print(repo.scm.get_rev())
    print(repo.scm.is_tracked(str(root / "mine")))
from pipelines.systems.git import commit_files
commit_files(root, "kept", {"folder/file": b"1"}, "made")
if sys.argv[2] == "set up":
    import subprocess
    print(subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=root, text=True,
                         capture_output=True).stdout.strip())
"""


@pytest.fixture
def repositories(tmp_path: Path) -> tuple[Path, Path]:
    """This repository and another, with a commit each."""
    found = (tmp_path / "this", tmp_path / "another")
    for root, name in zip(found, ("mine", "theirs"), strict=True):
        root.mkdir()
        git(root, "init", "-q")
        (root / name).touch()
        if name == "mine":
            (root / ".dvc").mkdir()
            (root / ".dvc/config").touch()
            (root / ".gitignore").write_text("/.dvc/tmp\n/.prong\n")
        commit_all(root)
    return found


def test_every_variable_that_git_keeps_for_one_repository_is_known() -> None:
    listed = git(SOURCE, "rev-parse", "--local-env-vars").split()
    assert set(listed) - set(ONE_REPOSITORY) == {"GIT_CONFIG_COUNT"}


@pytest.mark.parametrize("by", ["set up", "nothing"])
def test_a_hook_of_another_repository_does_not_lead_there(
    repositories: tuple[Path, Path], by: str
) -> None:
    this, another = repositories
    hook = another / ".git/hooks/pre-commit"
    hook.write_text(
        f'#!/bin/sh\nexport GIT_DIR="$PWD/.git" GIT_WORK_TREE="$PWD"\n'
        f"export GIT_OBJECT_DIRECTORY=$GIT_DIR/objects GIT_COMMON_DIR=$GIT_DIR\n"
        f"exec '{sys.executable}' -c '{PROGRAM}' '{this}' '{by}'\n"
    )
    hook.chmod(0o755)
    (another / "more").touch()
    git(another, "add", "more")
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-m", "more"],
        cwd=another,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines() + done.stdout.splitlines()
    assert str(this) in said, said
    assert git(this, "rev-parse", "HEAD") in said
    assert "True" in said
    assert str(another) not in said
    assert tip(another, "kept") is None
    assert ask(this, "show", "kept:folder/file") == "1"
    assert git(another, "status", "--porcelain") == ""


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_COMMON_DIR"])
def test_one_variable_alone_does_not_lead_there(
    repositories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    this, another = repositories
    values = {"GIT_WORK_TREE": another, "GIT_INDEX_FILE": another / ".git/index"}
    monkeypatch.setenv(name, str(values.get(name, another / ".git")))
    assert ask(this, "rev-parse", "--show-toplevel") == f"{this}\n"
    assert ask(this, "status", "--porcelain", "--untracked-files=no") == ""
    made = commit_files(this, "kept", {"file": b"2"}, "made")
    monkeypatch.delenv(name)
    assert tip(this, "kept") == made
    assert tip(another, "kept") is None


def test_what_people_set_for_git_stays(
    repositories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "of the environment")
    assert ask(repositories[0], "config", "user.name") == "of the environment\n"
