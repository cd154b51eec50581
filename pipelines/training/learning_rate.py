"""The learning rate: a linear warm-up, the paper's waterfall schedule (section 4.3), a cool-down.

The waterfall schedule lowers the rate when the validation error has not improved for a number of
evaluations. A short training may end before that, so the rate also falls to zero in the last steps.
The state consists of a few numbers, so that a resumed run continues exactly.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Waterfall:
    """Learning rate as a function of the step and of the validation results so far.

    Attributes:
        lr: Rate after the warm-up and before the first drop.
        warmup: Steps over which the rate rises linearly to `lr`.
        patience: Evaluations without improvement before a drop.
        drop: Factor applied at each drop, in (0, 1).
        steps: Steps of the whole training.
        cooldown: Share of the steps over which the rate falls linearly to zero at the end.
    """

    lr: float
    warmup: int
    patience: int
    drop: float
    steps: int
    cooldown: float
    falls: int = 0
    stale: int = 0
    best: tuple[float, float] | None = None

    def rate(self, step: int) -> float:
        """Return the rate for step `step`, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        last = self.cooldown * self.steps
        fall = min(1.0, (self.steps - step) / last) if last else 1.0
        return float(self.lr * rise * fall * self.drop**self.falls)

    def evaluated(self, error: float, loss: float) -> bool:
        """Process a validation result and return whether it is the best so far.

        Of two results with the same error the one with the smaller loss is better: on a small
        validation split many evaluations share one error.
        """
        if self.best is None or (error, loss) < self.best:
            self.best, self.stale = (error, loss), 0
            return True
        self.stale += 1
        if self.stale >= self.patience:
            self.falls, self.stale = self.falls + 1, 0
        return False
