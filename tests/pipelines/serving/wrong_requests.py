"""Requests with something wrong in them, drawn by a seed: what a fuzzer would send."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from questions import question

INFER = "/v2/models/digits/infer"
BOMBS = (gzip.compress(b"[" * 60_000_000), zlib.compress(b'{"inputs":[' + b" " * 60_000_000))
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**63,
    10**400,
    1e308,
    "",
    "ü" * 50,
    "\x00\ud83d",
    "a" * 5000,
    [],
    {},
    [[[[[[]]]]]],
    [None],
    {"a": {"b": [1]}},
    float("nan"),
    float("inf"),
)


@dataclass
class Sent:
    """One request."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Fuzzer:
    """Draws requests for a model of images and one of a table."""

    def __init__(self, seed: int, table: bool) -> None:
        self.draw = random.Random(seed)
        if table:
            given = {
                "numbers": np.array([[30.0, 1.8], [40.0, 1.7]]),
                "categories": np.array([["Bern"], ["Zürich"]], object),
            }
        else:
            given = {"images": np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)}
        wanted = [
            {"name": name, "parameters": {"binary_data": False}}
            for name in (("raw", "answers") if table else ("logits", "probabilities"))
        ]
        extra: dict[str, Any] = {"id": "mine", "parameters": {"of": 1}, "outputs": wanted}
        self._plain = json.loads(question(given, **extra)[0])
        self._binary = question(given, binary=True, **extra)
        self._files = self._tables() if table else self._images()
        self._kinds: list[Callable[[], Sent]] = [
            self.changed_json,
            self.changed_json,
            self.cut_json,
            self.noise,
            self.changed_binary,
            self.changed_binary,
            self.packed,
            self.deep,
            self.file,
            self.file,
            self.form,
            self.headers,
        ]

    def __iter__(self) -> Iterator[Sent]:
        while True:
            yield self.draw.choice(self._kinds)()

    def _images(self) -> list[tuple[str, bytes]]:
        pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        found = []
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
            held = io.BytesIO()
            Image.fromarray(pixels).save(held, format=kind)
            found.append((f"image/{kind.lower()}", held.getvalue()))
        held = io.BytesIO()
        np.save(held, pixels)
        bomb = io.BytesIO()
        Image.new("1", (9000, 9000)).save(bomb, format="PNG")
        return [*found, ("application/octet-stream", held.getvalue()), ("", bomb.getvalue())]

    def _tables(self) -> list[tuple[str, bytes]]:
        rows = [{"age": 30.5, "city": "Bern", "height": 1.8}, {"age": 1, "city": "", "height": 2}]
        held = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), held)
        lines = "\n".join(map(json.dumps, rows)).encode()
        return [
            ("application/json", json.dumps(rows).encode()),
            ("application/x-ndjson", lines),
            ("text/csv", b"age,city,height\n30.5,Bern,1.8\n,,2\n"),
            ("application/vnd.apache.parquet", held.getvalue()),
        ]

    def damaged(self, content: bytes) -> bytes:
        """Some bytes cut, changed, doubled or put in."""
        draw = self.draw
        found = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(found) + 1)
            match draw.randrange(4):
                case 0:
                    del found[at : at + draw.randint(1, 40)]
                case 1:
                    found[at:at] = draw.randbytes(draw.randint(1, 40))
                case 2 if at < len(found):
                    found[at] = draw.randrange(256)
                case _:
                    found[at:at] = found[: draw.randint(1, 40)]
        return bytes(found)

    def changed_json(self) -> Sent:
        """A value somewhere in the request is another, or absent, or has another name."""
        made = copy.deepcopy(self._plain)
        places: list[tuple[Any, Any]] = []

        def walk(node: Any) -> None:
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    walk(node[key])

        walk(made)
        for _ in range(self.draw.randint(1, 2)):
            node, key = self.draw.choice(places)
            kind = self.draw.randrange(5)
            if isinstance(node, dict) and key in node and kind == 0:
                del node[key]
            elif isinstance(node, dict) and key in node and kind == 1:
                node[self.draw.choice(["", "data", "inputs", "x" * 300])] = node.pop(key)
            elif isinstance(node, list) and kind == 2:
                node.append(copy.deepcopy(self.draw.choice(ODD)))
            else:
                node[key] = copy.deepcopy(self.draw.choice(ODD))
        return Sent(INFER, json.dumps(made).encode("utf-8", "surrogatepass"))

    def cut_json(self) -> Sent:
        """A part of the JSON, or damaged JSON."""
        content = json.dumps(self._plain).encode()
        if self.draw.random() < 0.5:
            return Sent(INFER, content[: self.draw.randrange(len(content))])
        return Sent(INFER, self.damaged(content))

    def noise(self) -> Sent:
        """Bytes without meaning."""
        content = self.draw.randbytes(self.draw.choice([0, 1, 10, 1000, 100_000]))
        return Sent(self.draw.choice([INFER, "/predict"]), content, self._length(len(content)))

    def _length(self, size: int) -> dict[str, str]:
        if self.draw.random() < 0.5:
            return {}
        lengths = ["0", "-1", "x", "", "9" * 40, str(size), str(size + 1), str(size // 2)]
        return {"Inference-Header-Content-Length": self.draw.choice(lengths)}

    def changed_binary(self) -> Sent:
        """Binary tensors that are cut, too long, damaged, or of another length than said."""
        head, behind = self._binary
        length = len(head)
        match self.draw.randrange(5):
            case 0:
                behind = behind[: self.draw.randrange(len(behind))]
            case 1:
                behind += self.draw.randbytes(self.draw.randint(1, 100))
            case 2:
                length += self.draw.randint(-length, 100)
            case 3:
                head = self.damaged(head)
                length = len(head)
            case _:
                behind = self.damaged(behind)
        return Sent(INFER, head + behind, {"Inference-Header-Content-Length": str(length)})

    def packed(self) -> Sent:
        """Packed bodies: bombs, damaged ones, and codings that are not known."""
        coding = self.draw.choice(["gzip", "deflate", "br", "zstd", "gzip, gzip", "x" * 100])
        body = json.dumps(self._plain).encode()
        content = self.draw.choice(
            [*BOMBS, self.damaged(gzip.compress(body)), self.damaged(zlib.compress(body)), body]
        )
        path = self.draw.choice([INFER, INFER, "/predict"])
        return Sent(path, content, {"Content-Encoding": coding})

    def deep(self) -> Sent:
        """JSON that nests, repeats or counts without end."""
        made = self.draw.choice(
            [
                b'{"inputs":' + b"[" * 50_000,
                b'{"inputs":[{"name":"images","data":' + b"[" * 300 + b"]" * 300 + b"}]}",
                b'{"a":' * 20_000,
                b'{"inputs":[' + b"{}," * 50_000 + b"{}]}",
                b'{"id":"' + b"x" * 200_000 + b'","inputs":[]}',
                b'{"inputs":[' + b"1" * 100_000 + b"]}",
                b'{"inputs":[1e' + b"9" * 1000 + b"]}",
                json.dumps({"inputs": [], "parameters": {str(n): n for n in range(9000)}}).encode(),
            ]
        )
        kind = {"Content-Type": "application/json"}
        return Sent(self.draw.choice([INFER, INFER, "/predict"]), made, kind)

    def file(self) -> Sent:
        """A damaged file, or one of another kind than said."""
        kind, content = self.draw.choice(self._files)
        if self.draw.random() < 0.2:
            kind = self.draw.choice(self._files)[0]
        return Sent("/predict", self.damaged(content), {"Content-Type": kind})

    def form(self) -> Sent:
        """A damaged form."""
        kind, content = self.draw.choice(self._files)
        draw = self.draw
        name = draw.choice(["a.png", "a.csv", "", "x" * 5000, '"', "\\", "..\\..\\a.jsonl"])
        body = (
            f'--edge\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n".encode()
            + content
            + b"\r\n--edge--\r\n"
        )
        edge = draw.choice(["edge", "edge", "edge", "other", "", "x" * 300, '"', "ü"])
        sent = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        return Sent("/predict", self.damaged(body), sent)

    def headers(self) -> Sent:
        """Headers that are huge, many or odd."""
        head, behind = self._binary
        odd = self.draw.choice(
            [
                {"X-Huge": "a" * 100_000},
                {f"X-{at}": "a" * 100 for at in range(90)} | {"Content-Type": "x" * 50_000},
                {"Content-Type": self.damaged(b"multipart/form-data; boundary=edge").hex()},
                {"Content-Encoding": ","},
                {"X-Request-Id": "é" * 200, "Inference-Header-Content-Length": "1"},
                {"Origin": "http://evil.example"},
                {"Host": "evil.example"},
                {"Accept-Encoding": "gzip;q=x,,;", "Inference-Header-Content-Length": "0"},
            ]
        )
        return Sent(INFER, head + behind, {"Inference-Header-Content-Length": "7"} | odd)
