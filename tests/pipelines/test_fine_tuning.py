"""Fine-tuning of what is live, from the first run to a version that is made again."""

from __future__ import annotations

import json

import pytest
from small_checkout import Checkout, make


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make(tmp_path_factory.mktemp("tuning") / "job")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_champion_is_trained_on_and_its_successor_can_be_made_again(
    checkout: Checkout,
) -> None:
    asked = ("run", "--set", "train.checkpoint_from=champion", "--set", "gates.margin=0.9")
    first = checkout.prong(*asked, "--set", "gates.class_margin=1.0")
    assert first.code == 0, first.out + first.err
    assert "no version is champion yet: starts from scratch" in first.out + first.err
    again = checkout.prong("run")
    assert again.code == 0, again.out + again.err
    assert "0 ran, 5 cached" in again.out  # the champion came of just this
    # Other data: the champion's weights are trained on.
    tuned = checkout.prong("run", "--set", "data.limit=380", "--set", "train.lr=0.005")
    assert tuned.code == 0, tuned.out + tuned.err
    assert "starts from the weights of version 1" in tuned.out + tuned.err
    rows = json.loads(checkout.prong("models", "--json").out)
    made = {row["version"]: row["lineage"] for row in rows}
    assert made[1]["started_from"] == "scratch"
    assert made[2]["started_from"] == f"v1 {made[1]['onnx_sha256']}"
    errors = {row["version"]: row["metrics"]["test_error"] for row in rows}
    assert errors[2] < errors[1] + 5
    assert "started from" in checkout.prong("models").out
    walked = checkout.prong("lineage", "2", "--json")
    assert walked.code == 0, walked.out + walked.err
    verdicts = {link["name"]: link["verdict"] for link in json.loads(walked.out)}
    assert verdicts["started from"] == "holds"
    rebuilt = checkout.prong("rebuild", "2")
    assert rebuilt.code == 0, rebuilt.out + rebuilt.err
    assert "the same bytes" in rebuilt.out
    # What does not exist, and what does not fit, is said before anything is trained.
    absent = checkout.prong("run", "--set", "train.checkpoint_from=v7")
    assert absent.code == 2
    assert "train.checkpoint_from = 'v7'" in absent.err
    assert "does not exist; there are: 2, 1" in absent.err
    other = checkout.prong("run", "--set", "train.checkpoint_from=v1", "--set", "train.hidden=17")
    assert other.code == 2
    assert "head.1.weight is [16, " in other.err
    assert "Traceback" not in absent.err + other.err
