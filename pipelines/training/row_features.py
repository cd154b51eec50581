"""From rows of a table to what a network takes: standardised numbers and one-hot categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.tasks.columns import FIRST, MISSING, Column

LARGEST = 1e4
"""Largest standardised number: a slip of the keyboard must not drown all other columns."""


class RowFeatures(nn.Module):
    """Rows float64 [n, columns] to features float32 [n, features].

    In this order: every number, standardised, 0 where it is missing; for every number with gaps, 1
    where it is missing; for every category of every column, 1 where it is the cell's; for every
    column of categories with gaps, 1 where the cell is missing. A category that the train split
    does not hold is 0 in all of its column's features.

    The constants are Python's numbers and no buffers: numbers are standardised in float64 whatever
    type the network is cast to, so that large numbers with small differences keep them.

    Attributes:
        features: How many features there are.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        numbers = [at for at, column in enumerate(columns) if column.kind == "number"]
        categories = [at for at, column in enumerate(columns) if column.kind == "category"]
        self._numbers = numbers
        self._means = [columns[at].mean for at in numbers]
        self._deviations = [columns[at].deviation for at in numbers]
        self._number_gaps = [place for place, at in enumerate(numbers) if columns[at].gaps]
        self._owners = [at for at in categories for _ in columns[at].categories]
        self._codes = [
            FIRST + place for at in categories for place in range(len(columns[at].categories))
        ]
        self._category_gaps = [at for at in categories if columns[at].gaps]
        self.features = sum(column.features for column in columns)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the features, float32 [n, features]."""
        parts = []
        if self._numbers:
            found = rows[:, _places(self._numbers, rows)]
            missing = found.isnan()
            means, deviations = _values(self._means, rows), _values(self._deviations, rows)
            standard = (torch.where(missing, means, found) - means) / deviations
            parts.append(standard.clamp(-LARGEST, LARGEST).to(torch.float32))
            if self._number_gaps:
                parts.append(missing[:, _places(self._number_gaps, rows)].to(torch.float32))
        if self._owners:
            cells = rows[:, _places(self._owners, rows)]
            parts.append((cells == _values(self._codes, rows)).to(torch.float32))
        if self._category_gaps:
            cells = rows[:, _places(self._category_gaps, rows)]
            parts.append((cells == MISSING).to(torch.float32))
        return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        """Return the number of features."""
        return f"features={self.features}"


def _places(places: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(places, dtype=torch.int64, device=like.device)


def _values(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)
