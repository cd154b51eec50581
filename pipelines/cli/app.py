"""The `prong` command.

Heavy imports are inside the commands, so that help and usage errors appear at once.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli import data_commands, new_project, registry_commands
from pipelines.cli.search_command import search
from pipelines.cli.serve_command import serve
from pipelines.cli.shared_arguments import AsJson, Name
from pipelines.core.errors import Failed, UserError, disk_error
from pipelines.core.text import print_anything, shown, shown_lines

if TYPE_CHECKING:
    from pipelines.serving.predict import Prediction

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


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Image files, or tables (CSV, Parquet).")],
    name: Name = None,
    provider: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each example.")] = 3,
    save: Annotated[
        Path | None, typer.Option(help="Folder for reconstructed images, as PNG files.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer from the champion's ONNX file."""
    from pipelines.core.environment import open_model
    from pipelines.registry.version_files import champion
    from pipelines.serving.predict import predict, save_images
    from pipelines.systems.onnx.runtime import OnnxModel
    from pipelines.tasks.form import RECONSTRUCTION

    if provider not in ("auto", "cpu", "cuda"):
        raise UserError(f"--provider {provider!r}: allowed: auto, cpu, cuda")
    layout, asked = open_model(name)
    found = champion(layout, asked)
    version = found.version
    for said in found.warnings:
        print(f"warning: {asked}: {shown(said)}", file=sys.stderr)
    model = OnnxModel.load(found.path, provider, asked="--provider")  # type: ignore[arg-type]
    if save is not None and model.form.task != RECONSTRUCTION:
        raise UserError(f"--save {str(save)!r}: {asked} answers with no images")
    answers = predict(model, files, top=top, checkout=layout.root)
    if save is not None:
        save_images(answers, model.form, save)
    if as_json:
        rows = [_as_json(answer) for answer in answers]
        print(json.dumps({"version": version, "provider": model.provider, "answers": rows}))
        return
    for answer in answers:
        parts = [f"{shown(label)} {100 * share:.1f} %" for label, share in answer.top]
        parts += [f"{shown(name)} {_number(value)}" for name, value in answer.values.items()]
        if answer.error is not None:
            parts.append(f"error {100 * answer.error:.2f} %")
        print(f"{shown(answer.name)}  {'  '.join(parts)}")


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def _as_json(answer: Prediction) -> dict[str, object]:
    row: dict[str, object] = {"path": str(answer.path)}
    if answer.name != str(answer.path):
        row["name"] = answer.name
    if answer.top:
        row |= {"label": answer.label, "probability": answer.probability, "top": answer.top}
    else:
        row["values"] = dict(answer.values)
    if answer.error is not None:
        row["error"] = answer.error
    return row


app.command()(serve)
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


@app.command()
def schedule(
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="When to run: five cron fields.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "retrain",
    pool: Annotated[str, typer.Option(help="Work pool; the default pool is created.")] = "prong",
    timezone: Annotated[str, typer.Option(help="IANA time zone of the cron.")] = "UTC",
    pause: Annotated[
        bool, typer.Option("--pause", help="Start no runs until it is scheduled again.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the deployment.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the deployments.")] = False,
) -> None:
    """Schedule the main job as a Prefect deployment whose runs `prong worker` executes."""
    from pipelines.core.environment import open_checkout
    from pipelines.systems.prefect.server import prefect_api

    asked = {"--cron": cron is not None, "--pause": pause, "--remove": remove, "--list": show}
    given = [option for option, there in asked.items() if there]
    if len(given) != 1:
        raise UserError(f"{' '.join(given) or 'nothing given'}: give one of {', '.join(asked)}")
    layout, _ = open_checkout()
    with prefect_api(layout) as wait:
        from pipelines.scheduling import deployment
        from pipelines.scheduling.cron import schedule

        if cron is not None:
            times = schedule(cron, timezone)
            wait()
            plan, changed = deployment.deploy(layout, name, times, pool)
            news = "scheduled" if changed else "unchanged"
            said = f"{plan.name}  {plan.cron}  {plan.timezone}  pool {plan.pool}  {news}"
            print(shown(said))
            print("see also  prong worker (executes the runs) · prong schedule --list · prong ui")
            return
        wait()
        if pause:
            deployment.pause(name)
            print(f"{shown(name)}  paused; `prong schedule --cron …` starts it again")
        elif remove:
            deployment.remove(name)
            print(f"{shown(name)}  removed")
        else:
            for known, found in deployment.plans():
                said = "schedules not made by prong schedule: see prong ui"
                if found is not None:
                    state = "paused" if found.paused else "active"
                    said = f"{found.cron}  {found.timezone}  pool {found.pool}  {state}"
                print(shown(f"{known}  {said}"))


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Work pool to take runs from.")] = "prong",
) -> None:
    """Execute scheduled runs until Ctrl-C; start a Prefect server if none is set."""
    from pipelines.core.environment import open_checkout
    from pipelines.scheduling.worker import serve

    layout, params = open_checkout()
    serve(layout, params, pool)


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
