from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from classifiers import classifier_spec
from safetensors.numpy import load_file, save_file

from pipelines.core.config import EvaluateConfig, Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.data.prepared import load_card, load_split
from pipelines.evaluation.evaluate import evaluate
from pipelines.training import network
from pipelines.training.network import load

if TYPE_CHECKING:
    from networks import Trained

pytest_plugins = ["networks"]


def test_the_figures_are_those_of_the_network_on_the_test_split(
    trained: Trained, prepared: Path, small: Params, tmp_path: Path
) -> None:
    result = evaluate(trained("prong"), prepared, small.evaluate, tmp_path)
    assert read_json(tmp_path / "evaluation.json") == result
    split, classes = load_split(prepared, "test"), load_card(prepared).classes
    with torch.inference_mode():
        logits = load(trained("prong"))[1](torch.from_numpy(split.inputs)).double().numpy()
    answers = logits.argmax(1)
    errors = int((answers != split.targets).sum())
    assert 0 < errors < len(answers) == result["images"]
    assert result["errors"] == errors
    assert result["test_error"] == pytest.approx(100 * errors / len(answers), abs=1e-3)
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(answers)), split.targets]
    assert result["loss"] == pytest.approx(loss.mean(), abs=1e-4)
    assert sum(row["images"] for row in result["classes"]) == len(answers)
    assert sum(row["errors"] for row in result["classes"]) == errors
    assert [row["name"] for row in result["classes"]] == list(classes)

    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["actual"], row["predicted"]) for row in csv.DictReader(file)]
    names = np.array(classes)
    assert rows == list(zip(names[split.targets], names[answers], strict=True))

    hardest = read_json(tmp_path / "hardest.json")
    assert len(hardest) == small.evaluate.hardest
    assert [row["index"] for row in hardest] == np.argsort(-loss)[: len(hardest)].tolist()
    for row in hardest:
        at = row["index"]
        assert row["hash"] == split.hashes[at]
        assert (row["actual"], row["predicted"]) == rows[at]
        assert row["probability"] == pytest.approx(np.exp(-loss[at]), abs=1e-4)


def test_the_batch_does_not_matter(
    trained: Trained, prepared: Path, small: Params, tmp_path: Path
) -> None:
    whole = evaluate(trained("bn"), prepared, small.evaluate, tmp_path)
    parts = evaluate(trained("bn"), prepared, EvaluateConfig(batch=7, hardest=0), tmp_path)
    assert parts["errors"] == whole["errors"]
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert read_json(tmp_path / "hardest.json") == []


def many_classes(prepared: Path, tmp_path: Path, count: int) -> tuple[Path, Path]:
    """Real digits, each image its own class, and an untrained network for them."""
    split = load_split(prepared, "train")
    chosen = np.arange(count) % len(split.targets)
    classes = tuple(f"class {at:04}, “quoted”" for at in range(count))
    out = tmp_path / "prepared"
    out.mkdir()
    card = read_json(prepared / "card.json")
    counts = {name: dict.fromkeys(classes, 0) for name in card["counts"]}
    counts["test"] = dict.fromkeys(classes, 1)
    form = card["form"] | {"classes": classes}
    write_json(out / "card.json", card | {"form": form, "counts": counts})
    hashes = np.stack([np.full(32, 0, np.uint8) for _ in range(count)])
    hashes[:, 0], hashes[:, 1] = np.arange(count) // 256, np.arange(count) % 256
    images = np.ascontiguousarray(split.inputs[chosen])
    save_file(
        {"inputs": images, "targets": np.arange(count), "hashes": hashes}, out / "test.safetensors"
    )
    spec = classifier_spec("sgd", 28, 1, classes, (0.1,), (0.3,), 2, 4)
    torch.manual_seed(0)
    network.save(tmp_path / "trained", spec, network.build(spec).state_dict())
    return tmp_path / "trained", out


def test_a_thousand_classes_of_one_image(prepared: Path, small: Params, tmp_path: Path) -> None:
    trained, data = many_classes(prepared, tmp_path, 1000)
    result = evaluate(trained, data, small.evaluate, tmp_path)
    assert len(result["classes"]) == result["images"] == 1000
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert [row["actual"] for row in csv.DictReader(file)] == list(load_card(data).classes)


def test_a_class_without_test_images_has_no_error(
    prepared: Path, small: Params, tmp_path: Path
) -> None:
    trained, data = many_classes(prepared, tmp_path, 3)
    card = read_json(data / "card.json")
    name = card["form"]["classes"][2]
    card["counts"]["test"][name] = 0
    write_json(data / "card.json", card)
    tensors = {key: value[:2].copy() for key, value in load_file(data / "test.safetensors").items()}
    save_file(tensors, data / "test.safetensors")
    result = evaluate(trained, data, small.evaluate, tmp_path)
    assert result["classes"][2] == {"name": name, "images": 0, "errors": 0, "error": None}


def test_what_cannot_be_scored_is_refused_and_nothing_is_written(
    trained: Trained, prepared: Path, small: Params, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    other, data = many_classes(prepared, tmp_path, 3)
    with pytest.raises(UserError, match=r"differ in classes \(10 and 3\).*rerun train"):
        evaluate(trained("sgd"), data, small.evaluate, reports)
    card = read_json(data / "card.json")
    card["counts"]["test"] = dict.fromkeys(card["form"]["classes"], 0)
    write_json(data / "card.json", card)
    tensors = {key: value[:0].copy() for key, value in load_file(data / "test.safetensors").items()}
    save_file(tensors, data / "test.safetensors")
    with pytest.raises(UserError, match="the test split is empty"):
        evaluate(other, data, small.evaluate, reports)
    spec, broken = load(trained("sgd"))
    state = {name: torch.full_like(value, torch.nan) for name, value in broken.state_dict().items()}
    network.save(tmp_path / "broken", replace(spec), state)
    with pytest.raises(UserError, match="NaN or infinite"):
        evaluate(tmp_path / "broken", prepared, small.evaluate, reports)
    assert not reports.exists()
