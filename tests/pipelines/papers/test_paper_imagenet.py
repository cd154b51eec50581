"""Fig. 4c-d: labels, shards and class folders, a training under torchrun, and the report."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_checkout import SOURCE, Checkout, make

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.files import read_json
from pipelines.paper import imagenet_images
from pipelines.paper.experiment import Curve, CurveMark, Results, Trained, TrainingTask
from pipelines.paper.imagenet_experiment import IMAGENET, PreparedImages, config_of, load
from pipelines.paper.imagenet_images import SAMPLE, WHOLE, coarse, prepare
from pipelines.paper.imagenet_report import report
from pipelines.paper.paper_images import ImagePlace
from pipelines.paper.torchrun_training import curve_of
from pipelines.training.events import Event

SMALL = IMAGENET.scales["small"]
WNIDS = ("n02085620", "n01440764", "n04254680")  # Chihuahua, tench, soccer ball


def _sample() -> Path:
    found = (SOURCE / "../shared/data/imagenet-sample/images.tar").resolve()
    if not found.is_file():
        pytest.skip("no sample of ImageNet beside the checkout (../shared/data)")
    return found


def test_coarse_labels_are_those_of_the_class_list() -> None:
    with tarfile.open(_sample()) as tar:
        pairs = [Path(name).stem.split("_", 1) for name in tar.getnames() if "." in name]
    labels = {name: coarse(wnid) for wnid, name in pairs}
    assert len(pairs) == 1000
    found = [coarse(wnid) for wnid, _ in pairs]
    assert [found.count(label) for label in ("dog", "other animal", "no animal")] == [118, 280, 602]
    for name in ("Chihuahua", "golden_retriever", "Mexican_hairless"):
        assert labels[name] == "dog"
    for name in ("tench", "sea_lion", "timber_wolf", "dingo", "tabby", "puffer"):
        assert labels[name] == "other animal"
    for name in ("abacus", "hotdog", "daisy", "scuba_diver", "toilet_tissue"):
        assert labels[name] == "no animal"


def _jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def _shard(path: Path, names: Sequence[str], first: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names, first):
            content = _jpeg(number)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _prepared(root: Path, source: str = WHOLE) -> dict[str, Any]:
    prepare(source, 16, ImagePlace(root, root, str(root)), root / "out")
    assert not (root / "out/raw").exists()
    found: dict[str, Any] = read_json(root / "out/card.json")
    return found


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the input pipeline for a moment only."""
    monkeypatch.setattr(imagenet_images, "_SECONDS", 0.05)


@pytest.mark.usefixtures("hurried")
def test_a_sample_of_one_image_a_class_gets_coarse_labels(tmp_path: Path) -> None:
    names = [f"{wnid}/{wnid}_{n}.JPEG" for n in range(20) for wnid in WNIDS]
    _shard(tmp_path / SAMPLE / "images.tar", names, 0)
    card = _prepared(tmp_path, SAMPLE)
    assert set(card["classes"]) == {"dog", "other animal", "no animal"}
    assert card["train"] == sum(card["classes"].values()) == load(tmp_path / "out").train
    assert min(card["decoding"], card["batches"]) > 1


@pytest.mark.usefixtures("hurried")
def test_shards_and_class_folders_give_the_same_images(tmp_path: Path) -> None:
    """One tar for each class, as ImageNet comes, and the same images unpacked."""
    for at, wnid in enumerate(WNIDS):
        for split, count, first in (("train", 20, 0), ("val", 6, 500)):
            names = [f"{wnid}_{n}.JPEG" for n in range(count)]
            shard = tmp_path / f"shards/{WHOLE}/{split}/{wnid}.tar"
            _shard(shard, names, first + 40 * at)
            folder = tmp_path / f"folders/{WHOLE}/{split}/{wnid}"
            folder.mkdir(parents=True)
            with tarfile.open(shard) as tar:
                tar.extractall(folder, filter="data")
    cards = [_prepared(tmp_path / name) for name in ("shards", "folders")]
    assert cards[0]["content"] == cards[1]["content"]
    for card in cards:
        assert set(card["classes"]) == set(WNIDS)
        assert (card["official"], card["test"]) == (True, 18)


def test_a_mirror_without_imagenet_says_what_is_needed(tmp_path: Path) -> None:
    for mirror in ("", str(tmp_path)):
        with pytest.raises(UserError, match="a folder imagenet that holds class folders, or tar"):
            prepare(WHOLE, 16, ImagePlace(tmp_path, tmp_path, mirror), tmp_path / "out")


def test_events_become_marks_and_seconds() -> None:
    step = {"kind": "step", "train_error": 40.0, "samples_per_second": 100.0}
    scored = {"kind": "evaluation", "validation_error": 30.0, "validation_loss": 1.0}
    events: list[Event] = [
        {**step, "step": 10},
        {"kind": "refresh", "step": 10, "layers": [{"seconds": 0.5}, {"seconds": 0.25}]},
        {**scored, "step": 15},
        {**step, "step": 20, "train_error": 20.0},
        {**scored, "step": 20},
    ]
    curve = curve_of(events, batch=50)
    assert [(m.update, m.examples, m.seconds) for m in curve.marks] == [
        (15, 750, pytest.approx(7.5)),
        (20, 1000, pytest.approx(10.0)),
    ]
    assert [m.figures["train"] for m in curve.marks] == [40.0, 20.0]
    assert curve.refresh == 0.75


def test_both_methods_differ_in_nothing_but_the_method() -> None:
    images = PreparedImages(Path(), 700, 3)
    values = {"lr": 0.1, "warmup": 0.05, "normalised": True}
    bn, ours = (
        config_of(SMALL, images, TrainingTask(m, values, 1, True), 2) for m in ("sgd", "prong")
    )
    assert (bn.method, ours.method) == ("bn", "prong+")
    assert replace(ours, method="bn") == bn
    assert IMAGENET.scales["full"].options["batch"] == 256


def _trained(key: str, errors: Sequence[float]) -> Trained:
    marks = tuple(
        CurveMark(10 * n, 640 * n, float(n), 0.0, {"train": error, "validation": error})
        for n, error in enumerate(errors, 1)
    )
    curve = Curve(marks, 0.5, figures={"images_per_second": 70.0, "ranks": 2.0})
    return Trained(key, SMALL.points[key], {"lr": 0.1}, {0: curve, 1: curve})


def test_the_report_says_what_the_labels_are_and_who_is_ahead_early() -> None:
    card = {
        "source": SAMPLE, "size": 32, "train": 694, "class_count": 3, "decoding": 1200.0,
        "batches": 19_000.0, "classes": {"dog": 85, "no animal": 419, "other animal": 190},
    }  # fmt: skip
    trained = {
        "bn-sgd": _trained("bn-sgd", (60, 50, 46, 40, 35)),
        "prong-bn": _trained("prong-bn", (60, 40, 36, 34, 33)),
    }
    sheet = report(Results(SMALL, trained, {"sgd": 2, "prong": 2}, card))
    assert [target.reached for target in sheet.targets] == [True, True]
    assert sheet.targets[0].found == "36 % and 46 %"
    tables = {table.title: table for table in sheet.tables}
    assert "cannot be learnt" in tables["What the labels are"].note
    rates = tables["The input pipeline beside what training takes"].rows
    assert [row[1] for row in rates] == ["1,200", "19,000", "70", "70"]
    trained["prong-bn"] = _trained("prong-bn", (60, 55, 50, 40, 36))
    sheet = report(Results(SMALL, trained, {"sgd": 2, "prong": 2}, card))
    assert [target.reached for target in sheet.targets] == [False, False]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_experiment_from_a_shard_over_two_ranks_to_its_report(tmp_path: Path) -> None:
    mirror = _sample().parents[1]
    checkout: Checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", [f"data.mirror={mirror}"])
    process = checkout.start("paper", "imagenet", "--trials", "1", "--seeds", "1")
    out, err = process.communicate(timeout=850)
    assert process.returncode == 0, out + err
    folder = checkout.root / "paper/imagenet-small"
    found = read_json(folder / "report/report.json")
    assert found["missing"] == {}
    assert found["images"]["class_count"] == 3
    for key in ("bn-sgd", "prong-bn"):
        record = read_json(folder / f"trained/{key}/0/record.json")
        assert record["figures"]["ranks"] == 2
        assert len(record["marks"]) == SMALL.marks
    assert not list((folder / "kept").glob("*.ranks"))
