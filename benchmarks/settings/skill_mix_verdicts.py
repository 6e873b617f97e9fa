"""Verdicts on the neurons of `skill_mix`: on the model's own texts, and on how sure it is."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from page import Page, kept, words
from skill_mix_texts import DONE

import lens_skills as ls
from lens_skills.generation import Graded
from lens_skills.interventions import Verdict
from lens_skills.scoring import Scores

CONFIDENCE = ("mean_log_probability", "first_probability", "mean_entropy")


def neurons_of(found: dict[str, Scores], chosen: Any, name: str, given: Namespace):
    """The confirmed neurons, or the strongest where none was; and how to say so."""
    selection = chosen["trained prompt", name]
    if 0 < len(selection) <= 2 * given.top:
        return selection, f"the {len(selection)} confirmed neurons"
    if len(selection):
        return selection.names[: given.top], (
            f"of {len(selection)} confirmed neurons the {given.top} of largest |r|"
        )
    top = found["trained prompt"][name].top(given.top)
    return top, f"no neuron was confirmed; exploratory, the {given.top} of largest |r|"


def own_text(
    page: Page, model: Any, prompt: Any, graded: Graded, part: set[str],
    found: dict[str, Scores], chosen: Any, names: Sequence[str], given: Namespace,
) -> None:  # fmt: skip
    """Whether the neurons move the odds of a text that shows a skill against one that does not."""
    pairs = {name: twins(model, graded, part, name, given.span) for name in names}
    best = sorted(pairs, key=lambda n: (-len(chosen["trained prompt", n]), -len(pairs[n])))
    if not best or len(pairs[best[0]]) < 6:
        page.say(
            "**Verdicts, its own text**: two draws from one prompt, one with the skill and one "
            f"without, were found for {max((len(p) for p in pairs.values()), default=0)} prompts "
            "at most: too few for a verdict."
        )
        return
    name = best[0]
    which, said = neurons_of(found, chosen, name, given)
    task = ls.Task(graded.name, pairs[name], "two texts of one prompt")
    verdict = ablated(
        given.runs / "skill_mix" / "verdict text", model, task, which, ls.logit_diff(),
        found["trained prompt"], prompt, given,
    )  # fmt: skip
    shows = name if name == DONE else f"shows {name}"
    show(
        page, verdict, f"**Verdicts, its own text, {name}**: {said}. Mean ablation at all prompt "
        f"vectors before the first word; effect on the log-odds (nats) of a text that {shows} "
        "against one that does not, both drawn by the model from the same prompt and cut to "
        f"{given.span} tokens: {len(task)} prompts on {len(task.groups)} topics",
        "text",
    )  # fmt: skip


def twins(model: Any, graded: Graded, part: set[str], skill: str, span: int) -> list[ls.Example]:
    """Prompts of which one draw shows the skill and another does not, with both texts."""
    draws: dict[str, dict[bool, int]] = {}
    for place, example in enumerate(graded.examples):
        if example.group in part:
            shows = bool(graded.grades[skill][place])
            draws.setdefault(example.prompt, {}).setdefault(shows, place)
    kept = []
    for places in draws.values():
        if len(places) < 2:
            continue
        shown, other = (graded.tokens[places[shows]] for shows in (True, False))
        length = min(len(shown), len(other), span)
        answer, foil = (model.tokenizer.decode(list(t[:length])) for t in (shown, other))
        example = graded.examples[places[True]]
        if length >= 4 and answer != foil:
            kept.append(replace(example, answer=answer, foil=foil, labels={}))
    return kept


def own_confidence(
    page: Page, model: Any, prompt: Any, read: Any, found: dict[str, Scores],
    chosen: Any, given: Namespace,
) -> None:  # fmt: skip
    """Whether the neurons that go with confidence move the entropy of the first word."""
    count = {name: len(chosen["trained prompt", name]) for name in CONFIDENCE}
    name = max(CONFIDENCE, key=lambda n: count[n])
    which, said = neurons_of(found, chosen, name, given)
    task = ls.tasks.few(read.intervene, 40, seed=0)
    verdict = ablated(
        given.runs / "skill_mix" / "verdict confidence", model, task, which,
        ls.confidence("entropy"), found["trained prompt"], prompt, given,
    )  # fmt: skip
    show(
        page, verdict, f"**Verdicts, confidence ({name})**: {said}. Effect on the entropy (nats) "
        f"of the first token's distribution, {len(task)} prompts on {len(task.groups)} topics "
        "(*supports* means that the entropy falls when the neuron is removed)",
        "confidence",
    )  # fmt: skip


def ablated(
    folder: Path, model: Any, task: ls.Task, which: Any, metric: Any, found: Scores,
    prompt: Any, given: Namespace,
) -> Verdict:  # fmt: skip
    """Mean ablation of each neuron at all prompt vectors, beside others of its layer."""
    so_far = folder.with_name(f"{folder.name} so far")
    return kept(
        folder, Verdict,
        lambda: ls.verify(
            model, task, which, do=ls.ablate("mean", over=found), metric=metric,
            position="prompt", prompt=prompt,
            controls=ls.controls(sets=0, neurons=given.controls), also=(),
            pairs=False, by=(), at="mlp.hook_post", checkpoint=so_far,
        ),
    )  # fmt: skip


def show(page: Page, verdict: Any, said: str, name: str) -> None:
    """The words of a verdict, its table, its picture and its warnings."""
    frame = verdict.frame()
    few = " Fewer than 30 groups: intervals cover less than they say." if verdict.notes else ""
    page.say(f"{said}. {words(verdict)}; δ = {verdict.delta:.3g} ({verdict.delta_from}).{few}")
    kept = [c for c in ("name", "word", "effect", "low", "high", "q") if c in frame]
    page.table(frame[kept], "Effect of removing each neuron, with its 95 % interval:")
    page.picture(
        ls.figures.effect_forest(verdict), f"forest_{name}",
        "Effect of removing each tested neuron, with 95 % intervals.",
    )  # fmt: skip
