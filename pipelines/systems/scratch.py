"""Temporary folders in the state directory, each locked by the process that uses it.

A killed process leaves its folder behind. The kernel unlocks it, so the next process that needs a
folder of the same name removes it. A folder that is locked is in use and stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from pipelines.systems.locks import let_go, locked, take

_HELD = "lock"
"""File of a folder that its user keeps locked."""


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """Yield a new, empty folder `NAME-…/files` that is removed at the end.

    Folders of the same name that a killed process left behind are removed first.

    Args:
        folder: Where to make it, such as the state directory; made if absent.
        name: What it is for; letters, digits and hyphens.
    """
    guard = _guard(folder, name)
    with locked(guard):
        _remove_leftovers(folder, name)
        own = Path(mkdtemp(prefix=f"{name}-", dir=folder))
        held = (own / _HELD).open("a", encoding="utf-8")
        take(held)  # nobody else can see it before the guard is unlocked
    try:
        with held:
            files = own / "files"
            files.mkdir()
            yield files
    finally:
        shutil.rmtree(own, ignore_errors=True)


def sweep(folder: Path, name: str) -> list[Path]:
    """Remove the folders `NAME-…` that no process holds; return them.

    Args:
        folder: Where they lie.
        name: As given to `scratch`.
    """
    if not folder.is_dir():
        return []
    with locked(_guard(folder, name)):
        return _remove_leftovers(folder, name)


def _guard(folder: Path, name: str) -> Path:
    """Return the file that is locked while a folder is made or removed, never while one is used."""
    return folder / f"{name}.lock"


def _remove_leftovers(folder: Path, name: str) -> list[Path]:
    removed = []
    for path in sorted(folder.glob(f"{name}-*")):
        if path.is_dir() and not path.is_symlink() and _free(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _free(path: Path) -> bool:
    """Whether no process holds a folder; one without the file was made by an earlier version."""
    try:
        with (path / _HELD).open("r+", encoding="utf-8") as file:
            if not take(file):
                return False
            let_go(file)
            return True
    except FileNotFoundError:
        return True
