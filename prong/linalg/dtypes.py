"""The types in which statistics and whiteners are formed."""

from __future__ import annotations

import torch


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: float64, but float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def _products_are_rounded() -> bool:
    """Whether float32 products may be rounded (`torch.set_float32_matmul_precision`)."""
    return torch.get_float32_matmul_precision() != "highest"


# What torch.compiler.assume_constant_result does, which would import the whole compiler for it.
_products_are_rounded._dynamo_marked_constant = True  # type: ignore[attr-defined]


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which products of statistics and of Φ are formed: at least float32.

    Where float32 products may be rounded to TF32 or bfloat16
    (`torch.set_float32_matmul_precision`), it is
    float64: whitening amplifies rounding errors by cond(U), and those types keep only 8 to 11 bits.
    """
    wanted = torch.promote_types(dtype, torch.float32)
    if wanted == torch.float32 and _products_are_rounded():
        return wide_dtype(device)
    return wanted
