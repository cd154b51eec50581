"""`prong score`: answers for many files."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared_arguments import AsJson, Name, ProviderName
from pipelines.core.text import shown


def score(
    source: Annotated[
        Path, typer.Argument(help="A folder, an archive of images (tar, zip), or a table.")
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file that is written.")],
    name: Name = None,
    provider: ProviderName = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the runtime; default: one for each processor.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer for many files from the champion, into one Parquet file; goes on if it was ended."""
    from pipelines.core.environment import open_model
    from pipelines.registry.version_files import champion
    from pipelines.serving.batch.score import score
    from pipelines.systems.onnx.runtime import OnnxModel
    from pipelines.systems.processes import exit_on_sigterm

    exit_on_sigterm()
    layout, asked = open_model(name)
    found = champion(layout, asked)
    for said in found.warnings:
        print(f"warning: {asked}: {shown(said)}", file=sys.stderr)
    model = OnnxModel.load(
        found.path,
        provider,  # type: ignore[arg-type]
        asked="--provider",
        threads=threads,
        spinning=False,  # others decode on the same processors
    )
    done = score(
        model,
        source,
        out,
        name=asked,
        version=found.version,
        checkout=layout.root,
        overwrite=overwrite,
    )
    if as_json:
        print(json.dumps(asdict(done), default=str))
        return
    fresh = done.inputs - done.resumed
    speed = f", {fresh / max(done.seconds, 1e-9):,.0f} inputs/s" if fresh else ""
    before = f", {done.resumed:,} of them by an earlier run" if done.resumed else ""
    print(
        f"{shown(done.out)}  {done.inputs - done.quarantined:,} of {done.inputs:,} inputs answered "
        f"by {asked} v{done.version} on {done.provider}{before}{speed}"
    )
    if done.quarantine is not None:
        said = f"{done.quarantined:,} inputs have no answer; why: {shown(done.quarantine)}"
        print(f"warning: {said}", file=sys.stderr)
