"""The list of the files below a folder, kept in a file, so that it can be longer than the memory.

It is also what a later run compares its own list with, to go on with the work of this one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.text import shown

_END = b"\0"  # no name of a file holds it
_READ = 2**16  # bytes


@dataclass(frozen=True)
class FolderListing:
    """A list of files.

    Attributes:
        path: The file that holds it: names relative to the folder, each with a zero byte after it.
        count: How many there are.
        sha256: Over names, sizes and times of change.
    """

    path: Path
    count: int
    sha256: str

    def names(self, start: int) -> Iterator[str]:
        """Yield the names from that number on."""
        rest, at = b"", 0
        with self.path.open("rb") as file:
            while block := file.read(_READ):
                *whole, rest = (rest + block).split(_END)
                for name in whole:
                    if at >= start:
                        yield os.fsdecode(name)
                    at += 1


def list_files(folder: Path, into: Path) -> FolderListing:
    """List all that is below a folder and is no folder, in a fixed order.

    Links to files are followed, and so are links to folders outside, each once; links to folders
    inside lead to what is listed anyway. What is no regular file is listed too, and never opened.

    Args:
        folder: The folder.
        into: The file that holds the list; nothing in its folder is listed.

    Raises:
        UserError: If a folder cannot be read.
        OSError: If the list cannot be written.
    """
    digest, count = hashlib.sha256(), 0
    with into.open("wb") as file:
        for entry, name in _walk(folder, into.parent):
            encoded = os.fsencode(name)
            file.write(encoded + _END)
            size, changed = _facts(entry)
            digest.update(b"%b\0%d %d\0" % (encoded, size, changed))
            count += 1
    return FolderListing(into, count, digest.hexdigest())


def _walk(folder: Path, own: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield what is no folder, and its name; without recursion, since folders may go deep."""
    root = os.path.realpath(folder)
    seen = {_place(root), _place(str(own))}
    open_folders = [(iter(_entries(str(folder))), "")]
    while open_folders:
        entries, inside = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
            continue
        name = f"{inside}{entry.name}"
        if not _is_folder(entry):
            yield entry, name
            continue
        place = _place(entry.path)
        if place in seen or (entry.is_symlink() and _is_within(entry.path, root)):
            continue
        seen.add(place)
        open_folders.append((iter(_entries(entry.path)), f"{name}{os.sep}"))


def _place(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_within(folder: str, root: str) -> bool:
    return os.path.commonpath([os.path.realpath(folder), root]) == root


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _facts(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return size in bytes and time of change in nanoseconds; of a broken link neither."""
    try:
        found = entry.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
