"""The command `prong search`.

Heavy imports are inside it, so that help and usage errors appear at once.
"""

from __future__ import annotations

from typing import Annotated

import typer


def search(
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY…",
            help="train.lr, train.lr=1e-3..0.3 or train.method=sgd,prong+: what to search, in "
            "which range or among which values.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all.")] = 30,
    jobs: Annotated[str, typer.Option(help="Trials at a time: auto or a number.")] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of a trial; default: train.epochs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the proposals.")] = 0,
    name: Annotated[str, typer.Option(help="Of the study; default: by what it searches.")] = "",
    prune: Annotated[
        bool, typer.Option(help="Stop a trial that is worse than the median of the others.")
    ] = True,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the best values into params.yaml.")
    ] = False,
) -> None:
    """Search for the best settings of the training; a search that was stopped goes on."""
    from pipelines.search.command import Options, search_and_show

    search_and_show(keys or [], Options(trials, jobs, epochs, seed, name, prune, apply))
