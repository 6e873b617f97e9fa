"""HANS: a soft prompt for a task the model cannot do, and the neurons of a rule and of the truth.

    python benchmarks/settings/hans.py --hans heuristics_evaluation_set.txt

Prompts are trained on some sub-cases of one rule and tested on other rows of these, on the rule's
other sub-cases, and on the other rules. Then every row of the file is scored at every prompt
position. Trained prompts, scores and verdict are kept under runs/settings/hans, and read back.

    python benchmarks/settings/hans.py --hans heuristics_evaluation_set.txt --model NAME

asks another model, with fewer rows, and adds shots and the neurons of the last token.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from hans_asked import DIFFER, at_last_token, said, together, with_shots
from hans_rows import Rows
from hans_scores import TRUTH, by_class, described, scored
from hans_verdict import ablated, repeated
from page import Page, asked, kept, kept_table, minutes, opened
from room import refuse_too_large, told_beforehand

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
NUMBERS = {2: "two", 3: "three"}
RULES = ("constituent", "lexical_overlap", "subsequence")
LEAN = {"tokens": 2, "rows": 6, "stop": 2, "epochs": 5, "tested": 2, "wordings": 8, "each": 1,
        "verdict": 30, "controls": 20, "seeds": 2, "scored": 4, "shown": 1, "last": 3}  # fmt: skip


def learned(page: Page, model: Any, rows: Rows, sizes: Namespace) -> list[Any]:
    """Prompts trained on some sub-cases of one rule, and how well they answer."""
    learn = each_its_own(rows.part(0, sizes.rows, "known"))
    stop = each_its_own(rows.part(sizes.rows, sizes.stop, "known"))
    folders = [sizes.runs / "hans" / f"prompt {seed}" for seed in range(sizes.seeds)]
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
        f"**Soft prompts.** {sizes.tokens} vectors, {sizes.seeds} seeds, trained on {len(learn)} "
        f"rows of {len(rows.known)} of the ten sub-cases of *{rows.rule}* (three that are true and "
        f"three that are not), {len(stop)} more looked at to stop; {sizes.epochs} epochs at most "
        f"of batches of 8, learning rate {sizes.lr:g}; {minutes(*folders):.0f} minutes for all "
        "of them on one core shared with other jobs. An answer counts as right where it is "
        f"likelier than the other one (`over_foil`; chance is 1/2). The question: {ASKED!r}. "
        + (
            "Rule, number of vectors and learning rate are those chosen on SmolLM2: nothing was "
            "chosen on this model."
            if page.slug
            else "Rule, number of vectors and learning rate were chosen by small runs on rows of "
            "this file, some of which are tested again here: the gain on known sub-cases is a "
            "little flattered by that."
        )
    )
    for short, (name, test) in zip(("known", "new"), tests.items(), strict=True):
        path = sizes.runs / "hans" / f"{name}.csv"
        long = kept_table(
            path,
            lambda test=test: ls.compare_prompts(model, test, prompts, hard=HARD).frame(),
        )
        frame = long.pivot(index="prompt", columns="metric", values="mean")
        frame = frame.loc[long["prompt"].unique(), ["over_foil", "greedy", "log_probability"]]
        page.table(
            frame.reset_index(),
            f"**{name}**: {len(test)} rows of {len(test.groups)} sub-cases, means:",
            f"prompts_{short}" if page.slug else "",
        )
        if page.slug:
            page.say(intervals(long, len(test.groups)))
        page.say(gain(frame["over_foil"], name))
        share = frame["over_foil"]
        page.figures |= {
            f"{short}_seed_{k}": share[f"trained, seed {k}"] for k in range(sizes.seeds)
        }
        page.figures[f"{short}_no_prompt"] = share["no prompt"]
    page.say(
        f"Learned from: {', '.join(sorted(rows.known))}. New: {', '.join(sorted(rows.new))}. "
        "(The second letter of a name says whether it follows, *e*, or not, *n*.)"
    )
    others = rows.part(first, max(1, sizes.tested // 4), "others")
    told_others = kept_table(
        sizes.runs / "hans" / "others.csv",
        lambda: pd.DataFrame({"share": [truth_told(model, others, p) for p in (*prompts, None)]}),
    )
    shares = list(told_others["share"])
    page.say(
        f"On the other two rules, {len(others)} rows of {len(others.groups)} sub-cases: trained "
        f"{', '.join(f'{share:.2f}' for share in shares[:-1])}, no prompt {shares[-1]:.2f}."
    )

    # Wordings other than ours, on rows of the rule that none was chosen on.
    def worded() -> pd.DataFrame:
        found = []
        for name, wording in OTHERS.items():
            asked_so = ls.tasks.hans(sizes.hans, wording=wording).where(heuristic=rows.rule)
            few = ls.tasks.few(asked_so, sizes.wordings, seed=0)
            found.append({"name": name, "share": truth_told(model, few, None)})
        return pd.DataFrame(found)

    told = kept_table(sizes.runs / "hans" / "wordings.csv", worded)
    words_told = ", ".join(
        f"{row.name_} {row.share:.2f}"
        for row in told.rename(columns={"name": "name_"}).itertuples()
    )
    page.say(
        f"Other wordings without a prompt, {sizes.wordings} rows of the rule each: {words_told}."
    )
    page.picture(
        ls.figures.learning_curves(prompts), "curves",
        f"Loss and accuracy of the {NUMBERS[len(prompts)]} prompts while they were trained; thick: "
        "rows held out.",
    )  # fmt: skip
    return prompts


def each_its_own(task: Any) -> Any:
    """Every row a group of its own: sentences are held out here, and their sub-case is known."""
    return ls.Task(task.name, [replace(example, group=example.id) for example in task])


def truth_told(model: Any, task: Any, prompt: Any) -> float:
    """The share of rows where the right answer is likelier than the wrong one."""
    found = evaluate(model, task, "logit_diff", prompt=prompt)["logit_diff"]
    return float((found > 0).double().mean())


def intervals(long: pd.DataFrame, groups: int) -> str:
    """The 95 % intervals of the trained prompts and of no prompt, over sub-cases."""
    part = long[long["metric"] == "over_foil"]
    shown = part[part["prompt"].str.startswith("trained") | (part["prompt"] == "no prompt")]
    told = "; ".join(f"{r.prompt} {r.mean:.2f} [{r.low:.2f}, {r.high:.2f}]"
                     for r in shown.rename(columns={"mean": "mean_"}).rename(
                         columns={"mean_": "mean"}).itertuples())  # fmt: skip
    return (
        f"`over_foil` with its 95 % interval over {groups} sub-cases (the rule has ten; fewer than "
        f"30, and the interval is wide or too narrow for that): {told}."
    )


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
        LEAN,
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
        seeds={"type": int, "default": 3, "choices": (2, 3), "help": "prompts"},
        scored={"type": int, "default": 0, "help": "rows per sub-case scored; 0: all of them"},
        shown={"type": int, "default": 2, "help": "rows per sub-case asked with shots"},
        last={"type": int, "default": 5, "help": "rows per sub-case scored at the last token"},
        sets={"type": int, "default": 20, "help": "matched sets beside a set"},
    )
    sizes.wording = ASKED
    if sizes.quick:
        quick = {"tokens": 2, "rows": 2, "stop": 1, "epochs": 1, "tested": 1, "wordings": 8,
                 "n": 300, "draws": 20, "each": 2, "top": 1, "verdict": 12,
                 "controls": 40, "seeds": 2, "shown": 1, "last": 2}  # fmt: skip
        vars(sizes).update(quick)
    refuse_too_large(sizes.model)
    model = opened(sizes.model)
    rows = Rows(ls.tasks.hans(sizes.hans, n=sizes.n, wording=ASKED), sizes.rule)
    page = Page(
        "hans",
        "HANS: a rule and the truth, crossed",
        command="python benchmarks/settings/hans.py --hans heuristics_evaluation_set.txt",
        asked=sizes,
    )
    if page.slug:
        few = rows.part(sizes.rows + sizes.stop + sizes.tested, 1)
        told = kept_table(
            sizes.runs / "hans" / "told beforehand.csv",
            lambda: pd.DataFrame({"said": [told_beforehand("score", model, few, metrics=TRUTH)]}),
        )
        page.say(f"**Memory and time**, {told['said'][0].replace('the largest split', '30 rows')}.")
        with_shots(page, model, rows, sizes)
    prompts = learned(page, model, rows, sizes)
    found = scored(page, model, prompts[0], rows, sizes)
    described(page, found, sizes)
    by_class(page, model, prompts[0], found, rows, sizes)
    if sizes.each > 1:
        repeated(page, model, prompts, rows, sizes)
    if page.slug:
        verdict = together(model, prompts[0], found, TRUTH, rows, sizes, "prompt")
        said(page, verdict, TRUTH, "at all prompt vectors")
        page.picture(
            ls.figures.effect_forest(verdict), "verdict",
            "Change of the right answer's log-odds when neurons are ablated, alone and together, "
            "with 95 % intervals.",
        )  # fmt: skip
        at_last_token(page, model, rows, sizes)
        page.differ(
            DIFFER,
            "The same file, question and rule; SmolLM2's page learns from 40 rows of each "
            f"sub-case and scores 3,000 rows, this one learns from {sizes.rows} and scores "
            f"{found.n_examples}, so that a difference is one of model and of data.",
        )
    else:
        ablated(page, model, prompts[0], found, rows, sizes)
        page.say(
            "The minutes of training and scoring above were measured when these were made; what is "
            "kept under runs/ is read back, and the line below counts the last run alone."
        )
    page.write()


if __name__ == "__main__":
    main()
