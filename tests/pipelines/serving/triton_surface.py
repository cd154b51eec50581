"""Exercises a running server by Triton's own client; run by the interpreter that has it.

`python triton_surface.py HOST:PORT MODEL VERSION TABLE_HOST:PORT` prints the names of the calls
that were made, one a line, and fails at the first that does not do what it should.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 4), dtype=np.uint8)


def refused(call: Any, *given: Any, status: str, reason: str, **named: Any) -> None:
    try:
        call(*given, **named)
    except InferenceServerException as error:
        told = (error.status(), error.message())
    else:
        raise AssertionError(f"{call.__name__} was not refused")
    assert told[0] == status, told
    assert reason in told[1], told


def images(binary: bool, values: np.ndarray = IMAGES) -> list[http.InferInput]:
    given = http.InferInput("images", list(values.shape), "UINT8")
    given.set_data_from_numpy(values, binary_data=binary)
    return [given]


def health(client: http.InferenceServerClient, name: str, version: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, version)
    assert not client.is_model_ready(name, "999")
    assert not client.is_model_ready("other")


def described(client: http.InferenceServerClient, name: str, version: str) -> None:
    assert client.get_server_metadata()["name"] == "prong"
    for chosen in ("", version):
        told = client.get_model_metadata(name, chosen)
        assert told["versions"] == [version]
        assert told["inputs"][0]["shape"] == [-1, 1, 4, 4]
        told = client.get_model_config(name, chosen)
        assert told["input"][0]["data_type"] == "TYPE_UINT8"
        stats = client.get_inference_statistics(name, chosen)["model_stats"]
        assert all(one["version"] == version for one in stats)
    assert client.get_inference_statistics()["model_stats"] is not None
    (entry,) = client.get_model_repository_index()
    assert entry == {"name": name, "version": version, "state": "READY", "reason": ""}
    refused(client.get_model_metadata, name, "999", status="404", reason="the one that answers")


def inference(client: http.InferenceServerClient, name: str, version: str) -> None:
    first = client.infer(name, images(True))
    for binary in (True, False):
        for answered in (True, False):
            for packed in (None, "gzip", "deflate"):
                wanted = [
                    http.InferRequestedOutput(one, binary_data=answered)
                    for one in ("logits", "probabilities")
                ]
                found = client.infer(
                    name,
                    images(binary),
                    model_version=version,
                    outputs=wanted,
                    request_id="r-1",
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                    parameters={"mine": "x"},
                    priority=1,
                    timeout=10_000_000,
                )
                told = found.get_response()
                assert (told["id"], told["model_version"]) == ("r-1", version)
                assert told["parameters"] == {"alias": "champion"}
                for output in ("logits", "probabilities"):
                    np.testing.assert_allclose(
                        found.as_numpy(output), first.as_numpy(output), rtol=1e-6
                    )
    many = np.repeat(IMAGES, 100, axis=0)
    packed_ = client.infer(name, images(True, many), response_compression_algorithm="gzip")
    np.testing.assert_allclose(
        packed_.as_numpy("logits"), np.repeat(first.as_numpy("logits"), 100, axis=0), rtol=1e-5
    )
    flying = [client.async_infer(name, images(True)) for _ in range(16)]
    for one in flying:
        np.testing.assert_allclose(
            one.get_result().as_numpy("logits"), first.as_numpy("logits"), rtol=1e-5
        )
    for answered in (True, False):
        wanted = [http.InferRequestedOutput("probabilities", binary_data=answered, class_count=2)]
        texts = client.infer(name, images(True), outputs=wanted).as_numpy("probabilities")
        assert texts.shape == (3, 2)
        told = texts[0, 0].decode() if answered else texts[0, 0]
        score, place, label = str(told).split(":")
        best = first.as_numpy("probabilities")[0].argmax()
        assert int(place) == best
        assert label == ("cat", "dog", "ürsus")[best]
        assert abs(float(score) - first.as_numpy("probabilities")[0].max()) < 1e-5
    body, length = http.InferenceServerClient.generate_request_body(images(True))
    assert length
    assert body


def refusals(client: http.InferenceServerClient, name: str, version: str) -> None:
    refused(client.infer, "other", images(True), status="404", reason="no model 'other'")
    refused(client.infer, name, images(True), "9", status="404", reason="the one that answers")
    wrong = http.InferInput("images", [1, 16], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 16), np.uint8))
    refused(client.infer, name, [wrong], status="400", reason="the model takes UINT8")
    shared = http.InferInput("images", [1, 1, 4, 4], "UINT8")
    shared.set_shared_memory("region", 16)
    refused(client.infer, name, [shared], status="400", reason="shared memory is not served")
    given = images(True)
    refused(
        client.infer, name, given, sequence_id=5, sequence_start=True, status="400", reason="state"
    )
    refused(client.load_model, name, status="403", reason="promotion and rollback decide")
    refused(client.unload_model, name, status="403", reason="promotion and rollback decide")


def extensions(client: http.InferenceServerClient, name: str, version: str) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings(name)["trace_level"] == ["OFF"]
    level = {"trace_level": ["TIMESTAMPS"]}
    refused(client.update_trace_settings, None, level, status="400", reason="tracing")
    refused(client.update_trace_settings, name, level, status="400", reason="tracing")
    assert client.get_log_settings()["log_error"] is True
    refused(client.update_log_settings, {"log_info": False}, status="400", reason="log settings")
    for kind in ("system", "cuda"):
        assert getattr(client, f"get_{kind}_shared_memory_status")() == []
        refused(
            getattr(client, f"get_{kind}_shared_memory_status"),
            "mine",
            status="404",
            reason="shared memory is not served",
        )
        getattr(client, f"unregister_{kind}_shared_memory")()
    refused(
        client.register_system_shared_memory, "r", "/r", 16, status="400", reason="shared memory"
    )
    refused(
        client.register_cuda_shared_memory, "r", b"h", 0, 16, status="400", reason="shared memory"
    )


def rows(client: http.InferenceServerClient, name: str) -> None:
    numbers = np.array([[30.0, 1.8], [np.nan, 1.6]])
    cities = np.array([["Zürich"], [""]], dtype=object)
    answers = []
    for binary in (True, False):
        given = [
            http.InferInput("numbers", [2, 2], "FP64"),
            http.InferInput("categories", [2, 1], "BYTES"),
        ]
        # JSON has no NaN.
        given[0].set_data_from_numpy(numbers if binary else np.nan_to_num(numbers), binary)
        given[1].set_data_from_numpy(cities, binary)
        answers.append(client.infer(name, given).as_numpy("answers"))
    assert answers[0].dtype == np.float64
    np.testing.assert_array_equal(*answers)


def main(address: str, name: str, version: str, table: str) -> None:
    with http.InferenceServerClient(address, concurrency=8) as client:
        for step in (health, described, inference, refusals, extensions):
            step(client, name, version)
            print(step.__name__, flush=True)
    with http.InferenceServerClient(table) as client:
        rows(client, name)
        print("rows", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
