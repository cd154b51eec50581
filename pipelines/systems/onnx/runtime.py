"""ONNX Runtime: a released model, checked before it is loaded and asked on a known device."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Else it makes an identity of this machine in the home directory, and reports to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# isort: split
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from pipelines.core.config import Provider
from pipelines.core.errors import UserError
from pipelines.core.processors import processors, whole_processors
from pipelines.systems.onnx import execution_providers
from pipelines.systems.onnx.execution_providers import NAMES, ORDER, Absent, Device
from pipelines.systems.onnx.inputs_by_name import fed
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.model_file import read_checked
from pipelines.tasks.form import Form

__all__ = [
    "VERSION",
    "OnnxMetadata",
    "OnnxModel",
    "OutOfMemory",
    "Provider",
    "Providers",
    "fed",
    "providers",
]

VERSION: str = ort.__version__
BATCHES = (1, 2, 7, 256)
"""At which answers are compared: alone, few, an odd number, and as many as one call is given."""
_NO_MEMORY = re.compile("bad.?alloc|allocate memory|out of memory|cannot allocate", re.IGNORECASE)
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


class OutOfMemory(UserError):
    """ONNX Runtime was refused the memory that a model needs."""


class _Broken(Exception):
    """ONNX Runtime does not run the model on the provider asked for."""

    @classmethod
    def of(cls, error: Exception) -> _Broken:
        """Return what ONNX Runtime raised, in one line."""
        return cls(" ".join(str(error).split()))

    def told(self, where: str) -> UserError:
        """Return it as an error for the user."""
        lacking = _NO_MEMORY.search(str(self))
        return (OutOfMemory if lacking else UserError)(f"{where}: {self}")


def _session(
    content: bytes,
    provider: Device,
    *,
    sha256: str,
    tf32: bool,
    threads: int | None = None,
    spinning: bool = True,
) -> Any:
    """Return a session that really runs on `provider`.

    Raises:
        _Broken: If it does not, with the reason.
    """
    try:
        wanted = execution_providers.chosen(provider, sha256, tf32=tf32)
    except Absent as error:
        raise _Broken(str(error)) from None
    try:
        session = ort.InferenceSession(content, _options(threads, spinning), providers=wanted)
    except _FAILURES as error:
        raise _Broken.of(error) from None
    runs = session.get_providers()[0]  # the session falls back without raising
    if runs != NAMES[provider]:
        raise _Broken(f"ONNX Runtime runs it on {runs}")
    return session


def _options(threads: int | None, spinning: bool) -> Any:
    """Return the options of a session that uses the processors it was given and no others."""
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads or _threads()
    # A thread that waits by spinning would use up the quota of those that work.
    if not spinning or processors() < len(os.sched_getaffinity(0)):
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _threads() -> int:
    """Return the processors this process may use, or fewer where OMP_NUM_THREADS says so."""
    count = whole_processors()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(asked)) if asked.isdigit() and int(asked) else count


class OnnxModel:
    """A released model in ONNX Runtime.

    Attributes:
        card: What the file says about itself.
        provider: Where it really runs: `cpu`, `cuda` or `tensorrt`.
        sha256: Of the file.
    """

    def __init__(self, session: Any, card: OnnxMetadata, provider: str, sha256: str) -> None:
        self._session = session
        self.card = card
        self.provider = provider
        self.sha256 = sha256

    def __repr__(self) -> str:
        return f"OnnxModel({self.form.told()}, on {self.provider}, sha256 {self.sha256[:12]})"

    @property
    def form(self) -> Form:
        """Inputs and answers."""
        return self.card.form

    @classmethod
    def load(
        cls,
        path: Path,
        provider: Provider = "auto",
        *,
        tf32: bool = False,
        asked: str = "provider",
        threads: int | None = None,
        spinning: bool = True,
    ) -> OnnxModel:
        """Check a model file, load it, and try it on one blank input.

        Args:
            path: The ONNX file.
            provider: `auto` takes CUDA where it really runs, else the CPU. `tensorrt` builds an
                engine when it is first asked, which takes minutes, and keeps it.
            tf32: Whether CUDA may round products to TF32, about 1e-3 off float32.
            asked: By what setting the user chose the provider, for messages.
            threads: That share one operator on the CPU; default: one for each whole processor
                that this process may use, a quota counted.
            spinning: Whether those threads wait by spinning: quicker answers, but time that other
                threads of this machine do not have.

        Raises:
            UserError: If the file is unreadable, not one whole model of this project, refers to
                files outside itself, or does not run on the provider asked for.
        """
        content, card = read_checked(path)
        sha256 = hashlib.sha256(content).hexdigest()
        reason = _Broken()
        for name in ORDER[provider]:
            try:
                session = _session(
                    content, name, sha256=sha256, tf32=tf32, threads=threads, spinning=spinning
                )
                model = cls(session, card, name, sha256)
                blank = np.zeros((1, *card.form.input_shape), card.form.dtype)
                given = fed(card.form, blank)
                if not np.isfinite(model._ask(card.outputs[:1], given)[0]).all():
                    raise _Broken("its answer to a blank input is not finite")
                return model
            except _Broken as error:
                reason = error
        if provider in ("cuda", "tensorrt"):
            told = {"cuda": "CUDA", "tensorrt": "TensorRT"}[provider]
            raise UserError(
                f"{asked} = {provider!r}: {told} asked for and absent: {reason}; allowed: auto, cpu"
            )
        raise reason.told(f"{path}: ONNX Runtime cannot run it")

    def raw(self, inputs: NDArray[Any], *, batch: int = 256) -> NDArray[np.float32]:
        """Return raw outputs, such as logits: [n, *output_shape].

        Args:
            inputs: As the data hold them (`Form.dtype`, [n, *input_shape]); rows by the columns of
                this model's form.
            batch: Inputs per call of the runtime.

        Raises:
            UserError: If type or shape do not fit the model, or the runtime fails (memory, say).
        """
        return self._run(self.card.outputs[:1], inputs, batch)[0]

    def answers(self, inputs: NDArray[Any], *, batch: int = 256) -> NDArray[Any]:
        """Return what users read, such as probabilities; arguments and errors as for `raw`."""
        return self._run(self.card.outputs[1:], inputs, batch)[0]

    def both(
        self, inputs: NDArray[Any], *, batch: int = 256
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return raw outputs and answers of the same calls; arguments and errors as for both."""
        raw, answers = self._run(self.card.outputs, inputs, batch)
        return raw, answers

    def refuses(self, value: NDArray[Any], name: str | None = None) -> bool:
        """Say whether the runtime itself refuses an input, as it must one of wrong type or shape.

        Args:
            value: Handed to the session as it is.
            name: Of the input that gets it; the others get a blank one. Default: the first.
        """
        name = name or self.card.inputs[0]
        blank = fed(self.form, np.zeros((1, *self.form.input_shape), self.form.dtype))
        try:
            self._ask(self.card.outputs[:1], {**blank, name: value})
        except _Broken:
            return True
        return False

    def _run(self, outputs: Sequence[str], inputs: NDArray[Any], batch: int) -> list[NDArray[Any]]:
        form = self.form
        if inputs.dtype != form.dtype or inputs.shape[1:] != form.input_shape or not inputs.ndim:
            shape = ", ".join(map(str, form.input_shape))
            raise UserError(
                f"inputs are {inputs.dtype} {list(inputs.shape)}; "
                f"the model takes {form.dtype} [n, {shape}]"
            )
        if not len(inputs):  # what shape answers have, only an answer tells
            blank = np.zeros((1, *form.input_shape), form.dtype)
            return [answer[:0] for answer in self._run(outputs, blank, 1)]
        found: list[list[NDArray[Any]]] = [[] for _ in outputs]
        try:
            for start in range(0, len(inputs), batch):
                asked = inputs[start : start + batch]
                for parts, answer in zip(found, self._ask(outputs, fed(form, asked)), strict=True):
                    if answer.shape[:1] != (len(asked),):
                        raise _Broken(f"answered {list(answer.shape)} to {len(asked)} inputs")
                    parts.append(answer)
        except _Broken as error:
            raise error.told(f"ONNX Runtime stopped on {self.provider}") from None
        return [np.concatenate(parts) for parts in found]

    def _ask(self, outputs: Sequence[str], asked: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            answers: list[NDArray[Any]] = self._session.run([*outputs], dict(asked))
        except _FAILURES as error:
            raise _Broken.of(error) from None
        return answers


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
    names: Sequence[Device] = ("cpu", "cuda")
    for name in names:
        try:
            _session(model, name, sha256="", tf32=False).run(None, {"x": np.ones(1, np.float32)})
            working.append(name)
        except (_Broken, *_FAILURES) as error:
            problems[name] = " ".join(str(error).split())
    return Providers(VERSION, tuple(ort.get_available_providers()), tuple(working), problems)
