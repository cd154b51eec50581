"""The folder that MLflow keeps for an ONNX model: its signature, an example, how to load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.onnx
from mlflow.entities import LoggedModel
from mlflow.models import Model, infer_signature
from numpy.typing import NDArray


def write_folder(
    folder: Path,
    model: Any,
    *,
    upload: LoggedModel,
    run_id: str,
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    requirements: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write the folder of an ONNX model; MLflow writes the model anew, not with the same bytes.

    Args:
        folder: Made here.
        model: As `pipelines.systems.onnx.model_file.load` returns it.
        upload: Where the folder is to go.
        run_id: The training's run.
        inputs: An example, by input.
        outputs: The answers to it, by output.
        requirements: Packages that a user of the model needs, as pip takes them.
        metadata: Of MLflow's description of the model.
    """
    with warnings.catch_warnings():
        # MLflow's, about type hints of its own that have nothing to do with this model.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred", module="mlflow")
        mlflow.onnx.save_model(
            model,
            str(folder),
            mlflow_model=Model(
                artifact_path=upload.artifact_location,
                model_uuid=upload.model_id,
                run_id=run_id,
                model_id=upload.model_id,
            ),
            signature=infer_signature(dict(inputs), dict(outputs)),
            input_example=dict(inputs),
            pip_requirements=list(requirements),
            metadata=dict(metadata),
            save_as_external_data=False,
        )
