"""What `hans` adds for a model asked for: with shots, and its neurons at the last token."""

from argparse import Namespace
from typing import Any

import pandas as pd
import torch
from hans_rows import Rows
from hans_scores import TRUTH
from page import Page, kept, kept_table, words

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.interventions import Verdict
from lens_skills.scoring import Scores
from lens_skills.stats.intervals import share_interval

SHOTS = 4
METRICS = {TRUTH: TRUTH, "rule": "label:heuristic", "correct": "correct",
           "confidence": "confidence"}  # fmt: skip
CLASSES = ("entailment", "heuristic")
DIFFER = {
    "zero_shot": "right answer likelier, zero-shot",
    "four_shot": "right answer likelier, four-shot",
    "known_no_prompt": "known sub-cases, right answer likelier, no prompt",
    "known_seed_0": "the same, soft prompt of seed 0",
    "known_seed_1": "the same, soft prompt of seed 1",
    "new_no_prompt": "sub-cases never seen, right answer likelier, no prompt",
    "new_seed_0": "the same, soft prompt of seed 0",
    "new_seed_1": "the same, soft prompt of seed 1",
    "rows": "rows scored",
    "truth_r_largest": "largest |r| of a neuron with the truth, at the prompt",
    "shared_most": "of the 200 strongest neurons, shared by two prompts at most",
}


def with_shots(page: Page, model: Any, rows: Rows, sizes: Namespace) -> None:
    """Zero-shot and four-shot on the same rows, by rule and truth."""
    at = sizes.rows + sizes.stop
    wanted = {example.id for example in rows.part(at, sizes.shown)}
    shown = ls.tasks.hans(sizes.hans, wording=sizes.wording, shots=SHOTS)
    tasks = {"zero-shot": rows.task, "four-shot": shown}
    both = wanted & {example.id for example in shown}

    def told() -> pd.DataFrame:
        parts = []
        for name, task in tasks.items():
            part = task.where(lambda e: e.id in both)
            found = evaluate(model, part, ["logit_diff", "correct"])
            frame = pd.DataFrame(
                {"way": name, "subcase": [e.group for e in part],
                 "heuristic": part.column("heuristic"), "truth": part.column("entailment"),
                 "right": (found["logit_diff"] > 0).int().numpy(),
                 "written": found["correct"].int().numpy()}
            )  # fmt: skip
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)

    frame = kept_table(sizes.runs / "hans" / "shots.csv", told)
    table = []
    for way in tasks:
        part = frame[frame["way"] == way]
        for heuristic in ("all", *sorted(set(part["heuristic"]))):
            cell = part if heuristic == "all" else part[part["heuristic"] == heuristic]
            row: dict[str, Any] = {"way": way, "rule": heuristic, "rows": len(cell),
                                   "sub-cases": cell["subcase"].nunique()}  # fmt: skip
            for name, some in (("all", cell), ("it follows", cell[cell["truth"] == 1]),
                               ("it does not", cell[cell["truth"] == 0])):  # fmt: skip
                low, high = share_interval(
                    torch.tensor(some["right"].to_numpy()).double(), list(some["subcase"])
                )
                row[name] = f"{some['right'].mean():.2f} [{float(low):.2f}, {float(high):.2f}]"
                if heuristic == name == "all":
                    page.figures[way.replace("-", "_")] = some["right"].mean()
                    chance = float(low) <= 0.5
            row["yes or no written"] = cell["written"].mean()
            table.append(row)
        page.say(
            f"{way[0].upper()}{way[1:]}: "
            + (
                f"**not above chance** over all {part['subcase'].nunique()} sub-cases: no skill "
                "to explain."
                if chance
                else f"above chance over all {part['subcase'].nunique()} sub-cases."
            )
        )
    page.table(
        pd.DataFrame(table),
        f"**{page.model} without a soft prompt**, zero-shot and with {SHOTS} answered rows before "
        "each question: share of rows whose right answer is likelier than the other (chance 1/2), "
        "with exact 95 % intervals over sub-cases; an interval over fewer than 30 sub-cases, as of "
        "one rule, is wide for that reason:",
        "shots",
    )


def at_last_token(page: Page, model: Any, rows: Rows, sizes: Namespace) -> None:
    """Neurons of truth, rule, correctness and confidence without a prompt, and their verdicts."""
    at = sizes.rows + sizes.stop + sizes.tested
    part = rows.part(at, sizes.last)
    folder = sizes.runs / "hans"
    found = kept(
        folder / "last token", Scores,
        lambda: ls.score(model, part, metrics=METRICS, n_permutations=sizes.draws,
                         checkpoint=folder / "last token unfinished"),
    )  # fmt: skip
    table = []
    for name in found.metrics:
        view = found[name]
        counts = {step: int(passed.any(0).sum()) for step, passed in view.passing().items()}
        table.append({"metric": name, "largest r": float(view.strength.max()),
                      "threshold": view.threshold} | counts)  # fmt: skip
    page.say(
        f"**Neurons at the last token, without a prompt**: {found.n_examples} rows of "
        f"{found.n_groups} sub-cases, {found.n_units:,} neurons; the permutation null trades "
        "whole sub-cases."
    )
    page.table(pd.DataFrame(table), "How many neurons pass each gate:", "gates_last")
    page.figures["last_truth_associated"] = int(found[TRUTH].associated.any(0).sum())
    verdict = together(model, None, found, TRUTH, rows, sizes, "last")
    said(page, verdict, TRUTH, "at the last token, without a prompt")


def together(
    model: Any, prompt: Any, found: Any, name: str, rows: Rows, sizes: Namespace, where: str,
) -> Verdict:  # fmt: skip
    """The strongest neurons of a metric, each alone and all at once, on all sub-cases."""
    at = sizes.rows + sizes.stop + sizes.tested + max(sizes.scored, sizes.last)
    spare = ls.tasks.few(rows.part(at, 100), sizes.verdict, seed=0)
    folder = sizes.runs / "hans" / f"verdict {where} {name.removeprefix('label:')}"
    return kept(
        folder,
        Verdict,
        lambda: ls.verify(
            model, spare, found[name].top(sizes.top), do=ls.ablate("mean", over=found),
            position="last" if prompt is None else "prompt", prompt=prompt,
            controls=ls.controls(sets=sizes.sets, neurons=sizes.controls), also=(), pairs=False,
            by=CLASSES, unrelated=False, exploratory=True,
            checkpoint=folder.with_name(f"{folder.name} unfinished"),
        ),
    )  # fmt: skip


def said(page: Page, verdict: Verdict, name: str, where: str) -> None:
    """A verdict in words: single neurons, the set among matched ones, and by truth and rule."""
    last = verdict.rulings[-1]
    beside = "" if last.p is None else f", p {last.p:.2g} among {last.n_controls} matched sets"
    groups = len(set(verdict.effects.groups))
    page.say(
        f"**Verdict, {name}, {where}**: the {len(verdict.rulings) - 1} of largest |r|, "
        f"exploratory, mean ablation, {len(verdict.effects.example_ids)} rows of {groups} "
        "sub-cases that neither "
        f"trained a prompt nor were scored; effect on the log-odds of the right answer: "
        f"{words(verdict)}. Together {last.effect:+.3g} [{last.low:.3g}, {last.high:.3g}]{beside}: "
        f"**{last.label}**; δ = {verdict.delta:.3g} nats."
    )
    kind = f"{'prompt' if 'prompt' in where.split(',')[0] else 'last'}_{name.split(':')[-1]}"
    columns = ["name", "label", "effect", "low", "high", "q"]
    page.table(verdict.frame()[columns], "Effects in nats:", f"verdict_{kind}")
    if "classes" in verdict.tables:
        classes = verdict.table("classes")
        page.table(
            classes[classes["name"] == "set"],
            "All together, within each answer (entailment 1: it follows) and each rule; single "
            "neurons in the CSV beside the page:",
        )
        classes.to_csv(
            page.out / f"hans_verdict_{kind}_classes.csv", index=False, float_format="%.6g"
        )
