"""Removes what nothing needs: old versions, uploads that broke off, cached stage outputs.

Needed is whatever an alias, an entry of the history or a DVC lock names: the lock of this checkout
and of the git worktrees beside it, every lock in the history of any branch, and those kept with the
versions that stay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.systems import git

if TYPE_CHECKING:
    from pipelines.registry.versions import Version
    from pipelines.release.transaction import Transaction

YOUNG = 24 * 3600
"""Seconds within which a cached object may belong to a run that has not written its lock yet."""
_HASH = re.compile(r"\b[0-9a-f]{32}\b")
_LOCKS = (":(glob)**/dvc.lock", ":(glob)**/*.dvc", ":(glob)**/data/added.json")


@dataclass(frozen=True)
class Item:
    """Something that nothing needs.

    Attributes:
        what: What it is, in words.
        size: Bytes.
        remove: Removes it.
    """

    what: str
    size: int
    remove: Callable[[], None]


def collect(
    layout: Layout, model: str, *, keep: int, dry: bool, report: Callable[[str], None]
) -> int:
    """Say what nothing needs, then remove it.

    Args:
        layout: The checkout.
        model: The registered model's name.
        keep: So many of the newest versions stay in any case.
        dry: Whether to say it only.
        report: Called with each line.

    Returns:
        The bytes that are, or would be, free.

    Raises:
        UserError: If another run is at work in this checkout, or git or the store cannot be read.
        Unavailable: If the store does not answer.
    """
    from pipelines.release.transaction import transaction
    from pipelines.systems.dvc.reproduce import undisturbed

    with transaction(layout, model) as held, undisturbed(layout.root):
        gone, staying = _versions(layout, held, keep)
        items = [
            *gone,
            *_uploads(layout, held),
            *_objects(layout, held, staying, report),
        ]
        for item in items:
            report(f"{shown(item.size):>10}  {item.what}")
        total = sum(item.size for item in items)
        verb = "would be removed" if dry else "to remove"
        report(f"{shown(total):>10}  {verb} in all" if items else "nothing to remove")
        if not dry:
            for item in items:
                item.remove()
    return total


def shown(size: int) -> str:
    """Return a number of bytes as people write it."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _versions(layout: Layout, held: Transaction, keep: int) -> tuple[list[Item], list[Version]]:
    """Return the versions that nothing needs, and those that stay."""
    from pipelines.registry import version_files
    from pipelines.registry import versions as registry
    from pipelines.systems.mlflow import artifacts

    state = held.state()
    needed = {*state.aliases.values(), *state.history.lived}
    for entry in state.history.entries:
        needed |= {number for number in (entry.replaced, entry.previous) if number is not None}
    ours = [v for v in registry.versions(held.client, held.model) if v.sha256]
    needed |= {version.number for version in [v for v in ours if v.complete][:keep]}
    items = []
    for version in ours:
        if version.number in needed:
            continue
        why = "never live" if version.complete else "its registration broke off"
        where = version_files.location(layout, version)
        what = f"{version.model} version {version.number} ({why})"
        remove = _Removal(layout, held, version, where)
        items.append(Item(what, artifacts.size(layout, where), remove))
    return items, [version for version in ours if version.number in needed]


@dataclass(frozen=True)
class _Removal:
    """Removes a version; one that is half removed counts as incomplete, and goes the next time."""

    layout: Layout
    held: Transaction
    version: Version
    where: str

    def __call__(self) -> None:
        from pipelines.registry import version_files
        from pipelines.registry import versions as registry
        from pipelines.systems.mlflow import artifacts, logged_models, registered_models

        client, model, number = self.held.client, self.version.model, self.version.number
        self.held.check()
        if self.version.complete:
            registered_models.untag_version(client, model, number, registry.COMPLETE)
        artifacts.remove(self.layout, self.where)
        version_files.cached_file(self.layout, self.version.sha256).unlink(missing_ok=True)
        logged = [
            upload.model_id
            for upload in logged_models.uploads(client, model, registry.SHA256)
            if upload.artifact_location.rstrip("/") == self.where.rstrip("/")
        ]
        registered_models.delete_version(client, model, number)
        for model_id in logged:
            logged_models.delete(client, model_id)


def _uploads(layout: Layout, held: Transaction) -> list[Item]:
    """Return uploads that never became a version; none is on its way while the lease is held."""
    from pipelines.registry.versions import SHA256
    from pipelines.systems.mlflow import artifacts, logged_models, registered_models

    sources = registered_models.locations(held.client)
    items = []
    for upload in logged_models.uploads(held.client, held.model, SHA256):
        where = upload.artifact_location
        if any(upload.model_id in source or where == source for source in sources):
            continue

        def remove(where: str = where, model_id: str = upload.model_id) -> None:
            held.check()
            artifacts.remove(layout, where)
            logged_models.delete(held.client, model_id)

        what = f"upload {upload.model_id} (no version came of it)"
        items.append(Item(what, artifacts.size(layout, where), remove))
    return items


def _objects(
    layout: Layout, held: Transaction, staying: list[Version], report: Callable[[str], None]
) -> list[Item]:
    """Return the objects of DVC's cache that no lock needs."""
    from pipelines.registry import version_files
    from pipelines.systems.dvc.reproduce import caches
    from pipelines.systems.mlflow import artifacts

    objects, runs = caches(layout.root)
    trees = _worktrees(layout.root)
    if not any(objects.resolve().is_relative_to(tree.resolve()) for tree in trees):
        report(
            f"DVC's cache {objects} lies outside this repository: others may need it; left alone"
        )
        return []
    texts = [text for tree in trees for text in _locks_of(tree)]
    texts += _locks_in_git(layout.root)
    for version in staying:
        where = version_files.location(layout, version)
        texts.append(artifacts.read_text(layout, where, "dvc.lock") or "")
    needed = {found for text in texts for found in _HASH.findall(text)}
    for name in tuple(needed):
        folder = objects / name[:2] / f"{name[2:]}.dir"
        if folder.is_file():
            needed |= set(_HASH.findall(folder.read_text(encoding="utf-8")))
    old = time.time() - YOUNG
    paths = {
        path: path.parent.name + path.name.removesuffix(".dir")
        for path in sorted(objects.glob("[0-9a-f][0-9a-f]/*"))
        if path.is_file() and path.stat().st_mtime < old
    }
    unneeded = {path: name for path, name in paths.items() if name not in needed}
    if not unneeded:
        return []
    # A remembered run whose outputs are gone would mislead the next one.
    gone = set(unneeded.values())
    stale = [
        path
        for path in (runs.rglob("*") if runs.is_dir() else ())
        if path.is_file() and gone & set(_HASH.findall(path.read_text(encoding="utf-8")))
    ]

    def remove() -> None:
        held.check()
        for path in (*stale, *unneeded):
            path.unlink(missing_ok=True)

    size = sum(path.stat().st_size for path in (*stale, *unneeded))
    return [Item(f"{len(unneeded)} objects of DVC's cache (no lock names them)", size, remove)]


def _locks_of(tree: Path) -> Iterator[str]:
    """Yield the locks and tracked data of a work tree as text."""
    locks = (tree / "dvc.lock", tree / "data/added.json")
    for path in (*locks, *tree.glob("*.dvc"), *tree.glob("data/**/*.dvc")):
        if path.is_file():
            yield path.read_text(encoding="utf-8")


def _git(root: Path, *arguments: str, given: str | None = None) -> str:
    try:
        return git.tell(root, *arguments, content=None if given is None else given.encode())
    except Failed as error:
        raise UserError(f"{error}; nothing was removed") from None


def _in_git(root: Path) -> bool:
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def _worktrees(root: Path) -> list[Path]:
    """Return this checkout and those at its place in the git worktrees beside it."""
    if not _in_git(root):
        return [root]
    inside = _git(root, "rev-parse", "--show-prefix").strip()
    said = _git(root, "worktree", "list", "--porcelain")
    found = [
        Path(line.removeprefix("worktree ")) / inside
        for line in said.splitlines()
        if line.startswith("worktree ")
    ]
    return [root, *(path for path in found if path.is_dir() and path != root)]


def _locks_in_git(root: Path) -> list[str]:
    """Return every lock that any commit of any branch or tag holds, as text."""
    if not _in_git(root):
        return []
    raw = ("--format=", "--raw", "--no-abbrev", "--no-renames", "-m")
    said = _git(root, "log", "--all", "--full-history", *raw, "--", *_LOCKS)
    blobs = {line.split()[3] for line in said.splitlines() if line.startswith(":")}
    return [_git(root, "cat-file", "blob", blob) for blob in sorted(blobs) if set(blob) != {"0"}]
