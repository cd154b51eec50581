"""When the layers are reparametrised, and from which steps their statistics come."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST = 10


@dataclass(frozen=True)
class Schedule:
    """Every unit once in `period` steps, in turns or all together; at first more often.

    The first covariances age fastest. With `early`, all units are reparametrised at steps 10, 20,
    40, 80 and so on, as long as that is before the first period's end.

    Attributes:
        period: T, steps between two reparametrisations of a unit.
        units: how many units there are.
        spread: whether they take turns, the last one's at multiples of T.
        early: whether there are more reparametrisations in the first period.
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
        """Steps from `steps` until the next reparametrisation of a unit: 1 or more."""
        ahead = [step - steps for step in self.early_steps if step > steps]
        turn = self.period
        if self.spread:
            turn = self.period * (unit + 1) // self.units
        if self.early_steps and steps < self.period:
            # Turns begin once the first period is over.
            first = self.period if turn == self.period else self.period + turn
            ahead.append(first - steps)
        else:
            ahead.append(self.period - (steps - turn) % self.period)
        return min(ahead)

    def due(self, unit: int, steps: int) -> bool:
        """Whether a unit is reparametrised after so many steps."""
        return steps > 0 and self.remaining(unit, steps - 1) == 1
