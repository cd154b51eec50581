"""The version that answers now, and what may take its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import Unavailable
from pipelines.serving.http.tensor_signature import Signature
from pipelines.systems.onnx.runtime import OnnxModel

ALIAS = "champion"
"""What the version that answers is called in the registry."""


class NotReady(Unavailable):
    """No version has been loaded yet."""


class ScoreCard(Protocol):
    """What a drift model says about itself, as far as the server shows it."""

    @property
    def method(self) -> str:
        """Name of the score."""

    @property
    def reference_scores(self) -> Sequence[float]:
        """Scores of held-out examples."""


class Drift(Protocol):
    """Scores how far inputs lie from the training data."""

    @property
    def card(self) -> ScoreCard:
        """What it says about itself."""

    def scores(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        """Return a score for each of [n, *input_shape] inputs, [n]; larger is further away."""


class ShadowReceiver(Protocol):
    """Where a copy of the traffic goes; its answers are never returned."""

    def offer(
        self,
        requests: Sequence[str],
        counts: Sequence[int],
        inputs: NDArray[Any],
        answers: NDArray[Any],
        version: int,
    ) -> None:
        """Take or drop requests that were answered; returns at once and raises nothing.

        It is called by the inference thread, once for each batch, before the answers are sent.

        Args:
            requests: Ids of the requests, [r].
            counts: Examples of each request, [r]; they lie in `inputs` in this order.
            inputs: As the data hold them, [n, *input_shape]; must not be changed.
            answers: Of the version that answered, [n, ...]; must not be changed.
            version: Which version that was.
        """


@dataclass(frozen=True)
class Loaded:
    """A version that can answer.

    Attributes:
        version: Its number in the registry.
        sha256: Of its ONNX file.
        model: In ONNX Runtime, warmed.
        drift: Of the same version; None if it has none.
        since: When it became the one that answers, UTC.
    """

    version: int
    sha256: str
    model: OnnxModel
    drift: Drift | None
    since: datetime

    @cached_property
    def signature(self) -> Signature:
        """Inputs and outputs by name; asks the model once.

        Raises:
            UserError: If the runtime fails.
        """
        return Signature.of(self.model)

    @cached_property
    def reference(self) -> NDArray[np.float64]:
        """Drift scores of held-out examples [n], sorted; n = 0 without a drift model."""
        scores = () if self.drift is None else self.drift.card.reference_scores
        return np.sort(np.array(scores, np.float64))


class Live:
    """The version that answers now.

    One thread swaps; any thread reads. Who answers a request reads `current` once and keeps what
    it got, so a version that was swapped out ends its requests and is freed after the last one.

    Attributes:
        name: Of the registered model.
        problems: What is wrong with the registry, one text each; empty if nothing is. Assign a new
            tuple; health and metrics show it.
        swaps: How often the version was changed after the first.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: tuple[str, ...] = ()
        self.swaps = 0
        self._loaded: Loaded | None = None

    @property
    def current(self) -> Loaded:
        """The version that answers now.

        Raises:
            NotReady: If none has been loaded.
        """
        loaded = self._loaded
        if loaded is None:
            raise NotReady(f"{self.name}: no released version is loaded yet")
        return loaded

    @property
    def ready(self) -> bool:
        """Whether a version has been loaded."""
        return self._loaded is not None

    def swap(self, loaded: Loaded) -> Loaded | None:
        """Let a version answer from now on.

        Args:
            loaded: Verified and warmed.

        Returns:
            The one that answered before; None if there was none. Drop it: it is freed when its
            last request has ended.

        Raises:
            UserError: If the model cannot be asked; then the one before answers on.
        """
        _ = loaded.signature  # here, so that no request waits for it
        before, self._loaded = self._loaded, loaded
        self.swaps += before is not None and before.version != loaded.version
        return before
