"""HANS: a soft prompt for a task the model cannot do, and the neurons of a rule and of the truth.

    python benchmarks/settings/hans.py --hans heuristics_evaluation_set.txt

Prompts are trained on some sub-cases of one rule and tested on other rows of these, on the rule's
other sub-cases, and on the other rules. Then every row of the file is scored at every prompt
position. Trained prompts, scores and verdict are kept under runs/settings/hans, and read back.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from hans_rows import Rows
from hans_scores import by_class, described, scored
from hans_verdict import ablated, repeated
from page import Page, asked, kept, minutes

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.models import SoftPrompt
from lens_skills.tasks.nli import WORDING

# Short: the model is as much at chance with it as with longer ones, and reads it twice as fast.
ASKED = "{premise} Does it follow that {claim}?\nAnswer:"
OTHERS = {
    "the default of ls.tasks.hans": WORDING,
    "meaning": "{premise}\nQuestion: Does this mean that {claim}? Yes or No?\nAnswer:",
    "truth": "{premise} Question: Is it true that {claim}?\nAnswer:",
}
HARD = (" Yes or No? The answer is",)
SEEDS = 3
RULES = ("constituent", "lexical_overlap", "subsequence")


def learned(page: Page, model: Any, rows: Rows, sizes: Namespace) -> list[Any]:
    """Prompts trained on some sub-cases of one rule, and how well they answer."""
    learn = each_its_own(rows.part(0, sizes.rows, "known"))
    stop = each_its_own(rows.part(sizes.rows, sizes.stop, "known"))
    folders = [sizes.runs / "hans" / f"prompt {seed}" for seed in range(SEEDS)]
    prompts = [
        kept(
            folder,
            SoftPrompt,
            lambda seed=seed: ls.fit_prompt(
                model, learn, n_tokens=sizes.tokens, seed=seed, epochs=sizes.epochs, lr=sizes.lr,
                batch_size=8, schedule="cosine", patience=sizes.epochs, held_out=stop,
            ),
        )
        for seed, folder in enumerate(folders)
    ]  # fmt: skip
    first = sizes.rows + sizes.stop
    tests = {
        "other sentences of the same sub-cases": rows.part(first, sizes.tested, "known"),
        "other sub-cases of the rule": rows.part(first, sizes.tested, "new"),
    }
    page.say(
        f"**Soft prompts.** {sizes.tokens} vectors, {SEEDS} seeds, trained on {len(learn)} rows of "
        f"{len(rows.known)} of the ten sub-cases of *{rows.rule}* (three that are true and three "
        f"that are not), {len(stop)} more looked at to stop; {sizes.epochs} epochs at most of "
        f"batches of 8, learning rate {sizes.lr:g}; {minutes(*folders):.0f} minutes for all "
        "of them on one core shared with other jobs. An answer counts as right where it is "
        f"likelier than the other one (`over_foil`; chance is 1/2). The question: {ASKED!r}. "
        "Rule, number of vectors and learning rate were chosen by small runs on rows of this "
        "file, some of which are tested again here: the gain on known sub-cases is a little "
        "flattered by that."
    )
    for short, (name, test) in zip(("known", "new"), tests.items(), strict=True):
        path = sizes.runs / "hans" / f"{name}.csv"
        if not path.exists():
            compared = ls.compare_prompts(model, test, prompts, hard=HARD)
            compared.frame().to_csv(path, index=False)
        long = pd.read_csv(path)
        frame = long.pivot(index="prompt", columns="metric", values="mean")
        frame = frame.loc[long["prompt"].unique(), ["over_foil", "greedy", "log_probability"]]
        page.table(
            frame.reset_index(),
            f"**{name}**: {len(test)} rows of {len(test.groups)} sub-cases, means:",
        )
        page.say(gain(frame["over_foil"], name))
        share = frame["over_foil"]
        page.figures |= {f"{short}_seed_{k}": share[f"trained, seed {k}"] for k in range(SEEDS)}
        page.figures[f"{short}_no_prompt"] = share["no prompt"]
    page.say(
        f"Learned from: {', '.join(sorted(rows.known))}. New: {', '.join(sorted(rows.new))}. "
        "(The second letter of a name says whether it follows, *e*, or not, *n*.)"
    )
    others = rows.part(first, max(1, sizes.tested // 4), "others")
    shares = [truth_told(model, others, prompt) for prompt in (*prompts, None)]
    page.say(
        f"On the other two rules, {len(others)} rows of {len(others.groups)} sub-cases: trained "
        f"{', '.join(f'{share:.2f}' for share in shares[:-1])}, no prompt {shares[-1]:.2f}."
    )
    # Wordings other than ours, on rows of the rule that none was chosen on.
    told = {}
    for name, wording in OTHERS.items():
        asked_so = ls.tasks.hans(sizes.hans, wording=wording).where(heuristic=rows.rule)
        told[name] = truth_told(model, ls.tasks.few(asked_so, sizes.wordings, seed=0), None)
    said = ", ".join(f"{name} {share:.2f}" for name, share in told.items())
    page.say(f"Other wordings without a prompt, {sizes.wordings} rows of the rule each: {said}.")
    page.picture(
        ls.figures.learning_curves(prompts), "curves",
        "Loss and accuracy of the three prompts while they were trained; thick: rows held out.",
    )  # fmt: skip
    return prompts


def each_its_own(task: Any) -> Any:
    """Every row a group of its own: sentences are held out here, and their sub-case is known."""
    return ls.Task(task.name, [replace(example, group=example.id) for example in task])


def truth_told(model: Any, task: Any, prompt: Any) -> float:
    """The share of rows where the right answer is likelier than the wrong one."""
    found = evaluate(model, task, "logit_diff", prompt=prompt)["logit_diff"]
    return float((found > 0).double().mean())


def gain(column: pd.Series, where: str) -> str:
    """Whether every seed is above (below) no prompt by more than the seeds differ, in words."""
    names = [str(name) for name in column.index]
    seeds = column[[name for name in names if name.startswith("trained")]]
    rest = column[[name for name in names if not name.startswith("trained")]]
    nothing, spread = column["no prompt"], seeds.max() - seeds.min()
    if seeds.min() > nothing and seeds.mean() - nothing > spread:
        verdict = "**every seed is above it by more than the seeds differ**"
    elif seeds.max() < nothing and nothing - seeds.mean() > spread:
        verdict = (
            "**every seed is below it by more than the seeds differ**: what was learned is not the "
            "truth but words of the known sub-cases, and here they mislead"
        )
    else:
        verdict = "**no gain outside the seeds' spread**"
    return (
        f"On {where}: trained {', '.join(f'{x:.2f}' for x in seeds)} (spread {spread:.2f}), no "
        f"prompt {nothing:.2f}: {verdict}. The best of all untrained ways, chosen on these rows: "
        f"{rest.max():.2f}."
    )


def main() -> None:
    sizes = asked(
        __doc__,
        hans={"type": Path, "required": True, "help": "the tab-separated file of HANS"},
        rule={"choices": RULES, "default": "constituent", "help": "the rule to learn from"},
        tokens={"type": int, "default": 4, "help": "vectors of the soft prompt"},
        rows={"type": int, "default": 40, "help": "rows of each sub-case to learn from"},
        stop={"type": int, "default": 5, "help": "rows of each sub-case to stop by"},
        epochs={"type": int, "default": 9, "help": "at most so many"},
        lr={"type": float, "default": 5e-3, "help": "Adam's learning rate"},
        tested={"type": int, "default": 15, "help": "rows per sub-case to test on"},
        wordings={"type": int, "default": 40, "help": "rows per other wording"},
        n={"type": int, "default": 3000, "help": "rows scored"},
        draws={"type": int, "default": 40, "help": "draws of the permutation null"},
        each={"type": int, "default": 6, "help": "rows per sub-case for each seed"},
        matrix={"type": int, "default": 6, "help": "neurons per metric in the matrix"},
        top={"type": int, "default": 2, "help": "neurons tested"},
        verdict={"type": int, "default": 48, "help": "rows of the verdict"},
        controls={"type": int, "default": 200, "help": "other neurons per layer beside them"},
    )
    if sizes.quick:
        quick = {"tokens": 2, "rows": 2, "stop": 1, "epochs": 1, "tested": 1, "wordings": 8,
                 "n": 300, "draws": 20, "each": 2, "top": 1, "verdict": 12,
                 "controls": 40}  # fmt: skip
        vars(sizes).update(quick)
    model = ls.load_model()
    rows = Rows(ls.tasks.hans(sizes.hans, n=sizes.n, wording=ASKED), sizes.rule)
    page = Page(
        "hans",
        "HANS: a rule and the truth, crossed",
        command="python benchmarks/settings/hans.py --hans heuristics_evaluation_set.txt",
        asked=sizes,
    )
    prompts = learned(page, model, rows, sizes)
    found = scored(page, model, prompts[0], rows, sizes)
    described(page, found, sizes)
    by_class(page, model, prompts[0], found, rows, sizes)
    repeated(page, model, prompts, rows, sizes)
    ablated(page, model, prompts[0], found, rows, sizes)
    page.say(
        "The minutes of training and scoring above were measured when these were made; what is "
        "kept under runs/ is read back, and the line below counts the last run alone."
    )
    page.write()


if __name__ == "__main__":
    main()
