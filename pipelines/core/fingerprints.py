"""Hashes that show whether two models were made from the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.files import sha256_json, sha256_sources
from pipelines.core.own_code import is_own, own_hash

STAGE_SOURCES: dict[str, tuple[str, ...]] = {
    "prepare": (
        "pipelines/core/files.py",
        "pipelines/core/own_code.py",
        "pipelines/data",
        "pipelines/tasks",
    ),
    "train": (
        "pipelines/core/files.py",
        "pipelines/core/fingerprints.py",
        "pipelines/core/own_code.py",
        "pipelines/data/prepared.py",
        "pipelines/data/split_file.py",
        "pipelines/tasks",
        "pipelines/training",
        "prong",
    ),
    "evaluate": (
        "pipelines/core/files.py",
        "pipelines/core/own_code.py",
        "pipelines/data/prepared.py",
        "pipelines/data/split_file.py",
        "pipelines/evaluation",
        "pipelines/systems/onnx/metadata.py",
        "pipelines/tasks",
        "pipelines/training/network.py",
        "pipelines/training/row_features.py",
        "pipelines/training/shared_arrays.py",
        "pipelines/training/signature.py",
        "pipelines/training/zoo",
        "prong",
    ),
    "export": (
        "pipelines/core/files.py",
        "pipelines/core/fingerprints.py",
        "pipelines/core/own_code.py",
        "pipelines/data",
        "pipelines/drift",
        "pipelines/export",
        "pipelines/systems/onnx/category_inputs.py",
        "pipelines/systems/onnx/drift_card.py",
        "pipelines/systems/onnx/drift_graph.py",
        "pipelines/systems/onnx/graph_runner.py",
        "pipelines/systems/onnx/graph_values.py",
        "pipelines/systems/onnx/inputs_by_name.py",
        "pipelines/systems/onnx/metadata.py",
        "pipelines/systems/onnx/model_file.py",
        "pipelines/systems/onnx/serialise.py",
        "pipelines/tasks",
        "pipelines/training",
        "prong",
    ),
    "verify": (
        "pipelines/core/files.py",
        "pipelines/core/fingerprints.py",
        "pipelines/core/own_code.py",
        "pipelines/core/processors.py",
        "pipelines/data/prepared.py",
        "pipelines/data/split_file.py",
        "pipelines/drift",
        "pipelines/export",
        "pipelines/systems/onnx",
        "pipelines/tasks",
        "pipelines/training/network.py",
        "pipelines/training/row_features.py",
        "pipelines/training/signature.py",
        "pipelines/training/zoo",
        "pipelines/verification",
        "prong",
    ),
}
"""Stage → files and packages of the source that can change what it makes; a test compares them with
its imports. Those of `export` determine a model's bytes: its file holds their hash."""
OWN_CODE: dict[str, tuple[str, ...]] = {
    "prepare": ("data.source", "task.name"),
    "train": ("train.network", "train.augment_by", "task.name"),
    "evaluate": ("task.name",),
    "export": ("task.name",),
    "verify": ("task.name",),
}
"""Stage → settings of `params.yaml` that may name a function of the user's own."""
PACKAGES = ("pipelines", "prong")


def source_root(root: Path) -> Path:
    """Return the folder whose sources are at work: a checkout with them, else the installation.

    Args:
        root: A project, or a checkout of this package itself.
    """
    if all((root / name / "__init__.py").is_file() for name in PACKAGES):
        return root
    return Path(__file__).resolve().parents[2]


def package_hash(root: Path, sources: Sequence[str] = STAGE_SOURCES["export"]) -> str:
    """Return the hash of the package's sources, without the user's own code.

    Args:
        root: The project; `source_root` says whose sources count.
        sources: Which: files and packages, relative to that folder.
    """
    base = source_root(root)
    return sha256_sources([base / name for name in sources], base)


def params_hash(params: Params) -> str:
    """Return the hash of the parameters that determine a model's bytes.

    These are the sections data, task, train and export, without the place of the data (`data.path`,
    `data.mirror`) and its expected hash (`data.sha256`), because the data hash covers the content
    itself.
    """
    data = replace(params.data, path=".", mirror="", sha256="")
    return replace(params, data=data).hash("data", "task", "train", "export")


def code_hash(root: Path, own: Mapping[str, str] | None = None) -> str:
    """Return the hash of the sources that determine a model's bytes.

    Args:
        root: The project.
        own: See `own_code_of`; each function counts with all that it imports in the project.

    Raises:
        UserError: If the file of such a function is absent or cannot be read.
    """
    sources = package_hash(root)
    hashes = [own_hash(value, root, key) for key, value in (own or {}).items()]
    return sha256_json([sources, *hashes]) if hashes else sources


def own_code_of(params: Params) -> dict[str, str]:
    """Return the settings that name own code: key → `module:function`.

    Not among them is `data.source`: what its function yields is in the data's hash.
    """
    named = {
        "train.network": params.train.network,
        "train.augment_by": params.train.augment_by,
        "task.name": params.task.name,
    }
    return {key: value for key, value in named.items() if is_own(value)}


def training_hash(data_hash: str, params: Params, root: Path, started_from: str = "") -> str:
    """Return the name of one training: equal data, parameters and code give equal names.

    Args:
        data_hash: Of the prepared images.
        params: `params_hash` says which of them count.
        root: The checkout with the code.
        started_from: What the lineage says of where it started; it counts only where
            `train.checkpoint_from` asks for a version.
    """
    parts = [data_hash, params_hash(params), code_hash(root, own_code_of(params))]
    return sha256_json([*parts, started_from] if params.train.checkpoint_from else parts)
