"""The page, the figure and the rows of counting.py."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lens_skills.plotting import figures

COMMAND = "python benchmarks/neighbours/counting.py --save"
NEIGHBOUR = "2005.00723 counting"
SHORT = {
    "negations": "negations", "names": "names", "carries": "carries", "lists": "solved sums",
}  # fmt: skip


def write(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    result: Path,
    page: Path,
    keep: Callable[..., Path],
) -> None:
    """Writes all of it."""
    rows = [row for trial in found.values() for row in compared(trial)]
    result.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(
        [
            {"clue": f"{SHORT[name]}\n({row['model']})", **row}
            for name, trial in found.items()
            for row in trial
            if "-" not in row["read_out"]
        ]
    )[["clue", "read_out", "neuron", "r2", "low", "high"]]
    lines = ("the best neuron of each read-out, chosen on other texts",)
    drawing = figures.read_outs(frame, title="How many clues does a text hold?", lines=lines)
    picture = keep(drawing, page.parent / "counting").name
    page.write_text(text(found, picture), encoding="utf-8")


def verdict(low: float, high: float) -> bool | None:
    return True if low > 0 else False if high < 0 else None


def compared(trial: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of mean and max, that the count is compared with."""
    by = {row["read_out"]: row for row in trial}
    found = []
    for name in ("mean", "max"):
        row = by[f"count - {name}"]
        value, low, high = (round(row[key], 3) for key in ("r2", "low", "high"))
        found.append(
            {
                "neighbour": NEIGHBOUR,
                "verb": "ls.fit_count",
                "works_if": "R² against the true number of clues on unseen texts is higher with a "
                f"count over a threshold than with the {name}",
                "measured": f"{row['words']}: count R² {by['count']['r2']:.2f}, {name} "
                f"{by[name]['r2']:.2f}; difference {value:+.2f} [{low:+.2f}, {high:+.2f}]",
                "value": value,
                "low": low,
                "high": high,
                "met": verdict(low, high),
                "model": row["model"],
                "groups": f"{row['n_groups']} groups, {row['n_unseen']} unseen texts",
                "command": COMMAND,
                "cpu_minutes": round(row["minutes"], 1),
            }
        )
    return found


def text(found: Mapping[str, Sequence[Mapping[str, Any]]], picture: str) -> str:
    """The page."""
    rows = [row for trial in found.values() for row in compared(trial)]
    met = sum(row["met"] is True for row in rows)
    against = sum(row["met"] is False for row in rows)
    lines = [
        "# Counting",
        "",
        "Multi-spike neurons ([2005.00723](https://arxiv.org/abs/2005.00723)) put out how often "
        "they cross a threshold. `ls.count(θ)` is an analogue: the number of tokens at which a "
        "neuron of the model as it is lies above θ, beside the mean and the maximum over tokens.",
        "",
        f"`{COMMAND}` · seed 0. On half of the groups `ls.fit_count` chooses each neuron's "
        "threshold, and for each read-out the neuron with the largest |r| and its line are "
        "chosen; R² is of that line on the other half.",
        "",
        f"A count tells more than the read-out beside it in {met} of {len(rows)} comparisons "
        f"(interval of the paired difference above 0), and less in {against}.",
        "",
        "| clue, model | read-out | neuron | R² on unseen texts [95 %] |",
        "|---|---|---|---|",
    ]
    for trial in found.values():
        lines += [
            f"| {row['words']}, {row['model']} | {row['read_out']} | {row['neuron']} | "
            f"{row['r2']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] |"
            for row in trial
        ]
    lines += [
        "",
        f"![R² of each read-out]({picture})",
        "",
        "| clue | texts to choose on | unseen | groups | neurons |",
        "|---|---|---|---|---|",
        *(
            f"| {trial[0]['words']} | {trial[0]['n_discovery']} | {trial[0]['n_unseen']} | "
            f"{trial[0]['n_groups']} | {trial[0]['n_neurons']:,} |"
            for trial in found.values()
        ),
        "",
        "Clues of a text are spread over its tokens: a negation or a name is a token, and a list "
        "of solved sums has one place for each. The carries of *one* sum are not: they are worked "
        "out where the answer begins, so there is nothing to count, and a mean or a maximum does "
        "as well. Texts of one kind have as many words whatever they hold, so that length tells "
        "nothing; a mean is then a sum over a constant, which is why it does so well here. With "
        "8 groups of unseen texts, one that a read-out gets wrong makes an interval very wide.",
        "",
    ]
    return "\n".join(lines)
