"""The memory of a scoring, in a process of its own."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from scoring_process import finish, start
from small_models import classifier, write_images


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx")
    write_images(tmp_path / "in", 100)
    files = sorted((tmp_path / "in").iterdir())
    peaks = []
    for count in (2000, 20_000):
        with tarfile.open(tmp_path / f"{count}.tar", "w") as tar:
            for at in range(count):
                tar.add(files[at % 100], f"{at}-{'long name ' * 15}.png")
        paths = (model, tmp_path / f"{count}.tar", tmp_path / f"{count}.parquet")
        inputs, quarantined, _, peak = finish(start(4, 256, *paths))
        assert (inputs, quarantined) == (count, 0)
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 40, f"MiB: {peaks}"
