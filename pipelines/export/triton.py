"""A model repository for NVIDIA's Triton Inference Server.

A repository holds a folder for each model: `config.pbtxt`, and a folder for each version with its
`model.onnx`. The configuration names the one version that is served, so that a server that polls
the folder takes a new version when its file is whole, and an older one after a rollback.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, sync, write_text
from pipelines.core.text import shown
from pipelines.systems.onnx.graph_values import GraphValue, graph_values

MODEL_FILE, CONFIGURATION = "model.onnx", "config.pbtxt"
_STAGED = ".new-"
"""Begin of the name of a version that is being written; Triton knows numbers only."""
_OWN = re.compile(r"([0-9]+)|labels-([0-9]+)\.txt")
_KINDS = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    **{name: name for name in ("BOOL", "STRING", "UINT8", "UINT16", "UINT32", "UINT64")},
    **{name: name for name in ("INT8", "INT16", "INT32", "INT64")},
}
"""ONNX's name of a type → Triton's."""


@dataclass(frozen=True)
class TritonSettings:
    """How Triton serves a model.

    Attributes:
        max_batch: Most examples of one call.
        batch_delay_us: Microseconds that a request waits for others to make a larger batch.
        instances: Copies of the model on each device.
        tensorrt: Whether a GPU runs it by TensorRT.
        tensorrt_cache: Folder on the server for TensorRT's engines, which are built anew at each
            start without one. What lies there is run: nobody else may write to it.
    """

    max_batch: int = 64
    batch_delay_us: int = 1000
    instances: int = 1
    tensorrt: bool = False
    tensorrt_cache: str = ""

    def __post_init__(self) -> None:
        least = {"max_batch": 1, "batch_delay_us": 0, "instances": 1}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < 2**31:
                raise UserError(f"{name} = {getattr(self, name)}: must be {bound} or more")


DEFAULT = TritonSettings()


def write_repository(
    folder: Path,
    name: str,
    onnx: Path,
    version: int,
    classes: tuple[str, ...] = (),
    settings: TritonSettings = DEFAULT,
) -> Path:
    """Make one version of a model the one that a model repository serves.

    A server that reads the repository meanwhile finds the version before or this one, whole. The
    version before stays in the folder; older ones are removed.

    Args:
        folder: The repository; made if absent.
        name: Of the model.
        onnx: The released file, checked before.
        version: Its number, at least 1.
        classes: Class names, for Triton's classification of the answers.
        settings: How it is served.

    Returns:
        The model's folder.

    Raises:
        UserError: If the repository holds another file as this version, or something else is in
            the way.
        OSError: If the disk does not take it.
    """
    place = folder / name
    text = configuration(name, onnx.read_bytes(), version, classes, settings)
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        before = _served(place)
        if classes:
            lines = "".join(f"{shown(one)}\n" for one in classes)
            write_text(place / _labels_file(version), lines)
        if before is None:
            # First, since a server guesses at a model without a configuration.
            write_text(place / CONFIGURATION, text)
            _add_version(place, onnx, version)
        else:
            _add_version(place, onnx, version)
            write_text(place / CONFIGURATION, text)  # from here on it is served
        _remove_others(place, {version, before})
    return place


def configuration(
    name: str,
    content: bytes,
    version: int,
    classes: tuple[str, ...] = (),
    settings: TritonSettings = DEFAULT,
) -> str:
    """Return the `config.pbtxt` of a model.

    Args:
        name: Of the model.
        content: Its ONNX file.
        version: The one that is served.
        classes: Class names; empty: nothing is classified.
        settings: How it is served.

    Raises:
        UserError: If Triton has no such type.
    """
    inputs, outputs = graph_values(content)
    labels = _labels_file(version) if classes else ""
    entries = [
        f"name: {_text(name)}",
        'platform: "onnxruntime_onnx"',
        f"default_model_filename: {_text(MODEL_FILE)}",
        f"max_batch_size: {settings.max_batch}",
        f"version_policy {{ specific {{ versions: [ {version} ] }} }}",
        *(f"input {_value(one)}" for one in inputs),
        *(f"output {_value(one, labels)}" for one in outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {settings.batch_delay_us} }}",
        f"instance_group {{ kind: KIND_AUTO count: {settings.instances} }}",
        *(_warm_up(inputs, batch) for batch in dict.fromkeys((1, settings.max_batch))),
    ]
    if settings.tensorrt:
        entries.append(_accelerated(settings))
    return "".join(f"{entry}\n" for entry in entries)


def _value(value: GraphValue, labels: str = "") -> str:
    """Return an input or output. A number for each example has no dimension, and Triton needs one.

    The batch is not among the dimensions.
    """
    dims = [-1 if length is None else length for length in value.shape]
    parts = [f"name: {_text(value.name)}", f"data_type: {_kind(value)}"]
    parts.append(f"dims: [ {', '.join(map(str, dims or [1]))} ]")
    parts += [] if dims else ["reshape { shape: [ ] }"]
    parts += [f"label_filename: {_text(labels)}"] if labels and len(dims) == 1 else []
    return f"{{ {' '.join(parts)} }}"


def _warm_up(inputs: Iterable[GraphValue], batch: int) -> str:
    """Return a call with zeros, or empty texts, that is made before the model counts as ready."""
    lines = [f'model_warmup {{ name: "batch of {batch}" batch_size: {batch}']
    for one in inputs:
        dims = ", ".join(str(1 if length is None else length) for length in one.shape)
        value = f"data_type: {_kind(one)} dims: [ {dims} ] zero_data: true"
        lines.append(f"  inputs {{ key: {_text(one.name)} value {{ {value} }} }}")
    return "\n".join([*lines, "}"])


def _accelerated(settings: TritonSettings) -> str:
    """Return that a GPU runs the model by TensorRT, in float32, with engines that are kept."""
    parameters = {"precision_mode": "FP32"}
    if settings.tensorrt_cache:
        parameters["trt_engine_cache_enable"] = "1"
        parameters["trt_engine_cache_path"] = settings.tensorrt_cache
    given = " ".join(
        f"parameters {{ key: {_text(key)} value: {_text(value)} }}"
        for key, value in parameters.items()
    )
    chosen = f'gpu_execution_accelerator {{ name: "tensorrt" {given} }}'
    return f"optimization {{ execution_accelerators {{ {chosen} }} }}"


def _kind(value: GraphValue) -> str:
    if value.kind not in _KINDS:
        raise UserError(f"{value.name}: Triton has no type {value.kind}")
    return f"TYPE_{_KINDS[value.kind]}"


def _text(text: str) -> str:
    """Return a text as protobuf's text format writes it."""
    return json.dumps(text, ensure_ascii=False)


def _labels_file(version: int) -> str:
    """Return the name of the file of class names; each version has its own."""
    return f"labels-{version}.txt"


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other writers out of a model's folder; the lock leaves nothing there."""
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _add_version(place: Path, onnx: Path, version: int) -> None:
    """Put a version into a model's folder, whole or not at all."""
    for left in place.glob(f"{_STAGED}*"):  # of a writer that was killed
        shutil.rmtree(left)
    target = place / str(version)
    if target.exists():
        if _same(target / MODEL_FILE, onnx):
            return
        raise UserError(
            f"{shown(target)}: holds another file than this version; is it the repository of "
            "another project? Give another folder, or move it away"
        )
    staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=place))
    try:
        shutil.copyfile(onnx, staged / MODEL_FILE)
        (staged / MODEL_FILE).chmod(0o666 & ~_mask())
        staged.chmod(0o777 & ~_mask())
        sync(staged / MODEL_FILE)
        sync(staged)
        staged.rename(target)
        sync(place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _same(found: Path, wanted: Path) -> bool:
    return found.is_file() and sha256_file(found) == sha256_file(wanted)


def _served(place: Path) -> int | None:
    """Return the version that the configuration names; None if nothing is there yet."""
    try:
        text = (place / CONFIGURATION).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if others := [path.name for path in place.iterdir() if not _OWN.fullmatch(path.name)]:
            raise UserError(
                f"{shown(place)}: holds {shown(others[0])} and no {CONFIGURATION}; move it away, "
                "or give another folder"
            ) from None
        return None
    found = re.search(r"^version_policy \{ specific \{ versions: \[ ([0-9]+) \] \} \}$", text, re.M)
    if found is None:
        raise UserError(
            f"{shown(place / CONFIGURATION)}: was not written by this program; move it away, or "
            "give another folder"
        )
    return int(found[1])


def _remove_others(place: Path, kept: set[int | None]) -> None:
    for path in place.iterdir():
        found = _OWN.fullmatch(path.name)
        if found and int(found[1] or found[2]) not in kept:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
