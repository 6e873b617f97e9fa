"""Texts cut into skills: every token coloured by the skill of its segment."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lens_skills.diagnostics import Segmentation
from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import Drawing, draws
from lens_skills.plotting.style import (
    BLACK,
    SMALL,
    About,
    Look,
    inches,
    joined,
    legend_above,
    series,
    settle,
    sheet,
    source,
)
from lens_skills.plotting.words import site_words

MOST_SKILLS = 5  # colours that can be told apart
_WIDE = 0.602  # of a letter of DejaVu Sans Mono, over its size
_ROW = 0.21  # inches of a line
_END = "⏎"


def segmentation(cut: Segmentation, *, n_texts: int = 8) -> Drawing:
    """The first texts, each token on the colour of the skill it was cut into.

    Where the pieces are known, the line below a token has the colour of its true skill, and an
    upright stroke stands where a piece begins. ``⏎`` is the end of a line in the text.

    Args:
        cut: From `lens_skills.diagnostics.segment`.
        n_texts: How many to draw.

    Frame: one row per token: ``text``, ``token``, ``skill``, ``true`` ("" where it is not known),
    ``begins`` and ``true_begins``.

    Raises:
        LensSkillsError: More than five skills, whose colours cannot be told apart; no text.
    """
    if len(cut.skills) > MOST_SKILLS or n_texts < 1:
        raise LensSkillsError(
            f"{len(cut.skills)} skills and {n_texts} texts cannot be drawn: at most {MOST_SKILLS} "
            "colours are told apart, and one text is the least."
        )
    frame = cut.tokens.loc[cut.tokens["text"] < n_texts]
    columns = ["text", "token", "skill", "true", "begins", "true_begins"]
    scores = ""
    if len(cut.scores):
        f1 = cut.frame().set_index("cuts")["f1"]
        scores = (
            f"boundary F1 (± {cut.tolerance} token) {f1['found']:.2f}, of equal lengths "
            f"{f1['equal']:.2f}, at random {f1['random']:.2f}, over {len(cut.scores):,} texts"
        )
    about = {
        "title": f"Texts cut into {', '.join(cut.skills)}",
        "lines": [
            joined(f"{len(cut.neurons):,} neurons", site_words(cut.site), *source(cut.provenance)),
            scores,
        ],
        "note": "Ground: the skill a token was cut into. "
        + ("Line below: its true skill; stroke: where a piece begins. " if len(cut.scores) else "")
        + f"The first {frame['text'].nunique()} texts. Not shown: that the model uses the neurons.",
        "skills": list(cut.skills),
    }
    return Drawing("segmentation", frame.loc[:, columns], about, name="segmentation")


@draws("segmentation", width="page")
def _draw_texts(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    room = int((look.width - 0.2) * 72 / (_WIDE * SMALL))
    cells = _laid_out(frame, room)
    n_lines = float(cells.loc[:, "line"].max()) + 1
    figure = sheet(look, n_lines * _ROW + 0.3, about)
    axis = figure.add_subplot()
    axis.set(xlim=(0, room), ylim=(n_lines, 0))
    axis.axis("off")
    colours = {skill: series(place)[0] for place, skill in enumerate(about["skills"])}
    grounds: list[Any] = [Patch(color=colours[skill], alpha=0.3, label=skill) for skill in colours]
    legend_above(axis, len(grounds), left=0, handles=grounds)
    settle(figure)
    size = 0.95 * inches(axis)[0] * 72 / room / _WIDE
    for row in cells.to_dict("records"):
        x, y, width = row["x"], row["line"], row["width"]
        axis.add_patch(
            Rectangle((x, y + 0.08), width, 0.72, color=colours[row["skill"]], alpha=0.3, lw=0)
        )
        if row["true"]:
            axis.add_patch(Rectangle((x, y + 0.8), width, 0.1, color=colours[row["true"]], lw=0))
        if row["true_begins"]:
            axis.plot([x, x], [y + 0.02, y + 0.92], color=BLACK, linewidth=1.1)
        text = row["shown"].strip()
        if text:
            lead = len(row["shown"]) - len(row["shown"].lstrip())
            axis.text(
                x + lead, y + 0.62, text, size=min(size, 1.3 * SMALL), family="DejaVu Sans Mono",
                va="baseline", color=BLACK,
            )  # fmt: skip
    return figure


def _laid_out(frame: pd.DataFrame, room: int) -> pd.DataFrame:
    """The line and place of each token: a text begins a line, and goes on in the next ones."""
    rows, line, x, text = [], -1.0, 0, None
    for row in frame.to_dict("records"):
        shown = str(row["token"]).replace("\n", _END)[:room]
        if row["text"] != text:
            line, x, text = line + (1.0 if text is None else 1.35), 0, row["text"]
        elif x + len(shown) > room:
            line, x = line + 1, 0
        rows.append(row | {"shown": shown, "line": line, "x": x, "width": len(shown)})
        x += len(shown)
    return pd.DataFrame(rows)
