"""A released model whose products run on 8-bit integers, with the inputs and outputs it had."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from pipelines.systems.onnx.inner_nodes import inner_nodes, name_nodes
from pipelines.systems.onnx.model_file import load, parse
from pipelines.systems.onnx.serialise import to_bytes

QUANTISED = (
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gemm"),
    *("GlobalAveragePool", "MatMul", "MaxPool", "Mul", "Relu", "Reshape", "Transpose"),
)
"""Operators that are given 8-bit values: products, and what stands between them."""


class _Given(CalibrationDataReader):  # type: ignore[misc]
    """Hands over batches of examples, once."""

    def __init__(self, batches: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by input; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


def quantised(content: bytes, batches: Iterable[Mapping[str, NDArray[Any]]]) -> bytes:
    """Return a model in 8-bit integers, quantised statically, in the QDQ form.

    Weights have a scale for each output channel, activations one for each tensor, by the least and
    largest value that the examples bring about. Weights take 7 bits: so no sum of two products is
    cut off on processors without VNNI, and every machine answers the same.

    Args:
        content: A released model.
        batches: Examples, by input; at least one batch.

    Raises:
        ValueError: If the bytes are no model, or it has no product to quantise.
    """
    model = parse(content)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    name_nodes(model.graph)
    inner = inner_nodes(model)
    if not inner:
        raise ValueError("it multiplies by no weights: there is nothing to quantise")
    with TemporaryDirectory(prefix="prong-quantise-") as folder, _quiet():
        out = Path(folder) / "model.onnx"
        quantize_static(
            model,
            out,
            _Given(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(QUANTISED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=inner,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                # Raw outputs in 256 levels would tie.
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            },
        )
        found = load(out)
    return to_bytes(found, metadata)


class _quiet:
    """Keeps the root logger still: the quantiser advises steps that an export has no need of."""

    def __enter__(self) -> None:
        self._level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self._level)


def batches_of(given: Mapping[str, NDArray[Any]], size: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield examples in batches.

    Args:
        given: Input → [n, …].
        size: Of a batch, at least 1.
    """
    count = len(next(iter(given.values())))
    for start in range(0, count, size):
        yield {name: values[start : start + size] for name, values in given.items()}
