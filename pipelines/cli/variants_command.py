"""The command `prong variants`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipelines.cli.shared_arguments import AsJson, Name
from pipelines.core.text import shown


def variants(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="KIND", help="fp16, int8 or truncated. Repeatable."),
    ] = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Make smaller variants of the champion, judge them, and compare them with it.

    Exit code 1 if none could be judged; a variant that a gate blocks is no error.
    """
    from pipelines.core.environment import open_checkout
    from pipelines.variants.kinds import KINDS
    from pipelines.variants.make_variants import JSON, PICTURE, make_variants
    from pipelines.variants.side_by_side import as_json as json_of
    from pipelines.variants.side_by_side import show

    layout, params = open_checkout()
    model = name or params.model_name

    def say(line: str) -> None:
        print(shown(line), file=sys.stderr)

    rows = make_variants(layout, params, model, tuple(only or KINDS), say)
    if as_json:
        print(json_of(rows))
    else:
        show(rows)
        print(shown(f"written: {layout.reports / JSON}, {layout.reports / PICTURE}"))
    if all(row.version is None for row in rows[1:]):
        raise typer.Exit(1)
