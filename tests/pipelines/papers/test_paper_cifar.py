"""Fig. 4a-b: crops, the held-out images, the waterfall schedule, and what the report says."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from small_checkout import SOURCE, Checkout, make

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.files import read_json
from pipelines.paper import one_training
from pipelines.paper import paper_images as images
from pipelines.paper.cifar_experiment import CIFAR10, central, cropped
from pipelines.paper.cifar_report import report
from pipelines.paper.experiment import Curve, CurveMark, Results, Trained, TrainingTask
from pipelines.paper.paper_images import SplitImages

SMALL = CIFAR10.scales["small"]
CLASSES = ("bird", "cat")


def _random(count: int, edge: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(0))


def test_every_crop_is_a_part_of_its_image_and_all_places_are_used() -> None:
    whole = torch.arange(32.0 * 32).view(1, 1, 32, 32).expand(400, 3, 32, 32)
    found = cropped(whole, torch.Generator().manual_seed(0))
    assert found.shape == (400, 3, 24, 24)
    places = set()
    for crop in found[:, 0]:
        mirrored = bool(crop[0, 0] > crop[0, 1])
        upright = crop.flip(1) if mirrored else crop
        row, column = divmod(int(upright[0, 0]), 32)
        assert torch.equal(upright, whole[0, 0, row : row + 24, column : column + 24])
        places.add((row, column, mirrored))
    assert {row for row, _, _ in places} == {column for _, column, _ in places} == set(range(9))
    assert {mirrored for _, _, mirrored in places} == {False, True}
    assert torch.equal(central(whole)[0, 0], whole[0, 0, 4:28, 4:28])


def _archives(folder: Path, parts: dict[str, tuple[str, ...]]) -> None:
    folder.mkdir()
    colours = np.random.default_rng(0)
    for part, classes in parts.items():
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as tar:
            for name in classes:
                for number in range(3):
                    content = io.BytesIO()
                    pixels = colours.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(content, "JPEG")
                    entry = tarfile.TarInfo(f"{part}/{name}/{number}.jpg")
                    entry.size = content.tell()
                    content.seek(0)
                    tar.addfile(entry, content)


def test_images_of_jpeg_archives_are_named_re_encoded_and_limited(tmp_path: Path) -> None:
    _archives(tmp_path / "cifar10", {"train": CLASSES, "test": CLASSES})
    place = images.ImagePlace(tmp_path, tmp_path / "none", str(tmp_path))
    images.prepare("cifar10", 32, place, tmp_path / "all")
    card = images.card_of(tmp_path / "all")
    assert (card["source"], card["train"], card["test"]) == ("cifar10, re-encoded", 6, 6)
    images.prepare("cifar10", 32, place, tmp_path / "few", limit=2)
    everything, few = images.load(tmp_path / "all"), images.load(tmp_path / "few")
    assert torch.equal(few.train, everything.train[:2])
    assert few.test.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "put cifar-10-binary.tar.gz, or train.tar.gz and test.tar.gz"),
        ({"train": CLASSES, "test": ("bird", "dog")}, "its classes are bird, dog, not those of"),
    ],
    ids=["nothing", "other-classes"],
)
def test_a_mirror_without_the_images_says_what_is_needed(
    parts: dict[str, tuple[str, ...]], said: str, tmp_path: Path
) -> None:
    _archives(tmp_path / "cifar10", parts)
    place = images.ImagePlace(tmp_path, tmp_path / "none", str(tmp_path))
    with pytest.raises(UserError, match=said):
        images.prepare("cifar10", 32, place, tmp_path / "out")


def test_a_damaged_binary_archive_is_not_passed_over(tmp_path: Path) -> None:
    _archives(tmp_path / "cifar10", {"train": CLASSES, "test": CLASSES})
    (tmp_path / "cifar10/cifar-10-binary.tar.gz").write_bytes(b"no archive")
    place = images.ImagePlace(tmp_path, tmp_path / "none", str(tmp_path))
    with pytest.raises(UserError, match="expected c4a38c50"):
        images.prepare("cifar10", 32, place, tmp_path / "out")


def _problem(errors: list[float]) -> one_training.TrainingProblem:
    """Return the tiny problem with invented validation errors, one at each of 6 marks."""
    left = iter([100.0, *errors])

    def measure(model: torch.nn.Module) -> dict[str, float]:
        return {"validation": next(left), "validation_loss": 1.0}

    return replace(tiny.problem(), marks=6, measure=measure)


def _falling(errors: list[float], **more: object) -> one_training.Training:
    task = tiny.task("sgd", **more)
    values = {**task.values, "schedule": "waterfall", "patience": 2, "warmup": 0.0}
    return one_training.Training(_problem(errors), replace(task, values=values))


def _rate(training: one_training.Training) -> float:
    return float(training.attached.optimizers[0].param_groups[0]["lr"])


def test_the_rate_is_divided_by_ten_when_the_validation_error_stops_falling() -> None:
    steady = _falling([90, 80, 70, 60, 50, 40])
    steady.run()
    stuck = _falling([90, 80, 80, 80, 80, 80], final=False)
    stuck.run()  # a trial has all marks too
    assert len(stuck.marks) == 7
    assert _rate(stuck) == pytest.approx(0.1 * _rate(steady))


def test_a_resumed_training_goes_on_with_the_rate_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_training, "_CHECKPOINT", 0.0)
    kept = tmp_path / "state.safetensors"
    errors = [90.0, *[80.0] * 5]
    first = _falling(errors, checkpoint=kept)
    step = first._step

    def killed(*batch: torch.Tensor) -> bool:
        if first.update == 18:
            raise KeyboardInterrupt
        return step(*batch)

    monkeypatch.setattr(first, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    resumed = _falling(errors, checkpoint=kept)
    assert resumed._resumed()
    assert resumed.falling == first.falling
    assert resumed.falling is not None
    assert resumed.falling.falls == 1


def _examples() -> SplitImages:
    labels = torch.arange(60) % 10
    return SplitImages(_random(60), labels, _random(20), labels[:20])


TINY = replace(
    SMALL,
    measured=20,
    examples=8 * 6,
    marks=2,
    options={"width": 2, "hidden": 4, "validation": 20, "ahead": 0.0},
)


def test_statistics_come_from_where_they_are_asked_to() -> None:
    """Each kind is repeatable, and no two give the same training."""
    ends = {}
    for kind in ("steps", "augmented", "plain", "plain"):
        values = {**SMALL.studies["prong"].fixed, "batch": 8, "lr": 0.01, "period": 2}
        values |= {"statistics": kind, "normalised": False}
        curve = CIFAR10.train(TINY, _examples(), TrainingTask("prong", values, 0, True))
        assert curve.reason == ""
        found = curve.last.figures["validation_loss"]
        assert ends.setdefault(kind, found) == found
    assert len(set(ends.values())) == 3


def _trained(key: str, test: Callable[[int], float], validation: Callable[[int], float]) -> Trained:
    """Return trainings of 10 marks, 4,500 images each."""
    curves = {}
    for seed in range(2):
        marks = [
            CurveMark(
                70 * n,
                4500 * n,
                float(n),
                float(n),
                {"train": 50.0, "validation": validation(n), "test": test(n)},
            )
            for n in range(11)
        ]
        curves[seed] = Curve(tuple(marks))
    return Trained(key, SMALL.points[key], {"batch": 64}, curves)


def _results(ahead: float, plain: float) -> Results:
    """Return invented results: BN ends at 30 %, PRONG is there after 4 of 10 epochs."""
    trained = {
        "bn-sgd": _trained("bn-sgd", lambda n: 40.0 - n, lambda n: 40.0 - n),
        "prong": _trained("prong", lambda n: 38.0 - 2 * min(n, 5) + n / 10, lambda n: abs(5.0 - n)),
        "prong-augmented": _trained("prong-augmented", lambda n: 28.5, lambda n: 1.0),
        "prong-plain": _trained("prong-plain", lambda n: plain, lambda n: 1.0),
    }
    scale = replace(SMALL, options={**SMALL.options, "ahead": ahead})
    return Results(scale, trained, {"sgd": 3, "prong": 3}, {"train": 5000})


def test_the_validation_set_selects_and_targets_are_judged() -> None:
    sheet = report(_results(ahead=1.0, plain=29.0))
    assert [target.reached for target in sheet.targets] == [True, True, True]
    # Selected after 5 epochs, not the 29 % of the end.
    assert sheet.tables[0].rows[0][2] == "28.5 (28.5 to 28.5)"
    assert sheet.targets[1].found == "PRONG at 30 % after 0.5"
    assert sheet.targets[2].why == "standard error of one test error: 1.4 points"
    assert not any(chart.rules for chart in sheet.charts)
    other_results = _results(ahead=2.0, plain=28.0)
    other = report(replace(other_results, scale=replace(other_results.scale, limit=0)))
    assert [rule.value for rule in other.charts[2].rules] == [8.22, 7.32]
    assert [target.reached for target in other.targets] == [False, True, False]


def test_all_kinds_of_prong_share_one_search() -> None:
    for scale in CIFAR10.scales.values():
        points = [point for point in scale.points.values() if point.method == "prong"]
        assert {point.study for point in points} == {"prong"}
        assert len(points) == 4
        for study in scale.studies.values():
            assert study.fixed["schedule"] == "waterfall"
            assert not set(study.fixed) & set(study.space)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_experiment_from_jpeg_archives_to_its_report(tmp_path: Path) -> None:
    mirror = (SOURCE / "../shared/data").resolve()
    if not (mirror / "cifar10/train.tar.gz").is_file():
        pytest.skip("no copy of CIFAR-10 beside the checkout (../shared/data)")
    checkout: Checkout = make(tmp_path / "job")
    params_file.edit(checkout.root / "params.yaml", [f"data.mirror={mirror}"])
    process = checkout.start("paper", "cifar10", "--trials", "2", "--seeds", "1")
    out, err = process.communicate(timeout=850)
    assert process.returncode == 0, out + err
    found = read_json(checkout.root / "paper/cifar10-small/report" / "report.json")
    assert found["images"]["source"] == "cifar10, re-encoded"
    assert found["missing"] == {}
    assert len(found["charts"]) == 4
    targets = {target["what"]: target["reached"] for target in found["targets"]}
    assert targets["BN + SGD's final test error in half the epochs"] is not None
