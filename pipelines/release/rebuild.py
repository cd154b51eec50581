"""Make a released version again, from its commit, and say whether the same comes out.

In a git worktree of its own, with the parameters that were kept. Only data may come from DVC's
cache: what was trained is trained again, else the answer would be a copy of the question.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.errors import Failed, UserError
from pipelines.core.files import read_json, sha256_file
from pipelines.core.fingerprints import code_hash, own_code_of, package_hash, source_root
from pipelines.core.params_file import load
from pipelines.core.paths import Layout
from pipelines.provenance.lineage import UNKNOWN, versions
from pipelines.registry.start_weights import bring_again
from pipelines.registry.versions import (
    LINEAGE,
    METRIC,
    PARAM,
    VARIANT_OF,
    Version,
    number,
)
from pipelines.release.audit import differing_packages, is_commit, kept_file
from pipelines.systems import git
from pipelines.systems.processes import run_group

STAGES = ("train", "evaluate", "export", "verify")
CONFIDENCE = 1.96
"""Standard errors by which the test errors of two trainings may differ and still agree."""


@dataclass(frozen=True)
class Rebuilt:
    """What came of making a version again.

    Attributes:
        sha256: Of the ONNX file that was made now.
        same_bytes: Whether it is the registered one.
        test_error: Of what was made now, %.
        registered_error: Of the version, %.
        tolerance: Difference up to which the two agree, percentage points.
        packages: Package → version then and now, where they differ.
        warnings: What keeps the comparison from being exact.
    """

    sha256: str
    same_bytes: bool
    test_error: float
    registered_error: float
    tolerance: float
    packages: dict[str, tuple[str, str]]
    warnings: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether bytes or figures agree."""
        return self.same_bytes or abs(self.test_error - self.registered_error) <= self.tolerance


def tolerance(error: float, images: int) -> float:
    """Return how far two test errors may lie apart by chance, in percentage points.

    Two trainings that differ in rounding alone answer some images differently; the bound is that
    of two independent proportions, so it is wide rather than narrow.

    Args:
        error: Registered test error, %.
        images: Of the test split.
    """
    share = min(max(error / 100, 1 / images), 1 - 1 / images)
    return 100 * CONFIDENCE * math.sqrt(2 * share * (1 - share) / images)


@contextmanager
def _worktree(layout: Layout, commit: str, name: str, keep: bool) -> Iterator[Path]:
    place = layout.state / "rebuild" / re.sub(r"[^A-Za-z0-9._-]", "_", name)
    _remove(layout, place)
    place.parent.mkdir(parents=True, exist_ok=True)
    git.tell(layout.root, "worktree", "add", "--quiet", "--detach", str(place), commit)
    try:
        # The checkout may be a folder of its repository.
        prefix = git.tell(layout.root, "rev-parse", "--show-prefix")
        yield place / prefix
    finally:
        if not keep:
            _remove(layout, place)


def _remove(layout: Layout, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    git.ask(layout.root, "worktree", "prune")


def _stage(root: Path, name: str, say: Callable[[str], None]) -> None:
    say(f"  {name} …")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    code = run_group([sys.executable, "-m", "pipelines.pipeline.stages", name], cwd=root, env=env)
    if code:
        raise Failed(f"stage {name} failed (exit code {code}); its output above says why")


def _data(layout: Layout, root: Path, lock: Path | None, path: str) -> str | None:
    """Bring the prepared data from DVC's cache; return why not if that cannot be."""
    from pipelines.systems.dvc.reproduce import restore

    if lock is None:
        return "no dvc.lock was kept"
    shutil.copyfile(lock, root / "dvc.lock")
    return restore(root, path, cache_of=layout.root)


def rebuild(
    layout: Layout, version: Version, *, keep: bool = False, say: Callable[[str], None] = print
) -> Rebuilt:
    """Train, export and verify a version anew, in a fresh worktree of its commit.

    Args:
        layout: The checkout; its repository holds the commit.
        version: The version to make again.
        keep: Whether to leave the worktree for a look.
        say: Called with each line of progress.

    Raises:
        UserError: If commit or parameters are not to be had, or another package made the version.
        Failed: If a stage fails.
        Unavailable: If the registry does not answer.
    """
    made = version.under(LINEAGE)
    if VARIANT_OF in made:
        raise UserError(
            f"{version.model} version {version.number}: a variant is not trained; `prong rebuild` "
            "makes the champion again that it is made from, and `prong variants` its variants"
        )
    commit, name = made.get("git_commit", UNKNOWN), f"{version.model} version {version.number}"
    if commit == UNKNOWN:
        raise UserError(f"{name}: its commit is unknown: it was made before the first commit")
    if not is_commit(commit) or git.ask(layout.root, "cat-file", "-t", commit) is None:
        raise UserError(
            f"{name}: its commit {commit!r} is not in this repository; fetch it, or rebuild where "
            "it is"
        )
    with tempfile.TemporaryDirectory(prefix="prong-rebuild-") as scratch:
        params = kept_file(layout, version, "params.yaml", Path(scratch))
        lock = kept_file(layout, version, "dvc.lock", Path(scratch))
        if params is None:
            raise UserError(f"{name}: its parameters were not kept; it was registered without them")
        warnings = []
        if made.get("git_dirty") != "false":
            warnings.append("it was made with uncommitted changes, which were kept nowhere")
        if made.get("device") not in ("cpu", None):
            warnings.append(f"it was trained on {made['device']}: bytes agree on CPUs only")
        with _worktree(layout, commit, f"{version.model}-v{version.number}", keep) as root:
            say(f"{name}: commit {commit[:12]} in {root}")
            shutil.copyfile(params, root / "params.yaml")
            _same_package(root, made, name)
            _raw(layout, root)
            missing = _data(layout, root, lock, "data/prepared")
            if missing:
                say(f"  data: made anew ({missing})")
                _stage(root, "prepare", say)
            warnings += _other_data(root, made)
            asked = version.under(PARAM).get("train.checkpoint_from", "")
            started = made.get("started_from", UNKNOWN)
            bring_again(layout, root, version.model, asked, started)
            for stage in STAGES:
                _stage(root, stage, say)
            return _compare(Layout(root), version, tuple(warnings))


def _same_package(root: Path, made: dict[str, str], name: str) -> None:
    """Refuse to make other bytes with another package; a commit with sources has its own."""
    if source_root(root) == root:
        return
    here, then = package_hash(root), made.get("package_hash")
    if then is None:  # registered before this was recorded
        here = code_hash(root, own_code_of(load(root / "params.yaml")))
        then = made.get("code_hash", UNKNOWN)
    if here == then:
        return
    was, now = made.get("prong", UNKNOWN), versions()["prong"]
    wanted = f"pip install 'prong[pipeline]=={was}'" if was != now else "install that build of it"
    raise UserError(
        f"{name}: prong {was} with the code {then[:12]} made it, and prong {now} with the code "
        f"{here[:12]} is installed, which would make other bytes; {wanted}, in an environment of "
        "its own, and rebuild there"
    )


def _raw(layout: Layout, root: Path) -> None:
    """Lend the worktree what git does not have: downloads, and images in the checkout's folder."""
    for name in ("data/downloads", "data/raw", "data/added"):
        source, place = layout.root / name, root / name
        if source.is_dir() and not (place.is_dir() and any(place.glob("[!.]*"))):
            if place.is_dir():
                shutil.rmtree(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source, target_is_directory=True)


def _other_data(root: Path, made: dict[str, str]) -> list[str]:
    card: dict[str, Any] = read_json(root / "data/prepared/card.json")
    if card.get("data_hash") == made.get("data_hash"):
        return []
    return ["its data are no longer available: the present data differ"]


def _compare(layout: Layout, version: Version, warnings: tuple[str, ...]) -> Rebuilt:
    evaluation: dict[str, Any] = read_json(layout.reports / "evaluation.json")
    sha256 = sha256_file(layout.onnx)
    registered = number(version.under(METRIC).get("test_error", ""))
    registered = float(registered) if isinstance(registered, int | float) else math.nan
    return Rebuilt(
        sha256=sha256,
        same_bytes=sha256 == version.sha256,
        test_error=float(evaluation["test_error"]),
        registered_error=registered,
        tolerance=tolerance(registered, int(evaluation["images"])),
        packages=differing_packages(version.under(LINEAGE)),
        warnings=warnings,
    )


def lines(version: Version, done: Rebuilt) -> Iterator[str]:
    """Yield what to tell of a rebuilt version, line by line."""
    yield from (f"warning: {text}" for text in done.warnings)
    for name, (then, now) in done.packages.items():
        yield f"package {name}: {then} then, {now} now"
    if done.same_bytes:
        yield f"v{version.number}: the same bytes, sha256 {done.sha256}"
        return
    yield f"other bytes: sha256 {done.sha256}, registered {version.sha256}"
    verdict = "agree" if done.agrees else "DISAGREE"
    yield (
        f"test errors {verdict}: {done.test_error:.2f} % now, {done.registered_error:.2f} % "
        f"registered, tolerance {done.tolerance:.2f}"
    )


def as_json(done: Rebuilt) -> str:
    """Return the outcome as JSON."""
    from dataclasses import asdict

    return json.dumps({**asdict(done), "agrees": done.agrees}, indent=2)
