"""What deploy/ holds for Kubernetes: objects that its schemas allow, and no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

validating = pytest.importorskip(
    "kubernetes_validate", reason="pip install kubernetes-validate (in the extra dev)"
)
DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(p for p in DEPLOY.rglob("*.yaml") if p.name != "kustomization.yaml")
VERSION = "1.33"


def _objects(path: Path) -> list[dict[str, Any]]:
    return [each for each in YAML(typ="safe").load_all(path.read_text()) if each]


def _pods(value: Any) -> list[dict[str, Any]]:
    """Return everything that has containers."""
    found = []
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list):
            found.append(value)
        for each in value.values():
            found += _pods(each)
    elif isinstance(value, list):
        for each in value:
            found += _pods(each)
    return found


def _check_pod(spec: dict[str, Any]) -> None:
    """Check a pod's specification by its schema, and that it has no rights."""
    fields = {k: v for k, v in spec.items() if k not in ("minReplicas", "maxReplicas")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": fields}
    validating.validate(pod, VERSION, strict=True)
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_object_is_what_its_schema_allows(path: Path) -> None:
    objects = _objects(path)
    assert objects
    for each in objects:
        if "kserve" not in each["apiVersion"]:  # its schema is not among Kubernetes' own
            validating.validate(each, VERSION, strict=True)
        for pod in _pods(each):
            _check_pod(pod)
            assert {"livenessProbe", "readinessProbe"} <= pod["containers"][0].keys()
        assert each["kind"] != "Secret"


@pytest.mark.parametrize("folder", ["base", "kserve"])
def test_a_kustomization_names_what_is_there(folder: str) -> None:
    (found,) = _objects(DEPLOY / folder / "kustomization.yaml")
    named = set(found["resources"])
    assert named == {path.name for path in FILES if path.parent.name == folder}


def _filled(value: Any, words: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, words) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, words) for each in value]
    whole = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
    if whole:
        return words[whole[1]]
    return re.sub(r"\{\{ (\w+) \}\}", lambda m: str(words[m[1]]), value) if isinstance(
        value, str
    ) else value  # fmt: skip


def test_prefects_base_job_template_makes_a_job() -> None:
    template = json.loads((DEPLOY / "prefect/base-job-template.json").read_text())
    variables = template["variables"]["properties"]
    words = {name: each.get("default") for name, each in variables.items()}
    words |= {"name": "run", "command": ["prefect", "flow-run", "execute"], "image": "prong:1"}
    words["env"] = [{"name": "PREFECT_API_URL", "value": "http://prefect"}]
    job = _filled(template["job_configuration"], words)["job_manifest"]
    validating.validate(job, VERSION, strict=True)
    (pod,) = _pods(job)
    _check_pod(pod)
    assert set(template["variables"]["required"]) <= set(variables)


def test_the_image_runs_as_a_user_without_rights_and_takes_pinned_packages() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"(?m)^USER (.*)$", text) == ["10001:10001"]
    assert "ARG CUDA=" in text
    installs = [line for line in text.replace("\\\n", " ").splitlines() if "pip install" in line]
    assert installs
    assert all(part.count("-c constraints.txt") == 1
               for line in installs for part in line.split("&&"))  # fmt: skip
