"""The list of gates: what each asks, what it judges by, and in which order they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.core.errors import UserError
from pipelines.gates import agreement, contents, measuring, provenance, quality, running
from pipelines.gates.evidence import Contender, Evidence
from pipelines.gates.finding import Finding, failed, not_run
from pipelines.systems.onnx.runtime import VERSION, OutOfMemory

Judge = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
        asks: Its question, in one line.
        judge: Gathers its evidence and calls the pure function that decides.
        reads: Whether it only reads the version: until all these pass, nothing is loaded.
    """

    asks: str
    judge: Judge
    reads: bool = False


def _lineage(e: Evidence) -> Finding:
    made_from, clean = e.candidate.lineage, e.params.gates.clean
    return provenance.lineage(made_from, e.candidate.sha256, clean)


def _size(e: Evidence) -> Finding:
    gates, old = e.params.gates, e.old
    champion = None if old is None else old.path.stat().st_size
    return contents.size(e.path.stat().st_size, champion, gates.size, gates.megabytes)


def _runtime(e: Evidence) -> Finding:
    if e.refused:
        return not_run("runtime", f"not loaded: {e.refused}")
    try:
        # Each alone: how it answers many at once is the question of the gate `batch`.
        raw = e.new.model.raw(e.taken, batch=1)
    except OutOfMemory:
        raise
    except UserError as error:  # here this is not missing evidence but the answer
        return failed("runtime", str(error))
    finite = bool(np.isfinite(raw).all()) and len(raw) == len(e.taken)
    where = f"ONNX Runtime {VERSION}, {e.new.model.provider}"
    return running.runtime(len(e.taken), finite, where)


def _parity(e: Evidence) -> Finding:
    return agreement.parity(e.registered("parity"), e.parity(), e.params.gates.parity)


def _batch(e: Evidence) -> Finding:
    return agreement.batch(measuring.batch_differences(e.asked), e.params.gates.parity)


def _answers(e: Evidence) -> Finding:
    return agreement.answers(
        *measuring.answer_differences(e.asked, e.own_task), e.params.gates.parity
    )


def _skew(e: Evidence) -> Finding:
    score = e.new.score_on(e.test)
    registered, images = e.registered("test_error") / 100, int(e.registered("test_images"))
    same = e.candidate.lineage.get("data_hash") == e.data.data_hash
    limit = e.params.gates.skew
    spread = None if e.task.counts else float(score.errors.std())
    return agreement.skew(score.error, score.images, registered, images, same, limit, spread)


def _champion(e: Evidence) -> Finding:
    if not e.new.score.finite:
        return failed("champion", "an answer to a gate example is not finite")
    old = None if e.old is None else e.old.score.errors
    margin = e.params.gates.margin
    return quality.champion(e.task, e.new.score.errors, old, e.best_error, margin)


def _floor(e: Evidence) -> Finding:
    trivial = e.task.trivial(e.gate.targets, e.gate.inputs)
    said = e.task.trivial_told(e.gate.targets)
    return quality.floor(e.task, e.new.score.errors, trivial, said)


def _classes(e: Evidence) -> Finding:
    old = None if e.old is None else e.old.score.errors
    parts = e.task.parts(e.gate.targets, e.gate.inputs)
    return quality.classes(e.task, e.new.score.errors, old, parts, e.params.gates.class_margin)


def _robust(gate: str) -> Judge:
    def judge(e: Evidence) -> Finding:
        noise = e.params.gates.noise
        form = e.data.form
        shift = gate == "shift"
        splits = measuring.shifted(e.gate, form) if shift else measuring.noisy(e.gate, noise, form)

        def errors(contender: Contender) -> tuple[dict[str, float], bool]:
            scores = {name: contender.score_on(split) for name, split in splits.items()}
            finite = all(score.finite for score in scores.values())
            return {name: score.error for name, score in scores.items()}, finite

        found, finite = errors(e.new)
        old = None if e.old is None else errors(e.old)[0]
        return quality.robust(gate, found, old, finite, e.params.gates.robustness)

    return judge


def _latency(e: Evidence) -> Finding:
    new, old = e.new, e.old
    if old is None:
        return running.latency(None, e.params.gates.latency)
    ratios = measuring.latency_ratios(new.path, old.path, e.sample, e.data.form)
    return running.latency(ratios, e.params.gates.latency)


GATES: dict[str, Gate] = {
    "lineage": Gate("Is it known what it was made from?", _lineage),
    "bytes": Gate(
        "Does the registry hold the bytes that were registered?",
        lambda e: provenance.stored_bytes(e.sha256, e.candidate.sha256),
        reads=True,
    ),
    "format": Gate(
        "Is there nothing that could run code, or reach out of its folder?",
        lambda e: provenance.stored_format(e.files, e.outside),
        reads=True,
    ),
    "operators": Gate(
        "Does it hold only operators that a model needs?",
        lambda e: contents.operators(e.not_allowed),
        reads=True,
    ),
    "schema": Gate(
        "Are inputs, outputs and metadata those of a released model?",
        lambda e: contents.schema(e.card, e.candidate.lineage.get("data_hash", "")),
        reads=True,
    ),
    "weights": Gate(
        "Is every weight a finite number?", lambda e: contents.weights(*e.not_finite), reads=True
    ),
    "size": Gate("Is the file small enough?", _size),
    "fold": Gate(
        "Did folding the whitening away leave the function as it was?",
        lambda e: agreement.fold(e.registered("fold"), e.params.gates.parity),
    ),
    "runtime": Gate("Does the real runtime load and answer it?", _runtime),
    "inputs": Gate(
        "Is an input of wrong type or shape refused?",
        lambda e: running.inputs(measuring.wrong_inputs(e.new.model)),
    ),
    "extremes": Gate(
        "Are the answers to extreme inputs finite?",
        lambda e: running.extremes(measuring.extreme_answers(e.new.model, e.own_task)),
    ),
    "batch": Gate("Is the answer the same alone and in company?", _batch),
    "answers": Gate("Do the answers follow from the raw outputs?", _answers),
    "parity": Gate("Do torch and ONNX Runtime agree?", _parity),
    "skew": Gate("Does the file, given raw inputs, score as the network did?", _skew),
    "floor": Gate("Is it better than an answer that does not look at the input?", _floor),
    "champion": Gate("Is it as good as the champion, and the best there ever was?", _champion),
    "classes": Gate("Does every class, or part of the data, keep its answers?", _classes),
    "noise": Gate("Does it stand noise as well as the champion?", _robust("noise")),
    "shift": Gate(
        "Does it stand a shift of one pixel, or a missing value, as well?", _robust("shift")
    ),
    "latency": Gate("Does it answer about as fast as the champion?", _latency),
}
"""Every gate, in the order they are shown."""


def in_order(gates: Mapping[str, Gate] = GATES) -> list[str]:
    """Return the names of gates in the order they are run: those that only read come first."""
    return sorted(gates, key=lambda name: not gates[name].reads)


def found(name: str, evidence: Evidence, gates: Mapping[str, Gate] = GATES) -> Finding:
    """Hold a version to one gate.

    A bad model raises nothing: evidence that cannot be had makes its gates `not run`, which
    blocks as `fail` does. If a gate that only reads does not pass, the version is not loaded.

    Args:
        name: Of `in_order()`, all before it were run with the same evidence.
        evidence: Of the version.
        gates: The list that it is held to.

    Raises:
        OutOfMemory: If ONNX Runtime was refused memory.
        MemoryError: If Python was.
        OSError: If a disk is full or broken, say.
    """
    gate = gates[name]
    try:
        finding = gate.judge(evidence)
    except (OutOfMemory, MemoryError, OSError):
        raise
    except Exception as error:  # whatever a damaged or hostile file brings about
        finding = not_run(name, str(error) or type(error).__name__)
    if gate.reads and not finding.passed and not evidence.refused:
        evidence.refused = f"the gate {name} did not let it through"
    return finding
