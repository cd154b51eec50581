"""`prong run`: edits the parameters it was told to, runs the flow, and shows what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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

_STYLE = {"ran": "green", "cached": "cyan", "restored": "cyan"}


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
    console = Console(highlight=False, soft_wrap=True)
    layout = Layout.find()
    set_up(layout)
    check_names(force)  # before anything is written
    for change in params_file.edit(layout.params, list(assignments)):
        console.print(tables.line(f"params.yaml  {change}"))
    params = params_file.load(layout.params)
    own_hash(params.train.network, layout.root, "train.network")  # before anything long runs

    console.print("[dim]starting Prefect …[/]")
    with prefect_api(layout) as wait:
        # Seconds of imports, while the server comes up; they read what was set above.
        from pipelines.pipeline import main_job as flow
        from pipelines.provenance import lineage
        from pipelines.release import health
        from pipelines.systems import mlflow as tracking

        if lineage.is_dirty(layout.root):
            console.print("[yellow]uncommitted changes[/] in this checkout; recorded as such")
        wait()
        result = flow.run(
            layout,
            force,
            lambda done: console.print(
                tables.line(
                    f"  {done.stage:<9} ",
                    tables.Styled(f"{done.outcome:<9}", _STYLE[done.outcome]),
                    f"{done.seconds:7.1f} s",
                )
            ),
        )
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
        seconds=result.seconds,
        stages=tuple(StageLine(s.stage, str(s.outcome), s.seconds) for s in result.stages),
        findings=decision.findings,
    )
    page = write_report(layout, summary)
    for name, said in _lines(layout, summary):
        console.print(tables.line(f"{name:<11} {said}"))
    place = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
    console.print(tables.line(f"{'report':<11} {place}"))
    console.print(f"{'see also':<11} prong models · prong predict IMAGE · prong ui")
    for problem in problems:
        console.print(tables.line(tables.Styled("wrong      ", "red"), f" {problem}"))
    sys.stdout.flush()
    if not all(problem.serves for problem in problems):
        raise Failed(f"{params.model_name}: the champion cannot be served: see above")


def _lines(layout: Layout, summary: Summary) -> Iterator[tuple[str, str]]:
    evaluation = read_json(layout.reports / "evaluation.json")
    verification = read_json(layout.reports / "verification.json")
    cached = sum(line.outcome != "ran" for line in summary.stages)
    yield "stages", f"{len(summary.stages) - cached} ran, {cached} cached"
    yield "test error", f"{evaluation['test_error']:.2f} % of {evaluation['images']} images"
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
