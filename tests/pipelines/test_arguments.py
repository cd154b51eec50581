"""What a person types: a mistake, or bytes that are not UTF-8, are one message and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from small_checkout import Checkout, make

from pipelines.cli.shared_arguments import _model_name
from pipelines.core import params_file
from pipelines.core.errors import UserError

NOT_UTF8 = b"caf\xe9"
TYPED = os.fsdecode(NOT_UTF8)
BAD_NAMES = ("../../etc", "", ".", "a/b", "a\n", "a b", "-x", TYPED, "é", "x" * 201)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    return make(tmp_path_factory.mktemp("arguments") / "job")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_models_name_is_checked_where_it_is_typed(name: str) -> None:
    with pytest.raises(UserError, match=r"--model .*allowed: up to 200 letters"):
        _model_name(name)


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name != TYPED])
def test_and_is_checked_by_the_same_rule_in_the_parameters(checkout: Checkout, name: str) -> None:
    params = checkout.root / "params.yaml"
    before = params.read_bytes()
    with pytest.raises(UserError, match=r"registry.model"):
        params_file.edit(params, [f"registry.model='{name}'"])
    assert params.read_bytes() == before


def test_a_models_name_that_is_one_passes() -> None:
    assert _model_name(None) is None
    assert _model_name("prong-digits.v2_X") == "prong-digits.v2_X"
    assert _model_name("x" * 200) == "x" * 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("history", "--model", "../../etc"),
        ("predict", "--model", TYPED, "x.png"),
        ("trace", TYPED),
        ("compare", TYPED, "1"),
        ("rollback", "--to", TYPED, "--reason", TYPED),
        ("data", "add", TYPED),
        ("run", "--set", TYPED),
        ("run", "--set", f"data.path={TYPED}"),
        ("gates", TYPED),
    ],
)
def test_it_is_one_message_and_exit_code_2(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    done = checkout.forked(*arguments)
    assert done.code == 2, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert done.err


def test_bytes_that_no_terminal_shows_reach_a_terminal_as_escapes(checkout: Checkout) -> None:
    nasty = b"data.path=\x1b[2J" + NOT_UTF8
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", "run", "--set", nasty],
        cwd=checkout.root,
        env=checkout.environment(PYTHONIOENCODING="ascii", LANG="C"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
