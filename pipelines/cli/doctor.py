"""`prong doctor`: what this machine can do, and what is wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from pipelines.core import params_file, tables
from pipelines.core.environment import set_up
from pipelines.core.errors import UserError, disk_error
from pipelines.core.paths import Layout
from pipelines.core.processors import processors
from pipelines.systems import git

_PACKAGES = ("prong", "torch", "mlflow", "dvc", "prefect", "onnx", "onnxruntime-gpu", "numpy")
_LEAST_FREE = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        what: What was checked.
        state: What was found.
        problem: What is wrong and how to fix it; None if nothing is wrong.
    """

    what: str
    state: str
    problem: str | None = None


def _python() -> Iterator[Check]:
    yield Check("python", f"{platform.python_version()} at {sys.executable}")
    for package in _PACKAGES:
        try:
            yield Check(package, version(package))
        except PackageNotFoundError:
            problem = f"{package} is not installed; pip install 'prong[pipeline]'"
            yield Check(package, "absent", problem)


def _machine() -> Iterator[Check]:
    cores, used = len(os.sched_getaffinity(0)), processors()
    limit = "" if used == cores else f", of which a quota allows {used:.3g}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Check("processor", f"{cores} cores{limit}, {memory:.0f} GiB of memory")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    yield Check("CUDA devices (torch)", names or "none: training runs on the CPU")


def _runtime() -> Iterator[Check]:
    from pipelines.systems.onnx.runtime import providers

    found = providers()
    yield Check(
        "ONNX Runtime providers",
        f"installed: {', '.join(found.installed)}; working: {', '.join(found.working)}",
    )


def _git(layout: Layout) -> Iterator[Check]:
    if shutil.which("git") is None:
        yield Check("git", "absent", "git is missing: apt-get install git")
        return
    said = git.ask(layout.root, "status", "--porcelain")
    if said is None:
        yield Check("git", "not a repository", "versions will have no commit: run git init")
    else:
        changes = len(said.splitlines())
        yield Check("git", f"{changes} uncommitted changes" if changes else "clean")


def _disk(layout: Layout) -> Iterator[Check]:
    free = shutil.disk_usage(layout.root).free
    low = f"less than {_LEAST_FREE / 2**30:.0f} GiB: free some space"
    yield Check("disk", f"{free / 2**30:.1f} GiB free", low if free < _LEAST_FREE else None)
    readable = os.access(layout.root, os.W_OK)
    problem = None if readable else f"{layout.root} is not writable"
    yield Check("checkout", str(layout.root), problem)


def _params(layout: Layout) -> Iterator[Check]:
    try:
        params = params_file.load(layout.params)
    except UserError as error:
        yield Check("params.yaml", "wrong", str(error))
        return
    path = layout.root / params.data.path
    yield Check("params.yaml", f"valid; data from {params.data.source}")
    if params.data.source in ("images", "table") or not path.exists():
        problem = None if path.exists() else f"data.path = {params.data.path!r} does not exist"
        yield Check("data.path", str(path), problem)


def _registry(layout: Layout) -> Iterator[Check]:
    from pipelines.systems import mlflow as tracking

    uri = "MLFLOW_TRACKING_URI"
    try:
        uri = tracking.shown_uri(tracking.tracking_uri(layout))
        tracking.probe(layout)
    except UserError as error:
        yield Check("MLflow", uri, str(error))
    else:
        yield Check("MLflow", f"{uri} answers")
        yield from _champion(layout)


def _champion(layout: Layout) -> Iterator[Check]:
    """Look at the champion as `prong predict` would, and at its file in the store."""
    from pipelines.release.health import standing

    try:
        model = params_file.load(layout.params).model_name
    except UserError:
        return  # said above
    try:
        found = standing(layout, model)
    except UserError as error:
        yield Check(f"champion of {model}", "cannot tell", str(error))
        return
    live = "none" if found.version is None else f"v{found.version} since {found.since}"
    yield Check(f"champion of {model}", live)
    for problem in found.problems:
        yield Check(problem.what, problem.said, str(problem))


def _prefect(layout: Layout) -> Iterator[Check]:
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        yield Check("Prefect", f"embedded, in {os.environ['PREFECT_HOME']}")
        return
    import requests

    try:
        requests.get(f"{address}/health", timeout=5).raise_for_status()
    except requests.RequestException as error:
        problem = f"PREFECT_API_URL = {address!r} does not answer: {type(error).__name__}"
        yield Check("Prefect", address, problem)
    else:
        yield Check("Prefect", f"{address} answers")


def _stages(layout: Layout) -> Iterator[Check]:
    from pipelines.pipeline.stages import STAGES
    from pipelines.systems.dvc import reproduce as versioning

    try:
        states = {name: versioning.up_to_date(layout.root, name) for name in STAGES}
    except UserError as error:
        yield Check("DVC", "cannot tell", str(error))
    else:
        text = ", ".join(f"{k} {'up to date' if v else 'to run'}" for k, v in states.items())
        yield Check("DVC stages", text)


def findings(layout: Layout | None) -> Iterator[Check]:
    """Yield the checks of this machine and, if there is one, of the checkout."""
    yield from _python()
    yield from _machine()
    yield from _runtime()
    if layout is None:
        yield Check("checkout", str(Path.cwd()), "not inside a project: prong init makes one")
        return
    looks: tuple[Callable[[Layout], Iterator[Check]], ...]
    looks = (_git, _disk, _params, _stages, _registry, _prefect)
    for look in looks:
        try:
            yield from look(layout)
        except OSError as error:
            yield Check(look.__name__.strip("_"), "cannot tell", str(disk_error(error) or error))


def examine(*, as_json: bool = False) -> bool:
    """Print the findings; return whether nothing is wrong."""
    layout: Layout | None = None
    try:
        here = Layout.find()
    except UserError:
        pass  # reported below as a finding
    else:
        layout = here
        with suppress(OSError):  # reported below as a finding
            set_up(here)
    found = list(findings(layout))
    problems = [finding for finding in found if finding.problem]
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
        return not problems
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.what) for finding in found)
    for finding in found:
        mark = tables.Styled("✗", "red") if finding.problem else tables.Styled("✓", "green")
        console.print(tables.line(mark, f"  {finding.what:<{width}}  {finding.state}"))
    for finding in problems:
        said = f"  {finding.what}: {finding.problem}"
        console.print(tables.line(tables.Styled("wrong", "red"), said))
    if not problems:
        console.print("nothing is wrong")
    return not problems
