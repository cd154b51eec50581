"""Clients of others: Triton's own, and a tester of the OpenAPI document."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from served import ROOT, Running, process

TRITON = ROOT / ".venv/triton/bin/python"
SURFACE = Path(__file__).with_name("triton_surface.py")


@pytest.mark.skipif(not TRITON.exists(), reason=f"no {TRITON}: run make oracles")
def test_tritons_client_runs_its_surface(digits: Running, houses: Running) -> None:
    addresses = [f"127.0.0.1:{one.port}" for one in (digits, houses)]
    command = [str(TRITON), str(SURFACE), addresses[0], "digits", "3", addresses[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [
        "health",
        "described",
        "inference",
        "refusals",
        "extensions",
        "rows",
    ]


def test_the_openapi_document_is_whole(digits: Running) -> None:
    told = digits.ask("/openapi.json").json
    assert told["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]
    known = {f"#/components/schemas/{name}" for name in told["components"]["schemas"]}
    named = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(told)))
    assert {"#/components/schemas/InferRequest", "#/components/schemas/Refusal"} <= named <= known
    for path, operations in told["paths"].items():
        for operation in operations.values():
            given = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert given == set(re.findall(r"{(.*?)}", path)), path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["classifier", "table"])
def test_schemathesis_finds_nothing(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    with process(models[kind]) as (running, _):
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"http://127.0.0.1:{running.port}/openapi.json",
                f"--checks={checks},response_schema_conformance",
                "--max-examples=60",
                "--generation-deterministic",
                "--no-color",
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONWARNINGS": "default"},
        )
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    assert "35 selected / 35 total" in found.stdout
