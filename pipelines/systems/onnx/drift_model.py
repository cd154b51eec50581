"""A drift graph in ONNX Runtime: how far inputs lie from a model's training data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.systems.onnx.drift_card import DRIFT, DriftCard
from pipelines.systems.onnx.drift_file import read_drift
from pipelines.systems.onnx.runtime import fed  # it turns telemetry off
from pipelines.tasks.form import Form

# isort: split
import onnxruntime as ort

__all__ = ["DriftCard", "DriftModel"]


class DriftModel:
    """The drift graph of a released model, on the CPU.

    Attributes:
        card: What the file says about itself.
        sha256: Of the file.
    """

    def __init__(self, session: Any, card: DriftCard, sha256: str) -> None:
        self._session = session
        self.card = card
        self.sha256 = sha256

    def __repr__(self) -> str:
        return f"DriftModel({self.card.method}, sha256 {self.sha256[:12]})"

    @property
    def form(self) -> Form:
        """Inputs and answers of the model that it belongs to."""
        return self.card.form

    @classmethod
    def load(cls, path: Path, *, model: str = "", threads: int = 1) -> DriftModel:
        """Check a drift graph, load it, and try it on one blank input.

        Args:
            path: The ONNX file.
            model: sha256 of the model's file that it must belong to; empty: any.
            threads: That share one operator.

        Raises:
            UserError: If the file is unreadable, not one whole drift graph of this project, refers
                to files outside itself, uses an operator that is not allowed, belongs to another
                model, or cannot be run.
        """
        content, card = read_drift(path)
        if model and card.model_sha256 != model:
            raise UserError(
                f"{path}: belongs to another model: sha256 {card.model_sha256}, not {model}"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        try:
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # those of ONNX Runtime have no base class of their own
            raise UserError(f"{path}: ONNX Runtime cannot load it: {_told(error)}") from None
        found = cls(session, card, hashlib.sha256(content).hexdigest())
        if not np.isfinite(found.scores(np.zeros((1, *card.form.input_shape), card.form.dtype))):
            raise UserError(f"{path}: its score of a blank input is not finite")
        return found

    def scores(self, inputs: NDArray[Any], *, batch: int = 256) -> NDArray[np.float64]:
        """Return how far inputs lie from the training data, [n]; larger is further.

        Args:
            inputs: As the data hold them (`Form.dtype`, [n, *input_shape]); rows by the columns of
                the model's form.
            batch: Inputs per call of the runtime.

        Raises:
            UserError: If type or shape do not fit the model, or the runtime fails (memory, say).
        """
        form = self.form
        if inputs.dtype != form.dtype or inputs.shape[1:] != form.input_shape or not inputs.ndim:
            shape = ", ".join(map(str, form.input_shape))
            raise UserError(
                f"inputs are {inputs.dtype} {list(inputs.shape)}; "
                f"the drift graph takes {form.dtype} [n, {shape}]"
            )
        found = np.empty(len(inputs), np.float64)
        for start in range(0, len(inputs), batch):
            given = fed(form, inputs[start : start + batch])
            try:
                (part,) = self._session.run([DRIFT], given)
            except Exception as error:  # those of ONNX Runtime have no base class of their own
                raise UserError(f"ONNX Runtime stopped: {_told(error)}") from None
            found[start : start + batch] = part
        return found


def _told(error: Exception) -> str:
    return " ".join(str(error).split())
