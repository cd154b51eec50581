"""What a released ONNX file says about itself: only what determines its bytes.

Commit, time and run id belong to the registry, so that equal inputs give equal files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from pipelines.core.errors import UserError
from pipelines.tasks.classification import Classification
from pipelines.tasks.form import CLASSIFICATION, Form

CLASSIFIER = Classification.outputs
"""Names of a classifier's outputs."""
FORMATS = (1, 2)
"""Versions of these metadata. 1: a classifier of 8-bit images, with one entry for each fact. 2:
anything else, with all that is said of inputs and answers in one entry."""
IMAGES, NUMBERS, CATEGORIES = "images", "numbers", "categories"
"""Names of a released file's inputs: one of images, or those of a row."""
LAYOUT = "uint8 NCHW 0..255"
LARGEST_FILE = 2**31 - 1
"""Bytes: protobuf's own limit, beyond which weights must lie outside the file."""
_HASHES = ("data_hash", "params_hash", "code_hash")
_FLAT = ("classes", "size", "channels", "mean", "deviation")
_TEXT = ("layout", *_HASHES)


def input_names(form: Form) -> tuple[str, ...]:
    """Return the names of the inputs of a released file for data of this form."""
    if form.kind == "images":
        return (IMAGES,)
    named = {NUMBERS: form.numbers, CATEGORIES: form.categories}
    return tuple(name for name, columns in named.items() if columns)


@dataclass(frozen=True)
class OnnxMetadata:
    """The metadata of one ONNX file.

    Attributes:
        form: Inputs and answers. What a network needs of it is inside the graph as well.
        outputs: Names of the graph's outputs: raw outputs and answers.
        output_shape: Shape of the raw output for one input.
        data_hash: Hash of the prepared data, their targets and splits.
        params_hash: See `pipelines.core.fingerprints.params_hash`.
        code_hash: See `pipelines.core.fingerprints.code_hash`.
    """

    form: Form
    outputs: tuple[str, str]
    output_shape: tuple[int, ...]
    data_hash: str
    params_hash: str
    code_hash: str

    def __post_init__(self) -> None:
        wrong = self.form.problems()
        if len(set(self.outputs)) != 2 or not all(self.outputs):
            wrong.append("outputs: two different names are needed")
        if not self.output_shape or not all(1 <= n < 2**31 for n in self.output_shape):
            wrong.append("output_shape: one or several positive numbers are needed")
        for name in _HASHES:
            value = getattr(self, name)
            if not re.fullmatch(r"[0-9a-f]{64}", value):
                wrong.append(f"{name} = {value!r}: must be a sha256 in hex")
        if self._old and self._shaped != (CLASSIFIER, (len(self.classes),)):
            wrong.append(f"outputs and output_shape must be those of {len(self.classes)} classes")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def _old(self) -> bool:
        """Whether it is written in format 1."""
        form = self.form
        return form.task == CLASSIFICATION and form.kind == "images" and form.bits == 8

    @property
    def _shaped(self) -> tuple[tuple[str, str], tuple[int, ...]]:
        return self.outputs, self.output_shape

    @property
    def format(self) -> int:
        """Version of the metadata."""
        return 1 if self._old else 2

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the label."""
        return self.form.classes

    @property
    def size(self) -> int:
        """Edge of square images, pixels; 0: rows."""
        return self.form.size

    @property
    def channels(self) -> int:
        """Of images; 0: rows."""
        return self.form.channels

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return input_names(self.form)

    def metadata(self) -> dict[str, str]:
        """Return the card as ONNX metadata: text as it is, all else as JSON, by sorted name."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _HASHES}
        values["format"] = self.format
        form = asdict(self.form)
        if self._old:
            values |= {name: form[name] for name in _FLAT} | {"layout": LAYOUT}
        else:
            values |= {"form": form, "outputs": self.outputs, "output_shape": self.output_shape}
        return {
            key: value if key in _TEXT else json.dumps(value, ensure_ascii=False)
            for key, value in sorted(values.items())
        }

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> OnnxMetadata:
        """Return the card that ONNX metadata holds.

        Raises:
            ValueError: If an entry is missing, unknown, malformed or out of range.
        """
        known = [str(number) for number in FORMATS]
        if metadata.get("format", "") not in known:
            if "format" not in metadata:
                raise ValueError("metadata missing: format")
            raise ValueError(f"format {metadata['format']} is unknown; known: {', '.join(known)}")
        old = metadata["format"] == "1"
        more = (*_FLAT, "layout") if old else ("form", "outputs", "output_shape")
        names = (*more, *_HASHES, "format")
        missing = [name for name in names if name not in metadata]
        unknown = sorted(set(metadata) - set(names))
        if missing or unknown:
            wrong = {"missing": missing, "unknown": unknown}
            raise ValueError(
                "; ".join(
                    f"metadata {kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys
                )
            )
        values: dict[str, Any]
        try:
            values = {k: v if k in _TEXT else json.loads(v) for k, v in metadata.items()}
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"an entry is not JSON: {error}") from None
        del values["format"]
        if old:
            if values.pop("layout") != LAYOUT:
                raise ValueError(f"layout {metadata['layout']!r} is unknown; known: {LAYOUT}")
            values["form"] = {name: values.pop(name) for name in _FLAT} | {"task": CLASSIFICATION}
            classes = values["form"]["classes"]
            count = len(classes) if isinstance(classes, list) else 0
            values |= {"outputs": CLASSIFIER, "output_shape": [count]}
        try:
            # As JSON, where strict still lets a list become a tuple.
            card = _ADAPTER.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"] if part != "form")
            raise ValueError(f"{where}: {found['msg']}" if where else found["msg"]) from None
        if str(card.format) != metadata["format"]:
            raise ValueError(f"format {metadata['format']}: such a model has format {card.format}")
        return card


_ADAPTER = TypeAdapter(OnnxMetadata)


class Described(Protocol):
    """Data, a network or a released model, by what goes in and what the answers mean."""

    @property
    def form(self) -> Form:
        """Inputs and answers."""


def require_fit(made: Path, ours: Described, source: Path, theirs: Described, stage: str) -> None:
    """Check that what a stage made belongs to what it is used with.

    Args:
        made: Where `ours` was read.
        ours: What the stage made.
        source: Where `theirs` was read.
        theirs: What it should have been made from.
        stage: The stage that makes `made`.

    Raises:
        UserError: If inputs or answers differ.
    """
    for field in fields(Form):
        one, other = getattr(ours.form, field.name), getattr(theirs.form, field.name)
        if one != other and field.name not in ("mean", "deviation"):
            short = isinstance(one, tuple)
            shown = f"{len(one)} and {len(other)}" if short else f"{one} and {other}"
            raise UserError(
                f"{made} and {source} differ in {field.name} ({shown}): not made from each other; "
                f"rerun {stage}"
            )
