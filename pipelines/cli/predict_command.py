"""`prong predict`: answers for some files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared_arguments import AsJson, Name, ProviderName
from pipelines.core.errors import UserError
from pipelines.core.text import shown

if TYPE_CHECKING:
    from pipelines.serving.predict import Prediction


def predict(
    files: Annotated[list[Path], typer.Argument(help="Image files, or tables (CSV, Parquet).")],
    name: Name = None,
    provider: ProviderName = "auto",
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
