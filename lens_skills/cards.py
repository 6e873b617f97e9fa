"""What is printed: cards in lines of at most `CARD_WIDTH` columns, whatever names stand in them.

`Tabled`: what has a table to print and shows itself in a notebook, by the room above all others.
"""

import re
import textwrap
from importlib import import_module
from typing import Any

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


class Tabled:
    """What has a table that a paper prints, and shows itself in a notebook."""

    def to_markdown(self, *, most: int = 20) -> str:
        """The table a paper prints of the result, in Markdown, under a caption.

        Numbers are rounded, with their 95 % intervals; the caption says what was measured where
        and on how much.

        Args:
            most: How many rows at most; the caption says of how many.

        Raises:
            LensSkillsError: ``most`` below 1.
        """
        return str(showing("paper_tables").markdown(self, most=most))

    def to_latex(self, *, most: int = 20, label: str = "") -> str:
        """The same in LaTeX: a ``table`` to include, which needs the package ``booktabs``.

        Args:
            most: As in `to_markdown`.
            label: For ``\\ref``; default ``tab:`` and the kind of the result.

        Raises:
            LensSkillsError: ``most`` below 1; a label LaTeX cannot refer to.
        """
        return str(showing("paper_tables").latex(self, most=most, label=label))

    def _repr_html_(self) -> str:
        return str(showing("notebook_view").html(self))


def showing(module: str) -> Any:
    """A module of the room that shows results: above this one, so found when it is called."""
    return import_module(f"{__package__}.reporting.{module}")
