from __future__ import annotations

import io
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import fork_server
import onnx
import pytest
import torch
from pydantic import TypeAdapter
from ruamel.yaml import YAML

import prong
from pipelines.core import params_file
from pipelines.core.config import Method, Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.core.fingerprints import code_hash, params_hash
from pipelines.data.prepared import load_card, load_split
from pipelines.export.to_onnx import export, folded
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.training.network import load

if TYPE_CHECKING:
    from networks import Trained

pytest_plugins = ["networks"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's sources as they are now, so that an edit during the tests changes no hash."""
    root = tmp_path_factory.mktemp("sources")
    for package in ("prong", "pipelines"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("*.pyc"))
    return root


@pytest.fixture(scope="module")
def exported(
    trained: Trained,
    prepared: Path,
    small: Params,
    sources: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(trained("prong+"), prepared, small, sources, out)
    return out


def test_one_file_with_raw_images_in_and_two_answers_out(exported: Path, prepared: Path) -> None:
    model = OnnxModel.load(exported, "cpu")
    card = load_card(prepared)
    assert model.card.classes == card.classes
    assert model.card.form.mean == card.form.mean
    assert model.card.data_hash == card.data_hash
    split = load_split(prepared, "test")
    logits = torch.from_numpy(model.raw(split.inputs))
    torch.testing.assert_close(torch.from_numpy(model.answers(split.inputs)), logits.softmax(1))
    # Trained briefly, it knows something: the pixels went in as they do in training.
    assert (logits.argmax(1).numpy() == split.targets).mean() > 0.5
    assert [file.name for file in exported.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_parameter(
    trained: Trained, prepared: Path, small: Params, tmp_path: Path, opset: int
) -> None:
    params = replace(small, export=replace(small.export, opset=opset))
    export(trained("bn"), prepared, params, ROOT, tmp_path / "m.onnx", triton=tmp_path / "triton")
    model = onnx.load(tmp_path / "m.onnx")
    place = tmp_path / "triton" / params.model_name
    assert sorted(one.name for one in place.iterdir()) == ["1", "config.pbtxt", "labels-1.txt"]
    assert (place / "1/model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def _export(trained: Path, prepared: Path, root: Path, out: Path, params: Path) -> None:
    """Export with another number of threads and every warning an error."""
    warnings.simplefilter("error")
    torch.set_num_threads(2)
    export(trained, prepared, params_file.load(params), root, out)


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes_in_another_process_too(
    exported: Path, trained: Trained, prepared: Path, small: Params, sources: Path, tmp_path: Path
) -> None:
    export(trained("prong+"), prepared, small, sources, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    # The same parameters from another file, with another mirror: where data lie has no say.
    values = TypeAdapter(Params).dump_python(small)
    values["data"]["mirror"] = "/elsewhere"
    text = io.StringIO()
    YAML(typ="safe").dump(values, text)
    (tmp_path / "params.yaml").write_text(text.getvalue())
    out = tmp_path / "elsewhere.onnx"
    arguments = [trained("prong+"), prepared, sources, out, tmp_path / "params.yaml"]
    ended = fork_server.start(_export, *arguments, leaves=tmp_path / "output", cwd=tmp_path).wait()
    assert (ended.code, ended.output) == (0, ""), ended
    assert out.read_bytes() == exported.read_bytes()


def test_the_file_names_neither_machine_nor_build(exported: Path) -> None:
    content = exported.read_bytes()
    for trace in (b"/site-packages", str(ROOT).encode(), b".py", torch.__version__.encode()):
        assert trace not in content
    model = onnx.load(exported)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_only_parameters_that_determine_bytes_are_hashed(small: Params) -> None:
    elsewhere = replace(small, data=replace(small.data, mirror="x", path="y", sha256="0" * 64))
    reported = replace(small, verify=replace(small.verify, images=3))
    assert params_hash(elsewhere) == params_hash(reported) == params_hash(small)
    other = [
        replace(small, data=replace(small.data, seed=1)),
        replace(small, train=replace(small.train, epochs=2)),
        replace(small, export=replace(small.export, opset=18)),
    ]
    assert len({params_hash(p) for p in (*other, small)}) == 4


def test_the_code_hash_follows_the_sources(tmp_path: Path) -> None:
    for name in (
        "prong/__init__.py",
        "prong/a.py",
        "pipelines/__init__.py",
        "pipelines/export/to_onnx.py",
        "pipelines/systems/onnx/metadata.py",
        "pipelines/cli/app.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "pipelines/cli/app.py").write_text("x = 2\n")
    assert code_hash(tmp_path) == before
    (tmp_path / "prong/a.py").write_text("x = 2\n")
    assert code_hash(tmp_path) != before
    assert re.fullmatch("[0-9a-f]{64}", before)


@pytest.mark.parametrize("method", ["prong", "prong+"])
def test_folding_leaves_plain_layers_and_the_function(
    trained: Trained, prepared: Path, method: Method
) -> None:
    _, network = load(trained(method))
    images = torch.from_numpy(load_split(prepared, "test").inputs[:16])
    plain = folded(network)
    assert not [layer for layer in prong.coverage(plain) if layer.whitened]
    assert [layer for layer in prong.coverage(network) if layer.whitened]
    before, after = network(images), plain(images)
    assert after.dtype == torch.float32
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


def test_a_network_of_other_data_is_refused(
    trained: Trained, prepared: Path, small: Params, tmp_path: Path
) -> None:
    other = tmp_path / "prepared"
    other.mkdir()
    card = read_json(prepared / "card.json")
    card["form"]["size"] = 20
    write_json(other / "card.json", card)
    with pytest.raises(UserError, match=r"differ in size \(28 and 20\).*rerun train"):
        export(trained("sgd"), other, small, ROOT, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
