"""Compares whitened network, folded network and ONNX Runtime on real examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.core.config import VerifyConfig
from pipelines.core.errors import UserError
from pipelines.core.files import write_json
from pipelines.data.prepared import load_split
from pipelines.export.to_onnx import folded
from pipelines.systems.onnx.metadata import require_fit
from pipelines.systems.onnx.runtime import BATCHES, VERSION, OnnxModel
from pipelines.tasks.form import CLASSIFICATION
from pipelines.training.network import load

Answer = Callable[[NDArray[Any], int], NDArray[np.float32]]
"""Function of inputs as the data hold them, and of a batch, that returns raw outputs [n, …]."""


@dataclass(frozen=True)
class Parity:
    """Two networks on the same examples at one batch.

    Attributes:
        first: Name of the first network.
        second: Name of the second network.
        batch: Examples per call.
        images: Examples compared.
        difference: Largest difference of raw outputs, relative to the largest of the first.
        ties: Examples whose labels differ while the two largest logits of the first network are
            closer than the limit: both labels are accepted. 0 where nothing is classified.
        labels: Other examples whose labels differ.
    """

    first: str
    second: str
    batch: int
    images: int
    difference: float
    ties: int
    labels: int


def verify(
    trained: Path, prepared: Path, onnx: Path, config: VerifyConfig, out: Path
) -> dict[str, Any]:
    """Compare the three networks on real test examples, at every batch of `BATCHES`.

    The torch networks run on the CPU in float32, ONNX Runtime on its provider without TF32.

    Args:
        trained: Output of `train`.
        prepared: Output of `prepare`.
        onnx: Output of `export`.
        config: Provider, limit and number of examples.
        out: JSON file for the returned values; written only if no difference exceeds the limit.

    Returns:
        `largest_difference`, `limit`, `images`, `ties`, `provider` (the one that ran),
        `onnxruntime` (its version), `sha256` (of the ONNX file) and `comparisons`.

    Raises:
        UserError: If two networks differ by more than the limit or in a label, if the file does not
            belong to this network, or if the requested provider is absent.
    """
    spec, network = load(trained)
    model = OnnxModel.load(onnx, config.provider, asked="verify.provider")
    require_fit(onnx, model.card, trained, spec, "export")
    inputs = load_split(prepared, "test").inputs[: config.images].copy()
    if not len(inputs):
        raise UserError(f"{prepared}: the test split is empty; raise data.test")
    comparisons = compare(
        {
            "whitened": torch_answer(network),
            "folded": torch_answer(folded(network)),
            "onnx": lambda asked, batch: model.raw(asked, batch=batch),
        },
        inputs,
        config.limit,
        labels=spec.form.task == CLASSIFICATION,
    )
    where = f"ONNX Runtime {VERSION} on {model.provider}, {len(inputs)} examples"
    # Not `>`: NaN must fail too.
    if not all(c.difference <= config.limit and c.labels == 0 for c in comparisons):
        raise UserError(
            f"{onnx}: the networks disagree; verify.limit = {config.limit:g} ({where})\n"
            + table(comparisons)
        )
    result = {
        "largest_difference": max(c.difference for c in comparisons),
        "limit": config.limit,
        "images": len(inputs),
        "ties": sum(c.ties for c in comparisons),
        "provider": model.provider,
        "onnxruntime": VERSION,
        "sha256": model.sha256,
        "comparisons": [asdict(c) for c in comparisons],
    }
    write_json(out, result)
    return result


def compare(
    networks: Mapping[str, Answer], inputs: NDArray[Any], limit: float, *, labels: bool
) -> list[Parity]:
    """Compare every pair of networks at every batch of `BATCHES`.

    Args:
        networks: Name → function that returns raw outputs.
        inputs: As the data hold them, [n, …], n ≥ 1; repeated where n is below a batch.
        limit: Two logits that differ by less, relative to the largest logit, count as tied.
        labels: Whether raw outputs are logits, whose order decides.
    """
    found = []
    for batch in BATCHES:
        asked = inputs[np.arange(max(len(inputs), batch)) % len(inputs)]
        raw = {name: answer(asked, batch) for name, answer in networks.items()}
        for first, second in combinations(networks, 2):
            one, other = raw[first], raw[second]
            scale = max(float(np.abs(one).max()), float(np.finfo(np.float32).tiny))
            ties = wrong = 0
            if labels:
                differ = one.argmax(1) != other.argmax(1)
                best = np.sort(one, axis=1)[:, -2:]
                tied = best[:, -1] - best[:, 0] < limit * scale
                ties, wrong = int((differ & tied).sum()), int((differ & ~tied).sum())
            found.append(
                Parity(
                    first=first,
                    second=second,
                    batch=batch,
                    images=len(inputs),
                    difference=float(f"{np.abs(one - other).max() / scale:.3g}"),
                    ties=ties,
                    labels=wrong,
                )
            )
    return found


def table(comparisons: list[Parity]) -> str:
    """Return the comparisons as lines of text."""
    lines = [f"{'pair':<20} {'batch':>5} {'difference':>11} {'labels':>7} {'ties':>5}"]
    for c in comparisons:
        pair = f"{c.first} – {c.second}"
        lines.append(f"{pair:<20} {c.batch:>5} {c.difference:>11.2e} {c.labels:>7} {c.ties:>5}")
    return "\n".join(lines)


def torch_answer(network: nn.Module) -> Answer:
    """Return a function of inputs and batch that returns a torch network's raw outputs."""

    def answer(inputs: NDArray[Any], batch: int) -> NDArray[np.float32]:
        tensor = torch.from_numpy(inputs)
        with torch.inference_mode():
            parts = [network(tensor[at : at + batch]) for at in range(0, len(inputs), batch)]
            return torch.cat(parts).numpy()

    return answer
