"""Gates that ask where a version comes from and what lies in its folder, before any is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.gates.finding import Finding, failed, passed
from pipelines.provenance.lineage import UNKNOWN

KNOWN = (
    "data_hash",
    "params_hash",
    "code_hash",
    "onnx_sha256",
    "opset",
    "python",
    "torch",
    "onnx",
    "onnxruntime",
    "device",
    "seed",
    "world_size",
    "method",
)
"""Lineage that is needed to say what a version was made from, and to make it again."""
PRESENT = ("git_commit", "git_dirty", "dvc_lock_sha256", "platform", "flow_run_id")
"""Lineage that must be there, and may be `unknown`: not every checkout is in git or ran a flow."""
MODEL_FILES = (".onnx", ".safetensors")
_TEXT_FILES = (
    ".cfg",
    ".csv",
    ".html",
    ".json",
    ".lock",
    ".md",
    ".pem",
    ".sig",
    ".txt",
    ".yaml",
    ".yml",
)
_TEXT_NAMES = ("MLmodel", "registered_model_meta", "LICENSE")
# A pickle of protocol 2 to 5, a zip (torch's checkpoints, numpy's .npz), numpy's arrays, HDF5.
_FOREIGN = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04|\x93NUMPY|\x89HDF|\x1f\x8b", re.DOTALL)


@dataclass(frozen=True)
class StoredFile:
    """A file in a version's folder.

    Attributes:
        path: Relative to the folder, as the registry names it.
        head: Its first bytes; empty for the model itself, and where the path is not to be trusted.
    """

    path: str
    head: bytes


def lineage(made_from: Mapping[str, str], sha256: str, clean: bool) -> Finding:
    """Is it known what the version was made from?

    Args:
        made_from: The version's lineage tags.
        sha256: Of the ONNX file, as registered.
        clean: `gates.clean`: whether a commit without changes is asked for.
    """
    missing = [key for key in (*KNOWN, *PRESENT) if not made_from.get(key)]
    unknown = [key for key in KNOWN if made_from.get(key) == UNKNOWN]
    if clean and made_from.get("git_commit") == UNKNOWN:
        unknown.append("git_commit (gates.clean)")
    said = [f"missing: {', '.join(missing)}"] if missing else []
    said += [f"unknown: {', '.join(unknown)}"] if unknown else []
    if not missing and made_from["onnx_sha256"] != sha256:
        said.append(f"of another file: {made_from['onnx_sha256'][:12]}…, not {sha256[:12]}…")
    if clean and made_from.get("git_dirty") == "true":
        said.append("made with uncommitted changes (gates.clean)")
    count = len(KNOWN) + len(PRESENT)
    figure, wrong = float(len(missing) + len(unknown)), bool(said)
    reason = "; ".join(said) or f"{count} facts, from commit {made_from['git_commit'][:10]}"
    return Finding("lineage", "fail" if wrong else "pass", figure, 0.0, reason)


def stored_bytes(found: str, registered: str) -> Finding:
    """Does the registry hold the very bytes that were registered?

    Args:
        found: sha256 of the registry's file, downloaded now.
        registered: sha256 in the version's tags.
    """
    if found == registered:
        return passed("bytes", f"sha256 {found[:12]}…, downloaded again and equal")
    return failed("bytes", f"exchanged or damaged: sha256 {found}, registered {registered}")


def stored_format(
    files: Sequence[StoredFile], outside: Sequence[tuple[str, str]] | ValueError
) -> Finding:
    """Is there nothing in the version's folder that could run code, or reach out of it?

    Args:
        files: All of the folder.
        outside: Tensors of the ONNX file that lie elsewhere: name and place; or what reading the
            file raised.
    """
    wrong = [said for file in files if (said := _foreign(file))]
    if "model.onnx" not in {file.path for file in files}:
        wrong.append("no model.onnx is listed in the version's folder")
    if isinstance(outside, ValueError):
        wrong.append(f"model.onnx: {outside}")
    else:
        wrong += [f"tensor {name!r} lies outside the file, in {place!r}" for name, place in outside]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return failed("format", "; ".join(wrong[:3]) + more)
    return passed("format", f"one ONNX file whole in itself; {len(files)} files, none executable")


def _foreign(file: StoredFile) -> str:
    """Return what is wrong with a file of a version's folder, or nothing."""
    path = PurePosixPath(file.path)
    if not is_inside(file.path):
        return f"{file.path!r} leads out of the version's folder"
    if path.suffix.lower() not in (*MODEL_FILES, *_TEXT_FILES) and path.name not in _TEXT_NAMES:
        return f"{file.path!r} is neither ONNX, safetensors nor text"
    if _FOREIGN.match(file.head):
        return f"{file.path!r} is a pickle or an archive, whatever its name says"
    return ""


def is_inside(path: str) -> bool:
    """Say whether a file's name, as a registry gives it, stays inside its folder."""
    parts = path.replace("\\", "/").split("/")
    return not path.startswith(("/", "\\")) and ":" not in parts[0] and ".." not in parts
