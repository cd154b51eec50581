"""The commands `prong data …`.

Heavy imports are inside them, so that help and usage errors appear at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared_arguments import AsJson

data = typer.Typer(help="The data and its versions.", no_args_is_help=True)


@data.command(name="add")
def data_add(
    folder: Annotated[Path, typer.Argument(help="One folder of images per class.")],
    new_class: Annotated[
        bool, typer.Option("--new-class", help="Allow folders of new classes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add labelled images as a new version of the data; leave out duplicates."""
    from dataclasses import asdict

    from rich.console import Console

    from pipelines.core.environment import open_checkout
    from pipelines.pipeline.data_versions import add, show_intake

    layout, params = open_checkout()
    found = add(layout, params, folder, new_class=new_class)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show_intake(found, Console(highlight=False, soft_wrap=True))


@data.command(name="list")
def data_list(as_json: AsJson = False) -> None:
    """List the versions of the data."""
    from rich.console import Console

    from pipelines.core.environment import open_checkout
    from pipelines.pipeline.data_versions import show_versions, versions

    layout, params = open_checkout()
    found = versions(layout, params)
    if as_json:
        print(json.dumps([one.as_json() for one in found], indent=2))
    else:
        show_versions(found, params.data.source, Console(highlight=False))
