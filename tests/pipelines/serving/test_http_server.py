"""How the server behaves: ready or not, full, ending, writing down, batching, watched."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from questions import outputs, question
from served import Reply, Running, loaded, serving

from pipelines.serving.http.live import Live
from pipelines.serving.request_log import RequestLog
from pipelines.serving.request_records import read_log

IMAGE = np.zeros((1, 1, 4, 4), np.uint8)
HEAD, BEHIND = question({"images": IMAGE}, binary=True)


def figure(running: Running, name: str, **labels: str) -> float:
    """One figure of the metrics, summed over what the labels leave open."""
    text = running.ask("/metrics").body.decode()
    lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    held = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(number) for named, number in lines if all(one in named for one in held))


def together(running: Running, pixels: Sequence[int]) -> list[Reply]:
    """Ask about images of one pixel at the same time."""
    start = threading.Barrier(len(pixels))

    def ask(pixel: int) -> Reply:
        asked = question({"images": np.full((1, 1, 1, 1), pixel, np.uint8)}, binary=True)
        start.wait()
        return running.infer(*asked)

    with ThreadPoolExecutor(len(pixels)) as pool:
        return [*pool.map(ask, pixels)]


def test_before_the_first_version_it_lives_and_is_not_ready(models: dict[str, Path]) -> None:
    with serving(None) as running:
        assert running.ask("/v2/health/live").status == 200
        for path in ("/v2/health/ready", "/v2/models/digits/ready", "/v2/models/digits"):
            reply = running.ask(path)
            assert reply.status == 503
            assert "no released version is loaded yet" in reply.error
        for reply in (running.infer(HEAD, BEHIND), running.ask("/predict", b"x")):
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
        (entry,) = running.ask("/v2/repository/index", b"").json
        assert entry["state"] == "UNAVAILABLE"
        assert running.ask("/health").json["ready"] is False
        assert figure(running, "prong_ready") == 0
        running.live.swap(loaded(models["classifier"]))
        assert running.ask("/v2/health/ready").json == {"ready": True}
        assert running.infer(HEAD, BEHIND).status == 200
        assert figure(running, "prong_ready") == 1


def test_another_version_takes_over(models: dict[str, Path]) -> None:
    with serving(loaded(models["classifier"], 3)) as running:
        running.infer(HEAD, BEHIND)
        running.live.swap(loaded(models["classifier"], 4))
        running.live.problems = ("the registry does not answer",)
        assert running.infer(HEAD, BEHIND).headers["x-model-version"] == "4"
        told = running.ask("/health").json
        assert (told["version"], told["reloads"], told["provider"]) == (4, 1, "cpu")
        assert told["problems"] == ["the registry does not answer"]
        assert figure(running, "prong_registry_problems") == 1
        assert figure(running, "prong_reloads_total") == 1
        assert figure(running, "prong_model_info", version="4") == 1
        for version in ("3", "4"):
            asked = {"route": "infer", "version": version, "status": "200"}
            assert figure(running, "prong_requests_total", **asked) == 1
        stats = running.ask("/v2/models/stats").json["model_stats"]
        assert [one["version"] for one in stats] == ["3", "4"]
        assert stats[1]["inference_stats"]["success"]["count"] == 1


def test_requests_that_wait_are_joined_and_stay_apart(models: dict[str, Path]) -> None:
    with serving(loaded(models["fragile"]), max_batch=16, batch_delay_ms=200) as running:
        replies = together(running, [*range(8), 255, 254, 100])
        shares = [outputs(reply)["logits"][0, 0] for reply in replies[:8]]
        np.testing.assert_allclose(shares, np.arange(8) / 255, rtol=1e-6)
        assert outputs(replies[10])["logits"][0, 0] == np.float32(100 / 255)
        assert [reply.status for reply in replies[8:10]] == [422, 422]
        assert "the model cannot answer these inputs" in replies[8].error
        assert "no finite number" in replies[9].error
        # The joint call failed, and each request was asked alone.
        assert figure(running, "prong_batch_requests_count") == 10
        assert [one.status for one in together(running, range(12))] == [200] * 12
        assert figure(running, "prong_batch_requests_count") < 10 + 6
        (stats,) = running.ask("/v2/models/digits/stats").json["model_stats"]
        assert stats["inference_stats"]["fail"]["count"] == 2
        assert stats["inference_count"] == 9 + 12
        assert stats["execution_count"] < 10 + 6


class Slow:
    """A drift score that takes its time, so that requests gather behind it."""

    method, reference_scores = "slow", (0.0, 1.0)

    def __init__(self) -> None:
        self.card, self.go, self.entered = self, threading.Event(), threading.Event()

    def scores(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        self.entered.set()
        assert self.go.wait(30)
        return np.full(len(inputs), 0.5)


def test_a_full_queue_says_when_to_come_again(models: dict[str, Path], tmp_path: Path) -> None:
    slow = Slow()
    version = loaded(models["classifier"], drift=slow)
    with serving(version, RequestLog(tmp_path), queue=2) as running:
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(running.infer, HEAD, BEHIND)
            assert slow.entered.wait(30)
            waiting = [pool.submit(running.infer, HEAD, BEHIND) for _ in range(2)]
            while running.ask("/health").json["waiting"] < 2:
                time.sleep(0.01)
            assert figure(running, "prong_queue_requests") == 2
            refused = [running.infer(HEAD, BEHIND), running.ask("/predict", b"x")]
            slow.go.set()
            assert [one.result().status for one in (first, *waiting)] == [200] * 3
        for reply in refused:
            assert reply.status == 429
            assert reply.headers["retry-after"] == "1"
            assert "wait" in reply.error
        assert running.infer(HEAD, BEHIND).status == 200
        assert figure(running, "prong_requests_total", status="429") == 2


def test_an_ending_server_is_not_ready_and_finishes(
    models: dict[str, Path], tmp_path: Path
) -> None:
    slow = Slow()
    version = loaded(models["classifier"], drift=slow)
    with serving(version, RequestLog(tmp_path)) as running, ThreadPoolExecutor(1) as pool:
        flying = pool.submit(running.infer, HEAD, BEHIND)
        assert slow.entered.wait(30)
        assert running.app is not None
        running.app.draining = True
        assert running.ask("/v2/health/live").status == 200
        for path in ("/v2/health/ready", "/v2/models/digits/ready"):
            reply = running.ask(path)
            assert reply.status == 503
            assert "ending" in reply.error
        threading.Timer(0.3, slow.go.set).start()
        # Leaving the block ends the server while the request is in flight.
    assert flying.result().status == 200
    assert flying.result().headers["connection"] == "close"


def test_requests_are_written_down_before_they_are_answered(
    models: dict[str, Path], tmp_path: Path
) -> None:
    log = RequestLog(tmp_path, keep_inputs=True)
    with serving(loaded(models["classifier"]), log) as running:
        images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
        for number in range(3):
            head, behind = question({"images": images}, binary=True, id=f"r{number}")
            found = outputs(running.infer(head, behind))
            (*_, record) = read_log(tmp_path)
            assert record.request == f"r{number}"
        assert (record.model, record.version, record.examples) == ("digits", 3, 2)
        assert record.sha256 == running.live.current.sha256
        np.testing.assert_allclose(record.answers, found["probabilities"], rtol=1e-5)
        assert list(record.labels) == found["probabilities"].argmax(axis=1).tolist()
        with np.load(tmp_path / record.inputs) as kept:
            np.testing.assert_array_equal(kept["images"], images)
        running.infer(b"{}")
        assert len([*read_log(tmp_path)]) == 3
    log.close()


def test_a_log_that_cannot_be_written_fails_no_request(
    models: dict[str, Path], tmp_path: Path
) -> None:
    log = RequestLog(tmp_path / "log")
    (tmp_path / "log").rmdir()
    with serving(loaded(models["classifier"]), log) as running:
        assert running.infer(HEAD, BEHIND).status == 200
        told = running.ask("/health").json
        assert told["log_lost"] == 1
        assert "request log: No such file" in told["problems"][0]
        assert figure(running, "prong_log_lost") == 1


class Drifting(Slow):
    """Scores that need no waiting: the sum of the pixels."""

    method, reference_scores = "sum", tuple(range(100))

    def scores(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        if inputs.max() == 255:
            raise ValueError("too bright")
        return inputs.reshape(len(inputs), -1).sum(axis=1).astype(np.float64)


class Noting:
    """Keeps what the challenger is offered."""

    def __init__(self) -> None:
        self.offered: list[tuple[Any, ...]] = []

    def offer(self, *given: Any) -> None:
        self.offered.append(given)


def test_drift_scores_and_the_challengers_copy(models: dict[str, Path], tmp_path: Path) -> None:
    log, shadow = RequestLog(tmp_path), Noting()
    version = loaded(models["classifier"], drift=Drifting())
    with serving(version, log, shadow) as running:
        images = np.stack([np.full((1, 4, 4), value, np.uint8) for value in (1, 2)])
        head, behind = question({"images": images}, binary=True, id="mine")
        found = outputs(running.infer(head, behind))
        (record,) = read_log(tmp_path)
        assert list(record.drift) == [16.0, 32.0]
        assert figure(running, "prong_drift_rank_count", version="3") == 2
        assert figure(running, "prong_drift_rank_sum", version="3") == pytest.approx(0.16 + 0.32)
        assert running.ask("/health").json["drift"] == "sum"
        ((ids, counts, inputs, answers, number),) = shadow.offered
        assert (ids, counts, number) == (["mine"], [2], 3)
        np.testing.assert_array_equal(inputs, images)
        np.testing.assert_allclose(answers, found["probabilities"])
        bright = question({"images": np.full((1, 1, 4, 4), 255, np.uint8)}, binary=True)
        assert running.infer(*bright).status == 200
        assert figure(running, "prong_drift_failures_total") == 1
    log.close()


def test_metadata_and_configuration(digits: Running, houses: Running) -> None:
    told = digits.ask("/v2").json
    assert told["name"] == "prong"
    assert "binary_tensor_data" in told["extensions"]
    told = digits.ask("/v2/models/digits").json
    assert told["versions"] == ["3"]
    assert told["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 4, 4]}]
    told = houses.ask("/v2/models/digits").json
    kinds = [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]]
    assert kinds == [("numbers", "FP64", [-1, 2]), ("categories", "BYTES", [-1, 1])]
    kinds = [(one["name"], one["datatype"], one["shape"]) for one in told["outputs"]]
    assert kinds == [("raw", "FP32", [-1, 1]), ("answers", "FP64", [-1, 1])]
    told = houses.ask("/v2/models/digits/config").json
    assert told["input"][1] == {"name": "categories", "data_type": "TYPE_STRING", "dims": [1]}
    assert json.loads(told["parameters"]["numbers"]["string_value"]) == ["age", "height"]
    told = digits.ask("/v2/models/digits/config").json
    classes = json.loads(told["parameters"]["classes"]["string_value"])
    assert classes == ["cat", "dog", "ürsus"]


def test_the_version_before_is_freed(models: dict[str, Path]) -> None:
    live = Live("digits")
    with serving(loaded(models["classifier"]), live=live) as running:
        running.infer(HEAD, BEHIND)
        before = weakref.ref(live.current.model)
        live.swap(loaded(models["classifier"], 4))
        gc.collect()
        assert before() is None
