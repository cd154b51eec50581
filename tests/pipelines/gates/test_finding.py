from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.gates.finding import LONGEST, Finding, blocked, from_tags, held_to, not_run, tags

NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.sampled_from(["pass", "fail", "not run"]),
    NUMBERS,
    NUMBERS,
    st.text(),
    st.dictionaries(st.text(max_size=10), st.floats(-1, 1), max_size=3),
)
def test_a_finding_survives_being_a_tag(
    verdict: str, figure: float | None, limit: float | None, reason: str, more: dict[str, float]
) -> None:
    finding = Finding("champion", verdict, figure, limit, reason, more)  # type: ignore[arg-type]
    assert from_tags({"other": "x", **tags([finding])}) == (finding,)


@given(st.text(min_size=1))
def test_a_tag_is_strict_json_of_bounded_length(text: str) -> None:
    (tag,) = tags([not_run("skew", text * 3000)]).values()
    assert len(tag) <= LONGEST
    assert json.loads(tag)["verdict"] == "not run"
    (tag,) = tags([held_to("skew", float("nan"), float("inf"), "x", n=float("nan"))]).values()
    assert json.loads(tag) == {
        "gate": "skew", "verdict": "fail", "figure": None, "limit": None, "reason": "x",
        "figures": {"n": None},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"gate":"skew"}',
        '{"gate":"skew","verdict":"perhaps","figure":1,"limit":1,"reason":""}',
        '{"gate":"another","verdict":"pass","figure":1,"limit":1,"reason":""}',
        '{"gate":"skew","verdict":"pass","figure":"x","limit":1,"reason":""}',
    ],
)
def test_a_tag_without_a_finding_does_not_pass(text: str) -> None:
    (finding,) = from_tags({"gate.skew": text})
    assert (finding.gate, finding.verdict) == ("skew", "not run")


def test_what_was_never_run_blocks() -> None:
    good = held_to("size", 1.0, 2.0, "")
    bad = held_to("skew", 3.0, 2.0, "")
    assert blocked([good]) == []
    assert [f.gate for f in blocked([bad, good], ("size", "noise", "skew"))] == ["noise", "skew"]
    assert blocked([], ("size",))[0].verdict == "not run"


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_limit_itself_passes_and_nan_never_does(figure: float, limit: float) -> None:
    assert held_to("x", limit, limit, "").passed
    if abs(figure - limit) > 1e-8:
        assert held_to("x", figure, limit, "").passed == (figure < limit)
    assert not held_to("x", float("nan"), limit, "").passed
