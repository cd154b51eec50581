"""Every network of the zoo: fold and ONNX are exact, and the settings decide what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import classifier_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import prong
from pipelines.core.config import NETWORKS, Method
from pipelines.core.errors import UserError
from pipelines.export.to_onnx import folded, metadata, onnx_bytes
from pipelines.systems.onnx.model_file import parse
from pipelines.systems.onnx.operators import not_allowed
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.form import RECONSTRUCTION
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task
from pipelines.training.network import NetworkSpec, build, plain
from pipelines.training.zoo.by_name import ZOO

SHA = "a" * 64


def spec(
    name: str, size: int = 8, channels: int = 1, classes: int = 3, method: Method = "prong+"
) -> NetworkSpec:
    names = tuple(f"class {n}" for n in range(classes))
    mean, deviation = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    found = classifier_spec(method, size, channels, names, mean, deviation, 2, 8, name)
    if name != "autoencoder":
        return found
    form = replace(found.form, task=RECONSTRUCTION)
    return replace(found, form=form, output_shape=form.input_shape)


def task(asked: NetworkSpec) -> Task:
    return task_of(asked.form, Path())


def moved(asked: NetworkSpec) -> tuple[nn.Module, torch.Tensor]:
    """A network away from its start, statistics and Φ too, in evaluation mode; and raw images."""
    torch.manual_seed(0)
    network = build(asked)
    shape = (6, asked.form.channels, asked.form.size, asked.form.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    natural = None
    if asked.whitened:
        natural = prong.Reparametrizer(network, optimizer, period=2, samples=12, damping=0.1)
        natural.initialize([images, images], init="balanced")
    for _ in range(3):
        labels = torch.arange(6) % len(asked.form.classes)
        task(asked).loss(network(images), labels, images).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if natural is not None:
            natural.step()
    return network.eval(), images


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def fold_is_exact(asked: NetworkSpec) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    network, images = moved(asked)
    simple = folded(network)
    assert not any(isinstance(module, prong.Whitened) for module in simple.modules())
    with torch.no_grad():
        answer = network(images)
        assert answer.shape == (6, *task(asked).output_shape)
        assert apart(answer, simple(images)) < 1e-4
        assert apart(answer, network(images.float())) == 0
    return simple, images, answer


def onnx_is_exact(asked: NetworkSpec, folder: Path) -> None:
    simple, images, answer = fold_is_exact(asked)
    card = metadata(asked, task(asked), SHA, SHA, SHA)
    content = onnx_bytes(simple, task(asked), card, 20)
    assert not_allowed(parse(content)) == []
    path = folder / "model.onnx"
    path.write_bytes(content)
    for batch in (1, 4):
        found = OnnxModel.load(path, "cpu").raw(images.numpy(), batch=batch)
        assert apart(answer, torch.from_numpy(np.asarray(found))) < 1e-4


def test_the_names_that_settings_allow_are_those_of_the_zoo() -> None:
    assert tuple(ZOO) == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_the_fold_is_exact(name: str) -> None:
    fold_is_exact(spec(name, size=9, channels=3))


def test_the_onnx_file_is_exact(tmp_path: Path) -> None:
    onnx_is_exact(spec("resnet", size=11), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.integers(8, 40) | st.just(65),
    channels=st.sampled_from((1, 3)),
    classes=st.integers(2, 12),
    method=st.sampled_from(("sgd", "bn", "prong", "prong+")),
)
def test_fold_and_onnx_are_exact_at_any_size(
    tmp_path: Path, name: str, size: int, channels: int, classes: int, method: Method
) -> None:
    onnx_is_exact(spec(name, size, channels, classes, method), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_batch_normalisation_where_the_method_asks_and_it_has_any(name: str) -> None:
    def normalised(method: Method) -> bool:
        modules = plain(spec(name, method=method)).modules()
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)

    for method in ("bn", "prong+"):
        assert normalised(method) == (name != "vit")
    for method in ("sgd", "rmsprop", "adam", "adamw", "muon", "prong"):
        assert not normalised(method)


def test_a_network_is_held_to_the_task() -> None:
    for name in ("resnet", "mlp"):
        asked = spec("autoencoder")
        with pytest.raises(UserError, match=rf"'{name}': it does not return images.*autoencoder"):
            build(replace(asked, network=name))
    with pytest.raises(UserError, match=r"'autoencoder': it is for task.name = 'reconstruction'"):
        build(replace(spec("cnn"), network="autoencoder"))


@pytest.mark.parametrize("name", ["vgg", "resnet", "inception", "vit"])
def test_images_that_are_too_small_are_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}': images of 7 pixels.*8 or more.*cnn or mlp"):
        build(spec(name, size=7))


@pytest.mark.parametrize("name", ["cnn", "mlp", "autoencoder"])
@pytest.mark.parametrize("size", [1, 3])
def test_others_take_images_of_any_size(name: str, size: int) -> None:
    fold_is_exact(spec(name, size=size))


def test_a_model_of_timm_says_what_to_install_or_is_built() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"'timm:resnet18': timm is not installed.*pip install"):
            build(spec("timm:resnet18", size=32))
        return
    fold_is_exact(spec("timm:resnet18", size=32, channels=3))
    with pytest.raises(UserError, match=r"timm has no model 'resnet9999'"):
        build(spec("timm:resnet9999"))
