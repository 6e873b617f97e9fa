"""The table of associated and of predicted neurons: its columns with their words, its rows."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lens_skills.reporting.document import Cell, ColumnSpec
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.scoring.evidence import BADGE

_EVIDENCE = (
    ColumnSpec("neuron", "neuron", "Its layer, and its number in it."),
    ColumnSpec("layer", "layer", "Counted from 0.", 0),
    ColumnSpec(
        "grade", "grade",
        "A: causal, confirmed, beats the control task. B: the same, but not tried, undecided, or "
        "of an effect that its size explains. C: associated and confirmed. General: causal, and no "
        "association found. Empty: not confirmed.",
    ),
    ColumnSpec(
        "found_by", "found by",
        "Association: it carries the metric on both splits. Prediction: gradients expect an effect "
        "of the edit, with the same sign on both splits. Empty: neither.",
    ),
    ColumnSpec(
        "r", "r",
        "Correlation of its activation with the metric, -1 to 1, on the confirm split, on which it "
        "was not chosen; its 95 % interval, of this neuron by itself, respects groups.",
        2, ("low", "high"),
    ),
    ColumnSpec(
        "r_explore", "r explore",
        "The same on the explore split, on which it was chosen for being large: too large, more "
        "so the more neurons there are. Not for quoting.",
        2, ("explore_low", "explore_high"),
    ),
    ColumnSpec(
        "p_family", "p family",
        "The chance that any neuron of the model reaches its |r| where nothing is to be found "
        "(max-T over all neurons and positions, explore).", 4,
    ),
    ColumnSpec(
        "q_confirm", "q",
        "False discoveries among the neurons tested on confirm, if it and all of smaller p are "
        "believed (Benjamini–Hochberg).", 4,
    ),
    ColumnSpec(
        "q_control", "q control",
        "The same against a control task: random values of the input types, so that a neuron that "
        "only knows the words has a large one (over all neurons, explore).", 4,
    ),
    ColumnSpec(
        "excess", "excess",
        "|r| over that of random directions of the same layer: about 1 where the layer as a whole "
        "carries the metric and this neuron no more than any direction.", 1,
    ),
    ColumnSpec(
        "badge", "basis",
        f"{BADGE}: its |r| is beyond what random directions of its layer reach (q ≤ 5 %).",
    ),
)  # fmt: skip

_PREDICTED = (
    ColumnSpec(
        "predicted_confirm", "predicted",
        "The first-order effect of the edit, (new - old) · gradient, its mean on the confirm split "
        "with its 95 % interval by group: an estimate, in the unit of the effect.", 3,
        ("predicted_low", "predicted_high"),
    ),
    ColumnSpec(
        "q_predicted", "q predicted",
        "False discoveries among the neurons of largest predicted effect on explore "
        "(Benjamini–Hochberg).", 4,
    ),
)  # fmt: skip

_EFFECT = (
    ColumnSpec(
        "effect", "effect",
        "Mean change of the metric that effects are measured by when this neuron alone is edited: "
        "edited less clean, with its 95 % interval by group. Removing what supports the skill "
        "lowers the metric: negative. Empty where it was not tried.", 3,
        ("effect_low", "effect_high"),
    ),
    ColumnSpec(
        "effect_percent", "effect %",
        "The effect in % of the clean metric (or, where that cannot be told from 0, of the gap to "
        "the corrupted prompts).", 1, unit="%",
    ),
    ColumnSpec(
        "effect_q", "q effect",
        "False discoveries among the neurons tried, by the rank of |effect| among other neurons of "
        "the layer.", 4,
    ),
    ColumnSpec(
        "verdict", "verdict",
        "What the intervention shows. A large neuron's effect is no more than its size leads to "
        "expect. Empty: not tried.",
    ),
)  # fmt: skip

MOST_ROWS = 10_000
"""Of the table of a report: 2 MB."""

_STOPPED = ColumnSpec(
    "stopped_by", "stopped by", "The test that kept it from a better grade; empty where none did."
)
_POSITION = ColumnSpec("position", "position", "The token of the prompt at which it was read.")
_ANALYSIS = ColumnSpec("analysis", "of", "Task and metric that the numbers of this row are of.")


def columns(analyses: Sequence[Analysis], rows: Sequence[Mapping[str, Cell]]) -> Any:
    """The columns that hold anything, in the order in which they are read."""
    wanted = [*_EVIDENCE[:1], *([_ANALYSIS] if len(analyses) > 1 else []), *_EVIDENCE[1:4]]
    if len({row.get("position") for row in rows}) > 1:
        wanted.append(_POSITION)
    wanted += [*_EVIDENCE[4:], *_PREDICTED, *_unit(analyses), _STOPPED]
    held = {key for row in rows for key, value in row.items() if value not in (None, "")}
    return tuple(one for one in wanted if one.key in held or one.key in ("neuron", "grade"))


def _unit(analyses: Sequence[Analysis]) -> list[ColumnSpec]:
    """The columns of the effects, in the unit they share."""
    units = {one.verdict.effects.unit for one in analyses if one.verdict is not None}
    (effect, *others) = _EFFECT
    unit = units.pop() if len(units) == 1 else ""
    return [ColumnSpec(effect.key, effect.title, effect.help, 3, effect.interval, unit), *others]


def rows(
    analyses: Sequence[Analysis], names: Sequence[str], *, paged: Collection[str] = ()
) -> tuple[Mapping[str, Cell], ...]:
    """One row per neuron and analysis, those of the analyses that went furthest first.

    Of more than `MOST_ROWS` the first of each analysis, and of the neurons with a page all.
    """
    most, wanted = MOST_ROWS // max(1, len(analyses)), set(paged)
    found = []
    for one, name in zip(analyses, names, strict=True):
        labels = {ruling.name: ruling.label for ruling in one.rulings.values()}
        for place, row in enumerate(one.rows):
            if place < most or row["name"] in wanted:
                found.append(_row(row, name if len(analyses) > 1 else "", labels))
    return tuple(found)


def _row(row: Mapping[str, Any], analysis: str, labels: Mapping[str, str]) -> dict[str, Cell]:
    """A row of the evidence under the keys of the columns; its neuron's name is ``neuron``."""
    renamed = {"name": "neuron", "neuron": "index", "r_confirm": "r"}
    cells = {renamed.get(key, key): plain(value) for key, value in row.items()}
    if cells.get("verdict"):
        cells["verdict"] = labels.get(str(row["name"]), cells["verdict"])
    cells.pop("causal", None)
    return cells | ({"analysis": analysis} if analysis else {})


def plain(value: Any) -> Cell:
    """A number or text of a table; None where it is no number."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | float | int | bool) else str(value)


def frame_rows(frame: Any, most: int = 200) -> tuple[tuple[Cell, ...], ...]:
    """A table as its column names and its first rows."""
    if not len(frame):
        return ()
    head = tuple(str(name) for name in frame.columns)
    body = frame.head(most).itertuples(index=False, name=None)
    return (head, *(tuple(plain(value) for value in row) for row in body))
