"""Work trees of unattended runs: each run has the code, parameters and data of its own.

A tree is keyed by deployment, commit and parameters, and stays until its run is finished: one that
was interrupted is found again as it was. Trees lie in the state directory of the checkout they
were made for and share its DVC cache, downloads, tracking store and Prefect home (`Layout.home`),
so what one has made another restores. DVC's locks are a tree's own: two runs never wait for each
other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_json, write_text
from pipelines.core.paths import HOME, Layout
from pipelines.systems import git
from pipelines.systems.dvc import cache as dvc_store
from pipelines.systems.locks import locked

_TREES = Path(".prong/worktrees")
_PATIENCE = 600
"""Seconds that git may take to write out a commit."""


@dataclass(frozen=True)
class _Place:
    """One work tree.

    Attributes:
        home: The checkout it belongs to.
        folder: Where git puts it.
        lock: Held while it is made or removed; git's children hold it on if this process dies.
    """

    home: Path
    folder: Path
    lock: int

    def git(self, *arguments: str) -> str:
        """Return what git prints in the checkout.

        Raises:
            UserError: If git is absent, or fails.
        """
        try:
            done = git.run(
                self.home,
                *("-c", "core.hooksPath=/dev/null", *arguments),
                keep_open=(self.lock,),
                patience=_PATIENCE,
            )
        except FileNotFoundError:
            raise UserError("git is missing; a run in a work tree of its own needs it") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"git {arguments[0]}: no end after {_PATIENCE} s") from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise UserError(f"{self.home}: git {' '.join(arguments[:2])}: {said}")
        return done.stdout.decode(errors="replace").strip()


def worktree(layout: Layout, *, deployment: str, params: Params, commit: str) -> Layout:
    """Return the work tree of a deployment, a commit and parameters; make it if it is absent.

    Its `params.yaml` is the checkout's own text where that says what `params` says. The data that
    a relative `data.path` or `data.mirror` names, and added images, are brought up to date with
    the checkout's at each call, by hard links where the disk allows.

    Args:
        layout: The checkout, or one of its work trees.
        deployment: Whose runs it is for.
        params: The parameters of the run.
        commit: Any name of a commit; the code of the run.

    Raises:
        UserError: If this is not a git repository, the commit is unknown, or the data lies beside
            the checkout under a relative name.
    """
    home = layout.home
    with _place(home, home / _TREES / "new", "names") as asking:
        inside = asking.git("rev-parse", "--show-prefix")
        try:
            full = asking.git("rev-parse", "--verify", f"{commit}^{{commit}}")
        except UserError:
            raise UserError(f"{commit!r}: no such commit in {home}") from None
    name = re.sub(r"[^A-Za-z0-9]+", "-", deployment).strip("-")[:40] or "run"
    key = f"{name}-{sha256_json([deployment, full, params.hash()])[:16]}"
    with _place(home, home / _TREES / key, key) as place:
        tree = Layout(place.folder / inside)
        if not _whole(tree, place, full):
            _remove(place, tree)
            place.git("worktree", "add", "--force", "--force", "--detach",
                      str(place.folder), full)  # fmt: skip
        _fill(Layout(home), tree, params)
        (tree.root / HOME).parent.mkdir(exist_ok=True)
        write_text(tree.root / HOME, str(home))  # last: it says that all is there
    return tree


def finish(layout: Layout) -> None:
    """Remove a work tree; what was made in it stays in the shared cache and stores.

    One that is gone, or half gone, may be finished again.

    Args:
        layout: What `worktree` returned.

    Raises:
        UserError: If it is no such tree.
    """
    for folder in (layout.root, *layout.root.parents):
        if folder.parts[-1 - len(_TREES.parts) : -1] == _TREES.parts:
            home = folder.parents[len(_TREES.parts)]
            with _place(home, folder, folder.name) as place:
                _remove(place, layout)
            return
    raise UserError(f"{layout.root}: not a work tree made for a run; nothing was removed")


@contextmanager
def _place(home: Path, folder: Path, name: str) -> Iterator[_Place]:
    """Hold a tree's lock: calls for one key come one after the other."""
    with locked(home / _TREES / ".locks" / name) as file:
        yield _Place(home, folder, file.fileno())


def _whole(tree: Layout, place: _Place, commit: str) -> bool:
    """Say whether a tree was made to its end and its code is still that of its commit."""
    if not (tree.root / HOME).is_file():
        return False
    try:
        if place.git("-C", str(place.folder), "rev-parse", "HEAD") != commit:
            return False
        changed = place.git(
            "-C", str(place.folder), "status", "--porcelain", "--untracked-files=no"
        )
    except UserError:  # the checkout was moved, or git's own record of the tree is gone
        return False
    names = {line[2:].strip() for line in changed.splitlines()}
    return not any(name.endswith((".py", "dvc.yaml")) for name in names)


def _remove(place: _Place, tree: Layout) -> None:
    (tree.root / HOME).unlink(missing_ok=True)  # first: from here on it is not whole
    if place.folder.exists():
        shutil.rmtree(place.folder)
    place.git("worktree", "prune")


def _fill(home: Layout, tree: Layout, params: Params) -> None:
    """Give a tree its parameters, its data, and the checkout's settings of DVC."""
    _write_params(home, tree, params)
    added = str(home.added.relative_to(home.root))
    path = params.data.path
    if params.data.source == "images" and path.lower().endswith((".csv", ".tsv")):
        path = str(Path(path).parent)  # the images that it lists lie beside it
    mirror = str(Path(params.data.mirror).expanduser()) if params.data.mirror else ""
    if "://" in params.data.mirror:
        mirror = ""
    for name in dict.fromkeys((path, mirror, added, f"{added}.json")):
        if name and not Path(name).is_absolute():
            _bring(home.root, tree.root, name)
    dvc_store.share(home.root, tree.root, params.store.remote)


def _write_params(home: Layout, tree: Layout, params: Params) -> None:
    text = params_file.text(params, home.params)
    if not tree.params.is_file() or tree.params.read_text(encoding="utf-8") != text:
        write_text(tree.params, text)


def _bring(home: Path, tree: Path, name: str) -> None:
    """Make a file or folder of the tree hold what it holds in the checkout.

    Raises:
        UserError: If the name leads out of the checkout, or to all of it.
    """
    relative = Path(os.path.normpath(name))
    if relative.parts[:1] == ("..",) or relative == Path():
        raise UserError(
            f"data: {name!r}: a run in a work tree of its own needs an absolute path, or one "
            "inside the checkout"
        )
    source, target = home / relative, tree / relative
    if source.is_file():
        _link(source, target)
        return
    wanted = set()
    for path, below in _files(source):
        wanted.add(target / below)
        _link(path, target / below)
    for path in [found for found, _ in _files(target)]:
        if path not in wanted:
            path.unlink()


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the regular files below a folder, through links, with their relative names."""
    seen = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        for path in (Path(top, name) for name in names):
            if path.is_file():
                yield path, path.relative_to(folder)


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the disk takes no link."""
    one = source.stat()
    if target.is_file():
        other = target.stat()
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino):
            return
        if (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns):
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or another owner
        shutil.copy2(source, target)
