"""Arguments that several commands share."""

from __future__ import annotations

import re
from typing import Annotated, get_args

import typer

from pipelines.core.errors import UserError


def _model_name(name: str | None) -> str | None:
    """Return a model's name as a person typed it, if it is one.

    Raises:
        UserError: If it is not.
    """
    from pipelines.core.config import LONGEST_NAME, MODEL_NAME

    if name is None or (len(name) <= LONGEST_NAME and re.fullmatch(MODEL_NAME, name)):
        return name
    raise UserError(
        f"--model {name[:LONGEST_NAME]!r}: allowed: up to {LONGEST_NAME} letters, digits, '.', "
        "'_' and '-', a letter or digit first"
    )


def _provider(name: str) -> str:
    """Return a provider of ONNX Runtime as a person typed it, if it is one.

    Raises:
        UserError: If it is not.
    """
    from pipelines.core.config import Provider

    if name in get_args(Provider):
        return name
    raise UserError(f"--provider {name!r}: allowed: {', '.join(get_args(Provider))}")


Name = Annotated[
    str | None,
    typer.Option(
        "--model", callback=_model_name, help="Registered model; default: that of params.yaml."
    ),
]
Number = Annotated[str, typer.Argument(help="A version's number, or an alias.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ProviderName = Annotated[
    str, typer.Option("--provider", callback=_provider, help="auto, cpu, cuda or tensorrt.")
]
