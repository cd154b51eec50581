"""What a version was made from, as tags: the answer to «how could this be made again?»."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_file
from pipelines.core.fingerprints import code_hash, own_code_of, package_hash, training_hash
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.systems import git
from pipelines.training.start_files import lineage_text

UNKNOWN = "unknown"
LONGEST = 5000
"""Characters of a value; the least limit of MLflow's stores."""
_PACKAGES = ("torch", "mlflow", "dvc", "prefect", "onnx", "numpy", "prong")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def commit(root: Path) -> str:
    """Return the commit checked out at `root`, or `unknown`."""
    return (git.ask(root, "rev-parse", "--verify", "--quiet", "HEAD") or UNKNOWN).strip()


def dirty(root: Path) -> str:
    """Return `true` if files differ from the commit or are not in git, `false`, or `unknown`.

    `dvc.lock` does not count: each run writes it, and its hash is recorded by itself.
    """
    said = git.ask(root, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock")
    return UNKNOWN if said is None else str(bool(said.strip())).lower()


def is_dirty(root: Path) -> bool:
    """Whether the checkout is known to differ from its commit."""
    return dirty(root) == "true"


def package_version(names: Iterable[str]) -> tuple[str, str]:
    """Return name and version of the first installed of some distributions.

    Raises:
        PackageNotFoundError: If none is.
    """
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(", ".join(names))


def runtime_version() -> tuple[str, str]:
    """Return name and version of the installed distribution of ONNX Runtime."""
    return package_version(_RUNTIMES)


def versions() -> dict[str, str]:
    """Return Python and the packages that a model's bytes may depend on, with their versions."""
    found = {"python": platform.python_version()}
    for names in (*((name,) for name in _PACKAGES), _RUNTIMES):
        try:
            found[names[-1]] = package_version(names)[1]
        except PackageNotFoundError:
            found[names[-1]] = UNKNOWN
    return found


def _training(layout: Layout) -> dict[str, str]:
    """Return where the training ran; another machine may have done it, so its own word counts."""
    path = layout.reports / "train.json"
    try:
        said = read_json(path)
    except FileNotFoundError:
        said = {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}; rerun the stage train") from None
    wanted = {"device": "device", "seed": "seed", "processes": "world_size", "method": "method"}
    wanted |= {name: name for name in ("gpu", "cuda", "driver")}
    return {tag: str(said.get(key, UNKNOWN)) for key, tag in wanted.items()}


def has_drift(layout: Layout) -> bool:
    """Say whether the checkout has a drift graph of its model.

    The stage export leaves an empty file if it could not make one; a file may also be left of a
    model before, where `dvc.yaml` is of an earlier version and does not name it.
    """
    from pipelines.systems.onnx.drift_file import read_drift  # takes as long to load as all else

    try:
        return read_drift(layout.drift)[1].model_sha256 == sha256_file(layout.onnx)
    except UserError:
        return False


def lineage(layout: Layout, params: Params) -> dict[str, str]:
    """Return what the model of a checkout was made from.

    Args:
        layout: The checkout; `prepare` and `export` have run.
        params: Its parameters.

    Returns:
        `git_commit`, `git_dirty`, hashes (`dvc_lock_sha256`, `data_hash`, `params_hash`,
        `code_hash`, `package_hash`, `training_hash`, `onnx_sha256`, `weights_sha256`,
        `drift_sha256`),
        `started_from` (a version and the sha256 of its ONNX file, or `scratch`), `python` and
        package versions, `platform`, and of the training `device`, `gpu`, `cuda`, `driver`,
        `seed`, `world_size`, `method`; `unknown` where it cannot be known.

    Raises:
        UserError: If the data card or the ONNX file is absent, or a report is damaged.
    """
    if not layout.onnx.is_file():
        raise UserError(f"{layout.onnx}: absent; the stage export makes it")
    lock = layout.root / "dvc.lock"
    started = lineage_text(layout.root, params.train.checkpoint_from)
    data_hash = load_card(layout.prepared).data_hash
    tags = {
        "git_commit": commit(layout.root),
        "git_dirty": dirty(layout.root),
        "dvc_lock_sha256": sha256_file(lock) if lock.is_file() else UNKNOWN,
        "data_hash": data_hash,
        "params_hash": params.hash(),
        "code_hash": code_hash(layout.root, own_code_of(params)),
        "package_hash": package_hash(layout.root),
        "training_hash": training_hash(data_hash, params, layout.root, started),
        "onnx_sha256": sha256_file(layout.onnx),
        "weights_sha256": sha256_file(layout.weights) if layout.weights.is_file() else UNKNOWN,
        "drift_sha256": sha256_file(layout.drift) if has_drift(layout) else UNKNOWN,
        "started_from": started,
        "opset": str(params.export.opset),
        "platform": platform.platform(),
        **_training(layout),
        **versions(),
    }
    return {key: value[:LONGEST] for key, value in tags.items()}
