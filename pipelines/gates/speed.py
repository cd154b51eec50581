"""How fast models answer, in the clock's time, as a server would run them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import numpy as np

from pipelines.evaluation.scoring import fitted
from pipelines.gates.measuring import Inputs
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.form import Form

LARGE = 256
"""Batch of the throughput."""
_SECONDS = 0.5  # for each model at each batch, about
_LEAST, _MOST = 5, 400  # calls


def speeds(models: Mapping[str, OnnxModel], inputs: Inputs, data: Form) -> dict[str, float]:
    """Return what models take for one example and answer in a second, asked in turns.

    Unlike the ratio that the gate `latency` is about, these are times of this machine, with all the
    threads that the process may use.

    Args:
        models: Prefix of the figures' names → the model, loaded.
        inputs: As the data hold them, n ≥ 1; repeated where n is below a batch.
        data: Form of the data.

    Returns:
        `PREFIXp50_ms`: the median time of one example alone, ms; `PREFIXthroughput`: examples a
        second in batches of 256.
    """
    found = {}
    for batch in (1, LARGE):
        some = inputs[np.arange(batch) % len(inputs)]
        asked = {name: fitted(some, data, model.form) for name, model in models.items()}
        once = max(_seconds(models[name], asked[name]) for name in models)  # this warms them up
        calls = int(min(max(_SECONDS / max(once, 1e-6), _LEAST), _MOST))
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(calls):
            for name, model in models.items():
                times[name].append(_seconds(model, asked[name]))
        for name, all_of_it in times.items():
            if batch == 1:
                found[f"{name}p50_ms"] = 1000 * median(all_of_it)
            else:
                found[f"{name}throughput"] = batch / median(all_of_it)
    return found


def _seconds(model: OnnxModel, inputs: Inputs) -> float:
    start = time.perf_counter()
    model.raw(inputs)
    return max(time.perf_counter() - start, 1e-9)
