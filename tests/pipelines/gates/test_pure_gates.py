from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from classifiers import classifier_form, classifier_metadata
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.errors import UserError
from pipelines.gates import agreement, contents, provenance, quality, running
from pipelines.gates.finding import Finding
from pipelines.gates.provenance import KNOWN, PRESENT, StoredFile
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.tasks.classification import Classification
from pipelines.tasks.interval import upper_bound
from pipelines.tasks.task import Subset

SHA = "a" * 64
MADE_FROM = {**dict.fromkeys(KNOWN, "x"), **dict.fromkeys(PRESENT, "unknown"), "onnx_sha256": SHA}


def wrong(*positions: int, of: int = 519) -> quality.Errors:
    found = np.zeros(of)
    found[list(positions)] = 1.0
    return found


TASK = Classification(classifier_form("ab", 4, 1, (0.5,), (0.1,)))


def champion(
    new: quality.Errors, old: quality.Errors | None, best: float | None, margin: float
) -> Finding:
    return quality.champion(TASK, new, old, best, margin)


def floor(new: quality.Errors, labels: np.ndarray, names: Sequence[str]) -> Finding:
    task = Classification(classifier_form(names, 4, 1, (0.5,), (0.1,)))
    nothing = np.zeros((len(labels), 0))
    trivial, told = task.trivial(labels, nothing), task.trivial_told(labels)
    return quality.floor(task, new, trivial, told)


def classes(
    new: quality.Errors,
    old: quality.Errors | None,
    labels: np.ndarray,
    names: Sequence[str],
    margin: float,
) -> Finding:
    parts = [Subset(name, labels == at) for at, name in enumerate(names)]
    return quality.classes(TASK, new, old, parts, margin)


# champion


def test_the_first_champion_has_nothing_to_beat() -> None:
    found = champion(wrong(1, 2), None, None, 0.02)
    assert (found.passed, found.figures["error"], found.figures["images"]) == (True, 2 / 519, 519)
    assert "champion_error" not in found.figures


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_the_bound_of_the_paired_difference_decides(lost: int, won: int, both: int) -> None:
    new = wrong(*range(lost), *range(200, 200 + both))
    old = wrong(*range(100, 100 + won), *range(200, 200 + both))
    found = champion(new, old, None, 0.02)
    bound = upper_bound(lost, won, 519)
    assert found.passed == (bound <= 0.02)
    assert found.figure == pytest.approx(bound)


def test_the_best_champion_ever_holds_as_well() -> None:
    at_margin = champion(wrong(1, 2, of=100), wrong(1, 2, of=100), 0.0, 0.05)
    assert at_margin.passed
    beyond = champion(wrong(*range(6), of=100), wrong(*range(6), of=100), 0.0, 0.05)
    assert (beyond.verdict, beyond.figure) == ("fail", pytest.approx(0.06))
    assert "best champion ever" in beyond.reason
    # As equal as can be to a champion that had slid, it is not let through.
    assert not champion(wrong(*range(30)), None, 0.0, 0.02).passed


def test_too_few_images_are_said_to_be_too_few() -> None:
    found = champion(wrong(of=40), wrong(of=40), None, 0.02)
    assert found.verdict == "fail"
    assert "takes 180" in found.reason
    assert "gates.margin" in champion(wrong(), wrong(), None, 0.0).reason
    assert champion(wrong(of=180), wrong(of=180), None, 0.02).passed


def test_a_slow_slide_is_stopped() -> None:
    """Each candidate is 0.1 margin worse than the champion: at n = 5,000, 10 images."""
    n, margin, champions = 5000, 0.02, [wrong(*range(50), of=5000)]
    while True:
        candidate = wrong(*range(int(champions[-1].sum()) + 10), of=n)
        best = min(float(made.mean()) for made in champions)
        if not champion(candidate, champions[-1], best, margin).passed:
            break
        champions.append(candidate)
    # Without the ratchet it would go on for ever; it ends one margin below the best ever.
    assert len(champions) - 1 == 10
    assert champions[-1].mean() - champions[0].mean() == pytest.approx(margin)
    assert champion(candidate, champions[-1], None, margin).passed


# classes

LABELS = np.repeat(np.arange(10), 50)
NAMES = [str(label) for label in range(10)]
LABELS_OF_519 = np.arange(519) % 10


def test_a_class_may_lose_its_margin_and_not_an_image_more() -> None:
    none = wrong(of=500)
    at = classes(wrong(*range(5), of=500), none, LABELS, NAMES, 0.1)
    assert (at.passed, at.figure) == (True, pytest.approx(0.1))
    beyond = classes(wrong(*range(100, 106), of=500), none, LABELS, NAMES, 0.1)
    assert (beyond.verdict, beyond.figure) == ("fail", pytest.approx(0.12))
    assert "2: 6 of 50" in beyond.reason


def test_what_a_class_wins_makes_up_for_what_it_loses() -> None:
    new, old = wrong(*range(6), of=500), wrong(*range(40, 43), of=500)
    assert classes(new, old, LABELS, NAMES, 0.1).passed


@pytest.mark.parametrize(
    ("images", "lost", "passes"),
    [(1, 1, False), (2, 1, True), (2, 2, False), (5, 1, True), (5, 2, False), (20, 2, True)],
)
def test_one_image_of_several_is_not_evidence_and_a_whole_class_is(
    images: int, lost: int, passes: bool
) -> None:
    labels = np.array([0] * 50 + [1] * images)
    new = wrong(*range(50, 50 + lost), of=50 + images)
    found = classes(new, wrong(of=50 + images), labels, ["many", "few"], 0.1)
    assert found.passed == passes


def test_a_class_without_an_image_is_said_and_does_not_block() -> None:
    none = wrong(of=500)
    found = classes(none, none, LABELS, [*NAMES, "ten", "eleven"], 0.1)
    assert found.passed
    assert "2 of 12 classes have no gate image" in found.reason


# robustness


def test_disturbed_answers_are_held_to_the_champions() -> None:
    at = quality.robust("shift", {"up": 0.2, "down": 0.3}, {"up": 0.1, "down": 0.3}, True, 0.1)
    assert (at.passed, at.figure) == (True, pytest.approx(0.1))
    beyond = quality.robust("shift", {"up": 0.21, "down": 0.3}, {"up": 0.1, "down": 0.3}, True, 0.1)
    assert beyond.verdict == "fail"
    assert quality.robust("noise", {"noise": 0.9}, None, True, 0.1).passed
    assert not quality.robust("noise", {"noise": 0.0}, {"noise": 0.0}, False, 0.1).passed


# provenance


@pytest.mark.parametrize("key", [*KNOWN, *PRESENT])
def test_lineage_that_is_missing_blocks(key: str) -> None:
    assert provenance.lineage(MADE_FROM, SHA, False).passed
    gone = {k: v for k, v in MADE_FROM.items() if k != key}
    found = provenance.lineage(gone, SHA, False)
    assert (found.verdict, found.figure) == ("fail", 1.0)
    assert key in found.reason
    unknown = provenance.lineage({**MADE_FROM, key: "unknown"}, SHA, False)
    assert unknown.passed == (key in PRESENT)


def test_lineage_of_another_file_blocks() -> None:
    assert provenance.lineage(MADE_FROM, "b" * 64, False).verdict == "fail"


def test_a_clean_commit_can_be_asked_for() -> None:
    assert "git_commit" in provenance.lineage(MADE_FROM, SHA, True).reason
    committed = {**MADE_FROM, "git_commit": "c" * 40, "git_dirty": "false"}
    assert provenance.lineage(committed, SHA, True).passed
    assert not provenance.lineage({**committed, "git_dirty": "true"}, SHA, True).passed


def test_bytes() -> None:
    assert provenance.stored_bytes(SHA, SHA).passed
    assert provenance.stored_bytes("b" * 64, SHA).verdict == "fail"


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("python_model.pkl", b""),
        ("weights.bin", b""),
        ("model.pt", b""),
        ("../elsewhere.onnx", b""),
        ("/etc/notes.txt", b""),
        ("a\\..\\b.txt", b""),
        ("code/run.py", b""),
        ("notes.txt", b"\x80\x04\x95"),
        ("card.json", b"PK\x03\x04"),
        ("input.json", b"\x93NUMPY"),
    ],
)
def test_what_could_run_code_or_leads_out_of_the_folder_blocks(path: str, head: bytes) -> None:
    good = [StoredFile("MLmodel", b"flavors:"), StoredFile("model.onnx", b"")]
    assert provenance.stored_format(good, []).passed
    found = provenance.stored_format([*good, StoredFile(path, head)], [])
    assert found.verdict == "fail"
    assert repr(path) in found.reason


def test_what_a_version_comes_with_is_let_through() -> None:
    names = (
        "MLmodel conda.yaml python_env.yaml requirements.txt input_example.json "
        "serving_input_example.json registered_model_meta model.onnx weights.safetensors "
        "model.onnx.sig bom.cdx.json card.md dvc.lock params.yaml"
    )
    assert provenance.stored_format([StoredFile(n, b"") for n in names.split()], []).passed


def test_tensors_outside_the_file_block() -> None:
    files = [StoredFile("model.onnx", b"")]
    assert provenance.stored_format(files, []).passed
    found = provenance.stored_format(files, [("w", "../../secret")])
    assert found.verdict == "fail"
    assert "../../secret" in found.reason
    assert not provenance.stored_format(files, ValueError("not an ONNX model")).passed
    assert "no model.onnx" in provenance.stored_format([], []).reason


# contents


def card(**changes: Any) -> OnnxMetadata:
    values = {
        "classes": ("a", "b"), "size": 4, "channels": 1, "mean": (0.5,), "deviation": (0.1,),
        "data_hash": SHA, "params_hash": SHA, "code_hash": SHA, **changes,
    }  # fmt: skip
    return classifier_metadata(**values)


def test_operators_schema_and_weights() -> None:
    assert contents.schema(card(), SHA).passed
    assert contents.schema(card(), "b" * 64).verdict == "fail"
    assert contents.schema(ValueError("inputs and outputs are []"), SHA).verdict == "fail"
    assert contents.operators([]).passed
    found = contents.operators(["the operator 'Loop'", *"abcd"])
    assert (found.verdict, found.figure) == ("fail", 5.0)
    assert "'Loop'; a; b and 2 more" in found.reason
    assert contents.weights({}, 10).passed
    found = contents.weights({"bias": 3}, 10)
    assert (found.verdict, found.figure) == ("fail", 3.0)


@pytest.mark.parametrize(
    ("count", "champion", "passes"),
    [
        (2000, 1000, True),
        (2001, 1000, False),
        (500 * 10**6, None, True),
        (500 * 10**6 + 1, None, False),
        (500 * 10**6 + 1, 500 * 10**6, False),
    ],
)
def test_size_is_held_to_the_champion_and_to_a_limit(
    count: int, champion: int | None, passes: bool
) -> None:
    assert contents.size(count, champion, 2.0, 500).passed == passes


# agreement


@pytest.mark.parametrize(("figure", "passes"), [(1e-4, True), (1.1e-4, False), (np.nan, False)])
def test_differences_of_logits_are_held_to_their_limit(figure: float, passes: bool) -> None:
    assert agreement.fold(figure, 1e-4).passed == passes
    assert agreement.parity(figure, None, 1e-4).passed == passes
    assert agreement.parity(1e-6, {1: 1e-6, 7: figure}, 1e-4).passed == passes
    assert agreement.batch({2: 0.0, 7: figure}, 1e-4).passed == passes


def test_a_batch_that_cannot_be_run_blocks() -> None:
    found = agreement.batch({2: 0.0, 7: UserError("cannot reshape")}, 1e-4)
    assert found.verdict == "fail"
    assert "at batch 7: cannot reshape" in found.reason


def test_skew_is_exact_on_the_same_images_and_by_chance_on_others() -> None:
    assert agreement.skew(0.015, 717, 0.010, 717, True, 0.005).passed
    assert not agreement.skew(0.0151, 717, 0.010, 717, True, 0.005).passed
    assert not agreement.skew(0.004, 717, 0.010, 717, True, 0.005).passed
    assert agreement.skew(0.02, 717, 0.010, 717, False, 0.005).passed
    assert agreement.skew(0.001, 717, 0.010, 717, False, 0.005).passed
    assert not agreement.skew(0.20, 717, 0.010, 717, False, 0.005).passed


# running


def test_what_the_runtime_did_decides() -> None:
    assert running.runtime(8, True, "cpu").passed
    assert not running.runtime(8, False, "cpu").passed
    assert running.inputs({"float32": True}).passed
    assert "int64" in running.inputs({"float32": True, "int64": False}).reason
    assert running.extremes({"black": True}).passed
    assert "white" in running.extremes({"black": True, "white": False}).reason


def test_latency_is_a_median_of_ratios_at_the_worst_batch() -> None:
    assert running.latency({1: [1.5, 9.0, 1.0], 64: [1.0, 1.0, 1.0]}, 1.5).passed
    found = running.latency({1: [1.0, 1.0, 1.0], 64: [1.6, 9.0, 1.0]}, 1.5)
    assert (found.verdict, found.figure) == ("fail", 1.6)
    assert running.latency(None, 1.5).passed


def test_every_finding_names_its_gate() -> None:
    from pipelines.gates.judging import GATES

    names = {
        found.gate
        for found in (
            provenance.lineage(MADE_FROM, SHA, False),
            provenance.stored_bytes(SHA, SHA),
            provenance.stored_format([], []),
            contents.schema(card(), SHA),
            contents.weights({}, 1),
            contents.size(1, None, 2.0, 1),
            agreement.fold(0.0, 1.0),
            agreement.parity(0.0, None, 1.0),
            agreement.batch({2: 0.0}, 1.0),
            agreement.skew(0.0, 1, 0.0, 1, True, 1.0),
            champion(wrong(), None, None, 0.1),
            classes(wrong(), None, LABELS, NAMES, 0.1),
            running.runtime(1, True, ""),
            running.inputs({}),
            running.extremes({}),
            running.latency(None, 1.0),
            Finding("noise", "pass", None, None, ""),
            Finding("shift", "pass", None, None, ""),
            contents.operators([]),
            agreement.answers(0.0, 0, 0, 1, 1.0),
            floor(wrong(), LABELS_OF_519, NAMES),
        )
    }
    assert names >= set(GATES)
    assert all(gate.asks.endswith("?") for gate in GATES.values())
