"""The gates of a variant: an approximation of a champion, held to what it approximates.

A variant was made from released bytes by rounding or truncation. So nothing is asked about torch,
the fold or the test error of a training; in their place stands the agreement with the champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipelines.core.errors import UserError
from pipelines.evaluation.scoring import Score, fitted
from pipelines.gates import agreement, contents, measuring, running
from pipelines.gates.catalogue import GATES, Gate
from pipelines.gates.evidence import Contender, Evidence
from pipelines.gates.finding import Finding, failed
from pipelines.gates.speed import speeds
from pipelines.gates.variant_limits import VariantLimits
from pipelines.tasks.task import mean_metric


def _limits(e: Evidence) -> VariantLimits:
    if e.variant is None:
        raise UserError("no limits of a variant were given")
    return e.variant


def _old(e: Evidence) -> Contender:
    if e.old is None:
        raise UserError("a variant is held to its champion, and there is none")
    return e.old


def _size(e: Evidence) -> Finding:
    mine, champion = e.path.stat().st_size, _old(e).path.stat().st_size
    found = contents.size(mine, champion, _limits(e).size, e.params.gates.megabytes)
    return replace(found, figures={"bytes": mine, "champion_bytes": champion})


def _batch(e: Evidence) -> Finding:
    return agreement.batch(measuring.batch_differences(e.asked), _limits(e).batch)


def _agreement(e: Evidence) -> Finding:
    if e.new.model.form != _old(e).model.form:
        return failed("agreement", "its inputs or answers are not those of the champion")
    inputs = fitted(e.gate.inputs, e.data.form, e.new.model.form)
    limit = _limits(e).agreement
    if e.own_task.counts:
        labels = [c.model.raw(inputs).argmax(axis=1) for c in (e.new, _old(e))]
        return agreement.same_labels(int((labels[0] != labels[1]).sum()), len(inputs), limit)
    mine, theirs = (c.model.answers(inputs) for c in (e.new, _old(e)))
    return agreement.same_values(mine, theirs, limit)


def _champion(e: Evidence) -> Finding:
    found = GATES["champion"].judge(e)
    low, high = _interval(e, e.new.score)
    old_low, old_high = _interval(e, _old(e).score)
    more = {"low": low, "high": high, "champion_low": old_low, "champion_high": old_high}
    return replace(found, figures={**found.figures, **more})


def _interval(e: Evidence, score: Score) -> tuple[float, float]:
    """Return the 95 % interval of an error, as shares."""
    if e.task.counts:
        return agreement.wilson(score.error, score.images, _TWO_SIDED)
    metric = mean_metric("error", score.errors)
    return max(metric.low, 0.0), metric.high


def _latency(e: Evidence) -> Finding:
    new, old = e.new, _old(e)
    inputs, form = e.sample, e.data.form
    ratios = measuring.latency_ratios(new.path, old.path, inputs, form)
    found = running.latency(ratios, _limits(e).latency)
    named = {"": new.model, "champion_": old.model}
    return replace(found, figures=speeds(named, inputs, form))


_TWO_SIDED = 1.96
_OWN = {
    "size": Gate("Is the file smaller than the champion's?", _size),
    "batch": Gate("Is the answer the same alone and in company, but for rounding?", _batch),
    "agreement": Gate("Does it answer as the champion does?", _agreement),
    "champion": Gate("Is its error that of the champion it was made from?", _champion),
    "latency": Gate("Does it answer about as fast as the champion?", _latency),
}
_NAMES = (
    *("lineage", "bytes", "format", "operators", "schema", "weights", "size", "runtime"),
    *("inputs", "extremes", "batch", "answers", "agreement", "floor", "champion", "classes"),
    *("noise", "shift", "latency"),
)
GATES_OF_VARIANTS: Mapping[str, Gate] = {name: _OWN.get(name) or GATES[name] for name in _NAMES}
"""Every gate of a variant, in the order they are shown."""


def gates_of(variant: VariantLimits | None) -> Mapping[str, Gate]:
    """Return the list of gates of a variant, or of any other version."""
    return GATES if variant is None else GATES_OF_VARIANTS


__all__ = ["GATES_OF_VARIANTS", "gates_of"]
