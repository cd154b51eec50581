"""The house rules that a reader relies on, held by tests."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import grimp
import pytest
from dvc.stage.cache import _get_cache_hash
from ruamel.yaml import YAML

from pipelines.core.fingerprints import STAGE_SOURCES
from pipelines.pipeline import main_job as flow
from pipelines.pipeline import stages

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "mlflow": "pipelines/systems/mlflow/",
    "prefect": "pipelines/systems/prefect/",
    "dvc": "pipelines/systems/dvc/",
    "onnx": "pipelines/systems/onnx/",
    "onnxruntime": "pipelines/systems/onnx/",
    "optuna": "pipelines/systems/optuna/",
    "kubernetes": "pipelines/systems/engines/",
    "kubeflow_trainer_api": "pipelines/systems/engines/",
}
"""Outside system → the one folder that imports it."""
STEPS = {
    "prepare": "pipelines.data.prepare",
    "train": "pipelines.training.launch",
    "evaluate": "pipelines.evaluation.evaluate",
    "export": "pipelines.export.to_onnx",
    "verify": "pipelines.verification.verify",
}
WITHOUT_INFLUENCE = (
    "pipelines.core.config",  # its values are parameters of the stages
    "pipelines.core.errors",
    "pipelines.core.faults",
    "pipelines.core.paths",
    "pipelines.core.private",  # who may read a folder
    "pipelines.core.progress",
    "pipelines.core.tables",
    "pipelines.core.text",
    "pipelines.core.waiting",
    "pipelines.systems.engines",  # starts the ranks, on whatever machine
    "pipelines.systems.liveness",
    "pipelines.systems.locks",
    "pipelines.systems.mlflow",  # records what is measured
    "pipelines.systems.processes",
    "pipelines.systems.tracking_address",
)
"""What a step imports and what cannot change what it makes."""


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


def _sources(stage: str) -> set[str]:
    """Paths of all modules that a step is made of, as far as they can change what it makes."""
    graph = grimp.build_graph("prong", "pipelines", cache_dir=None)
    found = {STEPS[stage], *graph.find_upstream_modules(STEPS[stage])}
    counting = {
        name
        for name in found
        if not any(name == out or name.startswith(f"{out}.") for out in WITHOUT_INFLUENCE)
    }
    paths = {name: ROOT.joinpath(*name.split(".")) for name in counting}
    return {
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        .relative_to(ROOT)
        .as_posix()
        for path in paths.values()
    }


def _covers(entries: Sequence[str], path: str) -> bool:
    return any(path == entry or path.startswith(f"{entry}/") for entry in entries)


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_every_source_that_it_is_made_of(stage: str) -> None:
    declared, sources = STAGE_SOURCES[stage], _sources(stage)
    assert [path for path in sorted(sources) if not _covers(declared, path)] == []
    # And on no other, but that the ONNX file carries the hash of all that a model is made of.
    spare = [entry for entry in declared if not any(_covers([entry], path) for path in sources)]
    assert spare == []
    assert list(declared) == sorted(declared)


def test_dvc_depends_on_each_stages_hash_of_code_and_on_no_source() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert list(stages) == list(STEPS) == list(STAGE_SOURCES)
    for name, stage in stages.items():
        deps = stage["deps"]
        assert [dep for dep in deps if "code" in dep] == [f"data/code/{name}.json"]
        assert not [dep for dep in deps if dep.startswith(("prong", "pipelines"))]


def test_the_code_hash_covers_every_source_of_a_models_bytes() -> None:
    for stage in ("prepare", "train", "export"):
        missing = [p for p in sorted(_sources(stage)) if not _covers(STAGE_SOURCES["export"], p)]
        assert missing == []


def _lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("pipelines/core/errors.py", "", ""),
        (
            "pipelines/core/errors.py",
            "import pipelines.cli.app",
            "pipelines.core is not allowed to import pipelines.cli",
        ),
        (
            "pipelines/gates/quality.py",
            "def planted() -> None:\n    from pipelines.registry import versions",
            "pipelines.gates is not allowed to import pipelines.registry",
        ),
        (
            "prong/linalg/conditioning.py",
            "import prong.linalg.projection",
            "No cycles are allowed in prong.linalg",
        ),
        (
            "prong/linalg/layout.py",
            "import pipelines.core.errors",
            "prong.linalg.layout -> pipelines.core.errors",
        ),
        (
            "pipelines/registry/history.py",
            "def planted() -> None:\n    from mlflow.entities import Run",
            "pipelines.registry.history -> mlflow",
        ),
    ],
)
def test_an_import_that_is_not_allowed_is_found(
    tmp_path: Path, module: str, line: str, broken: str
) -> None:
    for name in ("prong", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")
    done = _lint(tmp_path)
    assert (done.returncode != 0) == bool(broken), done.stdout
    assert broken in done.stdout


def test_the_method_knows_nothing_of_the_pipeline() -> None:
    found = list((ROOT / "prong").rglob("*.py"))
    assert found
    for path in found:
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & {"pipelines", *FOLDERS, "numpy", "safetensors"}, path


@pytest.mark.parametrize("system", FOLDERS)
def test_one_folder_imports_each_outside_system(system: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pipelines").rglob("*.py")
        if system in {name.split(".")[0] for name in _imports(path)}
    }
    assert found
    assert [path for path in sorted(found) if not path.startswith(FOLDERS[system])] == []


def test_no_other_folder_calls_what_a_client_of_an_outside_system_offers() -> None:
    def calls(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value
                named = owner.id if isinstance(owner, ast.Name) else owner.attr
                if named == "client":
                    yield f"{path.name}:{node.lineno}: client.{node.attr}"

    paths = [path for path in (ROOT / "pipelines").rglob("*.py") if "systems" not in path.parts]
    assert [call for path in paths for call in calls(path)] == []


def test_the_command_line_imports_nothing_heavy_for_its_help() -> None:
    program = (
        "import sys, pipelines.cli.app;"
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'numpy', 'onnx', 'optuna'};"
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


def test_no_class_has_the_name_of_another_and_no_file_of_the_method_or_the_pipelines() -> None:
    classes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for room in ("prong", "pipelines"):
        for path in (ROOT / room).rglob("*.py"):
            files[path.stem] += path.stem != "__init__"
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes.update(node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, number in classes.items() if number > 1] == []
    assert [name for name, number in files.items() if number > 1] == []


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
