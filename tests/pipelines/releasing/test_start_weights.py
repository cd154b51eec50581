"""The weights of a released version, brought for a training that starts from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from released_checkout import MODEL, model_of

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.provenance.attachments import CARD
from pipelines.registry import versions as registry
from pipelines.registry.start_weights import bring, bring_again
from pipelines.registry.version_files import NotReleased
from pipelines.release import audit
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.training.start_files import NoStart, Start, read

Make = Callable[..., FinishedCheckout]


def _params(made: FinishedCheckout, asked: str) -> Params:
    params = made.with_margin(0.9)
    return replace(params, train=replace(params.train, checkpoint_from=asked))


def _release(made: FinishedCheckout, asked: str = "", *, promoted: bool = True) -> int:
    """Register the model, with weights of its own, and promote it."""
    made.layout.weights.write_bytes(b"weights of " + made.layout.onnx.read_bytes()[-40:])
    params = _params(made, asked)
    number = release.register(made.layout, params, None).version
    if promoted:
        assert promotion.promote(made.layout, params, number).promoted
    return number


def _again(layout: Layout, noise: float) -> FinishedCheckout:
    return FinishedCheckout.make(layout, noise, 0)


def _lineage(layout: Layout, number: int) -> dict[str, str]:
    return registry.find_version(layout, MODEL, str(number)).under(registry.LINEAGE)


def _brought(layout: Layout) -> Path:
    return layout.root / "data/start/weights.safetensors"


def test_the_champion_is_brought_as_it_was_released(checkout: Make) -> None:
    made = checkout()
    layout = made.layout
    assert bring(layout, _params(made, "")) is None
    assert bring(layout, _params(made, "champion")) == NoStart("champion")
    number = _release(made)
    kept = layout.weights.read_bytes()
    made = _again(layout, 0.5)
    for asked in ("champion", "v1", "1"):
        start = bring(layout, _params(made, asked))
        assert isinstance(start, Start)
        assert (start.version, start.asked) == (number, asked)
        assert start.sha256 == registry.find_version(layout, MODEL, "1").sha256
        assert _brought(layout).read_bytes() == kept
        assert read(layout.root, asked) == start
    assert bring(layout, _params(made, "")) is None
    assert not _brought(layout).exists()


def test_what_cannot_be_started_from_is_said(checkout: Make) -> None:
    made = checkout()
    layout = made.layout
    _release(made)
    with pytest.raises(UserError, match=r"'v7': .* version 7: does not exist; there are: 1"):
        bring(layout, _params(made, "v7"))
    made = _again(layout, 0.5)
    _release(made, promoted=False)
    with pytest.raises(NotReleased, match=r"'2': .* no signed statement"):
        bring(layout, _params(made, "2"))
    # Exchanged in the store, and nothing in the cache any more.
    model_of(layout, 1).with_name("weights.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="damaged or was exchanged"):
        bring(layout, _params(made, "1"))
    assert not list((layout.state / "cache").glob("*.safetensors"))
    made.layout.weights.unlink()
    made = _again(layout, 0.6)
    params = made.with_margin(0.9)
    number = release.register(layout, params, None).version
    assert promotion.promote(layout, params, number).promoted
    with pytest.raises(UserError, match="its weights were not kept"):
        bring(layout, _params(made, "champion"))


def test_the_lineage_says_where_a_version_started_and_the_start_stays(
    checkout: Make, tmp_path: Path
) -> None:
    made = checkout()
    layout = made.layout
    assert bring(layout, _params(made, "champion")) == NoStart("champion")
    first = _release(made, "champion")
    assert _lineage(layout, first)["started_from"] == "scratch"
    # The same data, parameters and code: what the champion itself started from.
    assert bring(layout, _params(made, "champion")) == NoStart("champion")
    # Others: the champion.
    made = _again(layout, 0.5)
    wanted = _params(made, "champion")
    wanted = replace(wanted, train=replace(wanted.train, epochs=9))
    start = bring(layout, wanted)
    assert isinstance(start, Start)
    assert start.version == first
    layout.weights.write_bytes(b"tuned")
    second = release.register(layout, wanted, None).version
    assert promotion.promote(layout, wanted, second).promoted
    said = _lineage(layout, second)
    assert said["started_from"] == f"v{first} {start.sha256}"
    assert said["weights_sha256"] == sha256_file(layout.weights)
    assert said["training_hash"] != _lineage(layout, first)["training_hash"]
    assert bring(layout, wanted) == start  # again: nothing new
    card = model_of(layout, second).with_name(CARD).read_text()
    assert f"started from the weights of version {first} (sha256 `{start.sha256}`)" in card
    links = {
        link.name: link for link in audit.walk(layout, registry.find_version(layout, MODEL, "2"))
    }
    assert links["started from"].verdict == "holds"
    # Elsewhere, as a rebuild does.
    bring_again(layout, tmp_path / "tree", MODEL, "champion", said["started_from"])
    assert read(tmp_path / "tree", "champion") == start
    with pytest.raises(UserError, match="is another one by now"):
        bring_again(layout, tmp_path / "tree", MODEL, "champion", f"v{first} {'b' * 64}")
