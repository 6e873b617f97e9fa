"""The table of ``docs/neighbours.md``: what papers near this toolkit claim, on trial here.

Each trial is a script in ``benchmarks/neighbours/`` that leaves its rows in
``benchmarks/results/neighbours_NAME.json`` and its page in ``figures/neighbours/NAME.md``. A
neighbour without rows is shown as not measured.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PREFIX = "neighbours_"
COMMAND = "python benchmarks/neighbours/"
TEXTS = ("neighbour", "verb", "works_if", "measured", "model", "groups", "command")
NUMBERS = ("value", "low", "high")
FIELDS = (*TEXTS, *NUMBERS, "met", "cpu_minutes")
ABSOLUTE = re.compile(r"(?:^|\s)[~/]\w*/\w")
MET = {True: "**yes**", False: "**no**", None: "undecided"}
HEAD = [
    "neighbour",
    "our verb",
    "works if",
    "measured, with 95 % interval",
    "met?",
    "command",
    "CPU minutes",
]


class Neighbour(NamedTuple):
    """A paper and the number that would show that what follows it works here."""

    arxiv: str
    title: str
    works_if: str


NEIGHBOURS = (
    Neighbour(
        "2407.06488",
        "task-specific neurons and continual learning",
        "tasks in sequence, the neurons of each trained alone, are forgotten less than with full "
        "fine-tuning and with random neurons, at 95 % or more of full fine-tuning's final accuracy",
    ),
    Neighbour(
        "2310.10708",
        "explanations in words",
        "a sentence tells unseen texts by their activation better than shuffled sentences do, and "
        "a planted neuron gets its feature back",
    ),
    Neighbour(
        "2310.04929",
        "dissection and competition",
        "with 4 % of the neurons active, winners keep more accuracy than random winners, and the "
        "concept matched to a planted neuron is the planted one",
    ),
    Neighbour(
        "2305.00875",
        "redundancy and concepts in code",
        "the smallest share of neurons within 1 % of the accuracy of all has an interval, and "
        "beats as many random neurons",
    ),
    Neighbour(
        "2210.09404",
        "memorisation",
        "three twins of a model (clean labels, a shortcut in the labels, shuffled labels) come out "
        "in the order of the paper in every seed",
    ),
    Neighbour(
        "2212.04590",
        "cutting text into skills",
        "boundaries of texts spliced from three tasks are found (F1, ± 1 token) better than by "
        "equal lengths and by random cuts",
    ),
    Neighbour(
        "2111.05820",
        "few labels: skills that share",
        "among the 50 best neurons from 20 labels more hold up when other skills lend strength",
    ),
    Neighbour(
        "2109.08259",
        "few labels: pseudo-labels and rationales",
        "|r| from the model's own answers ranks neurons as the true labels do, and ablation at the "
        "rationale hurts more than at matched tokens (interval of the ratio above 1)",
    ),
    Neighbour(
        "2005.00723",
        "counting",
        "the number of tokens above a threshold predicts the number of clues of unseen texts "
        "better (R²) than mean and maximum",
    ),
    Neighbour(
        "2310.15605",
        "instructions with several tasks",
        "at most 8 neurons per task type reach 90 % of the F1 of a probe on all neurons, and "
        "ablation at the argument hurts the argument more than at a matched span",
    ),
    Neighbour(
        "2211.07349",
        "the predecessor: pruning to skill neurons",
        "with 2 % of the neurons of the upper layers left, more accuracy is kept than with as many "
        "random ones",
    ),
)
"""The papers in the order of the table."""


def problems(rows: Any) -> list[str]:
    """What is wrong with the rows of one file, in words; none where all is well.

    >>> problems([])
    ['no rows: a list of objects, one or more, is wanted']
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return ["no rows: a list of objects, one or more, is wanted"]
    return [f"row {place + 1}: {said}" for place, row in enumerate(rows) for said in _wrong(row)]


def _wrong(row: Mapping[str, Any]) -> list[str]:
    missing = [name for name in FIELDS if name not in row]
    if missing:
        return [f"lacks {', '.join(missing)}"]
    found = [
        f"{name} is no text" for name in TEXTS if not isinstance(row[name], str) or not row[name]
    ]
    found += [
        f"{name} is {row[name]!r}: a finite number or null is wanted"
        for name in NUMBERS
        if not (row[name] is None or _is_number(row[name]))
    ]
    if not _is_number(row["cpu_minutes"]) or row["cpu_minutes"] < 0:
        found.append(f"cpu_minutes is {row['cpu_minutes']!r}: minutes of processor time are wanted")
    if row["met"] is not None and not isinstance(row["met"], bool):
        found.append(f"met is {row['met']!r}: true, false or null is wanted")
    if found:
        return found
    if (row["low"] is None) != (row["high"] is None):
        found.append("one end of the interval is null and the other is not")
    ends = [row[name] for name in ("low", "value", "high") if row[name] is not None]
    if ends != sorted(ends):
        found.append(f"low, value, high are {ends}: they do not rise")
    if row["neighbour"].split()[0] not in {each.arxiv for each in NEIGHBOURS}:
        found.append(f"{row['neighbour']!r} begins with the arXiv number of no neighbour")
    script = row["command"].removeprefix("python ").split()[0]
    if not row["command"].startswith(COMMAND) or not (ROOT / script).exists():
        found.append(f"{row['command']!r} is no script of benchmarks/neighbours/")
    if any(ABSOLUTE.search(row[name]) or "\n" in row[name] for name in TEXTS):
        found.append("a text holds a path of a machine or a line break")
    return found


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def read_neighbours(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file ``neighbours_NAME.json``, by NAME.

    Raises:
        ValueError: A file whose rows are not as `problems` wants them.
    """
    found = {}
    for path in sorted(folder.glob(f"{PREFIX}*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        if wrong := problems(rows):
            raise ValueError(f"{path.name}: {'; '.join(wrong)}")
        found[path.stem.removeprefix(PREFIX)] = rows
    return found


def neighbours(measured: Mapping[str, list[dict[str, Any]]], root: Path = ROOT) -> list[list[str]]:
    """The head and one row per measurement, in the order of `NEIGHBOURS`."""
    lines = [HEAD]
    for each in NEIGHBOURS:
        rows = [
            (name, row)
            for name, some in measured.items()
            for row in some
            if row["neighbour"].split()[0] == each.arxiv
        ]
        paper = f"[{each.arxiv}](https://arxiv.org/abs/{each.arxiv}) {each.title}"
        if not rows:
            lines.append([paper, "–", _cell(each.works_if), "not measured", "–", "–", "–"])
        for name, row in rows:
            page = f"figures/neighbours/{name}.md"
            linked = f"[{each.title}](../{page})" if (root / page).exists() else each.title
            verb = row["verb"] if "`" in row["verb"] else f"`{row['verb']}`"
            lines.append(
                [
                    f"[{each.arxiv}](https://arxiv.org/abs/{each.arxiv}) {linked}",
                    verb,
                    _cell(row["works_if"]),
                    _cell(f"{_measured(row)} ({row['model']}; {row['groups']})"),
                    MET[row["met"]],
                    f"`{row['command']}`",
                    f"{row['cpu_minutes']:.1f}",
                ]
            )
    return lines


def _measured(row: Mapping[str, Any]) -> str:
    """The words, with the number and its interval behind them."""
    if row["value"] is None:
        return row["measured"]
    ends = "" if None in (row["low"], row["high"]) else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"**{row['value']:.3g}{ends}**: {row['measured']}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
