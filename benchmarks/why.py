"""The five strongest confidence neurons on arithmetic, each explained, tested and diagnosed.

    python benchmarks/why.py

Two models: SmolLM2-135M-Instruct, which mostly cannot calculate, and arithmetic-small, which can.
Writes figures/why/README.md with its pictures and their numbers; prints one JSON object last.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from pictures import keep
from timing import arguments, run_parts

import lens_skills as ls
from lens_skills.diagnostics import Regulators, confidence_regulators, redundancy, sparse_probe
from lens_skills.diagnostics.regulators import REGULATOR
from lens_skills.explanation import Explanations, explain
from lens_skills.interventions.verdict import NO_EFFECT, SUPPORTS, UNDECIDED
from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.diagnostic_plots import confidence_regulation

OUT = Path("figures/why")
SEED = 0
INTRODUCTION = """# Five confidence neurons on arithmetic, and what they are

The five neurons that go most with the model's confidence, whatever they turn out to be: explained
by features of the problem, tested by ablation on a third split, and asked whether they regulate
confidence in general. `python benchmarks/why.py` writes this page and its pictures.

Verdict and kind are two rulers. The verdict is about the mean effect, up or down, among 100
other neurons; the kind asks whether the effect, whichever way it goes, is larger than that of 100
random neurons of the layer, adjusted over the five, and whether neutral text moves too. Near the
line they may differ.
"""


@dataclass(frozen=True)
class Setting:
    """One model with its problems.

    Attributes:
        name: In file names.
        model: As `load_model` takes it.
        task: All problems.
        metric: The form of confidence.
        why: Why that form.
        neutral: Text that has nothing to do with them; None takes the project's sentences.
        about_neutral: What that text is, for the page.
    """

    name: str
    model: str | None
    task: ls.Task
    metric: Any
    why: str
    neutral: tuple[str, ...] | None
    about_neutral: str


def settings() -> list[Setting]:
    products = [example.prompt for example in ls.tasks.arithmetic("*", digits=(1,))]
    return [
        Setting(
            name="smollm2",
            model=None,
            task=ls.tasks.arithmetic("+-*", digits=(1, 2), n=1000, seed=SEED),
            metric=ls.confidence(),
            why="the probability of its first choice",
            neutral=None,
            about_neutral="sixty plain sentences",
        ),
        Setting(
            name="arithmetic_small",
            model="arithmetic-small",
            task=ls.tasks.arithmetic("+-", digits=(2, 3), n=1000, seed=SEED),
            metric=ls.confidence("margin"),
            why="first choice over second in nats, as its probabilities are nearly all 1",
            neutral=tuple(products[::2]),
            about_neutral="products of one-digit numbers, since this model has read nothing but "
            "problems: another skill in the same wording, and so no neutral text in the flag's "
            "sense",
        ),
    ]


class Page:
    """Paragraphs, tables and pictures, in the order they are given."""

    def __init__(self, out: Path) -> None:
        self.out, self.parts = out, list[str]()
        out.mkdir(parents=True, exist_ok=True)

    def write(self, name: str) -> None:
        """The section as a file, and the page anew of all sections there are."""
        (self.out / f"{name}.md").write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        sections = [self.out / f"{setting.name}.md" for setting in settings()]
        texts = [path.read_text(encoding="utf-8") for path in sections if path.exists()]
        whole = "\n".join([INTRODUCTION, *texts])
        (self.out / "README.md").write_text(whole, encoding="utf-8")

    def say(self, text: str) -> None:
        """A paragraph of Markdown, also printed."""
        self.parts.append(text)
        print(f"\n{text}", flush=True)

    def table(self, frame: pd.DataFrame, caption: str) -> None:
        """A table; numbers to three significant digits."""
        lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
        lines += [[_cell(value) for value in row] for row in frame.to_numpy(dtype=object)]
        self.say(f"{caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def picture(self, drawing: Drawing, name: str, caption: str) -> None:
        """A figure beside the page, with its numbers."""
        path = keep(drawing, self.out / name)
        self.say(f"![{caption}]({path.name})\n\n*{caption}*")


def study(page: Page, setting: Setting, n_effects: int) -> dict[str, float]:
    """One model's section; its numbers, and the seconds of each step."""
    clock = {"start": time.monotonic()}
    model = ls.load_model(setting.model)
    explore, confirm, intervene = setting.task.split(0.4, 0.3, 0.3, seed=SEED)
    everything = ls.score(model, explore, metrics=[setting.metric, "correct"], seed=SEED)
    scores = everything[setting.metric.name]
    five = scores.top(5)
    names = five.names
    right = float(everything.values["correct"].mean())
    page.say(
        f"## {setting.name}\n\n{len(setting.task):,} problems, of which {right:.0%} of those in "
        f"explore are answered right. The five largest |r| with the model's confidence "
        f"({setting.why}) on "
        f"{len(explore)} problems; the permutation threshold there is "
        f"{scores.threshold:.2f} (5 % family-wise). They are the strongest of all neurons, so "
        "their |r| is too large by selection; the r below is of other problems."
    )
    clock["scored"] = time.monotonic()
    why = explain(model, confirm, names, n_permutations=199, seed=SEED)
    clock["explained"] = time.monotonic()
    kinds = confidence_regulators(
        model, confirm, names, metric=setting.metric, neutral=setting.neutral, n_effects=n_effects,
        seed=SEED,
    )  # fmt: skip
    clock["diagnosed"] = time.monotonic()
    verdict = ls.verify(
        model, intervene[:n_effects], names, do=ls.ablate("mean", over=explore),
        metric=setting.metric, controls=ls.controls(sets=19, neurons=100),
        also=(), by=(), pairs=False, seed=SEED,
    )  # fmt: skip
    clock["tested"] = time.monotonic()
    r = {name: float(scores.r[0, place]) for name, place in _places(scores, five).items()}
    page.table(summary(names, r, why, verdict, kinds), "What was found of each:")
    for name in names:
        page.say(f"**{name}**\n\n```\n{why[name]!r}\n```")
    page.say(f"**Diagnostics** (neutral text: {setting.about_neutral})\n\n```\n{kinds!r}\n```")
    page.picture(
        confidence_regulation(kinds), f"{setting.name}_regulation",
        "Norm of what each neuron writes against the variance of its cosine with the vocabulary.",
    )  # fmt: skip
    page.say(f"**Verdict** on a third split\n\n```\n{verdict!r}\n```")
    several = redundancy(model, confirm, scores.top(40))
    page.picture(
        figures.redundancy(several), f"{setting.name}_clusters",
        f"The 40 strongest: {len(several)} clusters at |r| of 0.5 on average.",
    )  # fmt: skip
    probe = sparse_probe(
        model, explore, confirm, scores.top(500), metric=_label(setting.task), by="difference",
        seed=SEED,
    )  # fmt: skip
    page.say(f"```\n{several!r}\n\n{probe!r}\n```")
    page.picture(
        figures.sparse_probe(probe), f"{setting.name}_probe",
        f"How many of the 500 strongest confidence neurons tell {probe.metric}.",
    )  # fmt: skip
    clock["drawn"] = time.monotonic()
    steps = list(clock.items())
    numbers = {f"{name}_s": at - before for (_, before), (name, at) in pairwise(steps)}
    supporting = [name for name in names if verdict[name].word == SUPPORTS]
    explained = [why[name].best["variance_explained"] for name in supporting if why[name].best]
    numbers |= {
        "right": right,
        "supports": len(supporting),
        "undecided": verdict.counts.get(UNDECIDED, 0),
        "no_effect": verdict.counts.get(NO_EFFECT, 0),
        "r_smallest": min(abs(value) for value in r.values()),
        "r_largest": max(abs(value) for value in r.values()),
        "regulators": sum(kinds[name]["word"] == REGULATOR for name in names),
    }
    if explained:
        numbers |= {"explained_lowest": min(explained), "explained_highest": max(explained)}
    return {f"{setting.name}_{key}": float(value) for key, value in numbers.items()}


def summary(
    names: Sequence[str], r: dict[str, float], why: Explanations, verdict: Any, kinds: Regulators
) -> pd.DataFrame:
    """One row per neuron: what explains it, what it does, what kind it is."""
    rows = []
    for name in names:
        best, ruling, kind = why[name].best, verdict[name], kinds[name]
        share = "" if best is None else f"{best['feature']} ({best['variance_explained']:.0%})"
        rows.append(
            {
                "neuron": name,
                "r explore": r[name],
                "r elsewhere": f"{kind['r_task']:+.2f} "
                f"[{kind['r_task_low']:+.2f}, {kind['r_task_high']:+.2f}]",
                "best feature (held-out variance)": share,
                "verdict on confidence": ruling.word,
                "effect": f"{ruling.effect:+.2g} [{ruling.low:+.2g}, {ruling.high:+.2g}]",
                "kind": kind["word"],
                "because": kind["why"],
            }
        )
    return pd.DataFrame(rows)


def _label(task: ls.Task) -> str:
    return "label:carry" if "carry" in task[0].labels else "label:even"


def _places(scores: Any, rows: Any) -> dict[str, int]:
    return {unit.name: scores.scores.places[unit.layer, unit.index] for unit in rows}


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--effects", type=int, default=32, help="examples to ablate on")
    parser.add_argument("--only", help="one model by name")
    given = parser.parse_args()
    ls.config(progress=False)

    def all_of_them() -> dict[str, float]:
        figures: dict[str, float] = {}
        for setting in settings():
            if given.only in (None, setting.name):
                page = Page(given.out)
                figures |= study(page, setting, given.effects)
                page.write(setting.name)
        return figures

    run_parts({"": all_of_them}, given)


if __name__ == "__main__":
    main()
