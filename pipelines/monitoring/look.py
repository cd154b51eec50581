"""One look at a model's request log: read, compared, decided. Others act on what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

from pipelines.core.paths import Layout
from pipelines.monitoring.comparison import MINIMUM, RATE, Examples, Test, alarms, compare
from pipelines.monitoring.look_state import PastLook, State
from pipelines.monitoring.sample import Key, Sample, gather
from pipelines.serving.request_log import log_folder, written_time
from pipelines.serving.request_records import read_log

Decision = Literal["drift", "no drift", "too few examples", "no reference"]


@dataclass(frozen=True)
class Settings:
    """How a look decides.

    Attributes:
        rate: False alarms per look on unchanged inputs.
        minimum: Examples that a decision needs.
        since: Requests from then on, whatever earlier looks read, which are not disturbed; None:
            those since the last look.
    """

    rate: float = RATE
    minimum: int = MINIMUM
    since: datetime | None = None


@dataclass(frozen=True)
class HeldOut:
    """What a version's requests are held to.

    Attributes:
        examples: Held-out ones; empty if there are none.
        source: Where they come from, or why there are none.
        method: How the drift score is made; empty if there is none.
        classes: Names, where answers are a probability for each.
        threshold: A drift score that 5 % of held-out examples exceed.
    """

    examples: Examples
    source: str
    method: str = ""
    classes: tuple[str, ...] = ()
    threshold: float | None = None


class Versions(Protocol):
    """The released versions of a model."""

    @property
    def champion(self) -> int | None:
        """The version that is live; None if none is."""

    def sha256(self, version: int) -> str:
        """Return the hash of a version's released file; empty if no statement releases it."""

    def reference(self, version: int) -> HeldOut:
        """Return what the requests of a released version are held to."""


@dataclass(frozen=True)
class ShadowLook:
    """How a challenger answered the same requests.

    Attributes:
        version: Its version.
        requests: That it was asked.
        agree: Mean share of the examples to which both gave the same answer.
    """

    version: int
    requests: int
    agree: float


@dataclass(frozen=True)
class VersionLook:
    """What a look says of one version.

    Attributes:
        version: Its number.
        sha256: Of its file.
        live: Whether it is champion.
        requests: That were read.
        examples: In them.
        tested: Of these, those that were compared.
        since: Time of the first request.
        until: Of the last one.
        decision: What was decided.
        reason: Why, in one line.
        reference: Where the reference comes from.
        method: How the drift score is made; empty if there is none.
        far: Share of the drift scores that 5 % of held-out examples exceed; None if unknown.
        tests: All that were made.
        shadow: Challengers that saw the same requests.
    """

    version: int
    sha256: str
    live: bool
    requests: int
    examples: int
    tested: int
    since: str
    until: str
    decision: Decision
    reason: str
    reference: str
    method: str
    far: float | None
    tests: tuple[Test, ...]
    shadow: tuple[ShadowLook, ...]


@dataclass(frozen=True)
class Look:
    """What came of a look.

    Attributes:
        model: The registered model's name.
        time: When, UTC, ISO 8601.
        rate: False alarms per look on unchanged inputs.
        minimum: Examples that a decision needs.
        read: Records that were new.
        refused: Lines that are no record of a released version of this model.
        torn: Incomplete last lines of servers that ended.
        missed: Files that were removed before they were read: the log was full.
        reasons: Why the first of the refused lines were.
        versions: By number, the newest first.
        retraining: What was done about it, in one line; empty if nothing was to be done.
    """

    model: str
    time: str
    rate: float
    minimum: int
    read: int
    refused: int
    torn: int
    missed: int
    reasons: tuple[str, ...]
    versions: tuple[VersionLook, ...]
    retraining: str = ""

    @property
    def drift(self) -> tuple[VersionLook, ...]:
        """The versions whose requests have drifted."""
        return tuple(one for one in self.versions if one.decision == "drift")


@dataclass(frozen=True)
class Seen:
    """A look with what its report draws.

    Attributes:
        look: What came of it.
        compared: Version → its reference and the examples that were held to it.
    """

    look: Look
    compared: Mapping[int, tuple[HeldOut, Examples]] = field(default_factory=dict)


def look(layout: Layout, model: str, settings: Settings, versions: Versions, state: State) -> Seen:
    """Read what is new in a model's log, and decide.

    Args:
        layout: The checkout.
        model: The registered model's name.
        settings: How.
        versions: Those that were released.
        state: What earlier looks left. It is changed to what this one leaves, to be saved once
            the look is told; not if `settings.since` is given.

    Raises:
        UserError: If a version's reference cannot be read.
        Unavailable: If the registry does not answer.
    """
    again = settings.since is not None
    reader = read_log(log_folder(layout, model), None if again else state.position)
    samples: dict[Key, Sample] = {}
    if not again:  # a version may be released no more
        samples = {k: v for k, v in state.pending.items() if versions.sha256(k[0]) == k[1]}
    strangers = gather(reader, samples, model, versions.sha256, settings.since)
    reasons = list(reader.reasons)
    if strangers:
        reasons.append(f"{strangers} of another model, or of a version that was not released")
    held = {key: _held(versions, key, sample) for key, sample in samples.items()}
    judged = [
        key
        for key, (reference, seen) in held.items()
        if compare(reference.examples, seen, settings.rate, settings.minimum)
    ]
    time = written_time(datetime.now(UTC))
    found = [
        _of_version(
            key, sample, *held[key], settings, len(judged), live=key[0] == versions.champion
        )
        for key, sample in samples.items()
    ]
    if not again:
        few = [one for one in found if one.decision == "too few examples"]
        state.position = reader.position
        state.pending = {(one.version, one.sha256): samples[one.version, one.sha256] for one in few}
        state.looks += [_past(time, one) for one in found if one.tests]
    done = Look(
        model=model,
        time=time,
        rate=settings.rate,
        minimum=settings.minimum,
        read=reader.read - strangers,
        refused=reader.refused + strangers,
        torn=reader.torn,
        missed=reader.missed,
        reasons=tuple(reasons),
        versions=tuple(sorted(found, key=lambda one: -one.version)),
    )
    return Seen(done, {key[0]: pair for key, pair in held.items()})


def _held(versions: Versions, key: Key, sample: Sample) -> tuple[HeldOut, Examples]:
    reference = versions.reference(key[0])
    return reference, sample.of_width(reference.examples.answers.shape[1])


def _of_version(
    key: Key,
    sample: Sample,
    reference: HeldOut,
    seen: Examples,
    settings: Settings,
    judged: int,
    *,
    live: bool,
) -> VersionLook:
    rate = settings.rate / max(judged, 1)  # one rate for the look, over all its versions
    tests = compare(reference.examples, seen, rate, settings.minimum, reference.classes)
    decision, reason = _decided(tests, sample, reference, seen, settings)
    far = None
    if reference.threshold is not None and len(seen.scores):
        far = float((seen.scores > reference.threshold).mean())
    shadow = (ShadowLook(v, n, agreed / n) for v, (n, agreed) in sorted(sample.shadow.items()))
    return VersionLook(
        version=key[0],
        sha256=key[1],
        live=live,
        requests=sample.requests,
        examples=sample.examples,
        tested=seen.count if tests else 0,
        since=sample.since,
        until=sample.until,
        decision=decision,
        reason=reason,
        reference=reference.source,
        method=reference.method,
        far=far,
        tests=tests,
        shadow=tuple(shadow),
    )


def _decided(
    tests: tuple[Test, ...],
    sample: Sample,
    reference: HeldOut,
    seen: Examples,
    settings: Settings,
) -> tuple[Decision, str]:
    least = settings.minimum
    if not tests:
        if reference.examples.count < least:
            count = reference.examples.count
            few = f"{count} held-out examples, fewer than {least}: " if count else ""
            return "no reference", few + reference.source
        if sample.drawn_from >= least and not _in_common(reference.examples, seen):
            return (
                "no reference",
                f"the log has nothing to compare: {reference.source}",
            )
        kept = "; kept for the next look" if settings.since is None else ""
        return "too few examples", f"{sample.drawn_from} of {least}{kept}"
    found = alarms(tests)
    if not found:
        return "no drift", f"none of {len(tests)} tests alarms"
    told = ", ".join(f"{one.name} (p {one.p:.1e})" for one in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "drift", f"{len(found)} of {len(tests)} tests alarm: {told}{more}"


def _in_common(reference: Examples, seen: Examples) -> bool:
    return any(
        len(first) and len(second)
        for first, second in zip(vars(reference).values(), vars(seen).values(), strict=True)
    )


def _past(time: str, one: VersionLook) -> PastLook:
    def largest(kind: str) -> float | None:
        return max((test.statistic for test in one.tests if test.kind == kind), default=None)

    return PastLook(
        time=time,
        version=one.version,
        tested=one.tested,
        drift=one.decision == "drift",
        score=largest("score"),
        answers=largest("answers"),
    )
