"""Hashes that show whether two models were made from the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.files import sha256_json, sha256_sources
from pipelines.core.own_code import is_own, own_hash

STAGE_SOURCES: dict[str, tuple[str, ...]] = {
    "prepare": (
        "pipelines/core/files.py",
        "pipelines/data",
    ),
    "train": (
        "pipelines/core/files.py",
        "pipelines/core/fingerprints.py",
        "pipelines/core/own_code.py",
        "pipelines/data/prepared.py",
        "pipelines/training",
        "prong",
    ),
    "evaluate": (
        "pipelines/core/files.py",
        "pipelines/core/own_code.py",
        "pipelines/data/prepared.py",
        "pipelines/evaluation",
        "pipelines/systems/onnx/metadata.py",
        "pipelines/training/network.py",
        "pipelines/training/signature.py",
        "pipelines/training/zoo",
        "prong",
    ),
    "export": (
        "pipelines/core/files.py",
        "pipelines/core/fingerprints.py",
        "pipelines/core/own_code.py",
        "pipelines/data",
        "pipelines/export",
        "pipelines/systems/onnx/metadata.py",
        "pipelines/systems/onnx/serialise.py",
        "pipelines/training",
        "prong",
    ),
    "verify": (
        "pipelines/core/files.py",
        "pipelines/core/fingerprints.py",
        "pipelines/core/own_code.py",
        "pipelines/data/prepared.py",
        "pipelines/export",
        "pipelines/systems/onnx",
        "pipelines/training/network.py",
        "pipelines/training/signature.py",
        "pipelines/training/zoo",
        "pipelines/verification",
        "prong",
    ),
}
"""Stage → files and packages of the source that can change what it makes; a test compares them with
its imports. Those of `export` determine a model's bytes: its file holds their hash."""
OWN_CODE: dict[str, tuple[str, ...]] = {"train": ("train.network",)}
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

    These are the sections data, train and export, without the place of the data (`data.path`,
    `data.mirror`) and its expected hash (`data.sha256`), because the data hash covers the content
    itself.
    """
    data = replace(params.data, path=".", mirror="", sha256="")
    return replace(params, data=data).hash("data", "train", "export")


def code_hash(root: Path, network: str = "cnn") -> str:
    """Return the hash of the sources that determine a model's bytes.

    Args:
        root: The project.
        network: `train.network`; a function of the project counts with all that it imports there.

    Raises:
        UserError: If the function's file is absent or cannot be read.
    """
    sources = package_hash(root)
    if not is_own(network):
        return sources
    return sha256_json([sources, own_hash(network, root, "train.network")])


def training_hash(data_hash: str, params: Params, root: Path) -> str:
    """Return the name of one training: equal data, parameters and code give equal names.

    Args:
        data_hash: Of the prepared images.
        params: `params_hash` says which of them count.
        root: The checkout with the code.
    """
    return sha256_json([data_hash, params_hash(params), code_hash(root, params.train.network)])
