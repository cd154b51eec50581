"""What the names of files say: which are images, their classes, and their splits.

The class of an image is the name of its folder. Folders above that do not matter, with two
exceptions. Images in a folder named test beside others are the official test set, and images in a
folder named val, valid or validation beside a folder for training are the official validation
set. And where the folders in each class are dates, the class is the folder above them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.core.errors import UserError
from pipelines.core.text import shown
from pipelines.data.images import EXTENSIONS
from pipelines.data.schema import listed

SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Name of a folder, in lower case → the split of the images in it."""
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_OTHER_IMAGES = re.compile(
    r"\.(avif|hei[cf]|jp2|j2k|jxl|svg|ico|tga|psd|dng|cr[23]|nef|arw|exr|hdr|dcm|pcx|eps)",
    re.IGNORECASE,
)
"""Endings of images that are not read, so that leaving them out is told."""
_DATE = re.compile(r"(19|20)\d\d([-_./]?\d\d){0,2}")
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class FolderLayout:
    """Which files are images, and their classes.

    Attributes:
        images: Positions in the list of names.
        classes: The class of each image.
        official: Whether each image is in the official test set; None if there is none.
        validation: The same for the official validation set.
        ignored: Names of files that are hidden or not images.
        notes: What a user should know of how the names were read.
    """

    images: tuple[int, ...]
    classes: tuple[str, ...]
    official: tuple[bool, ...] | None
    validation: tuple[bool, ...] | None
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def layout(
    names: Sequence[str], where: str, folders: Sequence[str] = (), left_out: Sequence[str] = ()
) -> FolderLayout:
    """Read classes and official splits from the names of files.

    Args:
        names: Relative to the folder's or archive's root, with `/`.
        where: The folder or archive, for messages.
        folders: Names of all folders, to find those without an image.
        left_out: Notes on what is not among the names.

    Raises:
        UserError: If there are no images, images without a class folder, fewer than two
            classes, folders that can be read as classes in two ways, or a class that only an
            official test or validation set has.
    """
    paths = [PurePosixPath(name) for name in names]
    images = tuple(at for at, path in enumerate(paths) if is_image(path))
    chosen = set(images)
    ignored = tuple(name for at, name in enumerate(names) if at not in chosen)
    if not images:
        raise UserError(
            f"data.path = {where!r}: no images; needed: one folder per class with files of "
            f"{', '.join(sorted(EXTENSIONS))}{_hint(ignored)}"
            f"{''.join(f'; {note}' for note in _other_images(ignored))}"
        )
    used = [paths[at] for at in images]
    _check_folders(used, where)
    for at in images:
        if UNPRINTABLE.search(names[at]):
            raise UserError(f"data.path = {where!r}: not a printable UTF-8 name: {names[at]!a}")
    classes, notes = _classes(used, where)
    classes, merged = one_spelling(classes)
    check_classes(classes, where)
    parents = [path.parent for path in used]
    split_of = {parent: _split(parent / "x")[1] for parent in dict.fromkeys(parents)}
    splits = [split_of[parent] for parent in parents]
    official, validation, missing = official_splits(splits, classes, f"data.path = {where!r}")
    empty = _empty(split_of, folders)
    notes = (*notes, *merged, *missing, *empty, *left_out, *_other_images(ignored))
    return FolderLayout(images, classes, official, validation, ignored, notes)


def is_image(path: PurePosixPath) -> bool:
    """Return whether a name is that of an image and not hidden."""
    return not _hidden(path) and path.suffix.lower() in EXTENSIONS


def check_classes(classes: Sequence[str], where: str) -> None:
    """Refuse a single class.

    Raises:
        UserError: If there are fewer than two classes.
    """
    if len(set(classes)) < 2:
        raise UserError(
            f"data.path = {where!r}: one class only ({classes[0]}); at least two folders with "
            "images are needed, one per class"
        )


def one_spelling(classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Merge classes whose names differ only in their Unicode form, as é and e + accent do.

    Returns:
        The class of each image, in the composed form (NFC) where there were two, and notes.
    """
    forms: dict[str, set[str]] = defaultdict(set)
    for name in set(classes):
        forms[unicodedata.normalize("NFC", name)].add(name)
    twins = {name: one for one, names in forms.items() if len(names) > 1 for name in names}
    if not twins:
        return tuple(classes), ()
    said = listed(sorted(set(twins.values())), "class", "classes")
    note = f"{said} written in two Unicode forms: read as one"
    return tuple(twins.get(name, name) for name in classes), (note,)


def official_splits(
    splits: Sequence[str | None], classes: Sequence[str], said: str
) -> tuple[tuple[bool, ...] | None, tuple[bool, ...] | None, tuple[str, ...]]:
    """Return which images are in an official test and validation set, and notes.

    Args:
        splits: `train`, `validation`, `test` or None (not said) of each image.
        classes: The class of each image.
        said: What a message begins with, such as `data.path = 'pictures'`.

    Returns:
        Of each image whether it is in the official test set, the same for the validation set,
        each None if there is none, and which classes a set lacks.

    Raises:
        UserError: If a set has a class that training lacks.
    """
    held: dict[str, set[str]] = defaultdict(set)
    for split, label in zip(splits, classes, strict=True):
        held[split or "train"].add(label)
    if "train" not in held and len(held) > 1:  # validation and test alone: train on the former
        held["train"] = held.pop("validation")
    notes = []
    for name in ("validation", "test"):
        if name not in held or "train" not in held:
            continue
        alone = sorted(held[name] - held["train"])
        if alone:
            raise UserError(
                f"{said}: the classes of the splits disagree: {name} has "
                f"{listed(alone, 'class', 'classes')} that train lacks; train has "
                f"{listed(sorted(held['train']), 'class', 'classes')}"
            )
        absent = sorted(held["train"] - held[name])
        if absent:
            notes.append(f"the {name} set has no image of {listed(absent, 'class', 'classes')}")
    test = tuple(split == "test" for split in splits)
    validation = tuple(split == "validation" for split in splits)
    both = "train" in held
    return (
        test if both and "test" in held else None,
        validation if both and "validation" in held else None,
        tuple(notes),
    )


def _other_images(ignored: Sequence[str]) -> tuple[str, ...]:
    """Return a note that names the images of formats that are not read, if there are any."""
    paths = ((name, PurePosixPath(name)) for name in ignored)
    others = [
        shown(name)
        for name, path in paths
        if not _hidden(path) and _OTHER_IMAGES.fullmatch(path.suffix)
    ]
    if not others:
        return ()
    said = listed(others, "image", "images")
    return (f"{said} of other formats left out; read are {', '.join(sorted(EXTENSIONS))}",)


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _hint(ignored: Sequence[str]) -> str:
    """Return what else data.path may be meant to name."""
    for ending in (*ARCHIVES, ".csv"):
        for name in ignored:
            if name.lower().endswith(ending):
                return f"; to read {name}, set data.path to that file"
    return ""


def _split(path: PurePosixPath) -> tuple[int, str | None]:
    """Return where the folders below the nearest split folder begin, and the split."""
    for at in reversed(range(len(path.parts) - 2)):
        split = SPLIT_OF.get(path.parts[at].lower())
        if split:
            return at + 1, split
    return 0, None


def _check_folders(images: Sequence[PurePosixPath], where: str) -> None:
    """Refuse images next to class folders or in a split folder: no folder would be their class."""
    first: dict[PurePosixPath, PurePosixPath] = {}
    for path in images:
        first.setdefault(path.parent, path)
    above = {folder for parent in first for folder in parent.parents}
    splits = all(folder.name.lower() in SPLIT_OF for folder in first)
    # Where folders named train and so on hold class folders, one beside them is no class.
    places = {PurePosixPath(*folder.parts[: begin - 1]) for folder in first
              if (begin := _split(folder / "x")[0])}  # fmt: skip
    for folder, path in first.items():
        beside = folder in above
        split = splits or (folder.name.lower() in SPLIT_OF and folder.parent in places)
        if folder == PurePosixPath() or beside or split:
            why = f" ({folder} also holds folders with images)" if beside else ""
            raise UserError(
                f"data.path = {where!r}: {path} is not in a class folder{why}; needed: one folder "
                "per class, CLASS/FILE or SPLIT/CLASS/FILE, or a CSV of path and label"
            )


def _classes(
    images: Sequence[PurePosixPath], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class of each image and a note on folders above or below the class folders."""
    roots: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for folder in dict.fromkeys(path.parent for path in images):
        begin = _split(folder / "x")[0]
        roots[folder.parts[:begin]].append(folder.parts[begin:])
    outer: dict[PurePosixPath, str] = {}  # class folder → the first folder that tells it apart
    dates: set[bool] = set()
    parents: dict[str, int] = defaultdict(int)
    flat = set()
    for root, folders in roots.items():
        same = _common([folder[:-1] for folder in folders])
        for name, count in _count([folder[-1] for folder in folders]).items():
            parents[name] = max(parents[name], count)
        for parts in folders:
            if len(parts) == same + 1:
                flat.add(parts[-1])
                continue
            outer[PurePosixPath(*root, *parts)] = parts[same]
            dates.add(bool(_DATE.fullmatch("/".join(parts[same + 1 :]))))
    inner = tuple(path.parent.name for path in images)
    if not outer:
        return inner, ()
    names = sorted(set(outer.values()))
    leaves = sorted({folder.name for folder in outer})
    above, below = (listed(found, "folder", "folders") for found in (names, leaves))
    if dates == {True} and not _numbered(names):
        note = f"the classes are the {above}; the {below} in them are dates"
        return tuple(outer.get(path.parent, path.parent.name) for path in images), (note,)
    unclear = [name for name in leaves if parents[name] > 1 and name not in flat]
    if unclear and not (_numbered(names) and not _numbered(leaves)):
        raise UserError(
            f"data.path = {where!r}: two readings: the classes are the outer {above} or the inner "
            f"{below}; needed: CLASS/FILE, SPLIT/CLASS/FILE, or a CSV of path and label"
        )
    return inner, (f"the classes are the innermost folders, not the {above} above them",)


def _common(folders: Sequence[tuple[str, ...]]) -> int:
    """Return how many first parts all have in common."""
    low, high = min(folders), max(folders)
    return next((at for at, part in enumerate(low) if part != high[at]), len(low))


def _count(names: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return counts


def _numbered(names: Collection[str]) -> bool:
    """Return whether names differ in their numbers only: part1 and part2, or 2023 and 2024."""
    return len({_DIGITS.sub("", name) for name in names}) == 1 and all(map(_DIGITS.search, names))


def _empty(used: Collection[PurePosixPath], folders: Sequence[str]) -> tuple[str, ...]:
    """Return a note that names the folders beside class folders that hold no image."""
    holding = {folder for path in used for folder in (path, *path.parents)}
    beside = {path.parent for path in used}
    paths = map(PurePosixPath, folders)
    empty = sorted(
        shown(path)
        for path in paths
        if path not in holding and path.parent in beside and not _hidden(path)
    )
    said = listed(empty, "folder", "folders")
    return (f"{said} without an image: no class",) if empty else ()
