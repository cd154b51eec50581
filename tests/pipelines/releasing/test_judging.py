"""The process that judges: what a hostile model does to it, and what is then said of the model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import faulty_versions as wrong
import onnx
import psutil
import pytest
from finished_checkout import FinishedCheckout
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.config import AlertsConfig, Params
from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.core.files import sha256_file
from pipelines.core.waiting import wait_until
from pipelines.gates import judging
from pipelines.gates.catalogue import GATES, in_order
from pipelines.gates.fetched import REQUEST, fetch, read_request, write_request
from pipelines.gates.finding import Finding
from pipelines.gates.judging import findings, judge
from pipelines.gates.provenance import KNOWN, PRESENT, StoredFile
from pipelines.systems.confined import ConfinedRun, run_confined

ROOT = Path(__file__).parents[3]
Make = Callable[..., FinishedCheckout]


@pytest.fixture(autouse=True)
def _judged_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "run_confined", run_confined)


@dataclass(frozen=True)
class LocalModel:
    """A version that no registry holds."""

    path: Path
    number: int = 1
    metrics: Mapping[str, str] = field(
        default_factory=lambda: {"fold": "0", "parity": "0", "test_error": "0", "test_images": "1"}
    )

    @property
    def sha256(self) -> str:
        return sha256_file(self.path)

    @property
    def lineage(self) -> Mapping[str, str]:
        made_from = {**dict.fromkeys((*KNOWN, *PRESENT), "x"), "onnx_sha256": self.sha256}
        return {**made_from, "data_hash": ""}

    def fetch_model(self, target: Path) -> None:
        shutil.copyfile(self.path, target)

    def checked_file(self) -> Path:
        return self.path

    def files(self, scratch: Path) -> list[StoredFile]:
        (scratch / "downloaded").touch()
        return [StoredFile("model.onnx", b""), StoredFile("card.md", b"\xff\x00")]

    def weights_sha256(self) -> str:
        return "a" * 64


def changed(made: FinishedCheckout, change: wrong.Change) -> LocalModel:
    path = made.layout.root / "changed.onnx"
    model = onnx.load(made.layout.onnx)
    change(model)
    path.write_bytes(model.SerializeToString())
    return LocalModel(path, 2)


def limited(made: FinishedCheckout, **limits: int) -> Params:
    return replace(made.params, gates=replace(made.params.gates, **limits))


def ended_at(found: tuple[Finding, ...], reason: str) -> str:
    """The one gate that failed for a reason; those after it must not have run."""
    assert [finding.gate for finding in found] == list(GATES)
    told = {finding.gate: finding for finding in found}
    (gate,) = [
        name for name in told if told[name].verdict == "fail" and reason in told[name].reason
    ]
    order = in_order()
    for name in order[order.index(gate) + 1 :]:
        assert told[name].verdict == "not run", name
        assert reason in told[name].reason
    return gate


def test_a_model_that_takes_for_ever_fails_when_the_time_is_over(checkout: Make) -> None:
    made = checkout()
    model = changed(made, wrong.multiply(edge=3000, times=4000))
    start = time.monotonic()
    found = judge(made.layout, limited(made, seconds=4), model, LocalModel(made.layout.onnx))
    assert time.monotonic() - start < 15
    gate = ended_at(found, "took longer than gates.seconds (4 s)")
    assert gate in ("size", "runtime")  # as it is loaded: a busy machine may take as long before
    assert not list(made.layout.state.glob("gates-*"))


def test_a_model_that_outgrows_the_memory_fails_for_that(checkout: Make) -> None:
    made = checkout()
    model = changed(made, wrong.multiply(edge=20000, times=1))
    found = judge(made.layout, limited(made, memory=1024), model, LocalModel(made.layout.onnx))
    assert ended_at(found, "needed more than gates.memory (1024 MiB)") == "runtime"


@pytest.mark.slow
def test_a_judgement_whose_process_was_killed_leaves_nothing_that_stays(
    checkout: Make, tmp_path: Path
) -> None:
    made = checkout()
    model = changed(made, wrong.multiply(edge=3000, times=4000))
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\nfrom pathlib import Path\n"
        "from pipelines.core.paths import Layout\nfrom test_judging import LocalModel, judge\n"
        "from finished_checkout import PARAMS\n"
        "judge(Layout(Path(sys.argv[3])), PARAMS, LocalModel(Path(sys.argv[4])), None)"
    )
    here = Path(__file__).parent
    arguments = [str(here), str(here.parent), str(made.layout.root), str(model.path)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        watched = psutil.Process(process.pid)
        progress = "gates-*/files/progress.jsonl"

        def loading() -> bool:
            return any('"runtime"' in p.read_text() for p in made.layout.state.glob(progress))

        assert wait_until(loading, 60)
        (child,) = watched.children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: not child.is_running(), 10)
    assert list(made.layout.state.glob("gates-*"))
    judge(made.layout, made.params, LocalModel(made.layout.onnx), None)
    assert not list(made.layout.state.glob("gates-*"))


def test_the_child_gets_files_and_no_address_or_secret(checkout: Make, tmp_path: Path) -> None:
    made = checkout()
    params = replace(made.params, alerts=AlertsConfig(webhook="https://example.org/secret"))
    shown = LocalModel(made.layout.onnx)
    asked = fetch(made.layout, params, replace(shown, number=2), shown, [shown], tmp_path)
    write_request(asked, tmp_path)
    assert read_request(tmp_path) == asked
    assert "secret" not in (tmp_path / REQUEST).read_text()
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert names == ["candidate.onnx", REQUEST, "version-1.onnx"]
    assert asked.candidate.files(tmp_path) == shown.files(tmp_path)
    # The registry is asked for the weights only where there are some to compare with.
    assert asked.candidate.weights == ""


class Nothing(LocalModel):
    """A version of which the registry has nothing."""

    def fetch_model(self, target: Path) -> None:
        raise UserError("its file is gone")

    def checked_file(self) -> Path:
        raise UserError("its file is gone")

    def files(self, scratch: Path) -> list[StoredFile]:
        raise UserError("its folder is gone")


class Away(Nothing):
    """A version whose registry does not answer."""

    def checked_file(self) -> Path:
        raise Unavailable("no answer")


def test_what_is_gone_makes_its_gates_not_run_and_silence_says_nothing(checkout: Make) -> None:
    made = checkout()
    gone, there = Nothing(made.layout.onnx, 2), LocalModel(made.layout.onnx)
    found = {f.gate: f for f in judge(made.layout, made.params, gone, gone, [gone])}
    assert (found["bytes"].verdict, found["bytes"].reason) == ("not run", "its file is gone")
    assert (found["format"].verdict, found["format"].reason) == ("not run", "its folder is gone")
    found = {f.gate: f for f in judge(made.layout, made.params, there, gone, [gone])}
    assert found["runtime"].passed
    assert "champion version 2 cannot be scored" in found["champion"].reason
    with pytest.raises(Unavailable):
        judge(made.layout, made.params, there, Away(made.layout.onnx, 2))
    assert not list(made.layout.state.glob("gates-*"))


# What the child wrote is read as something that a hostile model may have written.


def lines(count: int, begun: bool = True) -> list[str]:
    """What a child writes that came to the end of so many gates, and began the next."""
    found: list[str] = []
    for name in in_order()[:count]:
        finding = Finding(name, "pass", 0.5, None, "good", {"error": 0.25})
        found += [json.dumps({"begun": name}), json.dumps(finding.as_json())]
    if begun and count < len(GATES):
        found.append(json.dumps({"begun": in_order()[count]}))
    return found


def read(path: Path, text: str, code: int = 0, limit: str = "", output: str = "") -> list[Finding]:
    from finished_checkout import PARAMS

    path.write_text(text)
    told = findings(path, ConfinedRun(code, limit, output), PARAMS.gates)  # type: ignore[arg-type]
    assert [finding.gate for finding in told] == list(GATES)
    return list(told)


def test_findings_come_back_as_they_were(tmp_path: Path) -> None:
    found = read(tmp_path / "p", "\n".join([*lines(len(GATES)), ""]))
    assert {finding.reason for finding in found} == {"good"}
    assert found[0].figures == {"error": 0.25}
    assert all(finding.passed for finding in found)


@pytest.mark.parametrize(
    ("code", "reason"), [(-11, "crashed (SIGSEGV)"), (-6, "crashed (SIGABRT)"), (3, "early: why")]
)
def test_a_crash_is_the_failure_of_the_gate_at_work(tmp_path: Path, code: int, reason: str) -> None:
    text = "\n".join([*lines(9), ""])
    found = tuple(read(tmp_path / "p", text, code, output="line\nwhy"))
    assert ended_at(found, reason) == in_order()[9]


def test_what_says_nothing_about_the_model_is_an_error_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="could not be run: ModuleNotFoundError"):
        read(tmp_path / "p", "", 1, output="Traceback\nModuleNotFoundError: x")
    with pytest.raises(Failed, match="No space left"):
        read(tmp_path / "p", "\n".join([*lines(4), ""]), os.EX_IOERR, output="No space left")


RUBBISH = [
    "",
    "null",
    "[]",
    '{"begun": 1}',
    '{"begun": "bytes", "more": 1}',
    '{"begun": "latency"}',
    "[" * 100000,
    '{"gate": "size", "verdict": "pass", "figure": null, "limit": null, "reason": "x"}',
    "\x00" * 100,
    "x" * 2**20,
]


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("begun", [True, False])
def test_rubbish_never_passes(tmp_path: Path, rubbish: str, begun: bool) -> None:
    text = "\n".join([*lines(9, begun), rubbish, *lines(len(GATES)), ""])
    found = tuple(read(tmp_path / "p", text))
    gate = ended_at(found, "is no finding of this gate")
    assert gate in in_order()[:10]


@given(
    st.fixed_dictionaries(
        {
            "gate": st.sampled_from(in_order()) | st.text(),
            "verdict": st.sampled_from(["pass", "fail", "not run", "yes", True]),
            "figure": st.none() | st.floats() | st.text() | st.booleans(),
            "limit": st.none() | st.floats(),
            "reason": st.text() | st.none(),
        },
        optional={"figures": st.none() | st.dictionaries(st.text(), st.floats()), "x": st.none()},
    )
)
def test_a_finding_is_taken_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, told: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "told"
    at = in_order()[9]
    found = read(path, "\n".join([*lines(9), json.dumps(told), ""]), -9)
    finding = next(f for f in found if f.gate == at)
    if finding.verdict != "fail" or "process" not in finding.reason:
        assert (finding.gate, finding.verdict) == (told["gate"], told["verdict"])
        assert finding.reason == " ".join(str(told["reason"]).split())
    path.unlink()


def test_more_than_all_gates_is_not_sound(tmp_path: Path) -> None:
    text = "\n".join([*lines(len(GATES)), '{"begun": "bytes"}', ""])
    assert ended_at(tuple(read(tmp_path / "p", text)), "is no finding") == in_order()[-1]


def test_a_file_cut_short_counts_up_to_there(tmp_path: Path) -> None:
    text = "\n".join(lines(9))
    found = tuple(read(tmp_path / "p", text[: text.rindex("{") + 4], -9))
    assert ended_at(found, "crashed (SIGKILL)") == in_order()[9]
