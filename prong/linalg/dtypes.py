"""The types in which statistics and whiteners are computed."""

from __future__ import annotations

import torch


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating type of a device: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def _products_are_rounded() -> bool:
    """Return whether torch may round the factors of float32 products."""
    return torch.get_float32_matmul_precision() != "highest"


# The effect of torch.compiler.assume_constant_result, without its import of the whole compiler.
_products_are_rounded._dynamo_marked_constant = True  # type: ignore[attr-defined]


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type for products of statistics and of Φ: at least float32.

    It is float64 where torch may round the factors of float32 products to TF32 or bfloat16
    (`torch.set_float32_matmul_precision`). Those types keep only 8 to 11 bits, and whitening
    amplifies rounding errors by cond(U).
    """
    wanted = torch.promote_types(dtype, torch.float32)
    if wanted == torch.float32 and _products_are_rounded():
        return wide_dtype(device)
    return wanted
