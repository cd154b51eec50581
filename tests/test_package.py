"""The wheel: what is in it, what it needs, and a project made and run by it alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from git_commands import commit_all
from PIL import Image
from sklearn import datasets

from pipelines import cli
from pipelines.core import params_file

ROOT = Path(__file__).parents[1]
FILES = (
    *("pyproject.toml", "README.md", "LICENSE", "dvc.yaml", "params.yaml"),
    *(".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"),
)
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc")


def _run(*command: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source") / "prong", tmp_path_factory.mktemp("wheels")
    for name in ("prong", "pipelines"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=NOT_SOURCE)
    (source / ".dvc").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    words = ("wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out)
    done = _run(sys.executable, "-m", "pip", *words, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_every_file_of_both_packages(wheel: Path) -> None:
    paths = (path for room in ("prong", "pipelines") for path in (ROOT / room).rglob("*"))
    files = (path.relative_to(ROOT) for path in paths if path.is_file())
    wanted = {
        path.as_posix()
        for path in files  # without caches and the settings of ruff
        if path.suffix not in (".pyc", ".toml") and not any(p[0] == "." for p in path.parts)
    }
    with zipfile.ZipFile(wheel) as opened:
        held = set(opened.namelist())
        assert {"pipelines/py.typed", "pipelines/pipeline/templates/report.html"} <= wanted
        assert wanted - held == set()
        assert {name for name in held - wanted if ".dist-info/" not in name} == set()
        # What is a link in the checkout is a file in the wheel, and the checkout's own.
        for name in ("dvc.yaml", "params.yaml"):
            held_as = f"pipelines/project/files/{name.replace('.', '-')}"
            assert opened.read(held_as) == (ROOT / name).read_bytes()
        assert not [name for name in held if name.endswith("dvc.yaml")]  # DVC would count it


def _needs(wheel: Path) -> dict[str, list[str]]:
    """Return extra → the names of what it installs; an empty name for the package alone."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [item for item in opened.namelist() if item.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(opened.read(name).decode())
    found: dict[str, list[str]] = {"": []}
    for line in told.get_all("Requires-Dist", []):
        asked, _, extra = line.partition('; extra == "')
        found.setdefault(extra.rstrip('"'), []).append(asked)
    return found


def test_the_package_alone_needs_torch_and_each_extra_what_is_below_it(wheel: Path) -> None:
    found = _needs(wheel)
    assert [line.split("<")[0].split(">")[0] for line in found[""]] == ["torch"]
    extras = {"", "serve", "pipeline", "paper", "kubernetes", "benchmarks", "loops", "dev"}
    assert set(found) == extras
    assert "prong[serve]" in found["pipeline"]
    assert "prong[kubernetes,loops,pipeline]" in found["dev"]
    assert not [name for name in found["serve"] if name.startswith(("dvc", "prefect", "mlxtend"))]


def test_the_command_knows_by_name_what_the_extras_install(wheel: Path) -> None:
    found = _needs(wheel)
    wanted = {
        line.split(">")[0].split("<")[0].lower().replace(".", "-").replace("_", "-")
        for line in (*found["serve"], *found["pipeline"])
        if not line.startswith("prong")
    }
    known = {
        top: {name.lower().replace(".", "-").replace("_", "-") for name in names}
        for top, names in packages_distributions().items()
    }
    assert wanted <= set().union(*(known[top] for top in cli.NEEDED))
    assert [top for top in cli.NEEDED if not known[top] & wanted] == []


def test_without_the_pipelines_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "prong").symlink_to(ROOT / "prong")
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    program = (
        f"import sys; sys.path.append({str(tmp_path)!r}); sys.argv = ['prong', '--help'];"
        "from pipelines.cli import main; main()"
    )
    # Neither installed packages nor this checkout are seen.
    done = _run(sys.executable, "-I", "-S", "-c", program, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("this command needs it: pip install 'prong[pipeline]'")
    assert done.stdout == ""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its packages are those of the tests' own."""
    place = tmp_path_factory.mktemp("environment") / "v"
    assert _run(sys.executable, "-m", "venv", "--without-pip", place, cwd=ROOT).returncode == 0
    (packages,) = place.glob("lib/python3*/site-packages")
    # A folder named by a .pth is searched, but its own .pth files (this checkout) are not read.
    (packages / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    words = ("--python", place / "bin/python", "install", "--no-deps", "--no-index", "-q", wheel)
    done = _run(sys.executable, "-m", "pip", *words, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


SMALL = ("data.limit=400", "train.epochs=3", "train.width=4", "train.hidden=16",
         "train.batch=16", "train.seed=1", "train.warmup=2", "verify.images=64",
         "gates.margin=0.1", "gates.latency=4")  # fmt: skip


@pytest.fixture(scope="module")
def project(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("away") / "project"
    done = _prong(installed, root.parent, "init", "project")
    assert done.returncode == 0, done.stderr
    params_file.edit(root / "params.yaml", list(SMALL))
    return root


def _prong(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call the installed command, by its path: no environment is active."""
    return _run(installed / "bin/prong", *words, cwd=cwd, PATH="/usr/local/bin:/usr/bin:/bin",
                OMP_NUM_THREADS="1")  # fmt: skip


def _outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^  (\w+)\s+(ran|cached|restored)\s", done.stdout, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_project_is_run_by_the_installed_package_alone(installed: Path, project: Path) -> None:
    done = _prong(installed, project, "run")  # before the first commit
    assert set(_outcomes(done).values()) == {"ran"}
    assert "the first champion" in done.stdout
    assert set(_outcomes(_prong(installed, project, "run")).values()) == {"cached"}
    done = _prong(installed, project, "predict", "data/prepared/sample.png")
    assert re.match(r"data/prepared/sample\.png  \d ", done.stdout), done.stderr
    for words in (("models",), ("history",), ("status",), ("doctor",), ("lineage", "1")):
        done = _prong(installed, project, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    done = _prong(installed, project, "rebuild", "1")
    assert done.returncode == 2
    assert "its commit is unknown" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_version_is_rebuilt_by_the_package_that_made_it_and_by_no_other(
    installed: Path, project: Path
) -> None:
    commit_all(project, "start")
    done = _prong(installed, project, "run", "--set", "train.seed=2")
    assert _outcomes(done)["train"] == "ran"
    done = _prong(installed, project, "rebuild", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bytes" in done.stdout
    (source,) = installed.glob("lib/python3*/site-packages/pipelines/evaluation/evaluate.py")
    source.write_text(f"{source.read_text()}# another release\n")
    found = _outcomes(_prong(installed, project, "run"))
    assert found.pop("evaluate") == "ran"
    assert set(found.values()) == {"cached"}
    (source,) = installed.glob("lib/python3*/site-packages/prong/convert.py")
    text = source.read_text()
    source.write_text(f"{text}# another release\n")
    try:
        done = _prong(installed, project, "rebuild", "2")
        assert done.returncode == 2
        assert re.search(r"version 2: prong 0\S+ with the code \w{12} made it, and prong 0\S+ with "
                         r"the code \w{12} is installed", done.stderr)  # fmt: skip
        assert _outcomes(_prong(installed, project, "run"))["train"] == "ran"
    finally:
        source.write_text(text)


def _data(root: Path, template: str) -> list[str]:
    """Put a template's data in place; return the settings that make it small."""
    if template == "images":
        draw = np.random.default_rng(0)
        for number in range(240):
            path = root / "data/raw" / ("dark", "bright")[number % 2] / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = draw.integers(0, 160, (9, 9, 3)) + 90 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        return ["train.width=4", "train.hidden=16", "train.batch=16", "train.epochs=6"]
    if template == "table":
        table = datasets.load_breast_cancer(as_frame=True).frame
        table.insert(0, "place", np.where(table.index % 3 > 0, "north", ""))
        table.iloc[::7, 3] = np.nan
        table.to_csv(root / "data/raw/table.csv", index=False)
        return ["train.epochs=10"]
    return ["data.limit=600", "train.hidden=16", "train.epochs=4", "train.batch=32"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("template", ["images", "table", "autoencoder"])
def test_each_template_becomes_a_released_model_and_the_same_bytes_elsewhere(
    installed: Path, tmp_path: Path, template: str
) -> None:
    root = tmp_path / "first"
    assert _prong(installed, tmp_path, "init", "first", "--template", template).returncode == 0
    settings = _data(root, template)
    params_file.edit(root / "params.yaml", [*settings, "verify.images=64", "gates.latency=4"])
    commit_all(root, "start")
    done = _prong(installed, root, "run")
    assert set(_outcomes(done).values()) == {"ran"}
    assert "the first champion" in done.stdout
    assert set(_outcomes(_prong(installed, root, "run")).values()) == {"cached"}
    sample = "sample.csv" if template == "table" else "sample.png"
    answer = _prong(installed, root, "predict", f"data/prepared/{sample}", "--json")
    assert answer.returncode == 0, answer.stderr
    (said,) = json.loads(answer.stdout)["answers"]
    assert ("error" if template == "autoencoder" else "label") in said
    left = (".prong", "prepared", "models", "reports", "cache", "tmp", "dvc.lock")
    again = tmp_path / "second"
    shutil.copytree(root, again, ignore=shutil.ignore_patterns(*left))
    assert set(_outcomes(_prong(installed, again, "run")).values()) == {"ran"}
    files = [place / "models/model.onnx" for place in (root, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_ino != files[1].stat().st_ino
