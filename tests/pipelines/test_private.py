"""The state directory of a checkout: nobody but its owner enters it or changes what is in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dvc.repo import Repo
from other_user import NOBODY, as_other_user, folder_all_may_enter, needs_root

from pipelines.core.environment import set_up
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.core.private import private_text
from pipelines.systems.dvc.reproduce import open_repo
from pipelines.systems.secrets import secret, secret_file


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the checkout set its own variables, and forget them afterwards."""
    before = dict(os.environ)
    for name in ("DVC_SITE_CACHE_DIR", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@contextmanager
def repository(layout: Layout) -> Iterator[Repo]:
    """Open the checkout as the project does; made a repository without DVC's own caches."""
    (layout.root / ".dvc").mkdir()
    with open_repo(layout.root) as repo:
        yield repo


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o755, 0o777, 0o750])
def test_the_state_directory_is_the_owners_alone(layout: Layout, before: int | None) -> None:
    if before is not None:
        layout.state.mkdir()
        layout.state.chmod(before)
    mask = os.umask(0)
    try:
        set_up(layout)
    finally:
        os.umask(mask)
    assert mode(layout.state) == 0o700


def test_a_state_directory_that_is_not_written_to_stays_so(layout: Layout) -> None:
    layout.state.mkdir(mode=0o700)
    layout.state.chmod(0o555)
    set_up(layout)
    assert mode(layout.state) == 0o500


@needs_root
def test_the_state_directory_of_another_user_is_refused(layout: Layout) -> None:
    state = layout.state
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    (state / "home").write_text("/elsewhere")  # not even believed
    with pytest.raises(UserError, match=r"\.prong: belongs to user .*chown"):
        set_up(layout)


def test_a_file_in_its_place_is_named(layout: Layout) -> None:
    layout.state.write_text("")
    with pytest.raises(UserError, match=r"\.prong: not a folder"):
        set_up(layout)


def test_the_site_cache_of_dvc_is_the_owners_alone(layout: Layout) -> None:
    mask = os.umask(0o022)
    try:
        set_up(layout)
        with repository(layout) as repo:
            used = Path(repo.site_cache_dir)
    finally:
        os.umask(mask)
    assert used.is_relative_to(layout.state / "dvc/repo")
    assert [mode(layout.state / name) & 0o022 for name in ("dvc", "dvc/repo")] == [0, 0]
    assert mode(used) & 0o022 == 0


@pytest.mark.parametrize("open_to_all", ["dvc", "dvc/repo"])
def test_what_others_may_have_left_in_dvcs_site_cache_is_removed(
    layout: Layout, open_to_all: str
) -> None:
    planted = layout.state / "dvc/repo/planted.pkl"
    planted.parent.mkdir(parents=True)
    planted.write_text("code")
    (layout.state / open_to_all).chmod(0o777)
    with repository(layout):
        pass
    assert not planted.exists()
    assert [mode(layout.state / name) for name in ("dvc", "dvc/repo")] == [0o700, 0o700]
    assert mode(layout.state) == 0o700
    assert [path.name for path in layout.state.iterdir()] == ["dvc"]


def test_a_site_cache_of_the_users_own_is_refused_if_others_may_write_to_it(
    layout: Layout, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path_factory.mktemp("shared")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(shared))
    with repository(layout):
        pass
    shared.chmod(0o777)
    (shared / "of the user").touch()
    with pytest.raises(UserError, match=r"DVC_SITE_CACHE_DIR = .*other users may write"):
        open_repo(layout.root).__enter__()
    assert (shared / "of the user").exists()


def test_a_secret_is_made_once_and_is_the_owners_alone(layout: Layout) -> None:
    mask = os.umask(0)
    try:
        first = secret(layout, "mlflow")
    finally:
        os.umask(mask)
    assert len(first) >= 40
    assert secret(layout, "mlflow") == first
    assert secret(layout, "prefect").removeprefix("prong:") not in ("", first)
    path = secret_file(layout, "mlflow")
    assert (mode(path), mode(path.parent), mode(layout.state)) == (0o600, 0o700, 0o700)
    assert [found.name for found in sorted(path.parent.iterdir())] == ["mlflow", "prefect"]


def test_processes_that_make_a_secret_at_once_agree(layout: Layout) -> None:
    program = (
        "import sys; from pathlib import Path; from pipelines.core.private import private_text;"
        "input(); print(private_text(Path(sys.argv[1])))"
    )
    path = secret_file(layout, "prefect")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate("\n", timeout=60)[0].strip() for process in started]
    assert set(said) == {private_text(path)}


@pytest.mark.parametrize(
    ("damage", "said"),
    [(lambda path: path.chmod(0o644), "mode 0644"), (lambda path: path.write_text(""), "empty")],
)
def test_a_secret_that_is_none_is_refused(layout: Layout, damage: object, said: str) -> None:
    secret(layout, "prefect")
    damage(secret_file(layout, "prefect"))  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        secret(layout, "prefect")


@needs_root
def test_another_user_reads_and_writes_nothing_there() -> None:
    with folder_all_may_enter() as root:
        layout = Layout(root)
        set_up(layout)
        secret(layout, "prefect")
        with repository(layout) as repo:
            used = repo.site_cache_dir
        (layout.state / "mlflow.db").touch()
        program = """
def refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False
state, used = sys.argv[1:]
print(json.dumps([
    refused(lambda: os.listdir(state)),
    refused(lambda: open(f"{state}/mlflow.db").read()),
    refused(lambda: open(f"{state}/secrets/prefect").read()),
    refused(lambda: open(f"{state}/planted", "w")),
    refused(lambda: open(f"{state}/dvc/planted", "w")),
    refused(lambda: os.makedirs(f"{used}/index/data")),
    refused(lambda: os.rename(state, f"{state}-moved")),
]))
"""
        assert as_other_user(program, str(layout.state), used) == str([True] * 7).lower()
