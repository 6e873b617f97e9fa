"""The page of `agreement_circuits.py`, from its numbers alone."""

import math
from pathlib import Path
from typing import Any

from pictures import keep

from lens_skills.plotting import figures
from lens_skills.plotting.ranking_plots import method_words
from lens_skills.ranking.path_methods import STEPS

Table = Any
"""A DataFrame, whose own types say too little of what indexing gives."""

REACHED = 0.9
AGREEMENT = ("simple", "nounpp", "sums")
TITLES = {
    "simple": "simple agreement", "nounpp": "agreement over a phrase", "ioi": "indirect objects",
    "greater_than": "greater-than", "sums": "sums",
}  # fmt: skip
ALL = {"simple", "nounpp", "ioi", "greater_than"}
RULES = """## How it is measured

- **Circuit.** Of a set C of units the neurons compute what they compute in that very pass; all
  other MLP neurons carry a corrupted value. Attention, norms and embeddings are whole throughout,
  and never part of a circuit.
- **Unit.** In agreement a neuron at a token position (prompts are of one length; the released
  code of Marks et al. keeps positions apart there too), in the other tasks a neuron at all
  positions (their sums over positions).
- **Corrupted value.** `mean`: the unit's mean over the corrupted twins of all test pairs, at its
  position (as the released code of Marks et al.). `twin`: its value on the example's own twin.
- **faithfulness** = (m(C) - m(∅)) / (m(M) - m(∅)), m the metric's mean over the pairs, M the
  model, ∅ no neuron; **completeness** is the same of all units *but* C (Marks et al. 2024,
  section 3). Intervals: 95 %, bootstrap over groups.
- **K at 0.9**: the smallest number on the grid that reaches it, with the 95 % interval of groups
  drawn anew; of random neurons the median draw and the range. Later points may fall below 0.9
  again.
- **CPR, CMD**: areas under faithfulness, and between it and 1, against the share of units kept,
  0.001 … 1 (MIB's definition and grid, arXiv 2504.13151). **They are of MLP neurons: not to be
  compared with MIB's**, whose units are edges or dimensions of a submodule's output.
- **Rankings**, all made on the ranking pairs alone, the largest |number| first: `attribution`
  (twin - a) · gradient; `integrated gradients` the same with the mean gradient at {steps} points
  between, layer by layer; `relevance` (twin - a) · coefficient of relevance propagation; `Taylor`
  |a · gradient|; `prediction` (mean - a) · gradient, the first-order effect of mean ablation;
  `Pearson r` with a label (over positions the largest). Every point of every curve is a forward
  pass: nothing is estimated. `specific` was not tried: it reads other tasks at the last token
  alone.
"""
CLAIM = """## What differs from the published claim

"A circuit of about 10² MLP neurons is enough" (arXiv 2601.22594) is said of Llama-3.1-8B, ranked
by relevance; its released settings rank on 10 pairs and run on 40, with mean ablation. Here the
model is smaller by a factor of {factor}, the pairs are divided so that no pair is in both parts
(the published parts share pairs: all 20 of `simple`, 317 of 395 of `nounpp`), and the relevance has
no stabiliser. A share of a model's neurons is not a number of neurons: both are in the table.
"""


def number(value: float) -> str:
    """A number of neurons; beyond the grid: none."""
    return "none" if value == float("inf") else f"{value:,.0f}"


def _write_table(lines: Table, values: str, task: str) -> list[str]:
    rows = ["| ranking | K at 0.9 | of all | CPR | CMD |", "|---|---|---|---|---|"]
    here = lines[(lines["task"] == task) & (lines["values"] == values)].sort_values("cmd")
    for row in here.itertuples():
        share = "" if row.k == float("inf") else f"{row.k / row.units:.2%}"
        interval = f"{number(row.k)} [{number(row.k_low)}, {number(row.k_high)}]"
        name = "random" if row.method == "random" else method_words(str(row.method))
        rows.append(f"| {name} | {interval} | {share} | {row.cpr:.3f} | {row.cmd:.3f} |")
    return rows


def _fact(fact: dict[str, Any]) -> str:
    units = "a neuron at a position" if fact["by_position"] else "a neuron at all positions"
    sure = fact["gap_low"] > 0 or fact["gap_high"] < 0
    warn = "" if sure else " **The gap includes 0: shares of it mean nothing.**"
    unit = f" {fact['unit']}" if fact["unit"] else ""
    return (
        f"{fact['said']}. Ranked on {fact['n_rank']} pairs in {fact['rank_groups']} groups, "
        f"measured on {fact['n_test']} in {fact['test_groups']}"
        + ("" if fact["test_groups"] >= 30 else " (fewer than 30: what the data have)")
        + f"; `{fact['example'].strip()!r}` beside `{fact['twin'].strip()!r}`. "
        f"{fact['units']:,} units ({units}; positions from the first difference on: "
        f"{fact['columns']}). Model {fact['whole']:+.2f}{unit}, no neuron ({fact['main']}) "
        f"{fact['empty']:+.2f}: gap [{fact['gap_low']:.2f}, {fact['gap_high']:.2f}].{warn} "
        f"Pearson r is with `{fact['label']}`."
    )


def _said(lines: Table, points: Table, fact: dict[str, Any]) -> str:
    """What a task's numbers come to, in words."""
    here = lines[(lines["task"] == fact["name"]) & (lines["values"] == fact["main"])]
    ranked = here[here["method"] != "random"].sort_values(["k", "cmd"])
    best, chance = ranked.iloc[0], here[here["method"] == "random"].iloc[0]
    nearest = ranked.sort_values("cmd").iloc[0]
    at = points[(points["task"] == fact["name"]) & (points["values"] == fact["main"])
                & (points["what"] == "faithfulness")]  # fmt: skip
    at = at[at["size"] == min(at["size"], key=lambda size: abs(math.log(size / 100)))]
    said = (
        f"Fewest neurons to {REACHED:g}: {method_words(best['method'])}, {number(best['k'])} "
        f"[{number(best['k_low'])}, {number(best['k_high'])}]; random neurons "
        f"{number(chance['k'])}. Nearest to the model over all shares: "
        f"{method_words(nearest['method'])} (CMD {nearest['cmd']:.3f}; random "
        f"{chance['cmd']:.3f})."
    )
    top = at[at["method"] != "random"].sort_values("value", ascending=False).iloc[0]
    enough = f"does not hold here (it is below {REACHED:g})"
    if top["low"] >= REACHED:
        enough = "holds here"
    elif top["high"] >= REACHED:
        enough = f"is not decided here (the interval holds {REACHED:g})"
    return said + (
        f" With {top['size']:,} units the best of the rankings, chosen after the fact, is "
        f"{method_words(top['method'])} at {top['value']:.2f} [{top['low']:.2f}, "
        f"{top['high']:.2f}]: that about 10² neurons are enough {enough}."
    )


def write_page(
    out: Path, slug: str, options: str, asked: str | None, model: str, points: Table,
    lines: Table,
    facts: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Page, figures and tables of one model."""
    out.mkdir(parents=True, exist_ok=True)
    lines.to_csv(out / f"{slug}_summary.csv", index=False, float_format="%.6g")
    points.to_csv(out / f"{slug}_points.csv", index=False, float_format="%.6g")
    names = [fact["name"] for fact in facts]
    if "qwen2.5-coder-0.5b" in slug:
        model = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    public = "" if asked is None else f" --model {model if '/' in model else Path(asked).name}"
    page = [f"# How many neurons carry the answer? ({model})", ""]
    if set(names) != ALL:
        public += f" --tasks {' '.join(names)}"
    page += [f"`python benchmarks/agreement_circuits.py --data FOLDER{public}{options}`"]
    missing = [TITLES[name] for name in sorted(ALL - set(names))]
    if missing and "sums" not in names:
        page += ["", f"Not run on this model yet: {', '.join(missing)}."]
    if asked is not None and asked.endswith(".gguf"):
        page += ["", "A 4-bit GGUF of that public model was run, opened in float32."]
    page.append("")
    pictures = []
    mains = {fact["name"]: fact["main"] for fact in facts}
    for kind, some in (("agreement", [n for n in names if n in AGREEMENT]),
                       ("mib", [n for n in names if n not in AGREEMENT])):  # fmt: skip
        drawn = points[points["task"].isin(some)]
        drawn = drawn[drawn["values"] == drawn["task"].map(mains)]
        if drawn.empty:
            continue
        sizes = "; ".join(
            f"{fact['name']}: {fact['n_test']} pairs in {fact['test_groups']} groups"
            for fact in facts if fact["name"] in some
        )  # fmt: skip
        frame = drawn.assign(task=drawn["task"].map(TITLES)).drop(columns="values")
        picture = keep(
            figures.neuron_circuits(frame, about=f"{model} · {sizes}"),
            out / f"{slug.replace('.', '_')}_{kind}",
        )
        pictures.append((kind, picture.name))
    for fact in facts:
        task = fact["name"]
        page += [
            f"## {TITLES[task].capitalize()}",
            "",
            _fact(fact),
            "",
            _said(lines, points, fact),
            "",
            *_write_table(lines, fact["main"], task),
            "",
        ]
        if "twin" in set(lines.loc[lines["task"] == task, "values"]) and fact["by_position"]:
            page += ["With the twin's values in place of means:", ""]
            page += [*_write_table(lines, "twin", task), ""]
    for kind, name in pictures:
        page += [f"![faithfulness against the number of neurons, {kind}]({name})", ""]
    factor = "60" if slug == "smollm2" else "16" if "qwen" in slug else "1,000"
    minutes = sum(fact["minutes"] for fact in facts)
    page += [RULES.format(steps=STEPS), CLAIM.format(factor=factor)]
    page += [
        f"Processor time of rankings and runs: {minutes:.1f} minutes on one thread. Seeds: "
        "division and choice of pairs 0, random neurons 0 to 4, resampled groups 0. Numbers: "
        f"[summary]({slug}_summary.csv), [every point]({slug}_points.csv).",
        "",
    ]
    (out / f"{slug}.md").write_text("\n".join(page), encoding="utf-8")
    print(f"written: {out / f'{slug}.md'}")
