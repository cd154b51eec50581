"""`prong data`: labelled images come in as a new version of the data, kept in DVC's cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from pipelines.core import tables
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data import added, sources
from pipelines.data.added import Intake
from pipelines.data.schema import listed
from pipelines.systems.dvc import cache as dvc_store
from pipelines.systems.locks import locked


@dataclass(frozen=True)
class DataVersion:
    """One version of the data.

    Attributes:
        version: 0 is the source alone.
        images: How many images it adds.
        counts: Class → images it adds.
    """

    version: int
    images: int
    counts: dict[str, int]

    def as_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return asdict(self)


def add(layout: Layout, params: Params, folder: Path, *, new_class: bool) -> Intake:
    """Take a folder of labelled images in, in addition to `data.source`.

    Args:
        layout: The checkout.
        params: Its parameters.
        folder: One folder per class.
        new_class: Whether a class may be new.

    Raises:
        UserError: If the images are not as they must be; the data then are as they were.
        Unavailable: If the source must be downloaded and no host answers.
    """
    if params.data.source == "table":
        raise UserError(
            f"data.source = 'table': prong data add takes images; append rows to "
            f"{params.data.path} instead: a row's cells decide its split, so no other row moves"
        )
    with locked(layout.state / "data.lock"):
        known = sources.read(
            params.data, root=layout.root, downloads=layout.downloads, task=params.task.name
        )
        place = added.place(layout.root, params.data)
        found = added.take_in(folder, known, place, new_class=new_class)
        added.write_record(layout.added, dvc_store.keep(layout.root, layout.added))
    return found


def restore_added(layout: Layout) -> bool:
    """Bring the added images that are recorded and not here, as in a new clone.

    Args:
        layout: The checkout; `dvc_store.share` has set its remote.

    Returns:
        Whether any were missing.

    Raises:
        UserError: If neither DVC's cache nor the remote has them.
        Unavailable: If the remote does not answer.
    """
    with locked(layout.state / "data.lock"):
        record = added.read_record(layout.added)
        missing = [
            name
            for name, count in record.versions.items()
            if len(added.batches(layout.added / name)) < count
        ]
        if missing:
            dvc_store.restore_added(layout.root, layout.added, record.kept)
    return bool(missing)


def versions(layout: Layout, params: Params) -> list[DataVersion]:
    """Return the versions of the data, the newest first."""
    found = [DataVersion(0, 0, {})]
    for batch in added.batches(added.place(layout.root, params.data)):
        found.append(DataVersion(batch.version, sum(batch.counts.values()), dict(batch.counts)))
    return found[::-1]


def show_intake(found: Intake, console: Console) -> None:
    """Print what became of a folder of images."""
    if found.repeated:
        said = listed(found.repeated, "image", "images")
        console.print(tables.line(f"left out   {said}: there already, in the same class"))
    if found.ignored:
        console.print(tables.line(f"ignored    {listed(found.ignored, 'file', 'files')}"))
    if not found.added:
        console.print(f"version    {found.version}: nothing new")
        return
    if found.classes:
        console.print(tables.line(f"new        {listed(found.classes, 'class', 'classes')}"))
    total = sum(found.added.values())
    shown = ", ".join(f"{name} {count}" for name, count in found.added.items())
    images = "image" if total == 1 else "images"
    console.print(tables.line(f"added      {total} {images} ({shown})"))
    console.print(f"version    {found.version}; prong run trains on it")


def show_versions(found: list[DataVersion], source: str, console: Console) -> None:
    """Print the versions of the data as a table."""
    rows = []
    for one in found:
        shown = ", ".join(f"{name} {count}" for name, count in one.counts.items())
        rows.append((str(one.version), str(one.images), shown or f"the source {source}"))
    console.print(tables.table(("version", "images added", "per class"), rows))
