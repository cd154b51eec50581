"""The spectrally truncated variant: as few whitened units a layer as the margin of error allows.

A whitened layer's units are uncorrelated, so the spectrum of its weights in whitened coordinates
says what dropping each costs (`prong.compress`). Layer after layer, the largest truncation is taken
with which the rise of the error, as estimated on validation and training examples (the upper 95 %
bound), stays within half of `gates.margin`. Layers that would not get much smaller stay as they
are. All of it is computed in float64 on one thread and rounded once, so that equal networks give
equal bytes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

import prong
from pipelines.core.errors import UserError
from pipelines.data.prepared import Split, load_split
from pipelines.drift.estimates import one_thread
from pipelines.evaluation.scoring import fitted
from pipelines.export.to_onnx import folded, onnx_bytes
from pipelines.registry.start_weights import released_weights
from pipelines.systems.onnx.model_file import opset
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task
from pipelines.training.network import BODY, describe, load, plain
from pipelines.variants.approximated import NotMade, VariantBase

TOLERANCES = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
"""Relative errors of a layer's output that are tried, the largest first."""
SAMPLES = 2000
"""Training examples for the spectra."""
_BATCH = 250
_WORTH = 0.02
"""Share of all weights below which a layer is not looked at."""
_LESS = 0.75
"""Largest share of a layer's multiply-adds that may be left: two thin layers cost a call more."""
_SURE = 0.5
"""Share of the margin that the estimate may use up: what is chosen by an estimate is a little worse
than it looks."""
_PROBED = 32  # examples by which a network is known to be the champion's


def truncated(base: VariantBase) -> tuple[bytes, str]:
    """Return the truncated variant of a champion, and how it was made, in one line.

    Args:
        base: The champion.

    Raises:
        NotMade: If its network is not at hand, has no layer that can be truncated, or no
            truncation stays within the margin.
    """
    network = champions_network(base)
    task = task_of(base.card.form, base.layout.root)
    split, inputs = _estimated_on(base)
    before = _errors(network, task, split, inputs)
    margin = _SURE * base.params.gates.margin

    def stays(smaller: nn.Module) -> bool:
        return task.rise(_errors(smaller, task, split, inputs), before) <= margin

    with one_thread():
        smaller, ranks = lower_ranks(network, _examples(base), stays)
    if not ranks:
        raise NotMade(
            f"no layer gets much smaller within an estimated rise of the error by {margin:.2%} on "
            f"{len(inputs)} validation and training examples"
        )
    content = onnx_bytes(smaller.float().eval(), task, base.card, opset(base.content))
    return content, f"ranks {', '.join(ranks)}"


def lower_ranks(
    network: nn.Module, examples: Sequence[torch.Tensor], stays: Callable[[nn.Module], bool]
) -> tuple[nn.Module, list[str]]:
    """Return a network of lower rank, layer after layer, as long as it stays good enough.

    The layers with the most weights come first: there the error that is allowed gains the most.
    For each, the largest tolerance is searched by halving, as a smaller one is hardly ever worse.

    Args:
        network: Plain; not changed.
        examples: For the spectra.
        stays: Says of a plain network in float32 whether it is still good enough.

    Returns:
        The network, in float64, and for each layer that got smaller its rank; none if none did.

    Raises:
        NotMade: If no layer can be truncated.
    """
    smaller, ranks = copy.deepcopy(network).double(), []
    for name in _largest_layers(smaller, examples):
        low, high = 0, len(TOLERANCES)  # the largest that holds is TOLERANCES[high], if any
        best = None
        while low < high:
            middle = (low + high) // 2
            tried, (layer,) = _compressed(smaller, examples, TOLERANCES[middle], [name])
            if not _gains(layer):  # a smaller tolerance keeps more units
                high = middle
            elif stays(copy.deepcopy(tried).float().eval()):
                best, high = (tried, layer), middle
            else:
                low = middle + 1
        if best is not None:
            smaller, layer = best
            ranks.append(f"{layer.kept} of {layer.units} ({name.removeprefix(BODY)})")
    return smaller, ranks


def _gains(layer: prong.Compression) -> bool:
    before, after = layer.multiply_adds
    return layer.split and after <= _LESS * before


def _largest_layers(network: nn.Module, examples: Sequence[torch.Tensor]) -> list[str]:
    """Return the names of the layers worth a look, the one with the most weights first."""
    _, layers = _compressed(network, examples, TOLERANCES[0], None)
    total = sum(layer.multiply_adds[0] for layer in layers)
    order = sorted(layers, key=lambda layer: -layer.multiply_adds[0])
    return [one.name for one in order if _gains(one) and one.multiply_adds[0] >= _WORTH * total]


def _compressed(
    network: nn.Module, examples: Sequence[torch.Tensor], tolerance: float, only: list[str] | None
) -> tuple[nn.Module, list[prong.Compression]]:
    with warnings.catch_warnings():  # how much can be truncated is told by the result
        warnings.filterwarnings("ignore", ".*Less than half is whitened", UserWarning)
        try:
            whitened = prong.whiten(copy.deepcopy(network).double(), include=only)
        except ValueError as error:
            raise NotMade(f"no layer can be truncated: {error}") from None
    return prong.compress(whitened, examples, tolerance=tolerance, samples=SAMPLES)


def _estimated_on(base: VariantBase) -> tuple[Split, NDArray[Any]]:
    """Return the examples on which the rise of the error is estimated: never the gate's.

    Validation splits are small; training examples beside them show as well what a truncation
    turns from right to wrong.
    """
    parts = [load_split(base.layout.prepared, name) for name in ("validation", "train")]
    some = slice(SAMPLES)
    train = parts[1]
    parts[1] = Split(train.inputs[some], train.targets[some], train.hashes[some])
    split = Split(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.targets for part in parts]),
        (*parts[0].hashes, *parts[1].hashes),
    )
    if not len(split.inputs):
        raise NotMade("there is no example to estimate the rise of its error on")
    return split, fitted(split.inputs, base.data.form, base.card.form)


def _examples(base: VariantBase) -> list[torch.Tensor]:
    inputs = load_split(base.layout.prepared, "train").inputs[:SAMPLES]
    taken = torch.tensor(fitted(inputs, base.data.form, base.card.form))
    return [taken[at : at + _BATCH] for at in range(0, len(taken), _BATCH)]


def _raw(network: nn.Module, inputs: NDArray[Any]) -> NDArray[np.float32]:
    with torch.inference_mode():
        tensor = torch.from_numpy(inputs)
        parts = [network(tensor[at : at + _BATCH]) for at in range(0, len(inputs), _BATCH)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def _errors(
    network: nn.Module, task: Task, split: Split, inputs: NDArray[Any]
) -> NDArray[np.float64]:
    raw = _raw(network, inputs)
    return np.asarray(task.score(raw, split.targets, split.inputs), dtype=np.float64)


def champions_network(base: VariantBase) -> nn.Module:
    """Return the plain torch network that the champion's file was exported from.

    It is the one trained in this checkout, or that of the parameters with the weights that were
    released with the champion; whichever answers as the champion's file does.

    Args:
        base: The champion.

    Raises:
        NotMade: If neither does.
    """
    probe = load_split(base.layout.prepared, "train").inputs[:_PROBED]
    taken = fitted(probe, base.data.form, base.card.form)
    wanted = OnnxModel.load(base.path, "cpu").raw(taken)
    reasons: list[str] = []
    for find in (_trained_here, _released):
        try:
            network = find(base)
        except UserError as error:
            reasons.append(str(error))
            continue
        found = _raw(network, taken)
        if found.shape == wanted.shape and _close(found, wanted, base.params.gates.parity):
            return network
        reasons.append(f"{_WHERE[find.__name__]} is another one")
    raise NotMade(f"the network behind the champion is not at hand: {_told(reasons)}")


def _close(found: NDArray[Any], wanted: NDArray[Any], parity: float) -> bool:
    scale = max(float(np.abs(wanted).max()), float(np.finfo(np.float32).tiny))
    return bool(np.abs(found - wanted).max() <= parity * scale)


def _told(reasons: Sequence[str]) -> str:
    return "; ".join(reasons)


_WHERE = {
    "_trained_here": "the one trained in this checkout",
    "_released": "that of the parameters, with the champion's weights,",
}


def _trained_here(base: VariantBase) -> nn.Module:
    return folded(load(base.layout.trained)[1])


def _released(base: VariantBase) -> nn.Module:
    path: Path = released_weights(base.layout, base.statement)
    spec = describe(base.params.train, base.data, base.layout.root)
    network = plain(spec, base.layout.root)
    try:
        network.load_state_dict(load_file(path), strict=True)
    except RuntimeError:
        raise UserError("train.* of params.yaml describes another network") from None
    return network.eval()
