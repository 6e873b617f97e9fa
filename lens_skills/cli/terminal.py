"""What is printed, whatever the terminal can show: its characters, its width, its colours."""

import codecs
import os
import shutil
import sys
import textwrap
import unicodedata
from typing import Any

# What a terminal that lacks a character shows instead.
_INSTEAD = {
    "→": "->", "←": "<-", "↔": "<->", "·": ".", "•": "*", "−": "-", "–": "-", "—": "-", "…": "...",
    "×": "x", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "±": "+/-", "∞": "inf", "√": "sqrt",
    "\u2018": "'", "’": "'", "“": '"', "”": '"', "━": "=", "─": "-", "│": "|", "∈": "in",
    "\u03b1": "alpha", "β": "beta", "δ": "delta", "Δ": "Delta", "ε": "epsilon", "η": "eta",
    "λ": "lambda", "μ": "mu", "π": "pi", "\u03c1": "rho", "\u03c3": "sigma", "Σ": "sum",
    "τ": "tau", "⟨": "<", "⟩": ">",
}  # fmt: skip


def plain_text(text: str) -> str:
    """A text in ASCII: signs by what they mean, letters without their accents, else ``?``.

    >>> plain_text("46,080 neurons → 18 · é")
    '46,080 neurons -> 18 . e'
    """
    parts = (_INSTEAD.get(sign) or unicodedata.normalize("NFKD", sign) for sign in text)
    folded = (part.encode("ascii", "ignore").decode() for part in parts)
    return "".join(new or "?" for new in folded)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain_text(error.object[error.start : error.end]), error.end


codecs.register_error("lens-skills", _replaced)


def make_printable(*streams: Any) -> None:
    """From now on no character that a stream cannot encode is an error; see `plain_text`."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lens-skills")


def say(text: str, *, colour: int | None = None) -> None:
    """A line beside the result, on stderr: folded where a terminal shows it, coloured if it can."""
    shown = sys.stderr.isatty()
    if shown or "COLUMNS" in os.environ:
        width = max(shutil.get_terminal_size().columns, 20)
        lines = [line if line[:1] == " " else _folded(line, width) for line in text.split("\n")]
        text = "\n".join(lines)  # what is to be typed is indented, and stays whole
    plain = not shown or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    print(text if plain or colour is None else f"\x1b[{colour}m{text}\x1b[0m", file=sys.stderr)


def _folded(line: str, width: int) -> str:
    return textwrap.fill(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
