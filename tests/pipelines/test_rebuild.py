"""A version made again: the same bytes, or the figures and a reason."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.registry.versions import Version
from pipelines.release.rebuild import Rebuilt, lines, tolerance
from pipelines.systems import git


@given(st.floats(0, 100), st.integers(2, 100_000))
def test_the_tolerance_is_that_of_two_independent_proportions(error: float, images: int) -> None:
    found = tolerance(error, images)
    assert 0 < found < 100 * 2  # never none: not even at an error of zero
    assert tolerance(error, 4 * images) <= found


def test_the_tolerance_covers_chance_as_often_as_it_says() -> None:
    draw, images, share = np.random.default_rng(0), 700, 0.02
    errors = 100 * draw.binomial(images, share, (2, 20_000)) / images
    covered = np.abs(errors[0] - errors[1]) <= tolerance(100 * share, images)
    assert 0.93 < covered.mean() < 0.98


def _rebuilt(error: float, same: bool = False) -> Rebuilt:
    packages = {"torch": ("2.12.0", "2.13.0")}
    return Rebuilt("ab" * 32, same, error, 2.0, tolerance(2.0, 700), packages, ("dirty",))


def test_what_is_told_names_bytes_figures_and_packages() -> None:
    from datetime import UTC, datetime

    version = Version("m", 3, datetime.now(UTC), "READY", (), "", {"onnx_sha256": "cd" * 32})
    assert _rebuilt(99.0, same=True).agrees
    near, far = _rebuilt(2.5), _rebuilt(30.0)
    assert near.agrees
    assert not far.agrees
    assert not _rebuilt(math.nan).agrees
    said = list(lines(version, far))
    assert said[:2] == ["warning: dirty", "package torch: 2.12.0 then, 2.13.0 now"]
    assert "DISAGREE: 30.00 % now, 2.00 % registered" in said[-1]
    assert "test errors agree" in list(lines(version, near))[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = make(tmp_path_factory.mktemp("rebuild") / "job")
    done = made.prong("run")
    assert done.code == 0, done.out + done.err
    return made


@pytest.mark.slow
def test_the_bytes_come_out_again_and_nothing_is_left(checkout: Checkout) -> None:
    # The checkout has moved on since.
    params_file.edit(checkout.root / "params.yaml", ["train.seed=5", "train.epochs=2"])
    done = checkout.prong("rebuild", "champion")
    assert done.code == 0, done.out + done.err
    assert "the same bytes" in done.out
    assert "data: made anew" not in done.out  # but restored
    assert list((checkout.root / ".prong/rebuild").iterdir()) == []
    assert len(checkout.run("git", "worktree", "list").out.splitlines()) == 1
    walked = checkout.prong("lineage", "1", "--json")
    assert walked.code == 0, walked.out + walked.err
    assert {link["verdict"] for link in json.loads(walked.out)} == {"holds"}


@pytest.mark.slow
def test_without_dvcs_cache_the_data_are_made_anew(checkout: Checkout) -> None:
    cache = checkout.root / ".dvc/cache"
    cache.rename(cache.with_name("away"))
    try:
        done = checkout.prong("rebuild", "1")
    finally:
        cache.with_name("away").rename(cache)
    assert done.code == 0, done.out + done.err
    assert "data: made anew" in done.out
    assert "the same bytes" in done.out


@pytest.mark.slow
def test_a_commit_that_is_gone_is_said(checkout: Checkout) -> None:
    program = (
        "from pathlib import Path; from pipelines.systems import mlflow as tracking;"
        "from pipelines.core.paths import Layout; c = tracking.connect(Layout(Path.cwd()));"
        "c.set_model_version_tag('prong-digits', '1', 'lineage.git_commit', '{}')"
    )
    commit = git.tell(checkout.root, "rev-parse", "HEAD")
    assert checkout.run("python", "-c", program.format("0" * 40)).code == 0
    try:
        done = checkout.prong("rebuild", "1")
    finally:
        assert checkout.run("python", "-c", program.format(commit)).code == 0
    assert done.code == 2
    assert "is not in this repository" in done.err
