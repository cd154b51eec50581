"""Arrays of prepared splits as tensors, without a copy."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def shared(array: NDArray[Any]) -> Tensor:
    """Return a tensor with the memory of an array, also of one that is mapped from its file.

    Nothing may write to it, nor to a view of it: a write to a mapped file ends the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
