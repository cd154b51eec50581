"""Images added to a source, in numbered versions that never change.

`data/added/SOURCE/0001/CLASS/HASH.png` and so on: version n of the data is the source with the
folders 1 to n. A file's name is its content hash, which is checked whenever it is
read. A version is created by one rename, so it is complete or absent.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path, sha256_json, write_json
from pipelines.data.class_folders import SPLIT_OF, UNPRINTABLE, is_image
from pipelines.data.collection import Collection, Encoded, encoded, from_files
from pipelines.data.image_folder import walk
from pipelines.data.images import EXTENSIONS
from pipelines.data.large_arrays import joined

_LONGEST = 100
_VERSION = re.compile(r"\d{4,}")


@dataclass(frozen=True)
class Batch:
    """The images that one version adds.

    Attributes:
        version: 1, 2, …
        folder: The folder with these images.
        counts: Class → images.
    """

    version: int
    folder: Path
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Intake:
    """The result of adding a folder of labelled images.

    Attributes:
        version: The version of the data afterwards.
        added: Class → images that are new.
        repeated: Names of images left out: their pixels already exist in that class.
        classes: Classes that are new.
        ignored: Names of files that are hidden or not images.
    """

    version: int
    added: Mapping[str, int]
    repeated: tuple[str, ...]
    classes: tuple[str, ...]
    ignored: tuple[str, ...]


def place(root: Path, config: DataConfig) -> Path:
    """Return the folder of the images added to a source.

    Args:
        root: The checkout.
        config: Its source; `images` has one folder for each name of `data.path`.
    """
    name: str = config.source
    if name == "images":
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(config.path).name.split(".")[0]).strip("-")
        name = f"images-{stem}" if stem else "images"
    else:
        name = re.sub(r"[^A-Za-z0-9]+", "-", name)  # of a function: module-function
    return root / "data/added" / name


@dataclass(frozen=True)
class Record:
    """The content of `data/added.json`, which is in git although the images are not.

    Attributes:
        kept: DVC's hash of `data/added`, under which cache and remote store it.
        versions: Name of a source's folder → number of versions in it.
    """

    kept: str
    versions: Mapping[str, int]


def read_record(added: Path) -> Record:
    """Return the record of `data/added`; an empty record if there is none.

    Raises:
        UserError: If the record cannot be read.
    """
    path = added.with_suffix(".json")
    try:
        return TypeAdapter(Record).validate_json(path.read_bytes())
    except FileNotFoundError:
        return Record("", {})
    except (OSError, ValidationError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a record of added images: {said}") from None


def write_record(added: Path, kept: str) -> None:
    """Write a record of the present content of `data/added`.

    Args:
        added: The folder that holds the folders of all sources.
        kept: What `pipelines.systems.dvc.cache.keep` returned for it.
    """
    places = [place for place in sorted(added.iterdir()) if place.is_dir()]
    counts = {place.name: len(batches(place)) for place in places if place.name[0] != "."}
    write_json(added.with_suffix(".json"), {"kept": kept, "versions": counts})


def batches(folder: Path) -> tuple[Batch, ...]:
    """Return the versions in a source's folder, the oldest first.

    Raises:
        UserError: If one is missing, because each version includes the earlier ones.
    """
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    versions = sorted(int(name) for name in names if _VERSION.fullmatch(name))
    if versions != list(range(1, len(versions) + 1)):
        raise UserError(f"{folder}: found versions {versions}; every version from 1 on must exist")
    found = []
    for version in versions:
        path = folder / _named(version)
        counts = Counter(at.parent.name for at in _images(path))
        found.append(Batch(version, path, dict(sorted(counts.items()))))
    return tuple(found)


def _named(version: int) -> str:
    return f"{version:04d}"


def _images(folder: Path) -> list[Path]:
    """Return the images of a version, in a fixed order."""
    return [folder / name for name in walk(folder) if is_image(PurePosixPath(name))]


def join(source: Collection, folder: Path) -> Collection:
    """Return a source's images followed by those added to it.

    New classes come after the source's own, so that no label changes.

    Args:
        source: The images of `data.source`.
        folder: Folder of the added images; need not exist.

    Raises:
        UserError: If a version is missing, or an image is damaged.
    """
    found = batches(folder)
    if found and not source.classes:
        raise UserError(f"{folder}: added images have classes, and the data have none")
    recorded = read_record(folder.parent).versions.get(folder.name, 0)
    if len(found) < recorded:
        raise UserError(
            f"{folder}: {len(found)} of the {recorded} versions that data/added.json records are "
            "here; `prong run` restores the others from DVC's cache or store.remote"
        )
    for batch in found:
        paths = _images(batch.folder)
        if not paths:
            raise UserError(f"{batch.folder}: a version without images; it must add some")
        channels, size = source.images.shape[1:3]
        files = ((str(path), encoded(path)) for path in paths)
        bits = 8 * source.images.dtype.itemsize
        images, hashes = from_files(files, len(paths), size, channels, bits)
        for path, content in zip(paths, hashes, strict=True):
            if content != path.stem:
                raise UserError(
                    f"{path}: the pixels have changed (expected hash {content}); restore the file"
                )
        new = sorted(set(batch.counts) - set(source.classes))
        classes = (*source.classes, *new)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[path.parent.name] for path in paths], dtype=np.int64)
        official = source.official
        if official is not None:
            official = np.concatenate([official, np.zeros(len(paths), dtype=np.bool_)])
        validation = source.validation
        if validation is not None:
            validation = np.concatenate([validation, np.zeros(len(paths), dtype=np.bool_)])
        kept = sorted([path.parent.name, path.stem] for path in paths)
        source = replace(
            source,
            classes=classes,
            images=joined(source.images, images),
            labels=np.concatenate([source.labels, labels]),
            hashes=(*source.hashes, *hashes),
            official=official,
            validation=validation,
            names=[*source.names, *(f"added {path.parent.name}/{path.name}" for path in paths)],
            files={**source.files, f"added {_named(batch.version)}": sha256_json(kept)},
        )
    return source


def take_in(given: Path, known: Collection, folder: Path, *, new_class: bool) -> Intake:
    """Add labelled images as a new version: all of them, or none after any failure.

    There must be only one call for a folder at a time.

    Args:
        given: One folder per class.
        known: All existing images, including those of earlier versions.
        folder: Folder of the added images of the source.
        new_class: Whether new classes are allowed.

    Raises:
        UserError: If the folder has another layout, an image is unreadable, a class is unknown, or
            equal pixels have another label in the folder or in the data.
    """
    version = len(batches(folder))
    paths, ignored = _given(given)
    classes = tuple(sorted({path.parent.name for path in paths} - set(known.classes)))
    if classes and not new_class:
        raise UserError(
            f"{given / classes[0]}: {classes[0]!r} is not a class of the data; allowed: "
            f"{', '.join(known.classes[:20])}, or --new-class"
        )
    if not known.classes:
        raise UserError("prong data add: the data have no classes, so no labelled image is one")
    channels, bits = known.images.shape[1], 8 * known.images.dtype.itemsize
    contents: dict[Path, str] = {}

    def read() -> Iterator[tuple[str, Encoded]]:
        for path in paths:
            content = encoded(path)
            if isinstance(content, bytes):
                contents[path] = hashlib.sha256(content).hexdigest()
            yield str(path), content

    # Size 1: only the content hashes are needed, and whether each image can be decoded.
    _, hashes = from_files(read(), len(paths), 1, channels, bits)
    fresh, repeated = _sift(given, paths, hashes, known)
    counts = dict(sorted(Counter(path.parent.name for path in fresh).items()))
    if fresh:
        version += 1
        _store(folder, version, fresh, contents)
    classes = tuple(name for name in classes if name in counts)
    return Intake(version, counts, tuple(repeated), classes, ignored)


def _given(given: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the images of a folder and the names of its other files."""
    if not given.is_dir():
        raise UserError(
            f"{given}: no such folder; needed: one that holds a folder of images per class"
        )
    names = list(walk(given))
    images = [name for name in names if is_image(PurePosixPath(name))]
    ignored = tuple(sorted(set(names) - set(images)))
    if not images:
        raise UserError(
            f"{given}: no images; needed: one folder per class with files of "
            f"{', '.join(sorted(EXTENSIONS))}"
        )
    for name in images:
        parts = PurePosixPath(name).parts
        if UNPRINTABLE.search(name) or len(parts[0]) > _LONGEST:
            raise UserError(f"{given}: the name is too long or not printable UTF-8: {name!a}")
        if len(parts) != 2:
            raise UserError(f"{given / name}: is not in a class folder; needed: CLASS/FILE")
    labels = {PurePosixPath(name).parts[0] for name in images}
    if all(label.lower() in SPLIT_OF for label in labels):
        raise UserError(
            f"{given}: {', '.join(sorted(labels))} are not classes but splits; needed: CLASS/FILE "
            "(an image's content decides its split)"
        )
    return [given / name for name in images], ignored


def _sift(
    given: Path, paths: Sequence[Path], hashes: Sequence[str], known: Collection
) -> tuple[dict[Path, str], list[str]]:
    """Return the images whose pixels are new, with their hashes, and the names of the others."""
    labels: dict[str, set[str]] = defaultdict(set)
    where: dict[str, str] = {}
    for content, label, name in zip(known.hashes, known.labels, known.names, strict=True):
        labels[content].add(known.classes[label])
        where.setdefault(content, name)
    fresh: dict[Path, str] = {}
    repeated = []
    for path, content in zip(paths, hashes, strict=True):
        label = path.parent.name
        if content not in labels:
            fresh[path] = content
            labels[content].add(label)
            where[content] = str(path)
        elif label in labels[content]:
            repeated.append(path.relative_to(given).as_posix())
        else:
            other = ", ".join(sorted(labels[content]))
            raise UserError(
                f"{path}: labelled {label}, but the same pixels are labelled {other} "
                f"({where[content]}); nothing was added"
            )
    return fresh, repeated


def _store(
    folder: Path, version: int, fresh: Mapping[Path, str], contents: Mapping[Path, str]
) -> None:
    with _incoming(folder) as incoming:
        for path, content in fresh.items():
            target = incoming / path.parent.name / f"{content}{path.suffix.lower()}"
            with atomic_path(target) as temporary:  # synced: a power cut leaves no empty file
                shutil.copyfile(path, temporary)
                if hashlib.sha256(temporary.read_bytes()).hexdigest() != contents[path]:
                    raise UserError(f"{path}: changed while it was read; nothing was added")
        folder.mkdir(parents=True, exist_ok=True)
        incoming.rename(folder / _named(version))


@contextmanager
def _incoming(folder: Path) -> Iterator[Path]:
    """Yield a new folder next to the source's folder; remove leftovers of killed processes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".incoming-{folder.name}-"
    for left in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left)
    incoming = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        incoming.chmod(0o755)
        yield incoming
    finally:
        if incoming.exists():
            shutil.rmtree(incoming)
