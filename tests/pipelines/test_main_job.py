"""The whole line on real digits, as a user runs it; the tests go on from one another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from small_checkout import Checkout, Done, make

from pipelines.core import params_file
from pipelines.data.prepared import load_split

STAGES = ("prepare", "train", "evaluate", "export", "verify")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    return make(tmp_path_factory.mktemp("main") / "job")


@pytest.fixture(scope="module")
def first(checkout: Checkout) -> Done:
    """The first run; every other test starts from its state."""
    for name in ("home", "tmp"):
        (checkout.root.parent / name).mkdir()
    done = checkout.prong(
        "run", HOME=str(checkout.root.parent / "home"), TMPDIR=str(checkout.root.parent / "tmp")
    )
    assert done.code == 0, done.out + done.err
    return done


def outcomes(done: Done) -> dict[str, str]:
    """Return what a run said of each stage."""
    found = re.findall(r"^  (\w+)\s+(ran|cached|restored)\s", done.out, re.MULTILINE)
    return dict(found)


def versions(checkout: Checkout) -> list[dict[str, object]]:
    done = checkout.forked("models", "--json")
    assert done.code == 0, done.err
    found: list[dict[str, object]] = json.loads(done.out)
    return found


def test_the_first_run_ends_with_a_champion(checkout: Checkout, first: Done) -> None:
    assert outcomes(first) == dict.fromkeys(STAGES, "ran")
    assert "champion" in first.out
    (version,) = versions(checkout)
    assert version["version"] == 1
    assert version["complete"] is True
    assert version["aliases"] == ["champion"]
    lineage = version["lineage"]
    assert isinstance(lineage, dict)
    assert lineage["git_dirty"] == "false"
    head = checkout.run("git", "rev-parse", "HEAD").out.strip()
    assert lineage["git_commit"] == head
    assert checkout.run("git", "status", "--porcelain").out.split() == ["??", "dvc.lock"]
    page = (checkout.root / "reports/report.html").read_text()
    assert "prong-digits" in page
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S*", "", page)


def test_nothing_is_left_outside_the_checkout(checkout: Checkout, first: Done) -> None:
    around = checkout.root.parent
    left = [
        path.relative_to(around) for name in ("home", "tmp") for path in (around / name).iterdir()
    ]
    assert left == []
    assert first.err == ""


def test_the_second_run_has_nothing_to_do(checkout: Checkout, first: Done) -> None:
    again = checkout.forked("run")
    assert again.code == 0, again.err
    assert outcomes(again) == dict.fromkeys(STAGES, "cached")
    assert "nothing new" in again.out
    assert len(versions(checkout)) == 1
    alone = checkout.run("dvc", "repro")
    assert alone.code == 0, alone.err
    assert "Running stage" not in alone.out
    assert "up to date" in alone.out
    shown = checkout.run("dvc", "metrics", "show")
    assert "largest_difference" in shown.out
    assert shown.err == ""


def test_the_champion_answers(checkout: Checkout, first: Done, tmp_path: Path) -> None:
    split = load_split(checkout.root / "data/prepared", "test")
    for number in range(3):
        Image.fromarray(split.inputs[number, 0]).save(tmp_path / f"{number}.png")
    done = checkout.forked("predict", "--json", *(str(tmp_path / f"{n}.png") for n in range(3)))
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["version"] == 1
    assert [len(answer["top"]) for answer in said["answers"]] == [3, 3, 3]
    assert all(0 <= answer["probability"] <= 1 for answer in said["answers"])


def test_an_export_parameter_is_a_change_of_export_alone(checkout: Checkout, first: Done) -> None:
    """Of what follows DVC sees later that its input changed."""
    path = checkout.root / "params.yaml"
    before = path.read_bytes()
    params_file.edit(path, ["export.opset=19"])
    status = checkout.run("dvc", "status", "--json")
    path.write_bytes(before)
    assert status.code == 0, status.err
    changed = {"changed deps": {"params.yaml": {"export": "modified"}}}
    assert json.loads(status.out) == {"export": [changed]}


@pytest.mark.slow
def test_an_export_parameter_reruns_export_and_what_follows(
    checkout: Checkout, first: Done
) -> None:
    done = checkout.prong("run", "--set", "export.opset=19")
    assert done.code == 0, done.err
    assert "export.opset: 20 → 19" in done.out
    assert outcomes(done) == {
        "prepare": "cached",
        "train": "cached",
        "evaluate": "cached",
        "export": "ran",
        "verify": "ran",
    }
    newest = versions(checkout)[0]
    lineage = newest["lineage"]
    assert newest["version"] == 2
    assert isinstance(lineage, dict)
    assert lineage["git_dirty"] == "true"


@pytest.mark.slow
def test_a_difference_over_its_limit_fails_the_run(checkout: Checkout, first: Done) -> None:
    before = len(versions(checkout))
    done = checkout.prong("run", "--set", "verify.limit=1e-12", "--set", "export.opset=18")
    assert done.code == 2
    assert "1e-12" in done.err
    assert "Traceback" not in done.err
    assert len(versions(checkout)) == before
    assert not (checkout.root / "reports/verification.json").exists()
    mended = checkout.prong("run", "--set", "verify.limit=1e-4")
    assert mended.code == 0, mended.err
    assert outcomes(mended)["export"] == "cached"


def test_a_mistake_ends_the_process_with_one_message(checkout: Checkout) -> None:
    done = checkout.prong("run", "--set", "train.epoch=3")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--set", "train.epoch=3"), ["train.epoch", "unknown key", "epochs"]),
        (("run", "--set", "train.method=magic"), ["train.method", "magic", "prong+"]),
        (("run", "--set", "data.source=web"), ["data.source", "web", "cifar10"]),
        (("run", "--force", "deploy"), ["--force", "deploy", "verify"]),
        (("run", "--set", "train.epochs=9", "--force", "x"), ["--force", "x", "verify"]),
        (("predict", "absent.png"), ["absent.png"]),
        (("predict", "--provider", "tpu", "x.png"), ["--provider", "tpu", "cuda"]),
        (("predict", "--model", "other", "x.png"), ["other"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    checkout: Checkout, first: Done, arguments: tuple[str, ...], words: list[str]
) -> None:
    before = (checkout.root / "params.yaml").read_bytes()
    done = checkout.forked(*arguments)
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert (checkout.root / "params.yaml").read_bytes() == before


def test_outside_a_checkout_it_says_so(checkout: Checkout, tmp_path: Path) -> None:
    done = Checkout(tmp_path).prong("models", PYTHONPATH=str(checkout.root))
    assert done.code == 2
    assert "dvc.yaml" in done.err


@pytest.mark.slow
def test_a_registry_that_does_not_answer_keeps_what_is_finished(
    checkout: Checkout, first: Done
) -> None:
    nobody = "http://127.0.0.1:9"
    done = checkout.prong("run", "--force", "evaluate", MLFLOW_TRACKING_URI=nobody)
    assert done.code == 2
    assert nobody in done.err
    assert "Traceback" not in done.err
    assert outcomes(done)["evaluate"] == "ran"
    after = checkout.prong("run")
    assert after.code == 0, after.err
    assert set(outcomes(after).values()) == {"cached"}


@pytest.mark.slow
def test_dvc_alone_makes_the_same_bytes(checkout: Checkout, first: Done, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    (other.root / "params.yaml").write_bytes((checkout.root / "params.yaml").read_bytes())
    done = other.repro()
    assert done.code == 0, done.out + done.err
    for name in ("models/model.onnx", "models/trained/network.safetensors"):
        assert (other.root / name).read_bytes() == (checkout.root / name).read_bytes(), name
