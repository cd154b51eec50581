"""DVC: what was made from what, which stages are up to date, and running those that are not.

A stage counts as up to date only if DVC finds its command, dependencies and parameters unchanged
*and* its outputs hash right, read again from the disk: DVC itself trusts a file whose size and
time of change look the same, and a cached object that is write-protected.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import dvc.logger
from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError, RWLockFileFormatError
from dvc.stage.exceptions import StageCmdFailedError
from dvc_data.hashfile.build import IgnoreInCollectedDirError, build
from dvc_data.hashfile.db import HashFileDB

from pipelines.core.environment import AFRESH, PYTHON, RECORD, forget_repository
from pipelines.core.errors import Failed, Unavailable, UserError, disk_error
from pipelines.core.files import read_json, write_json
from pipelines.core.paths import Layout
from pipelines.core.text import shown_lines
from pipelines.systems.dvc.site_cache import private_site_cache
from pipelines.systems.dvc.stage_code import note_code
from pipelines.systems.processes import end_with_keeper, exit_on_sigterm, process_start, run_group

T = TypeVar("T")

_BROKEN_LOCKS = (RWLockFileCorruptedError, RWLockFileFormatError)
# The last is what its memory of files raises on a full or read-only disk.
REFUSALS = (DvcException, IgnoreInCollectedDirError, sqlite3.OperationalError)

REMOTE = "prong"
"""DVC's name of the remote that `store.remote` sets; what is absent is pulled from it."""
PATIENCE = 30.0
"""Seconds to wait for a checkout in which another run is at work."""


class StageOutcome(StrEnum):
    """How a stage came by its outputs."""

    RAN = "ran"
    CACHED = "cached"
    RESTORED = "restored"


@dataclass(frozen=True)
class StageResult:
    """What became of one stage.

    Attributes:
        stage: Its name in `dvc.yaml`.
        outcome: Ran, found up to date, or restored from DVC's cache of earlier runs.
        seconds: Wall-clock time.
    """

    stage: str
    outcome: StageOutcome
    seconds: float


@contextmanager
def open_repo(root: Path) -> Iterator[Repo]:
    """Open the checkout at `root` for DVC, which is to be quiet, and is told of a project's code.

    Raises:
        UserError: If another user may write where DVC keeps its caches.
    """
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    private_site_cache(Layout(root).state)
    forget_repository(os.environ)
    if Layout(root).params.is_file():
        note_code(root)
    dvc.logger.setup(level=logging.CRITICAL)
    config = None if (root / ".git").exists() else {"core": {"no_scm": True}}
    with Repo(str(root), config=config) as repo:
        yield repo


def patiently(root: Path, action: Callable[[], T]) -> T:
    """Return `action()`, tried again while another process holds DVC's locks.

    A list of locks that broke off in writing (full disk, power cut) would stop every later run; it
    names only processes that DVC looks for anyway, so it is removed, once.
    """
    deadline, pause, mended = time.monotonic() + PATIENCE, 0.2, False
    while True:
        try:
            return action()
        except DvcException as error:
            causes = list(_causes(error))
            if not mended and any(isinstance(cause, _BROKEN_LOCKS) for cause in causes):
                (root / ".dvc/tmp" / RWLOCK_FILE).unlink(missing_ok=True)
                mended = True
                continue
            if not any(isinstance(cause, LockError) for cause in causes):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    "another run is running in this checkout; wait for it or stop it first "
                    f"({one_line(error).partition(' If there are no')[0]})"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 3.0)


@contextmanager
def undisturbed(root: Path) -> Iterator[None]:
    """Keep other runs out of DVC's cache by holding the lock of the checkout.

    Raises:
        UserError: If a run is at work here.
    """
    with open_repo(root) as repo:
        busy = root / ".dvc/tmp" / RWLOCK_FILE
        held = ExitStack()
        patiently(root, lambda: held.enter_context(repo.lock))
        with held:
            named = re.findall(r'"pid": *(\d+)', busy.read_text()) if busy.is_file() else ()
            if any(process_start(int(pid)) for pid in named):  # those of the dead are still named
                raise UserError("another run is running in this checkout; wait for it or stop it")
            yield


def caches(root: Path) -> tuple[Path, Path]:
    """Return DVC's folders of cached objects and of remembered runs."""
    with open_repo(root) as repo:
        return Path(repo.cache.local.path), Path(repo.stage_cache.cache_dir)


def _address(root: Path, stage: str) -> str:
    """Return a stage's address that does not depend on the current directory."""
    return f"{root / PROJECT_FILE}:{stage}"


def _outputs(repo: Repo, stage: str) -> list[Any]:
    return list(repo.stage.load_one(str(Path(repo.root_dir) / PROJECT_FILE), stage).outs)


def _md5(path: Path) -> str:
    """Return DVC's hash of a file or directory, read from the disk without DVC's memory of it."""
    store = HashFileDB(localfs, str(path.parent))  # its state is a no-op: nothing is remembered
    _, _, found = build(store, str(path), localfs, "md5", dry_run=True)
    return str(found.hash_info.value)


def damaged_outputs(repo: Repo, stage: str) -> list[Path]:
    """Return the outputs of a stage that are absent or differ from what `dvc.lock` says."""
    return [
        path
        for out in _outputs(repo, stage)
        if not (path := Path(out.fs_path)).exists() or out.hash_info.value != _md5(path)
    ]


def up_to_date(root: Path, stage: str) -> bool:
    """Say whether a stage has nothing to do.

    Raises:
        UserError: If another run keeps the checkout busy, or `dvc.yaml` cannot be read.
    """

    def ask() -> bool:
        with open_repo(root) as repo:
            if repo.status(targets=[_address(root, stage)]):
                return False
            damaged = damaged_outputs(repo, stage)
            _invalidate(damaged)
            return not damaged

    try:
        return patiently(root, ask)
    except REFUSALS as error:
        raise UserError(f"DVC: {one_line(error)}") from error


def _invalidate(paths: list[Path]) -> None:
    """Make DVC look again at files whose bytes changed behind their time stamps."""
    for path in paths:
        for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def _forget_cached(root: Path, stage: str) -> None:
    """Remove from DVC's cache the damaged objects behind a stage's outputs."""
    with open_repo(root) as repo:
        for out in _outputs(repo, stage):
            oids = {out.hash_info.value} if out.hash_info else set()
            tree = out.get_obj() if out.hash_info and out.hash_info.isdir else None
            oids |= {item[2].value for item in tree or ()}
            for oid in filter(None, oids):
                path = Path(out.cache.oid_to_path(oid))
                if path.exists() and md5_of(path) != oid.removesuffix(".dir"):
                    path.chmod(0o644)
                    path.unlink()


def md5_of(path: Path) -> str:
    """Return the hex md5 of a file's bytes, by which DVC's cache names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its cause (or what was being handled), the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def one_line(error: BaseException) -> str:
    """Return an exception and its causes in one line."""
    texts = [" ".join(str(cause).split()) for cause in _causes(error)]
    return ": ".join(dict.fromkeys(filter(None, texts)))


def ensure(root: Path, stage: str, *, force: bool = False) -> StageResult:
    """Bring one stage up to date; the stages before it must be.

    Args:
        root: The checkout.
        stage: A name in `dvc.yaml`.
        force: Run even if nothing changed.

    Raises:
        UserError: If the stage or DVC reports a user's mistake, or the checkout stays busy.
        Failed: If the stage's command crashed.
    """
    start = time.monotonic()
    if not force and up_to_date(root, stage):
        return StageResult(stage, StageOutcome.CACHED, time.monotonic() - start)
    outcome = _run(root, stage, force)
    with open_repo(root) as repo:
        damaged = damaged_outputs(repo, stage)
    if damaged:  # restored from a cache that was damaged: make it anew
        _forget_cached(root, stage)
        outcome = _run(root, stage, force=True)
    return StageResult(stage, outcome, time.monotonic() - start)


def restore(root: Path, path: str, *, cache_of: Path) -> str | None:
    """Bring an output that `dvc.lock` names from another checkout's cache, and hash it again.

    Args:
        root: A checkout with a `dvc.lock`.
        path: The output, relative to the root.
        cache_of: The checkout whose cache is read.

    Returns:
        None, or why it could not be done.
    """
    cache = str(caches(cache_of)[0].parents[1])  # DVC adds files/md5 itself
    config: dict[str, Any] = {"cache": {"dir": cache}}
    config["core"] = {"no_scm": not (root / ".git").exists()}
    try:
        with Repo(str(root), config=config) as repo:
            repo.checkout([str(root / path)], force=True)
            outs = [out for out in repo.index.outs if Path(out.fs_path) == root / path]
            if len(outs) != 1 or not outs[0].hash_info or not (root / path).exists():
                return f"dvc.lock does not name {path}"
            sound = outs[0].hash_info.value == _md5(root / path)
            return None if sound else f"{path}: the cache holds other bytes"
    except REFUSALS as error:
        return f"not in DVC's cache ({type(error).__name__})"


def _run(root: Path, stage: str, force: bool) -> StageOutcome:
    """Run DVC on one stage in a process group that cannot outlive this process."""
    with tempfile.TemporaryDirectory(prefix="prong-") as folder:
        record = Path(folder) / "record.json"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        env = {**os.environ, "PATH": path, PYTHON: sys.executable}
        env |= {RECORD: str(record), AFRESH: "1" if force else ""}
        command = [sys.executable, "-m", "pipelines.systems.dvc.reproduce", str(root), stage]
        code = run_group(command + ["force"] * force, cwd=root, env=env)
        said: dict[str, Any] = read_json(record) if record.exists() else {}
    if said.get("error"):  # what is unavailable is tried again
        raise (Unavailable if said.get("unavailable") else UserError)(str(said["error"]))
    if code == UserError.exit_code:
        raise UserError(f"stage {stage} stopped, and could not write down why; see above")
    if code != 0:
        raise Failed(f"stage {stage} failed (exit code {code}); its output above says why")
    return StageOutcome.RAN if said.get("ran") else StageOutcome.RESTORED


def _reproduce(root: Path, stage: str, force: bool) -> None:
    def act() -> None:
        with open_repo(root) as repo:
            remote = repo.config["remote"].get(REMOTE, {}).get("url")
            target = [_address(root, stage)]
            try:
                repo.reproduce(target, single_item=True, force=force, pull=bool(remote))
            except REFUSALS:
                raise
            except Exception as error:  # a store's client raises almost anything
                if not remote or (isinstance(error, OSError) and disk_error(error)):
                    raise
                raise Unavailable(f"store.remote = {remote!r}: {one_line(error)}") from error

    patiently(root, act)


def _main(root: Path, stage: str, force: bool) -> int:
    """Run DVC here, as the leader of a process group; report what DVC itself says."""
    exit_on_sigterm()
    end_with_keeper()
    os.chdir(root)
    record = Path(os.environ[RECORD])
    try:
        _reproduce(root, stage, force)
    except (*REFUSALS, UserError, OSError) as error:
        causes = list(_causes(error))
        spoken = any(isinstance(cause, StageCmdFailedError) for cause in causes)
        if spoken and record.exists():  # the stage has spoken for itself
            return 1
        disk = [disk_error(cause) for cause in causes if isinstance(cause, OSError)]
        if isinstance(error, OSError) and not any(disk):
            raise
        said = next((str(found) for found in disk if found), f"stage {stage}: {one_line(error)}")
        try:
            silent = isinstance(error, Unavailable)
            write_json(record, {"ran": record.exists(), "error": said, "unavailable": silent})
        except OSError:  # the same full disk
            print(shown_lines(f"error: {said}"), file=sys.stderr)
        return UserError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2], "force" in sys.argv[3:]))
