"""ONNX Runtime: a released model, checked before it is loaded and asked on a known device."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

# Else it makes an identity of this machine in the home directory, and reports to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# isort: split
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from pipelines.errors import UserError
from pipelines.metadata import INPUT, LARGEST_FILE, OUTPUTS, ModelCard

__all__ = ["VERSION", "ModelCard", "OnnxModel", "Provider", "Providers", "providers"]

Provider = Literal["auto", "cpu", "cuda"]
VERSION: str = ort.__version__
_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FAILURES = tuple(
    getattr(_state, name)
    for name in (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "RuntimeException",
    )
)
# A provider that fails to load is found out by asking the session; the log would go to stderr.
ort.set_default_logger_severity(4)


class _Broken(Exception):
    """ONNX Runtime does not run the model on the provider asked for."""


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from _graphs(inner)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    nodes = [node for function in model.functions for node in function.node]
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _signature(value: ValueInfoProto) -> tuple[str, int, list[int | None]]:
    """Return name, element type and shape (None: any) of a graph's input or output."""
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return value.name, tensor.elem_type, shape


def _parse(path: Path) -> tuple[bytes, ModelCard]:
    """Return a model's bytes and card, both checked; nothing outside the file is touched."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than 2 GB, the limit of one ONNX file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise UserError(f"{path}: not an ONNX model, or a damaged one") from None
    outside = [t.name for t in _tensors(model) if t.external_data or t.data_location]
    if outside:
        raise UserError(
            f"{path}: refused: {len(outside)} tensors lie outside the file, first {outside[0]!r}; "
            "a released model is one file"
        )
    entries = [entry.key for entry in model.metadata_props]
    try:
        if len(set(entries)) != len(entries):
            raise ValueError("a metadata entry occurs twice")
        card = ModelCard.parse({entry.key: entry.value for entry in model.metadata_props})
    except ValueError as error:
        raise UserError(f"{path}: not a model released by this project: {error}") from None
    found = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    image = [None, card.channels, card.size, card.size]
    wanted: list[tuple[str, int, list[int | None]]] = [(INPUT, TensorProto.UINT8, image)]
    wanted += [(name, TensorProto.FLOAT, [None, len(card.classes)]) for name in OUTPUTS]
    if found != wanted:
        raise UserError(f"{path}: inputs and outputs are {found}; its metadata asks for {wanted}")
    return content, card


def _driver() -> bool:
    """Whether an NVIDIA driver is installed; costs nothing where there is none."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _session(content: bytes, provider: Literal["cpu", "cuda"], *, tf32: bool) -> Any:
    """Return a session that really runs on `provider`.

    Raises:
        _Broken: If it does not, with the reason.
    """
    chosen: list[Any] = [_NAMES["cpu"]]
    if provider == "cuda":
        if _NAMES["cuda"] not in ort.get_available_providers():
            raise _Broken("this ONNX Runtime is built without CUDA")
        if not _driver():
            raise _Broken("no NVIDIA driver on this machine")
        import torch  # noqa: F401  # its CUDA and cuDNN must be the ones that are loaded

        ort.preload_dlls()
        chosen.insert(0, (_NAMES["cuda"], {"use_tf32": int(tf32)}))
    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads()
    try:
        session = ort.InferenceSession(content, options, providers=chosen)
    except _FAILURES as error:
        raise _Broken(" ".join(str(error).split())) from None
    runs = session.get_providers()[0]  # the session falls back without raising
    if runs != _NAMES[provider]:
        raise _Broken(f"ONNX Runtime runs it on {runs}")
    return session


def _threads() -> int:
    """Return the cores this process may use, or fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


class OnnxModel:
    """A released model in ONNX Runtime.

    Attributes:
        card: What the file says about itself.
        provider: Where it really runs: `cpu` or `cuda`.
        sha256: Of the file.
    """

    def __init__(self, session: Any, card: ModelCard, provider: str, sha256: str) -> None:
        self._session = session
        self.card = card
        self.provider = provider
        self.sha256 = sha256

    def __repr__(self) -> str:
        card = self.card
        return (
            f"OnnxModel({card.channels}×{card.size}×{card.size} → {len(card.classes)} classes, "
            f"on {self.provider}, sha256 {self.sha256[:12]})"
        )

    @classmethod
    def load(
        cls,
        path: Path,
        provider: Provider = "auto",
        *,
        tf32: bool = False,
        asked: str = "provider",
    ) -> OnnxModel:
        """Check a model file, load it, and try it on one blank image.

        Args:
            path: The ONNX file.
            provider: `auto` takes CUDA where it really runs, else the CPU.
            tf32: Whether CUDA may round products to TF32, about 1e-3 off float32.
            asked: By what setting the user chose the provider, for messages.

        Raises:
            UserError: If the file is unreadable, not one whole model of this project, refers to
                files outside itself, or does not run on the provider asked for.
        """
        content, card = _parse(path)
        order: dict[Provider, tuple[Literal["cpu", "cuda"], ...]] = {
            "auto": ("cuda", "cpu"),
            "cpu": ("cpu",),
            "cuda": ("cuda",),
        }
        reason = ""
        for name in order[provider]:
            try:
                session = _session(content, name, tf32=tf32)
                model = cls(session, card, name, hashlib.sha256(content).hexdigest())
                blank = np.zeros((1, card.channels, card.size, card.size), np.uint8)
                if not np.isfinite(model._ask(OUTPUTS[0], blank)).all():
                    raise _Broken("its answer to a blank image is not finite")
                return model
            except _Broken as error:
                reason = str(error)
        if provider == "cuda":
            raise UserError(
                f"{asked} = 'cuda': CUDA asked for and absent: {reason}; allowed: auto, cpu"
            )
        raise UserError(f"{path}: ONNX Runtime cannot run it: {reason}")

    def logits(self, images: NDArray[np.uint8], *, batch: int = 256) -> NDArray[np.float32]:
        """Return logits [n, classes] of raw images uint8 [n, channels, size, size].

        Args:
            images: As `pipelines.data.images.decode` makes them, stacked.
            batch: Images per call of the runtime.

        Raises:
            UserError: If type or shape do not fit the model, or the runtime fails (memory, say).
        """
        return self._run("logits", images, batch)

    def probabilities(self, images: NDArray[np.uint8], *, batch: int = 256) -> NDArray[np.float32]:
        """Return class probabilities [n, classes]; arguments and errors as for `logits`."""
        return self._run("probabilities", images, batch)

    def _run(self, output: str, images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
        shape = (self.card.channels, self.card.size, self.card.size)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}; "
                f"the model takes uint8 [n, {', '.join(map(str, shape))}]"
            )
        answers = [np.empty((0, len(self.card.classes)), np.float32)]
        try:
            for start in range(0, len(images), batch):
                answers.append(self._ask(output, images[start : start + batch]))
        except _Broken as error:
            raise UserError(f"ONNX Runtime stopped on {self.provider}: {error}") from None
        return np.concatenate(answers)

    def _ask(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            answer: NDArray[np.float32] = self._session.run([output], {INPUT: images})[0]
        except _FAILURES as error:
            raise _Broken(" ".join(str(error).split())) from None
        return answer


@dataclass(frozen=True)
class Providers:
    """What ONNX Runtime can do here.

    Attributes:
        version: Of ONNX Runtime.
        installed: Providers compiled into it; says nothing about this machine.
        working: Of `cpu` and `cuda`, those on which a small model really ran.
        problems: Why the others do not work.
    """

    version: str
    installed: tuple[str, ...]
    working: tuple[str, ...]
    problems: dict[str, str]


def providers() -> Providers:
    """Run a one-node model on every provider and say which ones work."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "neg", value[:1], value[1:])
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    working: list[str] = []
    problems: dict[str, str] = {}
    names: Sequence[Literal["cpu", "cuda"]] = ("cpu", "cuda")
    for name in names:
        try:
            _session(model, name, tf32=False).run(None, {"x": np.ones(1, np.float32)})
            working.append(name)
        except (_Broken, *_FAILURES) as error:
            problems[name] = " ".join(str(error).split())
    return Providers(VERSION, tuple(ort.get_available_providers()), tuple(working), problems)
