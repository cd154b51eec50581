"""Text that people or other systems wrote: cleaned where it comes in, escaped where it goes out."""

from __future__ import annotations

import codecs
import sys
import unicodedata
from io import TextIOWrapper

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2065\u3164\uffa0")
"""Characters that print as nothing although Unicode does not call them format characters."""
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control, format (bidi overrides, zero width), surrogate, line and paragraph separator."""


def shown(text: object) -> str:
    r"""Return text as one line that is safe to print on a terminal.

    What moves the cursor, changes colours, reverses the direction of writing or prints as nothing
    becomes a visible escape (`\x1b`, `\n`, `\u202e`), and so do surrogates, which no output takes.
    Everything else stays, in any script. Markup of rich is not escaped here: see
    `pipelines.core.tables`.

    Args:
        text: Anything; its `str` is taken.
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_visible, line))


def shown_lines(text: object) -> str:
    """Return text of several lines as `shown` returns each: for messages of this program."""
    return "\n".join(map(shown, str(text).split("\n")))


def clean(text: str, longest: int) -> str:
    """Return text that a person typed as one that can be stored.

    Bytes that were not UTF-8 become U+FFFD, runs of white space one space.

    Args:
        text: Such as an argument of a command.
        longest: Number of characters that are kept; what is cut ends with an ellipsis.
    """
    whole = "".join("\ufffd" if unicodedata.category(one) == "Cs" else one for one in text)
    line = " ".join(whole.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def print_anything() -> None:
    r"""Let stdout and stderr take every text, whatever their encoding.

    A character that the encoding lacks is written as `\uXXXX`, which JSON reads as well, instead of
    ending the program with a traceback.
    """
    codecs.register_error(_HANDLER, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


_HANDLER = "prong.escaped"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


def _visible(one: str) -> str:
    if one not in _INVISIBLE and unicodedata.category(one) not in _HIDDEN:
        return one
    if one in _SHORT:
        return _SHORT[one]
    code = ord(one)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )
