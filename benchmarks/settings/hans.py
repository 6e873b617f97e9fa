"""HANS: a soft prompt for a task the model cannot do, and the neurons of a rule and of the truth.

    python benchmarks/settings/hans.py --hans heuristics_evaluation_set.txt

Prompts are trained on some sub-cases of one rule and tried on other rows of these, on the rule's
other sub-cases, and on the other rules. Then every row of the file is scored at every prompt
position. Trained prompts, scores and verdict are kept under runs/settings/hans, and read back.
"""

import hashlib
import random
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from page import Page, asked, kept, words

import lens_skills as ls
from lens_skills.tasks.entailment import WORDING

# Short: the model is as much at chance with it as with longer ones, and reads it twice as fast.
ASKED = "{premise} Does it follow that {claim}?\nAnswer:"
OTHERS = {
    "the default of ls.tasks.hans": WORDING,
    "meaning": "{premise}\nQuestion: Does this mean that {claim}? Yes or No?\nAnswer:",
    "truth": "{premise} Question: Is it true that {claim}?\nAnswer:",
}
HARD = (" Yes or No? The answer is",)
SEEDS = 3
SHARED = 200  # strongest neurons of each prompt whose overlap is counted
TRUTH = "label:entailment"
RULES = ("constituent", "lexical_overlap", "subsequence")


class Rows:
    """The rows of the file by sub-case, each sub-case's in an order that its ids decide."""

    def __init__(self, task: Any, rule: str) -> None:
        self.task, self.rule = task, rule
        turns: dict[str, int] = defaultdict(int)
        self.rank: dict[str, int] = {}
        for example in sorted(task, key=lambda e: hashlib.sha256(e.id.encode()).digest()):
            case = str(example.covariates["subcase"])
            self.rank[example.id] = turns[case]
            turns[case] += 1
        cells: dict[Any, set[str]] = defaultdict(set)
        for example in task.where(heuristic=rule):
            cells[example.labels["entailment"]].add(str(example.covariates["subcase"]))
        draw = random.Random(0)
        self.known = {case for c in sorted(cells) for case in draw.sample(sorted(cells[c]), 3)}
        self.new = set().union(*cells.values()) - self.known

    def part(self, first: int, count: int, which: str = "all") -> Any:
        """``count`` rows of each sub-case, from the ``first`` on: known, new, others or all."""

        def wanted(example: Any) -> bool:
            case = str(example.covariates["subcase"])
            kind = "known" if case in self.known else "new" if case in self.new else "others"
            return which in ("all", kind) and first <= self.rank[example.id] < first + count

        return self.task.where(wanted)


def learned(page: Page, model: Any, rows: Rows, sizes: Namespace) -> list[Any]:
    """Prompts trained on some sub-cases of one rule, and how well they answer."""
    learn = each_its_own(rows.part(0, sizes.rows, "known"))
    stop = each_its_own(rows.part(sizes.rows, sizes.stop, "known"))
    folders = [sizes.runs / "hans" / f"prompt {seed}" for seed in range(SEEDS)]
    prompts = [
        timed(
            folder,
            ls.SoftPrompt,
            lambda seed=seed: ls.fit_prompt(
                model, learn, n_tokens=sizes.tokens, seed=seed, epochs=sizes.epochs, lr=sizes.lr,
                batch_size=8, schedule="cosine", patience=sizes.epochs, held_out=stop,
                progress=False,
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
        "Rule, number of vectors and learning rate were chosen by small trials on rows of this "
        "file, some of which are tried again here: the gain on known sub-cases is a little "
        "flattered by that."
    )
    for name, test in tests.items():
        path = sizes.runs / "hans" / f"{name}.csv"
        if not path.exists():
            compared = ls.compare_prompts(model, test, prompts, hard=HARD, progress=False)
            compared.frame().to_csv(path, index=False)
        long = pd.read_csv(path)
        frame = long.pivot(index="prompt", columns="metric", values="mean")
        frame = frame.loc[long["prompt"].unique(), ["over_foil", "greedy", "log_probability"]]
        page.table(
            frame.reset_index(),
            f"**{name}**: {len(test)} rows of {len(test.groups)} sub-cases, means:",
        )
        page.say(gain(frame["over_foil"], name))
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


def timed(folder: Path, kind: Any, make: Callable[[], Any]) -> Any:
    """As `kept`, with the seconds it took to make beside it."""
    start, there = time.monotonic(), folder.exists()
    result = kept(folder, kind, make)
    if not there:
        _clock(folder).write_text(f"{time.monotonic() - start:.1f}")
    return result


def minutes(*folders: Path) -> float:
    """What it took to make them."""
    return sum(float(_clock(folder).read_text()) for folder in folders) / 60


def _clock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.seconds")


def each_its_own(task: Any) -> Any:
    """Every row a group of its own: sentences are held out here, and their sub-case is known."""
    return ls.Task(task.name, [replace(example, group=example.id) for example in task])


def truth_told(model: Any, task: Any, prompt: Any) -> float:
    """The share of rows where the right answer is likelier than the wrong one."""
    found = ls.evaluate(model, task, "logit_diff", prompt=prompt, progress=False)["logit_diff"]
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
    found = timed(
        folder,
        ls.Scores,
        lambda: ls.score(
            model, rows.task, metrics=metrics, prompt=prompt, n_permutations=sizes.draws,
            exploratory=True, checkpoint=folder.with_name("all rows unfinished"), progress=False,
        ),
    )  # fmt: skip
    trained = len(set(prompt.provenance["example_ids"]) & set(found.example_ids))
    page.say(
        f"**Neurons.** {found.n_examples:,} real rows end to end with the first prompt: "
        f"{found.n_units:,} neurons at each of {len(found.positions)} prompt positions, "
        f"{len(found.metrics)} metrics, in {minutes(folder):.1f} minutes on one core "
        "shared with other jobs. "
        f"Groups are the {found.n_groups} sub-cases, because they decide rule and truth: under "
        "the permutation null whole sub-cases trade their label "
        f"({sizes.draws} draws, family-wise over neurons and positions), the control task gives "
        "every sub-case a coin, and the rotated basis is one random rotation per layer. "
        f"{trained} of the rows trained the prompt, so the result is exploratory."
    )
    table = []
    for name in found.metrics:
        view, counts = found[name], {}
        for gate, passed in view.passing().items():
            counts[gate] = int(passed.any(0).sum())
        bars = view.thresholds
        table.append(
            {
                "metric": name, "largest |r|": float(view.strength.max()),
                "permutation bar": bars.permutation, "control bar": bars.control,
                "rotated bar": bars.rotated, **counts,
            }
        )  # fmt: skip
    frame = pd.DataFrame(table)
    page.table(frame, "What |r| had to exceed, and how many neurons pass each gate in turn:")
    last = str(frame.columns[-1])
    alive = {row["metric"]: row[last] for row in table if row[last]}
    page.say(
        "Beyond all three nulls: " + ", ".join(f"{n} for {m}" for m, n in alive.items()) + "."
        if alive
        else "**No neuron is beyond all three nulls, for any metric.** What |r| there is, random "
        "labels of 30 sub-cases or a random rotation of the layer reach too."
    )
    if TRUTH not in alive:
        page.say(
            f"**What did not work: no neuron of the truth.** The largest |r| with it, "
            f"{table[0]['largest |r|']:.2f}, is below what labels traded between {found.n_groups} "
            f"sub-cases reach somewhere ({table[0]['permutation bar']:.2f}). The prompt answers "
            "the sub-cases it was trained on, one rule's; over all rows the model is right in "
            f"{float((found.values['correct'] > 0).double().mean()):.0%}."
        )
    for name, of in found.excluded_metrics.items():
        page.say(f"`{name}` was left out: {of}.")
    by_case(page, found, rows, sizes)
    return found


def by_case(page: Page, found: Any, rows: Rows, sizes: Namespace) -> None:
    """Which sub-cases of the rule the first prompt answers."""
    if "correct" not in found.metrics:
        return
    right = dict(zip(found.example_ids, found.values["correct"].tolist(), strict=True))
    fresh = rows.part(sizes.rows + sizes.stop, 100).where(heuristic=rows.rule)
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
        told = ls.profile(found[TRUTH], answer="says yes").frame()
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
            whole, left = found[metric].r.abs(), ls.partial_r(found, metric, given).abs()
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
        "Largest correlation with the truth in each layer, beside a rotated basis and the nulls.",
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


def repeated(page: Page, model: Any, prompts: list[Any], rows: Rows, sizes: Namespace) -> None:
    """The same search under every prompt, and under one that was not trained."""
    at = sizes.rows + sizes.stop + sizes.tested
    first, second = rows.part(at, sizes.each), rows.part(at + sizes.each, sizes.each // 2)
    start = ls.initial_prompt(model, sizes.tokens, init="vocabulary", seed=0)
    ways = {f"seed {seed}": prompt for seed, prompt in enumerate(prompts)} | {"untrained": start}
    one, other = {}, {}
    for name, prompt in ways.items():
        folder = sizes.runs / "hans"

        def passed(part: Any, more: dict[str, Any], prompt: Any = prompt) -> Callable[[], Any]:
            return lambda: ls.score(
                model, part, metrics=[TRUTH], prompt=prompt, n_rotations=0, progress=False,
                **more,
            )  # fmt: skip

        one[name] = kept(folder / f"part {name}", ls.Scores, passed(first, {"n_permutations": 39}))
        if name != "untrained":
            more = {"n_permutations": 0, "n_controls": 0, "baseline": one[name]}
            other[name] = kept(folder / f"rest {name}", ls.Scores, passed(second, more))
    largest = ", ".join(f"{name} {float(s[TRUTH].strength.max()):.2f}" for name, s in one.items())
    page.say(
        f"**Seeds.** The search for the truth again, under every prompt, on the same {len(first)} "
        f"rows (none trained a prompt). Largest |r|: {largest}."
    )
    agreed = ls.stability([one[f"seed {seed}"] for seed in range(len(prompts))], TRUTH, top=SHARED)
    lines = repr(agreed).splitlines()
    page.say("```\n" + "\n".join(lines) + "\n```")
    page.picture(
        ls.figures.stability(agreed), "stability",
        f"How many of the {SHARED} strongest neurons two prompts share, beside chance.",
    )  # fmt: skip
    told = ls.predictivity_over_seeds(list(other.values()), TRUTH)
    best = told.frame().head(3)
    page.table(
        best,
        f"Predictivity (mean over prompts of the best position, thresholds from other rows, "
        f"{len(second)} rows, classes balanced; without a null), the three best neurons:",
    )


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
    for batch in ls.stream(model, part, layers=layer, position=at, prompt=prompt, progress=False):
        acts[batch.index] = batch.activations[:, 0, neuron].float()
    page.picture(
        ls.figures.activation_by_class(
            acts, [str(e.labels["heuristic"]) for e in part], name=f"L{layer}N{neuron}",
            label="heuristic", site=found.site, position=str(at), groups=[e.group for e in part],
        ),
        "classes",
        f"Activation of L{layer}N{neuron}, the strongest with {rows.rule}, under each rule "
        f"({len(part)} rows that trained no prompt).",
    )  # fmt: skip


def tried(page: Page, model: Any, prompt: Any, found: Any, rows: Rows, sizes: Namespace) -> None:
    """What the survivors do, or the strongest where nothing survives."""
    alive: dict[str, str] = {}  # the strongest survivor of each metric
    for metric in found.metrics:
        view = found[metric]
        passed = list(view.passing().values())[-1].any(0)
        if bool(passed.any()):
            unit = int(torch.where(passed, view.strength, -1.0).argmax())
            alive.setdefault(f"L{found.layer[unit]}N{found.neuron[unit]}", metric)
    strongest = found[TRUTH].top(sizes.top).tolist()
    names = list(alive) or [f"L{layer}N{neuron}" for layer, neuron in strongest]
    spare = rows.part(sizes.rows + sizes.stop + sizes.tested, 100).where(heuristic=rows.rule)
    trial = ls.tasks.few(spare, sizes.trials, seed=0)
    folder = sizes.runs / "hans" / "verdict"
    verdict = kept(
        folder,
        ls.Verdict,
        lambda: ls.verify(
            model, trial, names, do=ls.ablate("mean", over=found), position="prompt",
            prompt=prompt, n_controls=0, n_peers=sizes.peers, also=(), pairs=False, by=(),
            exploratory=True, checkpoint=folder.with_name("verdict unfinished"), progress=False,
        ),
    )  # fmt: skip
    chosen = (
        "the strongest neuron of each metric that is beyond all three nulls: "
        + ", ".join(f"{name} ({metric})" for name, metric in alive.items())
        if alive
        else f"no neuron survived the nulls; the {len(names)} of largest |r| with the truth, on "
        f"trial all the same: {', '.join(names)}"
    )
    page.say(
        f"**Verdict, exploratory**: {chosen}. Mean ablation at all prompt "
        f"positions on {len(trial)} rows of the rule that trained no prompt, each neuron beside "
        f"{sizes.peers} others of its layer; effect on the log-odds of the right answer: "
        f"{words(verdict)}."
    )
    if "word" in verdict.frame():
        shown = [c for c in ("name", "effect", "low", "high", "word") if c in verdict.frame()]
        page.table(verdict.frame()[shown], f"Effects in nats, δ = {verdict.delta:.3f}:")
    page.picture(
        ls.figures.effect_forest(verdict), "verdict",
        "Change of the right answer's log-odds when each neuron is ablated, with 95 % intervals.",
    )  # fmt: skip


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
        tested={"type": int, "default": 15, "help": "rows per sub-case to be tried on"},
        wordings={"type": int, "default": 40, "help": "rows per other wording"},
        n={"type": int, "default": 3000, "help": "rows scored"},
        draws={"type": int, "default": 40, "help": "draws of the permutation null"},
        each={"type": int, "default": 6, "help": "rows per sub-case for each seed"},
        matrix={"type": int, "default": 6, "help": "neurons per metric in the matrix"},
        top={"type": int, "default": 2, "help": "neurons on trial"},
        trials={"type": int, "default": 48, "help": "rows of the trial"},
        peers={"type": int, "default": 200, "help": "other neurons per layer beside them"},
    )
    if sizes.quick:
        quick = {"tokens": 2, "rows": 2, "stop": 1, "epochs": 1, "tested": 1, "wordings": 8,
                 "n": 300, "draws": 20, "each": 2, "top": 1, "trials": 12, "peers": 40}  # fmt: skip
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
    tried(page, model, prompts[0], found, rows, sizes)
    page.say(
        "The minutes of training and scoring above were measured when these were made; what is "
        "kept under runs/ is read back, and the line below counts the last run alone."
    )
    page.write()


if __name__ == "__main__":
    main()
