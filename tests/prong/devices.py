"""The devices that a test runs on: the CPU everywhere, CUDA where there is a device."""

from __future__ import annotations

import pytest
import torch

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
BOTH = ["cpu", CUDA]
