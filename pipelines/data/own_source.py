"""`data.source: module:function`: a function of the user's own that yields examples.

The function is called with nothing, or, if it needs one argument, with the section `data` of the
parameters, in which `path` is absolute. It is called twice, and the first examples are compared:
the same data must give the same splits again. What it yields is fitted at once, so that only
fitted images are held.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import GeneratorType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.core import own_code
from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_json
from pipelines.core.progress import bar
from pipelines.data import arrays
from pipelines.data.class_folders import official_splits
from pipelines.data.collection import Collection
from pipelines.data.example import Example
from pipelines.data.images import content_hash, fit, values
from pipelines.data.large_arrays import GrowingImages
from pipelines.data.targets import Targets

KEY = "data.source"
_COMPARED = 4
"""Examples that two calls must yield alike."""
_MOST = 10_000_000
"""Most examples without `data.limit`; a function that yields more probably never ends."""
_LARGEST = 1024
"""Largest edge that `data.size: 0` gives."""
_SPLITS = ("train", "validation", "test")


def read(config: DataConfig, *, root: Path, task: str) -> Collection:
    """Read the examples that a function of the user's own yields.

    Args:
        config: `data` of `params.yaml`; with a limit, no more examples than that are asked for.
        root: The checkout.
        task: `task.name`, which says what kind of targets is needed.

    Raises:
        UserError: If the function cannot be found, raises, yields nothing, something else than
            examples, or others when it is called again; or if they do not fit onto the disk.
    """
    if config.sha256:
        raise UserError(
            f"data.sha256 = {config.sha256!r}: must be '' for {KEY} = {config.source}: what a "
            "function yields is no file"
        )
    function = _Function(config, root)
    taken = _Gathered(config, task, function.said)
    with closing(function.examples()) as stream, bar("Reading examples", None) as advance:
        start = list(itertools.islice(stream, _COMPARED))
        with closing(function.examples()) as again:
            function.compare(start, list(itertools.islice(again, _COMPARED)))
        for image, example in itertools.chain(start, stream):
            taken.add(image, example, function.place())
            advance(1)
            if taken.count == config.limit:
                break
            if taken.count >= _MOST:
                raise UserError(
                    f"{function.said}: {_MOST:,} examples and no end; set data.limit to as many "
                    "as are wanted"
                )
    return taken.collection()


class _Function:
    """The user's function, and where it stands."""

    def __init__(self, config: DataConfig, root: Path) -> None:
        self.said = f"{KEY} = {config.source!r}"
        self._config = replace(config, path=str(root / config.path))
        self._root = root
        self._call = own_code.load(config.source, root, KEY)
        self._iterator: Iterator[Any] = iter(())

    def place(self) -> str:
        """Return what a message begins with: where the function has yielded last, if known."""
        iterator = self._iterator
        frame = iterator.gi_frame if isinstance(iterator, GeneratorType) else None
        if frame is None:
            return f"{self.said}: "
        name = Path(frame.f_code.co_filename)
        inside = name.relative_to(self._root) if name.is_relative_to(self._root) else name
        return f"{self.said}: {inside}, line {frame.f_lineno}: "

    def examples(self) -> Generator[tuple[NDArray[Any], Example]]:
        """Call the function, and yield each example with its image [height, width, channels]."""
        try:
            found = self._call(self._config) if self._needs_one() else self._call()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.said}: {own_code.where(error, self._root)}") from None
        if not isinstance(found, Iterable):
            raise UserError(f"{self.said}: returned {type(found).__name__}; it must yield examples")
        iterator = iter(found)
        number = 0
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{self.said}: example {number}: {own_code.where(error, self._root)}"
                ) from None
            self._iterator = iterator
            yield self._example(item, number)
            number += 1

    def compare(
        self,
        one: list[tuple[NDArray[Any], Example]],
        other: list[tuple[NDArray[Any], Example]],
    ) -> None:
        """Check that two calls have yielded the same.

        Raises:
            UserError: If they have not, or have yielded nothing.
        """
        if not one:
            raise UserError(f"{self.said}: yielded no example")
        for number, (first, second) in enumerate(itertools.zip_longest(one, other)):
            if first is None or second is None or not _same(first, second):
                raise UserError(
                    f"{self.said}: example {number} is another one when the function is called "
                    "again; it must yield the same examples each time, in the same order (seed "
                    "what is random, sort what a folder lists)"
                )

    def _needs_one(self) -> bool:
        try:
            given = inspect.signature(self._call).parameters.values()
        except (TypeError, ValueError):  # of some built-in functions it is not known
            return False
        needed = [p for p in given if p.default is p.empty and p.kind not in _VARIABLE]
        if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY for p in needed):
            names = ", ".join(p.name for p in needed)
            raise UserError(
                f"{self.said}: it needs the arguments {names}; allowed: none, or one, which gets "
                "the section data of params.yaml"
            )
        return bool(needed)

    def _example(self, item: Any, number: int) -> tuple[NDArray[Any], Example]:
        """Return image and example, checked except for the target."""
        if not isinstance(item, Example):
            if not (isinstance(item, tuple) and len(item) == 2):
                raise UserError(
                    f"{self.place()}example {number} is {_kind(item)}; needed: a pair (input, "
                    "target) or pipelines.data.example.Example"
                )
            item = Example(*item)
        item = item._replace(name=str(item.name) or f"example {number}")
        if item.split is not None and item.split not in _SPLITS:
            raise UserError(
                f"{self.place()}{item.name}: split {item.split!r} is unknown; allowed: None, "
                f"{', '.join(_SPLITS)}"
            )
        try:
            return self._image(item.input), item
        except UserError as error:
            raise UserError(f"{self.place()}{item.name}: {error}") from None

    def _image(self, given: Any) -> NDArray[Any]:
        config = self._config
        if isinstance(given, np.ndarray):
            return arrays.as_image(given, config.channels, config.bits)
        if not isinstance(given, Image.Image):
            raise UserError(f"its input is {_kind(given)}; needed: a numpy array or a Pillow image")
        if given.width * given.height > arrays.MAX_PIXELS:
            raise UserError(f"more than {arrays.MAX_PIXELS // 10**6} million pixels")
        try:
            return values(given, config.channels or _channels(given.mode), config.bits)
        except UserError:
            raise
        except Exception as error:  # Pillow reads a file only now, and raises almost anything
            raise UserError(f"corrupt or truncated image: {error}") from None


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _channels(mode: str) -> int:
    """Return as how many channels a picture of Pillow is read."""
    return 1 if mode in ("1", "L", "LA", "La") or mode.startswith("I;16") else 3


def _kind(item: object) -> str:
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    return f"{type(item).__name__}{size}"


def _same(one: tuple[NDArray[Any], Example], other: tuple[NDArray[Any], Example]) -> bool:
    (image, example), (image_again, again) = one, other
    return (
        image.dtype == image_again.dtype
        and np.array_equal(image, image_again)
        and repr(np.asarray(example.target).tolist()) == repr(np.asarray(again.target).tolist())
        and example.split == again.split
    )


class _Gathered:
    """The examples so far, fitted."""

    def __init__(self, config: DataConfig, task: str, said: str) -> None:
        self._config, self._said = config, said
        self._targets = Targets(task)
        self._images: GrowingImages | None = None
        self._hashes: list[str] = []
        self._names: list[str] = []
        self._splits: list[str | None] = []
        self._channels = 0
        self._size = config.size

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._hashes)

    def add(self, image: NDArray[Any], example: Example, place: str) -> None:
        """Take one more.

        Args:
            image: [height, width, channels].
            example: What else is known of it.
            place: What a message begins with.

        Raises:
            UserError: If it has other channels or another kind of target than those before, or
                there is no room for it.
        """
        channels = image.shape[2]
        if not self._hashes:
            self._channels = channels
            self._size = self._size or min(image.shape[:2])
            if self._size > _LARGEST:
                raise UserError(
                    f"{place}{example.name}: {self._size} pixels high or wide; set data.size, at "
                    f"most {_LARGEST}"
                )
        elif channels != self._channels:
            raise UserError(
                f"{place}{example.name} has {channels} channels, and those before have "
                f"{self._channels}"
            )
        try:
            self._targets.add(example.target)
        except UserError as error:
            raise UserError(f"{place}{example.name}: {error}") from None
        if self._images is None:
            self._images = GrowingImages(channels, self._size, self._config.bits)
        self._images.append(fit(image, self._size))
        self._hashes.append(content_hash(image).hex())
        self._names.append(example.name)
        self._splits.append(example.split)

    def collection(self) -> Collection:
        """Return all of them; no more can be added.

        Raises:
            UserError: If an official set has a class that training lacks.
        """
        assert self._images is not None  # there is an example
        found = self._targets.found()
        of = found.classes or ("",)
        official, validation, notes = official_splits(
            self._splits, [of[label] for label in found.labels], self._said
        )
        digest = sha256_json(
            sorted([h, repr(t)] for h, t in zip(self._hashes, found.told, strict=True))
        )
        return Collection(
            classes=found.classes,
            images=self._images.all(),
            labels=found.labels,
            hashes=tuple(self._hashes),
            official=None if official is None else np.array(official),
            validation=None if validation is None else np.array(validation),
            names=self._names,
            ignored=(),
            files={f"{self._config.source}: {self.count} examples": digest},
            notes=notes,
            values=found.values,
            value_names=found.value_names,
        )
