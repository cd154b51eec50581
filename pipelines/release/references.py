"""Who needs which stored files: counted over every version of every model, and every upload.

MLflow lets two versions share a folder (`copy_model_version` makes such a version), and lets one
name a folder inside another. What any of them needs is never removed for the sake of another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.registry.versions import SHA256
from pipelines.systems.mlflow import (
    MlflowClient,
    answering,
    artifacts,
    logged_models,
    registered_models,
)

_UPLOAD = re.compile(r"models:/(m-[0-9a-f]+)/?")
_RUN = re.compile(r"runs:/+([^/]+)(?:/.*)?")
Key = tuple[str, str]
"""A version's model and number, or the empty word and an upload's id."""


@dataclass(frozen=True)
class Reference:
    """One holder of stored files.

    Attributes:
        key: The version or upload.
        places: Locations that it names: in their canonical form, and as they are opened.
        uploads: Ids of uploads that it names.
        runs: Ids of runs of which it names whatever they made.
        made_by: The run that made it; empty if unknown.
        sha256: Of the model's bytes, as it says; empty if it does not.
    """

    key: Key
    places: Mapping[str, str]
    uploads: frozenset[str]
    runs: frozenset[str] = frozenset()
    made_by: str = ""
    sha256: str = ""

    def shares(self, other: Reference) -> bool:
        """Say whether any file may belong to both."""
        return (
            bool(self.uploads & other.uploads)
            or self.made_by in other.runs
            or other.made_by in self.runs
            or any(
                artifacts.lies_in(one, two) or artifacts.lies_in(two, one)
                for one in self.places
                for two in other.places
            )
        )

    def __str__(self) -> str:
        """Return what it is, in words."""
        model, number = self.key
        return f"{model} version {number}" if model else f"upload {number}"


@dataclass
class References:
    """All holders of stored files.

    Attributes:
        layout: The checkout.
        client: Of the registry.
    """

    layout: Layout
    client: MlflowClient
    _found: dict[Key, Reference] = field(default_factory=dict)
    _places: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read them for the first time."""
        self.refresh()

    def refresh(self) -> None:
        """Read them again: others may have come meanwhile.

        Raises:
            UserError: If the store cannot be used.
            Unavailable: If it does not answer.
        """
        with answering(self.layout):
            uploads = {one.model_id: one for one in logged_models.every_upload(self.client)}
            where = {key: upload.artifact_location for key, upload in uploads.items()}
            self._found = {("", key): self._upload(one) for key, one in uploads.items()}
            for version in registered_models.every_version(self.client):
                key = (str(version.name), str(version.version))
                self._found[key] = self._version(key, version, where)

    def __getitem__(self, key: Key) -> Reference:
        """Return one holder."""
        return self._found[key]

    def __contains__(self, key: Key) -> bool:
        """Say whether there is such a holder."""
        return key in self._found

    def versions(self) -> Iterator[Reference]:
        """Yield the versions among them."""
        yield from (found for (model, _), found in self._found.items() if model)

    def others(self, one: Reference, but: Collection[Key] = ()) -> list[Reference]:
        """Return the holders that need files of one of them, without itself and these."""
        return [
            other
            for key, other in self._found.items()
            if key != one.key and key not in but and one.shares(other)
        ]

    def _canonical(self, places: Collection[str]) -> dict[str, str]:
        found = {}
        for place in places:
            try:
                there = artifacts.resolved(self.layout, place)
                found[artifacts.canonical(there)] = there
            except UserError:  # no address: it names no file
                continue
        return found

    def _upload(self, upload: logged_models.LoggedModel) -> Reference:
        return Reference(
            ("", upload.model_id),
            self._canonical([upload.artifact_location]),
            frozenset([str(upload.model_id)]),
            made_by=upload.source_run_id or "",
            sha256=upload.tags.get(SHA256, ""),
        )

    def _version(
        self, key: Key, version: registered_models.ModelVersion, where: dict[str, str]
    ) -> Reference:
        source = str(version.source or "")
        places, ids, runs = {source}, set(), set()
        if version.model_id:
            ids.add(str(version.model_id))
        if found := _UPLOAD.fullmatch(source):
            ids.add(found[1])
        if found := _RUN.fullmatch(source):
            runs.add(found[1])
        if source.startswith("models:") or SHA256 in version.tags:
            asked = (*key, source)
            if asked not in self._places:  # it cannot change, and is a call of its own
                self._places[asked] = registered_models.location_or_none(self.client, *key) or ""
            places.add(self._places[asked])
        places |= {where[one] for one in ids if one in where}
        return Reference(
            key,
            self._canonical([place for place in places if place and not _is_name(place)]),
            frozenset(ids),
            frozenset(runs),
            made_by=str(version.run_id or ""),
            sha256=version.tags.get(SHA256, ""),
        )


def _is_name(place: str) -> bool:
    """Say whether a source names a model or run, and no place."""
    return place.startswith(("models:", "runs:"))
