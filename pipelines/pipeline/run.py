"""`prong run`: edits the parameters it was told to, runs the flow, and shows what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from pipelines.core import params_file, tables
from pipelines.core.environment import set_up
from pipelines.core.errors import Failed
from pipelines.core.files import read_json
from pipelines.core.own_code import own_hash
from pipelines.core.paths import Layout
from pipelines.pipeline.report import StageLine, Summary, write_report
from pipelines.pipeline.stages import check_names
from pipelines.systems.prefect.server import prefect_api
from pipelines.systems.processes import exit_on_sigterm

if TYPE_CHECKING:  # DVC and MLflow are imported while the server comes up
    from pipelines.release.health import Problem
    from pipelines.systems.dvc.reproduce import StageResult

_STYLE = {"ran": "green", "cached": "cyan", "restored": "cyan"}


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        summary: What the report's head says.
        page: The HTML report.
        problems: What is wrong with the champion or the registry; empty if nothing is.
    """

    summary: Summary
    page: Path
    problems: tuple[Problem, ...]


class Watcher(Protocol):
    """Is told how a run goes on."""

    def changed(self, line: str) -> None:
        """A parameter was edited: `train.epochs: 8 -> 3`."""

    def said(self, line: str) -> None:
        """Something to know."""

    def stage(self, done: StageResult) -> None:
        """A stage came to its end."""


def run_job(
    layout: Layout, assignments: Sequence[str], force: Sequence[str], watcher: Watcher
) -> Outcome:
    """Run the main job in a checkout and write its report.

    Args:
        layout: The checkout; its environment is set (`pipelines.core.environment.set_up`).
        assignments: `key=value` edits of `params.yaml`, made before anything runs.
        force: Stages to run even if nothing changed.
        watcher: Is told how it goes on.

    Raises:
        UserError: If a parameter, the data, the disk or an outside system is at fault.
        Failed: If a stage crashed.
    """
    begun = time.monotonic()
    check_names(force)  # before anything is written
    for change in params_file.edit(layout.params, list(assignments)):
        watcher.changed(change)
    params = params_file.load(layout.params)
    named = {
        "data.source": params.data.source,
        "task.name": params.task.name,
        "train.network": params.train.network,
        "train.augment_by": params.train.augment_by,
    }
    for key, value in named.items():
        own_hash(value, layout.root, key)  # what cannot be read says so before anything long runs

    watcher.said("starting Prefect …")
    with prefect_api(layout) as wait:
        # Seconds of imports, while the server comes up; they read what was set above.
        from pipelines.pipeline import main_job as flow
        from pipelines.provenance import lineage
        from pipelines.release import health
        from pipelines.systems import mlflow as tracking

        if lineage.is_dirty(layout.root):
            watcher.said("uncommitted changes in this checkout; recorded as such")
        wait()
        result = flow.run(layout, force, watcher.stage)
        problems = health.kept_well(layout, params.model_name)
    registration, decision = result.registration, result.decision
    summary = Summary(
        model=params.model_name,
        version=registration.version,
        created=registration.created,
        champion=decision.champion,
        promoted=decision.promoted,
        reason=decision.reason,
        run_id=registration.run_id,
        flow_run_id=result.flow_run_id,
        tracking_uri=tracking.tracking_uri(layout),
        seconds=time.monotonic() - begun,
        stages=tuple(StageLine(s.stage, str(s.outcome), s.seconds) for s in result.stages),
        findings=decision.findings,
    )
    return Outcome(summary, write_report(layout, summary), problems)


class _Shown:
    """Prints how a run goes on."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)

    def changed(self, line: str) -> None:
        self.console.print(tables.line(f"params.yaml  {line}"))

    def said(self, line: str) -> None:
        self.console.print(tables.line(tables.Styled(line, "dim")))

    def stage(self, done: StageResult) -> None:
        outcome = tables.Styled(f"{done.outcome:<9}", _STYLE[done.outcome])
        self.console.print(tables.line(f"  {done.stage:<9} ", outcome, f"{done.seconds:7.1f} s"))


def run_and_show(assignments: Sequence[str], force: Sequence[str]) -> None:
    """Run the main job in the checkout this process stands in; print a summary.

    Args:
        assignments: `key=value` edits of `params.yaml`, made before anything runs.
        force: Stages to run even if nothing changed.

    Raises:
        UserError: If a parameter, the data, the disk or an outside system is at fault.
        Failed: If a stage crashed, or the champion cannot be served.
    """
    exit_on_sigterm()
    layout, shown = Layout.find(), _Shown()
    set_up(layout)
    done = run_job(layout, assignments, force, shown)
    console, page = shown.console, done.page
    for name, said in _lines(layout, done.summary):
        console.print(tables.line(f"{name:<11} {said}"))
    place = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
    console.print(tables.line(f"{'report':<11} {place}"))
    console.print(f"{'see also':<11} prong models · prong predict FILE · prong ui")
    for problem in done.problems:
        console.print(tables.line(tables.Styled("wrong      ", "red"), f" {problem}"))
    sys.stdout.flush()
    if not all(problem.serves for problem in done.problems):
        raise Failed(f"{done.summary.model}: the champion cannot be served: see above")


def _lines(layout: Layout, summary: Summary) -> Iterator[tuple[str, str]]:
    evaluation = read_json(layout.reports / "evaluation.json")
    verification = read_json(layout.reports / "verification.json")
    cached = sum(line.outcome != "ran" for line in summary.stages)
    yield "stages", f"{len(summary.stages) - cached} ran, {cached} cached"
    means = evaluation["error_means"]
    yield (
        "test error",
        f"{evaluation['test_error']:.2f} % {means} in {evaluation['images']} examples",
    )
    yield (
        "parity",
        f"{verification['largest_difference']:.1e} (limit {verification['limit']:.0e}) "
        f"on {verification['provider']}",
    )
    news = "new" if summary.created else "nothing new: these bytes are registered already"
    yield "version", f"{summary.model} v{summary.version} ({news})"
    if summary.champion is None:
        alias = "no champion"
    elif summary.champion == summary.version:
        alias = "champion"
    else:
        alias = f"champion stays v{summary.champion}"
    yield "alias", f"{alias}: {summary.reason}"
    yield "time", f"{summary.seconds:.1f} s"
