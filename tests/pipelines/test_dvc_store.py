"""What the stages made is pushed to a remote and restored on another machine."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from dvc.repo import Repo
from object_store import ObjectStore, object_store
from small_checkout import SOURCE
from test_versioning import PIPELINE, STAGE

from pipelines.core.errors import Unavailable, UserError
from pipelines.systems.dvc.cache import keep, push, restore_added, share
from pipelines.systems.dvc.reproduce import StageOutcome, ensure

__all__ = ["object_store"]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two checkouts that share nothing, run by this code."""
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "data/added/x").mkdir(parents=True)
        (root / "stage.py").write_text(STAGE)
        (root / "dvc.yaml").write_text(PIPELINE)
        (root / "source.txt").write_text("one")
        Repo.init(str(root), no_scm=True).close()
    (tmp_path / "one/data/added/x/1").write_text("added")
    return tmp_path / "one", tmp_path / "two"


def _there_and_back(machines: tuple[Path, Path], remote: str) -> None:
    one, two = machines
    share(one, one, remote)
    assert ensure(one, "make").outcome is StageOutcome.RAN
    assert push(one, one / "data/added")
    kept = keep(one, one / "data/added")
    share(two, two, remote)
    assert ensure(two, "make").outcome is StageOutcome.RESTORED
    assert (two / "out/a").read_text() == "one"
    restore_added(two, two / "data/added", kept)
    assert (two / "data/added/x/1").read_text() == "added"


def test_a_folder_keeps_what_another_machine_then_restores(
    machines: tuple[Path, Path], tmp_path: Path
) -> None:
    _there_and_back(machines, str(tmp_path / "remote"))
    # The lock is there, the outputs and the cache are lost.
    two = machines[1]
    shutil.rmtree(two / "out")
    shutil.rmtree(two / ".dvc/cache")
    assert ensure(two, "make").outcome is StageOutcome.RESTORED


def test_without_a_remote_nothing_is_pushed_and_an_old_one_is_forgotten(
    machines: tuple[Path, Path], tmp_path: Path
) -> None:
    one, _ = machines
    settings = one / ".dvc/config.local"
    share(one, one, "")
    assert not settings.exists()
    share(one, one, str(tmp_path / "remote"))
    assert "remote" in settings.read_text()
    share(one, one, "")
    assert settings.read_text().strip() == ""
    ensure(one, "make")
    assert not push(one, one / "data/added")
    assert not (tmp_path / "remote").exists()


def test_a_remote_that_takes_nothing_is_named(machines: tuple[Path, Path], tmp_path: Path) -> None:
    one, _ = machines
    ensure(one, "make")
    (tmp_path / "file").write_text("no folder")
    share(one, one, str(tmp_path / "file/remote"))
    with pytest.raises(Unavailable, match=r"store\.remote = .*file/remote"):
        push(one, one / "data/added")
    (one / "source.txt").write_text("two")
    assert ensure(one, "make").outcome is StageOutcome.RAN  # what is not there has nothing to give


@pytest.mark.slow
def test_an_object_store_keeps_what_another_machine_then_restores(
    machines: tuple[Path, Path], object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.settings.items():
        monkeypatch.setenv(name, value)
    remote = object_store.bucket("store") + "/prong"
    _there_and_back(machines, remote)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        share(machines[0], machines[0], remote)
        (machines[0] / "source.txt").write_text("two")
        with pytest.raises(UserError, match=r"store\.remote = 's3://store/prong'"):
            ensure(machines[0], "make")
