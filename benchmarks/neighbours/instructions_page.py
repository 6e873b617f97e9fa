"""The page, the figures and the rows of ``instructions.py``."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pictures import keep

from lens_skills.plotting import figures

NAME = "instructions"
COMMAND = f"python benchmarks/neighbours/{NAME}.py --save"
MODEL = "SmolLM2-135M-Instruct"
FEW, SHARE, NEGLIGIBLE = 8, 0.9, 0.01
Interval = tuple[float, float, float]


def at_least(value: Interval, bar: float) -> bool | None:
    """Whether the whole interval reaches the bar, or none of it does; None: neither."""
    _, low, high = value
    return True if low >= bar else False if high < bar else None


def above_zero(value: Interval, negligible: float) -> bool | None:
    """Whether the whole interval lies above 0, or all of it below what matters; None: neither."""
    _, low, high = value
    return True if low > 0 else False if high < negligible else None


def shown(value: Interval, form: str = ".2f") -> str:
    return f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]"


def row(works_if: str, measured: str, value: Interval, met: bool | None, about: Any) -> dict:
    """A row for the table of all neighbours."""
    return {
        "neighbour": "2310.15605 instructions with several tasks",
        "verb": "ls.tasks.instructions",
        "works_if": works_if,
        "measured": measured,
        **dict(zip(("value", "low", "high"), (round(end, 4) for end in value), strict=True)),
        "met": met,
        "model": MODEL,
        "groups": f"{about['sparse']['n_groups']} held-out households",
        "command": COMMAND,
        "cpu_minutes": round(about["minutes"], 1),
    }


def rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was to be shown, and what came out."""
    found = []
    for spot, kept in numbers["sparse"]["kept"].items():
        found.append(
            row(
                f"at most {FEW} neurons per task type reach 90 % of the F1 of a probe on all "
                f"neurons, read at the {spot}",
                f"share of all neurons' macro F1 ({kept['all']:.2f}) that {FEW} neurons per type "
                f"reach ({kept[str(FEW)]:.2f}; {FEW} random ones {kept['random']:.2f})",
                kept["ratio"],
                at_least(kept["ratio"], SHARE),
                numbers,
            )
        )
    nested = numbers["nested"]
    found.append(
        row(
            f"type first, then its argument: probes on {FEW} neurons per type and span reach 90 % "
            "of the F1 of probes on all",
            f"share of all neurons' F1 of pairs ({shown(nested['all'])}) that {FEW} per type "
            f"reach ({shown(nested[str(FEW)])})",
            nested["ratio"],
            at_least(nested["ratio"], SHARE),
            numbers,
        )
    )
    works = (
        "ablation of the type neurons at the argument hurts the argument more than at a "
        "matched span"
    )
    ablated = numbers["ablated"]
    if ablated is None:
        missing = row(works, "not run yet", (0.0, 0.0, 0.0), None, numbers)
        return [*found, missing | dict.fromkeys(("value", "low", "high"))]
    one = ablated["sets"][f"{FEW} per type"]
    found.append(
        row(
            works,
            f"nats of log-odds lost at the argument ({shown(one['argument'], '+.3f')}) beyond "
            f"those lost at the third thing of the sentence ({shown(one['matched'], '+.3f')}), of "
            f"{ablated['clean']:.2f}",
            one["more"],
            above_zero(one["more"], NEGLIGIBLE * abs(ablated["clean"])),
            numbers,
        )
    )
    return found


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    made = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in made)


def pictures(numbers: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Both figures, by what they show."""
    sparse = numbers["sparse"]
    points = pd.DataFrame(sparse["rows"])
    points["x"] = points["k"].map(lambda k: numbers["units"] if k == "all" else k)
    points["panel"] = "at the " + points["panel"]
    points = points.rename(columns={"low": "f1_low", "high": "f1_high"})
    points["low"] = points["high"] = float("nan")
    size = f"{numbers['n'][0]:,} to train, {sparse['n_held']:,} to test in {sparse['n_groups']}"
    curves = figures.number_curves(
        points.reindex(
            columns=["panel", "series", "x", "value", "low", "high", "f1_low", "f1_high"]
        ),
        title="F1 of each task type against neurons",
        x="neurons k", y="held-out F1", log=True, level=0.25,
        lines=(f"{MODEL} · logistic probes on the k best neurons", f"{size} other households"),
        note="Dashed: saying yes to half at random, whatever the type. What a probe can tell need "
        "not be used by the model. Intervals are in the table beside the figure.",
        x_names={numbers["units"]: "all"},
    )  # fmt: skip
    layers = pd.DataFrame(numbers["by_layer"])
    layers["low"] = layers["high"] = float("nan")
    profile = figures.number_curves(
        layers,
        title="r of each layer's best neuron with each task type",
        x="layer", y="held-out r", level=0.0,
        lines=(
            f"{MODEL} · chosen on the training half, shown on the other",
            f"{size} other households",
        ),
        note="One neuron of each layer, chosen by |r| on other verbs and things.",
    )  # fmt: skip
    drawn = {"f1": curves, "r": profile}
    return {key: keep(one, folder / f"{NAME}_{key}").name for key, one in drawn.items()}


def write(numbers: Mapping[str, Any], seed: int, results: Path, pages: Path) -> None:
    """The rows, both figures with their tables, and the page."""
    pages.mkdir(parents=True, exist_ok=True)
    made = rows(numbers)
    path = results / f"neighbours_{NAME}.json"
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = pictures(numbers, pages)
    words = {True: "**met**", False: "**not met**", None: "**undecided**"}
    sparse, nested, ablated = (numbers[key] for key in ("sparse", "nested", "ablated"))
    within = numbers["within_verb"]
    probes = [
        [
            f"at the {spot}",
            *(f"{kept[str(k)]:.2f}" for k in (1, 2, 4, 8, 16, 32, 128, "all")),
            f"{kept['random']:.2f}",
            shown(kept["ratio"]),
        ]
        for spot, kept in sparse["kept"].items()
    ]
    decoding = [
        [name, shown(nested[key]), *(f"{nested[f'{key}_{n}']:.2f}" for n in (1, 2, 3))]
        for key, name in ((str(FEW), f"{FEW} per type"), ("all", "all"), ("-1", "8 random"))
    ]
    effects = (
        []
        if ablated is None
        else [
            [
                name,
                str(one["neurons"]),
                *(shown(one[key], "+.3f") for key in ("argument", "matched", "more")),
            ]
            for name, one in ablated["sets"].items()
        ]
    )
    shuffles = [
        [f"at the {spot}", *(f"{within[spot][f'{label}_{k}']:.2f}" for label in ("type", "shuffled")
                             for k in (FEW, "all"))]
        for spot in ("verb", "argument")
    ]  # fmt: skip
    minutes, (n_learn, n_held), n_groups = numbers["minutes"], numbers["n"], sparse["n_groups"]
    n_light = within["n"]["rows"]
    claims = [
        [
            one["works_if"],
            one["measured"],
            "–" if one["value"] is None else shown((one["value"], one["low"], one["high"])),
            words[one["met"]],
        ]
        for one in made
    ]
    of_k = ["read", *(f"k = {k}" for k in (1, 2, 4, 8, 16, 32, 128)), "all", "8 random", "8 of all"]
    taken_out = ""
    if ablated is not None:
        taken_out = f"""## Taken out at the argument, and at another thing

{ablated["n"]} examples of three tasks each in {ablated["groups"]} held-out households. The question
is *The thing to clean is the*; the model puts the right thing before the foil in
{ablated["right"]:.0%} of them, by {ablated["clean"]:.2f} nats in the mean. The neurons that the
probes take at the argument, of all types together, are held at their mean at the argument, or at
the third thing, which is neither answer nor foil. Nats of log-odds lost, and how many more at the
argument, with 95 % intervals over households:

{table(["neurons", "number", "at the argument", "at the third thing", "more"], effects)}

*Met* where the whole interval lies above 0, *not met* where all of it lies below
{NEGLIGIBLE:.0%} of the clean log-odds.
"""
    ahead = ""
    if sparse["kept"]["verb"]["ratio"][0] > 1 > nested["ratio"][0]:
        ahead = """
A share above 1 is no feat of the few: F1 of one type against the rest counts what lies above 0, and
on unseen verbs a probe on all neurons, fitted to few examples, says yes too seldom. Where the
largest of six log-odds counts, as in the nested reading below, all neurons are ahead.
"""
    text = f"""# Instructions with several tasks

Written by `{COMMAND}`; {MODEL}, seed {seed}, {minutes:.1f} minutes of processor time.

After tagE (arXiv 2310.15605), which trains a sequence model to read the tasks of an instruction
and their arguments nestedly. Here nothing but logistic probes is trained: are there neurons for a
type of task, at its verb and at its argument, and does the model use them? `ls.tasks.instructions`
makes sentences such as *Please carry the jar to Anna, then take a cloth to the map*; {n_learn:,}
examples rank and train, {n_held:,} of {n_groups} other households test, with verbs, things, names,
places and templates that the first half does not have. A thing goes with every type: it tells none.
For time, and before any number was seen, the 720 examples planned were cut to 360.

What was to be shown, written down before the run, and what came out:

{table(["works if", "measured", "value", "met?"], claims)}

## F1 against neurons

Mean over the six types of held-out F1, and the share of all neurons' that {FEW} reach, with 95 %
intervals over households (percentiles of 2,000 draws: too narrow where groups are few, as here).
Saying yes to half at random has 0.25.

{table(of_k, probes)}
{ahead}

![F1 of each type against k]({drawn["f1"]})

*Shuffled within the verb.* Some phrases begin with a verb that begins phrases of other types too
(*take over*, *take a cloth to*). On the {n_light:.0f} held-out ones, F1 of the true types, and of
types shuffled within the first word, which only that word can tell:

{table(["read", f"true, {FEW}", "true, all", f"shuffled, {FEW}", "shuffled, all"], shuffles)}

## r by layer

![r of each layer's best neuron]({drawn["r"]})

## The type first, then its argument

At each verb the type of the largest log-odds; then, of the things of the sentence, the one at which
that type's probe is largest. F1 of the pairs (type, argument), and by the number of tasks in the
sentence (with one task there is one thing to choose from):

{table(["probes on", "F1", "one task", "two", "three"], decoding)}

{taken_out}
## Does not show

That a model understands what people tell a robot: the sentences are made from lists, and SmolLM2
is small. tagE is trained for the task and its numbers are of other data, so none of them stands
beside these. One seed of the task and one split; an interval says nothing of other lists of verbs.
"""
    text = re.sub(r"(?<=\d)%", " %", text)
    (pages / f"{NAME}.md").write_text(text, encoding="utf-8")
