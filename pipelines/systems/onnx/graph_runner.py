"""Runs a graph that was made here over many examples: equal results on any number of cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# As `runtime` does, which this does not import: its code has no say in a model's bytes.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# isort: split
import onnxruntime as ort
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.systems.onnx.inputs_by_name import fed
from pipelines.tasks.form import Form

_MOST_WORKERS = 4


class GraphRunner:
    """A session with one thread; several batches run side by side.

    So no sum depends on how many cores there are, as it would with a thread pool inside.

    Args:
        content: The graph, trusted.
        form: Of the model that it was made from.

    Raises:
        UserError: If ONNX Runtime does not load it.
    """

    def __init__(self, content: bytes, form: Form) -> None:
        self._form = form
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # those of ONNX Runtime have no base class of their own
            raise _told(error) from None

    def batches(self, inputs: NDArray[Any], size: int) -> Iterator[list[NDArray[Any]]]:
        """Yield the outputs of each batch of `size` inputs, in order; few are held at a time.

        Args:
            inputs: As the data hold them, [n, *input_shape].
            size: Examples of a batch; the last one may be smaller.

        Raises:
            UserError: If ONNX Runtime fails.
        """
        parts = [inputs[at : at + size] for at in range(0, len(inputs), size)]
        workers = min(_MOST_WORKERS, len(os.sched_getaffinity(0)), max(1, len(parts)))
        with ThreadPoolExecutor(workers) as pool:
            begun = deque(pool.submit(self._run, part) for part in parts[:workers])
            for part in [*parts[workers:], *[None] * workers]:
                if not begun:
                    return
                found = begun.popleft().result()
                if part is not None:
                    begun.append(pool.submit(self._run, part))
                yield found

    def _run(self, part: NDArray[Any]) -> list[NDArray[Any]]:
        try:
            found: Sequence[NDArray[Any]] = self._session.run(None, fed(self._form, part))
        except Exception as error:  # those of ONNX Runtime have no base class of their own
            raise _told(error) from None
        return list(found)


def _told(error: Exception) -> UserError:
    return UserError(f"ONNX Runtime cannot run the drift graph: {' '.join(str(error).split())}")
