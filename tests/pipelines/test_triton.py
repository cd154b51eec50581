"""The model repository for Triton: by Triton's own schema, equal to the graph, never in pieces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from small_models import CLASSES, classifier, reconstruction, regression

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.export.triton import TritonSettings, configuration, write_repository
from pipelines.systems.onnx.graph_values import GraphValue

PYTHON = Path(__file__).parents[2] / ".venv/triton/bin/python"
PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
found = [
    text_format.Parse(open(path, encoding="utf-8").read(), model_config_pb2.ModelConfig())
    for path in sys.argv[1:]
]
told = [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in found]
print(json.dumps(told))
"""
KINDS = {
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
needs_schema = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv/triton with Triton's schema: make oracles makes it"
)


def parsed(*paths: Path) -> list[dict[str, Any]]:
    """Read configurations by Triton's own schema, which has an environment of its own."""
    command = [str(PYTHON), "-c", PARSE, *map(str, paths)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def signature(value: Any) -> tuple[str, str, list[str]]:
    """Return an input or output of a session as a configuration says it, without the batch."""
    dims = [str(length) for length in value.shape[1:]]
    return value.name, KINDS[value.type], dims


@needs_schema
def test_triton_reads_what_the_graph_has(tmp_path: Path) -> None:
    makers = {"classes": classifier, "rows": regression, "images": reconstruction}
    models = {name: make(tmp_path / f"{name}.onnx") for name, make in makers.items()}
    fast = TritonSettings(max_batch=8, batch_delay_us=500, instances=2, tensorrt=True)
    places = [
        *(write_repository(tmp_path / "a", name, path, 3) for name, path in models.items()),
        write_repository(tmp_path / "b", "classes", models["classes"], 12, CLASSES, fast),
    ]
    *plain, chosen = parsed(*(place / "config.pbtxt" for place in places))
    for found, (name, path) in zip(plain, models.items(), strict=True):
        session = onnxruntime.InferenceSession(path)
        for key, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
            said = [(one["name"], one["data_type"], one["dims"]) for one in found[key]]
            assert said == [signature(value) for value in values]
        assert found["name"] == name
        assert (found["platform"], found["max_batch_size"]) == ("onnxruntime_onnx", 64)
        assert found["default_model_filename"] == "model.onnx"
        assert found["version_policy"] == {"specific": {"versions": ["3"]}}
        assert found["dynamic_batching"] == {"max_queue_delay_microseconds": "1000"}
        assert [one["batch_size"] for one in found["model_warmup"]] == [1, 64]
        for warm_up in found["model_warmup"]:
            for one in found["input"]:
                given = warm_up["inputs"][one["name"]]
                assert (given["data_type"], given["dims"]) == (one["data_type"], one["dims"])
                assert given["zero_data"] is True
            assert set(warm_up["inputs"]) == {one["name"] for one in found["input"]}
        assert "optimization" not in found
    assert [one["data_type"] for one in plain[1]["input"]] == ["TYPE_FP64", "TYPE_STRING"]
    assert chosen["instance_group"] == [{"count": 2, "kind": "KIND_AUTO"}] or (
        chosen["instance_group"] == [{"count": 2}]
    )
    (gpu,) = chosen["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert gpu == {"name": "tensorrt", "parameters": {"precision_mode": "FP32"}}
    assert [one["batch_size"] for one in chosen["model_warmup"]] == [1, 8]
    assert {one["label_filename"] for one in chosen["output"]} == {"labels-12.txt"}
    labels = (places[-1] / "labels-12.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == list(CLASSES)


@needs_schema
def test_one_number_for_each_example_and_a_length_that_varies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.export import triton

    given = [GraphValue("x", "FLOAT", (None, 3))], [GraphValue("y", "DOUBLE", ())]
    monkeypatch.setattr(triton, "graph_values", lambda _: given)
    text = configuration('odd "name" \\ é', b"", 1, ("a",), TritonSettings(max_batch=1))
    (tmp_path / "config.pbtxt").write_text(text, encoding="utf-8")
    (found,) = parsed(tmp_path / "config.pbtxt")
    assert found["name"] == 'odd "name" \\ é'
    assert found["input"][0]["dims"] == ["-1", "3"]
    assert found["output"] == [
        {"name": "y", "data_type": "TYPE_FP64", "dims": ["1"], "reshape": {}}
    ]
    assert len(found["model_warmup"]) == 1
    assert found["model_warmup"][0]["inputs"]["x"]["dims"] == ["1", "3"]
    given[0][0] = GraphValue("x", "COMPLEX64", ())
    with pytest.raises(UserError, match="Triton has no type COMPLEX64"):
        configuration("m", b"", 1)


def named(place: Path) -> set[str]:
    """Return the files that the configuration names now."""
    found = re.search(r"versions: \[ (\d+) \]", (place / "config.pbtxt").read_text())
    assert found is not None
    return {str(place / f"labels-{found[1]}.txt"), str(place / found[1] / "model.onnx")}


def served(place: Path) -> tuple[int, str]:
    """Return version and hash of the file that a server would load now."""
    text = (place / "config.pbtxt").read_text(encoding="utf-8")
    found = re.search(r"versions: \[ (\d+) \]", text)
    assert found is not None
    number = int(found[1])
    if "label_filename" in text:
        labels = (place / f"labels-{number}.txt").read_text(encoding="utf-8")
        assert labels.splitlines() == list(CLASSES)
    return number, sha256_file(place / str(number) / "model.onnx")


def test_a_server_that_looks_at_any_time_finds_a_whole_version(tmp_path: Path) -> None:
    models = {n: classifier(tmp_path / f"{n}.onnx", size=64, seed=n) for n in range(1, 7)}
    hashes = {number: sha256_file(path) for number, path in models.items()}
    place = write_repository(tmp_path / "repository", "m", models[1], 1, CLASSES)
    over, wrong, looks = threading.Event(), [], set()

    def look() -> None:
        while not over.is_set():
            try:
                number, sha256 = served(place)
            except OSError as error:  # right if it was two versions ago, meanwhile
                if str(error.filename) in named(place):
                    wrong.append(str(error))
                continue
            looks.add(number)
            if hashes[number] != sha256:
                wrong.append(f"{number}: {sha256}")

    server = threading.Thread(target=look)
    server.start()
    try:
        for number in (2, 3, 2, 4, 5, 6, 1):
            write_repository(tmp_path / "repository", "m", models[number], number, CLASSES)
            assert served(place) == (number, hashes[number])
    finally:
        over.set()
        server.join()
    assert wrong == []
    assert len(looks) > 1
    names = sorted(path.name for path in place.iterdir())
    assert names == ["1", "6", "config.pbtxt", "labels-1.txt", "labels-6.txt"]  # and the one before


def test_what_a_killed_writer_left_is_mended(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    place = write_repository(tmp_path / "r", "m", path, 1)
    (place / ".new-abc").mkdir()
    (place / ".new-abc/model.onnx").write_bytes(b"half")
    (place / "1/model.onnx").unlink()
    (place / "1").rmdir()
    write_repository(tmp_path / "r", "m", path, 1)
    assert sorted(one.name for one in place.iterdir()) == ["1", "config.pbtxt"]
    assert (place / "1/model.onnx").stat().st_mode & 0o044 == 0o044
    assert place.stat().st_mode & 0o055 == 0o055


def test_two_writers_take_turns(tmp_path: Path) -> None:
    models = [classifier(tmp_path / f"{n}.onnx", size=64, seed=n) for n in range(6)]

    def write() -> None:
        for number, path in enumerate(models, 1):
            write_repository(tmp_path / "r", "m", path, number)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write) for _ in range(3)]:
            done.result(60)
    assert served(tmp_path / "r/m") == (6, sha256_file(models[5]))


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path, other = (classifier(tmp_path / f"{n}.onnx", seed=n) for n in range(2))
    place = write_repository(tmp_path / "r", "m", path, 1)
    with pytest.raises(UserError, match="holds another file than this version"):
        write_repository(tmp_path / "r", "m", other, 1)
    assert served(place) == (1, sha256_file(path))
    (tmp_path / "r/theirs").mkdir()
    (tmp_path / "r/theirs/precious").touch()
    with pytest.raises(UserError, match=r"holds precious and no config\.pbtxt"):
        write_repository(tmp_path / "r", "theirs", path, 1)
    (tmp_path / "r/theirs/config.pbtxt").write_text('name: "theirs"')
    with pytest.raises(UserError, match="was not written by this program"):
        write_repository(tmp_path / "r", "theirs", path, 1)
    assert (tmp_path / "r/theirs/precious").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("max_batch", 0), ("batch_delay_us", -1), ("instances", 0)]
)
def test_settings_that_no_server_takes(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} = {value}: must be"):
        TritonSettings(**{name: value})
