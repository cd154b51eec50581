"""What clients ask in the Open Inference Protocol, and what they are answered."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from handmade_models import CLASSES
from questions import outputs, question
from served import Running

from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.columns import codes

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (3, 1, 4, 4), dtype=np.uint8)
BINARY = {"parameters": {"binary_data_output": True}}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("answered", [{}, BINARY])
@pytest.mark.parametrize("n", [1, 3])
def test_images_of_eight_bits(
    digits: Running, models: dict[str, Path], n: int, binary: bool, answered: dict
) -> None:
    reply = digits.infer(*question({"images": IMAGES[:n]}, binary, **answered))
    found = outputs(reply)
    raw, answers = OnnxModel.load(models["classifier"], "cpu").both(IMAGES[:n])
    np.testing.assert_allclose(found["logits"], raw, rtol=1e-6)
    np.testing.assert_allclose(found["probabilities"], answers, rtol=1e-6)
    assert found["probabilities"].dtype == np.float32
    bytes_follow = "inference-header-content-length" in reply.headers
    assert bytes_follow == bool(answered)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("answered", [{}, BINARY])
def test_images_of_sixteen_bits(pictures: Running, binary: bool, answered: dict) -> None:
    images = DRAW.integers(0, 65536, (2, 2, 3, 3), dtype=np.uint16)
    found = outputs(pictures.infer(*question({"images": images}, binary, **answered)))
    np.testing.assert_array_equal(found["answers"], images.astype(np.float32))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("answered", [{}, BINARY])
def test_rows_of_a_table(
    houses: Running, models: dict[str, Path], binary: bool, answered: dict
) -> None:
    numbers = np.array([[30.5, 1.8], [np.nan, 1.6], [50.0, 1.7], [1e9, -1.0]])
    cities = ["Zürich", "", "Genève", "Bern"]
    given = {"numbers": numbers, "categories": np.array(cities, object)[:, None]}
    head, behind = question(given, binary, **answered)
    reply = houses.infer(head.replace(b"NaN", b"null"), behind)
    rows = np.stack([numbers[:, 0], codes(cities, ("Bern", "Zürich")), numbers[:, 1]], axis=1)
    raw, answers = OnnxModel.load(models["table"], "cpu").both(rows)
    found = outputs(reply)
    assert found["answers"].dtype == np.float64
    np.testing.assert_array_equal(found["answers"], answers)
    np.testing.assert_array_equal(found["raw"], raw)
    assert len(set(answers[:3].ravel().tolist())) == 3


def test_values_may_be_flat_or_nested(digits: Running) -> None:
    nested = outputs(digits.infer(*question({"images": IMAGES})))
    flat = {"name": "images", "shape": [3, 1, 4, 4], "datatype": "UINT8"}
    flat["data"] = IMAGES.ravel().tolist()
    found = outputs(digits.infer({"inputs": [flat]}))
    np.testing.assert_array_equal(found["logits"], nested["logits"])


def test_only_wanted_outputs_come_in_their_order(digits: Running) -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "logits"},
    ]
    found = outputs(digits.infer(*question({"images": IMAGES}, outputs=wanted)))
    assert [*found] == ["probabilities", "logits"]
    only = outputs(digits.infer(*question({"images": IMAGES}, outputs=wanted[1:])))
    assert [*only] == ["logits"]


@pytest.mark.parametrize("binary", [False, True])
def test_classification_names_the_likeliest_classes(digits: Running, binary: bool) -> None:
    own = {"classification": 2, "binary_data": binary}
    wanted = [{"name": "probabilities", "parameters": own}]
    found = outputs(digits.infer(*question({"images": IMAGES}, outputs=wanted)))
    scores = outputs(digits.infer(*question({"images": IMAGES})))["probabilities"]
    assert found["probabilities"].shape == (3, 2)
    for texts, row in zip(found["probabilities"], scores, strict=True):
        best = np.argsort(-row)[:2]
        assert texts.tolist() == [f"{row[at]:f}:{at}:{CLASSES[at]}" for at in best]
    wanted[0]["parameters"]["classification"] = 99
    most = outputs(digits.infer(*question({"images": IMAGES}, outputs=wanted)))
    assert most["probabilities"].shape == (3, len(CLASSES))


def test_each_answer_says_who_gave_it_and_to_what(digits: Running) -> None:
    reply = digits.infer(*question({"images": IMAGES}, id="sent by me"))
    told = reply.json
    assert told["id"] == "sent by me"
    assert "x-request-id" not in reply.headers  # no header may hold blanks
    assert (told["model_name"], told["model_version"]) == ("digits", "3")
    assert told["parameters"] == {"alias": "champion"}
    assert reply.headers["x-model-version"] == "3"
    assert reply.headers["x-model-alias"] == "champion"
    named = digits.infer(*question({"images": IMAGES}), X_Request_Id="abc-1")
    assert named.json["id"] == named.headers["x-request-id"] == "abc-1"
    unnamed = [digits.infer(*question({"images": IMAGES})) for _ in range(2)]
    ids = {one.json["id"] for one in unnamed}
    assert ids == {one.headers["x-request-id"] for one in unnamed}
    assert len(ids) == 2
    strange = digits.infer(*question({"images": IMAGES}), X_Request_Id="ü" * 3)
    assert strange.status == 200
    assert strange.headers["x-request-id"].isascii()


def test_only_the_version_that_answers_can_be_asked(digits: Running) -> None:
    head, _ = question({"images": IMAGES})
    assert digits.ask("/v2/models/digits/versions/3/infer", head).status == 200
    other = digits.ask("/v2/models/digits/versions/2/infer", head)
    assert other.status == 404
    assert other.error == (
        "version '2' of 'digits' is not the one that answers, which is 3 (champion)"
    )
    unknown = digits.ask("/v2/models/letters/infer", head)
    assert (unknown.status, unknown.error) == (404, "no model 'letters'; served is 'digits'")
    for path in ("", "/config", "/stats", "/ready"):
        assert digits.ask(f"/v2/models/digits/versions/3{path}").status == 200
        assert digits.ask(f"/v2/models/digits/versions/4{path}").status == 404


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_bodies_and_answers(digits: Running, coding: str, pack) -> None:  # type: ignore[no-untyped-def]
    many = np.repeat(IMAGES, 9, axis=0)
    head, behind = question({"images": many}, binary=True)
    sent = {"Inference-Header-Content-Length": str(len(head)), "Content-Encoding": coding}
    plain = digits.ask("/v2/models/digits/infer", pack(head + behind), sent)
    assert "content-encoding" not in plain.headers
    sent["Accept-Encoding"] = f"br, {coding}"
    packed = digits.ask("/v2/models/digits/infer", pack(head + behind), sent)
    assert packed.headers["content-encoding"] == coding
    content = zlib.decompress(packed.body, 47)
    assert json.loads(content)["outputs"] == plain.json["outputs"]
    assert len(packed.body) < len(content)


def test_a_batch_beyond_the_models_is_answered_in_parts(
    digits: Running, models: dict[str, Path]
) -> None:
    many = DRAW.integers(0, 256, (100, 1, 4, 4), dtype=np.uint8)
    assert digits.ask("/v2/models/digits/config").json["max_batch_size"] == 8
    found = outputs(digits.infer(*question({"images": many}, binary=True)))
    raw, _ = OnnxModel.load(models["classifier"], "cpu").both(many)
    np.testing.assert_allclose(found["logits"], raw, rtol=1e-6)


def test_parameters_that_change_nothing_are_passed_over(digits: Running) -> None:
    given = {"priority": 3, "timeout": 1000, "of_mine": "x", "sequence_id": 0}
    assert digits.infer(*question({"images": IMAGES}, parameters=given)).status == 200
    kept = {"sequence_id": 7, "sequence_start": True, "sequence_end": False}
    refused = digits.infer(*question({"images": IMAGES}, parameters=kept))
    assert refused.status == 400
    assert "keeps no state" in refused.error
