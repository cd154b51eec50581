"""A checkout that cannot be written to: what needs no writing works."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fork_server
import pytest
from PIL import Image
from released_checkout import MODEL, contents

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import audit
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow.address import artifact_root, is_read_only, sqlite_file

URI = "MLFLOW_TRACKING_URI"
SOURCE = Path(__file__).parents[3]


@pytest.fixture
def closed(moved: Layout) -> Iterator[Layout]:
    """A released checkout, its champion in the cache, in which nothing may be written."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, moved.root / name)
    version_files.champion_file(moved, MODEL)
    image = load_split(moved.prepared, "test").inputs[0, 0]
    Image.fromarray(image).save(moved.root / "image.png")
    everything = [moved.root, *moved.root.rglob("*")]
    for path in everything:
        path.chmod(path.stat().st_mode & ~0o222)
    yield moved
    for path in everything:
        if path.exists():
            path.chmod(path.stat().st_mode | 0o200)


def _heed_permissions() -> None:
    """Give up root's right to write anywhere."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = tuple((n, ctypes.c_uint32) for n in ("effective", "permitted", "inheritable"))

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    for part in ("effective", "permitted"):
        setattr(data[0], part, getattr(data[0], part) & ~(1 << 1))  # CAP_DAC_OVERRIDE
    assert libc.capset(ctypes.byref(header), data) == 0


def _without_rights(root: str, command: str) -> Any:
    _heed_permissions()
    layout = Layout(Path(root))
    with pytest.raises(PermissionError):
        (layout.state / "written").touch()
    if command == "predict":
        from pipelines.cli.app import app

        app(["predict", "image.png", "--json"], standalone_mode=False)
        return None
    client = tracking.connect(layout)
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2
    (version, *_) = registry.list_versions(layout, MODEL)
    return {link.name: str(link.verdict) for link in audit.walk(layout, version)}


def _told(layout: Layout, command: str, tmp_path: Path, **more: str) -> fork_server.Ended:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    ended = fork_server.start(
        _without_rights,
        *(str(layout.root), command),
        leaves=tmp_path / "output",
        cwd=layout.root,
        env={**kept, **more},
    ).wait()
    assert ended.code == 0, ended.output + str(ended.said)
    return ended


def test_the_champion_answers_and_its_lineage_is_read(closed: Layout, tmp_path: Path) -> None:
    before = contents(closed.root)
    assert '"version": 2' in _told(closed, "predict", tmp_path).out
    links = _told(closed, "lineage", tmp_path).said
    assert links["bytes"] == links["signature"] == "holds"
    assert contents(closed.root) == before


def test_an_address_that_asks_for_reading_only_is_understood(
    moved: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = moved.state / "mlflow.db"
    quoted = database.as_uri().removeprefix("file://")
    monkeypatch.setenv(URI, f"sqlite:///file:{quoted}?mode=ro&uri=true")
    before = database.read_bytes()
    assert sqlite_file(os.environ[URI]) == database
    assert artifact_root(moved) == (moved.state / "artifacts").as_uri()
    assert version_files.champion_file(moved, MODEL)[0] == 2
    with pytest.raises(UserError, match="readonly database"):
        tracking.connect(moved)
        with tracking.answering(moved):
            tracking.connect(moved).set_registered_model_tag(MODEL, "a", "b")
    assert database.read_bytes() == before
    database.unlink()
    with pytest.raises(UserError, match="unable to open database file"):
        tracking.connect(moved)
    assert not database.exists()


@pytest.mark.parametrize(
    ("uri", "file", "read_only"),
    [
        ("sqlite:////a/b c.db", "/a/b c.db", False),
        ("sqlite:////a/b%20c.db", "/a/b%20c.db", False),
        ("sqlite:///file:/a/b%20c.db?uri=true", "/a/b c.db", False),
        ("sqlite:///file:///a/b.db?immutable=1&uri=true", "/a/b.db", True),
        ("sqlite+pysqlite:///file:/a/b.db?mode=ro&uri=true", "/a/b.db", True),
        ("sqlite:////a/b.db?mode=ro", "/a/b.db", False),
        ("sqlite:///file::memory:?uri=true", None, False),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", None, False),
        ("sqlite://", None, False),
        ("postgresql://host/a", None, False),
    ],
)
def test_the_file_of_an_address(uri: str, file: str | None, read_only: bool) -> None:
    assert sqlite_file(uri) == (None if file is None else Path(file))
    assert is_read_only(uri) is read_only
