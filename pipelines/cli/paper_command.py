"""The command `prong paper`.

Heavy imports are inside it, so that help and usage errors appear at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def paper(
    name: Annotated[
        str, typer.Argument(help="The experiment; without it they are listed.", show_default=False)
    ] = "",
    scale: Annotated[
        str, typer.Option(help="small: minutes on two cores; full: the paper's size.")
    ] = "small",
    out: Annotated[
        Path | None, typer.Option(help="Folder to work in; default: paper/NAME-SCALE.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each setting.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Of each search.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Images that a training sees, repeated ones counted.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="METHOD", help="Only this method. Repeatable.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Not this row, by its key. Repeatable.")
    ] = None,
) -> None:
    """Run an experiment of the paper again: data, search, trainings, report. Skip what is done."""
    from pipelines.paper.paper_run import PaperOptions, run_and_show, show_experiments

    if not name:
        show_experiments()
        return
    chosen = tuple(only or ()), tuple(without or ())
    run_and_show(name, PaperOptions(scale, out, trials, seeds, examples, *chosen))
