from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from finished_checkout import FinishedCheckout

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.registry.compare import SECTIONS, compare, show
from pipelines.release import promote as promotion
from pipelines.release import register as release

MODEL = "prong-digits"
Make = Callable[..., FinishedCheckout]


def two_versions(make: Make) -> FinishedCheckout:
    """Register two versions: another learning rate, another error of one class."""
    first = make()
    release.register(first.layout, first.params, None)
    promotion.promote(first.layout, first.params, 1)
    second = make(noise=1.0)
    params = replace(second.params, train=replace(second.params.train, lr=0.125))
    path = second.layout.reports / "evaluation.json"
    classes = [{"name": "0", "errors": 1, "error": 2.5}, {"name": "1", "errors": 4, "error": 9.0}]
    write_json(path, {**read_json(path), "classes": classes})
    release.register(second.layout, params, None)
    return second


def test_versions_differ_in_what_was_changed_and_agree_in_the_rest(checkout: Make) -> None:
    made = two_versions(checkout)
    found = compare(made.layout, MODEL, "champion", "v2")
    assert (found.first, found.second) == (1, 2)
    assert tuple(found.sections) == SECTIONS

    def differing(section: str) -> set[str]:
        return {name for name, (one, other) in found.sections[section].items() if one != other}

    assert differing("params") == {"train.lr"}
    assert found.sections["params"]["train.lr"] == ("auto", "0.125")
    assert differing("data") == {"params_hash"}
    assert differing("environment") == {"onnx_sha256", "training_hash"}
    assert found.sections["gates"]["champion"] == ("pass", None)
    assert found.sections["classes"]["1"] == (None, 9.0)
    assert found.sections["metrics"]["parity"] == (1e-6, 1e-6)
    said = found.as_json()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["params"]["train.lr"] == {"first": "auto", "second": "0.125", "same": False}


def test_the_tables_show_what_differs(checkout: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = two_versions(checkout)
    found = compare(made.layout, MODEL, "1", "challenger")
    show(found, everything=False)
    shown = capsys.readouterr().out
    assert "train.lr" in shown
    assert "train.epochs" not in shown
    show(found, everything=True)
    assert "train.epochs" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["7", "best"])
def test_a_version_that_is_not_there_is_named(checkout: Make, wrong: str) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    with pytest.raises(UserError, match=wrong):
        compare(made.layout, MODEL, "1", wrong)
