"""The strongest correlates of a skill on trial, whether the nulls let them pass or not.

    PYTHONPATH=. python benchmarks/verdicts.py agreement
    PYTHONPATH=. python benchmarks/verdicts.py carry --trials 60   # on a model that can add
    PYTHONPATH=. python benchmarks/verdicts.py arithmetic          # on SmolLM2: long

What a list of "skill neurons" by correlation alone is worth: the top neurons by |r| on one split
are switched off on another, beside 200 other neurons of each layer.
"""

import argparse
from typing import Any

import lens_skills as ls
from benchmarks.timing import report
from lens_skills.tasks import few

TOP = 8
TASKS: dict[str, tuple[Any, str, str | None]] = {
    "agreement": (lambda: ls.tasks.agreement(n=1000), "label:plural", None),
    "carry": (
        lambda: ls.tasks.arithmetic("+", digits=(2,), n=800), "label:carry", "arithmetic-small",
    ),
    "arithmetic": (lambda: ls.tasks.arithmetic("+-*", digits=(1, 2), n=1000), "correct", None),
}  # fmt: skip


def trial(name: str, n_neurons: int, n_trials: int) -> dict[str, float]:
    """The table of one task's strongest neurons."""
    make, metric, model_name = TASKS[name]
    model = ls.load_model(model_name)
    explore, intervene = make().split(0.5, 0.5, seed=0)
    found = ls.score(model, explore, metrics=metric)[metric]
    verdict = ls.verify(
        model,
        few(intervene, n_trials, seed=0),
        found.top(TOP),
        do=ls.ablate("mean", over=found.scores),
        controls=ls.controls(0, neurons=n_neurons),
        also=(),
        pairs=False,
        by=(),
    )
    r = found.frame().set_index(["layer", "neuron"])["r"]
    table = verdict.frame()
    table.insert(1, "r", [*(r[tuple(unit)] for unit in found.top(TOP).tolist()), None])
    print(f"\n{name}: the {TOP} neurons of largest |r| with {metric}, δ = {verdict.delta:.3g}")
    print(table.to_string(index=False))
    print("\n".join(verdict.notes))
    return {f"{name}_{word}": float(count) for word, count in verdict.counts.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=list(TASKS))
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--trials", type=int, default=48)
    asked = parser.parse_args()
    figures: dict[str, float] = {}
    for task in [asked.task] if asked.task else TASKS:
        figures |= trial(task, asked.peers, asked.trials)
    report(figures)
