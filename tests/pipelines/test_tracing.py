"""One image, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.core.errors import UserError
from pipelines.data.prepared import load_split
from pipelines.training.network import load
from pipelines.verification.trace import trace

if TYPE_CHECKING:
    from networks import Exported, Trained

pytest_plugins = ["networks"]


@pytest.fixture(scope="module")
def onnx(exported: Exported) -> Path:
    return exported("prong+")


def test_every_layer_is_shown_and_the_fold_changes_none(
    trained: Trained, prepared: Path, onnx: Path, tmp_path: Path
) -> None:
    pixels = load_split(prepared, "test").inputs[0]
    image = tmp_path / "digit.png"
    Image.fromarray(pixels[0]).save(image)
    found = trace(trained("prong+"), onnx, image)
    spec, network = load(trained("prong+"))
    leaves = [
        n.removeprefix("body.") for n, m in network.named_modules() if n and not any(m.children())
    ]
    assert [step.layer for step in found.steps] == ["input", *leaves, "onnx"]
    assert max(step.difference for step in found.steps) < 1e-5
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels[None]))[0].numpy()
    np.testing.assert_allclose(list(found.raw.values()), logits, rtol=1e-6)
    assert list(found.raw) == list(spec.form.classes)
    assert found.steps[0].mean == pytest.approx(pixels.mean())
    relu = next(step for step in found.steps if step.kind == "ReLU")
    assert 0 < relu.zeros < 1
    assert relu.smallest == 0


def test_a_file_that_is_not_an_image_is_named(trained: Trained, onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.png"):
        trace(trained("prong+"), onnx, tmp_path / "absent.png")
