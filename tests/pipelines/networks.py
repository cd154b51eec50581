"""Real digits, prepared once, and networks really trained on them, though not for long.

A test module asks for these fixtures by `pytest_plugins = ["networks"]` and
imports this one only for types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from pipelines.core import params_file
from pipelines.core.config import Method, Params
from pipelines.data.prepare import prepare
from pipelines.export.to_onnx import export
from pipelines.training.loop import Loop, save
from pipelines.training.parallel import TrainingRanks

ROOT = Path(__file__).parents[2]
Trained = Callable[[Method], Path]
Exported = Callable[[Method], Path]


@pytest.fixture(scope="session")
def small() -> Params:
    """The project's own parameters, cut down to a second of training."""
    params = params_file.load(ROOT / "params.yaml")
    return replace(
        params,
        data=replace(params.data, source="digits", limit=800, size=0),
        train=replace(
            params.train, epochs=4, batch=32, width=4, hidden=16, samples=200, period=5, warmup=5
        ),
        verify=replace(params.verify, images=40, provider="cpu"),
    )


@pytest.fixture(scope="session")
def prepared(small: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/prepared` of 800 real digits."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(small.data, root=ROOT, downloads=folder / "downloads", out=folder / "data")
    return folder / "data"


@pytest.fixture(scope="session")
def trained(small: Params, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A function from a method to `models/trained`, trained by it for four epochs, once."""

    @cache
    def train(method: Method) -> Path:
        out = tmp_path_factory.mktemp("trained") / "trained"
        job = replace(small.train, method=method)
        loop = Loop(job, prepared, TrainingRanks(0, 1, torch.device("cpu")), None)
        loop.run()
        save(out, loop.spec, loop.network)
        return out

    return train


@pytest.fixture(scope="session")
def exported(
    small: Params, prepared: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A function from a method to the ONNX file of its trained network, exported once."""

    @cache
    def to_onnx(method: Method) -> Path:
        out = tmp_path_factory.mktemp("exported") / "model.onnx"
        export(trained(method), prepared, small, ROOT, out)
        return out

    return to_onnx
