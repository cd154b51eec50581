from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.core.config import DataConfig
from pipelines.data.prepare import prepare

SHARED = Path(__file__).parents[3] / "../shared/data"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no copies of the real data beside the checkout (../shared/data)")
    return SHARED.resolve()


@pytest.fixture
def config() -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "source": "images",
            "path": "pictures",
            "mirror": "",
            "sha256": "",
            "size": 0,
            "channels": 0,
            "bits": 8,
            "limit": 0,
            "seed": 0,
            "validation": 0.05,
            "gate": 0.10,
            "test": 0.15,
        }
        return DataConfig(**(values | changes))

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 5,000 digits, prepared."""
    root = tmp_path_factory.mktemp("digits")
    config = DataConfig("digits", "data/raw", "", "", 0, 0, 8, 0, 0, 0.05, 0.10, 0.15)
    prepare(config, root=root, downloads=root / "down", out=root / "prepared")
    return root / "prepared"


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """The bytes of a PNG of noise that the seed fixes."""

    def make(seed: int, width: int = 8, height: int = 8) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def fill(picture: Callable[..., bytes]) -> Callable[..., Path]:
    """Write pictures into class folders, numbered on from `start`."""

    def make(root: Path, classes: tuple[str, ...], each: int, start: int = 0) -> Path:
        for position, name in enumerate(classes):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(start, start + each):
                (folder / f"{number}.png").write_bytes(picture(1000 * position + number))
        return root

    return make


@pytest.fixture
def pack() -> Callable[..., Path]:
    """Write a tar of named contents."""

    def make(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return make
