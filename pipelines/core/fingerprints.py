"""Hashes that show whether two models were made from the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.files import sha256_json, sha256_sources
from pipelines.core.own_code import is_own, own_hash

SOURCES = (
    "prong",
    "pipelines/core/files.py",
    "pipelines/core/fingerprints.py",
    "pipelines/core/own_code.py",
    "pipelines/data",
    "pipelines/export",
    "pipelines/systems/onnx/category_inputs.py",
    "pipelines/systems/onnx/metadata.py",
    "pipelines/systems/onnx/serialise.py",
    "pipelines/tasks",
    "pipelines/training",
)
"""The sources that determine a model's bytes; a test compares them with the stages' imports."""


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
        root: The checkout.
        own: See `own_code_of`; each function counts with all that it imports in the checkout.

    Raises:
        UserError: If the file of such a function is absent or cannot be read.
    """
    sources = sha256_sources([root / name for name in SOURCES], root)
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


def training_hash(data_hash: str, params: Params, root: Path) -> str:
    """Return the name of one training: equal data, parameters and code give equal names.

    Args:
        data_hash: Of the prepared images.
        params: `params_hash` says which of them count.
        root: The checkout with the code.
    """
    return sha256_json([data_hash, params_hash(params), code_hash(root, own_code_of(params))])
