"""A training that starts from a released version's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.core.config import Method, TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.export.to_onnx import folded
from pipelines.training import network as networks
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks
from pipelines.training.start_files import NoStart, Start, clear, lineage_text, parsed, put, read
from pipelines.training.training_folder import name
from pipelines.training.warm_start import fit

SHA = "a" * 64


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    """A checkout with prepared digits, as far as a training looks at one."""
    for file in ("dvc.yaml", "params.yaml"):
        (tmp_path / file).touch()
    shutil.copytree(prepared, tmp_path / "data/prepared")
    return tmp_path


def _loop(settings: TrainConfig, project: Path) -> Loop:
    ranks = TrainingRanks(0, 1, torch.device("cpu"))
    return Loop(settings, project / "data/prepared", ranks, None)


def _trained(settings: TrainConfig, project: Path) -> Loop:
    """Train, and bring the weights as those of version 3."""
    loop = _loop(settings, project)
    loop.run()
    loop.network.eval()
    weights = project / "weights.safetensors"
    networks.save_plain(folded(loop.network), loop.spec.form.classes, weights)
    put(project, Start("champion", 3, SHA, sha256_file(weights)), weights)
    return loop


@pytest.mark.parametrize(("first", "then"), [("prong+", "bn"), ("sgd", "prong"), ("bn", "prong+")])
def test_a_training_by_any_method_begins_with_the_function_that_it_starts_from(
    small: TrainConfig, project: Path, first: Method, then: Method
) -> None:
    before = _trained(replace(small, method=first), project)
    after = _loop(replace(small, method=then, checkpoint_from="champion", seed=9), project)
    assert after.start is not None
    assert after.start.said == "starts from the weights of version 3"
    images = before.inputs[:64]
    with torch.no_grad():
        expected = before.network(images)
        assert torch.allclose(after.network.eval()(images), expected, rtol=1e-3, atol=1e-3)
    fresh = _loop(replace(small, method=then, seed=9), project)
    assert fresh.start is None
    with torch.no_grad():
        assert not torch.allclose(fresh.network.eval()(images), expected, rtol=0.1, atol=0.1)


def test_the_first_whitening_keeps_the_weights_that_were_learnt(
    small: TrainConfig, project: Path
) -> None:
    first = _trained(replace(small, method="prong", epochs=10), project)
    settings = replace(small, method="prong", init="balanced", lr=1e-9, epochs=1)
    again = _loop(replace(settings, checkpoint_from="champion"), project)
    best = again.run()  # with steps that change nothing
    assert best["validation_loss"] == pytest.approx(_loss(first), abs=0.02)
    assert _loop(settings, project).run()["validation_loss"] > best["validation_loss"] + 0.1


def _loss(loop: Loop) -> float:
    images, labels = loop.validation
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(loop.network(images), labels))


def test_with_other_classes_the_last_layer_alone_is_new(small: TrainConfig, project: Path) -> None:
    spec = _loop(replace(small, method="bn"), project).spec
    torch.manual_seed(1)
    weights = {k: v.clone() for k, v in networks.build(spec).state_dict().items()}
    for others in (spec.form.classes[:7], spec.form.classes[::-1]):
        torch.manual_seed(2)
        form = replace(spec.form, classes=others)
        other = networks.build(replace(spec, form=form, output_shape=(len(others),)))
        before = {k: v.clone() for k, v in other.state_dict().items()}
        fresh = fit(other, weights, spec.form.classes, others, "version 3")
        assert fresh.startswith("body.head.")
        for key, value in other.state_dict().items():
            kept = key.startswith(f"{fresh}.") or key in ("mean", "deviation")
            assert torch.equal(value, before[key] if kept else weights[key]), key


def test_another_network_is_refused_with_names_and_shapes(
    small: TrainConfig, project: Path
) -> None:
    spec = _loop(replace(small, method="sgd"), project).spec
    weights = networks.build(spec).state_dict()
    wider = networks.build(replace(spec, hidden=17))
    before = {k: v.clone() for k, v in wider.state_dict().items()}
    with pytest.raises(UserError, match=r"head\.1\.weight is \[16, .*\] there, \[17, .*\] here"):
        fit(wider, weights, spec.form.classes, spec.form.classes, "version 3")
    assert all(torch.equal(v, before[k]) for k, v in wider.state_dict().items())
    normalised = networks.build(replace(spec, method="bn"))
    with pytest.raises(UserError, match=r"not among its weights.*batch normalisation"):
        fit(normalised, weights, spec.form.classes, spec.form.classes, "version 3")


def test_the_file_of_weights_is_a_function_of_the_weights(
    small: TrainConfig, project: Path, tmp_path: Path
) -> None:
    spec = _loop(small, project).spec
    network = networks.build(spec)
    for file in ("one", "two"):
        networks.save_plain(network, spec.form.classes, tmp_path / file)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert set(load_file(tmp_path / "one")) == set(network.state_dict())


def test_what_was_not_brought_or_was_changed_is_refused(small: TrainConfig, project: Path) -> None:
    settings = replace(small, method="sgd", epochs=1, checkpoint_from="champion")
    with pytest.raises(UserError, match="does not say where to start; `prong run`"):
        _loop(settings, project)
    _trained(replace(settings, checkpoint_from=""), project)
    with pytest.raises(UserError, match=r"'v3': .* does not say"):
        _loop(replace(settings, checkpoint_from="v3"), project)
    weights = project / "data/start/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="not the file of version 3's weights"):
        _loop(settings, project)
    clear(project)
    assert not weights.exists()
    put(project, NoStart("champion"), None)
    start = _loop(settings, project).start
    assert start is not None
    assert "no version is champion yet" in start.said
    assert not start.taken


def test_another_start_is_another_training(
    small: TrainConfig, project: Path, tmp_path: Path
) -> None:
    settings = replace(small, checkpoint_from="champion")
    (tmp_path / "w").write_bytes(b"w")
    weights = sha256_file(tmp_path / "w")
    names = []
    for number in (3, 4):
        put(project, Start("champion", number, SHA, weights), tmp_path / "w")
        assert read(project, "champion") == Start("champion", number, SHA, weights)
        assert parsed(lineage_text(project, "champion")) == (number, SHA)
        names.append(name(settings, "data", project))
    put(project, NoStart("champion"), None)
    names.append(name(settings, "data", project))
    assert lineage_text(project, "champion") == lineage_text(project, "") == "scratch"
    assert not (project / "data/start/weights.safetensors").exists()
    assert len(set(names)) == 3


@pytest.mark.parametrize("text", ["scratch", "unknown", "", "v0 " + SHA, "v3", "v3 " + SHA[:-1]])
def test_a_lineage_that_names_no_version_is_no_start(text: str) -> None:
    assert parsed(text) is None
