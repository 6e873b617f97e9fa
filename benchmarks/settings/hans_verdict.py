"""What holds up of `hans`: under other prompts, and when the neurons are ablated."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from hans_rows import Rows
from hans_scores import TRUTH
from page import Page, kept, words

import lens_skills as ls
from lens_skills.interventions import Verdict
from lens_skills.scoring import Scores
from lens_skills.soft_prompts import initial_prompt

SHARED = 200  # strongest neurons of each prompt whose overlap is counted


def repeated(page: Page, model: Any, prompts: list[Any], rows: Rows, sizes: Namespace) -> None:
    """The same search under every prompt, and under one that was not trained."""
    at = sizes.rows + sizes.stop + sizes.tested
    first, second = rows.part(at, sizes.each), rows.part(at + sizes.each, sizes.each // 2)
    start = initial_prompt(model, sizes.tokens, init="vocabulary", seed=0)
    ways = {f"seed {seed}": prompt for seed, prompt in enumerate(prompts)} | {"untrained": start}
    one, other = {}, {}
    for name, prompt in ways.items():
        folder = sizes.runs / "hans"

        def passed(part: Any, more: dict[str, Any], prompt: Any = prompt) -> Callable[[], Any]:
            return lambda: ls.score(
                model, part, metrics=[TRUTH], prompt=prompt, n_rotations=0,
                **more,
            )  # fmt: skip

        one[name] = kept(folder / f"part {name}", Scores, passed(first, {"n_permutations": 39}))
        if name != "untrained":
            more = {"n_permutations": 0, "n_controls": 0, "baseline": one[name]}
            other[name] = kept(folder / f"rest {name}", Scores, passed(second, more))
    largest = ", ".join(f"{name} {float(s[TRUTH].strength.max()):.2f}" for name, s in one.items())
    page.say(
        f"**Seeds.** The search for the truth again, under every prompt, on the same {len(first)} "
        f"rows (none trained a prompt). Largest |r|: {largest}."
    )
    agreed = ls.compare_scores(
        [one[f"seed {seed}"] for seed in range(len(prompts))], metric=TRUTH, top=SHARED
    )
    page.say(f"```\n{agreed!r}\n```")
    page.figures |= {
        "shared_fewest": int(agreed.shared.min()), "shared_most": int(agreed.shared.max())
    }  # fmt: skip
    page.picture(
        ls.figures.compare_scores(agreed), "stability",
        f"How many of the {SHARED} strongest neurons two prompts share, beside chance.",
    )  # fmt: skip
    told = ls.predictivity(list(other.values()), metric=TRUTH)
    best = told.frame().head(3)
    page.table(
        best,
        f"Predictivity (mean over prompts of the best position, thresholds from other rows, "
        f"{len(second)} rows, classes balanced; without a null), the three best neurons:",
    )


def ablated(page: Page, model: Any, prompt: Any, found: Any, rows: Rows, sizes: Namespace) -> None:
    """What the survivors do, or the strongest where nothing survives."""
    alive: dict[str, str] = {}  # the strongest survivor of each metric
    for metric in found.metrics:
        view = found[metric]
        passed = list(view.passing().values())[-1].any(0)
        if bool(passed.any()):
            unit = int(torch.where(passed, view.strength, -1.0).argmax())
            alive.setdefault(f"L{found.layer[unit]}N{found.neuron[unit]}", metric)
    strongest = found[TRUTH].top(sizes.top)
    names = list(alive) or strongest.names
    spare = rows.part(sizes.rows + sizes.stop + sizes.tested, 100).where(heuristic=rows.rule)
    few = ls.tasks.few(spare, sizes.verdict, seed=0)
    folder = sizes.runs / "hans" / "verdict"
    verdict = kept(
        folder,
        Verdict,
        lambda: ls.verify(
            model, few, names, do=ls.ablate("mean", over=found), position="prompt",
            prompt=prompt,
            controls=ls.controls(sets=0, neurons=sizes.controls), also=(), pairs=False, by=(),
            exploratory=True, checkpoint=folder.with_name("verdict unfinished"),
        ),
    )  # fmt: skip
    chosen = (
        "the strongest neuron of each metric that passes every null drawn: "
        + ", ".join(f"{name} ({metric})" for name, metric in alive.items())
        if alive
        else f"no neuron survived the nulls; the {len(names)} of largest |r| with the truth, "
        f"tested all the same: {', '.join(names)}"
    )
    page.say(
        f"**Verdict, exploratory**: {chosen}. Mean ablation at all prompt "
        f"positions on {len(few)} rows of the rule that trained no prompt, each neuron beside "
        f"{sizes.controls} others of its layer; effect on the log-odds of the right answer: "
        f"{words(verdict)}."
    )
    if "word" in verdict.frame():
        shown = [c for c in ("name", "effect", "low", "high", "word") if c in verdict.frame()]
        page.table(verdict.frame()[shown], f"Effects in nats, δ = {verdict.delta:.3f}:")
    page.picture(
        ls.figures.effect_forest(verdict), "verdict",
        "Change of the right answer's log-odds when each neuron is ablated, with 95 % intervals.",
    )  # fmt: skip
