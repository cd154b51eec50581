"""Text from outside: no way from it to the terminal but through the boundary."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.core import tables
from pipelines.core.text import clean, shown, shown_lines

ROOT = Path(__file__).parents[2]
NASTY = "odd answers in [/srv/cam3] \x1b[31m\x9b2J\u202eevil\u200b\r\n[bold]:smile: \udcff é 漢字"
SEEN = r"odd answers in [/srv/cam3] \x1b[31m\x9b2J\u202eevil\u200b\r\n[bold]:smile: \udcff é 漢字"
WHATEVER = st.text(st.characters(codec=None))  # surrogates as well


def printed(what: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False, force_terminal=True).print(what)
    return out.getvalue()


def test_what_moves_the_cursor_or_hides_is_made_visible() -> None:
    assert shown(NASTY) == SEEN
    assert shown("Grüße, привет, 日本語 👍 – a\\b") == "Grüße, привет, 日本語 👍 – a\\b"
    assert shown(7) == "7"
    assert shown_lines("a\x1b\nb") == "a\\x1b\nb"


@given(WHATEVER)
def test_any_text_becomes_one_harmless_line(text: str) -> None:
    found = shown(text)
    assert not {unicodedata.category(one) for one in found} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    found.encode()
    assert shown(found) == found


@given(WHATEVER, st.integers(1, 40))
def test_typed_text_can_be_stored(text: str, longest: int) -> None:
    found = clean(text, longest)
    found.encode()
    assert len(found) <= longest
    assert found == " ".join(found.split())


def test_typed_text_keeps_its_words() -> None:
    assert clean(" too \n slow\tnow ", 100) == "too slow now"
    assert clean("caf\udce9", 100) == "caf\ufffd"
    assert clean("abcdef", 4) == "abc…"


def test_a_table_reads_no_cell_as_markup_and_prints_no_control_character() -> None:
    cell = tables.Styled(NASTY, "bold red")
    text = printed(tables.table((NASTY, ""), [(NASTY, cell)], title=NASTY))
    words = text.replace("\x1b[0m", "").replace("\x1b[1;31m", "").replace("\x1b[1m", "")
    assert words.replace("\x1b[3m", "").count(SEEN) == 4
    assert "\x1b[31m" not in text
    assert "\x1b[1;31m" in text  # the style that this program asked for


@given(WHATEVER)
def test_no_text_breaks_a_table_or_a_line(text: str) -> None:
    for what in (tables.line(text, tables.Styled(text, "red")), tables.table([text], [[text]])):
        assert "\x1b[31m" not in printed(what).replace("\x1b[31m", "", 1)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_every_output_takes_every_text(encoding: str) -> None:
    program = (
        "import json; from pipelines.core.text import print_anything; print_anything();"
        "print(json.dumps('é 漢 👍 \\udcff', ensure_ascii=False)); print('caf\\udce9 👍')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONIOENCODING": encoding, "LANG": "C"},
        capture_output=True,
        check=True,
    )
    said, plain = done.stdout.decode(encoding).splitlines()
    assert json.loads(said) == "é 漢 👍 \udcff"
    assert plain.startswith("caf\\udce9")
