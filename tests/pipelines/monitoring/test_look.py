"""A look: what is new is read once, judged if it is enough, and decided at one rate."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from logged_requests import Opened
from released_versions import HASHES, MODEL, Known, drawn, renamed, requests

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.monitoring import look_state as states
from pipelines.monitoring import sample as sampling
from pipelines.monitoring.comparison import Examples
from pipelines.monitoring.look import Look, Settings, look
from pipelines.monitoring.look_state import State
from pipelines.monitoring.sample import MOST_VERSIONS, Sample
from pipelines.serving.request_log import RequestLog, Shadow, log_folder


class Watched:
    """A checkout whose log is written and looked at."""

    def __init__(self, root: Path, opened: Opened) -> None:
        self.layout = Layout(root)
        self.log: RequestLog = opened(log_folder(self.layout, MODEL))
        self.known = Known()

    def looked(self, **settings: object) -> Look:
        """Look as the command does: state is loaded, and saved if the look ended."""
        state = states.load(self.layout, MODEL)
        found = look(self.layout, MODEL, Settings(**settings), self.known, state)  # type: ignore[arg-type]
        states.save(self.layout, MODEL, state)
        return found.look


@pytest.fixture
def watched(tmp_path: Path, opened: Opened) -> Watched:
    return Watched(tmp_path, opened)


def test_unchanged_requests_are_no_drift_and_are_read_once(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 400)))
    first = watched.looked()
    (of,) = first.versions
    assert (of.decision, of.requests, of.examples, of.tested) == ("no drift", 200, 400, 400)
    assert (of.live, of.method, first.drift) == (True, "layers", ())
    assert of.far == pytest.approx(0.05, abs=0.04)
    second = watched.looked()
    assert (second.read, second.versions) == (0, ())


def test_shifted_requests_are_drift_and_the_reason_names_what_moved(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 400, shift=1.0)))
    (of,) = watched.looked().drift
    assert of.decision == "drift"
    assert "drift score (p " in of.reason
    assert of.far is not None
    assert of.far > 0.2
    assert sum(test.level for test in of.tests) == pytest.approx(0.01)


def test_too_few_examples_wait_for_the_next_look(watched: Watched) -> None:
    shifted = requests(drawn(1, 240, shift=1.0))
    watched.log.append(shifted[:40])
    first = watched.looked()
    assert first.versions[0].decision == "too few examples"
    assert first.versions[0].reason == "80 of 100; kept for the next look"
    watched.log.append(shifted[40:60])
    second = watched.looked()
    assert (second.read, second.versions[0].tested) == (20, 120)
    assert second.versions[0].decision == "drift"
    assert watched.looked().versions == ()


def test_each_version_is_held_to_its_own_and_shares_the_rate(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 300)))
    watched.log.append(requests(drawn(2, 300, shift=1.0), 2))
    watched.log.append(requests(drawn(3, 20), 1))
    found = watched.looked()
    assert [(one.version, one.decision, one.live) for one in found.versions] == [
        (3, "no drift", True),
        (2, "drift", False),
        (1, "too few examples", False),
    ]
    levels = [sum(test.level for test in one.tests) for one in found.versions[:2]]
    assert levels == pytest.approx([0.005, 0.005])


def test_what_no_released_version_wrote_is_refused(watched: Watched) -> None:
    good, shifted = requests(drawn(1, 200)), requests(drawn(2, 200, shift=1.0))
    watched.log.append(good)
    watched.log.append(renamed(shifted, sha256=HASHES[8]))  # another file
    watched.log.append(renamed(shifted, version=7, sha256=HASHES[7]))  # never released
    watched.log.append(renamed(shifted, model="other"))
    for number in range(10, 10 + 3 * MOST_VERSIONS):  # more than are asked for
        watched.log.append(renamed(shifted[:1], version=number))
    found = watched.looked()
    assert [(one.version, one.decision) for one in found.versions] == [(3, "no drift")]
    assert (found.read, found.refused) == (100, 300 + 3 * MOST_VERSIONS)
    assert "was not released" in found.reasons[-1]
    assert len(watched.known.asked) <= MOST_VERSIONS + 1


def test_answers_of_another_length_are_left_out(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 300)))
    odd = renamed(requests(drawn(2, 2)), answers=[[0.5] * 7] * 2)
    watched.log.append(odd)
    assert watched.looked().versions[0].decision == "no drift"


def test_a_damaged_log_is_counted_and_the_rest_judged(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 300)))
    watched.log.close()
    file = next(log_folder(watched.layout, MODEL).glob("*.jsonl"))
    with file.open("r+b") as damaged:
        damaged.seek(1000)
        damaged.write(b"\xff" * 200)
        damaged.seek(-30, 2)
        damaged.truncate()
    found = watched.looked()
    assert found.torn == 1
    assert 1 <= found.refused <= 3
    assert found.reasons
    assert found.versions[0].decision == "no drift"


def test_a_look_that_is_killed_is_made_again(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 300)))
    state = states.load(watched.layout, MODEL)
    look(watched.layout, MODEL, Settings(), watched.known, state)  # and killed before it is saved
    assert watched.looked().versions[0].tested == 300


def test_a_look_back_disturbs_no_other(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 200), hour=8))
    watched.looked()
    watched.log.append(requests(drawn(2, 150, shift=1.0), hour=12))
    back = watched.looked(since=datetime(2026, 11, 2, 11, tzinfo=UTC))
    assert back.versions[0].examples == 150
    assert watched.looked(since=datetime(2026, 11, 1, tzinfo=UTC)).versions[0].examples == 350
    assert watched.looked().versions[0].examples == 150


def test_what_cannot_be_compared_says_so(watched: Watched) -> None:
    watched.known.held_out = Examples()
    watched.log.append(requests(drawn(1, 200)))
    assert watched.looked().versions[0].decision == "no reference"
    watched.known.held_out = drawn(2, 60)
    watched.log.append(requests(drawn(1, 200)))
    assert "60 held-out examples, fewer than 100" in watched.looked().versions[0].reason
    watched.known.held_out = Examples(scores=drawn(2, 500).scores)
    watched.log.append(renamed(requests(drawn(1, 200)), drift=[]))
    (of,) = watched.looked().versions
    assert of.decision == "no reference"
    assert "nothing to compare" in of.reason


def test_a_version_without_drift_scores_is_judged_by_its_answers(watched: Watched) -> None:
    held = drawn(2, 1000)
    watched.known.held_out = Examples(answers=held.answers, labels=held.labels)
    watched.log.append(requests(drawn(1, 400, shift=1.0)))
    (of,) = watched.looked().drift
    assert {test.kind for test in of.tests} == {"answers", "labels"}


def test_what_a_challenger_said_is_averaged(watched: Watched) -> None:
    good = requests(drawn(1, 200))
    watched.log.append(renamed(good[:50], shadow=Shadow(4, 1.0)))
    watched.log.append(renamed(good[50:], shadow=Shadow(4, 0.5)))
    (shadow,) = watched.looked().versions[0].shadow
    assert (shadow.version, shadow.requests, shadow.agree) == (4, 100, 0.75)


def test_the_state_comes_back_as_it_was_and_a_damaged_one_is_named(watched: Watched) -> None:
    watched.log.append(requests(drawn(1, 300)))
    lost = renamed(requests(drawn(2, 20), 2), drift=[np.nan, 1.0], shadow=Shadow(4, 1.0))
    watched.log.append(lost)
    state = State()
    look(watched.layout, MODEL, Settings(), watched.known, state)
    states.save(watched.layout, MODEL, state)
    again = states.load(watched.layout, MODEL)
    assert vars(again) == vars(state)
    assert [past.drift for past in again.looks] == [False]
    path = states.folder(watched.layout, MODEL) / "state.json"
    for damage in (b"", b"{}", path.read_bytes()[:-20], b'{"format": 2}'):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"state\.json: damaged.*delete it"):
            states.load(watched.layout, MODEL)


def test_of_many_examples_each_has_the_same_chance(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST", 200)
    sample = Sample()
    records = requests(Examples(scores=np.arange(1000.0)), each=5)
    sampling.gather(records, {(3, HASHES[3]): sample}, MODEL, watched.known.sha256)
    assert (len(sample.kept), sample.drawn_from) == (200, 1000)
    scores = [score for _, _, score in sample.kept if score is not None]
    assert len(set(scores)) == 200
    counts = np.histogram(scores, bins=4, range=(0, 1000))[0]
    assert counts.min() > 30  # of 50; three standard deviations
