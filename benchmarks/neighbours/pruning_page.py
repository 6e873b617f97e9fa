"""The page, the figure and the row of ``pruning.py``."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from instructions_page import MODEL, above_zero, shown, table
from pictures import keep

from lens_skills.plotting import figures

NAME = "pruning"
COMMAND = f"python benchmarks/neighbours/{NAME}.py --save"
WORDS = {"predictivity": "predictivity", "pearson": "|r|", "taylor": "Taylor"}
NEGLIGIBLE = 0.02
"""Of accuracy: an interval of a difference that stays below it shows that nothing is kept."""


def write(numbers: Mapping[str, Any], seed: int, results: Path, pages: Path) -> None:
    """The row, the figure with its table, and the page."""
    pages.mkdir(parents=True, exist_ok=True)
    more, at, whole, none = (numbers[key] for key in ("more", "at", "whole", "none"))
    n_learn, n_held = numbers["n"]
    first, layers, n_groups = numbers["first"], numbers["layers"], numbers["n_groups"]
    row = {
        "neighbour": "2211.07349 the predecessor: pruning to skill neurons",
        "verb": "ls.predictivity",
        "works_if": "with 2 % of the neurons of the upper half of the layers left, the most "
        "predictive keep more accuracy than as many random ones",
        "measured": f"accuracy {at['predictivity']:.2f} beyond {at['random']:.2f} of random ones; "
        f"whole model {whole:.2f}, no upper neuron left {none:.2f}",
        **dict(zip(("value", "low", "high"), (round(x, 4) for x in more["predictivity"]),
                   strict=True)),
        "met": above_zero(more["predictivity"], NEGLIGIBLE),
        "model": MODEL,
        "groups": f"{n_groups} held-out nouns",
        "command": COMMAND,
        "cpu_minutes": round(numbers["minutes"], 1),
    }  # fmt: skip
    path = results / f"neighbours_{NAME}.json"
    path.write_text(json.dumps([row], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    frame = pd.DataFrame(numbers["rows"])
    frame["series"] = frame["series"].map(lambda name: WORDS.get(name, "random neurons"))
    frame["panel"] = "agreement"
    drawing = figures.number_curves(
        frame,
        title="Accuracy with few neurons of the upper layers left",
        x="upper neurons left (%)", y="accuracy", log=True, level=none,
        lines=(
            f"{MODEL} · layers {first} to {layers - 1} pruned, mean in place",
            f"subject-verb agreement across a noun, {n_held:,} prompts of {n_groups} nouns",
        ),
        note=f"Dashed: no upper neuron left ({none:.2f}). The whole model has {whole:.2f}. Bands: "
        "95 % over nouns.",
    )  # fmt: skip
    picture = keep(drawing, pages / NAME).name
    lines = [
        [WORDS.get(name, name).replace("|", "\\|"), f"{at[name]:.2f}",
         shown(more[name], "+.2f") if name in more else "–"]
        for name in at
    ]  # fmt: skip
    said = {True: "**met**", False: "**not met**", None: "**undecided**"}[row["met"]]
    measured = row["measured"][0].upper() + row["measured"][1:]
    text = f"""# Pruning to skill neurons

Written by `{COMMAND}`; {MODEL}, seed {seed}, {numbers["minutes"]:.1f} minutes of processor time.

The predecessor (arXiv 2211.07349) prunes a tuned RoBERTa to the 2 % most predictive neurons of its
upper layers and keeps most of its accuracy. Here nothing is tuned and the model is another one: of
layers {first} to {layers - 1} ({numbers["upper"]:,} MLP neurons) all but the strongest are held at
their mean at every token from the subject on; attention and the lower layers stay whole. Neurons
are ranked at the last token on {n_learn:,} prompts and pruned on {n_held:,} prompts of {n_groups}
other nouns. Between subject and verb stands a noun of the other number: in a smoke run of twelve
prompts without it nothing was lost whatever was pruned, so the harder prompts were chosen. For
time, and after that smoke run, the 72 prompts planned for either part were cut to 36.

**Works if** with 2 % left the most predictive neurons keep more accuracy than as many random ones:
{said}. {measured}.

With 2 % left, and beyond random neurons (mean of three draws), with 95 % intervals over nouns:

{table(["kept by", "accuracy", "beyond random"], lines)}

![Accuracy against the share of upper neurons left]({picture})

*Met* where the whole interval lies above 0, *not met* where all of it lies below {NEGLIGIBLE:.0%}.

## Does not show

That skill neurons are enough: with none of the upper neurons left the model still has {none:.2f} of
the prompts right, through attention and the lower layers. One task, one model, one seed.
"""
    text = re.sub(r"(?<=\d)%", " %", text)
    (pages / f"{NAME}.md").write_text(text, encoding="utf-8")
