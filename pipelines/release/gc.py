"""Removes what nothing needs: old versions, uploads that broke off, cached stage outputs.

Needed is whatever an alias, an entry of the history or a DVC lock names: the lock of this checkout
and of the git worktrees beside it, every lock in the history of any branch, and those kept with the
versions that stay. Stored files go only with the last version or upload that needs them, of this
model or any other; see `pipelines/release/references.py`.
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
from pipelines.training.start_files import parsed

if TYPE_CHECKING:
    from pipelines.registry.versions import Version
    from pipelines.release.references import Key, References
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
    from pipelines.registry import versions as registry
    from pipelines.release.transaction import transaction
    from pipelines.systems.dvc.reproduce import undisturbed

    with transaction(layout, model) as held, undisturbed(layout.root):
        ours = [v for v in registry.versions(held.client, held.model) if v.sha256]
        needed = _needed(held, ours, keep)
        staying = [version for version in ours if version.number in needed]
        items = [
            *_stored(layout, held, ours, needed),
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


def _needed(held: Transaction, ours: list[Version], keep: int) -> set[int]:
    """Return the numbers of the versions that must stay."""
    from pipelines.registry.versions import LINEAGE

    state = held.state()
    needed = {*state.aliases.values(), *state.history.lived}
    for entry in state.history.entries:
        needed |= {number for number in (entry.replaced, entry.previous) if number is not None}
    needed |= {version.number for version in [v for v in ours if v.complete][:keep]}
    # Without what it started from, a version cannot be made again.
    starts = {v.number: parsed(v.under(LINEAGE).get("started_from", "")) for v in ours}
    waiting = list(needed)
    while waiting:
        start = starts.get(waiting.pop())
        if start is not None and start[0] not in needed:
            needed.add(start[0])
            waiting.append(start[0])
    return needed


def _stored(layout: Layout, held: Transaction, ours: list[Version], needed: set[int]) -> list[Item]:
    """Return the versions that nothing needs, and the uploads that never became one."""
    from pipelines.registry.versions import SHA256
    from pipelines.release.references import References
    from pipelines.systems.mlflow import artifacts, logged_models

    refs = References(layout, held.client)
    doomed = [v for v in ours if v.number not in needed and (v.model, str(v.number)) in refs]
    going = {(version.model, str(version.number)) for version in doomed}
    tagged = [u.model_id for u in logged_models.uploads(held.client, held.model, SHA256)]
    tagged = [model_id for model_id in tagged if ("", model_id) in refs]  # begun just now
    loose = []
    for model_id in tagged:
        named_by = [other.key for other in refs.others(refs["", model_id]) if other.key[0]]
        if not named_by:  # none is on its way while the lease is held
            loose.append(model_id)
        if going.issuperset(named_by):
            going.add(("", model_id))
    what = {
        (v.model, str(v.number)): "never live" if v.complete else "its registration broke off"
        for v in doomed
    }
    what |= {("", model_id): "no version came of it" for model_id in loose}
    items, counted = list[Item](), set[str]()
    for key, why in what.items():
        sharing, size = refs.others(refs[key], but=going), 0
        for place, address in refs[key].places.items() if not sharing else ():
            if place in counted:
                continue
            if artifacts.is_removable(layout, address):
                size += artifacts.size(layout, address)
                counted.add(place)
            else:
                why += f"; {place} is not this project's: left alone"
        if sharing:
            sharing.sort(key=lambda other: not other.key[0])  # a version says more than an upload
            why += f"; its files stay: {sharing[0]} needs them"
        version = next((v for v in doomed if (v.model, str(v.number)) == key), None)
        remove = _Removal(layout, held, refs, key, version, frozenset(tagged))
        items.append(Item(f"{refs[key]} ({why})", size, remove))
    return items


@dataclass(frozen=True)
class _Removal:
    """Removes a version or an upload; its files only if nothing else needs any of them by now.

    A version that is half removed counts as incomplete, and goes the next time.
    """

    layout: Layout
    held: Transaction
    refs: References
    key: Key
    version: Version | None
    tagged: frozenset[str]

    def __call__(self) -> None:
        from pipelines.registry import versions as registry
        from pipelines.systems.mlflow import artifacts, logged_models, registered_models

        client, version = self.held.client, self.version
        self.held.check()
        if version is not None and version.complete:
            registered_models.untag_version(client, *_of(version), registry.COMPLETE)
        self.refs.refresh()
        if self.key not in self.refs:
            return  # others removed it meanwhile
        one = self.refs[self.key]
        others = self.refs.others(one)
        if version is None and any(other.key[0] for other in others):
            return  # a version came of the upload meanwhile
        # What was uploaded for a version goes with it, unless others need that too.
        uploads = [u for u in others if version and not u.key[0] and u.key[1] in self.tagged]
        group = {member.key: member for member in (one, *uploads)}
        alone = not any(self.refs.others(member, but=group) for member in group.values())
        if alone:
            for address in {a for member in group.values() for a in member.places.values()}:
                if artifacts.is_removable(self.layout, address):
                    self.held.check()
                    artifacts.remove(self.layout, address)
        if version is not None:
            self._forget(version)
            registered_models.delete_version(client, *_of(version))
        for model, number in group if alone else (self.key,):
            if not model:
                logged_models.delete(client, number)

    def _forget(self, version: Version) -> None:
        """Remove the cached file, unless another version has the same bytes."""
        from pipelines.registry import version_files
        from pipelines.registry.versions import LINEAGE

        same = [v for v in self.refs.versions() if v.sha256 == version.sha256]
        if len(same) < 2 and re.fullmatch("[0-9a-f]{64}", version.sha256):
            version_files.cached_file(self.layout, version.sha256).unlink(missing_ok=True)
            drift = version.under(LINEAGE).get("drift_sha256", "")
            if re.fullmatch("[0-9a-f]{64}", drift):  # a drift graph is of one model only
                version_files.cached_drift(self.layout, drift).unlink(missing_ok=True)


def _of(version: Version) -> tuple[str, int]:
    return version.model, version.number


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
