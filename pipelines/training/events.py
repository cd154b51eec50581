"""The events of a training: one JSON object per line, written by rank 0.

The ranks do not handle progress bars, CSV files or MLflow. The process that started them reads the
file, so no record is lost when a rank dies. The file is next to the checkpoints, so nothing is lost
either when the whole run is killed.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.files import write_text

if TYPE_CHECKING:
    import prong

HISTORY = (
    "step",
    "epoch",
    "train_loss",
    "train_error",
    "validation_loss",
    "validation_error",
    "lr",
    "samples_per_second",
)
CONDITIONING = (
    "step",
    "layer",
    "condition_before",
    "condition_after",
    "whitening_error_before",
    "whitening_error",
    "seconds",
)

Event = dict[str, Any]


class EventWriter:
    """Appends events to a file; readers see each event immediately.

    A training that continues from a checkpoint begins with a `resume` event. Events after the first
    `keep` events are not part of the checkpoint and will be written again.

    Attributes:
        count: Valid events so far, without those of `resume`.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open the file to append events.

        Args:
            path: The file; made if absent.
            keep: Number of its events that are still valid.
        """
        self._file = path.open("ab", buffering=0)
        _cut_torn_line(path)
        self.count = keep
        self._write({"kind": "resume", "keep": keep})

    def __call__(self, kind: str, **values: object) -> None:
        """Append one event."""
        self._write({"kind": kind, **values})
        self.count += 1

    def sync(self) -> None:
        """Wait until all events are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(json.dumps(event).encode() + b"\n")


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, whose writer was killed."""
    with path.open("r+b") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


class EventReader:
    """Reads the events that were added since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def __call__(self) -> Iterator[Event]:
        """Yield new events; an incomplete line is left for the next call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def write_table(path: Path, columns: tuple[str, ...], rows: list[Event]) -> None:
    """Write rows as CSV with a header, atomically; a missing value is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def conditioning_rows(report: prong.RefreshReport, prefix: str = "") -> list[dict[str, object]]:
    """Return one row of figures for each layer that a reparametrisation updated.

    Args:
        report: What the reparametrisation reports.
        prefix: What is left out where a layer's name begins with it.
    """
    return [
        {
            "layer": name.removeprefix(prefix),
            "condition_before": layer.condition_before,
            "condition_after": layer.condition_after,
            "whitening_error_before": layer.whitening_error_before,
            "whitening_error": layer.whitening_error,
            "seconds": layer.seconds,
            "samples": layer.samples,
            "fallback": layer.fallback,
        }
        for name, layer in report.layers.items()
    ]
