"""Gates that read the ONNX file without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.gates.finding import Finding, failed, one_line, passed
from pipelines.systems.onnx.metadata import OnnxMetadata


def schema(card: OnnxMetadata | ValueError, data_hash: str) -> Finding:
    """Are inputs, outputs, types and metadata those of a released model, and as registered?

    Args:
        card: What the file says about itself, checked; or what is wrong with it.
        data_hash: Of the data, in the version's lineage; empty where that is missing.
    """
    if isinstance(card, ValueError):
        return failed("schema", str(card))
    if data_hash and card.data_hash != data_hash:
        said = f"the file's data hash {card.data_hash[:12]}…, registered {data_hash[:12]}…"
        return failed("schema", said)
    return passed("schema", f"{card.form.told()}, format {card.format}")


def operators(not_allowed: Sequence[str]) -> Finding:
    """Does the file hold only operators that a model needs?

    Args:
        not_allowed: What else it holds; see `pipelines.systems.onnx.operators`.
    """
    figure = float(len(not_allowed))
    if not_allowed:
        more = f" and {len(not_allowed) - 3} more" if len(not_allowed) > 3 else ""
        said = one_line("; ".join(not_allowed[:3]) + more)
        return Finding("operators", "fail", figure, 0.0, f"not allowed: {said}")
    return Finding("operators", "pass", figure, 0.0, "every operator is on the list")


def weights(not_finite: Mapping[str, int], values: int) -> Finding:
    """Is every weight a finite number?

    Args:
        not_finite: Tensor → values in it that are NaN or infinite, those with any.
        values: Values in all.
    """
    figure = float(sum(not_finite.values()))
    if not_finite:
        said = ", ".join(f"{name!r} {count}" for name, count in [*not_finite.items()][:5])
        reason = f"NaN or infinite values: {said}"
        return Finding("weights", "fail", figure, 0.0, reason)
    return Finding("weights", "pass", figure, 0.0, f"all {values:,} values are finite")


def size(count: int, champion: int | None, ratio: float, megabytes: int) -> Finding:
    """Is the file small enough?

    Args:
        count: Bytes of the file.
        champion: Bytes of the champion's; None without a champion.
        ratio: `gates.size`.
        megabytes: `gates.megabytes`, of 10⁶ bytes.
    """
    said = f"{count / 1e6:,.3g} MB"
    if count > megabytes * 1e6:
        reason = f"{said}, above gates.megabytes"
        return Finding("size", "fail", count / 1e6, float(megabytes), reason)
    if champion is None:
        reason = f"{said}; no champion to compare with"
        return Finding("size", "pass", count / 1e6, float(megabytes), reason)
    times = count / max(champion, 1)
    reason = f"{said}, the champion {champion / 1e6:,.3g} MB"
    return Finding("size", "pass" if times <= ratio else "fail", times, ratio, reason)
