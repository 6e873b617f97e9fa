"""`html`: how results, tasks and examples show themselves in a notebook.

Markup with inline styles alone, as pages that show notebooks remove scripts and style sheets. No
ground and no ink is set but those of a token's shade, so that it reads in light and in dark.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from html import escape
from typing import Any
from unicodedata import bidirectional

from lens_skills.activations.components import Components
from lens_skills.activations.excerpts import Excerpt
from lens_skills.cards import Tabled, fold
from lens_skills.explanation import ActivatingExamples, Explanations
from lens_skills.explanation.activation_quantiles import ActivationQuantile, NeuronExamples
from lens_skills.explanation.explanations import Explanation
from lens_skills.generation import Graded
from lens_skills.interventions import Audit, Verdict
from lens_skills.plotting import figures
from lens_skills.plotting.drawing import Drawing
from lens_skills.plotting.result_figures import OWN
from lens_skills.reporting.paper_cells import printable, rounded
from lens_skills.reporting.paper_columns import paper_table
from lens_skills.scoring import MetricScores, Scores, Selection
from lens_skills.studies import Study
from lens_skills.tasks import Task

_ROWS, _NEURONS, _EXCERPTS, _TOKENS, _LETTERS = 10, 3, 2, 120, 400
_BELOW, _ABOVE = "176,106,52", "84,118,158"
"""Red, green and blue of the shades: an activation below 0, and above."""
_MOST = 0.62  # of a shade: text stays readable on it, black or white
_PRE = "overflow-x:auto;white-space:pre;line-height:1.25;font-size:0.85em;margin:0 0 0.6em"
_SIDE_BY_SIDE = "display:flex;flex-wrap:wrap;gap:0 2em;align-items:flex-start"
_CELL = "padding:0.1em 0.7em;vertical-align:top"


def html(shown: Any) -> str:
    """A result in a notebook: its card, its figure in place, tokens, its table folded away.

    Where a figure or a table cannot be made, it is left out.
    """
    above, below = [card(fold(repr(shown)))], list[str]()
    for more, parts in ((_picture, above), (_tokens, below), (_table, below)):
        with suppress(Exception):  # the card stands whatever fails beside it
            parts += more(shown)
    return (
        f'<div style="max-width:100%"><div style="{_SIDE_BY_SIDE}">{"".join(above)}</div>'
        f"{''.join(below)}</div>"
    )


def card(text: str) -> str:
    """A text in columns, as it is printed."""
    return f'<pre dir="ltr" style="{_PRE}">{escape(plain(text))}</pre>'


def plain(text: str) -> str:
    """A text in which no character turns the writing direction or controls a terminal.

    >>> plain("a\\tb") == "a\\tb", len(plain("a" + chr(0x202E) + chr(27)))
    (True, 3)
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if (c < " " and c not in "\n\t") or bidirectional(c) in _TURNS or "\ud800" <= c <= "\udfff"
        else c
        for c in text
    )


_TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def _picture(shown: Any) -> Iterator[str]:
    drawing = main_figure(shown)
    if drawing is None:
        return
    data = base64.b64encode(drawing._repr_png_()).decode()
    width = round(125 * drawing.figure.get_figwidth())
    yield (
        f'<img alt="{escape(plain(drawing.caption))}" width="{width}" '
        f'style="max-width:100%;height:auto" src="data:image/png;base64,{data}">'
    )


def main_figure(shown: Any) -> Drawing | None:
    """The one figure that says most of a result; None of a kind that has none.

    Raises:
        LensSkillsError: There is nothing to draw.
    """
    if isinstance(shown, Scores):
        several = len(shown.metrics) > 1
        return figures.metric_heatmap(shown) if several else _distribution(shown[shown.metrics[0]])
    for kind, draw in _FIGURES.items():
        if isinstance(shown, kind):
            return draw(shown)
    draw = OWN.get(type(shown).__name__)
    return None if draw is None else draw(shown)


def _distribution(scores: Any) -> Drawing:
    return figures.r_distribution(scores)


_FIGURES: Mapping[type, Callable[[Any], Drawing]] = {
    Audit: lambda audit: figures.effect_forest(audit.verdict),
    MetricScores: _distribution,
    Selection: lambda selection: figures.attrition(selection),
    Study: lambda study: figures.attrition(study.selection, study.verdict),
    Verdict: lambda verdict: figures.effect_forest(verdict),
}


def _table(shown: Any) -> Iterator[str]:
    if isinstance(shown, Task):
        yield folded(f"the first of {len(shown):,} examples", table(*_of_task(shown)))
    elif isinstance(shown, Graded):
        yield folded(f"the first of {len(shown):,} texts", table(*_of_texts(shown)))
    elif isinstance(shown, Components):
        rows = [[unit.name, unit.layer, unit.site] for unit in shown[: 5 * _ROWS]]
        yield folded(f"{len(shown):,} units", table(["name", "layer", "site"], rows))
    if isinstance(shown, Tabled):
        yield from _paper(shown)


def _paper(result: Any) -> Iterator[str]:
    made = paper_table(result, most=_ROWS)
    about = f'<p style="max-width:50em">{escape(made.caption)}</p>'
    title = "table · .to_latex() and .to_markdown() print it for a paper"
    yield folded(title, about + table(made.heads, made.rows, made.numeric))


def _of_task(task: Any) -> tuple[list[str], list[list[Any]]]:
    labels = list(dict.fromkeys(name for one in task.examples[:_ROWS] for name in one.labels))
    rows = [
        [one.id, one.prompt, one.answer, one.group, *(one.labels.get(name) for name in labels)]
        for one in task.examples[:_ROWS]
    ]
    return ["id", "prompt", "answer", "group", *labels], rows


def _of_texts(graded: Any) -> tuple[list[str], list[list[Any]]]:
    grades = graded.grades
    rows = [
        [example.id, example.prompt, text, *(float(values[place]) for values in grades.values())]
        for place, (example, text) in enumerate(
            zip(graded.examples[:_ROWS], graded.texts[:_ROWS], strict=True)
        )
    ]
    return ["id", "prompt", "text", *grades], rows


def folded(title: str, content: str) -> str:
    """Content that opens at a click on its title."""
    return f'<details><summary style="cursor:pointer">{escape(title)}</summary>{content}</details>'


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[bool] = ()) -> str:
    """A table, its numbers to the right; long texts are cut."""
    aligned = [*numeric, *[False] * (len(heads) - len(numeric))]

    def row(tag: str, cells: Sequence[Any]) -> str:
        made = ""
        for cell, number in zip(cells, aligned, strict=True):
            right = number or (isinstance(cell, int | float) and not isinstance(cell, bool))
            text = f"{cell:.4g}" if isinstance(cell, float) and cell == cell else printable(cell)
            text = text if len(text) <= _LETTERS else f"{text[:_LETTERS]} …"
            side = "right" if right else "left"
            made += f'<{tag} style="text-align:{side};{_CELL}">{escape(text)}</{tag}>'
        return f"<tr>{made}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return (
        f'<div style="overflow-x:auto"><table><thead>{row("th", list(heads))}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tokens(shown: Any) -> Iterator[str]:
    """The examples of neurons, token by token, under one legend."""
    rows = list(_of_tokens(shown))
    if not rows:
        return
    yield legend()
    for title, excerpts in rows:
        most = max((abs(v) for _, one in excerpts for v in one.values if v == v), default=0.0)
        if title:
            yield f"<p style='margin:0.6em 0 0.1em'><b>{escape(plain(title))}</b></p>"
        for name, one in excerpts:
            yield excerpt(one, most, name)


def _of_tokens(shown: Any) -> Iterator[tuple[str, list[tuple[str, Excerpt]]]]:
    """Of each neuron, its excerpts, each with the part of the range it is of."""
    if isinstance(shown, Excerpt):
        yield "", [("", shown)]
    elif isinstance(shown, NeuronExamples):
        yield (
            shown.name,
            [(part.name, one) for part in shown.quantiles for one in _ends(part)],
        )
    elif isinstance(shown, Explanation):
        ends = (("highest", shown.top), ("lowest", shown.bottom))
        yield shown.name, [(name, one) for name, some in ends for one in some[:_EXCERPTS]]
    elif isinstance(shown, ActivatingExamples | Explanations):
        for neuron in shown.neurons[:_NEURONS]:
            yield from _of_tokens(neuron)


def _ends(part: ActivationQuantile) -> Sequence[Excerpt]:
    """The highest of a part; of the lowest, the lowest."""
    return part.excerpts[-_EXCERPTS:] if part.name == "lowest" else part.excerpts[:_EXCERPTS]


def legend() -> str:
    """What the shades say."""
    steps = "".join(_span(f" {name} ", "", share) for name, share in _STEPS)
    return (
        f'<p style="margin:0.4em 0;white-space:pre-wrap">activation {steps} over the largest '
        "shown of the neuron; "
        f"{_outlined('outlined')}: the token it was read at; point at a token for its value</p>"
    )


_STEPS = (("−1", -1.0), ("−½", -0.5), ("0", 0.0), ("½", 0.5), ("1", 1.0))
_RING = "outline:1.5px solid currentColor;outline-offset:-1px"


def _outlined(text: str) -> str:
    return f'<span style="{_RING};padding:0 0.2em">{escape(text)}</span>'


def excerpt(one: Excerpt, most: float, name: str = "") -> str:
    """An example as a neuron reads it: every token shaded by its activation, which it tells.

    Args:
        one: The example.
        most: The |activation| of the darkest shade.
        name: The part of the range it is of.
    """
    first = 0
    if len(one.tokens) > _TOKENS:  # those around the one that was read
        centre = len(one.tokens) - 1 if one.read is None else one.read
        first = min(max(0, centre - _TOKENS // 2), len(one.tokens) - _TOKENS)
    last = first + _TOKENS
    spans = [
        _span(visible(token), rounded(value, 3, signed=True), value / most if most else 0.0,
              read=place == one.read)
        for place, (token, value) in enumerate(
            zip(one.tokens[first:last], one.values[first:last], strict=True), first
        )
    ]  # fmt: skip
    cut = ["… " if first else "", " …" if last < len(one.tokens) else ""]
    said = f"{name}  " if name else ""
    number = rounded(one.activation, 3, signed=True)
    return (
        f'<div dir="ltr" style="margin:0.15em 0;line-height:1.7"><span style="display:inline-block;'
        f'min-width:11em;opacity:0.75;white-space:pre">{escape(plain(said))}{number}</span>'
        f"<span style='font-family:monospace;white-space:pre-wrap'>{cut[0]}{''.join(spans)}{cut[1]}"
        "</span></div>"
    )


def _span(text: str, title: str, share: float, *, read: bool = False) -> str:
    """A token; ``share`` of the darkest shade, with its sign. Its direction stays within it."""
    style = [_RING] * read
    if share == share and abs(share) > 0.02:
        depth = min(abs(share), 1.0) * _MOST
        style.append(f"background:rgba({_BELOW if share < 0 else _ABOVE},{depth:.2f})")
    told = f' title="{escape(title)}"' if title else ""
    told += f' style="{";".join(style)}"' if style else ""
    return f"<bdi{told}>{escape(text)}</bdi>"


_VISIBLE = {ord(" "): "·", ord("\n"): "↵", ord("\t"): "⇥"}


def visible(token: str) -> str:
    """A token with its spaces and line breaks visible; an empty one as ∅.

    >>> visible(" is\\n")
    '·is↵'
    """
    return plain(token.translate(_VISIBLE))[:_LETTERS] or "∅"
