"""The leaderboard as a page: all tasks together, a picture, and what the numbers say in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from lens_skills.plotting import Drawing
from lens_skills.plotting.ranking_plots import leaderboard
from lens_skills.ranking import METHODS, MethodComparison, differences_over_tasks
from lens_skills.ranking.method_comparison import BASELINES

COMMAND = "python benchmarks/leaderboard.py"


def pooled(found: dict[str, MethodComparison]) -> pd.DataFrame:
    """One row per method: its share of hits over the tasks, each task counted once; best first.

    Methods that are one row on every task are one row here. ``low`` and ``high`` are Student's
    interval of the mean share over the tasks; ``difference`` is the first row's mean share minus
    this one's, paired by task, with its interval and the sign test's p. ``size`` is the mean over
    tasks of the neurons' mean |effect| in per cent of the task's clean mean.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for method in METHODS:
        rows = [one[method].method for one in found.values() if method in one.all_methods]
        if method not in BASELINES and rows:
            groups.setdefault(tuple(rows), []).append(method)
    names = [(" = ".join(each), each[0]) for each in groups.values()]
    rows = []
    for label, method in [*names, ("rotated basis", "rotated basis"), ("random", "random")]:
        own = {name: one[method] for name, one in found.items() if method in one.all_methods}
        shares = np.array([each.share for each in own.values()])
        half = np.nan
        if len(shares) > 1:
            quantile = float(student.ppf(0.975, len(shares) - 1))
            half = quantile * float(shares.std(ddof=1)) / np.sqrt(len(shares))
        row = {"method": label, "first": method, "tasks": len(own)}
        row |= {"n": sum(each.n for each in own.values())}
        row |= {"hits": sum(each.hits for each in own.values()), "share": float(shares.mean())}
        row |= {"low": max(row["share"] - half, 0.0), "high": min(row["share"] + half, 1.0)}
        row["supports"] = sum(each.count("supports") for each in own.values())
        row["opposes"] = sum(each.count("opposes") for each in own.values())
        row["size"] = float(
            np.mean([each.mean_effect / found[name].floor for name, each in own.items()])
        )
        row |= {name: each.share for name, each in own.items()}
        rows.append(row)
    board = pd.DataFrame(rows)
    last = board["method"].isin(BASELINES)
    best = board[~last].sort_values("share", ascending=False, kind="stable")
    board = pd.concat([best, board[last]], ignore_index=True)
    return _against_first(board, found)


def _against_first(board: pd.DataFrame, found: dict[str, MethodComparison]) -> pd.DataFrame:
    """With the paired differences from the first row, and from random neurons, over the tasks."""
    first = board["first"].iloc[0]
    for other, prefix in ((first, "difference"), ("random", "above_random")):
        pairs = differences_over_tasks(found, first=other).set_index("other")
        sign = 1 if prefix == "difference" else -1
        for column, name in (("difference", ""), ("low", "_low"), ("high", "_high"), ("p", "_p")):
            values = pairs[column].reindex(board["first"]).to_numpy()
            board[prefix + name] = values if column == "p" else sign * values
        if sign < 0:
            ends = board[[f"{prefix}_low", f"{prefix}_high"]].to_numpy()
            board[[f"{prefix}_low", f"{prefix}_high"]] = ends[:, ::-1]
    return board.drop(columns="first")


def picture(board: pd.DataFrame, names: Sequence[str], k: int) -> Drawing:
    """Every method's share of hits over all tasks with its interval, and on each task."""
    tasks = {name: name.replace("_", ": ", 1) for name in names}
    note = "Bars: mean over the tasks, each counted once, with its 95 % interval over tasks."
    return leaderboard(board, tasks, k=k, note=note)


def reading(board: pd.DataFrame) -> list[str]:
    """What the table says, and what it does not, in words made from its numbers."""
    rows = board.set_index("method")
    random, rotated = rows.loc["random"], rows.loc["rotated basis"]
    methods = rows.drop(index=list(BASELINES))
    beat = methods[methods["above_random_low"] > 0]
    best, worst = methods.iloc[0], methods.iloc[-1]
    sizes = methods["size"].sort_values(ascending=False)
    behind = methods[methods["difference_low"] > 0]
    said = [
        f"- Of random neurons {random['hits']:.0f} of {random['n']:.0f} are hits "
        f"({random['share']:.1%}), of directions of a rotated basis {rotated['hits']:.0f} of "
        f"{rotated['n']:.0f} ({rotated['share']:.1%}). {len(beat)} of {len(methods)} rows have "
        "more hits than random neurons, by an interval of the paired difference over the tasks"
        + (f": {', '.join(beat.index)}." if len(beat) else "."),
        f"- First is {best.name} ({best['share']:.0%}), last {worst.name} ({worst['share']:.0%}). "
        f"Behind the first by an interval of the paired difference over the tasks: "
        f"{', '.join(behind.index) or 'none'}. Among the others the order means little.",
        f"- Most of what any method names has no effect by itself: the best one misses with "
        f"{1 - best['share']:.0%} of its neurons."
        if best["share"] < 0.5
        else f"- The best method misses with {1 - best['share']:.0%} of its neurons.",
        "- A hit may be small. Mean |effect| in per cent of the clean mean, averaged over tasks: "
        + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())
        + f", rotated basis {rotated['size']:.1f}, random {random['size']:.1f}.",
        f"- {int(methods['opposes'].sum())} of {int(methods['hits'].sum())} hits oppose: without "
        "them the model does better. A ranking by strength does not tell.",
        "- Methods that rank alike on every task are one row: with two classes a correlation, a "
        "difference of means and F follow from one another.",
    ]
    return said


def markdown(frame: pd.DataFrame) -> str:
    """A table; numbers to three significant digits."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.3g}"
        return str(value).replace("|", "\\|")

    rows = [map(cell, row) for row in frame.to_numpy(dtype=object)]
    lines = [frame.columns, ["---"] * len(frame.columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(
    found: dict[str, MethodComparison], board: pd.DataFrame, options: Any, minutes: float
) -> str:
    """The page in Markdown."""
    shown = board.copy()
    shown.insert(4, "95 % interval", [f"{a:.2f} to {b:.2f}" for a, b in zip(
        board["low"], board["high"], strict=True)])  # fmt: skip
    shown["less than the first by"] = [
        "" if np.isnan(a) else f"{v:.2f} [{a:.2f}, {b:.2f}], p {p:.2g}"
        for v, a, b, p in board[
            ["difference", "difference_low", "difference_high", "difference_p"]
        ].to_numpy()
    ]
    extra = [name for name in board if name.startswith(("difference", "above_random"))]
    shown = shown.drop(columns=["low", "high", "tasks", *extra])
    catalogue = pd.DataFrame(
        [[method.name, method.about, method.source] for method in METHODS.values()],
        columns=["method", "what it is", "source"],
    )
    parts = [
        "# Which methods find neurons that matter?",
        f"Written by `{COMMAND}`; the comparisons took {minutes:.0f} minutes of processor time.",
        "![Share of the named neurons with a causal effect, per method](leaderboard.png)",
        markdown(shown),
        "\n".join(reading(board)),
        "Shares are means over the tasks, each counted once, with Student's 95 % interval over the "
        "tasks. *less than the first by*: paired by task, its interval, and p of the sign test "
        "over the tasks (of each row by itself). `size`: mean |effect| in per cent of the "
        "clean mean, averaged over tasks; then the share of hits "
        "on each task.",
        "**How it is measured.** Each method ranks every neuron (`mlp.hook_post`, last prompt "
        f"token) on {options.explore} examples at most and names its {options.k} strongest. Each "
        "of them alone is mean-ablated (the mean over the split it was ranked on) on examples of "
        f"other groups, one of each group, {options.intervene} at most. A *hit*: the 95 % interval "
        "of its mean effect on the logit difference (on the confidence, where that is the metric) "
        "lies beyond ±δ, and its |effect| has rank p <= 0.05 among "
        f"{options.controls} random neurons of its layer, which are the same whatever the methods "
        "name: a neuron has one word, whoever names it. δ is the layer's: the larger of 1 % of the "
        "clean mean and the 95th percentile of those neurons. *random* is five times as many "
        "neurons drawn over all layers, *rotated basis* the directions of a random rotation of "
        "each layer that the metric explains best. `taylor` and `gradient` differentiate the very "
        "quantity that the ablations are measured on; the others never see it, except where the "
        "metric is what the model says.",
        "**What it does not show.** It is two small models and one k, and six tasks are few: no "
        "sign test over fewer gives p < .05. A neuron may be a hit on examples like these and idle "
        "on others, and one without an effect of its own may act together with others. Ablating a "
        "direction of a rotated basis moves all neurons of a layer by little, ablating a neuron "
        "moves one by all it does.",
        markdown(catalogue),
    ]
    if options.only:
        parts.insert(2, f"Of the script's tasks only these were run: {', '.join(found)}.")
    for name, one in found.items():
        about = one.provenance
        parts += [
            f"## {about['model']}, {about['task']}: {one.metric}",
            f"Ranked on {one.n_explore:,} examples, ablated on {one.n_examples:,} in "
            f"{one.n_groups:,} groups, {one.n_controls:,} controls, effect on "
            f"`{one.causal_metric}`, "
            f"{one.rule()}.",
            f"![{one.metric}: share of hits and agreement of the methods]({name}.png)",
            markdown(_short(one.frame())),
        ]
        parts += [f"Left out: {why}" for why in one.left_out.values()]
    return "\n\n".join(parts) + "\n"


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    interval = [f"{a:.2f} to {b:.2f}" for a, b in zip(frame["low"], frame["high"], strict=True)]
    less = [
        f"{v:.2f} [{a:.2f}, {b:.2f}]"
        for v, a, b in frame[["difference", "difference_low", "difference_high"]].to_numpy()
    ]
    extra = [name for name in frame if name.startswith("difference")]
    shown = frame.drop(columns=["low", "high", "share", *extra])
    shown.insert(3, "95 % interval", interval)
    shown.insert(4, "less than the first by", less)
    return shown
