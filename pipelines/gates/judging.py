"""A version held to every gate, in a process of its own, under limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pipelines
from pipelines.core.config import GatesConfig, Params
from pipelines.core.errors import Failed
from pipelines.core.paths import Layout
from pipelines.gates.catalogue import GATES, Gate, in_order
from pipelines.gates.child import PROGRESS
from pipelines.gates.evidence import StoredModel
from pipelines.gates.fetched import fetch, write_request
from pipelines.gates.finding import Finding, Verdict, failed, not_run, one_line
from pipelines.gates.of_variants import gates_of
from pipelines.gates.variant_limits import VariantLimits
from pipelines.systems.confined import ConfinedRun, Limits, run_confined
from pipelines.systems.scratch import scratch

__all__ = ["GATES", "judge"]

_LOG = "output.txt"
_LARGEST = 2**20  # bytes of all findings
_SOURCES = Path(pipelines.__file__).parents[1]


class _Begun(BaseModel):
    """The child began with a gate."""

    model_config = ConfigDict(extra="forbid", strict=True)
    begun: str


class _Told(BaseModel):
    """The child's finding of a gate."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    gate: str
    verdict: Verdict
    figure: float | None
    limit: float | None
    reason: Annotated[str, Field(max_length=5000)]
    figures: dict[str, float | None] = {}

    def finding(self) -> Finding:
        """Return it as the gates do."""
        figures = {name: value for name, value in self.figures.items() if value is not None}
        reason = one_line(self.reason)
        return Finding(self.gate, self.verdict, self.figure, self.limit, reason, figures)


def judge(
    layout: Layout,
    params: Params,
    candidate: StoredModel,
    champion: StoredModel | None,
    past: Sequence[StoredModel] = (),
    *,
    variant: VariantLimits | None = None,
) -> tuple[Finding, ...]:
    """Hold a version to every gate of the list.

    The registry is asked here. The version and those it is compared with run in a child process
    within `gates.seconds`, `gates.memory` and `gates.processors`.

    A bad model raises nothing: evidence that cannot be had makes its gates `not run`, which
    blocks as `fail` does. If a limit or a crash ends the child, the gate at work fails and those
    after it are not run.

    Args:
        layout: The checkout, whose gate split decides.
        params: Its parameters; `gates` holds the limits.
        candidate: The version to judge.
        champion: What it is held against; None if there is no champion.
        past: Versions that were champion: none of them may be better by more than the margin.
        variant: Limits of a variant of the champion, which has a list of gates of its own; None if
            the version is none.

    Returns:
        One finding per gate, in the order of the list.

    Raises:
        Unavailable: If the registry does not answer, which says nothing about the version.
        Failed: If the child could not begin, or a disk is full.
    """
    limits = params.gates
    with scratch(layout.state.resolve(), "gates") as folder:
        request = fetch(layout, params, candidate, champion, past, folder)
        write_request(replace(request, variant=variant), folder)
        ended = run_confined(
            [sys.executable, "-m", "pipelines.gates.child", str(folder)],
            cwd=folder,
            limits=Limits(limits.seconds, limits.memory * 2**20, limits.processors),
            log=folder / _LOG,
            sources=_SOURCES,
        )
        return findings(folder / PROGRESS, ended, limits, gates_of(variant))


def findings(
    progress: Path, ended: ConfinedRun, limits: GatesConfig, gates: Mapping[str, Gate] = GATES
) -> tuple[Finding, ...]:
    """Return what the child found, one finding per gate, in the order of the list.

    Nothing that it wrote is trusted to be well-formed: a model may have taken it over.

    Args:
        progress: The file it wrote; it may be absent.
        ended: How it ended.
        limits: Under which it ran.
        gates: The list that it ran.

    Raises:
        Failed: If it could not begin, or a disk is full.
    """
    found, working, sound = _told(progress, in_order(gates))
    if len(found) == len(gates) and not working and sound:
        return tuple(found[name] for name in gates)
    left = [name for name in in_order(gates) if name not in found] or in_order(gates)[-1:]
    last = ended.output.rpartition("\n")[2] or f"exit code {ended.code}"
    if ended.limit == "seconds":
        why = f"all gates together took longer than gates.seconds ({limits.seconds} s)"
    elif ended.limit == "memory":
        why = f"it needed more than gates.memory ({limits.memory} MiB)"
    elif not sound:
        why = "what the judging process wrote is no finding of this gate"
    elif ended.signal:
        why = f"the judging process crashed ({ended.signal})"
    elif not working or ended.code == os.EX_IOERR:
        raise Failed(f"the gates could not be run: {last}")
    else:
        why = f"the judging process ended early: {last}"
    found[left[0]] = failed(left[0], why)
    for name in left[1:]:
        found[name] = not_run(name, f"the gate {left[0]} was the last: {why}")
    return tuple(found[name] for name in gates)


def _told(progress: Path, order: Sequence[str]) -> tuple[dict[str, Finding], str, bool]:
    """Return the findings that a file holds, the gate begun last if it has none, and soundness.

    Only what comes in the order of the gates counts, up to the first line that does not.
    """
    found: dict[str, Finding] = {}
    working = ""
    if not progress.is_file():
        return found, working, True
    with progress.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        return found, working, False
    expected = iter(order)
    for line in content.split(b"\n")[:-1]:  # the last is empty, or was cut off
        try:
            if working:
                told = _Told.model_validate_json(line)
                if told.gate != working:
                    return found, working, False
                found[working], working = told.finding(), ""
            else:
                begun = _Begun.model_validate_json(line).begun
                if begun != next(expected, None):
                    return found, working, False
                working = begun
        except ValidationError:
            return found, working, False
    return found, working, True
