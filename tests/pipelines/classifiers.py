"""Descriptions of image classifiers, by the few facts that a test cares about."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.core.config import Method
from pipelines.data.prepared import Card
from pipelines.systems.onnx.metadata import CLASSIFIER, OnnxMetadata
from pipelines.tasks.form import CLASSIFICATION, Form
from pipelines.training.network import NetworkSpec


def classifier_form(
    classes: Sequence[str],
    size: int,
    channels: int,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> Form:
    """Images of so many pixels and channels, and these classes."""
    return Form(
        CLASSIFICATION,
        classes=tuple(classes),
        size=size,
        channels=channels,
        mean=tuple(mean),
        deviation=tuple(deviation),
    )


def classifier_spec(
    method: Method,
    size: int,
    channels: int,
    classes: Sequence[str],
    mean: Sequence[float],
    deviation: Sequence[float],
    width: int,
    hidden: int,
    network: str = "cnn",
    code: str = "",
) -> NetworkSpec:
    """The specification of a network that tells classes apart."""
    form = classifier_form(classes, size, channels, mean, deviation)
    return NetworkSpec(form, (len(classes),), method, width, hidden, network, code)


def classifier_metadata(
    classes: Sequence[str],
    size: int,
    channels: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    data_hash: str,
    params_hash: str,
    code_hash: str,
) -> OnnxMetadata:
    """What the released file of such a network says about itself."""
    form = classifier_form(classes, size, channels, mean, deviation)
    shape = (len(form.classes),)
    return OnnxMetadata(form, CLASSIFIER, shape, data_hash, params_hash, code_hash)


def released_as(card: Card, params_hash: str, code_hash: str) -> OnnxMetadata:
    """What the released file of a network for prepared data says about itself."""
    shape = (len(card.classes),)
    return OnnxMetadata(card.form, CLASSIFIER, shape, card.data_hash, params_hash, code_hash)
