"""Options under which a run is exact, for tests that compare numbers to the last digits.

The defaults are quick instead: float32, P by its leading directions, layers that take turns. A test
about one of them says so itself, after these: `{**EXACT, "mode": "preconditioned"}`.
"""

from __future__ import annotations

import torch

EXACT = {
    "mode": "fold",
    "decomposition_dtype": torch.float64,
    "leading": None,
    "spread": False,
    "early": False,
    "damping": 1e-2,
}
