"""The gate `signature` takes what verifying a version says, whatever that is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from checkout import Checkout
from sabotage import MODEL

from pipelines import registry, release, tracking
from pipelines.errors import Unavailable, UserError
from pipelines.gates import judging
from pipelines.gates.evidence import Evidence
from pipelines.gates.finding import Finding

Make = Callable[..., Checkout]


def found(
    made: Checkout, patch: pytest.MonkeyPatch, said: str | Exception, scratch: Path
) -> Finding:
    """What the gate makes of a verification that returns or raises something."""

    def verify(layout: object, version: registry.Version) -> str:
        assert (layout, version.number) == (made.layout, 1)
        if isinstance(said, Exception):
            raise said
        return said

    signing = ModuleType("pipelines.signing")
    signing.verify = verify  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "pipelines.signing", signing)
    version = registry.get_version(tracking.connect(made.layout), MODEL, 1)
    evidence = Evidence(made.layout, made.params, version, None, None, scratch)
    return judging._found("signature", judging._ALL["signature"], evidence)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("SHA256:1234", "pass"),
        (UserError("model.onnx.sig: absent"), "fail"),
        (ValueError("a bundle of another kind"), "not run"),
    ],
)
def test_only_a_key_lets_through(
    checkout: Make,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    said: str | Exception,
    verdict: str,
) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    finding = found(made, monkeypatch, said, tmp_path)
    assert finding.verdict == verdict
    assert str(said) in finding.reason


def test_a_registry_that_is_away_is_no_verdict(
    checkout: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    with pytest.raises(Unavailable):
        found(made, monkeypatch, Unavailable("away"), tmp_path)
