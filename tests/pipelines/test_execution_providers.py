"""Which of the runtime's providers a session asks for; without a GPU as with one."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from classifiers import classifier_metadata
from finished_checkout import write_model

from pipelines.core.errors import UserError
from pipelines.systems.onnx import execution_providers
from pipelines.systems.onnx.execution_providers import ENGINES, NAMES, Absent, chosen, engine_folder
from pipelines.systems.onnx.runtime import OnnxModel

STACK = ["1.31.1", "10.9", "13.0", "13000", "H100"]


def test_an_engine_is_kept_by_model_and_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENGINES, str(tmp_path / "engines"))
    first = engine_folder("a" * 64, STACK)
    assert engine_folder("a" * 64, STACK) == first
    others = [engine_folder("b" * 64, STACK)]
    others += [engine_folder("a" * 64, [*STACK[:at], "?", *STACK[at + 1 :]]) for at in range(5)]
    assert len({first, *others}) == 7
    assert first.is_dir()
    assert stat.S_IMODE((tmp_path / "engines").stat().st_mode) == 0o700


def test_the_cpu_asks_for_nothing_else() -> None:
    assert chosen("cpu", "", tf32=False) == [NAMES["cpu"]]


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_what_is_absent_is_said(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [NAMES["cpu"]])
    with pytest.raises(Absent, match="built without"):
        chosen(device, "", tf32=False)  # type: ignore[arg-type]
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(NAMES.values()))
    monkeypatch.setattr(execution_providers, "_driver", lambda: None)
    with pytest.raises(Absent, match="no NVIDIA driver"):
        chosen(device, "", tf32=False)  # type: ignore[arg-type]


@pytest.mark.skipif(execution_providers._driver() is not None, reason="there is a GPU here")
@pytest.mark.parametrize(("device", "name"), [("cuda", "CUDA"), ("tensorrt", "TensorRT")])
def test_a_model_never_runs_elsewhere_than_asked(device: str, name: str, tmp_path: Path) -> None:
    card = classifier_metadata(("a", "b"), 8, 1, (0.5,), (0.5,), *3 * ("0" * 64,))
    pixels = card.form.channels * card.form.size**2
    weight = np.zeros((pixels + 1, len(card.classes)), np.float32)
    write_model(tmp_path / "model.onnx", weight, card)
    with pytest.raises(UserError, match=f"'{device}': {name} asked for and absent"):
        OnnxModel.load(tmp_path / "model.onnx", device, asked="--provider")  # type: ignore[arg-type]
