"""`render`: a report as one HTML file that opens without a network.

What is read first is HTML and needs no script; the table of neurons, their pages and the graphs of
circuits are built from embedded JSON (`page_data`) by the JavaScript beside this file.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lens_skills.reporting.document import Document, Picture, Step
from lens_skills.reporting.page_data import (
    as_json,
    cells_of,
    columns_of,
    payload,
    plain,
    seen,
    strongest,
)

SCRIPTS = ("dom", "table", "neuron", "circuit", "main")
"""The parts of the page's script, in the order in which they are joined."""

STATIC_ROWS = 50
"""How many rows of the table of neurons stand in the page itself, for readers without scripts."""

_MINUS = "−"


_PLACES = re.compile(r"""\b(?:d|x|y|x1|x2|y1|y2)=["'][^"']*["']|\btranslate\([^)]*\)""")
_DIGITS = re.compile(r"(\.\d\d)\d+")


def render(document: Document) -> str:
    """The report as one HTML file: text, pictures, data and script in one; nothing is fetched.

    The same document gives the same bytes. Its texts may hold anything: markup is shown and not
    run, and characters that would not be seen (controls, changes of direction) are written out,
    ``⟨U+202E⟩``. A policy in the page lets no script run but its own, and nothing be fetched.

    Of a model so large that its correlations would not fit (800,000 numbers: 100,000 neurons under
    8 metrics), those of the strongest neurons are embedded, and the page says so; as it does where
    the table holds the first of its rows only.

    Args:
        document: As `gather` makes it.

    Returns:
        The text of the file, to be written as UTF-8.

    Example:
        >>> from lens_skills.reporting.document import Document
        >>> page = render(Document("Agreement", found=("Nothing.",), asked=(), data=()))
        >>> page.splitlines()[0]
        '<!doctype html>'
    """
    document = seen(document)
    every, total = strongest(document.every)
    columns = columns_of(document)
    script = _script()
    return _template().render(
        document=document,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(as_json(payload(document, every, total))),
        about=Markup(as_json(plain(document.about))) if document.about else "",
        columns=columns,
        rows=[cells_of(row, columns) for row in document.rows[:STATIC_ROWS]],
        steps=_steps(document.attrition),
        first=_first_picture(document.pictures),
        n_every=total,
        n_rows=max(document.n_rows, len(document.rows)),
    )


def _first_picture(pictures: Sequence[Picture]) -> Picture | None:
    """What is looked at before anything is read: r against effects, else the first there is."""
    return next((one for one in pictures if "effect_against_r" in one.anchor), None) or next(
        iter(pictures), None
    )


def _steps(steps: Sequence[Step]) -> list[tuple[Step, float | None]]:
    """Each step and the share of the one before that it left; None for the first, and of none."""
    before = [None, *(step.count for step in steps)]
    return [
        (step, step.count / last if last else None)
        for step, last in zip(steps, before, strict=False)
    ]


def _cell(value: Any, digits: int | None = None) -> str:
    """A value as the script writes it, too (`number` in page_dom.js)."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    text = f"{value:.{digits}f}" if digits is not None else f"{value:.4g}"
    if digits is None and float(value).is_integer():
        text = f"{value:.0f}"
    if not float(text):
        if value > 0 and digits is not None and digits >= 4:
            return f"<{10**-digits:.{digits}f}"  # a p that is not 0 is not written as 0
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def _numeric(rows: Sequence[Sequence[Any]]) -> list[bool]:
    """Of each column of a table, whether it holds numbers."""
    columns = zip(*rows[1:], strict=False)
    return [any(isinstance(value, int | float) for value in column) for column in columns]


def _shape(svg: str) -> Markup:
    """Width and height of a picture, so that the page does not move when it is drawn."""
    box = re.search(
        r"""<svg[^>]*?\sviewBox=["'][-\d.]+[ ,]+[-\d.]+[ ,]+([\d.]+)[ ,]+([\d.]+)["']""", svg
    )
    if not box:
        return Markup("")
    return Markup(' width="{:.0f}" height="{:.0f}"').format(float(box[1]), float(box[2]))


def _picture(svg: str) -> Markup:
    """The address of a picture that holds it whole.

    As an image and not as a part of the page: what is in it runs nothing, and its names do not meet
    those of other pictures.
    """
    svg = re.sub(
        r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S
    )
    svg = re.sub(r"\s*\n\s*", " ", svg.strip())
    # Hundredths of a point are not seen; scales (of letters) and colours keep their digits.
    svg = _PLACES.sub(lambda place: _DIGITS.sub(r"\1", place[0]), svg)
    # Quotation marks of attributes may be either; single ones need no escape in an address.
    if "'" not in svg:
        svg = svg.replace('"', "'")
    # What is left holds no quotation mark of an attribute, no & and no <: it needs no other escape.
    return Markup("data:image/svg+xml," + quote(svg, safe=" ='/:;,()-.@!*+[]{}|_~$?"))


def _anchor(name: str) -> str:
    return quote(name, safe="")


def _script() -> str:
    parts = "\n".join(_asset(f"page_{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


@cache
def _asset(name: str) -> str:
    text = files("lens_skills.reporting").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # a browser would, and the hash would not fit


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "cell": _cell,
        "picture": _picture,
        "shape": _shape,
        "numeric": _numeric,
        "anchor": _anchor,
    }
    return environment.from_string(_asset("page.html.j2"))
