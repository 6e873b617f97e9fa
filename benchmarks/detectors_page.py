"""The page of `detectors.py`: tables, the figure, and what the numbers say in words."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from asked_model import slug
from detector_steps import FEWEST, NAMES, Answers, Detected
from pictures import keep

from lens_skills.interventions.verdict import NO_EFFECT, OPPOSES, SUPPORTS
from lens_skills.plotting import figures

SMALLEST = 0.01
"""Of the clean value: a smaller change is none, as in a verdict."""
ENOUGH = 30
"""Groups, from which a bootstrap's interval holds."""
NEGLIGIBLE = 0.05
"""Nats per token: more damage than that is said to be some."""


class Page:
    """Paragraphs and tables in the order they are given; every table is a CSV file too."""

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, list[str]()

    def say(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(text)

    def table(self, frame: pd.DataFrame, shown: pd.DataFrame, name: str, caption: str) -> None:
        """The table as it is shown; in full beside the page."""
        file = self.path.with_name(f"{self.path.stem}_{name}.csv")
        frame.to_csv(file, index=False, float_format="%.6g")
        lines = [list(map(str, shown.columns)), ["---"] * len(shown.columns)]
        lines += [[_cell(value) for value in row] for row in shown.to_numpy(dtype=object)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self.say(f"{caption} ([all columns]({file.name}))\n\n{body}")

    def write(self) -> None:
        """The file."""
        self.path.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        print(f"written: {self.path}", flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def _between(row: Any, value: str, low: str, high: str, sign: str = "") -> str:
    if np.isnan(row[value]):
        return ""
    ends = "" if np.isnan(row[low]) else f" [{row[low]:{sign}.2f}, {row[high]:{sign}.2f}]"
    return f"{row[value]:{sign}.2f}{ends}".replace("-", "−")


def write_page(about: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
    """The page, as far as the steps have come."""
    given = about["given"]
    name = slug(given.model)
    given.out.mkdir(parents=True, exist_ok=True)
    page = Page(given.out / f"{name}.md")
    page.say(f"# Detectors on trial: {title(name)}")
    page.say(f"`{command(given)}`")
    if given.quick:
        page.say("**A smoke run on a few examples: no result.**")
    if given.note:
        page.say(given.note)
    if str(given.model or "").endswith(".gguf"):
        page.say("What was run is a 4-bit GGUF of this model.")
    page.say(
        "The model answers by itself, greedily. Of every MLP neuron the contribution (CETT: |a| · "
        "‖W_out‖ / ‖what the MLP writes‖) is averaged over the tokens of its answer and over all "
        "others; a sparse probe finds the few that tell wrong answers "
        "([2512.01797](https://arxiv.org/abs/2512.01797): *H-neurons*). They are found on some "
        "groups (pairs of operands) and tried on others. An answer's tokens are read *after* the "
        "first of them is chosen."
    )
    setting(page, about)
    if "detected" not in about:
        page.say("**" + too_few(about) + "**")
    elif len(about["detected"].lists["H-neurons"]) == 0:
        detection(page, about)
        page.say("**The probe leaves no neuron that goes with wrong answers: nothing to scale.**")
    else:
        detection(page, about)
        if "transfer" in about:
            carried_over(page, about)
        if "verdict" in about:
            verdicts(page, about)
        if "scaling" in about:
            scaling(page, about)
            page.say(f"## In words\n\n{in_words(about)}")
    spent = sum(seconds.values())
    words = f"{spent / 60:.1f} minutes" if spent >= 60 else f"{spent:.0f} seconds"
    page.say(f"Made in {words} of processor time, one thread.")
    page.write()


def title(name: str) -> str:
    """A model's name on the page."""
    names = {"smollm2": "SmolLM2-135M-Instruct", "arithmetic_small": "arithmetic-small"}
    return names.get(name, PUBLIC.get(name, name).rsplit("/", 1)[-1])


PUBLIC = {"qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct"}


def command(given: Any) -> str:
    """What a reader types, with the public name of the model."""
    parts = ["python benchmarks/detectors.py"]
    if given.model:
        parts.append(f"--model {PUBLIC.get(slug(given.model), given.model)}")
    parts += ["--quick"] if given.quick else []
    parts += [f"--ops={given.ops}"] if given.ops != "+-*" else []
    if given.digits != [1, 2]:
        parts.append(f"--digits {' '.join(map(str, given.digits))}")
    if not given.quick:
        usual = {"n": 300, "levers": 36, "texts": 12, "random": 50, "matched": 5, "seed": 0}
        parts += [
            f"--{key} {getattr(given, key)}"
            for key, value in usual.items()
            if getattr(given, key) != value
        ]
    return " ".join(parts)


def setting(page: Page, about: Mapping[str, Any]) -> None:
    """What was asked, and what was answered right."""
    given, found = about["given"], about["answers"]
    rows = []
    for cell in sorted(set(found.cells)):
        for split, chosen in (("found on", about["learn"]), ("tried on", about["held"])):
            here = [row for row in chosen if found.cells[row] == cell]
            rows.append(
                {"operation": NAMES.get(cell[0], cell[0]), "digits": cell[1], "split": split,
                 "problems": len(here), "groups": len({found.groups[row] for row in here}),
                 "right": float(found.right[here].mean()) if here else float("nan")}
            )  # fmt: skip
    groups = [len({found.groups[row] for row in about[key]}) for key in ("learn", "held")]
    frame = pd.DataFrame(rows)
    page.table(
        frame, frame, "answers",
        f"## The answers\n\n{len(found.right)} problems, split by pair of operands: neurons are "
        f"found on {len(about['learn'])} ({groups[0]} groups) and tried on {len(about['held'])} "
        f"({groups[1]} groups); seed {given.seed}. Share answered right:",
    )  # fmt: skip
    if groups[1] < ENOUGH:
        page.say(
            f"**{groups[1]} groups to try on are fewer than {ENOUGH}**: intervals over so few are "
            "somewhat too narrow."
        )
    page.say(f"```\n{about['preflight']}\n```")


def too_few(about: Mapping[str, Any]) -> str:
    """Why nothing can be said."""
    found: Answers = about["answers"]
    words = []
    for name, rows in (("found", about["learn"]), ("tried", about["held"])):
        right = int(found.right[rows].sum())
        words.append(f"{right} right and {len(rows) - right} wrong where neurons are to be {name}")
    return (
        f"Too few answers of a kind to tell right from wrong by: {', '.join(words)}; {FEWEST} of "
        "each are needed. Nothing was fitted. Other problems: --ops, --digits, --n."
    )


def detection(page: Page, about: Mapping[str, Any]) -> None:
    """How well right and wrong answers are told."""
    detected: Detected = about["detected"]
    found: Answers = about["answers"]
    table = detected.table
    shown = pd.DataFrame(
        {
            "read": table["what"],
            "columns": table["columns"],
            "AUROC": [_between(r, "auroc", "auroc_low", "auroc_high") for _, r in table.iterrows()],
            "balanced accuracy": [
                _between(r, "balanced_accuracy", "ba_low", "ba_high") for _, r in table.iterrows()
            ],
            "AUROC over random sets": [
                _between(r, "over_random", "over_low", "over_high", "+")
                if "over_random" in table
                else ""
                for _, r in table.iterrows()
            ],
            "p": table["p"] if "p" in table else float("nan"),
        }
    )
    k = len(detected.lists["H-neurons"])
    page.table(
        table, shown, "detection",
        f"## Do they tell right from wrong?\n\n{k} of {found.own.answer.shape[1]:,} neurons go "
        "with wrong answers in the paper's probe (wrong answers against right ones and against "
        "all other tokens; its penalty chosen by folds of groups). Each row: a logistic probe on "
        "these columns, fitted where the neurons were found, tried on "
        f"{len(about['held'])} other answers. Intervals: 95 %, {len(about['held'])} answers in "
        f"{len({found.groups[r] for r in about['held']})} groups drawn anew; of random sets the "
        "middle 95 % of sets. p: share of random sets at least as good, "
        "of one row, not corrected. *The problem alone*: operation, digits and how many tokens "
        "were written.",
    )  # fmt: skip
    lists = [f"{name}: {_named(places, found)}" for name, places in detected.lists.items()]
    page.say("The first of each list. " + "; ".join(lists) + ".")


def _named(places: np.ndarray, found: Answers, n: int = 6) -> str:
    width = found.own.width
    names = [f"L{found.own.layers[p // width]}N{p % width}" for p in places[:n]]
    return ", ".join(names) + (", …" if len(places) > n else "")


def carried_over(page: Page, about: Mapping[str, Any]) -> None:
    """The matrix of transfer."""
    table = about["transfer"]
    kinds = list(dict.fromkeys(table["tested_on"]))
    rows = []
    for source, part in table.groupby("trained_on", sort=False):
        cells = {
            row["tested_on"]: _between(row, "auroc", "low", "high") or "too few"
            for _, row in part.iterrows()
        }
        rows.append({"found on": source, "neurons": part["neurons"].iloc[0]} | cells)
    wrong = table.drop_duplicates("tested_on").set_index("tested_on")
    counts = ", ".join(
        f"{kind} {wrong.loc[kind, 'wrong']} of {wrong.loc[kind, 'n_test']}" for kind in kinds
    )
    page.table(
        table, pd.DataFrame(rows), "transfer",
        "## Do they carry over?\n\nAUROC of H-neurons found, and refitted, on problems of one "
        "kind, on held-out groups of another. Wrong answers among those tried: "
        f"{counts}. *Too few*: under {FEWEST} of a class, or no neuron.",
    )  # fmt: skip


def verdicts(page: Page, about: Mapping[str, Any]) -> None:
    """What `verify` says of the strongest, and of them together."""
    verdict = about["verdict"]
    frame = verdict.frame()
    rulings = verdict.rulings
    shown = pd.DataFrame(
        {
            "neuron": [r.name for r in rulings],
            "verdict": [r.word for r in rulings],
            "effect (nats)": [
                f"{r.effect:+.3f} [{r.low:+.3f}, {r.high:+.3f}]".replace("-", "−") for r in rulings
            ],
            "δ": [r.delta for r in rulings],
            "rank": [f"{r.rank} of {r.n_controls + 1}" if r.rank else "" for r in rulings],
            "q": [float("nan") if r.q is None else r.q for r in rulings],
        }
    )
    page.table(
        frame, shown, "verdict",
        "## Are they levers? Where the answer is chosen\n\nEach of the strongest, and all of "
        "these together (*set*), scaled by 0 at the prompt's last token; effect on the logit "
        "difference of the right answer and a slip in its leading digit, "
        f"on {len(about['tried'])} problems (a group each as far as there are groups, operations "
        f"and digits in turn) in {len({e.group for e in about['tried']})} of the held-out groups, "
        "beside other neurons and matched random sets.",
    )  # fmt: skip


def scaling(page: Page, about: Mapping[str, Any]) -> None:
    """What turning the set down and up does."""
    table, given = about["scaling"], about["given"]
    tried = about["tried"]
    shown = pd.DataFrame({"factor": table["alpha"]})
    for measure, words in (
        ("accuracy", "change of accuracy"), ("logit_diff", "of logit difference (nats)"),
        ("damage", "damage (nats per token)"),
    ):  # fmt: skip
        sign = "" if measure == "damage" else "+"
        for heading, column in ((words, measure), ("random sets: " + words, f"random_{measure}")):
            shown[heading] = [
                _between(r, column, f"{column}_low", f"{column}_high", sign)
                for _, r in table.iterrows()
            ]
    page.table(
        table, shown, "scaling",
        f"## Are they levers? Everywhere\n\nAll {len(about['names'])} H-neurons scaled by each "
        f"factor at every token, as in the paper, on {len(tried)} problems in "
        f"{len({e.group for e in tried})} held-out groups (unscaled: accuracy "
        f"{table['clean_accuracy'].iloc[0]:.2f}, logit difference "
        f"{table['clean_logit_diff'].iloc[0]:.2f} nats) and {given.texts} neutral sentences; "
        f"beside sets of other neurons of the same layers with a like mean CETT ({_counts(table)}; "
        "mean, and from the lowest to the highest set).",
    )  # fmt: skip
    drawing = figures.scaling_curve(
        table,
        title=f"{len(about['names'])} H-neurons of {title(slug(given.model))}, scaled",
        lines=(f"{len(tried)} problems, {given.texts} neutral sentences; {_counts(table)}, of the "
               "same layers and like contribution",),
    )  # fmt: skip
    path = keep(drawing, page.path.with_name(f"{page.path.stem}_scaling"))
    page.say(f"![Accuracy, logit difference and damage against the factor]({path.name})")


def _counts(table: pd.DataFrame) -> str:
    """How many random sets were measured, at which factors."""
    counts = table.loc[table["alpha"] != 1].set_index("alpha")["random_sets"]
    if counts.nunique() == 1:
        return f"{counts.iloc[0]} random sets"
    return "random sets: " + ", ".join(f"{n} at factor {alpha:g}" for alpha, n in counts.items())


def in_words(about: Mapping[str, Any]) -> str:
    """What the numbers say; nothing that is not in a table above."""
    table = about["detected"].table.set_index("what")
    row = table.loc["H-neurons"]
    tells = row["auroc_low"] > 0.5
    beyond = bool(row.get("over_low", 0) > 0)
    word = ("yes" if beyond else "no better than random neurons") if tells else "no"
    parts = [
        f"**Detectors: {word}.** H-neurons tell right from wrong answers in "
        f"unseen groups with an AUROC of {_between(row, 'auroc', 'auroc_low', 'auroc_high')}"
        + (", better than" if beyond else ", not clearly better than")
        + " random neurons of the same layers "
        f"({_between(row, 'over_random', 'over_low', 'over_high', '+')})."
    ]
    for other in ("probability of the first token", "mean log-probability", "the problem alone"):
        if other in table.index:
            parts.append(f"{other[0].upper()}{other[1:]}: {table.loc[other, 'auroc']:.2f}.")
    both = "problem, confidence and H-neurons"
    if both in table.index:
        gain = table.loc[both, "auroc"] - table.loc["problem and confidence", "auroc"]
        parts.append(
            f"Beside the problem and the model's confidence they change the AUROC by {gain:+.2f} "
            f"(to {table.loc[both, 'auroc']:.2f}).".replace("-", "−")
        )
    moved = transfer_words(about["transfer"]) if "transfer" in about else ""
    return " ".join([*parts, moved, *lever_words(about)])


def transfer_words(table: pd.DataFrame) -> str:
    """How far detection carries over between operations."""
    kinds = [*NAMES.values()]
    other = table[
        table["trained_on"].isin(kinds)
        & table["tested_on"].isin(kinds)
        & (table["trained_on"] != table["tested_on"])
    ].dropna(subset=["auroc"])
    if other.empty:
        return "Between operations there were too few answers of a kind to say."
    above = int((other["low"] > 0.5).sum())
    return (
        f"From one operation to another the AUROC is {other['auroc'].min():.2f} to "
        f"{other['auroc'].max():.2f} ({above} of {len(other)} intervals above 0.5)."
    )


def lever_words(about: Mapping[str, Any]) -> list[str]:
    """Whether the detectors are levers, by verdict and by scaling."""
    parts, lever = [], False
    if "verdict" in about:
        words = [r.word for r in about["verdict"].rulings]
        acting = sum(word in (SUPPORTS, OPPOSES) for word in words[: -1 or None])
        lever = words[-1] in (SUPPORTS, OPPOSES)
        parts.append(
            f"Of the {len(words) - 1} strongest, {acting} have an effect of their own where the "
            f"answer is chosen ({words[:-1].count(NO_EFFECT)}: {NO_EFFECT}); together: "
            f"{words[-1]}."
        )
    table, outside = about["scaling"].set_index("alpha"), []
    ends = [alpha for alpha in (0.0, 3.0) if alpha in table.index and table["random_sets"][alpha]]
    for alpha in ends:
        row = table.loc[alpha]
        for measure, unit in (("accuracy", ""), ("logit_diff", " nats")):
            low, high = row[f"random_{measure}_low"], row[f"random_{measure}_high"]
            differs = row[f"{measure}_low"] > 0 or row[f"{measure}_high"] < 0
            matters = abs(row[measure]) > SMALLEST * abs(row[f"clean_{measure}"])
            if differs and matters and not low <= row[measure] <= high:
                told = f"{measure.replace('_', ' ')} {row[measure]:+.2f}{unit}"
                outside.append(
                    f"{told} at factor {alpha:g} (random sets {low:+.2f} to {high:+.2f})"
                )
        if row["damage"] > NEGLIGIBLE:
            parts.append(
                f"At factor {alpha:g} neutral text is damaged by {row['damage']:.2f} nats per "
                f"token (random sets {row['random_damage']:.2f})."
            )
    if outside:
        parts.append(f"Scaled everywhere, beyond all random sets: {'; '.join(outside)}.")
    elif ends:
        parts.append(
            f"Scaled everywhere by {' or '.join(f'{alpha:g}' for alpha in ends)}, no change of "
            "accuracy or logit difference is told from 0, beyond 1 % of the clean value and "
            "beyond the random sets."
        )
    settled = "verdict" not in about or about["verdict"].rulings[-1].word == NO_EFFECT
    answer = "yes" if lever or outside else "no" if settled else "none seen, undecided"
    return [f"**Levers: {answer}.**", *(re.sub(r"(?<=[ (])-(?=\d)", "−", part) for part in parts)]
