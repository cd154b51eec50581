"""ImageNet for Fig. 4c-d: class folders or tar shards, prepared like the data of a project.

The copies lie in `data.mirror`: `imagenet` with a folder for each class (in folders `train` and
`val`, if there are official splits) or with tar files of such folders; a tar file without folders
is one class, named after the file. `imagenet-sample/images.tar` is a sample with one image of each
class: its images get one of three coarse labels.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.files import atomic_directory, write_json
from pipelines.data import archives
from pipelines.data.class_folders import is_image
from pipelines.data.collection import encoded
from pipelines.data.download import folder_of
from pipelines.data.image_folder import walk
from pipelines.data.images import decode
from pipelines.data.prepare import prepare as prepare_splits
from pipelines.data.prepared import load_split
from pipelines.paper.paper_images import ImagePlace
from pipelines.training import batches
from pipelines.training.shared_arrays import shared

PREPARED = "prepared"
"""The folder of the splits, beside the card."""
SAMPLE, WHOLE = "imagenet-sample", "imagenet"
_DOGS = ("n02085620", "n02113978")  # Chihuahua to Mexican hairless
_LAST_ANIMAL = "n02655020"  # puffer; the classes are in the order of WordNet
_TIMED = 400
"""Images that the input pipeline is measured with."""
_SECONDS = 2.0


def coarse(wnid: str) -> str:
    """Return the coarse label of a class of ImageNet.

    Args:
        wnid: Its number in WordNet, such as n01440764 (tench).
    """
    if _DOGS[0] <= wnid <= _DOGS[1]:
        return "dog"
    return "other animal" if wnid <= _LAST_ANIMAL else "no animal"


def prepare(source: str, size: int, place: ImagePlace, folder: Path) -> None:
    """Write splits and a card, with what the input pipeline does in a second on one core.

    Args:
        source: `SAMPLE` or `WHOLE`.
        size: Edge of the images, pixels.
        place: Where they come from; both are looked for in its mirror, a directory.
        folder: Is made, or filled again.

    Raises:
        UserError: If the images are not there, are corrupt, or do not fit onto the disk.
    """
    given = _found(source, place)
    raw = folder / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    shards = sorted(path for path in map(given.joinpath, walk(given)) if path.suffix == ".tar")
    if shards:
        with atomic_directory(raw) as out:
            for shard in shards:
                _unpack(shard, out / shard.parent.relative_to(given), source == SAMPLE)
        given = raw
    config = DataConfig(
        source="images", path=str(given), mirror="", sha256="", size=size, channels=3, bits=8,
        limit=0, seed=0, validation=0.2, gate=0.05, test=0.05,
    )  # fmt: skip
    out = folder / PREPARED
    found = prepare_splits(config, root=folder, downloads=place.downloads, out=out)
    card = {
        "source": source,
        "size": size,
        "train": found.total("train"),
        "test": found.total("validation"),
        "files": dict(found.files),
        "content": found.data_hash,
        "classes": {name: found.counts["train"][name] for name in found.classes[:10]},
        "class_count": len(found.classes),
        "official": found.official_validation,
        "decoding": decoding(given, size),
        "batches": batching(out),
    }
    write_json(folder / "card.json", card)
    if shards:
        shutil.rmtree(raw)


def _found(source: str, place: ImagePlace) -> Path:
    mirror = place.mirror
    parent = folder_of(mirror, place.root)
    if parent is None or not (parent / source).is_dir():
        what = "images.tar" if source == SAMPLE else "class folders, or tar files of such"
        raise UserError(
            f"data.mirror = {mirror!r}: ImageNet has no public address; it must be a directory "
            f"with a folder {source} that holds {what}"
        )
    return parent / source


def _unpack(shard: Path, out: Path, sample: bool) -> None:
    """Unpack the images of a tar file into a folder for each class."""
    for name, content in archives.stream(shard, str(shard)):
        path = PurePosixPath(name)
        if not is_image(path):
            continue
        if not isinstance(content, bytes):
            raise content
        parent = path.parent.name or shard.stem
        above = path.parent.parent if path.parent.name else PurePosixPath()
        target = out / above / (coarse(parent) if sample else parent) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def decoding(folder: Path, size: int) -> float:
    """Return the images that one core decodes and fits in a second.

    Args:
        folder: Images in class folders.
        size: Edge of the result, pixels.
    """
    names = (name for name in walk(folder) if is_image(PurePosixPath(name)))
    contents = [encoded(folder / name) for name in itertools.islice(names, _TIMED)]
    start, done = time.process_time(), 0
    for content in contents:
        if isinstance(content, bytes):
            decode(content, size=size, channels=3, name="")
            done += 1
        if time.process_time() - start > _SECONDS:
            break
    return done / max(time.process_time() - start, 1e-9)


def batching(prepared: Path) -> float:
    """Return the images of varied batches that one core makes in a second.

    Args:
        prepared: Output of `prepare_splits`.
    """
    train = load_split(prepared, "train")
    inputs, targets = shared(train.inputs), torch.from_numpy(train.targets)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start, done = time.process_time(), 0
        for size in _sizes(inputs, targets):
            done += size
            if time.process_time() - start > _SECONDS:
                break
        return done / max(time.process_time() - start, 1e-9)
    finally:
        torch.set_num_threads(threads)


def _sizes(inputs: torch.Tensor, targets: torch.Tensor) -> Iterator[int]:
    """Yield the sizes of batches as a training gets them, one epoch after the other."""
    options: Mapping[str, Any] = {"batch": 64, "augment": 4, "flip": True, "seed": 0}
    for number in itertools.count():
        for images, _, _ in batches.epoch(inputs, targets, number=number, **options):
            yield len(images)
