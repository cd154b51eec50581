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
from pipelines.core.files import atomic_directory, atomic_path
from pipelines.core.fingerprints import code_hash, own_code_of, params_hash
from pipelines.data.prepared import load_card, load_split
from pipelines.drift.fit_drift import fit
from pipelines.export.triton import write_repository
from pipelines.systems.onnx.category_inputs import take_texts
from pipelines.systems.onnx.metadata import (
    IMAGES,
    LARGEST_FILE,
    NUMBERS,
    OnnxMetadata,
    require_fit,
)
from pipelines.systems.onnx.serialise import to_bytes
from pipelines.tasks.form import Form
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task
from pipelines.training.network import NetworkSpec, load, save_plain

LARGEST_BATCH = 4096
_EXAMPLE_BATCH = 2  # with one image the exporter would fix the batch size at one
_REGISTRATION = logging.getLogger("torch.onnx._internal.exporter._registration")


class Released(nn.Module):
    """A folded network for release: examples in, raw outputs and answers out.

    Args:
        network: The folded network.
        task: Makes answers of raw outputs.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw outputs [batch, *output_shape] and answers [batch, …].

        Args:
            given: Images; or, of rows, numbers float64 [batch, numbers] and the codes of categories
                int64 [batch, categories], those of the two that there are.
        """
        raw: Tensor = self.network(self._inputs(given))
        return raw, self.task.answer(raw)

    def _inputs(self, given: tuple[Tensor, ...]) -> Tensor:
        form = self.task.form
        if form.kind == "images":
            return given[0]
        given_at = {column: at for at, column in enumerate((*form.numbers, *form.categories))}
        order = [given_at[column] for column in range(len(form.columns))]
        return torch.cat([part.double() for part in given], dim=1)[:, order]


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
    drift: Path | None = None,
    triton: Path | None = None,
) -> list[str]:
    """Write a trained network as one ONNX file; its weights, drift graph and Triton's folder too.

    Inputs are `images`, uint8 [batch, channels, size, size], normalised inside the graph; or, of a
    table, `numbers` double [batch, numbers] and `categories` string [batch, categories]. Outputs
    are the task's raw outputs and answers, of a classifier `logits` and `probabilities` float32
    [batch, classes]. The metadata are an `OnnxMetadata`.

    Args:
        trained: Output of `train`.
        prepared: Output of `prepare`; without `drift` only its data card is read.
        params: For the opset and the hash of the parameters.
        root: The checkout whose sources are hashed.
        out: The file, replaced atomically.
        weights: File of the plain weights, safetensors, from which another training can start;
            the exporter folds batch normalisation away, so the ONNX file does not hold them all.
        drift: File of the drift graph, see `pipelines.drift.fit_drift`; empty if none can be made.
        triton: Folder that becomes a model repository for Triton, with the file as version 1.

    Returns:
        Warnings: why there is no drift graph.

    Raises:
        UserError: If the network does not fit the data, or is too large for one ONNX file.
    """
    spec, network = load(trained)
    data = load_card(prepared)
    require_fit(trained, spec, prepared, data, "train")
    task = task_of(spec.form, root)
    hashes = data.data_hash, params_hash(params), code_hash(root, own_code_of(params))
    plain = folded(network)
    content = onnx_bytes(plain, task, metadata(spec, task, *hashes), params.export.opset)
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    if weights is not None:
        save_plain(plain, spec.form.classes, weights)
    if triton is not None:
        with atomic_directory(triton) as folder:
            write_repository(folder, params.model_name, out, 1, spec.form.classes)
    return [] if drift is None else _export_drift(content, prepared, drift)


def _export_drift(model: bytes, prepared: Path, out: Path) -> list[str]:
    """Write the drift graph of a model, or an empty file; return why it is empty."""
    train = load_split(prepared, "train")
    held_out = [load_split(prepared, name).inputs for name in ("validation", "gate")]
    warnings, content = [], b""
    try:
        content = fit(model, train, held_out)
    except Exception as error:  # an odd network must not hold up the release of a good model
        said = " ".join(str(error).split())[:300]
        warnings.append(f"no drift graph, drift will not be scored: {said}")
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    return warnings


def metadata(
    spec: NetworkSpec, task: Task, data_hash: str, params_hash: str, code_hash: str
) -> OnnxMetadata:
    """Return what the file of a network says about itself."""
    return OnnxMetadata(
        spec.form, task.outputs, spec.output_shape, data_hash, params_hash, code_hash
    )


def onnx_bytes(plain: nn.Module, task: Task, card: OnnxMetadata, opset: int) -> bytes:
    """Return a plain network as the bytes of one ONNX file.

    Args:
        plain: Maps examples as the data hold them to raw outputs.
        task: Makes answers of raw outputs.
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
    form = card.form
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with _quiet():
        program = torch.onnx.export(
            Released(plain, task).eval(),
            tuple(_example(form, name) for name in card.inputs),
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in card.inputs),),
            input_names=list(card.inputs),
            output_names=list(card.outputs),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only the exporter without dynamo returns None
    model = program.model_proto
    if form.categories:
        take_texts(model, [form.columns[at] for at in form.categories])
    return to_bytes(model, card.metadata())


def _example(form: Form, name: str) -> Tensor:
    """Return examples of one input, for the exporter."""
    if name == IMAGES:
        pixels = torch.uint8 if form.bits == 8 else torch.uint16
        return torch.zeros(_EXAMPLE_BATCH, *form.input_shape, dtype=pixels)
    if name == NUMBERS:
        return torch.zeros(_EXAMPLE_BATCH, len(form.numbers), dtype=torch.float64)
    return torch.zeros(_EXAMPLE_BATCH, len(form.categories), dtype=torch.int64)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's note that torchvision is missing, and two warnings of no concern."""
    level = _REGISTRATION.level
    _REGISTRATION.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
            )
            # Of a table both inputs have the one batch, which is what is meant.
            warnings.filterwarnings("ignore", r".*The axis name: batch will not be used")
            yield
    finally:
        _REGISTRATION.setLevel(level)
