"""Hashes that show whether two models were made from the same inputs."""

from __future__ import annotations

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


def code_hash(root: Path, network: str = "cnn") -> str:
    """Return the hash of the sources that determine a model's bytes.

    Args:
        root: The checkout.
        network: `train.network`; a function of the checkout counts with all that it imports there.

    Raises:
        UserError: If the function's file is absent or cannot be read.
    """
    sources = sha256_sources([root / name for name in SOURCES], root)
    if not is_own(network):
        return sources
    return sha256_json([sources, own_hash(network, root, "train.network")])


def training_hash(data_hash: str, params: Params, root: Path, started_from: str = "") -> str:
    """Return the name of one training: equal data, parameters and code give equal names.

    Args:
        data_hash: Of the prepared images.
        params: `params_hash` says which of them count.
        root: The checkout with the code.
        started_from: What the lineage says of where it started; it counts only where
            `train.checkpoint_from` asks for a version.
    """
    parts = [data_hash, params_hash(params), code_hash(root, params.train.network)]
    return sha256_json([*parts, started_from] if params.train.checkpoint_from else parts)
