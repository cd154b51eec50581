"""What a drift graph says about itself, and the strict parser of it.

A drift graph is the ONNX file beside a released model that scores how far an input lies from the
training data. Only what determines its bytes is in it, so that equal inputs give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from pipelines.tasks.form import Form

DRIFT = "drift"
"""Name of the graph's only output, float32 [batch], and of the only entry of its metadata."""
MOST_EXAMPLES = 1000
"""Held-out examples whose scores and answers are kept."""
MOST_ANSWERS = 64
"""Numbers of an answer that are kept: the first ones. None of answers that are images."""
MOST_TEXT = 32 * 2**20
"""Characters of the metadata."""
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Share = Annotated[float, Field(ge=0, le=1)]
_Answer = Annotated[tuple[_Finite, ...], Field(max_length=MOST_ANSWERS)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class DriftCard:
    """The metadata of one drift graph.

    Attributes:
        method: The score that was chosen, such as `layers + softmax`.
        form: Inputs and answers of the model that it belongs to.
        data_hash: Of the prepared data that it was fitted on.
        model_sha256: Of the model's ONNX file.
        auroc: Synthetic shift of the held-out examples → AUROC of the chosen score against them.
        candidates: Score → its mean AUROC over the shifts; the choice was made among them.
        reference_scores: Of held-out examples, at most 1,000, not sorted.
        reference_answers: What the model answers to the same examples: the first 64 numbers of
            each, flattened; empty where answers are images.
        reference_labels: Places of its answers' classes; empty where nothing is classified.
        threshold: A score that 5 % of the held-out examples exceed.
        format: Of these metadata.
    """

    method: _Name
    form: Form
    data_hash: _Sha256
    model_sha256: _Sha256
    auroc: Annotated[dict[_Name, _Share], Field(max_length=50)]
    candidates: Annotated[dict[_Name, _Share], Field(max_length=50)]
    reference_scores: Annotated[tuple[_Finite, ...], Field(min_length=1, max_length=MOST_EXAMPLES)]
    reference_answers: Annotated[tuple[_Answer, ...], Field(max_length=MOST_EXAMPLES)]
    reference_labels: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=MOST_EXAMPLES)
    ]
    threshold: _Finite
    format: Annotated[int, Field(ge=1, le=1)] = 1

    def metadata(self) -> dict[str, str]:
        """Return the card as ONNX metadata: one entry, JSON."""
        values = _ADAPTER.dump_python(self, mode="json")
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return {DRIFT: text}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> DriftCard:
        """Return the card that ONNX metadata holds.

        Raises:
            ValueError: If an entry is missing, unknown, malformed or out of range.
        """
        if set(metadata) != {DRIFT}:
            raise ValueError(f"its metadata must have one entry, {DRIFT!r}")
        if len(metadata[DRIFT]) > MOST_TEXT:
            raise ValueError(f"its metadata are longer than {MOST_TEXT} characters")
        try:
            card = _ADAPTER.validate_json(metadata[DRIFT])
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"])
            raise ValueError(f"{where}: {found['msg']}" if where else found["msg"]) from None
        wrong = card.form.problems()
        count, classes = len(card.reference_scores), len(card.form.classes)
        if len(card.reference_answers) not in (0, count):
            wrong.append("reference_answers: one for each of reference_scores is needed, or none")
        if len({len(answer) for answer in card.reference_answers}) > 1:
            wrong.append("reference_answers: all must have the same length")
        if len(card.reference_labels) != (count if classes else 0):
            wrong.append("reference_labels: one for each score of a classifier, else none")
        if any(label >= classes for label in card.reference_labels):
            wrong.append(f"reference_labels: must be 0 to {classes - 1}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return card


_ADAPTER = TypeAdapter(DriftCard)
