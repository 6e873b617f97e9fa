"""The leaderboard as a page: all tasks together, a picture, and what the numbers say in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lens_skills.plotting.drawing import Drawing
from lens_skills.plotting.style import BLACK, BLUE, GREY, PALE, SMALL, settle, sheet, style
from lens_skills.ranking import METHODS, MethodComparison
from lens_skills.ranking.compare_methods import BASELINES
from lens_skills.stats.intervals import wilson_interval

COMMAND = "python benchmarks/leaderboard.py"


def pooled(found: dict[str, MethodComparison]) -> pd.DataFrame:
    """One row per method: hits on all tasks together and on each, best first.

    ``size`` is the mean over tasks of the neurons' mean |effect| in units of the task's delta.
    """
    frames = {name: one.frame() for name, one in found.items()}
    rows = []
    for method in [*(name for name in METHODS if name not in BASELINES), "rotated basis", "random"]:
        own = {name: frame.set_index("method") for name, frame in frames.items()}
        own = {name: frame.loc[method] for name, frame in own.items() if method in frame.index}
        n = int(sum(row["n"] for row in own.values()))
        hits = int(sum(row["hits"] for row in own.values()))
        low, high = wilson_interval(hits / n, n)
        row = {"method": method, "tasks": len(own), "n": n, "hits": hits, "share": hits / n}
        row |= {"low": low, "high": high}
        row["supports"] = int(sum(each["supports"] for each in own.values()))
        row["opposes"] = int(sum(each["opposes"] for each in own.values()))
        sizes = [each["mean_effect"] / found[name].delta for name, each in own.items()]
        row["size"] = float(np.mean(sizes))
        row |= {name: float(each["share"]) for name, each in own.items()}
        rows.append(row)
    board = pd.DataFrame(rows)
    last = board["method"].isin(BASELINES)
    best = board[~last].sort_values("share", ascending=False, kind="stable")
    return pd.concat([best, board[last]], ignore_index=True)


@style()
def picture(board: pd.DataFrame, names: Sequence[str], k: int) -> Drawing:
    """Every method's share of hits over all tasks with its interval, and on each task."""
    figure = sheet(
        4.6,
        0.24 * len(board) + 0.7,
        title="Whose neurons have a causal effect?",
        lines=[f"{len(names)} tasks, the {k} strongest neurons of each method on each"],
        note="Bars: all tasks together, Wilson's 95 % interval over neurons (tasks differ by more "
        "than that). Small circles: single tasks. Band: random neurons.",
    )
    axis = figure.add_subplot()
    rows = np.arange(len(board))
    random = board.set_index("method").loc["random"]
    axis.axvspan(random["low"], random["high"], color=PALE, linewidth=0)
    colours = [GREY if name in BASELINES else BLUE for name in board["method"]]
    axis.barh(rows, board["share"], height=0.6, color=colours, alpha=0.75, zorder=2)
    ends = np.clip([board["share"] - board["low"], board["high"] - board["share"]], 0, None)
    axis.errorbar(board["share"], rows, xerr=ends, fmt="none", ecolor=BLACK, elinewidth=1.0,
                  capsize=2, zorder=4)  # fmt: skip
    for name in names:
        axis.plot(board[name], rows, linestyle="none", marker="o", markersize=3.0, zorder=3,
                  markerfacecolor="white", markeredgecolor=BLACK, markeredgewidth=0.6)  # fmt: skip
    for row, entry in enumerate(board.to_dict("records")):
        axis.text(1.02, row, f"{entry['hits']} of {entry['n']}", size=SMALL, va="center_baseline",
                  transform=axis.get_yaxis_transform())  # fmt: skip
    axis.axhline(len(board) - len(BASELINES) - 0.5, color=GREY, linewidth=0.5)
    axis.set_yticks(rows, board["method"].tolist())
    axis.set_ylim(len(board) - 0.45, -0.55)
    axis.set_xlim(0, 1)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("share of the neurons named that have a causal effect")
    settle(figure)
    return Drawing(figure, board, "leaderboard")


def reading(board: pd.DataFrame) -> list[str]:
    """What the table says, and what it does not, in words made from its numbers."""
    rows = board.set_index("method")
    random, rotated = rows.loc["random"], rows.loc["rotated basis"]
    methods = rows.drop(index=list(BASELINES))
    beat = methods[methods["low"] > random["high"]]
    best, worst = methods.iloc[0], methods.iloc[-1]
    sizes = methods["size"].sort_values(ascending=False)
    above = methods[methods["low"] > rotated["high"]]
    first = methods[methods["high"] >= best["low"]]
    said = [
        f"- Of random neurons {random['hits']:.0f} of {random['n']:.0f} are hits "
        f"({random['share']:.1%}), of directions of a rotated basis {rotated['hits']:.0f} of "
        f"{rotated['n']:.0f} ({rotated['share']:.1%}). {len(beat)} of {len(methods)} methods have "
        "an interval wholly above that of random neurons"
        + (f": {', '.join(beat.index)}" if len(beat) < len(methods) else "")
        + f"; {len(above)} also one above that of the rotated basis"
        + (f": {', '.join(above.index)}." if len(above) else "."),
        f"- First is {best.name} ({best['share']:.0%}), last {worst.name} ({worst['share']:.0%}). "
        f"The intervals of {', '.join(first.index[1:]) or 'no other method'} reach that of the "
        "first: among these the order means little.",
        f"- Most of what any method names has no effect by itself: the best one misses with "
        f"{1 - best['share']:.0%} of its neurons."
        if best["share"] < 0.5
        else f"- The best method misses with {1 - best['share']:.0%} of its neurons.",
        "- A hit may be small. Mean |effect| in units of δ, averaged over tasks: "
        + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())
        + f", rotated basis {rotated['size']:.1f}, random {random['size']:.1f}.",
        f"- {int(methods['opposes'].sum())} of {int(methods['hits'].sum())} hits oppose: without "
        "them the model does better. A ranking by strength does not tell.",
        "- With two classes `pearson`, `smd` and `f` rank alike, because each of the three numbers "
        "follows from another; they are one method under three names.",
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
    shown = shown.drop(columns=["low", "high", "tasks"])
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
        "`size`: mean |effect| in units of δ, averaged over tasks; the last columns: the share of "
        "hits on each task.",
        "**How it is measured.** Each method ranks every neuron (`mlp.hook_post`, last prompt "
        f"token) on {options.explore} examples at most and names its {options.k} strongest. Each "
        "of them alone is mean-ablated (the mean over the split it was ranked on) on examples of "
        f"other groups, one of each group, {options.intervene} at most. A *hit*: the 95 % interval "
        "of its mean effect on the logit difference (on the confidence, where that is the metric) "
        "lies beyond ±δ, and its rank among "
        f"{options.controls} random other neurons of the same layers gives q <= 0.05 over the "
        "list. δ is the 95th percentile of those other neurons' |effect|. *random* is five lists "
        "of neurons drawn over all layers, *rotated basis* the directions of a random rotation of "
        "each layer that the metric explains best. `taylor` and `gradient` differentiate the very "
        "quantity that the ablations are measured on; the others never see it, except where the "
        "metric is what the model says.",
        "**What it does not show.** It is two small models and one k; tasks differ by more than "
        "the intervals over neurons say. A neuron may be a hit on examples like these and idle on "
        "others, and one without an effect of its own may act together with others. Ablating one "
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
            f"δ = {one.delta:.3g} {one.unit}.",
            f"![{one.metric}: share of hits and agreement of the methods]({name}.png)",
            markdown(_short(one.frame())),
        ]
        parts += [f"Left out: {why}" for why in one.left_out.values()]
    return "\n\n".join(parts) + "\n"


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    interval = [f"{a:.2f} to {b:.2f}" for a, b in zip(frame["low"], frame["high"], strict=True)]
    shown = frame.drop(columns=["low", "high", "share"])
    shown.insert(3, "95 % interval", interval)
    return shown
