"""`prong paper`: lists the experiments, or runs one and says what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core import tables
from pipelines.core.environment import open_checkout
from pipelines.core.files import read_json
from pipelines.core.paths import Layout
from pipelines.systems.processes import exit_on_sigterm

if TYPE_CHECKING:  # DVC and Prefect are imported while the server comes up
    from pipelines.paper.plan import PlannedStage
    from pipelines.systems.dvc.reproduce import StageResult

_STYLE = {"ran": "green", "cached": "cyan", "restored": "cyan"}


@dataclass(frozen=True)
class PaperOptions:
    """The options of the command, as they were typed.

    Attributes:
        scale: `--scale`.
        out: `--out`; None: `paper/NAME-SCALE` in the checkout.
        trials: `--trials`; None: as the scale has them.
        seeds: `--seeds`; None: as the scale has them.
        examples: `--examples`; None: as the scale has them.
        only: `--only`.
        without: `--without`.
    """

    scale: str
    out: Path | None
    trials: int | None
    seeds: int | None
    examples: int | None
    only: tuple[str, ...]
    without: tuple[str, ...]


def show_experiments() -> None:
    """List the experiments."""
    from pipelines.paper.experiments import EXPERIMENTS

    rows = [(one.name, one.figure, one.question) for one in EXPERIMENTS.values()]
    console = tables.console()
    console.print(tables.table(("name", "figure", "question"), rows))
    console.print("run one  prong paper NAME --scale small")


def run_and_show(name: str, options: PaperOptions) -> None:
    """Run an experiment in the checkout this process stands in.

    Args:
        name: Of the experiment.
        options: How.

    Raises:
        UserError: If a name, an option, a parameter, the images or the store is at fault.
        Failed: If a stage crashed.
    """
    exit_on_sigterm()
    from pipelines.paper.plan import AskedExperiment, lay_out

    layout, params = open_checkout()
    asked = AskedExperiment(
        name,
        options.scale,
        options.trials,
        options.seeds,
        options.examples,
        options.only,
        options.without,
        str(layout.home),
        params.data.mirror,
    )
    asked.experiment()  # what is wrong says so before anything is written
    folder = (options.out or layout.root / f"paper/{name}-{options.scale}").resolve()
    steps = lay_out(folder, asked)
    run(layout, folder, steps)


def run(layout: Layout, folder: Path, steps: tuple[PlannedStage, ...]) -> None:
    """Run the stages of a folder, and print how they go on and what was reached."""
    from pipelines.systems.prefect.server import prefect_api

    console = tables.console()
    console.print(tables.line(tables.Styled("starting Prefect …", "dim")))

    def say(done: StageResult) -> None:
        outcome = tables.Styled(f"{done.outcome:<9}", _STYLE[done.outcome])
        line = tables.line(f"  {done.stage:<28} ", outcome, f"{done.seconds:7.1f} s")
        console.print(line, soft_wrap=True)

    with prefect_api(layout) as wait:
        from pipelines.paper import paper_flow as flow
        from pipelines.systems import mlflow as tracking

        wait()
        tracking.close_dead_runs(layout)
        done = flow.run(folder, steps, say)
    found: dict[str, Any] = read_json(folder / "report/report.json")
    for target in found["targets"]:
        word = {True: "reached", False: "missed", None: "open"}[target["reached"]]
        said = f"{word:<8} {target['what']}: {target['limit']}; {target['found']}"
        console.print(tables.line(said), soft_wrap=True)
    page = folder / "report/report.html"
    place = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
    console.print(tables.line(f"{'time':<8} {done.seconds:.1f} s"))
    console.print(tables.line(f"{'report':<8} {place}"), soft_wrap=True)
