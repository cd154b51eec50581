"""What `data.path` may name, and how a name comes out on the terminal."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from small_checkout import SOURCE, make

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.pipeline import main_job as flow
from pipelines.pipeline import run


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
