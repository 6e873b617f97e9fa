"""The neurons of `hans`: every row scored at every prompt position, and what they go with."""

from argparse import Namespace
from collections import defaultdict
from typing import Any

import pandas as pd
import torch
from hans_rows import Rows
from page import Page, kept, minutes

import lens_skills as ls
from lens_skills.activations import stream
from lens_skills.scoring import Scores, partial_r

TRUTH = "label:entailment"


def scored(page: Page, model: Any, prompt: Any, rows: Rows, sizes: Namespace) -> Any:
    """Every row of the file at every prompt position."""
    yes, no = (model.tokenizer.encode(w, add_special_tokens=False)[0] for w in (" Yes", " No"))

    def says_yes(logits: Any, examples: Any) -> Any:
        return (logits[:, yes] > logits[:, no]).double()

    metrics: dict[str, Any] = {
        TRUTH: TRUTH, "rule": "label:heuristic",
        "correct": "correct", "confidence": "confidence", "says yes": says_yes,
    }  # fmt: skip
    folder = sizes.runs / "hans" / "all rows"
    part = rows.scored(sizes)
    found = kept(
        folder,
        Scores,
        lambda: ls.score(
            model, part, metrics=metrics, prompt=prompt, n_permutations=sizes.draws,
            exploratory=not sizes.scored, checkpoint=folder.with_name("all rows unfinished"),
        ),
    )  # fmt: skip
    page.figures |= {
        "rows": found.n_examples, "positions": len(found.positions), "minutes": minutes(folder),
        "truth_r_largest": float(found[TRUTH].strength.max()),
    }  # fmt: skip
    trained = len(set(prompt.provenance["example_ids"]) & set(found.example_ids))
    page.say(
        f"**Neurons.** {found.n_examples:,} real rows end to end with the first prompt: "
        f"{found.n_units:,} neurons at each of {len(found.positions)} prompt positions, "
        f"{len(found.metrics)} metrics, in {minutes(folder):.1f} minutes on one core "
        "shared with other jobs. "
        f"Groups are the {found.n_groups} sub-cases, because they decide rule and truth: under "
        "the permutation null whole sub-cases trade their label "
        f"({sizes.draws} draws, family-wise over neurons and positions), the control task "
        "exchanges the sub-cases' means, and random directions are those of one rotation per "
        "layer. "
        + (
            f"{trained} of the rows trained the prompt, so the result is exploratory."
            if trained
            else "None of the rows trained the prompt."
        )
    )
    table = []
    for name in found.metrics:
        view = found[name]
        masks = view.passing() | {"basis-privileged": view.associated & view.basis_privileged}
        counts = {step: int(passed.any(0).sum()) for step, passed in masks.items()}
        largest = {"metric": name, "largest |r|": float(view.strength.max())}
        table.append(largest | {"threshold": view.threshold} | counts)
    page.table(
        pd.DataFrame(table),
        "What |r| had to exceed for p ≤ 5 % family-wise, how many neurons do, and how many of "
        "those beat the control task and are basis-privileged:",
    )
    last = "beat the control task" if "beat the control task" in table[0] else "associated"
    alive = {row["metric"]: row[last] for row in table if row[last]}
    page.say(
        f"Neurons that are or have {last}: "
        + ", ".join(f"{n} for {m}" for m, n in alive.items())
        + "."
        if alive
        else f"**No neuron is or has {last}, for any metric.** What |r| there is, random labels of "
        "30 sub-cases reach too."
    )
    if TRUTH not in alive:
        page.say(
            f"**What did not work: no neuron of the truth.** The largest |r| with it, "
            f"{table[0]['largest |r|']:.2f}, is below what labels traded between {found.n_groups} "
            f"sub-cases reach somewhere ({table[0]['threshold']:.2f}). The prompt answers "
            "the sub-cases it was trained on, one rule's; over all rows the model is right in "
            f"{float((found.values['correct'] > 0).double().mean()):.0%}."
        )
    for name, of in found.excluded_metrics.items():
        page.say(f"`{name}` was left out: {of}.")
    by_subcase(page, found, rows, sizes)
    return found


def by_subcase(page: Page, found: Any, rows: Rows, sizes: Namespace) -> None:
    """Which sub-cases of the rule the first prompt answers."""
    if "correct" not in found.metrics:
        return
    right = dict(zip(found.example_ids, found.values["correct"].tolist(), strict=True))
    fresh = rows.part(sizes.rows + sizes.stop, 100).where(lambda e: e.id in right)
    fresh = fresh.where(heuristic=rows.rule)
    cases: dict[str, list[float]] = defaultdict(list)
    for example in fresh:
        cases[str(example.covariates["subcase"])].append(right[example.id])
    table = [
        {
            "sub-case": case,
            "learned from": "yes" if case in rows.known else "no",
            "right": sum(cases[case]) / len(cases[case]),
        }
        for case in sorted(cases, key=lambda case: (case not in rows.known, case))
    ]
    page.table(
        pd.DataFrame(table),
        f"Share of right answers by sub-case, first prompt, {len(fresh)} rows that trained no "
        "prompt. A new sub-case looks like a known one of the other answer, and is answered so:"
        if all(row["right"] < 0.6 for row in table if row["learned from"] == "no")
        else f"Share of right answers by sub-case, first prompt, {len(fresh)} rows that trained "
        "no prompt:",
    )


def described(page: Page, found: Any, sizes: Namespace) -> None:
    """Truth against the model's answer, confidence given the truth, the matrix; pictures."""
    if "says yes" in found.metrics:
        told = ls.layer_profile(found[TRUTH], answer="says yes").frame()
        best = told.loc[told["strongest"].idxmax()]
        late = told.loc[told["answer_strongest"].idxmax()]
        r = float(
            torch.corrcoef(torch.stack([found.values[TRUTH], found.values["says yes"]]))[0, 1]
        )
        page.say(
            f"**Truth or answer?** The model's answer and the truth correlate at {r:.2f}. The "
            f"largest |r| with the truth is {best['strongest']:.2f}, in layer "
            f"{best['layer']:.0f}; given the model's answer {best['metric_left']:.2f} is left "
            f"there. With the answer itself it is {late['answer_strongest']:.2f}, in layer "
            f"{late['layer']:.0f} ({late['answer_left']:.2f} given the truth)."
        )
    pairs = []
    for metric, given in (("confidence", TRUTH), (TRUTH, "confidence")):
        if metric in found.metrics and given in found.metrics:
            whole, left = found[metric].r.abs(), partial_r(found, metric, given).abs()
            at = int(whole.flatten().argmax())
            pairs.append(
                f"{metric}: largest |r| {float(whole.max()):.2f}, of that neuron given {given} "
                f"{float(left.flatten()[at]):.2f}; largest partial |r| {float(left.max()):.2f}"
            )
    page.say("**Partial r.** " + ". ".join(pairs) + ".")
    names = [n for n in found.metrics if n != "says yes"]
    matrix = ls.skill_matrix(found, metrics=names, top=sizes.matrix)
    if len(matrix.neurons):
        kinds = {k: matrix.kinds.count(k) for k in ("specific", "shared", "unclear")}
        page.say(
            f"**Several skills at once**, the {sizes.matrix} strongest of each beyond its "
            f"permutation null: {', '.join(f'{n} {k}' for k, n in kinds.items())}. Groups by "
            f"likeness: {'; '.join(' + '.join(group) for group in matrix.groups())}."
        )
        page.picture(
            ls.figures.skill_matrix(matrix), "skills",
            "Correlation of the strongest neurons with each metric, at their best prompt position.",
        )  # fmt: skip
    else:
        page.say(
            "**Several skills at once.** No neuron is beyond the permutation null of any metric, "
            "so there is no matrix to draw."
        )
    page.picture(
        ls.figures.layer_profile(found[TRUTH]), "layers",
        "Largest correlation with the truth in each layer, beside random directions and the null.",
    )  # fmt: skip
    page.picture(
        ls.figures.correlation_by_position(found[TRUTH]), "positions",
        "Largest correlation with the truth by layer and prompt position.",
    )  # fmt: skip
    if {"correct", "confidence"} <= set(found.metrics):
        page.picture(
            ls.figures.confidence_against_correctness(found, truth="correct"), "confidence",
            "Share of right answers by the model's confidence, with the soft prompt.",
        )  # fmt: skip


def by_class(page: Page, model: Any, prompt: Any, found: Any, rows: Rows, sizes: Namespace) -> None:
    """How the strongest neuron of the learned rule is distributed over all rules."""
    name = f"rule={rows.rule}"
    if name not in found.metrics:
        return
    r = found[name].r
    place, unit = divmod(int(r.abs().flatten().argmax()), r.shape[1])
    layer, neuron = int(found.layer[unit]), int(found.neuron[unit])
    part = rows.part(sizes.rows + sizes.stop + sizes.tested, sizes.each)
    acts = torch.zeros(len(part))
    at = int(found.positions[place])
    for batch in stream(model, part, layers=layer, position=at, prompt=prompt):
        acts[batch.index] = batch.activations[:, 0, neuron].float()
    page.picture(
        ls.figures.activation_by_class(
            acts, [str(e.labels["heuristic"]) for e in part], name=f"L{layer}N{neuron}",
            metric="heuristic", site=found.site, position=str(at), groups=[e.group for e in part],
            about=" · ".join(str(found.provenance[key]) for key in ("model", "task")),
        ),
        "classes",
        f"Activation of L{layer}N{neuron}, the strongest with {rows.rule}, under each rule "
        f"({len(part)} rows that trained no prompt).",
    )  # fmt: skip
