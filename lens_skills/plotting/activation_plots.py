"""One neuron's activation, example by example: against a metric, and in each class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from einops import einsum
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.drawing import MANY, Column, Drawing, draws, finite
from lens_skills.plotting.style import (
    BLACK,
    DATA,
    GREY,
    SMALL,
    About,
    Look,
    count,
    halo,
    joined,
    name_lines,
    series,
    settle,
    sheet,
    signed,
    widest,
    with_unit,
)
from lens_skills.plotting.words import metric_words, place_words, shortened
from lens_skills.results import file_name

_COLUMNS = ["what", "x", "metric", "activation", "low", "high", "share"]
_LABEL = 44  # letters of an axis, at most
_CLASSES, _CLASS_ROW = 12, 0.36  # classes at most; inches of each


def activation_scatter(
    activation: Column,
    values: Column,
    *,
    name: str,
    metric: str,
    unit: str | None = None,
    site: str = "",
    position: str = "",
    groups: Sequence[str] | None = None,
    about: str = "",
    exploratory: bool = False,
) -> Drawing:
    """Each example's activation of one neuron against its metric, with the linear fit.

    A metric of 0 and 1 is drawn as two strips (points spread sideways by chance only) beside
    their densities, with the class means. Otherwise the line is the least-squares fit of the
    activation and its 95 % band; with ``groups`` the band is that of a cluster-robust sandwich.

    Args:
        activation: One number per example.
        values: The metric of the same examples.
        name: Of the neuron, e.g. ``L17N635``.
        metric: Its name; ``unit`` is put behind it in brackets.
        site: Hook point, and ``position``: where in the prompt the activation was read.
        groups: The group of each example.
        about: What is said beside the count of examples, such as model and task.
        exploratory: Stamp it.

    Frame: ``what`` (example, fit, class mean, histogram), ``x`` as drawn (with its sideways
    shift), the ``metric`` and ``activation`` there, the ends ``low`` and ``high`` of the band or of
    a bin of activation, and the ``share`` of its class in that bin.

    Raises:
        LensSkillsError: Columns of different length, fewer than 3 examples, or not finite.

    Assumes: independent examples, or independent groups where given.
    Source: Liang and Zeger 1986 (the sandwich over groups), t with groups - 1 degrees of freedom.

    >>> import torch
    >>> x = torch.linspace(0, 1, 20)
    >>> drawing = activation_scatter(2 * x + 1, x, name="L1N2", metric="sure")
    >>> len(drawing.frame.query("what == 'example'"))
    20
    """
    y, x = finite(activation, "activation"), finite(values, "metric")
    n_groups = _count_groups(len(y), len(x), "metric values", groups)
    if len(x) < 3:
        raise LensSkillsError(f"{len(x)} examples are too few for a fit; 3 at least.")
    constant = x.std() == 0 or y.std() == 0
    r = "constant" if constant else f"r = {signed(float(np.corrcoef(x, y)[0, 1]))}"
    binary = bool(np.isin(x, (0, 1)).all())
    if binary:
        note = "Line: mean of the class; beside the points, their distribution."
        frame = _strips(x, y)
    else:
        note = "" if x.std() == 0 else "Line: least squares, with the 95 % band of the mean."
        frame = _fit(x, y, None if groups is None else np.asarray(groups))
    said = {
        "title": f"{name} against {metric_words(metric)}: {r}",
        "lines": _lines(site, position, about, count(len(x), n_groups)),
        "note": note,
        "exploratory": exploratory,
        "binary": binary,
        "xlabel": with_unit(metric, unit),
        "ylabel": f"activation of {name}",
    }
    return Drawing("activation_scatter", frame, said, name=file_name("activation", name, metric))


@draws("activation_scatter")
def _draw_scatter(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    figure = sheet(look, 2.35, about)
    axis = figure.add_subplot()
    axis.set_xlabel(shortened(about["xlabel"], _LABEL))
    axis.set_ylabel(shortened(about["ylabel"], _LABEL // 2))
    (_draw_strips if about["binary"] else _draw_fit)(axis, frame)
    return settle(figure)


def _fit(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> pd.DataFrame:
    parts = [pd.DataFrame({"what": "example", "x": x, "metric": x, "activation": y})]
    if x.std() > 0:
        parts.append(fit_band(x, y, np.linspace(x.min(), x.max(), 61), groups))
    return _whole(parts)


def _draw_fit(axis: Axes, frame: pd.DataFrame) -> None:
    dots, line = (frame.loc[frame["what"] == what] for what in ("example", "fit"))
    axis.scatter(
        dots["x"], dots["activation"], s=7, color=DATA, alpha=0.45, linewidth=0,
        rasterized=len(dots) > MANY,
    )  # fmt: skip
    if len(line):
        axis.fill_between(line["x"], line["low"], line["high"], color=BLACK, alpha=0.18, lw=0)
        axis.plot(line["x"], line["activation"], color=BLACK, linewidth=1.2)


def fit_band(
    x: np.ndarray, y: np.ndarray, at: np.ndarray, groups: np.ndarray | None = None
) -> pd.DataFrame:
    """The least-squares line at some places, with the 95 % band of its mean.

    >>> x = np.arange(5.0)
    >>> fit_band(x, 2 * x, np.array([1.5]))["activation"].round(6).tolist()
    [3.0]
    """
    from scipy.stats import t

    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    slopes = inverse @ design.T @ y
    residual = y - design @ slopes
    if groups is None:
        freedom = len(x) - 2
        spread = inverse * (residual @ residual) / freedom
    else:
        # Within a group residuals go together, so their sums are what is independent.
        members = groups[:, None] == np.unique(groups)[None]
        sums = members.T.astype(float) @ (design * residual[:, None])
        n_groups = len(sums)
        freedom = max(1, n_groups - 1)
        spread = n_groups / freedom * inverse @ sums.T @ sums @ inverse
    places = np.stack([np.ones_like(at), at - x.mean()], axis=1)
    centre = places @ slopes
    error = np.sqrt(einsum(places, spread, places, "place a, a b, place b -> place"))
    half = t.ppf(0.975, freedom) * error
    return pd.DataFrame(
        {
            "what": "fit",
            "x": at,
            "metric": at,
            "activation": centre,
            "low": centre - half,
            "high": centre + half,
        }
    )


def _strips(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """Points, the histogram of each class and its mean."""
    aside = np.random.default_rng(0).uniform(-0.13, 0.13, len(x))  # to keep points apart
    edges = np.histogram_bin_edges(y, bins=min(40, max(8, len(y) // 12)))
    parts = []
    for side in (0, 1):
        mine = x == side
        if not mine.any():
            continue
        share = np.histogram(y[mine], edges)[0] / mine.sum()
        marks = {
            "example": {"x": side - 0.17 + aside[mine], "activation": y[mine]},
            "class mean": {"x": [side], "activation": float(y[mine].mean())},
            "histogram": {"low": edges[:-1], "high": edges[1:], "share": share},
        }
        parts += [
            pd.DataFrame({**columns}).assign(what=what, metric=side)
            for what, columns in marks.items()
        ]
    return _whole(parts)


def _draw_strips(axis: Axes, frame: pd.DataFrame) -> None:
    """Points beside a half-violin of their histogram, and the mean as a line with its value."""
    marks = dict(iter(frame.groupby("what")))
    tallest = float(marks["histogram"].loc[:, "share"].max())
    counts = []
    for side in (0, 1):
        dots, bins, means = (
            rows.loc[rows["metric"] == side]
            for rows in (marks["example"], marks["histogram"], marks["class mean"])
        )
        counts.append(len(dots))
        if not len(dots):
            continue
        colour, _, marker = series(side)
        axis.scatter(
            dots["x"], dots["activation"], s=6, color=colour, marker=marker, alpha=0.4,
            linewidth=0, rasterized=len(frame) > MANY,
        )  # fmt: skip
        axis.stairs(
            side + 0.04 + 0.36 * bins["share"] / tallest,
            [*bins["low"], bins["high"].iloc[-1]], baseline=side + 0.04,
            orientation="horizontal", fill=True, color=colour, alpha=0.55,
        )  # fmt: skip
        mean = means["activation"].iloc[0]
        axis.plot([side - 0.32, side + 0.42], [mean, mean], color=BLACK, linewidth=1.1)
        text = signed(mean, plus=False)
        halo(axis.annotate(text, (side + 0.44, mean), size=SMALL, va="center", ha="left"))
    axis.set_xticks([0, 1], [f"{side} (n = {n:,})" for side, n in enumerate(counts)])
    axis.set_xlim(-0.45, 1.66)


def _whole(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of all marks, with the same columns for every kind of metric."""
    return pd.concat([part.reindex(columns=_COLUMNS) for part in parts], ignore_index=True)


def activation_by_class(
    activation: Column,
    classes: Sequence[str | int | bool] | np.ndarray,
    *,
    name: str,
    metric: str,
    site: str = "",
    position: str = "",
    groups: Sequence[str] | None = None,
    bins: int = 30,
    about: str = "",
    exploratory: bool = False,
) -> Drawing:
    """How one neuron's activation is distributed in each class: a row of bars per class.

    All rows have the same bins and the same scale (share of the class in a bin), so that classes
    of different size compare. The line is the mean of the class, dashed that of all examples. For
    two classes with their points, or a metric of numbers: `activation_scatter`.

    Args:
        activation: One number per example.
        classes: The class of each example: a name, or a number.
        name: Of the neuron, e.g. ``L17N635``.
        metric: What the classes are.
        site: Hook point, and ``position``: where in the prompt the activation was read.
        groups: The group of each example, counted in the caption.
        bins: Of equal width, over the range of all examples.
        about: What is said beside the count of examples, such as model and task.
        exploratory: Stamp it.

    Frame: one row per class and bin: class low high count share, and the class's n, mean and std.

    Raises:
        LensSkillsError: Columns of different length, not finite, or none or too many classes.

    >>> drawing = activation_by_class([0.0, 1.0, 2.0], ["a", "a", "b"], name="L1N2", metric="rule")
    >>> drawing.frame.groupby("class")["count"].sum().tolist()
    [2, 1]
    """
    y = finite(activation, "activation")
    names = [_name(value) for value in classes]
    n_groups = _count_groups(len(y), len(names), "classes", groups)
    distinct = sorted(set(names))
    if not 1 <= len(distinct) <= _CLASSES:
        raise LensSkillsError(f"{len(distinct)} classes: draw 1 to {_CLASSES} of them.")
    said = {
        "title": f"{name} by {metric_words(metric)}",
        "lines": _lines(site, position, about, count(len(y), n_groups)),
        "note": "Bars: share of the class. Line: its mean. Dashed: mean of all examples.",
        "exploratory": exploratory,
        "mean": float(y.mean()),
        "xlabel": f"activation of {name}",
    }
    frame = _frame(y, np.array(names, dtype=object), distinct, bins)
    name = file_name("activation_by_class", name, metric)
    return Drawing("activation_by_class", frame, said, name=name)


@draws("activation_by_class")
def _draw_classes(frame: pd.DataFrame, about: About, look: Look) -> Figure:
    distinct = list(dict.fromkeys(frame["class"]))
    figure = sheet(look, _CLASS_ROW * len(distinct) + 0.45, about)
    axis = figure.add_subplot()
    _rows(axis, frame, distinct, about["mean"], look.width)
    axis.set_xlabel(shortened(about["xlabel"], _LABEL))
    return settle(figure)


def _count_groups(
    n_activations: int, n_others: int, others: str, groups: Sequence[str] | None
) -> int | None:
    """How many groups there are; columns of different length are refused."""
    lengths = {n_activations, n_others} | ({len(groups)} if groups is not None else set())
    if len(lengths) > 1:
        raise LensSkillsError(
            f"{n_activations} activations, {n_others} {others}"
            + ("" if groups is None else f", {len(groups)} groups")
            + ": one of each per example is needed."
        )
    return None if groups is None else len(set(groups))


def _lines(site: str, position: str, about: str, size: str) -> list[str]:
    return [place_words(site, position), joined(about, size)]


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
    tallest = float(frame.loc[:, "share"].max())
    for place, one in enumerate(distinct):
        rows = frame.loc[frame["class"] == one].to_dict("list")
        foot = len(distinct) - 1 - place
        edges = [*rows["low"], rows["high"][-1]]
        heights = foot + 0.88 * np.array(rows["share"]) / tallest
        axis.stairs(heights, edges, baseline=foot, fill=True, color=DATA, alpha=0.7)
        axis.plot([edges[0], edges[-1]], [foot, foot], color=GREY, linewidth=0.4)
        mean = rows["mean"][0]
        axis.plot([mean, mean], [foot, foot + 0.92], color=BLACK, linewidth=1.2)
    axis.axvline(middle, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7)
    sizes = dict(zip(frame["class"], frame["n"], strict=True))
    shown = {one: shortened(one, _LABEL // 2) for one in distinct}
    labels = [f"{shown[one]} (n = {sizes[one]:,})" for one in distinct]
    if widest(labels) > 0.4 * width:
        labels = [f"{shown[one]}\nn = {sizes[one]:,}" for one in distinct]
    name_lines(axis, [len(distinct) - 1 - k + 0.4 for k in range(len(distinct))], labels)
    axis.set_ylim(-0.08, len(distinct) + 0.05)
