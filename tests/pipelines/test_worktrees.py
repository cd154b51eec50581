"""Work trees of runs, made by real git and used by real DVC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from git_commands import commit_all, git
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.systems import mlflow as tracking
from pipelines.systems.dvc.reproduce import StageOutcome, ensure
from pipelines.systems.worktrees import finish, worktree

ONCE = """
import sys; from pathlib import Path
from pipelines.core import params_file; from pipelines.core.paths import Layout
from pipelines.systems.worktrees import worktree
layout = Layout(Path(sys.argv[1]))
tree = worktree(layout, deployment="nightly", params=params_file.load(layout.params), commit="HEAD")
print(tree.root)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = make(tmp_path / "job")
    (made.root / "data/raw/note.txt").write_text("the user's own")
    return made


@pytest.fixture
def layout(checkout: Checkout) -> Layout:
    return Layout(checkout.root)


@pytest.fixture
def params(layout: Layout) -> Params:
    return params_file.load(layout.params)


def _tree(layout: Layout, params: Params, deployment: str = "nightly") -> Layout:
    return worktree(layout, deployment=deployment, params=params, commit="HEAD")


def test_a_tree_is_clean_and_shares_every_store(
    checkout: Checkout, layout: Layout, params: Params
) -> None:
    tree = _tree(layout, params)
    assert tree.root.is_relative_to(layout.state / "worktrees")
    assert Layout.find(tree.root / "pipelines") == tree
    assert (tree.home, tree.state, tree.downloads) == (
        layout.root,
        layout.state,
        layout.downloads,
    )
    assert tracking.tracking_uri(tree) == tracking.tracking_uri(layout)
    assert params_file.load(tree.params) == params
    assert tree.params.read_text() == layout.params.read_text()
    assert (tree.root / "data/raw/note.txt").read_text() == "the user's own"
    for place in (layout.root, tree.root):
        assert git(checkout.root, "-C", str(place), "status", "--porcelain") == ""


def test_it_is_found_again_until_finished_and_keyed_by_deployment_code_and_parameters(
    checkout: Checkout, layout: Layout, params: Params
) -> None:
    tree = _tree(layout, params)
    tree.reports.mkdir()
    assert _tree(layout, params) == tree
    assert _tree(tree, params) == tree  # asked for from within a tree
    assert tree.reports.is_dir()
    other = replace(params, train=replace(params.train, epochs=7))
    trees = {tree.root, _tree(layout, other).root, _tree(layout, params, "night ly/").root}
    assert params_file.load(_tree(layout, other).params).train.epochs == 7
    (checkout.root / "pipelines/extra.py").write_text("")
    commit_all(checkout.root)
    trees.add(_tree(layout, params).root)
    assert len(trees) == 4
    for root in trees:
        finish(Layout(root))
        finish(Layout(root))  # once more changes nothing
        assert not root.exists()
    assert len(git(checkout.root, "worktree", "list").splitlines()) == 1
    assert not _tree(layout, params).reports.exists()


STAGE = """
stages:
  make:
    cmd: >-
      echo made > out.txt && echo '{"ran": true}' > "$PRONG_STAGE_RECORD"
    deps: [data/raw]
    outs: [out.txt]
"""


def test_what_one_made_the_next_restores(
    checkout: Checkout, layout: Layout, params: Params
) -> None:
    (layout.root / "dvc.yaml").write_text(STAGE)
    commit_all(checkout.root)
    first, second = _tree(layout, params, "one"), _tree(layout, params, "two")
    assert ensure(first.root, "make").outcome is StageOutcome.RAN
    assert ensure(second.root, "make").outcome is StageOutcome.RESTORED
    finish(first)
    finish(second)
    assert ensure(layout.root, "make").outcome is StageOutcome.RESTORED


@pytest.mark.slow
def test_two_trees_work_at_once(layout: Layout, params: Params) -> None:
    other = replace(params, data=replace(params.data, limit=300))
    trees = [_tree(layout, params), _tree(layout, other)]
    program = (
        "import sys; from pathlib import Path; from pipelines.systems.dvc.reproduce import ensure;"
        "print(ensure(Path(sys.argv[1]), 'prepare').outcome)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tree.root)],
            cwd=tree.root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in trees
    ]
    try:
        said = [process.communicate(timeout=200)[0].strip() for process in started]
    finally:
        for process in started:
            process.kill()
    assert said == ["ran", "ran"]


def test_calls_for_one_key_at_once_make_one_tree(layout: Layout) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ONCE, str(layout.root)],
            cwd=layout.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert len({out for out, _ in said}) == 1, said
    assert [process.returncode for process in started] == [0, 0]


def test_one_whose_making_was_killed_is_made_anew(
    checkout: Checkout, layout: Layout, params: Params, tmp_path: Path
) -> None:
    # A git that writes half of the tree and is then killed with its caller.
    real = git(checkout.root, "--exec-path")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin/git"
    shim.write_text(
        f'#!/bin/sh\ncase "$*" in *"worktree add"*) {real}/git "$@" --no-checkout; '
        "kill -9 $PPID; exit 1;; esac\nexec " + f'{real}/git "$@"\n'
    )
    shim.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", ONCE, str(layout.root)],
        cwd=layout.root,
        env={**os.environ, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(git(checkout.root, "worktree", "list").splitlines()) == 2
    tree = _tree(layout, params)
    assert (tree.root / "dvc.yaml").is_file()
    assert len(git(checkout.root, "worktree", "list").splitlines()) == 2


def test_changed_code_in_a_tree_is_not_run(layout: Layout, params: Params) -> None:
    tree = _tree(layout, params)
    (tree.root / "pipelines/pipeline/main_job.py").write_text("damaged")
    again = _tree(layout, params)
    assert again == tree
    assert (tree.root / "pipelines/pipeline/main_job.py").read_text() != "damaged"


def test_data_that_changed_meanwhile_is_taken_over(layout: Layout, params: Params) -> None:
    tree = _tree(layout, params)
    raw = layout.root / "data/raw"
    (raw / "a").mkdir()
    (raw / "a/1.png").write_bytes(b"one")
    (raw / "note.txt").unlink()
    _tree(layout, params)
    found = {path.name for path in (tree.root / "data/raw").rglob("*") if path.is_file()}
    assert found == {".gitkeep", "1.png"}


def test_the_images_beside_a_csv_come_with_it(layout: Layout, params: Params) -> None:
    (layout.root / "pictures").mkdir()
    for name in ("1.png", "labels.csv"):
        (layout.root / "pictures" / name).write_bytes(b"x")
    given = replace(params, data=replace(params.data, source="images", path="pictures/labels.csv"))
    tree = _tree(layout, given)
    assert sorted(path.name for path in (tree.root / "pictures").iterdir()) == [
        "1.png",
        "labels.csv",
    ]


def test_mistakes_are_named(
    tmp_path: Path, checkout: Checkout, layout: Layout, params: Params
) -> None:
    with pytest.raises(UserError, match="no-such"):
        worktree(layout, deployment="n", params=params, commit="no-such")
    with pytest.raises(UserError, match="not a work tree"):
        finish(layout)
    beside = replace(params, data=replace(params.data, path="../elsewhere"))
    with pytest.raises(UserError, match=r"\.\./elsewhere.*absolute"):
        _tree(layout, beside)
    (layout.root / ".git").rename(tmp_path / "hidden")
    with pytest.raises(UserError, match="not a git repository"):
        _tree(layout, params)
