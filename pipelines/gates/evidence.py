"""What the gates judge by, gathered when first asked for, and once.

Nothing is loaded into a runtime before the gates that only read it have let it through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_file
from pipelines.core.own_code import unchanged
from pipelines.core.paths import Layout
from pipelines.data.prepared import Card, Split, load_card, load_split
from pipelines.evaluation import scoring
from pipelines.evaluation.scoring import Score
from pipelines.gates.gathered import gathered_once
from pipelines.gates.measuring import Asked, asked_at, batches
from pipelines.gates.provenance import StoredFile
from pipelines.gates.variant_limits import VariantLimits
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.model_file import (
    ModelProto,
    checked_card,
    outside,
    parse,
    tensor_values,
)
from pipelines.systems.onnx.operators import not_allowed
from pipelines.systems.onnx.runtime import OnnxModel, OutOfMemory
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task

_NUMERIC = "fc"  # numpy's kinds: float, complex


class StoredModel(Protocol):
    """A registered version, as far as the gates need to know it.

    What reads its folder raises `UserError` if that cannot be read, and `Unavailable` if the
    registry does not answer.
    """

    @property
    def number(self) -> int:
        """Its number."""

    @property
    def sha256(self) -> str:
        """Of the bytes that were registered."""

    @property
    def lineage(self) -> Mapping[str, str]:
        """What it was made from."""

    @property
    def metrics(self) -> Mapping[str, str]:
        """Figures that were registered with it."""

    def fetch_model(self, target: Path) -> None:
        """Download its ONNX file anew; nothing is checked."""

    def checked_file(self) -> Path:
        """Return its ONNX file, after its hash was checked."""

    def files(self, scratch: Path) -> list[StoredFile]:
        """Return what lies in its folder, with an empty directory for downloads."""

    def weights_sha256(self) -> str:
        """Return the sha256 of the trained weights behind it; empty if unknown."""


def trained_weights(layout: Layout) -> Path | None:
    """Return the file of the checkout's trained weights; None if there is no trained network."""
    weights = layout.trained / "network.safetensors"
    whole = weights.is_file() and weights.with_suffix(".json").is_file()
    return weights if whole else None


class Contender:
    """A loaded model, and how it answers the gate split.

    Attributes:
        path: Its file.
        model: In ONNX Runtime, on the CPU.
    """

    def __init__(self, path: Path, split: Split, card: Card, checkout: Path) -> None:
        self.path, self.model = path, OnnxModel.load(path, "cpu")
        self._split, self._card, self._checkout = split, card, checkout

    @gathered_once
    def score(self) -> Score:
        """Its answers to the gate split."""
        return self.score_on(self._split)

    def score_on(self, split: Split) -> Score:
        """Return its answers to a split of the same data."""
        return scoring.error(self.model, split, self._card.form, self._checkout)


class Evidence:
    """What can be known about a candidate, here and now.

    A property that cannot be had raises `UserError` with the reason.

    Attributes:
        params: The checkout's.
        candidate: The version that is judged.
        held_against: The champion, or None.
        past: Versions that were champion, whose errors on this gate split count too.
        refused: Why the candidate must not be loaded; empty while nothing speaks against it.
        variant: Limits of a variant of the champion; None if the candidate is none.
    """

    def __init__(
        self,
        layout: Layout,
        params: Params,
        candidate: StoredModel,
        champion: StoredModel | None,
        past: Sequence[StoredModel],
        scratch: Path,
        variant: VariantLimits | None = None,
    ) -> None:
        self.params, self.candidate, self.held_against = params, candidate, champion
        self.past = tuple(past)
        self.refused, self.variant = "", variant
        self._layout, self._scratch = layout, scratch
        self._name = f"version {candidate.number}"

    def registered(self, metric: str) -> float:
        """Return a metric that was registered with the candidate.

        Raises:
            UserError: If there is none.
        """
        text = self.candidate.metrics.get(metric, "")
        try:
            return float(text)
        except ValueError:
            said = f"{text!r} is not a number" if text else "is not there"
            raise UserError(
                f"{self._name}: its tag metric.{metric} {said}; register it again"
            ) from None

    # What lies in the registry, read and not run.

    @gathered_once
    def path(self) -> Path:
        """The candidate's ONNX file, downloaded from the registry now; nothing is checked."""
        path = self._scratch / "model.onnx"
        self.candidate.fetch_model(path)
        return path

    @gathered_once
    def sha256(self) -> str:
        """Of that file."""
        return sha256_file(self.path)

    @gathered_once
    def files(self) -> list[StoredFile]:
        """The candidate's folder."""
        folder = self._scratch / "files"
        folder.mkdir()
        return self.candidate.files(folder)

    @gathered_once
    def proto(self) -> ModelProto | ValueError:
        """The candidate's graph, or what is wrong with the file."""
        if self.sha256 != self.candidate.sha256:
            raise UserError(f"{self._name}: not read: its bytes are not those registered")
        try:
            return parse(self.path.read_bytes())
        except ValueError as error:
            return error

    def _readable(self) -> ModelProto:
        if isinstance(self.proto, ValueError):
            raise UserError(f"{self._name}: not read: {self.proto}")
        return self.proto

    @gathered_once
    def outside(self) -> list[tuple[str, str]] | ValueError:
        """Tensors that lie outside the file."""
        return self.proto if isinstance(self.proto, ValueError) else outside(self.proto)

    @gathered_once
    def not_allowed(self) -> list[str]:
        """What the candidate's graph holds and no released model may hold."""
        return not_allowed(self._readable())

    @gathered_once
    def card(self) -> OnnxMetadata | ValueError:
        """The candidate's metadata, or what is wrong with them."""
        try:
            return checked_card(self._readable())
        except ValueError as error:
            return error

    @gathered_once
    def not_finite(self) -> tuple[dict[str, int], int]:
        """Tensor → values that are not finite numbers; and how many values there are."""
        if self.outside:
            raise UserError(f"{self._name}: not read: weights lie outside the file")
        found, count = {}, 0
        for name, values in tensor_values(self._readable()):
            count += values.size
            own = values.dtype.kind in _NUMERIC
            if own or values.dtype.name.startswith(("bfloat", "float")):
                plain = values if own else values.astype(np.float32)
                wrong = int(values.size - np.isfinite(plain).sum())
                if wrong:
                    found[name] = wrong
        return found, count

    # What the checkout holds.

    @gathered_once
    def data(self) -> Card:
        """What the checkout's data are."""
        return load_card(self._layout.prepared)

    @gathered_once
    def gate(self) -> Split:
        """The split that decides; at least one example."""
        split = load_split(self._layout.prepared, "gate")
        if not len(split.inputs):
            raise UserError("the gate split is empty; raise data.gate")
        return split

    @gathered_once
    def test(self) -> Split:
        """The split that only reports; at least one example."""
        split = load_split(self._layout.prepared, "test")
        if not len(split.inputs):
            raise UserError("the test split is empty; raise data.test")
        return split

    @cached_property
    def sample(self) -> NDArray[Any]:
        """Up to `verify.images` examples of the gate split, as the data hold them."""
        return self.gate.inputs[: self.params.verify.images]

    @gathered_once
    def task(self) -> Task:
        """What the data are for."""
        return task_of(self.data.form, self._layout.root)

    # What runs.

    @gathered_once
    def new(self) -> Contender:
        """The candidate, loaded."""
        if self.refused:
            raise UserError(f"not loaded: {self.refused}")
        return Contender(self.path, self.gate, self.data, self._layout.root)

    @gathered_once
    def taken(self) -> NDArray[Any]:
        """The sample as the candidate takes it."""
        return scoring.fitted(self.sample, self.data.form, self.new.model.form)

    @gathered_once
    def asked(self) -> Asked:
        """The candidate's answers to real examples, alone and in batches of many sizes."""
        return asked_at(self.new.model, self.taken, batches(self.sha256))

    @gathered_once
    def own_task(self) -> Task:
        """The candidate's task, which knows its own classes and scales."""
        return task_of(self.new.model.form, self._layout.root)

    @gathered_once
    def old(self) -> Contender | None:
        """The champion, loaded and scored; None without a champion."""
        champion = self.held_against
        if champion is None:
            return None
        try:
            path = champion.checked_file()
            contender = Contender(path, self.gate, self.data, self._layout.root)
            if not contender.score.finite:
                raise UserError("its answers are not finite")
        except OutOfMemory:
            raise
        except UserError as error:
            raise UserError(
                f"champion version {champion.number} cannot be scored, so there is nothing to "
                f"compare with: {error}; set registry.model to another name to begin a new line "
                "of models"
            ) from None
        return contender

    @gathered_once
    def best_error(self) -> float | None:
        """The lowest error on the gate split of any version that was champion; None without one.

        The present champion is not scored a second time.
        """
        found = []
        for version in self.past:
            try:
                if self.held_against is not None and version.number == self.held_against.number:
                    contender = self.old
                else:
                    contender = Contender(
                        version.checked_file(), self.gate, self.data, self._layout.root
                    )
                if contender is not None:
                    found.append(contender.score.error)
            except OutOfMemory:
                raise
            except UserError:
                continue  # gone, or made for other images: nothing to hold anyone to
        return min(found, default=None)

    @gathered_once
    def weights_at_hand(self) -> bool:
        """Whether the trained network is this version's, and its own code is as it was."""
        weights = trained_weights(self._layout)
        if weights is None or sha256_file(weights) != self.candidate.weights_sha256():
            return False
        spec = read_json(weights.with_suffix(".json"))
        own = {spec.get("network", ""): spec.get("code", "")}
        own[spec.get("form", {}).get("task", "")] = spec.get("task_code", "")
        return all(unchanged(name, code, self._layout.root) for name, code in own.items())

    def parity(self) -> dict[int, float] | None:
        """Return batch → difference of torch and ONNX Runtime; None without the weights."""
        model = self.new.model
        if not self.weights_at_hand:
            return None
        from pipelines.export.to_onnx import folded  # torch, which the other gates do without
        from pipelines.training.network import load
        from pipelines.verification.verify import compare, torch_answer

        network = torch_answer(folded(load(self._layout.trained)[1]))
        networks = {"torch": network, "onnx": lambda asked, batch: model.raw(asked, batch=batch)}
        labels = self.own_task.counts
        found = compare(networks, self.taken, self.params.gates.parity, labels=labels)
        return {row.batch: row.difference for row in found}
