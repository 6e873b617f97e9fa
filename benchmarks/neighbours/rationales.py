"""Do neurons do more at the span an answer hangs on than at other tokens?

Neurons are those of largest |r| with a label on explore, read at the word that says it (the
subject; the operation). On another split the rationale of each right answer is found, and the
neurons' mean ablation there is set against that at as many tokens beside it; random neurons of the
same layers, at the same tokens, say what any neurons do there.

    python benchmarks/neighbours/rationales.py            # about 3 processor minutes
    python benchmarks/neighbours/rationales.py --quick    # arithmetic-small, few examples
    python benchmarks/neighbours/rationales.py --save
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

import lens_skills as ls  # noqa: E402
from lens_skills import figures  # noqa: E402
from lens_skills.activations.components import parse_neurons  # noqa: E402
from lens_skills.interventions.control_neurons import random_neurons  # noqa: E402
from lens_skills.tasks import Task, few  # noqa: E402

RESULTS = HERE.parents[1] / "results" / "neighbours_rationales.json"
RUNS = HERE.parents[2] / "runs" / "rationales"
FIGURES = HERE.parents[2] / "figures" / "neighbours"
NEURONS, EXAMPLES = 50, 64
WORDS = {"+": "plus", "-": "minus"}


def agreement() -> tuple[Any, Task, str]:
    """SmolLM2, the number of the subject, read at the subject."""
    task = ls.tasks.agreement(n=240)
    rows = [replace(e, covariates={**e.covariates, "word": e.kind}) for e in task]
    return ls.load_model(), Task("agreement", rows), "plural"


def operation() -> tuple[Any, Task, str]:
    """arithmetic-small, sum or difference, read at the operation's word."""
    task = ls.tasks.arithmetic("+-", options=True)
    rows = [
        # Without a foil the margin is against the best of the other options.
        replace(e, foil=None, covariates={**e.covariates, "word": WORDS[str(e.labels["op"])]})
        for e in task
    ]
    return ls.load_model("arithmetic-small"), Task("arithmetic", rows), "op"


CASES = {
    "subject's number, twins": (agreement, "twin"),
    "subject's number, donors": (agreement, "donors"),
    "operation, donors": (operation, "donors"),
}


def measured(case: str, n: int) -> list[dict[str, Any]]:
    """Two rows: the neurons, and random ones of their layers."""
    kept = RUNS / f"{case}-{n}.json".replace(" ", "_")
    if kept.exists():
        return json.loads(kept.read_text())
    began = time.process_time()
    make, corruption = CASES[case]
    model, task, label = make()
    explore, rest = task.split(0.5, 0.5, seed=0)
    tried = few(rest, n, seed=0)
    scores = ls.score(
        model, explore, metrics=f"label:{label}", position=ls.span(column="word"),
        n_permutations=0, n_controls=0, n_rotations=0,
    )  # fmt: skip
    found = [unit.name for unit in scores[scores.metrics[0]].top(NEURONS)]
    width = int((scores.layer == scores.layer[0]).sum())
    others = random_neurons(parse_neurons(found, scores.site), NEURONS, width=width, seed=0)
    do = ls.ablate("mean", over=explore)
    rows = []
    for who, neurons in (("strongest |r|", found), ("random, same layers", others)):
        one = ls.rationales(model, tried, neurons, do=do, corruption=corruption, longest=3)
        print(case, who, one, sep="\n", flush=True)
        table = one.frame()
        rows.append(
            {
                "case": case, "neurons": who, "ratio": one.ratio, "low": one.low, "high": one.high,
                "at": float(table["effect"].abs().mean()),
                "beside": float(table["matched_effect"].abs().mean()),
                "right": int((table["margin"] > 0).sum()), "n": len(table),
                "flipped": int((table["length"] > 0).sum()), "ablated": one.n_ablated,
                "groups": int(table[table["matched_effect"].notna()]["group"].nunique()),
                "one_token": float((table["length"] == 1).sum() / (table["length"] > 0).sum()),
                "texts": ", ".join(map(repr, table[table["length"] > 0]["text"].value_counts()
                                       .head(5).index)),
                "minutes": (time.process_time() - began) / 60,
            }
        )  # fmt: skip
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(rows))
    return rows


def result(rows: pd.DataFrame, command: str) -> list[dict[str, Any]]:
    """The rows that are kept: one for each case, of the strongest neurons."""
    kept = []
    for case, part in rows.groupby("case", sort=False):
        own, random = (part.iloc[place] for place in (0, 1))
        kept.append(
            {
                "neighbour": "2109.08259 few-shot rationales",
                "verb": "ls.rationales",
                "works_if": "ablation of the neurons at the rationale moves the answer further "
                "than at matched tokens: the interval of the ratio of sizes is above 1",
                "measured": f"{case}: ratio {own['ratio']:.2f} [{own['low']:.2f}, "
                f"{own['high']:.2f}] for the {NEURONS} strongest |r|, {random['ratio']:.2f} "
                f"[{random['low']:.2f}, {random['high']:.2f}] for random neurons of their layers; "
                f"{own['flipped']:.0f} of {own['right']:.0f} right answers have a rationale of up "
                f"to 3 tokens, {own['one_token']:.0%} of these one token",
                "value": own["ratio"], "low": own["low"], "high": own["high"],
                "met": bool(own["low"] > 1),
                "model": "arithmetic-small" if "operation" in str(case) else "SmolLM2-135M",
                "groups": f"{own['groups']:.0f} groups",
                "command": command,
                "cpu_minutes": round(float(part["minutes"].max()), 1),
            }
        )  # fmt: skip
    return kept


def figure(rows: pd.DataFrame) -> Any:
    """Ratios with their intervals, of the neurons and of random ones."""
    columns = {"case": "label", "neurons": "what", "ratio": "value"}
    return figures.paired_intervals(
        rows.rename(columns=columns)[["label", "what", "value", "low", "high"]],
        title="Do neurons act where the answer hangs?",
        axis="effect: rationale over matched tokens",
        lines=(f"mean ablation of {NEURONS} neurons",),
        note="Bars: 95 % intervals over groups. Dotted: no difference.",
        reference=1.0,
    )


PAGE = """\
# Rationales: where an answer hangs, and what neurons do there

After few-shot rationale extraction (arXiv 2109.08259), of which `rationales` is a simple analogue:
the smallest span of tokens whose corruption flips the answer, found by trying all. How to use it:
[few labels](../../docs/howto/few_labels.md).

{measured}

![ratio of the effect at the rationale to that at matched tokens](rationales/ratio.png)

Neurons: the {neurons} of largest |r| with the label on explore, read at the word that says it.
Rationales and ablations are of another split ({examples} examples at most, no group in both).
Twins: the subject in the other number stands in, so that the rationale can only be the subject.
Donors: tokens of four examples with another answer. Matched tokens are as many, nearest in
distance to the end.

The random neurons say how much of the ratio belongs to the place: any neuron may matter more at
the word that decides than beside it.

| case | neurons | ratio [95 %] | nats at the rationale | beside | rationales | most often |
|---|---|---|---|---|---|---|
{table}

Cases, neurons, examples and spans were fixed before anything was run; a smoke run on 24 examples
came first. Cases that are not in the table were not run. Where random neurons reach the same
ratio, it is the place's and not these neurons'.

`{command}`: {minutes} processor minutes.
"""


def write(rows: pd.DataFrame, found: list[dict[str, Any]]) -> None:
    """The page and its figure."""
    from pictures import keep

    keep(figure(rows), FIGURES / "rationales" / "ratio")
    lines = [
        f"| {row['case']} | {row['neurons'].replace('|', chr(92) + '|')} | {row['ratio']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}] | {row['at']:.3f} | {row['beside']:.3f} | "
        f"{row['flipped']} of {row['right']} | {row['texts']} |"
        for row in rows.to_dict("records")
    ]
    said = [f"- {row['measured']}. Met: {'yes' if row['met'] else 'no'}." for row in found]
    body = PAGE.format(
        measured="\n".join(said),
        neurons=NEURONS,
        examples=EXAMPLES,
        table="\n".join(lines),
        command=found[0]["command"],
        minutes=round(sum(row["cpu_minutes"] for row in found), 1),
    )
    (FIGURES / "rationales.md").write_text(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    cases = ["operation, donors"] if options.quick else options.cases
    n = 24 if options.quick else EXAMPLES
    rows = pd.DataFrame([row for case in cases for row in measured(case, n)])
    print(rows.to_string())
    named = "" if cases == list(CASES) else " --cases " + " ".join(f'"{one}"' for one in cases)
    found = result(rows, f"python benchmarks/neighbours/rationales.py{named} --save")
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if options.save:
        if options.quick:
            parser.error("--quick is a smoke run: its numbers are not kept")
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write(rows, found)


if __name__ == "__main__":
    main()
