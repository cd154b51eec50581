"""The whole line on a table with gaps and categories, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets
from small_checkout import Checkout, make

DOCS = Path(__file__).parents[2] / "docs/tables.md"
SETTINGS = (
    "data.source=table",
    "data.path=data/wine.csv",
    "data.leave_out=hue",
    "data.limit=0",
    "data.validation=0.1",
    "data.gate=0.25",
    "data.test=0.2",
    "train.network=mlp",
    "train.epochs=20",
    "gates.margin=0.3",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = make(tmp_path_factory.mktemp("table") / "job")
    wine = datasets.load_wine(as_frame=True).frame
    rng = np.random.default_rng(0)
    wine.insert(0, "group", rng.choice(["a", "b", "ç"], len(wine)))
    wine = wine.astype(dict.fromkeys(wine.columns[:-1], object))
    gaps = rng.random((len(wine), wine.shape[1] - 1)) < 0.05
    wine.iloc[:, :-1] = wine.iloc[:, :-1].mask(gaps)
    wine.to_csv(made.root / "data/wine.csv", index=False)
    return made


@pytest.mark.slow
def test_a_table_is_learnt_judged_released_and_asked(checkout: Checkout) -> None:
    root = checkout.root
    done = checkout.prong("run", *(part for one in SETTINGS for part in ("--set", one)))
    assert done.code == 0, done.out + done.err
    assert "champion" in done.out
    models = checkout.forked("models", "--json")
    assert models.code == 0, models.err
    (version,) = json.loads(models.out)
    assert version["model"] == "prong-wine"
    for path in ("data/prepared/sample.csv", "data/wine.csv"):
        asked = checkout.forked("predict", path, "--json")
        assert asked.code == 0, asked.err
        rows = (root / path).read_text().splitlines()[1:]
        assert len(json.loads(asked.out)["answers"]) == len(rows)
    (root / "short.csv").write_text("alcohol,ash\n1,2\n")
    refused = checkout.forked("predict", "short.csv")
    assert refused.code == 2
    assert "lacks columns" in refused.err
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    shown = checkout.run("python", "-c", example)
    assert shown.code == 0, shown.err
    assert re.fullmatch(r"\{'0': .*, '1': .*, '2': .*\}\s*", shown.out)


@pytest.mark.slow
def test_a_table_that_gives_its_target_away_ends_the_run_at_once(checkout: Checkout) -> None:
    text = (checkout.root / "data/wine.csv").read_text().splitlines()
    copied = [f"{line},{line.rsplit(',', 1)[1]}" for line in text[1:]]
    header = f"{text[0]},copy"
    (checkout.root / "data/leaky.csv").write_text("\n".join([header, *copied]))
    settings = (*SETTINGS, "data.path=data/leaky.csv", "data.target=target")
    done = checkout.prong("run", *(part for one in settings for part in ("--set", one)))
    assert done.code == 2
    assert "copy determines the target target one to one" in done.err
    assert "data.leave_out=hue,copy" in done.err
    assert "Traceback" not in done.err
