"""Which of ONNX Runtime's execution providers a session is to use, and with which options."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from pipelines.core.config import Provider
from pipelines.core.private import private_folder

Device = Literal["cpu", "cuda", "tensorrt"]
ORDER: dict[Provider, tuple[Device, ...]] = {
    "auto": ("cuda", "cpu"),
    "cpu": ("cpu",),
    "cuda": ("cuda",),
    "tensorrt": ("tensorrt",),  # building an engine takes minutes: only where it is asked for
}
"""What is asked for → what is tried, in this order."""
NAMES: dict[Device, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ENGINES = "PRONG_ENGINE_CACHE"
"""Environment variable: folder of the engines that TensorRT has built."""


class Absent(Exception):
    """An execution provider cannot be used here."""


def chosen(device: Device, sha256: str, *, tf32: bool) -> list[Any]:
    """Return the providers of a session, best first, as ONNX Runtime takes them.

    Args:
        device: Where it is to run.
        sha256: Of the model: TensorRT's engines are kept by it.
        tf32: Whether CUDA may round products to TF32, about 1e-3 off float32.

    Raises:
        Absent: If it cannot run there, with the reason.
    """
    found: list[Any] = [NAMES["cpu"]]
    if device == "cpu":
        return found
    if NAMES[device] not in ort.get_available_providers():
        name = "CUDA" if device == "cuda" else "TensorRT"
        raise Absent(f"this ONNX Runtime is built without {name}")
    if _driver() is None:
        raise Absent("no NVIDIA driver on this machine")
    import torch  # its CUDA and cuDNN must be the ones that are loaded

    ort.preload_dlls()
    found.insert(0, (NAMES["cuda"], {"use_tf32": int(tf32)}))
    if device == "tensorrt":
        made_with = [
            ort.__version__,
            _tensorrt(),
            str(torch.version.cuda),
            str(_driver()),
            torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        ]
        options = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(engine_folder(sha256, made_with)),
            "trt_fp16_enable": False,
        }
        found.insert(0, (NAMES["tensorrt"], options))
    return found


def engine_folder(sha256: str, made_with: Sequence[str]) -> Path:
    """Return the private folder of a model's engines, made if absent.

    An engine fits one model on one stack only: another one would be used without a word.

    Args:
        sha256: Of the model.
        made_with: Versions of ONNX Runtime, TensorRT, CUDA and driver, and the GPU's name.

    Raises:
        UserError: If the folder belongs to another user.
    """
    default = Path(tempfile.gettempdir()) / f"prong-engines-{os.getuid()}"
    cache = Path(os.environ.get(ENGINES) or default)
    cache.mkdir(parents=True, exist_ok=True)
    private_folder(cache)
    key = hashlib.sha256("\n".join([sha256, *made_with]).encode()).hexdigest()
    folder = cache / key[:32]
    folder.mkdir(exist_ok=True)
    return folder


def _driver() -> int | None:
    """Return the version of CUDA that the NVIDIA driver supports; None where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(found))
    return found.value


def _tensorrt() -> str:
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
