"""Stopping between two steps, all ranks at the same one.

A signal reaches the ranks at different moments, or only one of them. Each notes it, and every few
steps they ask each other: whatever one was told, all do.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch

from pipelines.training.parallel import TrainingRanks

INTERVAL = 0.1
"""Seconds between two questions, about."""
_MOST = 20  # steps between two questions: the next may be much slower than the last


class Stopped(BaseException):
    """The ranks agreed to stop, after a checkpoint; no error, so nothing may swallow it.

    Attributes:
        signum: The signal that one of them got.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Stop:
    """Whether to stop: noted by this rank's signal handler, agreed on by all."""

    def __init__(self, ranks: TrainingRanks) -> None:
        self._ranks = ranks
        self._noted = 0
        self._left = 1
        self._since, self._asked = time.monotonic(), 1

    def listen(self) -> None:
        """Note SIGTERM and SIGINT from here on, instead of ending at once."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self.note)

    def note(self, signum: int, _frame: FrameType | None = None) -> None:
        """Remember that this rank is to stop."""
        self._noted = signum

    def agreed(self, *, now: bool = False) -> int:
        """Return the signal that some rank got, if it is time to ask, or 0.

        Every rank must call this as often and with the same arguments as the others.

        Args:
            now: Whether to ask in any case.
        """
        self._left -= 1
        if self._left > 0 and not now:
            return 0
        elapsed = time.monotonic() - self._since
        steps = min(_MOST, max(1, int(INTERVAL * self._asked / max(elapsed, 1e-6))))
        # The first rank's count is everybody's: clocks differ.
        said = torch.tensor([self._noted, 0 if self._ranks.rank else steps], dtype=torch.int64)
        signum, steps = self._ranks.largest_(said).tolist()
        self._since, self._asked, self._left = time.monotonic(), steps, steps
        return int(signum)
