"""The request log: one JSON line for each sampled request, in the log before its answer goes out.

A server has files of its own, which it holds locked: what two servers write never mixes, and a
reader knows whether an incomplete last line may still be completed. Kept inputs stand in a folder
beside their file and go with it. Reading is in `pipelines.serving.request_records`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core.paths import Layout
from pipelines.core.private import private_folder
from pipelines.systems.locks import take

MOST_EXAMPLES = 256
"""Examples of one request whose answers are kept; of a larger request the first ones."""
MOST_NUMBERS = 64
"""Numbers of one answer that are kept."""
MOST_BYTES = 512 * 2**20
"""Bytes of a model's log, kept inputs included, unless told otherwise."""
ENDING = ".jsonl"
INPUTS = ".inputs"
"""Ending of the folder with the inputs of a file's requests."""
_SEGMENTS = 16  # files that make up a full log: what is removed at a time
_SHARES = 2**64


@dataclass(frozen=True)
class Shadow:
    """What the challenger said to a request.

    Attributes:
        version: Its version.
        agree: Share of the examples to which it answered as the champion did, 0 to 1.
    """

    version: int
    agree: float


@dataclass(frozen=True)
class LoggedRequest:
    """One request and its answer.

    Attributes:
        time: When it was answered, UTC, ISO 8601 (`now()`).
        request: Its id, as its client was told, at most 128 characters.
        model: Name of the registered model.
        version: That answered.
        sha256: Of the file that answered.
        examples: How many examples it had.
        seconds: From its arrival to its answer.
        answers: Of its first `MOST_EXAMPLES` examples the first `MOST_NUMBERS` numbers: logits,
            probabilities or values; empty where answers are images. Six digits are kept.
        labels: Of the same examples the class's number; empty where nothing is classified.
        drift: Of the same examples the drift score; empty if none was made.
        inputs: File of the inputs, relative to the log's folder; empty if they are not kept.
            `RequestLog.append` sets it.
        shadow: What the challenger said, if it was asked.
    """

    time: str
    request: str
    model: str
    version: int
    sha256: str
    examples: int
    seconds: float
    answers: Sequence[Sequence[float]] = ()
    labels: Sequence[int] = ()
    drift: Sequence[float] = ()
    inputs: str = ""
    shadow: Shadow | None = None


def now() -> str:
    """Return the time as the log writes it."""
    return written_time(datetime.now(UTC))


def written_time(time: datetime) -> str:
    """Return a time as the log writes it: UTC, ISO 8601, milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def log_folder(layout: Layout, model: str) -> Path:
    """Return the folder of a model's request log."""
    return layout.state / "requests" / model


class RequestLog:
    """Appends to a model's request log. A log that cannot be written never fails a request.

    Methods may be called from several threads.

    Attributes:
        keep_inputs: Whether inputs are kept, so that a caller need not gather them otherwise.
        lost: Records that could not be written, since the start.
        problem: Why the last write failed; empty once one succeeds again.
    """

    def __init__(
        self,
        folder: Path,
        share: float = 1.0,
        keep_inputs: bool = False,
        max_bytes: int = MOST_BYTES,
    ) -> None:
        """Make the folder; the first file is made by the first record.

        Args:
            folder: Of the log (`log_folder`); only its owner may enter it.
            share: Of the requests that are logged, 0 to 1.
            keep_inputs: Whether inputs are kept, if `append` is given them.
            max_bytes: Of all files of the folder, about; the oldest ones are removed beyond it.

        Raises:
            UserError: If the folder belongs to another user.
            OSError: If it cannot be made.
        """
        private_folder(folder)
        self._folder, self.keep_inputs, self._most = folder, keep_inputs, max_bytes
        self._limit = round(min(max(share, 0.0), 1.0) * _SHARES)
        # Keyed, so that no client can choose ids that stay out of the log.
        self._key = secrets.token_bytes(16)
        began = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._stem = f"{began}-{secrets.token_hex(4)}"
        self._number = self._bytes = self._inputs = 0
        self._file: io.FileIO | None = None
        self._lock = threading.Lock()
        self.lost = 0
        self.problem = ""

    def takes(self, request: str) -> bool:
        """Say whether a request is in the sample: always the same for one id."""
        if self._limit == _SHARES:
            return True
        digest = hashlib.blake2b(
            request.encode(errors="replace"), digest_size=8, key=self._key
        ).digest()
        return int.from_bytes(digest, "big") < self._limit

    def append(
        self,
        records: Sequence[LoggedRequest],
        inputs: Sequence[Mapping[str, NDArray[np.generic]]] = (),
    ) -> int:
        """Write the sampled ones of some requests, by one write; call it before they are answered.

        Args:
            records: The requests of a batch.
            inputs: Of each record its arrays by name, used if inputs are kept. Arrays of objects
                are kept as text.

        Returns:
            How many records are now in the log. Those that should be and are not count as `lost`.
        """
        with self._lock:
            chosen = [at for at, record in enumerate(records) if self.takes(record.request)]
            if not chosen:
                return 0
            written = 0
            try:
                file = self._open()
                lines = []
                for at in chosen:
                    kept = self._keep(inputs[at]) if self.keep_inputs and inputs else ""
                    lines.append(_line(records[at], kept))
                written = self._write(file, lines)
            except OSError as error:
                self.problem = error.strerror or str(error)
            except (ValueError, TypeError) as error:  # a record that is none
                self.problem = f"cannot be written: {error}"
            self.lost += len(chosen) - written
            return written

    def close(self) -> None:
        """Close the file; a later record begins another."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.FileIO:
        """Return the file to write to: a new one if there is none or it is full."""
        if self._file is not None and self._bytes < self._most // _SEGMENTS:
            return self._file
        self._close()
        self._number += 1
        path = self._folder / f"{self._stem}-{self._number:06d}{ENDING}"
        new = path.with_suffix(".new")  # locked before others see it, who might remove it
        descriptor = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._file, self._bytes = io.FileIO(descriptor, "ab"), 0
        take(self._file)
        new.rename(path)
        _remove_oldest(self._folder, self._most - self._most // _SEGMENTS)
        return self._file

    def _write(self, file: io.FileIO, lines: Sequence[bytes]) -> int:
        """Append lines; return how many of them are whole."""
        block = b"".join(lines)
        written = os.write(file.fileno(), block)
        if written < len(block):  # a full disk: whole lines stay, since a reader may have them
            whole = block.rfind(b"\n", 0, written) + 1
            os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - (written - whole))
            self._bytes += whole
            self.problem = "no space left on the disk"
            return block.count(b"\n", 0, whole)
        self._bytes += written
        self.problem = ""
        return len(lines)

    def _keep(self, inputs: Mapping[str, NDArray[np.generic]]) -> str:
        """Write a request's inputs; return the file's name relative to the log's folder."""
        folder = f"{self._stem}-{self._number:06d}{INPUTS}"
        (self._folder / folder).mkdir(mode=0o700, exist_ok=True)
        self._inputs += 1
        name = f"{folder}/{self._inputs:09d}.npz"
        packed = io.BytesIO()
        plain = {
            key: value.astype(np.str_) if value.dtype == object else value
            for key, value in inputs.items()
        }
        np.savez(packed, allow_pickle=False, **plain)
        with open(self._folder / name, "xb", buffering=0) as file:
            size = packed.getbuffer().nbytes
            if file.write(packed.getbuffer()) < size:
                raise OSError(28, "no space left on the disk")
        self._bytes += size
        return name


def _remove_oldest(folder: Path, most: int) -> None:
    """Remove the oldest files until `most` bytes are left; never one that a server writes to."""
    sized = []
    for path in sorted(folder.glob(f"*{ENDING}")):
        if path.is_symlink() or not path.is_file():
            continue
        beside = path.with_suffix(INPUTS)
        parts = [path, *(beside.iterdir() if beside.is_dir() else ())]
        sized.append((path, beside, sum(part.stat().st_size for part in parts if part.exists())))
    total = sum(size for _, _, size in sized)
    for path, beside, size in sized:
        if total <= most:
            return
        with path.open("rb") as file:
            if not take(file):
                continue
            path.unlink(missing_ok=True)
        if beside.is_dir():
            shutil.rmtree(beside)
        total -= size


def _line(record: LoggedRequest, inputs: str) -> bytes:
    """Return a record as one line; `json` would take four times longer for the numbers."""
    rows = ",".join([f"[{_numbers(row[:MOST_NUMBERS])}]" for row in record.answers[:MOST_EXAMPLES]])
    labels = ",".join([f"{label:d}" for label in record.labels[:MOST_EXAMPLES]])
    rest = ""
    if len(record.drift):
        rest += f',"drift":[{_numbers(record.drift[:MOST_EXAMPLES])}]'
    if inputs:
        rest += f',"inputs":{json.dumps(inputs)}'
    if record.shadow is not None:
        shadow = record.shadow
        agree = _numbers([shadow.agree])
        rest += f',"shadow":{{"version":{shadow.version:d},"agree":{agree}}}'
    return (
        f'{{"time":{json.dumps(record.time)},"request":{json.dumps(record.request)},'
        f'"model":{json.dumps(record.model)},"version":{record.version:d},'
        f'"sha256":{json.dumps(record.sha256)},"examples":{record.examples:d},'
        f'"seconds":{record.seconds:.6g},"answers":[{rows}],"labels":[{labels}]{rest}}}\n'
    ).encode()


def _numbers(row: Sequence[float]) -> str:
    """Return numbers with six digits, comma separated; what is not finite is null."""
    text = ("%.6g," * len(row)) % tuple(row)
    if "n" in text:  # nan, inf
        text = ",".join("null" if "n" in one else one for one in text[:-1].split(",")) + ","
    return text[:-1]
