"""`POST /predict`: images and tables as they are, read as training reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from handmade_models import COLUMNS
from PIL import Image
from served import Reply, Running

from pipelines.data.images import decode
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.columns import codes

DRAW = np.random.default_rng(0)


def png(width: int = 9, height: int = 7, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    pixels = DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(held, format=kind)
    return held.getvalue()


def form(files: Sequence[tuple[str, bytes]], kind: str = "image/png") -> tuple[bytes, str]:
    """A form as browsers and curl send it."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    field = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    return b"".join(parts) + field + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def predict(running: Running, body: bytes, kind: str = "", query: str = "") -> Reply:
    return running.ask(f"/predict{query}", body, {"Content-Type": kind} if kind else {})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_an_image_is_decoded_as_in_training(
    digits: Running, models: dict[str, Path], kind: str
) -> None:
    content = png(kind=kind)
    reply = predict(digits, content, f"image/{kind.lower()}", "?top=2")
    (told,) = reply.json["answers"]
    inputs = decode(content, size=4, channels=1)[None]
    (expected,) = OnnxModel.load(models["classifier"], "cpu").answers(inputs)
    order = np.argsort(-expected)
    classes = digits.live.current.model.form.classes
    assert told["label"] == classes[order[0]]
    assert told["probability"] == pytest.approx(expected.max(), rel=1e-5)
    assert [one["label"] for one in told["top"]] == [classes[at] for at in order[:2]]
    assert reply.json["model_version"] == reply.headers["x-model-version"] == "3"
    assert reply.json["parameters"] == {"alias": "champion"}
    assert reply.json["id"] == reply.headers["x-request-id"]
    assert predict(digits, content, "", "?top=2").json["answers"] == [told]


def test_a_form_of_several_images(digits: Running) -> None:
    contents = [("a.png", png()), ("ü.png", png()), ("c.png", png())]
    reply = predict(digits, *form(contents))
    told = reply.json["answers"]
    assert [one["name"] for one in told] == ["a.png", "ü.png", "c.png"]
    for one, (_, content) in zip(told, contents, strict=True):
        (alone,) = predict(digits, content).json["answers"]
        assert one["label"] == alone["label"]
        assert one["probability"] == pytest.approx(alone["probability"], rel=1e-5)


ROWS = [
    {"age": 30.5, "city": "Zürich", "height": 1.8, "other": "x"},
    {"age": None, "city": "Genève", "height": 1.6, "other": "y"},
    {"age": 50, "city": None, "height": 1.7, "other": None},
]
CSV = "city;age;height;other\nZürich;30.5;1.8;x\nGenève;;1.6;y\n;50;1.7;\n"


def parquet() -> bytes:
    held = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), held)
    return held.getvalue()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps(ROWS).encode(), "application/json"),
        (CSV.encode(), "text/csv; charset=utf-8"),
        ("\n".join(map(json.dumps, ROWS)).encode(), "application/x-ndjson"),
        (parquet(), "application/vnd.apache.parquet"),
        form([("rows.csv", CSV.encode())], "application/octet-stream"),
        form([("rows.parquet", parquet())], "application/octet-stream"),
        form([("rows.jsonl", "\n".join(map(json.dumps, ROWS)).encode())], "text/plain"),
    ],
)
def test_tables_in_every_form(
    houses: Running, models: dict[str, Path], body: bytes, kind: str
) -> None:
    reply = predict(houses, body, kind)
    told = [one["values"]["price"] for one in reply.json["answers"]]
    cities = codes(["Zürich", "Genève", ""], COLUMNS[1].categories)
    rows = np.stack([[30.5, np.nan, 50.0], cities, [1.8, 1.6, 1.7]], axis=1)
    expected = OnnxModel.load(models["table"], "cpu").answers(rows)[:, 0]
    np.testing.assert_array_equal(told, expected)
    assert len({one["name"] for one in reply.json["answers"]}) == 3


def test_a_reconstructions_error_is_told(pictures: Running) -> None:
    held = io.BytesIO()
    np.save(held, DRAW.integers(0, 65536, (3, 3, 2), dtype=np.uint16))
    (told,) = predict(pictures, held.getvalue()).json["answers"]
    assert told["error"] == pytest.approx(0, abs=1e-9)


BOMB = io.BytesIO()
Image.new("1", (20_000, 20_000)).save(BOMB, format="PNG")


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "image/png", 400, "the body is empty"),
        (b"text", "image/png", 422, "not a readable image"),
        (png()[:-30], "image/png", 422, "corrupt or truncated"),
        (BOMB.getvalue(), "image/png", 422, "million pixels"),
        (b"\x93NUMPY" + b"\0" * 30, "", 422, "npy"),
        (b"no form", "multipart/form-data; boundary=edge", 400, "not whole"),
        (b"--edge--", "multipart/form-data", 400, "boundary"),
        (b"--edge--\r\n", "multipart/form-data; boundary=edge", 400, "no whole file"),
        (form([("a.png", png())])[0][:-30], "multipart/form-data; boundary=edge", 400, "whole"),
        (form([("a.png", b"x")])[0], "multipart/form-data; boundary=edge", 422, "a.png"),
        (
            form([(f"{at}.png", b"x") for at in range(300)])[0],
            "multipart/form-data; boundary=edge",
            400,
            "more than 256 files",
        ),
    ],
    ids=range(11),
)
def test_images_that_are_none(
    digits: Running, body: bytes, kind: str, status: int, reason: str
) -> None:
    reply = predict(digits, body, kind)
    assert reply.status == status
    assert reason in reply.error


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"x", "", 415, "the model takes a table"),
        (png(), "image/png", 415, "the model takes a table"),
        (b"{}", "application/json", 422, "needed: a CSV, Parquet, or JSON"),
        (b"[]", "application/json", 422, "at least 1 item"),
        (b'[{"age": [1]}]', "application/json", 422, "0.age"),
        (b"[" * 100_000, "application/json", 422, "recursion"),
        (b'[{"age": 1}]', "application/json", 422, "lacks columns city, height"),
        (json.dumps(ROWS).replace("30.5", '"old"').encode(), "application/json", 422, "age"),
        (b"age,city\n1\n", "text/csv", 422, "1 cells, but 2 column names"),
        (b"\xff\xfe", "text/csv", 422, "UTF-8"),
        (b'{"age": ' + b"9" * 5000 + b"}", "application/x-ndjson", 422, "not JSON"),
        (b"[" * 100_000, "application/x-ndjson", 422, "not JSON"),
        (parquet()[:-20], "application/x-parquet", 422, "not a whole Parquet file"),
        (b"PAR1", "application/x-parquet", 422, "not a whole Parquet file"),
    ],
    ids=range(14),
)
def test_tables_that_are_none(
    houses: Running, body: bytes, kind: str, status: int, reason: str
) -> None:
    reply = predict(houses, body, kind)
    assert reply.status == status
    assert reason in reply.error


def test_a_parquet_bomb(houses: Running) -> None:
    held = io.BytesIO()
    rows = 5_000_000
    table = pyarrow.table({"age": np.zeros(rows), "height": np.zeros(rows)})
    pyarrow.parquet.write_table(table, held, compression="zstd")
    assert len(held.getvalue()) < 10**6
    reply = predict(houses, held.getvalue(), "application/x-parquet")
    assert reply.status == 422
    assert "unpacks to more than" in reply.error


@pytest.mark.parametrize("top", ["0", "-1", "x", "1e3", "99999999", "%ff"])
def test_how_many_classes_are_named(digits: Running, top: str) -> None:
    reply = predict(digits, png(), "", f"?top={top}")
    assert (reply.status, reply.error) == (400, "top: allowed are 1 to 1000")
