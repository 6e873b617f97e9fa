"""The page of `few_labels.py`: figures and what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from few_labels import FOLDS, LABELS, TOP, mean
from pictures import keep

from lens_skills import figures

FIGURES = Path(__file__).resolve().parents[2] / "figures" / "neighbours"
FAMILIES = {
    "templates": "SmolLM2",
    "tasks": "unlike tasks",
    "operations": "small",
}


def sharing_figure(rows: pd.DataFrame) -> Any:
    """Precision of both rankings, per target task, with the range of the middle 95 % of draws."""
    parts = []
    for (family, task), part in rows.groupby(["family", "task"], sort=False):
        for what, column in (("alone", "own"), ("with other tasks", "shared")):
            draws = part[f"precision_{column}"]
            parts.append(
                {
                    "label": f"{FAMILIES[str(family)]}: {task}",
                    "what": what,
                    "value": draws.mean(),
                    "low": draws.quantile(0.025),
                    "high": draws.quantile(0.975),
                }
            )
    return figures.paired_intervals(
        pd.DataFrame(parts),
        title="Do other tasks help 20 labels?",
        axis=f"share of {TOP} confirmed",
        lines=(f"several draws of {LABELS} labels for each task",),
        note="Bars: the middle 95 % of the draws.",
    )


def pseudo_figure(labels: pd.DataFrame) -> Any:
    """Rank correlation with gold |r| of other groups: by gold, by pseudo-labels, by the few."""
    columns = {
        "all gold labels": "gold_next",
        "pseudo-labels": "next",
        f"{LABELS} labels alone": "few_next",
    }
    parts = []
    for task, part in labels.groupby("task", sort=False):
        for what, column in columns.items():
            value, low, high = mean(part[column].tolist())
            row = {"label": str(task), "what": what, "value": value, "low": low, "high": high}
            parts.append(row)
    return figures.paired_intervals(
        pd.DataFrame(parts),
        title="Do the model's own answers replace labels?",
        axis="Spearman's ρ of |r| with gold |r| on other groups",  # noqa: RUF001
        lines=(f"{FOLDS} folds that share no group, {LABELS} labels in each",),
        note="Bars: 95 % intervals over folds.",
        reference=0.0,
    )


def write(
    rows: pd.DataFrame, labels: pd.DataFrame, found: Sequence[dict[str, Any]], said: str
) -> None:
    """The page and its figures."""
    keep(sharing_figure(rows), FIGURES / "few_labels" / "sharing")
    keep(pseudo_figure(labels), FIGURES / "few_labels" / "pseudo_labels")
    table = rows.groupby(["family", "task"], sort=False).mean(numeric_only=True)
    lines = [
        "| family | task | confirmed of all neurons | precision@50, alone | with other tasks | of "
        "the split's own 50 strongest, alone | with other tasks | share of own r |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (family, task), row in table.iterrows():  # type: ignore[misc]
        lines.append(
            f"| {family} | {task.replace('*', '×')} | {row['base']:.1%} | "
            f"{row['precision_own']:.2f} | {row['precision_shared']:.2f} | "
            f"{row['strongest_own']:.2f} | {row['strongest_shared']:.2f} | {row['weight']:.0%} |"
        )
    body = PAGE.format(
        sharing="\n".join(lines),
        measured="\n".join(map(summary, found)),
        said=said,
        folds=FOLDS,
        labels=LABELS,
        minutes=found[0]["cpu_minutes"],
        command=found[0]["command"],
    )
    (FIGURES / "few_labels.md").write_text(body)


def summary(row: dict[str, Any]) -> str:
    met = "cannot be told" if row["met"] is None else "yes" if row["met"] else "no"
    return f"- {row['neighbour']}: {row['measured']}. Met: {met}."


PAGE = """\
# Few labels: other tasks, and the model's own answers

After multi-task neural processes (arXiv 2111.05820) and few-shot rationales (2109.08259), of which
these are simple analogues: empirical-Bayes shrinkage of r across tasks (`score(…, share=…)`), and
labels from the model's confident answers (`pseudo_label`). How to use them: [few
labels](../../docs/howto/few_labels.md).

{measured}

## Other tasks

![precision of the 50 strongest neurons with and without other tasks](few_labels/sharing.png)

Each task in turn has {labels} labels (6 draws of them, 20 on arithmetic-small) and the scores of
the other tasks of its family with the same metric; a neuron counts where the task's own held-out
split confirms it (q of the permutation test ≤ 5 % over all neurons) with the same sign. Nothing is
shared between the splits: families of one task are cut by group first, and what is lent is of
other groups. The interval of the gain is over target tasks, whose splits are independent; draws of
one task are not.

{sharing}

## The model's own answers

![rank correlation with gold |r| of other groups](few_labels/pseudo_labels.png)

{folds} folds share no noun (no pair of operands). In each, {labels} examples are labelled and the
model's confident answers label the rest; the gold labels of these are read only to compare.

Where a model cannot do the task nothing is labelled. arithmetic-small on two-digit products:

> {said}

## What was chosen, and when

Families, splits, {labels} labels and 50 neurons were fixed before anything was run. In a smoke run
on arithmetic-small the label *even* turned out to be in no neuron at the prompt's end (|r| of two
halves of the sums do not go together), so that nothing about it could be found with any number of
labels: sums, differences and products are asked whether the result is large instead, before that
was measured.

Not all that was planned is measured: draws on SmolLM2 were cut from 20 to 6 for time, before any
was seen, and the family of unlike tasks and the pseudo-labels of agreement (`--families tasks`,
`--pseudo agreement`) were not run. The interval over tasks mixes two families whose gains differ
much.

`{command}`: {minutes} processor minutes.
"""
