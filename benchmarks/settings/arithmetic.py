"""Arithmetic: a soft prompt on SmolLM2's one-digit sums, its neurons, and a model that can add.

    python benchmarks/settings/arithmetic.py
    python benchmarks/settings/arithmetic.py --bigbench FOLDER --model NAME

The second command asks a model of one's own (without ``--model``: SmolLM2) the real BIG-bench files
of that folder, one to three digits, and writes a page of its own; without ``--bigbench`` it asks
generated problems. Trained prompts, running sums and verdicts are kept under
runs/settings/arithmetic, and read back.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from arithmetic_asked import PARTS, on_asked
from page import Page, asked, funnel, kept, opened, words
from room import refuse_too_large

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.interventions import Verdict
from lens_skills.interventions.verdict import CAUSAL
from lens_skills.models import SoftPrompt
from lens_skills.scoring import Scores
from lens_skills.soft_prompts import initial_prompt

TEXT = "\nThe right answer is the number "  # eight tokens, of which training begins
HARD = ("The answer is ", TEXT)
SEEDS = 3
BEATS = ("correct", "first_token", "log_probability", "over_foil")


def one_digit(page: Page, model: Any, asked: Namespace) -> Any:
    """Prompts trained on some pairs of operands, tested on others."""
    learn, test = ls.tasks.arithmetic("+-").split(0.7, 0.3, seed=0)
    options: dict[str, Any] = {
        "text": TEXT, "n_tokens": 8, "ending": "\n", "lr": asked.lr, "epochs": asked.epochs,
        "batch_size": 16, "patience": asked.epochs, "held_out": 0.15,
    }  # fmt: skip
    prompts = [
        kept(
            asked.runs / "arithmetic" / f"prompt {seed}",
            SoftPrompt,
            lambda seed=seed: ls.fit_prompt(model, learn, seed=seed, **options),
        )
        for seed in range(SEEDS)
    ]
    found = ls.compare_prompts(model, test, prompts, hard=HARD)
    long = found.frame()
    frame = long.pivot(index="prompt", columns="metric", values="mean")
    frame = frame.loc[list(found.names), list(BEATS)].reset_index()
    few = len(set(found.groups)) < 30
    whole = long[long["metric"] == "correct"]
    ends = [
        f"{low:.2f} to {high:.2f}" for low, high in zip(whole["low"], whole["high"], strict=True)
    ]
    frame.insert(2, "its 95 % interval", ends)
    page.say(
        f"**Soft prompts.** {len(learn)} sums and differences of one digit to learn from (about "
        f"one in seven of them only looked at, to stop), {len(test)} of other operands to test "
        f"on, in {len(set(found.groups))} groups. {SEEDS} seeds; every prompt begins as the "
        f"embeddings of {TEXT!r}. `correct` asks for the whole answer and the end of the line."
    )
    page.table(
        frame,
        "Means over the held-out problems (intervals over groups"
        + (", of which there are fewer than 30: too narrow):" if few else "):"),
    )
    right = frame.set_index("prompt")["correct"]
    page.figures |= {f"seed_{seed}": right[f"trained, seed {seed}"] for seed in range(SEEDS)}
    written = max(share for name, share in right.items() if str(name).startswith("hard"))
    page.figures |= {
        "no_prompt": right["no prompt"], "best_written": written, "problems": len(test)
    }  # fmt: skip
    for metric in ("correct", "first_token", "log_probability"):
        page.say(gain(frame.set_index("prompt")[metric], metric))
    page.picture(
        ls.figures.learning_curves(prompts), "curves",
        "Loss and accuracy of the three prompts while they were trained; thick lines: held out.",
    )  # fmt: skip
    return prompts, learn


def gain(column: pd.Series, metric: str) -> str:
    """Whether every seed is better than no prompt and than the best written one, in words."""
    names = [str(name) for name in column.index]
    seeds = column[[name for name in names if name.startswith("trained")]]
    hard = column[[name for name in names if name.startswith("hard")]]
    nothing, best = column["no prompt"], hard.max()
    spread = seeds.max() - seeds.min()
    verdict = {
        True: "every seed is above both, by more than the seeds' spread",
        False: "the gain over both is not outside the seeds' spread",
    }[bool(seeds.min() - max(nothing, best) > 0 and seeds.mean() - max(nothing, best) > spread)]
    return (
        f"- `{metric}`: trained {', '.join(f'{x:.3f}' for x in seeds)} (spread {spread:.3f}), no "
        f"prompt {nothing:.3f}, best written prompt {best:.3f}: {verdict}."
    )


def neurons(page: Page, model: Any, prompt: Any, learn: Any, asked: Namespace) -> None:
    """Three metrics at every prompt position, with the trained prompt and with its beginning."""
    known = {example.group for example in learn}
    task = ls.tasks.arithmetic("+-*", digits=(1, 2), n=asked.problems + len(learn))
    task = task.where(lambda example: example.group not in known)
    explore, confirm, intervene = task.split(0.5, 0.25, 0.25, seed=0)
    metrics = ["label:carry", "correct", "confidence"]
    page.say(
        f"**Neurons.** {len(task)} other problems (+, -, ×; one and two digits): {len(explore)} to "
        f"explore, {len(confirm)} to confirm, {len(intervene)} to intervene. Every neuron of every "
        "layer at each of the eight prompt positions; a neuron passes a gate where it passes at "
        "any position. Beside the trained prompt its own beginning, which was not trained."
    )
    start = initial_prompt(model, 8, text=TEXT)
    rows, scores, verdicts = [], {}, {}
    for name, vectors in (("trained", prompt), ("untrained", start)):
        folder = asked.runs / "arithmetic" / f"explore {name}"
        scores[name] = kept(
            folder,
            Scores,
            lambda vectors=vectors: ls.score(model, explore, metrics=metrics, prompt=vectors),
        )
        for metric in scores[name].metrics:
            found = scores[name][metric]
            top = found.top(200)
            checked = ls.score(model, confirm, metrics=metric, prompt=vectors, neurons=top)
            row, selection = funnel(found, checked[metric])
            rows.append({"prompt": name, "metric": metric, **row})
            short = metric.removeprefix("label:")
            key = short if name == "trained" else f"{name}_{short}"
            page.figures |= {f"{key}_{gate}": row[gate] for gate in ("associated", "confirmed")}
            if name == "trained":
                verdicts[metric] = verdict_of(
                    page, model, prompt, found, selection, intervene, asked
                )
    page.table(pd.DataFrame(rows), "How many neurons are left after each gate:")
    page.say("\n".join(outcome(row, verdicts[row["metric"]]) for row in rows[: len(verdicts)]))
    found = scores["trained"]
    for metric in found.metrics:
        name = metric.replace("label:", "")
        page.picture(
            ls.figures.correlation_by_position(found[metric]), f"positions_{name}",
            f"Largest correlation with {metric} by layer and prompt position.",
        )  # fmt: skip
    if {"correct", "confidence"} <= set(found.metrics):
        page.picture(
            ls.figures.confidence_against_correctness(found), "confidence",
            "Share of right answers by the model's confidence, with the soft prompt.",
        )  # fmt: skip


def outcome(row: dict[str, Any], verdict: Any) -> str:
    """What came of one metric, good or bad."""
    causal = sum(verdict.counts.get(word, 0) for word in CAUSAL)
    control = row.get("beat the control task")
    basis = "" if control is None else f"{control} of them beat the control task, "
    basis += f"{row['confirmed']} are confirmed, {row.get('basis-privileged', 0)} of those "
    basis += "basis-privileged"
    tested = (
        "none of those tested changes the answer by more than δ for sure"
        if causal == 0
        else f"{causal} of those tested change the answer"
    )
    return f"- {row['metric']}: {row['associated']:,} neurons are associated; {basis}; {tested}."


def verdict_of(
    page: Page, model: Any, prompt: Any, found: Any, selection: Any, split: Any, asked: Namespace
) -> Any:
    """What the confirmed neurons do; where there are none, the strongest, and it is said so."""
    short = split.where(lambda example: len(example.answer) == 1)
    short = ls.tasks.few(short, asked.verdict, seed=0)
    confirmed = len(selection.neurons)
    which = selection if confirmed else found.top(asked.top)
    folder = asked.runs / "arithmetic" / f"verdict {found.metric}"
    verdict = kept(
        folder,
        Verdict,
        lambda: ls.verify(
            model, short, which, do=ls.ablate("mean", over=found.scores), position="prompt",
            prompt=prompt,
            controls=ls.controls(sets=0, neurons=asked.controls), also=(), pairs=False, by=(),
            checkpoint=folder.with_name(f"{folder.name} unfinished"),
        ),
    )  # fmt: skip
    names = ", ".join(f"L{layer}N{neuron}" for layer, neuron in selection.neurons.tolist())
    chosen = (
        f"{confirmed} confirmed ({names})"
        if confirmed
        else f"no neuron was confirmed; the {asked.top} of largest |r|, tested all the same"
    )
    page.say(
        f"**Verdicts, {found.metric}**: {chosen}. Mean ablation at all eight positions, on "
        f"{len(short)} problems of a one-digit answer in {len(short.groups)} groups; effect on the "
        f"logit difference of answer and foil: {words(verdict)}."
    )
    return verdict


def able(page: Page, asked: Namespace) -> None:
    """The same question to a model that can add."""
    model = ls.load_model("arithmetic-small")
    task = ls.tasks.arithmetic("+", digits=2, n=asked.sums)
    explore, confirm, intervene = task.split(0.5, 0.25, 0.25, seed=0)
    rows, told = [], []
    right = float(evaluate(model, explore, "correct")["correct"].mean())
    for metric in ("label:carry", "label:even", "confidence"):
        found = ls.score(model, explore, metrics=metric)[metric]
        checked = ls.score(model, confirm, metrics=metric)[metric]
        row, selection = funnel(found, checked)
        rows.append({"metric": metric, **row})
        confirmed = len(selection.neurons)
        verdict = ls.verify(
            model, ls.tasks.few(intervene, asked.verdict, seed=0),
            selection if confirmed else found.top(asked.top),
            do=ls.ablate("mean", over=found.scores),
            controls=ls.controls(sets=0, neurons=asked.controls), also=(),
            pairs=False, by=(),
        )  # fmt: skip
        which = f"{confirmed} confirmed" if confirmed else f"none confirmed, {asked.top} strongest"
        effects = verdict.frame()["effect"].abs().max()
        told.append(
            f"- {metric} ({which}): {words(verdict)}; largest |effect| {effects:.3g} nats, "
            f"δ = {verdict.delta:.3g}."
        )
    page.say(
        f"**A model that can.** `arithmetic-small` ({right:.1%} of {len(explore)} two-digit sums "
        f"right) has {found.scores.n_units:,} neurons. Read at the last token."
    )
    page.table(pd.DataFrame(rows), "How many neurons are left after each gate:")
    page.say("Mean ablation, effect on the logit difference:\n\n" + "\n".join(told))


def own_page(given: Namespace) -> None:
    """The page of the model that is asked for."""
    refuse_too_large(given.model)
    if given.model is None:
        given.runs = given.runs / "smollm2"
    folder = " --bigbench FOLDER" if given.bigbench else ""
    if given.until != PARTS[-1]:
        folder += f" --until {given.until}"
    page = Page(
        "arithmetic", "Arithmetic", asked=given, own=True,
        command=f"python benchmarks/settings/arithmetic.py{folder}",
    )  # fmt: skip
    on_asked(page, opened(given.model), given)
    page.write()


def main() -> None:
    given = asked(
        __doc__,
        epochs={"type": int, "default": 15},
        lr={"type": float, "default": 3e-3},
        problems={"type": int, "default": 600},
        sums={"type": int, "default": 800},
        verdict={"type": int, "default": 24},
        top={"type": int, "default": 6},
        controls={"type": int, "default": 120},
        bigbench={"type": Path, "help": "BIG-bench's arithmetic: a folder of its JSON files"},
        digits={"type": int, "default": 3, "help": "the most digits of an operand"},
        budget={"type": int, "default": 6, "help": "the most tokens of an answer"},
        cell={"type": int, "default": 30, "help": "problems per operation and digits"},
        others={"type": int, "default": 8, "help": "the same, generated or with shots"},
        learn={"type": int, "default": 36, "help": "problems to learn a prompt from"},
        tested={"type": int, "default": 36, "help": "problems to test prompts on"},
        vectors={"type": int, "default": 4, "help": "vectors of a prompt"},
        seeds={"type": int, "default": 2, "help": "prompts"},
        explore={"type": int, "default": 63},
        confirm={"type": int, "default": 36},
        confirmed={"type": int, "default": 60, "help": "neurons per metric read again"},
        intervene={"type": int, "default": 36},
        sets={"type": int, "default": 20, "help": "matched sets beside a set"},
        until={"choices": PARTS, "default": PARTS[-1], "help": "the last part that is run"},
        draws={"type": int, "help": "draws of every null; default: as many as fit"},
    )
    own = given.model is not None or given.bigbench is not None
    if own:
        given.epochs, given.top, given.controls = 4, 10, 20
    if given.quick:
        given.epochs, given.problems, given.sums, given.verdict, given.controls = 1, 160, 160, 8, 24
        given.top, given.vectors, given.confirmed, given.draws = 2, 2, 8, 99
        given.cell, given.others, given.learn, given.tested = 8, 4, 18, 12
        given.explore, given.confirm, given.intervene = 30, 24, 16
    torch.manual_seed(0)
    if own:
        own_page(given)
        return
    page = Page(
        "arithmetic", "Arithmetic", asked=given,
        command="python benchmarks/settings/arithmetic.py",
    )  # fmt: skip
    model = ls.load_model()
    prompts, learn = one_digit(page, model, given)
    neurons(page, model, prompts[0], learn, given)
    able(page, given)
    page.write()


if __name__ == "__main__":
    main()
