"""The leaderboard of neuron-finding methods: whose neurons have a causal effect, on six tasks.

    python benchmarks/leaderboard.py            # about 8 minutes on one core

On each task every method ranks all neurons on one split; the strongest of each are mean-ablated
one by one on another, beside random other neurons of their layers. Writes ``figures/leaderboard``:
a page in Markdown, a picture of the whole and one per task, and their numbers as CSV.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from leaderboard_page import page, picture, pooled
from pictures import keep

import lens_skills as ls
from lens_skills.plotting.ranking_plots import method_comparison
from lens_skills.ranking import MethodComparison, compare_methods
from lens_skills.tasks import Task

OUT = Path("figures/leaderboard")


@dataclass(frozen=True)
class Entry:
    """One task of the leaderboard.

    Attributes:
        name: Of its files.
        model: What `load_model` opens.
        task: Makes the examples.
        metric: What neurons are ranked by.
        split: How it is made two classes.
        causal: What the effect of their ablation is measured on.
    """

    name: str
    model: str | None
    task: Callable[[], Task]
    metric: str
    split: str | None = None
    causal: str = "logit_diff"


def short_sums() -> Task:
    """Sums and differences whose answer is one digit: what the model can be right about."""
    whole = ls.tasks.arithmetic("+-", digits=(1, 2), n=2000)
    return whole.where(result_digits=1, negative=0)


ENTRIES = (
    Entry("agreement_plural", None, ls.tasks.agreement, "label:plural"),
    Entry("agreement_confidence", None, ls.tasks.agreement, "confidence", "median", "confidence"),
    Entry("ioi_first", None, ls.tasks.ioi, "label:io_first"),
    Entry("arithmetic_correct", None, short_sums, "correct"),
    Entry("small_carry", "arithmetic-small",
          lambda: ls.tasks.arithmetic("+", digits=(1, 2), n=800), "label:carry"),
    Entry("small_even", "arithmetic-small",
          lambda: ls.tasks.arithmetic("+", digits=(1, 2), n=800), "label:even"),
)  # fmt: skip


def splits(task: Task, n_explore: int, n_intervene: int) -> tuple[Task, Task]:
    """A random part to rank on, and one example of each group of the rest to ablate neurons on."""
    explore, rest = task.split(0.5, 0.5, seed=0)
    order = np.random.default_rng(0).permutation(len(explore))[:n_explore]
    chosen = {explore[int(place)].id for place in order}
    first: dict[str, str] = {}
    for place in np.random.default_rng(1).permutation(len(rest)).tolist():
        first.setdefault(rest[place].group, rest[place].id)
    kept = set(list(first.values())[:n_intervene])
    return (
        explore.where(lambda example: example.id in chosen),
        rest.where(lambda example: example.id in kept),
    )


def run(entry: Entry, model: Any, options: argparse.Namespace) -> MethodComparison:
    """The comparison of one task."""
    explore, intervene = splits(entry.task(), options.explore, options.intervene)
    return compare_methods(
        model,
        explore,
        metric=entry.metric,
        intervene=intervene,
        split=entry.split,
        causal_metric=entry.causal,
        k=options.k,
        controls=ls.controls(neurons=options.controls),
    )


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, default=10, help="neurons each method may name")
    parser.add_argument("--explore", type=int, default=240, help="examples to rank on")
    parser.add_argument("--intervene", type=int, default=64, help="examples to ablate neurons on")
    parser.add_argument("--controls", type=int, default=200, help="other neurons of the layers")
    parser.add_argument("--out", type=Path, default=OUT, help="where the page goes")
    parser.add_argument("--only", nargs="*", help="names of tasks")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    """Runs the tasks and writes the page."""
    ls.config(progress=False)
    models: dict[Any, Any] = {}
    found: dict[str, MethodComparison] = {}
    for entry in ENTRIES:
        if options.only and entry.name not in options.only:
            continue
        if entry.model not in models:
            models[entry.model] = ls.load_model(entry.model) if entry.model else ls.load_model()
        began = time.process_time()
        found[entry.name] = run(entry, models[entry.model], options)
        seconds = time.process_time() - began
        print(f"\n{found[entry.name]}\n{seconds:.0f} s of processor time", flush=True)
    board = pooled(found)
    options.out.mkdir(parents=True, exist_ok=True)
    drawings = {name: method_comparison(one) for name, one in found.items()}
    drawings["leaderboard"] = picture(board, list(found), options.k)
    for name, drawing in drawings.items():
        keep(drawing, options.out / name)
    text = page(found, board, options, time.process_time() / 60)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(board.to_string())


if __name__ == "__main__":
    main(arguments())
