"""`data.source: images`: a folder, an archive or a CSV of labelled images.

A folder, tar or zip has one folder for each class (`pipelines.data.class_folders`). A CSV lists
paths and labels (`pipelines.data.label_file`); it is given by its name, or lies in the folder with
the images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, sha256_json
from pipelines.core.text import shown
from pipelines.data import archives
from pipelines.data.class_folders import (
    FolderLayout,
    check_classes,
    layout,
    official_splits,
)
from pipelines.data.collection import Collection, Encoded, encoded, from_files
from pipelines.data.label_file import TABLES, Labels, find, parse
from pipelines.data.schema import listed


@dataclass
class Listing:
    """What is below a folder, relative to it, in a fixed order.

    Attributes:
        names: Regular files.
        folders: Folders.
        broken: Links that lead nowhere, in a circle, or to what is no file.
        again: Links to folders that are read already.
    """

    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shape:
    """What every image becomes.

    Attributes:
        size: Edge of the square, pixels.
        channels: As for `pipelines.data.images.pixels`.
        bits: 8 or 16, of each value.
    """

    size: int
    channels: int
    bits: int


def read(
    path: Path, *, where: str, sha256: str, size: int, channels: int, bits: int = 8
) -> Collection:
    """Read a folder, tar, zip or CSV of images.

    Args:
        path: The folder or file.
        where: The user's name for it, for messages.
        sha256: The hash that a file must have; empty: any.
        size: Edge of the images, pixels.
        channels: As for `pipelines.data.images.pixels`.
        bits: 8 or 16, of each value.

    Raises:
        UserError: If there is no such folder or file, or it has another layout or hash, or contains
            an unreadable image.
    """
    shape = Shape(size, channels, bits)
    if path.is_dir():
        if sha256:
            raise UserError(
                f"data.sha256 = {sha256!r}: a folder has no such hash; it must be '' for "
                f"data.path = {where!r}"
            )
        found = listing(path)
        table = find(path, found.names, where)
        if table is not None:
            return _read_labels(table, where, shape, found)
        return _read_folder(path, where, shape, found)
    if not path.is_file():
        raise UserError(f"data.path = {where!r}: no such folder, tar, zip or CSV: {path}")
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if sha256 and digest != sha256:
        raise UserError(f"{path}: sha256 is {digest}, expected {sha256} (data.sha256)")
    if path.suffix.lower() in TABLES:
        return _read_labels(path, where, shape, None)
    return _read_archive(path, where, digest, shape)


def listing(folder: Path) -> Listing:
    """Return what is below a folder, through links, in a fixed order.

    Raises:
        UserError: If a folder cannot be read.
    """
    found = Listing()
    seen = set()
    for top, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(top)
        inside = Path(top).relative_to(folder).as_posix()
        if real in seen:
            folders.clear()
            found.again.append(inside)
            continue
        seen.add(real)
        found.folders.append(inside)
        folders.sort()
        for name in sorted(files):
            path = Path(top, name)
            known = found.names if path.is_file() else found.broken
            known.append(path.relative_to(folder).as_posix())
    return found


def walk(folder: Path) -> Iterator[str]:
    """Yield the regular files below a folder, through links, in a fixed order."""
    yield from listing(folder).names


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")


def _notes(found: Listing) -> list[str]:
    """Return notes on what is left out of a folder besides files of other kinds."""
    broken = [shown(name) for name in found.broken]
    again = [shown(name) for name in found.again]
    notes = []
    if broken:
        said = listed(broken, "broken link or device", "broken links or devices")
        notes.append(f"{said} left out")
    if again:
        notes.append(f"{listed(again, 'link', 'links')} to folders that are read anyway left out")
    return notes


def _collect(
    found: FolderLayout,
    names: Sequence[str],
    files: Iterator[tuple[str, Encoded]],
    shape: Shape,
    sources: dict[str, str],
) -> Collection:
    """Decode the images; reading `files` may fill `sources`."""
    images, hashes = from_files(files, len(found.images), shape.size, shape.channels, shape.bits)
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
        validation=None if found.validation is None else np.array(found.validation),
        notes=found.notes,
    )


def _contents(
    root: Path, names: Sequence[str], labels: Sequence[str], files: dict[str, str]
) -> Iterator[tuple[str, Encoded]]:
    """Yield the images of a folder; at the end, `files` gets one hash over labels and bytes."""
    digests = []
    for name, label in zip(names, labels, strict=True):
        content = encoded(root / name)
        if isinstance(content, bytes):
            digests.append([label, hashlib.sha256(content).hexdigest()])
        yield str(root / name), content
    files[f"{root.name}: {len(digests)} images"] = sha256_json(sorted(digests))


def _read_folder(folder: Path, where: str, shape: Shape, around: Listing) -> Collection:
    names = around.names
    found = layout(names, where, around.folders, _notes(around))
    files: dict[str, str] = {}
    chosen = [names[at] for at in found.images]
    return _collect(found, names, _contents(folder, chosen, found.classes, files), shape, files)


def _read_labels(path: Path, where: str, shape: Shape, around: Listing | None) -> Collection:
    """Read the images of a CSV; `around` is what lies beside it, if that is part of the data."""
    labels = parse(path, where)
    check_classes(labels.classes, where)
    official, validation, missing = official_splits(
        labels.splits, labels.classes, f"data.path = {where!r}"
    )
    found = FolderLayout(
        images=tuple(range(len(labels.paths))),
        classes=labels.classes,
        official=official,
        validation=validation,
        ignored=(),
        notes=(*labels.notes, *missing, *_beside(path, labels, around)),
    )
    files: dict[str, str] = {path.name: sha256_file(path)}
    contents = _contents(path.parent, labels.paths, labels.classes, files)
    return _collect(found, labels.paths, contents, shape, files)


def _beside(path: Path, labels: Labels, around: Listing | None) -> list[str]:
    """Return notes on the files of a folder that its CSV does not list."""
    if around is None:
        return []
    known = set(labels.paths)
    others = [shown(name) for name in around.names if name not in known and name != path.name]
    notes = [f"{path.name} gives the labels; names of folders do not count", *_notes(around)]
    if others:
        notes.append(f"{listed(others, 'file', 'files')} not in {path.name}: left out")
    return notes


def _read_archive(path: Path, where: str, sha256: str, shape: Shape) -> Collection:
    said = f"data.path = {where!r}"
    names, folders = archives.names(path, said)
    found = layout(names, where, folders)
    files = archives.contents(path, said, set(found.images))
    return _collect(found, names, files, shape, {path.name: sha256})
