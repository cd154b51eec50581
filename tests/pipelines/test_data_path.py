"""What `data.path` may name, and how a name comes out on the terminal."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_checkout import SOURCE, make

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.pipeline import main_job as flow
from pipelines.pipeline import run
from pipelines.systems.dvc.reproduce import ensure


@pytest.mark.parametrize("path", [".", "data", "data/prepared", "data/prepared/x", "models", ".."])
def test_data_cannot_be_what_the_stages_make(tmp_path: Path, path: str) -> None:
    layout = Layout(tmp_path / "checkout")
    (layout.prepared / "x").mkdir(parents=True)
    layout.onnx.parent.mkdir()
    layout.params.write_text((SOURCE / "params.yaml").read_text())
    params_file.edit(layout.params, ["data.source=images", f"data.path={path}"])
    with pytest.raises(UserError, match="overlaps"):
        flow.check_data(layout, params_file.load(layout.params))


def test_a_path_with_brackets_is_shown_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(make(tmp_path / "job").root)
    # What is wrong is found before a server would be asked.
    monkeypatch.setattr(run, "prefect_api", lambda _: nullcontext(lambda: None))
    for name in ("set_up", "exit_on_sigterm"):  # they change the process
        monkeypatch.setattr(run, name, lambda *_: None)
    with pytest.raises(UserError, match=r"'/no/\[such\] folder'"):
        run.run_and_show(["data.path=/no/[such] folder"], [])
    assert "data.path: data/raw → /no/[such] folder\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "path", "stages"),
    [
        ("images", "pictures/labels.CSV", {"prepare"}),
        ("images", "pictures", set()),
        ("digits", "data/raw", set()),
    ],
)
def test_the_images_of_a_csv_are_read_at_each_run(source: str, path: str, stages: set[str]) -> None:
    params = params_file.load(SOURCE / "params.yaml")
    given = replace(params, data=replace(params.data, source=source, path=path))
    assert flow.unseen(given) == stages


@pytest.mark.slow
def test_a_changed_image_that_only_a_csv_names_is_noticed(tmp_path: Path) -> None:
    root = make(tmp_path / "job").root
    layout = Layout(root)
    (root / "pictures").mkdir()
    rows = ["path,label"]
    for number in range(60):
        _noise(number, root / f"pictures/{number}.png")
        rows.append(f"{number}.png,{'cat' if number % 2 else 'dog'}")
    (root / "pictures/labels.csv").write_text("\n".join(rows))
    params_file.edit(layout.params, ["data.source=images", "data.path=pictures/labels.csv"])
    force = "prepare" in flow.unseen(params_file.load(layout.params))
    ensure(root, "prepare", force=force)
    before = load_card(layout.prepared).data_hash
    ensure(root, "prepare", force=force)
    assert load_card(layout.prepared).data_hash == before
    _noise(99, root / "pictures/7.png")
    ensure(root, "prepare", force=force)
    assert load_card(layout.prepared).data_hash != before


@pytest.mark.slow
def test_a_change_of_what_an_own_source_imports_is_noticed(tmp_path: Path) -> None:
    root = make(tmp_path / "job").root
    layout = Layout(root)
    (root / "counted.py").write_text("COUNT = 90\n")
    (root / "pictures.py").write_text(
        "import numpy as np\n\nfrom counted import COUNT\n\n\ndef examples():\n"
        "    rng = np.random.default_rng(0)\n"
        "    return [(rng.integers(0, 256, (8, 8), np.uint8), n % 2) for n in range(COUNT)]\n"
    )
    params_file.edit(layout.params, ["data.source=pictures:examples"])
    assert ensure(root, "prepare").outcome == "ran"
    assert load_card(layout.prepared).total() == 90
    params_file.edit(layout.params, ["train.augment_by=counted:nothing"])
    (root / "unused.py").write_text("x = 1\n")
    assert ensure(root, "prepare").outcome == "cached"  # the training's code is none of the data's
    (root / "counted.py").write_text("COUNT = 80\n")
    assert ensure(root, "prepare").outcome == "ran"
    assert load_card(layout.prepared).total() == 80


def _noise(seed: int, path: Path) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
