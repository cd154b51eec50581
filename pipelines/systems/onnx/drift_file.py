"""A drift graph as a file: read and checked without running it or looking beside it."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from pipelines.core.errors import UserError
from pipelines.systems.onnx.drift_card import DRIFT, DriftCard
from pipelines.systems.onnx.metadata import LARGEST_FILE
from pipelines.systems.onnx.model_file import (
    ModelProto,
    input_signatures,
    outside,
    parse,
    signature,
)
from pipelines.systems.onnx.operators import not_allowed


def read_drift(path: Path) -> tuple[bytes, DriftCard]:
    """Return a drift graph's bytes and card, both checked; nothing outside the file is touched.

    Raises:
        UserError: If the file is unreadable, not one whole drift graph of this project, or uses an
            operator that is not allowed.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than 2 GB, the limit of one ONNX file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content, _checked(parse(content))
    except ValueError as error:
        raise UserError(f"{path}: not a drift graph of this project: {error}") from None


def _checked(model: ModelProto) -> DriftCard:
    """Return what a drift graph says about itself, after the graph was held to it.

    Raises:
        ValueError: Naming what is wrong.
    """
    if away := outside(model):
        raise ValueError(f"{len(away)} tensors lie outside the file, first {away[0][0]!r}")
    if bad := not_allowed(model):
        raise ValueError(f"it may not hold {', '.join(bad[:5])}")
    entries = [entry.key for entry in model.metadata_props]
    if len(set(entries)) != len(entries):
        raise ValueError("a metadata entry occurs twice")
    card = DriftCard.parse({entry.key: entry.value for entry in model.metadata_props})
    found = [signature(value) for value in (*model.graph.input, *model.graph.output)]
    wanted = [*input_signatures(card.form), (DRIFT, TensorProto.FLOAT, [None])]
    if found != wanted:
        raise ValueError(f"inputs and outputs are {found}; its metadata asks for {wanted}")
    return card
