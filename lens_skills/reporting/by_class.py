"""One neuron's activation in each class of examples, as histograms above one another."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Real
from matplotlib.axes import Axes
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.reporting.caption import count, file_name
from lens_skills.reporting.drawing import Drawing
from lens_skills.reporting.style import BLUE, COLUMN, GREY, SMALL, settle, sheet, style, text_width

_MOST = 12  # classes
_TALL = 0.36  # inches of a class


@style()
def activation_by_class(
    activation: Real[Tensor, " _"] | Real[np.ndarray, " _"] | Sequence[float],
    classes: Sequence[str | int | bool] | np.ndarray,
    *,
    name: str,
    label: str,
    site: str = "",
    position: str = "",
    groups: Sequence[str] | None = None,
    bins: int = 30,
    exploratory: bool = False,
    width: float = COLUMN,
) -> Drawing:
    """How one neuron's activation is distributed in each class: a row of bars per class.

    All rows have the same bins and the same scale (share of the class in a bin), so that classes
    of different size compare. The line is the mean of the class, dashed that of all examples. For
    two classes with their points, or a metric of numbers: `activation_scatter`.

    Args:
        activation: One number per example.
        classes: The class of each example: a name, or a number.
        name: Of the neuron, e.g. ``L17N635``.
        label: What the classes are.
        site: Hook point, and ``position``: where in the prompt the activation was read.
        groups: The group of each example, counted in the caption.
        bins: Of equal width, over the range of all examples.
        exploratory: Stamp it.
        width: Inches.

    Frame: one row per class and bin: class low high count share, and the class's n, mean and std.

    Raises:
        LensSkillsError: Columns of different length, not finite, or none or too many classes.

    >>> drawing = activation_by_class([0.0, 1.0, 2.0], ["a", "a", "b"], name="L1N2", label="rule")
    >>> drawing.frame.groupby("class")["count"].sum().tolist()
    [2, 1]
    """
    numbers = activation.detach().cpu().numpy() if isinstance(activation, Tensor) else activation
    y = np.asarray(numbers, dtype=np.float64)
    names = [_name(value) for value in classes]
    if len(names) != len(y) or (groups is not None and len(groups) != len(y)):
        raise LensSkillsError(
            f"{len(y)} activations, {len(names)} classes"
            + ("" if groups is None else f", {len(groups)} groups")
            + ": one of each per example is needed."
        )
    if not np.isfinite(y).all():
        place = int(np.flatnonzero(~np.isfinite(y))[0])
        raise LensSkillsError(f"the activation of example {place} is {y[place]}, not a number.")
    distinct = sorted(set(names))
    if not 1 <= len(distinct) <= _MOST:
        raise LensSkillsError(f"{len(distinct)} classes: draw 1 to {_MOST} of them.")
    frame = _frame(y, np.array(names, dtype=object), distinct, bins)
    where = " at ".join(part for part in (site, position) if part)
    n_groups = None if groups is None else len(set(groups))
    figure = sheet(
        width,
        _TALL * len(distinct) + 0.45,
        title=f"{name} by {label}",
        lines=[" · ".join(part for part in (where, count(len(y), n_groups)) if part)],
        note="Bars: share of the class. Line: its mean. Dashed: mean of all examples.",
        exploratory=exploratory,
    )
    axis = figure.add_subplot()
    _rows(axis, frame, distinct, float(y.mean()), width)
    axis.set_xlabel(f"activation of {name}")
    settle(figure)
    return Drawing(figure, frame, file_name("activation_by_class", name, label))


def _name(value: object) -> str:
    """A class as text; 1.0 and True are 1, as in the columns of a task."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | float) and float(value).is_integer():
        value = int(value)
    return str(value)


def _frame(y: np.ndarray, names: np.ndarray, distinct: list[str], bins: int) -> pd.DataFrame:
    edges = np.histogram_bin_edges(y, bins=bins)
    parts = []
    for one in distinct:
        mine = y[names == one]
        counts = np.histogram(mine, edges)[0]
        columns = {
            "class": one,
            "low": edges[:-1],
            "high": edges[1:],
            "count": counts,
            "share": counts / len(mine),
            "n": len(mine),
            "mean": mine.mean(),
            "std": mine.std(),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _rows(
    axis: Axes, frame: pd.DataFrame, distinct: list[str], middle: float, width: float
) -> None:
    tallest = float(frame["share"].max())
    for place, one in enumerate(distinct):
        rows = frame.loc[frame["class"] == one].to_dict("list")
        foot = len(distinct) - 1 - place
        edges = [*rows["low"], rows["high"][-1]]
        axis.stairs(
            foot + 0.88 * np.array(rows["share"]) / tallest,
            edges,
            baseline=foot,
            fill=True,
            color=BLUE,
            alpha=0.7,
        )
        axis.plot([edges[0], edges[-1]], [foot, foot], color=GREY, linewidth=0.4)
        mean = rows["mean"][0]
        axis.plot([mean, mean], [foot, foot + 0.92], color="black", linewidth=1.2)
    axis.axvline(middle, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    sizes = dict(zip(frame["class"], frame["n"], strict=True))
    labels = [f"{one} (n = {sizes[one]:,})" for one in distinct]
    if max(text_width(text, SMALL) for text in labels) > 0.4 * width:
        labels = [f"{one}\nn = {sizes[one]:,}" for one in distinct]
    axis.set_yticks([len(distinct) - 1 - k + 0.4 for k in range(len(distinct))], labels)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_ylim(-0.08, len(distinct) + 0.05)
