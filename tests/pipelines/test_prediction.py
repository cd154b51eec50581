from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipelines.core.errors import UserError
from pipelines.data.prepared import Split, load_card, load_split
from pipelines.evaluation.scoring import error
from pipelines.serving.predict import predict
from pipelines.systems.onnx.runtime import OnnxModel

if TYPE_CHECKING:
    from networks import Exported

pytest_plugins = ["networks"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(exported: Exported) -> OnnxModel:
    return OnnxModel.load(exported("prong"), "cpu")


@pytest.fixture(scope="module")
def files(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Test digits as PNG files."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for at, image in enumerate(load_split(prepared, "test").inputs[:8]):
        paths.append(folder / f"{at}.png")
        Image.fromarray(image[0]).save(paths[-1])
    return paths


def test_files_are_answered_as_the_arrays_are(
    model: OnnxModel, files: list[Path], prepared: Path
) -> None:
    arrays = load_split(prepared, "test").inputs[: len(files)]
    probabilities = model.answers(arrays)
    found = predict(model, files, checkout=ROOT)
    assert [p.path for p in found] == files
    for prediction, row in zip(found, probabilities, strict=True):
        assert prediction.label == model.card.classes[row.argmax()]
        assert prediction.probability == pytest.approx(float(row.max()), rel=1e-5)
        assert prediction.top[0] == (prediction.label, prediction.probability)
        assert [p for _, p in prediction.top] == sorted((p for _, p in prediction.top))[::-1]
        assert len(prediction.top) == 3


def test_an_image_of_another_size_and_colour_is_answered(model: OnnxModel, tmp_path: Path) -> None:
    Image.new("RGBA", (301, 77), (9, 200, 3, 128)).save(tmp_path / "wide.webp")
    (found,) = predict(model, [tmp_path / "wide.webp"], top=99, checkout=ROOT)
    assert sum(p for _, p in found.top) == pytest.approx(1, abs=1e-5)
    assert {name for name, _ in found.top} == set(model.card.classes)


def test_no_images_give_no_predictions(model: OnnxModel) -> None:
    assert predict(model, [], checkout=ROOT) == []


@pytest.mark.parametrize("kind", ["text", "truncated", "absent", "folder"])
def test_an_unreadable_image_is_named(
    model: OnnxModel, files: list[Path], tmp_path: Path, kind: str
) -> None:
    bad = tmp_path / "bad.png"
    match kind:
        case "text":
            bad.write_text("no image")
        case "truncated":
            bad.write_bytes(files[0].read_bytes()[:80])
        case "folder":
            bad.mkdir()
    with pytest.raises(UserError, match=r"bad\.png"):
        predict(model, [files[0], bad], checkout=ROOT)


def test_the_score_counts_wrong_answers_by_name(model: OnnxModel, prepared: Path) -> None:
    split, form = load_split(prepared, "gate"), load_card(prepared).form
    score = error(model, split, form, ROOT)
    answers = model.raw(split.inputs).argmax(1)
    assert score.errors.tolist() == (answers != split.targets).tolist()
    assert score.images == len(split.targets)
    assert score.error == score.errors.sum() / score.images

    # The same images under classes in another order: the names decide, not the positions.
    turned = replace(form, classes=(*form.classes[1:], form.classes[0]))
    labels = (split.targets - 1) % len(form.classes)
    again = error(model, replace(split, targets=labels), turned, ROOT)
    assert again.errors.tolist() == score.errors.tolist()


def test_on_a_class_it_never_saw_a_model_is_wrong(model: OnnxModel, prepared: Path) -> None:
    split, form = load_split(prepared, "gate"), load_card(prepared).form
    labels = np.full_like(split.targets, len(form.classes))
    more = replace(form, classes=(*form.classes, "new"))
    score = error(model, replace(split, targets=labels), more, ROOT)
    assert score.error == 1


def test_images_that_do_not_fit_are_refused(model: OnnxModel, prepared: Path) -> None:
    split, form = load_split(prepared, "gate"), load_card(prepared).form
    smaller = Split(split.inputs[:, :, :20, :20], split.targets, split.hashes)
    with pytest.raises(UserError, match="the model takes uint8"):
        error(model, smaller, form, ROOT)
