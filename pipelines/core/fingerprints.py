"""Hashes that show whether two models were made from the same inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.files import sha256_json, sha256_sources

SOURCES = (
    "prong",
    "pipelines/core/files.py",
    "pipelines/core/fingerprints.py",
    "pipelines/data",
    "pipelines/export",
    "pipelines/systems/onnx/metadata.py",
    "pipelines/systems/onnx/serialise.py",
    "pipelines/training",
)
"""The sources that determine a model's bytes; a test compares them with the stages' imports."""


def params_hash(params: Params) -> str:
    """Return the hash of the parameters that determine a model's bytes.

    These are the sections data, train and export, without the place of the data (`data.path`,
    `data.mirror`) and its expected hash (`data.sha256`), because the data hash covers the content
    itself.
    """
    data = replace(params.data, path=".", mirror="", sha256="")
    return replace(params, data=data).hash("data", "train", "export")


def code_hash(root: Path) -> str:
    """Return the hash of the sources that determine a model's bytes.

    Args:
        root: The checkout.
    """
    return sha256_sources([root / name for name in SOURCES], root)


def training_hash(data_hash: str, params: Params, root: Path) -> str:
    """Return the name of one training: equal data, parameters and code give equal names.

    Args:
        data_hash: Of the prepared images.
        params: `params_hash` says which of them count.
        root: The checkout with the code.
    """
    return sha256_json([data_hash, params_hash(params), code_hash(root)])
