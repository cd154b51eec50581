"""One example, layer by layer: the output of each layer of the trained network.

It helps to find out why a network gave an answer, and whether training, fold or export is the
cause. The whitened network, the folded network and the ONNX file process the same example.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.core import tables
from pipelines.data.images import decode
from pipelines.data.read_rows import read_rows
from pipelines.export.to_onnx import folded
from pipelines.systems.onnx.metadata import require_fit
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.form import Form
from pipelines.training.network import BODY, load

INPUT = "input"


@dataclass(frozen=True)
class Step:
    """The output of one layer.

    Attributes:
        layer: Its name in the network; `onnx` for the answer of ONNX Runtime.
        kind: Its class in the trained network.
        shape: Of its output, without the batch.
        mean: Of its output's values.
        deviation: Standard deviation of them.
        smallest: Smallest value.
        largest: Largest value.
        zeros: Share of values that are exactly zero; for a ReLU, its inactive units.
        difference: Largest difference from the whitened network's same layer, relative to that
            layer's largest value; for `onnx`, from the raw output.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    mean: float
    deviation: float
    smallest: float
    largest: float
    zeros: float
    difference: float


@dataclass(frozen=True)
class Trace:
    """The outputs of all layers for one example.

    Attributes:
        steps: In the order of computation, from the input as the data hold it to ONNX Runtime's
            raw output.
        raw: The whitened network's raw output by name: a logit by class, or a value; empty where
            the output is an image.
    """

    steps: tuple[Step, ...]
    raw: dict[str, float]


def _walk(network: nn.Module, inputs: Tensor) -> dict[str, tuple[str, Tensor]]:
    """Return the output of each layer without layers of its own: name → (class, output)."""
    found: dict[str, tuple[str, Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim:  # else nothing to compare
                found[name] = (type(module).__name__, output.detach().clone())

        return hook

    handles = [
        module.register_forward_hook(remember(name.removeprefix(BODY)))
        for name, module in network.named_modules()
        if name and not any(module.children())
    ]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _step(layer: str, kind: str, value: NDArray[Any], other: NDArray[Any] | None) -> Step:
    values = value.astype(np.float64)
    apart = 0.0 if other is None else float(np.abs(values - other).max())
    return Step(
        layer=layer,
        kind=kind,
        shape=tuple(value.shape[1:]),
        mean=float(values.mean()),
        deviation=float(values.std()),
        smallest=float(values.min()),
        largest=float(values.max()),
        zeros=float((values == 0).mean()),
        difference=apart / max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny)),
    )


def trace(trained: Path, onnx: Path, example: Path) -> Trace:
    """Follow one example through the whitened network, the folded one and the ONNX file.

    Args:
        trained: Output of `train`.
        onnx: Output of `export`, of the same network.
        example: An image file, or a table whose first row is followed.

    Raises:
        UserError: If a file is absent or damaged, or the ONNX file is of another network.
    """
    spec, network = load(trained)
    model = OnnxModel.load(onnx, "cpu")
    require_fit(onnx, model.card, trained, spec, "export")
    given = read_example(example, spec.form)
    inputs = torch.from_numpy(given)
    white = _walk(copy.deepcopy(network), inputs)
    plain = _walk(folded(network), inputs)
    steps = [_step(INPUT, str(given.dtype), given, None)]
    for name, (kind, output) in white.items():
        other = plain.get(name)
        against = None if other is None else other[1].double().numpy()
        steps.append(_step(name, kind, output.numpy(), against))
    with torch.no_grad():
        raw = network(inputs).numpy()
    steps.append(_step("onnx", model.card.outputs[0], model.raw(given), raw.astype(np.float64)))
    names = spec.form.classes or tuple(value.name for value in spec.form.values)
    named = raw[0] if raw[0].shape == (len(names),) else ()
    return Trace(tuple(steps), dict(zip(names, map(float, named), strict=False)))


def read_example(path: Path, form: Form) -> NDArray[Any]:
    """Return one example of a file as the data hold it, [1, …].

    Raises:
        UserError: If the file cannot be read as one.
    """
    if form.kind == "images":
        pixels = decode(path, size=form.size, channels=form.channels, bits=form.bits)
        return pixels[None].copy()
    rows: NDArray[Any] = read_rows(path, form)[0]
    return rows[:1]


def show(found: Trace, console: Any) -> None:
    """Print a trace as a table on a rich console."""
    numbers = ("mean", "deviation", "least", "greatest", "zeros", "folded differs")
    rows = []
    for step in found.steps:
        figures = (step.mean, step.deviation, step.smallest, step.largest)
        rows.append(
            (
                step.layer,
                step.kind,
                " × ".join(map(str, step.shape)),
                *(f"{figure:.3f}" for figure in figures),
                f"{step.zeros:.0%}",
                f"{step.difference:.1e}" if step.layer != INPUT else "",
            )
        )
    console.print(tables.table(("layer", "kind", "shape", *numbers), rows, right=numbers))
    likely = sorted(found.raw.items(), key=lambda item: -item[1])[:3]
    if likely:
        said = "  ".join(f"{name} {value:.3f}" for name, value in likely)
        console.print(tables.line(f"raw output  {said}"))
