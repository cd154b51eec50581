"""A released network in ONNX Runtime on CUDA: where it says it runs, with torch's answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.data.prepared import load_split
from pipelines.export.to_onnx import folded
from pipelines.systems.onnx.runtime import OnnxModel, Provider, providers
from pipelines.training.network import load

if TYPE_CHECKING:
    from networks import Exported, Trained

pytest_plugins = ["networks"]
ROOT = Path(__file__).parents[2]
PROVIDERS = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                "cuda" not in providers().working,
                reason=f"needs CUDA: {providers().problems.get('cuda', '')}",
            ),
        ],
    ),
]
BATCHES = (1, 7, 256)
LIMIT = 1e-4  # of the largest logit: float32 without TF32


@pytest.fixture(scope="module")
def released(exported: Exported) -> Path:
    return exported("prong+")


@pytest.fixture(scope="module")
def images(prepared: Path) -> NDArray[np.uint8]:
    found = load_split(prepared, "train").inputs
    return found[np.arange(BATCHES[-1]) % len(found)]


def _apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_session_runs_where_the_model_says(released: Path, provider: Provider) -> None:
    model = OnnxModel.load(released, provider)
    assert model.provider == provider
    assert model._session.get_providers()[0] == f"{provider.upper()}ExecutionProvider"
    assert f"on {provider}" in repr(model)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_agrees_with_torch_on_the_same_device(
    trained: Trained, released: Path, images: NDArray[np.uint8], provider: Provider, batch: int
) -> None:
    network = folded(load(trained("prong+"))[1]).to(provider)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pixels = torch.from_numpy(images[:batch]).to(provider)
        expected = network(pixels).cpu().numpy()
    model = OnnxModel.load(released, provider)
    assert _apart(model.raw(images[:batch], batch=batch), expected) <= LIMIT
    shares = torch.from_numpy(expected).softmax(1).numpy()
    assert np.abs(model.answers(images[:batch], batch=batch) - shares).max() <= LIMIT


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("provider", PROVIDERS[1:])
def test_it_agrees_with_the_cpu(
    released: Path, images: NDArray[np.uint8], provider: Provider, batch: int
) -> None:
    expected = OnnxModel.load(released, "cpu").raw(images, batch=BATCHES[-1])
    found = OnnxModel.load(released, provider).raw(images, batch=batch)
    assert _apart(found, expected) <= LIMIT
