"""CIFAR-10: its binary archive, or the images as JPEG files where a mirror has those alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.core.errors import UserError
from pipelines.data import image_folder, sources
from pipelines.data.collection import Collection
from pipelines.data.download import fetch, folder_of

REENCODED = "re-encoded"
"""What the card says of images that are not the original pixels."""
_PARTS = ("train", "test")
_SUBFOLDER = sources.CIFAR10.source


def read(size: int, *, mirror: str, root: Path, downloads: Path) -> Collection:
    """Return CIFAR-10, 50,000 images and the official test set of 10,000.

    The binary archive is tried first. If it is not to be had, the mirror's `train.tar.gz` and
    `test.tar.gz` are read, with the images in a folder for each class; their pixels differ a little
    from the original ones, and a note says so.

    Args:
        size: Edge of the images, pixels.
        mirror: `data.mirror`.
        root: Relative mirrors begin here.
        downloads: Folder of verified downloads.

    Raises:
        UserError: If neither is there, or a file is corrupt.
        Unavailable: If no host answers and there is no mirror.
    """
    folder = folder_of(mirror, root)
    places = () if folder is None else (folder / _SUBFOLDER, folder)
    try:
        path = fetch(sources.CIFAR10, mirror=mirror, root=root, downloads=downloads)
    except UserError as error:
        if any((place / sources.CIFAR10.filename).is_file() for place in places):
            raise  # it is there, but not as it should be
        for place in places:
            archives = [place / f"{part}.tar.gz" for part in _PARTS]
            if all(archive.is_file() for archive in archives):
                return _joined(archives, size)
        if not mirror:
            raise
        raise _absent(error, mirror) from None
    return sources.cifar10(path, size, sha256=sources.CIFAR10.sha256)


def _absent(error: UserError, mirror: str) -> UserError:
    name = sources.CIFAR10.filename
    return UserError(
        f"{error}; CIFAR-10 is needed: put {name}, or train.tar.gz and test.tar.gz with a folder "
        f"of images for each class, into a folder {_SUBFOLDER} of data.mirror = {mirror!r}, a "
        "directory"
    )


def _joined(archives: list[Path], size: int) -> Collection:
    train, test = (
        image_folder.read(path, where=str(path), sha256="", size=size, channels=3)
        for path in archives
    )
    if train.classes != test.classes:
        raise UserError(
            f"{archives[1]}: its classes are {', '.join(test.classes)}, not those of "
            f"{archives[0]}: {', '.join(train.classes)}"
        )
    return replace(
        train,
        images=np.concatenate([train.images, test.images]),
        labels=np.concatenate([train.labels, test.labels]),
        hashes=train.hashes + test.hashes,
        official=np.arange(len(train.labels) + len(test.labels)) >= len(train.labels),
        names=[*train.names, *test.names],
        ignored=train.ignored + test.ignored,
        files={**train.files, **test.files},
        validation=None,
        notes=(REENCODED,),
    )
