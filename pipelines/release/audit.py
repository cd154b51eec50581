"""From a version's bytes back to what they were made from, each link checked.

A tag is a claim. The walk holds each against something the claimant could not have made fit by
accident: hashes of bytes, a signature, metadata inside the file, the commit in git.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core import tables
from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import atomic_path, sha256_file
from pipelines.core.fingerprints import params_hash
from pipelines.core.params_file import load
from pipelines.core.paths import Layout
from pipelines.provenance import release_branch as releases
from pipelines.provenance.attachments import LOCK, PARAMS
from pipelines.provenance.lineage import UNKNOWN, versions
from pipelines.registry import version_files
from pipelines.registry.versions import LINEAGE, VARIANT, VARIANT_OF, Version
from pipelines.systems import git
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.model_file import read_checked
from pipelines.training.start_files import parsed


class Verdict(StrEnum):
    """What came of checking a link."""

    HOLDS = "holds"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Link:
    """One link of the chain.

    Attributes:
        name: What it leads to.
        value: What the version claims.
        verdict: Whether it holds; `unknown` if it cannot be checked here.
        said: What it was held against.
    """

    name: str
    value: str
    verdict: Verdict
    said: str


def kept_file(layout: Layout, version: Version, name: str, folder: Path) -> Path | None:
    """Return a version's lock or parameters: from the releases branch, else from its folder.

    Args:
        layout: The checkout.
        version: The version.
        name: `dvc.lock` or `params.yaml`.
        folder: Where to put it.

    Raises:
        Unavailable: If the registry does not answer.
    """
    out = folder / name
    content = releases.kept(layout, version.model, version.number, name)
    if content is not None:
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
        return out
    try:
        artifacts.download(layout, version_files.location(layout, version), name, out)
    except Unavailable:
        raise
    except UserError:
        return None
    return out


def locked_outputs(lock: Path) -> dict[str, str]:
    """Return path → md5 of all outputs that a `dvc.lock` names.

    Raises:
        UserError: If it is not one.
    """
    try:
        stages = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"]
        return {out["path"]: out["md5"] for s in stages.values() for out in s.get("outs", [])}
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{lock}: not a dvc.lock: {' '.join(str(error).split())[:200]}") from None


def _link(name: str, value: str, holds: bool | None, said: str) -> Link:
    verdict = {True: Verdict.HOLDS, False: Verdict.BROKEN, None: Verdict.UNKNOWN}[holds]
    return Link(name, value, verdict, said)


def _same(name: str, claimed: str, found: str, source: str) -> Link:
    if claimed in ("", UNKNOWN):
        return _link(name, claimed or UNKNOWN, None, "the version does not say")
    said = source if claimed == found else f"{source} says {found}"
    return _link(name, claimed, claimed == found, said)


def walk(layout: Layout, version: Version) -> list[Link]:
    """Return the links from a version's bytes to its sources, in that order.

    Raises:
        Unavailable: If the registry does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="prong-lineage-") as scratch:
        return list(_walk(layout, version, Path(scratch)))


def _walk(layout: Layout, version: Version, scratch: Path) -> Iterator[Link]:
    made = version.under(LINEAGE)
    path, bytes_ = _bytes(layout, version, scratch)
    yield bytes_
    yield _signature(layout, version)
    # Read, not run: a version that the gates did not let through may be anything.
    card = read_checked(path)[1] if path is not None else None
    yield from _metadata(made, card)
    yield from _lock(layout, version, made, path, scratch)
    yield from _params(layout, version, made, card, scratch)
    yield from (
        _variant(layout, version, made) if VARIANT_OF in made else _start(layout, version, made)
    )
    yield _commit(layout, made)
    yield _environment(made)
    yield _run(layout, version)


def _bytes(layout: Layout, version: Version, scratch: Path) -> tuple[Path | None, Link]:
    """Fetch the registry's file anew, past any cache; return it if it is what was registered."""
    path = scratch / version_files.MODEL_FILE
    try:
        where = version_files.location(layout, version)
        found = artifacts.download(layout, where, version_files.MODEL_FILE, path)
    except Unavailable:
        raise
    except UserError as error:
        return None, _link("bytes", version.sha256, False, str(error))
    said = "sha256 of the registry's file"
    if found != version.sha256:
        return None, _link("bytes", version.sha256, False, f"{said}: {found}")
    return path, _link("bytes", version.sha256, True, said)


def _signature(layout: Layout, version: Version) -> Link:
    try:
        key = version_files.signer(layout, version)
        said = "its statement, by a trusted key" if key else "the gates did not let it through yet"
        return _link("signature", key or UNKNOWN, True if key else None, said)
    except Unavailable:
        raise
    except UserError as error:
        return _link("signature", UNKNOWN, False, str(error))


def _metadata(made: dict[str, str], card: OnnxMetadata | None) -> Iterator[Link]:
    for name in ("data_hash", "code_hash"):
        claimed = made.get(name, "")
        if card is None:
            yield _link(name, claimed or UNKNOWN, None, "the file cannot be trusted")
        else:
            yield _same(name, claimed, getattr(card, name), "the file's metadata")


def _lock(
    layout: Layout, version: Version, made: dict[str, str], path: Path | None, scratch: Path
) -> list[Link]:
    claimed = made.get("dvc_lock_sha256", "")
    lock = kept_file(layout, version, LOCK, scratch)
    if lock is None:
        return [_link("dvc.lock", claimed or UNKNOWN, None, "no copy of it was kept")]
    links = [_same("dvc.lock", claimed, sha256_file(lock), "the copy that was kept")]
    try:
        named = locked_outputs(lock).get("models/model.onnx", "")
    except UserError as error:
        return [*links, _link("lock → bytes", claimed, False, str(error))]
    if path is not None:
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        links.append(_same("lock → bytes", named, md5, "md5 of the registry's file"))
    return links


def _params(
    layout: Layout,
    version: Version,
    made: dict[str, str],
    card: OnnxMetadata | None,
    scratch: Path,
) -> Iterator[Link]:
    claimed = made.get("params_hash", "")
    file = kept_file(layout, version, PARAMS, scratch)
    try:
        params: Params | None = load(file) if file else None
    except UserError as error:
        yield _link("params", claimed, None, f"the copy that was kept: {error}")
        return
    if params is None:
        yield _link("params", claimed or UNKNOWN, None, "no copy of them was kept")
        return
    yield _same("params", claimed, params.hash(), "the copy that was kept")
    if card is not None:
        yield _same("params → bytes", card.params_hash, params_hash(params), "that copy")


def _start(layout: Layout, version: Version, made: dict[str, str]) -> Iterator[Link]:
    claimed = made.get("started_from", "")
    start = parsed(claimed)
    if start is None:
        return
    number, sha256 = start
    found = version_files.released_sha256(layout, version.model, number)
    if not found:
        yield _link("started from", claimed, None, f"no statement releases version {number}")
    else:
        yield _same("started from", sha256, found, f"the statement of version {number}")


def _variant(layout: Layout, version: Version, made: dict[str, str]) -> Iterator[Link]:
    """Yield the link from a variant to the champion that it approximates."""
    claimed = made[VARIANT_OF]
    champion = parsed(claimed)
    if champion is None:
        yield _link("variant of", claimed, False, "names no version")
        return
    number, sha256 = champion
    model = version.model.removesuffix(f"-{made.get(VARIANT, '')}")
    found = version_files.released_sha256(layout, model, number)
    if not found:
        said = f"no statement releases {model} version {number}"
        yield _link("variant of", claimed, None, said)
    else:
        yield _same("variant of", sha256, found, f"the statement of {model} version {number}")


def is_commit(name: str) -> bool:
    """Say whether a tag can be the name of a commit, and nothing that git takes for an option."""
    return re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name) is not None


def _commit(layout: Layout, made: dict[str, str]) -> Link:
    commit = made.get("git_commit", UNKNOWN)
    if commit == UNKNOWN:
        return _link("commit", commit, None, "the checkout was in no repository")
    if not is_commit(commit):
        return _link("commit", commit, False, "no commit has such a name")
    there = git.ask(layout.root, "cat-file", "-t", commit)
    if there is None:
        return _link("commit", commit, None, "not in this repository; fetch it")
    if made.get("git_dirty") == "true":
        return _link("commit", commit, True, "in git; with uncommitted changes, kept nowhere")
    return _link("commit", commit, there.strip() == "commit", "in git")


def differing_packages(made: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return package → version then and now, where they differ."""
    return {
        name: (made[name], now)
        for name, now in versions().items()
        if name in made and made[name] != now
    }


def _environment(made: dict[str, str]) -> Link:
    known = [f"{name} {made[name]}" for name in versions() if name in made]
    other = differing_packages(made)
    if not known:
        return _link("environment", UNKNOWN, None, "the version does not say")
    said = ", ".join(f"{name} {now}" for name, (_, now) in other.items())
    return _link(
        "environment", ", ".join(known), True, f"here instead: {said}" if other else "as here"
    )


def _run(layout: Layout, version: Version) -> Link:
    if not version.run_id:
        return _link("run", UNKNOWN, None, "the version does not say")
    found: Any = tracking.run_status(layout, version.run_id)
    if found is None:
        return _link("run", version.run_id, False, "MLflow has no such run")
    return _link("run", version.run_id, found == "FINISHED", f"in MLflow, {found}")


def show(version: Version, links: list[Link]) -> None:
    """Print the chain as a table."""
    style = {Verdict.HOLDS: "green", Verdict.BROKEN: "bold red", Verdict.UNKNOWN: "yellow"}
    rows = [
        (link.name, tables.Styled(link.verdict, style[link.verdict]), link.value, link.said)
        for link in links
    ]
    title = f"{version.model} v{version.number}"
    columns = ("link", "", "claim", "held against")
    tables.console().print(tables.table(columns, rows, title=title))
