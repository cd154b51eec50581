"""What a released model takes and gives, as tensors with names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.http.refusal import bad, unfit
from pipelines.serving.http.tensors import BYTES, Tensor, datatype_of
from pipelines.systems.onnx.metadata import CATEGORIES, IMAGES, NUMBERS
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.columns import codes
from pipelines.tasks.form import Form


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one version.

    Attributes:
        form: Inputs and answers, as the project describes them.
        inputs: By the names that the file gives them.
        outputs: Raw outputs, and answers.
        known: What `pipelines.serving.http.protocol` remembers of requests.
    """

    form: Form
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, Tensor]
    known: dict[bytes, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, model: OnnxModel) -> Signature:
        """Ask a model for its signature; what shape its answers have, only an answer tells.

        Raises:
            UserError: If the runtime fails.
        """
        form, card = model.form, model.card
        both = model.both(np.zeros((1, *form.input_shape), form.dtype))
        raw, answers = (
            Tensor(name, datatype_of(array), array.shape[1:])
            for name, array in zip(card.outputs, both, strict=True)
        )
        pixels = "UINT8" if form.bits == 8 else "UINT16"
        known = {
            IMAGES: (pixels, form.input_shape),
            NUMBERS: ("FP64", (len(form.numbers),)),
            CATEGORIES: (BYTES, (len(form.categories),)),
        }
        return cls(form, tuple(Tensor(name, *known[name]) for name in card.inputs), (raw, answers))

    @property
    def numbers(self) -> int:
        """Numbers in all outputs of one example."""
        return sum(output.numbers for output in self.outputs)

    def scored(self, output: int) -> bool:
        """Say whether an output has one score for each class."""
        classes = self.form.classes
        return bool(classes) and self.outputs[output].shape == (len(classes),)

    def examples(self, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return examples as the data hold them.

        Args:
            given: Name of each input → its values [n, …].

        Returns:
            [n, *form.input_shape].

        Raises:
            Refused: If the inputs bring different numbers of examples, or a number is infinite.
        """
        form = self.form
        if form.kind == "images":
            return given[IMAGES]
        counts = {name: len(values) for name, values in given.items()}
        if len(set(counts.values())) != 1:
            raise bad(f"inputs bring different numbers of examples: {counts}")
        rows = np.empty((next(iter(counts.values())), len(form.columns)), np.float64)
        if form.numbers:
            numbers = given[NUMBERS]
            if np.isinf(numbers).any():
                raise unfit(f"input {NUMBERS!r}: a number is infinite; NaN is a missing one")
            rows[:, form.numbers] = numbers
        for place, at in enumerate(form.categories):
            texts = given[CATEGORIES][:, place].tolist()
            rows[:, at] = codes(texts, form.columns[at].categories)
        return rows
