"""Requests that are wrong: each gets a 4xx with the reason, and the server answers on."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from questions import question
from served import Running

IMAGE = np.zeros((1, 1, 4, 4), np.uint8)
GOOD: dict[str, Any] = {"name": "images", "shape": [1, 1, 4, 4], "datatype": "UINT8"}
GOOD["data"] = [0] * 16


@pytest.fixture(autouse=True)
def alive(digits: Running) -> Iterator[None]:
    yield
    assert digits.infer({"inputs": [GOOD]}).status == 200


def changed(**changes: Any) -> dict[str, Any]:
    made = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return {"inputs": [made]}


WRONG: list[tuple[Any, str]] = [
    (b"", "0 bytes"),
    (b"{", "Invalid JSON"),
    (b"[]", "should be an object"),
    (b"null", "should be an object"),
    (b"\xff\xfe", "Invalid JSON"),
    (b'{"inputs": [' + b"[" * 100_000, "recursion limit"),
    (b'{"inputs": ' + b'{"a":' * 10_000, "recursion limit"),
    ({"inputs": []}, "inputs: List should have at least 1 item"),
    ({"inputs": [GOOD], "more": 1}, "more: Extra inputs are not permitted"),
    ({"inputs": [GOOD], "id": 7}, "id: Input should be a valid string"),
    ({"inputs": [GOOD], "id": "a\nb"}, "printable"),
    ({"inputs": [GOOD], "id": "a" * 200}, "id: String should have at most 128"),
    ({"inputs": [GOOD, GOOD]}, "input 'images' occurs twice"),
    ({"inputs": [GOOD | {"name": "pixels"}]}, "the model takes images"),
    ({"inputs": [GOOD] * 17}, "at most 16 items"),
    (changed(datatype="FP32"), "the model takes UINT8 [n, 1, 4, 4]"),
    (changed(datatype="uint8"), "the model takes UINT8"),
    (changed(shape=[1, 16]), "the model takes UINT8"),
    (changed(shape=[]), "the model takes UINT8"),
    (changed(shape=[1, 1, 4, "4"]), "shape.3: Input should be a valid integer"),
    (changed(shape=[1, 1, 4, True]), "shape.3: Input should be a valid integer"),
    (changed(shape=[-1, 1, 4, 4]), "shape.0: Input should be greater than or equal to 0"),
    (changed(shape=[2**40, 1, 4, 4]), "shape.0: Input should be less than"),
    (changed(shape=[0, 1, 4, 4], data=[]), "a batch of 0; needed: at least 1 example"),
    (changed(shape=[2, 1, 4, 4]), "16 values, but the shape [2, 1, 4, 4] needs 32"),
    (changed(shape=[2**31 - 1, 1, 4, 4]), "allowed in one request"),
    (changed(data=None), "neither data nor binary_data_size"),
    (changed(data="0" * 16), "data: Input should be a valid array"),
    (changed(data=[0] * 15), "15 values"),
    (changed(data=[0] * 15 + [256]), "beyond the range of UINT8"),
    (changed(data=[0] * 15 + [-1]), "beyond the range of UINT8"),
    (changed(data=[0] * 15 + [10**400]), "beyond the range of UINT8"),
    (changed(data=[0] * 15 + [0.5]), "holds a number with a fraction"),
    (changed(data=[0] * 15 + [True]), "holds a truth value"),
    (changed(data=[0] * 15 + [None]), "holds null"),
    (changed(data=[0] * 15 + ["x" * 100_000]), "holds a text"),
    (changed(data=[0] * 15 + [{"a": 1}]), "holds an object"),
    (changed(data=[0] * 15 + [[0]]), "do not have the shape"),
    (changed(data=[[[[0] * 4] * 4], 3]), "do not have the shape"),
    (changed(data=[[[[0] * 4] * 3 + [[0] * 3]]]), "do not have the shape"),
    (changed(data=[[[[[0]] * 4] * 4]]), "holds a list"),
    (json.dumps(changed()).replace("[0, 0", "[NaN, 0").encode(), "holds a number with a fraction"),
    (b'{"inputs": [' + b"9" * 5000 + b"]}", "Invalid JSON"),
    (changed(parameters={"binary_data_size": 16}), "has data and binary_data_size"),
    (changed(data=None, parameters={"binary_data_size": 16}), "0 bytes are left"),
    (changed(data=None, parameters={"binary_data_size": -1}), "binary_data_size = -1"),
    (changed(data=None, parameters={"binary_data_size": "16"}), "binary_data_size = 16"),
    (changed(parameters={"shared_memory_region": "mine"}), "shared memory is not served"),
    (changed(parameters={"a": [1]}), "inputs.0.parameters.a"),
    ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "allowed: true, false"),
    ({"inputs": [GOOD], "outputs": [{"name": "x"}]}, "the model gives logits, probabilities"),
    ({"inputs": [GOOD], "outputs": [{"name": "logits"}] * 2}, "occurs twice"),
    (
        {"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"classification": -1}}]},
        "allowed: 1 to 3",
    ),
    (
        {"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"classification": 1.5}}]},
        "allowed: 1 to 3",
    ),
    (
        {"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
        "allowed: true, false",
    ),
]


@pytest.mark.parametrize(("request_", "reason"), WRONG, ids=range(len(WRONG)))
def test_what_breaks_the_protocol(digits: Running, request_: Any, reason: str) -> None:
    reply = digits.infer(request_)
    assert reply.status in (400, 413)
    assert reason in reply.error
    assert reply.headers["content-type"] == "application/json"
    assert "x-request-id" in reply.headers
    assert len(reply.body) < 2000


@pytest.mark.parametrize(
    ("length", "behind", "reason"),
    [
        ("0", b"", "of which 0 are JSON"),
        ("9999", b"", "of which 9999 are JSON"),
        ("-1", b"", "must be a number of bytes"),
        ("1e3", b"", "must be a number of bytes"),
        ("9" * 30, b"", "must be a number of bytes"),
        (None, b"\0" * 15, "binary_data_size = 16, but 15 bytes are left"),
        (None, b"\0" * 17, "1 bytes behind the JSON belong to no input"),
        ("10", b"\0" * 16, "Invalid JSON"),
    ],
)
def test_binary_tensors_of_wrong_length(
    digits: Running, length: str | None, behind: bytes, reason: str
) -> None:
    head, _ = question({"images": IMAGE}, binary=True)
    sent = {"Inference-Header-Content-Length": length or str(len(head))}
    reply = digits.ask("/v2/models/digits/infer", head + behind, sent)
    assert reply.status == 400
    assert reason in reply.error


def test_a_tensor_of_another_size_than_its_shape(digits: Running) -> None:
    head, _ = question({"images": IMAGE}, binary=True)
    reply = digits.infer(head.replace(b": 16}", b": 12}"), b"\0" * 12)
    assert (reply.status, reply.error) == (
        400,
        "input 'images': 12 bytes, but UINT8 [1, 1, 4, 4] has 16",
    )


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (b"", "not 1 texts"),
        (b"\x04\0\0\0Ber", "not 1 texts"),
        (b"\x04\0\0\0Bern\0", "not 1 texts"),
        (b"\x04\0\0\0Bern\0\0\0\0", "not 1 texts"),
        (b"\xff\xff\xff\xffBern", "not 1 texts"),
        (b"\x02\0\0\0\xff\xfe", "text 0 is not UTF-8"),
    ],
)
def test_texts_that_are_none(houses: Running, texts: bytes, reason: str) -> None:
    given = {"numbers": np.zeros((1, 2)), "categories": np.array([["Bern"]], object)}
    head, behind = question(given, binary=True)
    head = head.replace(b'"binary_data_size": 8', b'"binary_data_size": %d' % len(texts))
    reply = houses.infer(head, behind[:16] + texts)
    assert reply.status == 400
    assert reason in reply.error


def test_rows_that_do_not_fit(houses: Running) -> None:
    def asked(numbers: Any, categories: Any = "Bern", cities: int = 1) -> tuple[int, str]:
        made = {"numbers": np.array([numbers]), "categories": np.array([[categories]] * cities)}
        made["categories"] = made["categories"].astype(object)
        reply = houses.infer(*question(made, binary=True))
        return reply.status, reply.body.decode()

    assert asked([1.0, 2.0])[0] == 200
    status, told = asked([np.inf, 2.0])
    assert status == 422
    assert "infinite" in told
    status, told = asked([1.0, 2.0], cities=2)
    assert status == 400
    assert "different numbers of examples" in told
    head, _ = question({"numbers": np.zeros((1, 2))})
    assert houses.infer(head).error == "lacks the input 'categories'"
    large = head.replace(b"[0.0, 0.0]", b"[1e999, 0.0]")
    assert "no finite number" in houses.infer(large).error


def test_bodies_that_are_too_large(digits: Running) -> None:
    most = digits.app.settings.max_body if digits.app else 0
    head, _ = question({"images": IMAGE})
    assert digits.infer(head + b" " * (most - len(head))).status == 200
    large = digits.infer(head + b" " * (most + 1 - len(head)))
    assert large.status == 413
    assert "allowed: 200000" in large.error
    chunks = [b"1000\r\n" + b" " * 4096 + b"\r\n"] * 60
    chunked = digits.ask(
        "/v2/models/digits/infer", b"".join(chunks) + b"0\r\n\r\n", {"Transfer-Encoding": "chunked"}
    )
    assert chunked.status == 413


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", gzip.compress(b" " * 50_000_000), 413),
        ("deflate", zlib.compress(b" " * 50_000_000), 413),
        ("gzip", gzip.compress(b"{}")[:-4], 400),
        ("gzip", gzip.compress(b"{}") + b"more", 400),
        ("gzip", b"not packed", 400),
        ("deflate", gzip.compress(b"{}"), 400),
        ("br", b"anything", 415),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415),
    ],
    ids=["bomb", "zlib bomb", "cut", "tail", "plain", "other", "unknown", "twice"],
)
def test_packed_bodies_that_are_none_or_bombs(
    digits: Running, coding: str, body: bytes, status: int
) -> None:
    assert len(body) < 100_000
    reply = digits.ask("/v2/models/digits/infer", body, {"Content-Encoding": coding})
    assert reply.status == status
    assert reply.error


def test_paths_and_methods_that_there_are_not(digits: Running) -> None:
    for path in ("/", "/v2/models", "/v2/models/digits/nothing", "/v3", "/v2/models/a%2Fb/ready"):
        reply = digits.ask(path)
        assert reply.status == 404
        assert reply.error
    reply = digits.ask("/v2/models/digits/infer")
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert digits.ask("/v2", b"{}").status == 405
    assert digits.ask("/v2/models/digits/infer", b"x", method="DELETE").status == 405


def test_an_answer_that_would_be_too_large_as_json(pictures: Running) -> None:
    n = 2**20 // 18 + 1
    images = np.zeros((n, 2, 3, 3), np.uint16)
    wanted = [{"name": "answers"}]
    reply = pictures.infer(*question({"images": images}, binary=True, outputs=wanted))
    assert reply.status == 413
    assert "ask for binary_data" in reply.error
    wanted[0]["parameters"] = {"binary_data": True}  # type: ignore[assignment]
    assert pictures.infer(*question({"images": images}, binary=True, outputs=wanted)).status == 200
