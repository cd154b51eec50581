"""The steps at which the units are reparametrised."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST = 10


@dataclass(frozen=True)
class Schedule:
    """Every unit is reparametrised once in `period` steps, and more often in the first period.

    The covariances change fastest at the beginning. With `early`, all units are therefore also
    reparametrised at steps 10, 20, 40, 80 and so on, before the end of the first period.

    Attributes:
        period: T, steps between two reparametrisations of a unit.
        units: number of units.
        spread: whether the units take turns; the last unit's turn is at multiples of T.
        early: whether there are additional reparametrisations in the first period.
    """

    period: int
    units: int
    spread: bool
    early: bool

    @property
    def early_steps(self) -> tuple[int, ...]:
        """The steps before T at which all units are reparametrised."""
        if not self.early or self.period <= FIRST:
            return ()
        return tuple(FIRST << power for power in range(math.ceil(math.log2(self.period / FIRST))))

    def remaining(self, unit: int, steps: int) -> int:
        """Return the number of steps (at least 1) until a unit's next reparametrisation."""
        ahead = [step - steps for step in self.early_steps if step > steps]
        turn = self.period
        if self.spread:
            turn = self.period * (unit + 1) // self.units
        if self.early_steps and steps < self.period:
            # The units take turns only after the first period.
            first = self.period if turn == self.period else self.period + turn
            ahead.append(first - steps)
        else:
            ahead.append(self.period - (steps - turn) % self.period)
        return min(ahead)

    def gap(self, unit: int, steps: int) -> int:
        """Steps from the reparametrisation before until the one at `steps`, where one is due."""
        before = [step for step in self.early_steps if step < steps]
        if steps > self.period and self.due(unit, steps - self.period):
            before.append(steps - self.period)
        return steps - max(before, default=0)

    def due(self, unit: int, steps: int) -> bool:
        """Return whether a unit is reparametrised after `steps` steps."""
        return steps > 0 and self.remaining(unit, steps - 1) == 1
