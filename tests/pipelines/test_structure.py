"""The house rules that a reader relies on, held by tests."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.stage.cache import _get_cache_hash
from ruamel.yaml import YAML

from pipelines import flow, stages

ROOT = Path(__file__).parents[2]
OWNERS = {
    "mlflow": {"pipelines/tracking", "pipelines/registry.py", "pipelines/upload.py",
               "pipelines/registrar.py", "pipelines/comparison.py", "pipelines/artifacts.py",
               "pipelines/garbage.py", "pipelines/gates/record.py"},
    "prefect": {"pipelines/flow.py", "pipelines/prefect_server.py", "pipelines/scheduling"},
    "dvc": {"pipelines/versioning.py", "pipelines/dvc_store.py"},
    "onnxruntime": {"pipelines/runtime.py"},
}  # fmt: skip


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_dvc_flow_and_step_functions_carry_the_same_names() -> None:
    declared = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert list(declared) == list(stages.STAGES)
    for name, stage in declared.items():
        assert stage["cmd"].split()[-1] == name
        assert stages.STAGES[name].__name__ == name
        assert getattr(flow, name).name == name
        assert stage["desc"]
    source = inspect.getsource(flow.main_job.fn)
    tasks = f"({', '.join(stages.STAGES)})"
    order = [source.index(name) for name in (tasks, " register(", " promote(")]
    assert order == sorted(order)


def test_every_module_a_stage_is_made_of_is_a_dependency_of_it() -> None:
    declared = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    for name, module in {
        "prepare": "pipelines/data",
        "train": "pipelines/training",
        "evaluate": "pipelines/evaluation.py",
        "export": "pipelines/export.py",
        "verify": "pipelines/verification.py",
    }.items():
        assert module in declared[name]["deps"]
    for name in ("train", "evaluate", "export", "verify"):
        assert "prong" in declared[name]["deps"]


def test_the_method_knows_nothing_of_the_pipeline() -> None:
    for path in (ROOT / "prong").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & {"pipelines", *OWNERS, "onnx", "numpy", "safetensors"}, path


@pytest.mark.parametrize("system", OWNERS)
def test_one_place_owns_each_outside_system(system: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipelines").rglob("*.py")
        if system in {name.split(".")[0] for name in _imports(path)}
    }
    assert found
    assert [p for p in found if not any(p.startswith(owner) for owner in OWNERS[system])] == []


def test_the_command_line_imports_nothing_heavy_for_its_help() -> None:
    program = (
        "import sys, pipelines.cli; heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'numpy', 'onnx'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_prong_loads_torch_and_nothing_else_heavy() -> None:
    program = (
        "import sys, torch; before = {m.split('.')[0] for m in sys.modules}; import prong;"
        "after = {m.split('.')[0] for m in sys.modules}; print(sorted(after - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"matplotlib", "mlflow", "scipy", "pandas", "jaxtyping", "pipelines", "safetensors"}
    assert not heavy & set(ast.literal_eval(done.stdout))


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {p.stem for room in ("prong", "pipelines") for p in (ROOT / room).rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "manager", "misc", "tools"}


def test_dvcs_cache_of_runs_tells_every_knob_of_a_stage_apart() -> None:
    values = YAML(typ="safe").load(ROOT / "params.yaml")

    def key(stage: list[str]) -> str:
        found = {}
        for name in stage:
            section, _, knob = name.partition(".")
            found[name] = values[section][knob] if knob else dict(values[section])
        return str(_get_cache_hash({"cmd": "x", "params": {"params.yaml": found}}, key=True))

    for name, declared in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        before = key(declared["params"])
        for section in (part for part in declared["params"] if "." not in part):
            for knob, value in values[section].items():
                values[section][knob] = "another"
                assert key(declared["params"]) != before, f"{name}: {section}.{knob}"
                values[section][knob] = value
