"""What variants are made from: the released champion, checked as `predict` does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import Card, load_card
from pipelines.provenance.lineage import versions as package_versions
from pipelines.registry.state import read_state
from pipelines.registry.statements import Statement
from pipelines.registry.version_files import champion
from pipelines.registry.versions import LINEAGE, VARIANT, VARIANT_OF, Version, get_version
from pipelines.systems.mlflow import answering, connect
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.model_file import read_checked
from pipelines.variants.kinds import KINDS


class NotMade(UserError):
    """A variant cannot be made of this champion, with the reason."""


@dataclass(frozen=True)
class VariantBase:
    """A champion of which variants are made.

    Attributes:
        layout: The checkout.
        params: Its parameters.
        version: The champion, as the registry lists it.
        statement: By which it was released.
        path: Its ONNX file, whose hash is the statement's.
    """

    layout: Layout
    params: Params
    version: Version
    statement: Statement
    path: Path

    @property
    def model(self) -> str:
        """The registered model's name."""
        return self.statement.model

    @property
    def number(self) -> int:
        """The champion's number."""
        return self.statement.version

    @property
    def text(self) -> str:
        """What the lineage of a variant says of it: `v3` and the hash of its ONNX file."""
        return f"v{self.number} {self.statement.sha256}"

    @cached_property
    def content(self) -> bytes:
        """The bytes of its file."""
        return read_checked(self.path)[0]

    @cached_property
    def card(self) -> OnnxMetadata:
        """What its file says about itself."""
        return read_checked(self.path)[1]

    @cached_property
    def data(self) -> Card:
        """What the checkout's data are."""
        return load_card(self.layout.prepared)

    def name_of(self, kind: str) -> str:
        """Return the name of the registered model of its variants of a kind."""
        return f"{self.model}-{kind}"

    def lineage_of(self, kind: str, sha256: str) -> dict[str, str]:
        """Return what a variant was made from: what the champion was, and how.

        Args:
            kind: Of the variant.
            sha256: Of the variant's file.
        """
        signed = {k: v for k, v in self.statement.made_from.items() if k != VARIANT_OF}
        own = {"onnx_sha256": sha256, VARIANT: kind, VARIANT_OF: self.text}
        return {**self.version.under(LINEAGE), **signed, **package_versions(), **own}

    def is_live(self) -> bool:
        """Say whether it still is the champion.

        Raises:
            Unavailable: If the registry does not answer.
        """
        client = connect(self.layout)
        with answering(self.layout):
            return read_state(self.layout, client, self.model).live == self.number


def base_of(layout: Layout, params: Params, model: str) -> VariantBase:
    """Return the champion of a model, after statement and bytes held.

    Args:
        layout: The checkout.
        params: Its parameters.
        model: The registered model's name.

    Raises:
        UserError: If there is no champion, it was not released, or it is a variant itself.
        Unavailable: If the registry does not answer.
    """
    found = champion(layout, model)
    if VARIANT_OF in found.statement.made_from:
        raise UserError(
            f"{model}: is a model of variants already ({', '.join(KINDS)}); name the model that "
            "they were made from"
        )
    client = connect(layout)
    with answering(layout):
        version = get_version(client, model, found.version)
    return VariantBase(layout, params, version, found.statement, found.path)
