"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[
    str | None, typer.Option("--model", help="Registered model; default: that of params.yaml.")
]
Number = Annotated[str, typer.Argument(help="A version's number, or an alias.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
