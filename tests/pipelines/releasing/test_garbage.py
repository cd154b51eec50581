from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from git_commands import git
from starts import Starts
from stored_versions import MODEL, aliases, stored

from pipelines.core.errors import UserError
from pipelines.core.files import write_text
from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import gc as garbage
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release import transaction
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts

Make = Callable[..., FinishedCheckout]
LOCK = "schema: '2.0'\nstages:\n  prepare:\n    outs:\n    - path: data/prepared\n      md5: {}\n"


@pytest.fixture
def repository(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout as a git repository with DVC, as far as the cache goes."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    root = layout.root
    git(root, "init", "-q")
    write_text(root / ".dvc/config", "[core]\n    analytics = false\n")
    return root


def cached(
    root: Path, name: str, content: str = "x" * 1000, age: float = 2 * garbage.YOUNG
) -> Path:
    """Put an object into DVC's cache."""
    suffix = ".dir" if content.startswith("[") else ""
    path = root / ".dvc/cache/files/md5" / name[:2] / f"{name[2:]}{suffix}"
    write_text(path, content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def collect(layout: Layout, keep: int = 0, dry: bool = False) -> list[str]:
    said: list[str] = []
    garbage.collect(layout, MODEL, keep=keep, dry=dry, report=said.append)
    return said


def released(make: Make, noises: Iterator[float] | tuple[float, ...]) -> None:
    for noise in noises:
        made = make(noise=noise)
        done = release.register(made.layout, made.params, None)
        promotion.promote(made.layout, made.with_margin(0.9), done.version)


@pytest.mark.slow
def test_versions_that_were_never_live_go_and_all_others_stay(
    starts: Starts, checkout: Make, repository: Path, layout: Layout
) -> None:
    starts.released(layout, 0.0, 1.0)
    for noise in (2.0, 3.0, 4.0):
        release.register(layout, checkout(noise=noise).params, None)
    promotion.rollback(layout, MODEL, None, "")
    assert aliases(layout) == {"champion": 1, "challenger": 5}
    folders = {number: stored(layout, number).parent for number in range(1, 6)}
    size = sum(artifacts.size(layout, folders[number].as_uri()) for number in (3, 4))

    said = collect(layout, dry=True)
    assert [line.split("version ")[1][0] for line in said[:-1]] == ["4", "3"]
    assert said[-1].split()[:2] == garbage.shown(size).split()
    assert size > 1000
    assert len(registry.list_versions(layout, MODEL)) == 5
    assert collect(layout, keep=3, dry=True) == ["nothing to remove"]  # 5, 4 and 3 are the newest

    assert collect(layout)[:-1] == said[:-1]
    assert [row.number for row in registry.list_versions(layout, MODEL)] == [5, 2, 1]
    assert [n for n in folders if folders[n].exists() and any(folders[n].iterdir())] == [1, 2, 5]
    assert collect(layout) == ["nothing to remove"]
    # Even what was rolled back from can be gone back to, and the bytes that went can come again.
    assert promotion.rollback(layout, MODEL, "2", "").version == 2
    again = release.register(layout, checkout(noise=2.0).params, None)
    assert (again.version, again.created) == (6, True)


def test_an_upload_without_a_version_goes(
    starts: Starts,
    checkout: Make,
    repository: Path,
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts.released(layout, 0.0)
    from mlflow import MlflowClient

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    made = checkout(noise=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", crash)
        with pytest.raises(KeyboardInterrupt):
            release.register(layout, made.params, None)
    said = collect(layout)
    assert len(said) == 2
    assert "no version came of it" in said[0]
    assert collect(layout) == ["nothing to remove"]
    number, _ = version_files.champion_file(layout, MODEL)
    assert number == 1
    assert stored(layout, 1).is_file()


def test_a_removal_that_broke_off_goes_on_the_next_time(
    starts: Starts,
    checkout: Make,
    repository: Path,
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts.released(layout, 0.0)
    for noise in (1.0, 2.0):
        release.register(layout, checkout(noise=noise).params, None)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            collect(layout)
    rows = {row.number: row.complete for row in registry.list_versions(layout, MODEL)}
    assert rows == {1: True, 2: False, 3: True}  # nobody can count on it any more
    assert "its registration broke off" in collect(layout)[0]
    assert [row.number for row in registry.list_versions(layout, MODEL)] == [3, 1]


def test_objects_that_a_lock_names_stay(checkout: Make, repository: Path, layout: Layout) -> None:
    root = repository
    names = [f"{number:032x}" for number in range(0xA0, 0xB0)]
    kept = {
        "lock": cached(root, names[0]),
        "listed": cached(root, names[2]),
        "folder": cached(root, names[1], f'[{{"md5": "{names[2]}", "relpath": "a.png"}}]'),
        "tracked": cached(root, names[3]),
        "released": cached(root, names[4]),
        "beside": cached(root, names[5]),
        "of a version": cached(root, names[6]),
        "young": cached(root, names[7], age=60),
    }
    unneeded = [cached(root, names[8]), cached(root, names[9], f'[{{"md5": "{names[8]}"}}]')]
    dead = root / ".dvc/cache/runs/ab/abcd/1"
    alive = root / ".dvc/cache/runs/ab/abcd/2"
    write_text(dead, LOCK.format(names[8]))
    write_text(alive, LOCK.format(names[0]))
    # A lock that only the history of another branch holds.
    git(root, "checkout", "-q", "--orphan", "releases")
    write_text(root / "v1/dvc.lock", LOCK.format(names[4]))
    git(root, "add", "v1/dvc.lock")
    git(root, "commit", "-qm", "1")
    git(root, "rm", "-q", "v1/dvc.lock")
    git(root, "commit", "-qm", "2")
    git(root, "worktree", "add", "-q", "--detach", str(root.parent / "beside"))
    write_text(root.parent / "beside/dvc.lock", LOCK.format(names[5]))
    write_text(root / "dvc.lock", LOCK.format(names[0]) + f"    - md5: {names[1]}.dir\n")
    write_text(root / "data/raw.dvc", f"outs:\n- md5: {names[3]}\n  path: raw\n")
    released(checkout, (0.0,))
    write_text(stored(layout, 1).with_name("dvc.lock"), LOCK.format(names[6]))

    before = sorted((root / ".dvc/cache").rglob("*"))
    said = collect(layout, dry=True)
    assert "2 objects of DVC's cache" in said[0]
    assert sorted((root / ".dvc/cache").rglob("*")) == before
    collect(layout)
    assert {name: path.exists() for name, path in kept.items()} == dict.fromkeys(kept, True)
    assert not any(path.exists() for path in unneeded)
    assert (dead.exists(), alive.exists()) == (False, True)
    assert collect(layout) == ["nothing to remove"]


def test_a_cache_that_others_may_use_is_left_alone(
    starts: Starts, repository: Path, layout: Layout, tmp_path: Path
) -> None:
    write_text(repository / ".dvc/config", f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    path = tmp_path / "shared/files/md5/aa" / ("0" * 30)
    write_text(path, "x")
    os.utime(path, (1, 1))
    starts.released(layout, 0.0)
    said = collect(layout)
    assert "outside this repository" in said[0]
    assert path.exists()


def test_nothing_goes_while_a_run_is_at_work(
    starts: Starts, checkout: Make, repository: Path, layout: Layout
) -> None:
    starts.released(layout, 0.0)
    release.register(layout, checkout(noise=1.0).params, None)
    busy = repository / ".dvc/tmp/rwlock"
    write_text(busy, f'{{"data": {{"write": {{"pid": {os.getpid()}, "cmd": "dvc"}}}}}}')
    tracking.connect(layout).delete_registered_model_alias(MODEL, "challenger")
    with pytest.raises(UserError, match="another run is running"):
        collect(layout)
    assert len(registry.list_versions(layout, MODEL)) == 2
    write_text(busy, '{"data": {"write": {"pid": 4194304, "cmd": "dvc"}}}')  # it died
    assert "version 2" in collect(layout)[0]
    assert transaction.repaired_state(layout, MODEL).agrees


def test_what_a_kept_version_started_from_stays(
    checkout: Make, repository: Path, layout: Layout
) -> None:
    release.register(layout, checkout(noise=1.0).params, None)
    released(checkout, (0.0,))
    assert "version 1" in collect(layout, dry=True)[0]
    started = f"v1 {registry.find_version(layout, MODEL, '1').sha256}"
    tracking.connect(layout).set_model_version_tag(MODEL, "2", "lineage.started_from", started)
    assert collect(layout, dry=True) == ["nothing to remove"]
