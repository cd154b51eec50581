"""`data.source: images`: a folder or a tar with one folder for each class.

The class of an image is the name of its folder. Folders above that do not matter, with one
exception: if there is a folder named test next to one named train, val or validation, its images
are the official test set. The images of train, val and validation are one pool, which is split by
content. Without these, a folder named test is an ordinary folder.

A tar is read from start to end, and nothing is extracted to disk.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, sha256_json
from pipelines.data.collection import Collection, from_files
from pipelines.data.images import EXTENSIONS, MAX_BYTES

POOL = frozenset({"train", "training", "val", "valid", "validation"})
TEST = frozenset({"test"})
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_MEMBER_BYTES = 2**31
"""Largest allowed member of a tar in bytes; skipped members must be decompressed too."""


@dataclass(frozen=True)
class FolderLayout:
    """Which files are images, and their classes.

    Attributes:
        images: Positions in the list of names.
        classes: The class of each image.
        official: Whether each image is in the official test set; None if there is none.
        ignored: Names of files that are hidden or not images.
    """

    images: tuple[int, ...]
    classes: tuple[str, ...]
    official: tuple[bool, ...] | None
    ignored: tuple[str, ...]


def layout(names: Sequence[str], where: str) -> FolderLayout:
    """Read classes and the official test set from the names of files.

    Args:
        names: Relative to the folder's or tar's root, with `/`.
        where: The folder or tar, for messages.

    Raises:
        UserError: If there are no images, images without a class folder, or fewer than two
            classes.
    """
    paths = [PurePosixPath(name) for name in names]
    images = tuple(at for at, path in enumerate(paths) if is_image(path))
    chosen = set(images)
    ignored = tuple(name for at, name in enumerate(names) if at not in chosen)
    if not images:
        archives = [name for name in ignored if name.lower().endswith(_TAR)]
        hint = f"; to read {archives[0]}, set data.path to that file" if archives else ""
        raise UserError(
            f"data.path = {where!r}: no images; needed: one folder per class with files of "
            f"{', '.join(sorted(EXTENSIONS))}{hint}"
        )
    _check_folders([paths[at] for at in images], where)
    classes = tuple(paths[at].parent.name for at in images)
    for at in images:
        if UNPRINTABLE.search(names[at]):
            raise UserError(f"data.path = {where!r}: not a printable UTF-8 name: {names[at]!a}")
    if len(set(classes)) < 2:
        raise UserError(
            f"data.path = {where!r}: one class only ({classes[0]}); at least two folders with "
            "images are needed, one per class"
        )
    official = tuple(_in_test(paths[at]) for at in images)
    mixed = any(official) and not all(official)
    return FolderLayout(images, classes, official if mixed else None, ignored)


def read(path: Path, *, where: str, sha256: str, size: int, channels: int) -> Collection:
    """Read a folder or tar of images.

    Args:
        path: The folder or tar.
        where: The user's name for it, for messages.
        sha256: The hash that a tar must have; empty: any.
        size: Edge of the images, pixels.
        channels: 1 or 3.

    Raises:
        UserError: If there is no such folder or tar, or it has another layout or hash, or contains
            an unreadable image.
    """
    if path.is_dir():
        if sha256:
            raise UserError(
                f"data.sha256 = {sha256!r}: a folder has no such hash; it must be '' for "
                f"data.path = {where!r}"
            )
        return _read_folder(path, where, size, channels)
    if not path.is_file():
        raise UserError(f"data.path = {where!r}: no such folder or tar: {path}")
    found = sha256_file(path)
    if sha256 and found != sha256:
        raise UserError(f"{path}: sha256 is {found}, expected {sha256} (data.sha256)")
    return _read_tar(path, where, found, size, channels)


def is_image(path: PurePosixPath) -> bool:
    """Return whether a name is that of an image and not hidden."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in EXTENSIONS


def _in_test(path: PurePosixPath) -> bool:
    """Return whether the nearest split folder above the class folder is named test."""
    for part in reversed(path.parts[:-2]):
        if part.lower() in TEST | POOL:
            return part.lower() in TEST
    return False


def _check_folders(images: Sequence[PurePosixPath], where: str) -> None:
    """Refuse images next to class folders: their folder would not be a class."""
    first: dict[PurePosixPath, PurePosixPath] = {}
    for path in images:
        first.setdefault(path.parent, path)
    above = {folder for parent in first for folder in parent.parents}
    splits = all(folder.name.lower() in TEST | POOL for folder in first)
    for folder, path in first.items():
        if folder == PurePosixPath() or folder in above or splits:
            raise UserError(
                f"data.path = {where!r}: {path} is not in a class folder; needed: one folder per "
                "class, CLASS/FILE or SPLIT/CLASS/FILE"
            )


def _collect(
    found: FolderLayout,
    names: Sequence[str],
    files: Iterator[tuple[str, bytes]],
    size: int,
    channels: int,
    sources: dict[str, str],
) -> Collection:
    """Decode the images; reading `files` may fill `sources`."""
    images, hashes = from_files(files, len(found.images), size, channels)
    classes = tuple(sorted(set(found.classes)))
    numbers = {name: number for number, name in enumerate(classes)}
    return Collection(
        classes=classes,
        images=images,
        labels=np.array([numbers[name] for name in found.classes], dtype=np.int64),
        hashes=hashes,
        official=None if found.official is None else np.array(found.official),
        names=[names[at] for at in found.images],
        ignored=found.ignored,
        files=sources,
    )


def walk(folder: Path) -> Iterator[str]:
    """Yield the regular files below a folder, through links, in a fixed order."""
    seen = set()
    for top, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(top)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            path = Path(top, name)
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")


def _read_folder(folder: Path, where: str, size: int, channels: int) -> Collection:
    names = list(walk(folder))
    found = layout(names, where)
    files: dict[str, str] = {}

    def contents() -> Iterator[tuple[str, bytes]]:
        digests = []
        for at, label in zip(found.images, found.classes, strict=True):
            path = folder / names[at]
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
                content = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
            digests.append([label, hashlib.sha256(content).hexdigest()])
            yield str(path), content
        files[f"{folder.name}: {len(digests)} images"] = sha256_json(sorted(digests))

    return _collect(found, names, contents(), size, channels, files)


@contextmanager
def open_tar(path: Path, where: str) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not, for reading; `where` is what a message calls it.

    Raises:
        UserError: If it is not a tar, or is found corrupt or truncated while it is read.
    """
    try:
        with tarfile.open(path) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise UserError(
            f"{where}: not a tar (plain, gz, bz2 or xz), or a corrupt or truncated one: {reason}"
        ) from None
    except OSError as error:
        if error.errno is not None:  # a disk error; errors of gzip and bz2 have no number
            raise
        raise UserError(f"{where}: corrupt or truncated: {error}") from None


def _read_tar(path: Path, where: str, sha256: str, size: int, channels: int) -> Collection:
    with open_tar(path, f"data.path = {where!r}") as tar:
        names = _members(tar, path)
    found = layout(names, where)
    chosen = set(found.images)

    def contents() -> Iterator[tuple[str, bytes]]:
        with open_tar(path, f"data.path = {where!r}") as tar:
            files = (member for member in tar if not member.isdir())
            for at, member in enumerate(files):
                if at in chosen:
                    stream = tar.extractfile(member)
                    content = stream.read() if stream else b""
                    if len(content) != member.size:
                        raise UserError(f"{path}: {member.name}: truncated")
                    yield f"{path}: {member.name}", content

    sources = {path.name: sha256}
    return _collect(found, names, contents(), size, channels, sources)


def _members(tar: tarfile.TarFile, path: Path) -> list[str]:
    """Read the whole archive and return the names of all members except folders."""
    names = []
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if member.name.startswith("/") or ".." in parts:
            raise UserError(f"{path}: {member.name}: the name leads out of the archive")
        if member.isdir():
            continue
        image = member.isreg() and is_image(PurePosixPath(member.name))
        if member.size > (MAX_BYTES if image else _MEMBER_BYTES):
            raise UserError(f"{path}: {member.name}: {member.size} bytes; too large")
        # A member that is not a regular file must not count as an image: give it a hidden name.
        names.append(member.name if member.isreg() else f".{member.name}")
    _check_end(tar, path)
    return names


def _check_end(tar: tarfile.TarFile, path: Path) -> None:
    """Refuse a truncated archive: tarfile takes a cut between two members for the end."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{path}: a truncated or corrupt tar: its end is missing")
    while stream.read(1 << 20):  # up to the checksum of the compressed stream
        pass
