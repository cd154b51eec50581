"""The commands as they are typed, each in a process of its own, on the default store."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from finished_checkout import FinishedCheckout
from git_commands import git
from small_checkout import SOURCE, Checkout, Done
from starts import Starts
from stored_versions import MODEL

from pipelines.core.paths import Layout
from pipelines.release import promote as promotion
from pipelines.release import register as release


def prong(layout: Layout, *arguments: str) -> Done:
    """Type `prong …` in a checkout."""
    return Checkout(layout.root).forked(*arguments)


@pytest.fixture
def released(starts: Starts, layout: Layout) -> Layout:
    """A checkout with two versions that were champion, and a third that is much worse."""
    starts.released(layout, 0.0, 1.0)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, layout.root / name)
    made = FinishedCheckout.make(layout, 200.0, 0)
    done = release.register(layout, made.params, None)
    assert not promotion.promote(layout, made.params, done.version).promoted
    return layout


def test_back_and_forth_by_commands(released: Layout) -> None:
    refused = prong(released, "promote")
    assert refused.code == 1, refused.err
    assert "v3 was not promoted: blocked by champion" in refused.err
    assert "the champion is still v2" in refused.err
    assert "Traceback" not in refused.err

    back = prong(released, "rollback", "--reason", "answers were odd")
    assert back.code == 0, back.err
    assert back.out.strip() == f"{MODEL} v1 is champion again (before: v2)"
    assert back.err == ""

    said = prong(released, "history", "--json")
    assert said.code == 0, said.err
    entries = json.loads(said.out)["entries"]
    assert [entry["version"] for entry in entries] == [1, 2, 1]
    assert entries[-1]["reason"] == "answers were odd"


def test_every_command_of_the_life_cycle(released: Layout) -> None:
    assert "is champion already" in prong(released, "promote", "2").out
    table = prong(released, "history")
    assert table.code == 0, table.err
    assert "promoted" in table.out
    compared = prong(released, "compare", "champion", "3", "--json")
    assert compared.code == 0, compared.err
    assert json.loads(compared.out)["second"] == 3
    git(released.root, "init", "-q")
    (released.root / ".dvc").mkdir()
    (released.root / ".dvc/config").touch()
    dry = prong(released, "gc", "--dry-run", "--keep", "0")
    assert (dry.code, dry.out) == (0, "nothing to remove\n"), dry.err
    for wrong in (
        ("rollback", "--to", "9"),
        ("promote", "best"),
        ("compare", "1", "9"),
        ("history", "--model", "typo"),
        ("repair", "--model", "typo"),
        ("predict", "image.png", "--model", "typo"),
        ("models", "--model", "../../etc"),
    ):
        done = prong(released, *wrong)
        assert done.code == 2, done.out
        assert wrong[-1] in done.err
        assert "Traceback" not in done.err


def test_a_rollback_loads_neither_torch_nor_what_trains(released: Layout) -> None:
    program = (
        "import sys; sys.argv = ['prong', 'rollback']\n"
        "from pipelines.cli.app import app\n"
        "try: app()\n"
        "finally: print(sorted({'torch', 'prefect', 'dvc', 'onnxscript', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = Checkout(released.root).run(sys.executable, "-c", program, PYTHONPATH=str(SOURCE))
    assert done.code == 0, done.err
    assert "is champion again" in done.out
    assert done.out.splitlines()[-1] == "[]"
