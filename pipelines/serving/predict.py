"""Answers for image files and tables, read exactly as the training data were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.files import atomic_path
from pipelines.data.card import image
from pipelines.data.images import decode
from pipelines.data.read_rows import read_rows
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.form import CLASSIFICATION, RECONSTRUCTION, Form
from pipelines.tasks.named import task_of

_BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """The model's answer for one image, or one row of a table.

    Attributes:
        path: The file.
        name: The path; of a row `FILE:LINE`.
        label: The likeliest class; empty where nothing is classified.
        probability: Its probability; None where nothing is classified.
        top: The likeliest classes with their probabilities, likeliest first.
        values: What else the task says: the predicted numbers by name.
        error: Of a reconstruction, the share of the pixels' variance that it misses.
        answer: The answer itself, as the released file gives it, without the batch's axis.
    """

    path: Path
    name: str
    label: str
    probability: float | None
    top: tuple[tuple[str, float], ...]
    values: Mapping[str, Any]
    error: float | None
    answer: NDArray[Any]


def predict(
    model: OnnxModel, files: Sequence[Path], *, top: int = 3, checkout: Path
) -> list[Prediction]:
    """Ask a model about files.

    Args:
        model: The released model; its form says what it takes.
        files: Images; or tables, every row of which is answered. In the order of the answers.
        top: Classes to name for each example, at most those there are.
        checkout: A path in the checkout that holds the code of the user's own task, if any.

    Raises:
        UserError: Naming the first file that cannot be read.
    """
    task, found = task_of(model.form, checkout), []
    for paths, names, inputs in _read(files, model.form):
        answers = model.answers(inputs)
        errors: NDArray[Any] | None = None
        if model.form.task == RECONSTRUCTION:
            errors = task.errors(answers, np.zeros((len(inputs), 0)), inputs)
        for at, answer in enumerate(answers):
            said = task.told(answer, top)
            likely = tuple(said.items()) if model.form.task == CLASSIFICATION else ()
            found.append(
                Prediction(
                    path=paths[at],
                    name=names[at],
                    label=likely[0][0] if likely else "",
                    probability=likely[0][1] if likely else None,
                    top=likely,
                    values={} if likely else said,
                    error=None if errors is None else float(errors[at]),
                    answer=answer,
                )
            )
    return found


def _read(
    files: Sequence[Path], form: Form
) -> Iterator[tuple[list[Path], list[str], NDArray[Any]]]:
    """Yield the examples of files, some at a time: paths, names, inputs [n, …]."""
    if form.kind == "rows":
        for path in files:
            rows, names = read_rows(path, form)
            yield [path] * len(rows), names, rows
        return
    for start in range(0, len(files), _BATCH):
        paths = list(files[start : start + _BATCH])
        decoded = [
            decode(path, size=form.size, channels=form.channels, bits=form.bits) for path in paths
        ]
        yield paths, [str(path) for path in paths], np.stack(decoded)


def save_images(answers: Sequence[Prediction], form: Form, folder: Path) -> list[Path]:
    """Write reconstructed images as PNG files, named after the files they came from.

    Args:
        answers: Of a reconstruction.
        form: Of the model.
        folder: Made if absent.

    Returns:
        The files, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, one in enumerate(answers):
        target = folder / f"{number:04d}-{one.path.stem}.png"
        pixels = np.rint(one.answer).astype(form.dtype)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            image(pixels).save(file, format="PNG")
        written.append(target)
    return written
