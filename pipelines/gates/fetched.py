"""What a judgement needs from the registry, fetched before it: a folder of files and a request.

The process that judges runs models that somebody else made. So it is given files and texts, and
neither the address of the registry nor a password or key.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.gates.evidence import Evidence, StoredModel, trained_weights
from pipelines.gates.provenance import StoredFile
from pipelines.gates.variant_limits import VariantLimits

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", strict=True)
REQUEST = "request.json"


@dataclass(frozen=True, config=_STRICT)
class ListedFile:
    """A file of a version's folder, as JSON can hold it.

    Attributes:
        path: Relative to the folder, as the registry names it.
        head: Its first bytes, in hex.
    """

    path: str
    head: str


@dataclass(frozen=True, config=_STRICT)
class FetchedModel:
    """A version, fetched; see `pipelines.gates.evidence.StoredModel`.

    Attributes:
        number: Its number.
        sha256: Of the bytes that were registered.
        lineage: What it was made from.
        metrics: Figures that were registered with it.
        model: Its ONNX file.
        listed: What lies in its folder.
        weights: sha256 of the trained weights behind it; empty if unknown, or not asked for.
        missing: What could not be fetched (`model`, `listed` or `weights`) → why.
    """

    number: int
    sha256: str
    lineage: Mapping[str, str]
    metrics: Mapping[str, str]
    model: str = ""
    listed: tuple[ListedFile, ...] = ()
    weights: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)

    def _present(self, name: str) -> None:
        if name in self.missing:
            raise UserError(self.missing[name])

    def fetch_model(self, target: Path) -> None:
        """Put its ONNX file, fetched anew, at `target`; nothing is checked."""
        link(self.checked_file(), target)

    def checked_file(self) -> Path:
        """Return its ONNX file; the parent process checked its hash, but for the candidate's."""
        self._present("model")
        return Path(self.model)

    def files(self, scratch: Path) -> list[StoredFile]:
        """Return what lies in its folder; nothing is downloaded."""
        self._present("listed")
        return [StoredFile(file.path, bytes.fromhex(file.head)) for file in self.listed]

    def weights_sha256(self) -> str:
        """Return the sha256 of the trained weights behind it; empty if unknown."""
        self._present("weights")
        return self.weights


@dataclass(frozen=True, config=_STRICT)
class Request:
    """All that a judgement is asked.

    Attributes:
        root: The checkout whose data decide.
        params: Its parameters; addresses and secrets are left out.
        candidate: The version to judge.
        champion: What it is held against, if there is a champion.
        past: Versions that were champion.
        variant: Limits of a variant of the champion; None if the candidate is none.
    """

    root: str
    params: Params
    candidate: FetchedModel
    champion: FetchedModel | None
    past: tuple[FetchedModel, ...]
    variant: VariantLimits | None = None

    def evidence(self, scratch: Path) -> Evidence:
        """Return what the gates judge by.

        Args:
            scratch: An empty directory.
        """
        layout = Layout(Path(self.root))
        judged = self.candidate, self.champion, self.past
        return Evidence(layout, self.params, *judged, scratch, self.variant)


_REQUEST = TypeAdapter(Request)


def fetch(
    layout: Layout,
    params: Params,
    candidate: StoredModel,
    champion: StoredModel | None,
    past: Sequence[StoredModel],
    folder: Path,
) -> Request:
    """Fetch what a judgement needs into a folder.

    What the registry does not have is noted, and makes the gates that need it `not run`.

    Args:
        layout: The checkout.
        params: Its parameters.
        candidate: The version to judge; its bytes are downloaded anew.
        champion: What it is held against; None if there is no champion.
        past: Versions that were champion; those that cannot be fetched are left out.
        folder: An empty directory that outlives the judgement.

    Raises:
        Unavailable: If the registry does not answer.
    """
    missing: dict[str, str] = {}

    def had(name: str, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return ask()
        except Unavailable:
            raise
        except UserError as error:
            missing[name] = str(error)
            return otherwise

    def fetch_model() -> str:
        candidate.fetch_model(folder / "candidate.onnx")
        return str(folder / "candidate.onnx")

    def listed() -> tuple[ListedFile, ...]:
        downloads = folder / "downloads"
        downloads.mkdir()
        files = candidate.files(downloads)
        shutil.rmtree(downloads)
        return tuple(ListedFile(file.path, file.head.hex()) for file in files)

    asked = trained_weights(layout) is not None
    fetched = replace(
        _described(candidate),
        model=had("model", fetch_model, ""),
        listed=had("listed", listed, ()),
        weights=had("weights", candidate.weights_sha256, "") if asked else "",
    )
    nowhere = replace(params.alerts, webhook=""), replace(params.store, remote="")
    return Request(
        root=str(layout.root.resolve()),
        params=replace(params, alerts=nowhere[0], store=nowhere[1]),
        candidate=replace(fetched, missing=missing),
        champion=None if champion is None else _checked(champion, folder),
        past=tuple(_checked(version, folder) for version in past),
    )


def _described(version: StoredModel) -> FetchedModel:
    lineage, metrics = dict(version.lineage), dict(version.metrics)
    return FetchedModel(version.number, version.sha256, lineage, metrics)


def _checked(version: StoredModel, folder: Path) -> FetchedModel:
    """Return a version with its file, checked, under a name that stays if a cache is emptied."""
    own = folder / f"version-{version.number}.onnx"
    try:
        if not own.exists():  # the champion is among those that were champion
            link(version.checked_file(), own)
    except Unavailable:
        raise
    except UserError as error:
        return replace(_described(version), missing={"model": str(error)})
    return replace(_described(version), model=str(own))


def link(file: Path, to: Path) -> None:
    """Give a file a second name, or copy it where the file system does not allow that."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def write_request(request: Request, folder: Path) -> None:
    """Write a request into the folder of its files."""
    (folder / REQUEST).write_bytes(_REQUEST.dump_json(request))


def read_request(folder: Path) -> Request:
    """Return the request that a folder holds."""
    return _REQUEST.validate_json((folder / REQUEST).read_bytes())
