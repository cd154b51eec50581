"""Folds the whitened layers and writes one ONNX file; equal inputs give equal bytes."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

import prong
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path
from pipelines.core.fingerprints import code_hash, params_hash
from pipelines.data.prepared import load_card
from pipelines.systems.onnx.metadata import INPUT, LARGEST_FILE, OUTPUTS, OnnxMetadata, require_fit
from pipelines.systems.onnx.serialise import to_bytes
from pipelines.training.network import load, save_plain

LARGEST_BATCH = 4096
_EXAMPLE_BATCH = 2  # with one image the exporter would fix the batch size at one
_REGISTRATION = logging.getLogger("torch.onnx._internal.exporter._registration")


class Released(nn.Module):
    """A folded network for release: raw images in, logits and probabilities out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities [batch, classes] of uint8 images."""
        logits: Tensor = self.network(images)
        return logits, logits.softmax(1)


def folded(network: nn.Module) -> nn.Module:
    """Return the plain network (nn.Linear, nn.Conv2d) that computes the same function.

    It is folded in float64 and rounded once, so that the result does not depend on the order of
    summation or the number of threads.

    Args:
        network: As `pipelines.training.network.load` returns it; not changed.
    """
    return prong.fold(copy.deepcopy(network).double()).float().eval()


def export(
    trained: Path,
    prepared: Path,
    params: Params,
    root: Path,
    out: Path,
    weights: Path | None = None,
) -> None:
    """Write a trained network as one ONNX file, and its plain weights beside it.

    Input `images` is uint8 [batch, channels, size, size], normalised inside the graph; outputs
    `logits` and `probabilities` are float32 [batch, classes]. The metadata are an `OnnxMetadata`.

    Args:
        trained: Output of `train`.
        prepared: Output of `prepare`; only its data card is read.
        params: For the opset and the hash of the parameters.
        root: The checkout whose sources are hashed.
        out: The file, replaced atomically.
        weights: File of the plain weights, safetensors, from which another training can start;
            the exporter folds batch normalisation away, so the ONNX file does not hold them all.

    Raises:
        UserError: If the network does not fit the data, or is too large for one ONNX file.
    """
    spec, network = load(trained)
    data = load_card(prepared)
    require_fit(trained, spec, prepared, data, "train")
    card = OnnxMetadata(
        classes=spec.classes,
        size=spec.size,
        channels=spec.channels,
        mean=spec.mean,
        deviation=spec.deviation,
        data_hash=data.data_hash,
        params_hash=params_hash(params),
        code_hash=code_hash(root, spec.network),
    )
    plain = folded(network)
    content = onnx_bytes(plain, card, params.export.opset)
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    if weights is not None:
        save_plain(plain, spec.classes, weights)


def onnx_bytes(plain: nn.Module, card: OnnxMetadata, opset: int) -> bytes:
    """Return a plain network as the bytes of one ONNX file.

    Args:
        plain: Maps uint8 [batch, channels, size, size] to logits [batch, classes].
        card: Becomes the file's metadata.
        opset: Version of the ONNX operators, 18 to 21.

    Raises:
        UserError: If the file would exceed 2 GB, the limit of one ONNX file.
    """
    size = sum(t.numel() * t.element_size() for t in plain.state_dict().values())
    if size > LARGEST_FILE:
        raise UserError(
            f"the network has {size / 2**30:.1f} GiB of weights; the limit of one ONNX file is 2; "
            "lower train.width or train.hidden"
        )
    example = torch.zeros(_EXAMPLE_BATCH, card.channels, card.size, card.size, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with _quiet():
        program = torch.onnx.export(
            Released(plain).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only the exporter without dynamo returns None
    return to_bytes(program.model_proto, card.metadata())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's note that torchvision is missing, and one deprecation warning."""
    level = _REGISTRATION.level
    _REGISTRATION.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
            )
            yield
    finally:
        _REGISTRATION.setLevel(level)
