"""Prefect: the main job, read from top to bottom.

DVC owns what was made from what, Prefect when and in which order, MLflow what was measured and
released. The first five tasks bring the DVC stages of the same names up to date; a stage that has
nothing to do is shown as cached, so a failed run goes on at the stage that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.label_file import TABLES
from pipelines.pipeline import data_versions as dataset
from pipelines.pipeline.stages import check_names
from pipelines.release.decision import Decision
from pipelines.release.register import Registration
from pipelines.systems.dvc import cache as dvc_store
from pipelines.systems.dvc import reproduce as versioning
from pipelines.systems.dvc.reproduce import StageResult
from pipelines.systems.prefect.connection import answering, used_server
from pipelines.systems.prefect.decorators import MAIN_JOB, flow, task
from pipelines.systems.prefect.this_run import run_id

Report = Callable[[StageResult], None]


@dataclass(frozen=True)
class JobResult:
    """What one run of the main job came to.

    Attributes:
        stages: The five DVC stages, in order.
        registration: The version the model is registered as.
        decision: Whether it became champion, and why.
        flow_run_id: Prefect's id of this run.
    """

    stages: tuple[StageResult, ...]
    registration: Registration
    decision: Decision
    flow_run_id: str


@task
def prepare(root: Path, force: bool) -> StageResult:
    """Bring the prepared images up to date."""
    return versioning.ensure(root, "prepare", force=force)


@task
def train(root: Path, force: bool) -> StageResult:
    """Bring the trained network up to date; the version that it starts from is looked up first."""
    from pipelines.registry.start_weights import bring

    bring(Layout(root), params_file.load(root / "params.yaml"))
    return versioning.ensure(root, "train", force=force)


@task
def evaluate(root: Path, force: bool) -> StageResult:
    """Bring the test figures up to date."""
    return versioning.ensure(root, "evaluate", force=force)


@task
def export(root: Path, force: bool) -> StageResult:
    """Bring the ONNX file up to date."""
    return versioning.ensure(root, "export", force=force)


@task
def verify(root: Path, force: bool) -> StageResult:
    """Bring the comparison of whitened, folded and ONNX networks up to date."""
    return versioning.ensure(root, "verify", force=force)


@task
def register(layout: Layout, params: Params, flow_run_id: str) -> Registration:
    """Register the verified ONNX file, unless these bytes are registered already."""
    from pipelines.release.register import register

    return register(layout, params, flow_run_id)


@task
def promote(layout: Layout, params: Params, version: int, flow_run_id: str) -> Decision:
    """Make the version champion if every gate lets it pass."""
    from pipelines.release.promote import promote

    return promote(layout, params, version, flow_run_id)


def came_of(result: JobResult) -> str:
    """Return what a run of the main job came to, in one line."""
    version, decision = f"v{result.registration.version}", result.decision
    if decision.promoted:
        return f"{version} champion"
    if decision.champion == decision.version:
        return f"{version} champion already"
    return f"{version} not champion: {decision.reason}"


@flow(name=MAIN_JOB, came_of=came_of)
def main_job(root: Path, force: frozenset[str], report: Report) -> JobResult:
    """Prepare, train, evaluate, export, verify, register, promote.

    Args:
        root: The checkout.
        force: Stages to run even if nothing changed.
        report: Called with each stage's result as it comes.
    """
    layout, params = Layout(root), params_file.load(root / "params.yaml")
    results = []
    for stage in (prepare, train, evaluate, export, verify):
        result = stage(root, stage.name in force)
        report(result)
        results.append(result)
    run = run_id()
    # First, so that whatever may be promoted can be made again.
    dvc_store.push(layout.root, layout.added)
    from pipelines.systems import mlflow as tracking  # takes seconds

    tracking.close_dead_runs(layout)
    registration = register(layout, params, run)
    decision = promote(layout, params, registration.version, run)
    return JobResult(tuple(results), registration, decision, run)


def run(layout: Layout, force: Sequence[str], report: Report) -> JobResult:
    """Run the main job in a checkout and return what came of it.

    Raises:
        UserError: If a parameter, the data, the disk or an outside system is at fault.
        Failed: If a stage crashed.
        Unavailable: If an outside system does not answer.
    """
    forced = check_names(force)
    params = params_file.load(layout.params)
    check_data(layout, params)
    forced |= unseen(params)
    dvc_store.share(layout.home, layout.root, params.store.remote)
    dataset.restore_added(layout)
    with answering(used_server()):
        result: Any = main_job(layout.root, forced, report)
    assert isinstance(result, JobResult)
    return result


def unseen(params: Params) -> frozenset[str]:
    """Return the stages that always run, because DVC does not see all that they read.

    These are the stage prepare, where `data.path` names a CSV: its images are no dependency. Where
    they are as before, so is what it makes, and nothing after it runs.
    """
    table = params.data.source == "images" and params.data.path.lower().endswith(TABLES)
    return frozenset({"prepare"} if table else ())


def check_data(layout: Layout, params: Params) -> None:
    """Check what DVC would otherwise report in its own words.

    Raises:
        UserError: If `data.path`, on which the first stage depends, does not exist, or lies in,
            is or holds what the stages make or what was added.
    """
    path = layout.root / params.data.path
    if not path.exists():
        raise UserError(
            f"data.path = {params.data.path!r}: {path} does not exist; "
            "allowed: a folder, tar, zip, CSV or Parquet file (relative to the checkout)"
            f"{'; write the home folder out, not as ~' * params.data.path.startswith('~')}"
        )
    data = path.resolve()
    for made in (layout.prepared, layout.onnx.parent, layout.reports, layout.added):
        place = made.resolve()
        if data.is_relative_to(place) or place.is_relative_to(data):
            raise UserError(
                f"data.path = {params.data.path!r}: overlaps {made}, which the project fills; "
                "allowed: a folder, tar, zip, CSV or Parquet file elsewhere, such as data/raw"
            )
