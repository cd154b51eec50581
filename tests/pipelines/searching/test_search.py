"""`prong search` in a small checkout, as a user calls it: run, killed, gone on with, applied."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_commands import git
from small_checkout import Checkout, Done, make

from pipelines.core import params_file

KEYS = ("train.lr", "train.damping=0.01..1", "train.method=sgd,prong+")
SMALL = ("--epochs", "1", "--jobs", "1", "--seed", "3")
_RUNS = """
import json, pathlib
from pipelines.core.paths import Layout
from pipelines.systems import mlflow as tracking
client = tracking.connect(Layout(pathlib.Path.cwd()))
found = client.search_runs([client.get_experiment_by_name("prong-digits-search").experiment_id])
print(json.dumps([
    {"id": r.info.run_id, "status": r.info.status, "tags": r.data.tags, "metrics": r.data.metrics,
     "params": r.data.params, "files": [f.path for f in client.list_artifacts(r.info.run_id)]}
    for r in found]))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make(tmp_path_factory.mktemp("search") / "job")


def _proposals(done: Done) -> list[str]:
    """Return the settings of each trial, as they were printed."""
    found = re.findall(r"/\d+  trial \d+  (lr .*?method \S+)", done.out)
    assert found, done.out + done.err
    return found


def _runs(checkout: Checkout, study: str) -> Iterator[dict[str, object]]:
    """Yield the study's run, then those of its trials."""
    done = checkout.run("python", "-c", _RUNS)
    assert done.code == 0, done.err
    runs = json.loads(done.out.splitlines()[-1])
    parents = [run for run in runs if run["tags"].get("prong.study") == study]
    assert len(parents) == 1  # also after it was gone on with
    yield parents[0]
    yield from (r for r in runs if r["tags"].get("mlflow.parentRunId") == parents[0]["id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train.dampin",), "train.dampin: unknown key; did you mean train.damping?"),
        (("train.lr=2..1",), "train.lr = '2..1'"),
        (("train.lr", "--jobs", "none"), "--jobs 'none': allowed: auto"),
        (("train.lr", "--name", "../x"), "--name '../x': allowed"),
        ((), "allowed: train.network, train.method"),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(
    checkout: Checkout, arguments: tuple[str, ...], said: str
) -> None:
    done = checkout.prong("search", *arguments)
    assert done.code == 2, done.out + done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (checkout.root / ".prong/search").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_and_comes_to_the_same(checkout: Checkout) -> None:
    before = (checkout.root / "params.yaml").read_text()
    process = checkout.start("search", *KEYS, *SMALL, "--trials", "3", "--name", "killed",
                             PYTHONUNBUFFERED="1")  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "1/3" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = checkout.prong("search", *KEYS, *SMALL, "--trials", "3", "--name", "killed")
    assert resumed.code == 0, resumed.out + resumed.err
    assert "study killed goes on: 1 of 3" in resumed.out
    whole = checkout.prong("search", *KEYS, *SMALL, "--trials", "3", "--name", "whole")
    assert whole.code == 0, whole.out + whole.err
    assert _proposals(whole)[1:] == _proposals(resumed)
    assert _proposals(whole)[0] == "lr 0.05  damping 0.1  method prong+"  # the present settings
    for study in ("killed", "whole"):
        parent, *trials = _runs(checkout, study)
        assert parent["status"] == "FINISHED"
        assert parent["files"] == [f"search-{study}.svg"]
        ended = [run for run in trials if run["status"] == "FINISHED"]
        assert len(ended) == 3
        assert {run["status"] for run in trials} <= {"FINISHED", "KILLED"}
        assert all("validation_error" in run["metrics"] for run in ended)
        assert all(set(run["params"]) == {"train.lr", "train.damping", "train.method"}
                   for run in ended)  # fmt: skip
        best = [run for run in trials if run["tags"].get("prong.best") == "true"]
        assert len(best) == 1
        assert (checkout.root / f"reports/search-{study}.svg").stat().st_size > 10_000
    again = checkout.prong("search", *KEYS, *SMALL, "--trials", "3", "--name", "whole")
    assert "goes on: 3 of 3" in again.out
    other = checkout.prong("search", "train.lr", *SMALL, "--name", "whole")
    assert other.code == 2
    assert "that study searched something else" in other.err
    # Nothing was left, and nothing but the data was made.
    assert (checkout.root / "params.yaml").read_text() == before
    assert git(checkout.root, "status", "--porcelain").split() in (["??", "dvc.lock"], [])
    assert not (checkout.root / "models").exists()
    left = {path.suffix for path in (checkout.root / ".prong/search").iterdir()}
    assert left == {".db", ".lock"}
    assert "train" not in (checkout.root / "dvc.lock").read_text().replace("data/", "")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_best_is_offered_and_applied_and_a_failed_trial_does_no_harm(
    checkout: Checkout,
) -> None:
    asked = ("search", "train.lr=0.05,1e30", "train.batch=16,32", *SMALL, "--trials", "3")
    offered = checkout.prong(*asked)
    assert offered.code == 0, offered.out + offered.err
    line = next(line for line in offered.out.splitlines() if line.startswith("take it"))
    assert "--set train.lr=0.05" in line
    assert "stopped: train.lr = 1e+30: the training loss is" in offered.out
    applied = checkout.prong(*asked, "--apply")
    assert applied.code == 0, applied.out + applied.err
    path: Path = checkout.root / "params.yaml"
    assert params_file.load(path).train.lr == 0.05
    assert "# auto: the default of the method" in path.read_text()


@pytest.mark.slow
def test_sigterm_ends_a_search_and_says_how_to_go_on(checkout: Checkout) -> None:
    process = checkout.start("search", *KEYS, "--trials", "50", "--jobs", "2", "--name", "ended",
                             PYTHONUNBUFFERED="1")  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "1/50" in line:
            break
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "of 50 trials; the same command goes on from there" in out
    _, *trials = _runs(checkout, "ended")
    assert {run["status"] for run in trials} == {"FINISHED", "KILLED"}
