"""The `prong` command.

Heavy imports are inside the commands, so that help and usage errors appear at once.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli import data_commands, new_project, registry_commands, schedule_commands
from pipelines.cli.monitor_command import monitor
from pipelines.cli.predict_command import predict
from pipelines.cli.score_command import score
from pipelines.cli.search_command import search
from pipelines.cli.serve_command import serve
from pipelines.cli.shared_arguments import AsJson, Name
from pipelines.cli.triton_command import triton
from pipelines.cli.variants_command import variants
from pipelines.core.errors import Failed, UserError, disk_error
from pipelines.core.text import print_anything, shown_lines

app = typer.Typer(
    name="prong",
    help="Train by natural gradient, verify, register, promote and serve: one pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"prong {version('prong')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train by natural gradient, verify, register, promote and serve: one pipeline."""


app.command()(new_project.init)


@app.command()
def run(
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Edit params.yaml first. Repeatable."),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STAGE", help="Run a stage even if nothing changed."),
    ] = None,
) -> None:
    """Run the main job in this checkout: prepare … promote; skip stages that are up to date."""
    from pipelines.pipeline.run import run_and_show

    run_and_show(assignments or [], force or [])


@app.command()
def join() -> None:
    """Join, with this machine, the training that `prong run` began on the first machine."""
    from pipelines.core.environment import open_checkout
    from pipelines.systems.processes import exit_on_sigterm
    from pipelines.training.launch import join

    exit_on_sigterm()
    layout, params = open_checkout()
    join(layout, params)
    print("the training has ended")


app.command()(search)
app.command()(registry_commands.models)
app.command()(registry_commands.gates)
app.command()(variants)
app.command()(predict)
app.command()(score)
app.command()(triton)
app.command()(serve)
app.command()(monitor)
app.command()(registry_commands.promote)
app.command()(registry_commands.rollback)
app.command()(registry_commands.history)
app.command()(registry_commands.compare)
app.command("gc")(registry_commands.collect)
app.command()(registry_commands.sign)
app.command()(registry_commands.keys)
app.command()(registry_commands.repair)
app.command()(registry_commands.migrate)
app.command()(registry_commands.lineage)
app.command()(registry_commands.rebuild)


@app.command()
def trace(
    image: Annotated[Path, typer.Argument(help="An image file.")], as_json: AsJson = False
) -> None:
    """Follow one image through the checkout's network, layer by layer: whitened, folded, ONNX."""
    from dataclasses import asdict

    from rich.console import Console

    from pipelines.core.environment import open_checkout
    from pipelines.verification.trace import show, trace

    layout, _ = open_checkout()
    found = trace(layout.trained, layout.onnx, image)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show(found, Console(highlight=False, width=None if sys.stdout.isatty() else 140))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can do, and what is wrong."""
    from pipelines.cli.doctor import examine

    if not examine(as_json=as_json):
        raise typer.Exit(1)


@app.command()
def status(name: Name = None, as_json: AsJson = False) -> None:
    """Show what is live, whether it is healthy, the next scheduled run and the last ones."""
    from pipelines.cli.status import show_status
    from pipelines.core.environment import open_checkout

    layout, params = open_checkout()
    if not show_status(layout, params, name or params.model_name, as_json):
        raise typer.Exit(1)


@app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's web page.")] = 5000,
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's web page.")] = 4200,
) -> None:
    """Show MLflow's and Prefect's web pages on this machine, until Ctrl-C."""
    from pipelines.cli.ui import serve_pages
    from pipelines.core.environment import open_checkout

    layout, _ = open_checkout()
    serve_pages(layout, mlflow_port=mlflow_port, prefect_port=prefect_port)


app.command()(schedule_commands.schedule)
app.command()(schedule_commands.worker)


app.add_typer(data_commands.data, name="data")


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    # Imports leave hardly any garbage: collecting it took a fifth of a short command's time.
    gc.set_threshold(100_000, 50, 50)
    print_anything()
    try:
        app()
    except (UserError, Failed) as error:
        sys.exit(_say(error))
    except OSError as error:
        mended = disk_error(error)
        if mended is None:
            raise
        sys.exit(_say(mended))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _say(error: UserError | Failed) -> int:
    print(f"error: {shown_lines(error)}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    main()
