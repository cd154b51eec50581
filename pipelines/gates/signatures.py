"""The one place where gates meet the signing of versions."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

from pipelines.layout import Layout
from pipelines.registry import Version

SIGNED = find_spec("pipelines.signing") is not None
"""Whether this project signs versions; the gate `signature` is in the list if it does."""


def verify(layout: Layout, version: Version) -> str:
    """Return the fingerprint of the key that signed a version.

    Raises:
        UserError: If it is not signed, or the signature does not verify.
        Unavailable: If the registry does not answer.
    """
    return str(importlib.import_module("pipelines.signing").verify(layout, version))
