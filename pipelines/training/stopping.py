"""Stops all ranks between the same two steps.

A signal reaches the ranks at different times, or only one of them. Each rank records it. Every few
steps the ranks exchange their signals, and if one rank has a signal, all stop.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch

from pipelines.training.parallel import TrainingRanks

INTERVAL = 0.1
"""Approximate seconds between two exchanges."""
_MOST = 20  # steps between two exchanges: the next step may be much slower than the last


class Stopped(BaseException):
    """The ranks agreed to stop, after a checkpoint. Not an error, so no handler may catch it.

    Attributes:
        signum: The signal that one of them received.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Stop:
    """Whether to stop: set by this rank's signal handler, agreed on by all ranks."""

    def __init__(self, ranks: TrainingRanks) -> None:
        self._ranks = ranks
        self._noted = 0
        self._left = 1
        self._since, self._asked = time.monotonic(), 1

    def listen(self) -> None:
        """Record SIGTERM and SIGINT from now on, instead of ending immediately."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self.note)

    def note(self, signum: int, _frame: FrameType | None = None) -> None:
        """Record that this rank should stop."""
        self._noted = signum

    def agreed(self, *, now: bool = False) -> int:
        """Return the signal that a rank received, if an exchange is due; otherwise 0.

        Every rank must make the same calls with the same arguments.

        Args:
            now: Whether to exchange in any case.
        """
        self._left -= 1
        if self._left > 0 and not now:
            return 0
        elapsed = time.monotonic() - self._since
        steps = min(_MOST, max(1, int(INTERVAL * self._asked / max(elapsed, 1e-6))))
        # All ranks use the first rank's count, because clocks differ.
        said = torch.tensor([self._noted, 0 if self._ranks.rank else steps], dtype=torch.int64)
        signum, steps = self._ranks.largest_(said).tolist()
        self._since, self._asked, self._left = time.monotonic(), steps, steps
        return int(signum)
