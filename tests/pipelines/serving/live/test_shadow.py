"""The challenger beside the champion: compared and logged, never returned, and harmless."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from finished_checkout import FinishedCheckout
from live_server import MODEL, Server, serving
from many_clients import load
from numpy.typing import NDArray
from onnx import helper

from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.data.prepared import load_split
from pipelines.release.register import register
from pipelines.serving.request_log import log_folder
from pipelines.serving.shadow.process import ShadowFailed, ShadowProcess
from pipelines.systems.onnx.runtime import OnnxModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(checkouts: Callable[[], Layout]) -> Iterator[Server]:
    """A server whose challenger, version 3, sees every request."""
    layout = checkouts()
    made = FinishedCheckout.make(layout, 40.0, 1)
    assert register(layout, made.params, None).version == 3
    with serving(layout, "--poll", "0.2", "--shadow", "1") as found:
        yield found


def _challenger(server: Server) -> int:
    told = server.children().items()
    return next((pid for pid, command in told if "run_challenger" in command), 0)


def test_the_challengers_answers_are_compared_and_logged_and_never_returned(
    server: Server, images: NDArray[np.uint8]
) -> None:
    folder = log_folder(server.layout, MODEL)

    def seen() -> list[dict[str, object]]:
        texts = [path.read_bytes() for path in folder.glob("shadow/*.jsonl")]
        return [json.loads(line) for text in texts for line in text.split(b"\n")[:-1]]

    with load(server.port, MODEL, images, clients=2) as clients:
        assert wait_until(lambda: len(seen()) >= 20, 30, pause=0.2), server.log()
        report = clients.stop()
    assert report.failures == []
    assert set(report.versions) == {2}
    ids = {name for name, *_ in report.answers}
    records = seen()
    assert {record["version"] for record in records} == {3}
    assert {record["request"] for record in records} <= ids
    agree = {record["shadow"]["agree"] for record in records}  # type: ignore[index]
    assert agree <= {0.0, 0.5, 1.0}
    told = server.get("/metrics").decode()
    assert "prong_shadow_examples_total{agree=" in told
    assert 'prong_shadow_difference_count{version="3"}' in told


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
def test_a_challenger_that_hangs_or_dies_harms_no_request(
    server: Server, images: NDArray[np.uint8], blow: signal.Signals
) -> None:
    assert wait_until(lambda: _challenger(server), 30)
    with load(server.port, MODEL, images, clients=4) as clients:
        clients.wait_for(100)
        struck = _challenger(server)
        os.kill(struck, blow)
        clients.wait_for(300)
        assert wait_until(lambda: _challenger(server) not in (0, struck), 40, pause=0.2)
        clients.wait_for(100)
        report = clients.stop()
    assert report.failures == []
    assert set(report.versions) == {2}


def _altered(layout: Layout, target: Path, nodes: list[onnx.NodeProto], **sizes: int) -> Path:
    """Write the champion's model with more nodes, whose result is `term`, added to its logits."""
    model = onnx.load(layout.onnx)
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    model.graph.node[at].output[0] = "plain"
    added = [*nodes, helper.make_node("Add", ["plain", "term"], ["logits"])]
    for place, node in enumerate(added, at + 1):
        model.graph.node.insert(place, node)
    for name, size in sizes.items():
        values = onnx.numpy_helper.from_array(np.array([size, size], np.int64), name)
        model.graph.initializer.append(values)
    target.write_bytes(model.SerializeToString())
    return target


def _fails(layout: Layout, file: Path, folder: Path, inputs: NDArray[np.uint8]) -> str:
    folder.mkdir()
    champion = OnnxModel.load(layout.onnx, "cpu")
    with (
        pytest.raises(ShadowFailed) as caught,
        ShadowProcess(file, sha256_file(file), layout.onnx, folder=folder, memory=2**30) as process,
    ):
        process.wait_ready(30)
        process.ask(inputs, champion.answers(inputs), 2.0)
    return str(caught.value)


def test_a_challenger_that_is_no_challenger_is_ended(
    checkouts: Callable[[], Layout], tmp_path: Path
) -> None:
    layout = checkouts()
    inputs = load_split(layout.prepared, "test").inputs[:2]
    large = [
        helper.make_node("ConstantOfShape", ["large"], ["zeros"]),
        helper.make_node("ReduceMean", ["zeros"], ["term"], keepdims=0),
    ]
    outgrown = _altered(layout, tmp_path / "large.onnx", large, large=40_000)
    assert "more than 1024 MiB" in _fails(layout, outgrown, tmp_path / "1", inputs)
    loop = [helper.make_node("LoopOfMine", ["plain"], ["term"], domain="mine")]
    strange = _altered(layout, tmp_path / "strange.onnx", loop)
    assert "not allowed" in _fails(layout, strange, tmp_path / "2", inputs)
    slow = [
        helper.make_node("ConstantOfShape", ["slow"], ["zeros"]),
        *(helper.make_node("MatMul", ["zeros", "zeros"], ["m0"]) for _ in range(1)),
        *(helper.make_node("MatMul", [f"m{n}", "zeros"], [f"m{n + 1}"]) for n in range(400)),
        helper.make_node("ReduceMean", ["m400"], ["term"], keepdims=0),
    ]
    hangs = _altered(layout, tmp_path / "slow.onnx", slow, slow=3000)
    assert "no answer within" in _fails(layout, hangs, tmp_path / "3", inputs)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no model")
    assert "other.onnx" in _fails(layout, other, tmp_path / "4", inputs)
