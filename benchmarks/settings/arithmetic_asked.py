"""The section of `arithmetic` on a model asked for: what it can do, prompts, neurons, verdicts."""

from argparse import Namespace
from typing import Any

import pandas as pd
from arithmetic_cells import Problems, abilities
from page import Page, funnel, kept, kept_table, words
from room import told_beforehand

import lens_skills as ls
from lens_skills.interventions import Verdict
from lens_skills.interventions.verdict import CAUSAL
from lens_skills.models import SoftPrompt
from lens_skills.scoring import Scores
from lens_skills.soft_prompts import PromptComparison

METRICS = ("label:carry", "correct", "confidence", "margin", "entropy")
GIVEN = ("op", "digits")
HARD = ("The answer is ",)
MENTIONED = 4  # neurons of a verdict that stand in its sentence, of largest effect
PARTS = ("abilities", "prompts", "last", "prompt")
NAMES = {"last": "last token", "prompt": "prompt vectors"}
AT = {"last": METRICS[:3], "prompt": ("confidence",)}
BEATS = ("correct", "first_token", "log_probability", "over_foil")
DIFFER = {
    "cells_with_skill": "of twelve operations × digits, with a skill to explain, zero-shot",
    "zero_shot_whole": "whole answer right, real problems, zero-shot",
    "zero_shot_first": "first token right, real problems, zero-shot",
    "few_shot_whole": "whole answer right, real problems, four-shot",
    "no_prompt": "whole answer right on the problems of the prompts, no prompt",
    "best_written": "the same, best written prompt",
    "seed_0": "the same, soft prompt of seed 0",
    "seed_1": "the same, soft prompt of seed 1",
    **{
        f"{where}_{metric}_{gate}": f"{metric}, {words_of}: neurons {gate}"
        for where, words_of in (("last", "last token"), ("prompt", "prompt vectors"))
        for metric in ("carry", "correct", "confidence")
        for gate in ("associated", "confirmed", "causal")
    },
}


def on_asked(page: Page, model: Any, given: Namespace) -> None:
    """Every part of the section, in turn."""
    problems = Problems(model, given)
    page.say(problems.said())
    told = kept_table(
        given.runs / "arithmetic" / "told beforehand.csv",
        lambda: pd.DataFrame(
            {"said": [told_beforehand("score", model, problems.explore, metrics=METRICS)]}
        ),
    )
    page.say(f"**Memory and time**, {told['said'][0]}.")
    abilities(page, model, problems, given)
    last = PARTS.index(given.until)
    prompts = prompted(page, model, problems, given) if last > 0 else ()
    if last > 1:
        neurons(page, model, problems, "last", None, given)
    if last > 2:
        neurons(page, model, problems, "prompt", prompts[0], given)
    if last + 1 < len(PARTS):
        left = [f"neurons and verdicts at the {NAMES[part]}" for part in PARTS[max(last + 1, 2) :]]
        left = (["soft prompts"] if last < 1 else []) + left
        page.say(
            f"**Not run** (`--until {given.until}`): {'; '.join(left)}. The same command without "
            "it goes on from what is kept."
        )
    page.differ(
        DIFFER,
        "The same command, sizes and problems were asked of SmolLM2 "
        "([its page](../smollm2/README.md)); of parts that one of the two did not run there is no "
        "row. Shares of the zero- and four-shot rows are means over the operations and digits, "
        "whose intervals stand in the tables of the two pages.",
        of="_smollm2",
    )


def prompted(page: Page, model: Any, problems: Problems, given: Namespace) -> tuple[Any, ...]:
    """Soft prompts trained on generated problems, tested on the real ones beside controls."""
    learn, tested = problems.learn, problems.tested
    folders = [given.runs / "arithmetic" / f"prompt {seed}" for seed in range(given.seeds)]
    options: dict[str, Any] = {
        "n_tokens": given.vectors, "ending": "\n", "lr": given.lr, "epochs": given.epochs,
        "batch_size": 8, "schedule": "cosine", "patience": given.epochs, "held_out": 0.15,
    }  # fmt: skip
    prompts = tuple(
        kept(
            folder,
            SoftPrompt,
            lambda seed=seed: ls.fit_prompt(model, learn, seed=seed, **options),
        )
        for seed, folder in enumerate(folders)
    )
    compared = kept(
        given.runs / "arithmetic" / "compared",
        PromptComparison,
        lambda: ls.compare_prompts(model, tested, prompts, hard=HARD),
    )
    long = compared.frame()
    frame = long.pivot(index="prompt", columns="metric", values="mean")
    frame = frame.loc[list(compared.names), list(BEATS)].reset_index()
    whole = long[long["metric"] == "correct"].set_index("prompt").loc[list(compared.names)]
    ends = [f"{low:.2f} to {high:.2f}" for low, high in whole[["low", "high"]].to_numpy()]
    frame.insert(2, "its 95 % interval", ends)
    page.say(
        f"**Soft prompts.** {given.vectors} vectors after the input, {given.seeds} seeds, trained "
        f"on {len(learn)} generated problems (about one in seven only looked at, to stop; at most "
        f"{given.epochs} epochs of batches of 8, learning rate {given.lr:g}: few steps, and what "
        "they reach is no bound on what a prompt can; no row of the files is trained on), "
        f"tested on {len(tested)} of {problems.source} in {len(tested.groups)} groups whose pairs "
        "of operands were not learned from. `correct` asks for the whole answer and the end of the "
        "line."
    )
    page.table(frame, "Means over the problems tested, intervals over groups:", "prompts")
    right = frame.set_index("prompt")["correct"]
    trained = [right[name] for name in right.index if name.startswith("trained")]
    written = max(share for name, share in right.items() if str(name).startswith("hard"))
    start = [right[name] for name in right.index if name.startswith("before")]
    page.figures |= {f"seed_{seed}": share for seed, share in enumerate(trained)}
    page.figures |= {"no_prompt": right["no prompt"], "best_written": written}
    page.say(
        f"Whole answer: trained {', '.join(f'{share:.2f}' for share in trained)}; before training "
        f"{', '.join(f'{share:.2f}' for share in start)}; no prompt {right['no prompt']:.2f}; "
        f"written prompt {written:.2f}: "
        + (
            "**every seed is above all of them**."
            if min(trained) > max(right["no prompt"], written, *start)
            else "**no gain that every seed shows**."
        )
    )
    page.picture(
        ls.figures.learning_curves(prompts), "curves",
        "Loss and accuracy of the prompts while they were trained; thick lines: held out.",
    )  # fmt: skip
    return prompts


def neurons(
    page: Page, model: Any, problems: Problems, where: str, prompt: Any, given: Namespace
) -> None:
    """All neurons with every metric, the gates they pass, and verdicts, at one kind of position."""
    folder = given.runs / "arithmetic"
    explore, confirm = problems.explore, problems.confirm
    found = kept(
        folder / f"explore {where}",
        Scores,
        lambda: ls.score(
            model, explore, metrics=METRICS, prompt=prompt, given=GIVEN,
            n_permutations=given.draws, n_controls=given.draws,
            checkpoint=folder / f"explore {where} unfinished",
        ),
    )  # fmt: skip
    strongest = sorted(
        {name for metric in found.metrics for name in found[metric].top(given.confirmed).names}
    )
    checked = kept(
        folder / f"confirm {where}",
        Scores,
        lambda: ls.score(
            model, confirm, metrics=METRICS, prompt=prompt, given=GIVEN, neurons=strongest,
            n_permutations=given.draws or 1999, n_controls=given.draws or 999,
        ),
    )  # fmt: skip
    title = (
        "the last token of the question"
        if prompt is None
        else f"the {given.vectors} vectors of the soft prompt of seed 0 (a neuron passes a gate "
        "where it passes at any of them)"
    )
    page.say(
        f"**Neurons at {title}.** Of {problems.source}, {len(explore)} problems in "
        f"{len(explore.groups)} groups to explore, {len(confirm)} in {len(confirm.groups)} to "
        f"confirm, {len(problems.intervene)} in {len(problems.intervene.groups)} to intervene. "
        f"{found.n_units:,} neurons; operation and digits partialled out of both sides; on confirm "
        f"the {given.confirmed} strongest of each metric."
    )
    if "correct" in found.metrics:
        page.say(by_sign(found, explore))
    rows, told, picture = [], [], None
    for metric in found.metrics:
        if metric not in checked.metrics:
            told.append(f"- {metric}: took one value on the confirm split, nothing to confirm.")
            continue
        row, selection = funnel(found[metric], checked[metric])
        short = metric.removeprefix("label:")
        row = {
            "metric": metric, "largest r": float(found[metric].strength.max()),
            "threshold": found[metric].threshold, **row,
        }  # fmt: skip
        if metric in AT[where]:
            try:
                verdict = verdict_of(
                    model, problems, where, prompt, found[metric], selection, given
                )  # fmt: skip
            except ls.LensSkillsError as error:  # such as: the controls move nothing, so no δ
                told.append(f"- {metric}: no verdict. {error}")
            else:
                row |= judged(page, metric, verdict, selection, where)
                told.append(verdict_told(metric, verdict, selection, given))
                picture = verdict if metric == "confidence" else picture
        page.figures |= {
            f"{where}_{short}_{gate}": row[gate]
            for gate in ("associated", "confirmed")
            if gate in row
        }
        rows.append(row)
    page.table(
        pd.DataFrame(rows),
        "How many neurons are left after each gate; grades (A causal, B confirmed, C associated "
        "and confirmed) where there was a verdict:",
        f"gates_{where}",
    )
    page.say(
        f"Verdicts: mean ablation there, on {len(problems.intervene)} problems; effect on the "
        "logit of the answer's first token over that of the foil; each neuron beside "
        f"{given.controls} others of its layer, the set beside {given.sets} matched sets of equal "
        "size (all of them, with intervals: `arithmetic_verdict_*.csv` beside this page).\n\n"
        + "\n".join(told)
    )
    if prompt is not None:
        page.picture(
            ls.figures.correlation_by_position(found["confidence"]), "positions",
            "Largest correlation with confidence by layer and prompt vector.",
        )  # fmt: skip
    else:
        page.picture(
            ls.figures.layer_profile(found["confidence"]), "layers",
            "Largest correlation with confidence in each layer, at the last token.",
        )  # fmt: skip
        if {"correct", "confidence"} <= set(found.metrics):
            page.picture(
                ls.figures.confidence_against_correctness(found), "confidence",
                "Share of right answers by the model's confidence, without a prompt.",
            )  # fmt: skip
    if picture is not None:
        page.picture(
            ls.figures.effect_forest(picture), f"forest_{where}",
            "Effect of ablating the neurons of confidence, alone and together, with 95 % "
            "intervals.",
        )  # fmt: skip


def judged(page: Page, metric: str, verdict: Verdict, selection: Any, where: str) -> dict[str, int]:
    """Keeps a verdict's numbers beside the page; how many neurons have each grade."""
    short = metric.removeprefix("label:")
    verdict.frame().to_csv(
        page.out / f"{page.name}_verdict_{where}_{short}.csv", index=False, float_format="%.6g"
    )
    causal = sum(ruling.word in CAUSAL for ruling in verdict.rulings[:-1])
    page.figures[f"{where}_{short}_causal"] = causal
    grades = selection.graded(verdict)["grade"].value_counts()
    return {f"grade {grade}": int(grades.get(grade, 0)) for grade in "ABC"}


def by_sign(found: Scores, explore: ls.Task) -> str:
    """How many of the problems with negative results are right, and of the others."""
    negative = {example.id: bool(example.covariates["negative"]) for example in explore}
    right: dict[bool, list[float]] = {True: [], False: []}
    for name, value in zip(found.example_ids, found.values["correct"].tolist(), strict=True):
        right[negative[name]].append(value)
    return (
        f"On the explore split {sum(right[True]):.0f} of {len(right[True])} negative results are "
        f"written, and {sum(right[False]):.0f} of {len(right[False])} others."
    )


def verdict_of(
    model: Any, problems: Problems, where: str, prompt: Any, found: Any, selection: Any,
    given: Namespace,
) -> Verdict:  # fmt: skip
    """All confirmed neurons, or where there are fewer than two the strongest; and all together."""
    which = selection.to_try(len(selection)) if len(selection) > 1 else found.top(given.top)
    folder = given.runs / "arithmetic" / f"verdict {where} {found.metric.removeprefix('label:')}"
    return kept(
        folder,
        Verdict,
        lambda: ls.verify(
            model, problems.intervene, which, do=ls.ablate("mean", over=found.scores),
            metric=problems.first_over_foil, prompt=prompt,
            position="last" if prompt is None else "prompt",
            controls=ls.controls(sets=given.sets, neurons=given.controls), also=(), pairs=False,
            by=(), unrelated=False, checkpoint=folder.with_name(f"{folder.name} unfinished"),
        ),
    )  # fmt: skip


def verdict_told(metric: str, verdict: Verdict, selection: Any, given: Namespace) -> str:
    """The words of one verdict, its set apart, and how its neurons were chosen."""
    singles, together = verdict.rulings[:-1], verdict.rulings[-1]
    chosen = (
        f"all {len(singles)} confirmed"
        if len(selection) > 1
        else f"{len(selection)} confirmed, so the {given.top} of largest |r|"
    )
    largest = sorted(singles, key=lambda one: -abs(one.effect))[:MENTIONED]
    each = "; ".join(
        f"{one.name} {one.effect:+.3g} [{one.low:.3g}, {one.high:.3g}] {one.label}"
        for one in largest
    )
    most = f"Largest effects of {len(singles)}: " if len(singles) > len(largest) else ""
    beside = "" if together.p is None else f", p {together.p:.2g} among {together.n_controls} sets"
    return (
        f"- {metric} ({chosen}): {words(verdict)}. {most}{each}. Together {together.effect:+.3g} "
        f"[{together.low:.3g}, {together.high:.3g}]{beside}: **{together.label}**; δ = "
        f"{verdict.delta:.3g} nats."
    )
