"""The list of gates, and a version held to all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.gates import agreement, contents, measuring, provenance, quality, running
from pipelines.gates.evidence import Contender, Evidence, StoredModel
from pipelines.gates.finding import Finding, failed, not_run
from pipelines.systems.onnx.runtime import VERSION

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
    images = e.sample
    try:
        # Each alone: how it answers many at once is the question of the gate `batch`.
        logits = e.new.model.logits(images, batch=1)
    except Unavailable:
        raise
    except UserError as error:  # here this is not missing evidence but the answer
        return failed("runtime", str(error))
    finite = bool(np.isfinite(logits).all()) and len(logits) == len(images)
    where = f"ONNX Runtime {VERSION}, {e.new.model.provider}"
    return running.runtime(len(images), finite, where)


def _parity(e: Evidence) -> Finding:
    return agreement.parity(e.registered("parity"), e.parity(), e.params.gates.parity)


def _batch(e: Evidence) -> Finding:
    differences = measuring.batch_differences(e.new.model, e.sample)
    return agreement.batch(differences, e.params.gates.parity)


def _skew(e: Evidence) -> Finding:
    score = e.new.score_on(e.test)
    registered, images = e.registered("test_error") / 100, int(e.registered("test_images"))
    same = e.candidate.lineage.get("data_hash") == e.data.data_hash
    limit = e.params.gates.skew
    return agreement.skew(score.error, score.images, registered, images, same, limit)


def _champion(e: Evidence) -> Finding:
    if not e.new.score.finite:
        return failed("champion", "an answer to a gate image is not finite")
    old = None if e.old is None else e.old.score.wrong
    return quality.champion(e.new.score.wrong, old, e.best_error, e.params.gates.margin)


def _classes(e: Evidence) -> Finding:
    old = None if e.old is None else e.old.score.wrong
    margin = e.params.gates.class_margin
    return quality.classes(e.new.score.wrong, old, e.gate.labels, e.data.classes, margin)


def _robust(gate: str) -> Judge:
    def judge(e: Evidence) -> Finding:
        noise = e.params.gates.noise
        splits = measuring.shifted(e.gate) if gate == "shift" else measuring.noisy(e.gate, noise)

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
    ratios = None if old is None else measuring.latency_ratios(new.path, old.path, e.sample)
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
        "Are the answers to extreme images finite?",
        lambda e: running.extremes(measuring.extreme_answers(e.new.model)),
    ),
    "batch": Gate("Is the answer the same alone and in company?", _batch),
    "parity": Gate("Do torch and ONNX Runtime agree?", _parity),
    "skew": Gate("Does the file, given raw images, score as the network did?", _skew),
    "champion": Gate("Is it as good as the champion, and the best there ever was?", _champion),
    "classes": Gate("Does every class keep its answers?", _classes),
    "noise": Gate("Does it stand noise as well as the champion?", _robust("noise")),
    "shift": Gate("Does it stand a shift of one pixel as well?", _robust("shift")),
    "latency": Gate("Does it answer about as fast as the champion?", _latency),
}
"""Every gate, in the order they are run and shown."""


def judge(
    layout: Layout,
    params: Params,
    candidate: StoredModel,
    champion: StoredModel | None,
    past: Sequence[StoredModel] = (),
) -> tuple[Finding, ...]:
    """Hold a version to every gate of the list.

    A bad model raises nothing: evidence that cannot be had makes its gates `not run`, which
    blocks as `fail` does.

    Args:
        layout: The checkout, whose gate split decides.
        params: Its parameters; `gates` holds the limits.
        candidate: The version to judge.
        champion: What it is held against; None if there is no champion.
        past: Versions that were champion: none of them may be better by more than the margin.

    Returns:
        One finding per gate, in the order of the list.

    Raises:
        Unavailable: If the registry does not answer, which says nothing about the version.
    """
    layout.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gates-", dir=layout.state) as scratch:
        evidence = Evidence(layout, params, candidate, champion, past, Path(scratch))
        found: dict[str, Finding] = {}
        for readers in (True, False):  # those that only read come first
            for name, gate in GATES.items():
                if gate.reads == readers:
                    found[name] = _found(name, gate, evidence)
                    if readers and not found[name].passed and not evidence.refused:
                        evidence.refused = f"the gate {name} did not let it through"
        return tuple(found[name] for name in GATES)


def _found(name: str, gate: Gate, evidence: Evidence) -> Finding:
    try:
        return gate.judge(evidence)
    except Unavailable:
        raise
    except OSError:
        raise  # a full disk, say
    except Exception as error:  # whatever a damaged or hostile file brings about
        said = str(error) or type(error).__name__
        return not_run(name, said)
