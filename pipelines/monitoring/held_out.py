"""What a version's requests are held to: held-out examples, as its drift graph keeps them.

A version that was made before drift graphs is compared by its answers alone, to the gate split, if
the data that it was made from are still prepared here.
"""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card, load_split
from pipelines.monitoring.comparison import Examples
from pipelines.monitoring.look import HeldOut
from pipelines.registry.state import ModelState, read_state
from pipelines.registry.statements import Statement
from pipelines.registry.version_files import (
    NotReleased,
    drift_file,
    released_file,
    required_statement,
)
from pipelines.serving.request_log import MOST_NUMBERS
from pipelines.systems.mlflow import MlflowClient, answering, connect
from pipelines.systems.onnx.drift_model import DriftCard, DriftModel
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.form import CLASSIFICATION

MOST_EXAMPLES = 1000
"""Held-out examples of a version without a drift graph."""


class ReleasedVersions:
    """The released versions of a model, from the registry; each is asked for once.

    Methods raise `Unavailable` if the registry does not answer.
    """

    def __init__(self, layout: Layout, model: str) -> None:
        """Ask for nothing yet.

        Args:
            layout: The checkout.
            model: The registered model's name.
        """
        self._layout, self._model = layout, model
        self._statements: dict[int, Statement | None] = {}
        self._references: dict[int, HeldOut] = {}

    @cached_property
    def _state(self) -> tuple[MlflowClient, ModelState]:
        client = connect(self._layout)
        with answering(self._layout):
            return client, read_state(self._layout, client, self._model)

    @property
    def champion(self) -> int | None:
        """The version that is live; None if none is."""
        return self._state[1].live

    def statement(self, version: int) -> Statement | None:
        """Return the statement by which a version was released; None if there is none."""
        if version not in self._statements:
            client, state = self._state
            try:
                with answering(self._layout):
                    found = required_statement(self._layout, client, state, version)
            except NotReleased:
                self._statements[version] = None
            else:
                self._statements[version] = found
        return self._statements[version]

    def champions_data(self) -> str:
        """Return the hash of the data that the champion was made from; empty if it is unknown."""
        found = None if self.champion is None else self.statement(self.champion)
        known = "" if found is None else found.made_from.get("data_hash", "")
        return known if re.fullmatch("[0-9a-f]{64}", known) else ""

    def sha256(self, version: int) -> str:
        """Return the hash of a version's released file; empty if no statement releases it."""
        found = self.statement(version)
        return "" if found is None else found.sha256

    def reference(self, version: int) -> HeldOut:
        """Return what the requests of a version are held to.

        Raises:
            UserError: If its files are damaged.
        """
        if version not in self._references:
            statement = self.statement(version)
            if statement is None:
                return HeldOut(Examples(), "not released")
            path = drift_file(self._layout, statement)
            if path is not None:
                card = DriftModel.load(path, model=statement.sha256).card
                self._references[version] = of_card(card)
            else:
                self._references[version] = _of_prepared(self._layout, statement)
        return self._references[version]


def of_card(card: DriftCard) -> HeldOut:
    """Return the held-out examples that a drift graph keeps."""
    count = len(card.reference_scores)
    return HeldOut(
        Examples(
            scores=np.array(card.reference_scores, float),
            answers=np.array(card.reference_answers, float).reshape(
                len(card.reference_answers), -1 if card.reference_answers else 0
            ),
            labels=np.array(card.reference_labels, np.int64),
        ),
        source=f"{count} held-out examples of its drift graph",
        method=card.method,
        classes=_probabilities_of(card.form.task, card.form.classes),
        threshold=card.threshold,
    )


def _of_prepared(layout: Layout, statement: Statement) -> HeldOut:
    """Return answers to the gate split, if these are the data that the version was made from."""
    nothing = "it has no drift graph, and the data that it was made from are not prepared here"
    try:
        same = load_card(layout.prepared).data_hash == statement.made_from.get("data_hash")
        split = load_split(layout.prepared, "gate") if same else None
    except UserError:
        split = None
    if split is None or not len(split.inputs):
        return HeldOut(Examples(), nothing)
    model = OnnxModel.load(released_file(layout, statement), "cpu")
    answers = np.asarray(model.answers(split.inputs[:MOST_EXAMPLES]), float)
    form = model.form
    if answers.ndim != 2:
        return HeldOut(Examples(), "it has no drift graph, and its answers are images")
    return HeldOut(
        Examples(
            answers=answers[:, :MOST_NUMBERS],
            labels=answers.argmax(1) if form.classes else np.zeros(0, np.int64),
        ),
        source=f"answers to {len(answers)} examples of the gate split; it has no drift graph",
        classes=_probabilities_of(form.task, form.classes),
    )


def _probabilities_of(task: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    return classes if task == CLASSIFICATION else ()
