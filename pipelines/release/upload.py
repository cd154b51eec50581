"""How an ONNX file becomes a version: upload, download again, compare, create, mark complete."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core import faults
from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import read_json, sha256_file
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.provenance import release_branch as releases
from pipelines.provenance.attachments import DRIFT, write_attachments
from pipelines.provenance.lineage import LONGEST, UNKNOWN, lineage, package_version, runtime_version
from pipelines.registry import version_files
from pipelines.registry.version_files import MODEL_FILE
from pipelines.registry.versions import COMPLETE, LINEAGE, METRIC, PARAM, SHA256, Version
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import MlflowClient, artifacts, logged_models, registered_models
from pipelines.systems.mlflow.model_folder import write_folder
from pipelines.systems.onnx import model_file
from pipelines.systems.onnx.runtime import OnnxModel, fed
from pipelines.systems.scratch import scratch

_EXAMPLE_PIXELS = 2**16  # the example is stored as text, a few bytes a pixel


@dataclass(frozen=True)
class NewVersion:
    """What is to become a version.

    Attributes:
        model: The registered model's name.
        file: The ONNX file.
        sha256: Of its bytes.
        run_id: The run that made it.
        made_from: Its lineage.
        tags: More tags of the version, by full name.
        attach: Writes beside the file, in the folder that is released, what belongs to it.
        answers_from: A file with the same inputs and outputs, for the example that MLflow keeps;
            default: the file itself.
    """

    model: str
    file: Path
    sha256: str
    run_id: str
    made_from: Mapping[str, str]
    tags: Mapping[str, str]
    attach: Callable[[Path], None]
    answers_from: Path | None = None


def new_version(
    layout: Layout,
    client: MlflowClient,
    params: Params,
    sha256: str,
    flow_run_id: str | None,
    check: Callable[[], None],
) -> tuple[int, str]:
    """Register the checkout's ONNX file as a new version.

    Args:
        layout: The checkout; all DVC stages are up to date.
        client: Of the registry, inside the one transaction.
        params: The checkout's parameters.
        sha256: Of the ONNX file.
        flow_run_id: Prefect's id of the run, if there is one.
        check: Raises if another process has taken over meanwhile.

    Returns:
        The version's number and the training's run id.

    Raises:
        UserError: If a report is absent or damaged, or the upload does not come back equal.
        Unavailable: If the store does not answer.
    """
    figures = {
        "evaluation": _report(layout, "evaluation.json", "test_error"),
        "verification": _report(layout, "verification.json", "largest_difference"),
    }
    made_from = {**lineage(layout, params), "flow_run_id": flow_run_id or UNKNOWN}
    run_id = _training_run(layout, params)
    new = NewVersion(
        params.model_name,
        layout.onnx,
        sha256,
        run_id,
        made_from,
        {
            METRIC + "test_error": str(figures["evaluation"]["test_error"]),
            METRIC + "test_images": str(figures["evaluation"].get("images", UNKNOWN)),
            METRIC + "parity": str(figures["verification"]["largest_difference"]),
            METRIC + "fold": _fold(figures["verification"]),
            **{PARAM + key: str(value)[:LONGEST] for key, value in _knobs(params).items()},
        },
        lambda model: write_attachments(layout, model, params.model_name, made_from, figures),
    )
    named = (pair for report, values in figures.items() for pair in _numbers(values, report))
    tracking.log_reports(client, run_id, named, layout.reports)
    faults.point("register.run")
    number = create(layout, client, new, check)
    # Before the version is complete: whatever may be promoted can be made again.
    releases.keep(layout, new.model, number, sha256)
    check()
    complete(client, new.model, number)
    faults.point("register.complete")
    return number, run_id


def create(layout: Layout, client: MlflowClient, new: NewVersion, check: Callable[[], None]) -> int:
    """Upload a file, download it again, compare, and create a version that is not complete yet.

    Args:
        layout: The checkout.
        client: Of the registry, inside the one transaction.
        new: What is to become a version.
        check: Raises if another process has taken over meanwhile.

    Returns:
        The version's number.

    Raises:
        UserError: If the upload does not come back equal.
        Unavailable: If the store does not answer.
    """
    model_id, where = _upload(layout, client, new)
    faults.point("register.upload")
    cached = version_files.cached_file(layout, new.sha256)
    if artifacts.download(layout, where, MODEL_FILE, cached) != new.sha256:
        logged_models.close(client, model_id, ready=False)
        raise UserError(f"{where}: the uploaded model does not come back as it was; try again")
    logged_models.close(client, model_id, ready=True)
    faults.point("register.download")
    tags = {
        SHA256: new.sha256,
        **{LINEAGE + key: value for key, value in new.made_from.items()},
        **new.tags,
    }
    check()
    number = registered_models.create_version(
        client, new.model, where, run_id=new.run_id, model_id=model_id, tags=tags
    )
    faults.point("register.version")
    logged_models.name_version(client, model_id, new.model, number)
    return number


def finish(layout: Layout, client: MlflowClient, version: Version) -> bool:
    """Complete a version whose registration broke off, or remove it.

    Returns:
        Whether the version is complete now; False if it was removed.
    """
    if is_whole(layout, version):
        if layout.onnx.is_file() and sha256_file(layout.onnx) == version.sha256:
            releases.keep(layout, version.model, version.number, version.sha256)
        complete(client, version.model, version.number)
        return True
    registered_models.delete_version(client, version.model, version.number)
    return False


def is_whole(layout: Layout, version: Version) -> bool:
    """Say whether the store holds a version's file, downloaded anew, as it was registered.

    Raises:
        Unavailable: If the store does not answer.
    """
    return stored_sha256(layout, version) == version.sha256 != ""


def stored_sha256(layout: Layout, version: Version, name: str = MODEL_FILE) -> str:
    """Return the hash of a version's file as the store holds it now; empty if it is not there.

    Args:
        layout: The checkout.
        version: Which one.
        name: Of the file in the version's folder.

    Raises:
        Unavailable: If the store does not answer.
    """
    with scratch(layout.state, "look") as folder:
        try:
            where = version_files.location(layout, version)
            return artifacts.download(layout, where, name, folder / name)
        except Unavailable:
            raise
        except UserError:
            return ""


def put_back(layout: Layout, version: Version, sha256: str, name: str = MODEL_FILE) -> bool:
    """Put a version's file back into the store from what is still here; say whether that was so.

    The checkout's own output and the cache are looked at; only bytes of this hash count.

    Args:
        layout: The checkout.
        version: Which one.
        sha256: Of its bytes: by its statement, or as it was registered.
        name: Of the file in the version's folder: the model, or its drift graph.

    Raises:
        UserError: If the version is gone from the registry, or the store takes nothing.
        Unavailable: If the store does not answer.
    """
    kept = (version_files.cached_file(layout, sha256), layout.onnx)
    if name == DRIFT:
        kept = (version_files.cached_drift(layout, sha256), layout.drift)
    for path in kept:
        if not path.is_file() or sha256_file(path) != sha256:
            continue
        with scratch(layout.state, "upload") as folder:
            copy = folder / name
            shutil.copyfile(path, copy)
            if sha256_file(copy) != sha256:  # changed meanwhile
                continue
            version_files.put_beside(layout, version, copy)
        return stored_sha256(layout, version, name) == sha256
    return False


def complete(client: MlflowClient, name: str, number: int) -> None:
    """Mark a version complete, once MLflow says that it is READY.

    Raises:
        Unavailable: If MLflow does not.
    """
    status = registered_models.status(client, name, number)
    if status != "READY":
        raise Unavailable(f"{name} version {number}: MLflow leaves it {status}; run again")
    registered_models.tag_version(client, name, number, COMPLETE, "true")


def _report(layout: Layout, name: str, figure: str) -> dict[str, Any]:
    path = layout.reports / name
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: absent; `prong run` makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get(figure), int | float):
        raise UserError(f"{path}: damaged: no number under {figure!r}")
    return found


def _training_run(layout: Layout, params: Params) -> str:
    """Return the run that trained these weights; one is made if none is known here."""
    weights = sha256_file(layout.trained / "network.safetensors")
    run_id = tracking.find_run(layout, params.model_name, weights)
    if run_id is not None:
        tracking.import_history(layout, run_id, layout.reports)
        return run_id
    return tracking.import_run(
        layout,
        experiment=params.model_name,
        params=_knobs(params),
        tags={tracking.WEIGHTS_TAG: weights},
        reports=layout.reports,
    )


def _knobs(params: Params) -> dict[str, object]:
    """Return the parameters that are recorded, by full name."""
    return {f"{s}.{k}": v for s, values in params.recorded().items() for k, v in values.items()}


def _fold(verification: Mapping[str, Any]) -> str:
    """Return the largest difference between the whitened network and the folded one."""
    pair = ("whitened", "folded")
    compared = verification.get("comparisons", [])
    found = [row["difference"] for row in compared if (row["first"], row["second"]) == pair]
    return str(max(found)) if found else UNKNOWN


def _numbers(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, float]]:
    for key, item in value.items():
        name = f"{path}/{key}"
        if isinstance(item, list):  # of named figures, such as one entry per class
            item = {row["name"]: row for row in item if isinstance(row, dict) and "name" in row}
        if isinstance(item, Mapping):
            yield from _numbers(item, name)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield name, float(item)


def _example(layout: Layout) -> Any:
    inputs = load_split(layout.prepared, "test").inputs
    count = max(1, min(4, _EXAMPLE_PIXELS // math.prod(inputs.shape[1:])))
    return inputs[:count]


def _upload(layout: Layout, client: MlflowClient, new: NewVersion) -> tuple[str, str]:
    """Store the ONNX file as an MLflow model, byte for byte; return its id and location."""
    runs_in, opset = runtime_version(), package_version(["onnx"])
    model = OnnxModel.load(new.answers_from or new.file, "cpu")
    example = _example(layout)
    outputs = dict(zip(model.card.outputs, model.both(example), strict=True))
    upload = logged_models.begin(layout, client, new.model, new.run_id, {SHA256: new.sha256})
    faults.point("register.begin")
    with scratch(layout.state, "upload") as files:
        folder = files / "model"
        write_folder(
            folder,
            model_file.load(new.file),
            upload=upload,
            run_id=new.run_id,
            inputs=fed(model.form, example),
            outputs=outputs,
            requirements=["==".join(runs_in), "==".join(opset)],
            metadata={SHA256: new.sha256},
        )
        # MLflow has written the model anew; what was verified is this file, not its like.
        shutil.copyfile(new.file, folder / MODEL_FILE)
        new.attach(folder / MODEL_FILE)
        logged_models.fill(client, upload, folder, new.run_id)
    return str(upload.model_id), str(upload.artifact_location)
