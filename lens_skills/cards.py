"""Lines of printed cards: at most `CARD_WIDTH` columns, whatever names stand in them."""

import re
import textwrap

CARD_WIDTH = 80
"""Columns of a printed card."""


def fold(card: str) -> str:
    """A card whose longer lines go on in the next one, four columns further in.

    >>> max(len(line) for line in fold("  " + "word " * 40).splitlines()) <= CARD_WIDTH
    True
    """
    lines = []
    for line in card.split("\n"):
        inside = min(len(line) - len(line.lstrip()), 8)
        if len(line) <= CARD_WIDTH:
            lines.append(line)
            continue
        # What stood in columns cannot any longer: two spaces still keep it apart.
        text = re.sub(" {3,}", "  ", line.strip())
        lines += card_lines(text, indent=inside, hang=4)
    return "\n".join(lines)


def card_lines(text: str, *, indent: int = 0, hang: int = 2) -> list[str]:
    """A sentence of a card as lines of at most `CARD_WIDTH` columns.

    Args:
        text: Without line breaks of its own.
        indent: Spaces before the first line.
        hang: Further spaces before the lines that go on.

    >>> [len(line) for line in card_lines("word " * 20, indent=2)]
    [76, 28]
    """
    return textwrap.wrap(
        text,
        CARD_WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_on_hyphens=False,
    )
