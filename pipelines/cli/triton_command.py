"""`prong triton`: the champion as a model repository of Triton."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared_arguments import Name
from pipelines.core.errors import UserError
from pipelines.core.text import shown


def triton(
    folder: Annotated[Path, typer.Argument(help="The model repository; made if absent.")],
    name: Name = None,
    max_batch: Annotated[int, typer.Option(help="Most examples of one call.")] = 64,
    batch_delay: Annotated[
        float, typer.Option(help="Milliseconds that a request waits for a larger batch.")
    ] = 1.0,
    instances: Annotated[int, typer.Option(help="Copies of the model on each device.")] = 1,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="GPUs run it by TensorRT.")] = False,
    tensorrt_cache: Annotated[
        str, typer.Option(help="Folder on the server where TensorRT keeps its engines.")
    ] = "",
) -> None:
    """Write the champion into a model repository of Triton, as the version that is served."""
    from pipelines.core.environment import open_model
    from pipelines.export.triton import TritonSettings, write_repository
    from pipelines.registry.version_files import champion
    from pipelines.systems.onnx.model_file import read_checked

    if tensorrt_cache and not tensorrt:
        raise UserError("--tensorrt-cache: only together with --tensorrt")
    settings = TritonSettings(
        max_batch, round(batch_delay * 1000), instances, tensorrt, tensorrt_cache
    )
    layout, asked = open_model(name)
    found = champion(layout, asked)
    for said in found.warnings:
        print(f"warning: {asked}: {shown(said)}", file=sys.stderr)
    _, card = read_checked(found.path)
    classes = card.form.classes
    place = write_repository(folder, asked, found.path, found.version, classes, settings)
    print(f"{shown(place)}  {asked} v{found.version}")
