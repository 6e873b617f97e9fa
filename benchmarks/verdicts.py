"""Verdicts on the strongest correlates of a skill, whether the nulls let them pass or not.

    python benchmarks/verdicts.py agreement
    python benchmarks/verdicts.py carry --examples 60  # on a model that can add
    python benchmarks/verdicts.py arithmetic          # on SmolLM2: long

What a list of "skill neurons" by correlation alone is worth: the top neurons by |r| on one split
are ablated on another, beside 200 other neurons of each layer.
"""

from functools import partial
from typing import Any

from timing import arguments, run_parts

import lens_skills as ls
from lens_skills.interventions.verdict import NO_EFFECT, OPPOSES, SUPPORTS
from lens_skills.tasks import few

TOP = 8
TASKS: dict[str, tuple[Any, str, str | None]] = {
    "agreement": (lambda: ls.tasks.agreement(n=1000), "label:plural", None),
    "carry": (
        lambda: ls.tasks.arithmetic("+", digits=(2,), n=800), "label:carry", "arithmetic-small",
    ),
    "arithmetic": (lambda: ls.tasks.arithmetic("+-*", digits=(1, 2), n=1000), "correct", None),
}  # fmt: skip


def verdicts(name: str, n_neurons: int, n_examples: int) -> dict[str, float]:
    """The table of one task's strongest neurons."""
    make, metric, model_name = TASKS[name]
    model = ls.load_model(model_name)
    explore, intervene = make().split(0.5, 0.5, seed=0)
    scores = ls.score(model, explore, metrics=metric)[metric]
    verdict = ls.verify(
        model,
        few(intervene, n_examples, seed=0),
        scores.top(TOP),
        do=ls.ablate("mean", over=scores.scores),
        controls=ls.controls(sets=0, neurons=n_neurons),
        also=(),
        pairs=False,
        by=(),
    )
    r = scores.frame().set_index(["layer", "neuron"])["r"]
    strongest = [float(r[tuple(neuron)]) for neuron in scores.top(TOP).rows.tolist()]
    table = verdict.frame()
    table.insert(1, "r", [*strongest, None])
    print(f"\n{name}: the {TOP} neurons of largest |r| with {metric}, δ = {verdict.delta:.3g}")
    print(table.to_string(index=False))
    print("\n".join(verdict.notes))
    sizes = [abs(value) for value in strongest]
    words = {"supports": SUPPORTS, "opposes": OPPOSES, "no_effect": NO_EFFECT}
    figures = {f"{name}_{key}": float(verdict.counts.get(word, 0)) for key, word in words.items()}
    return figures | {
        f"{name}_r_lowest": min(sizes),
        f"{name}_r_highest": max(sizes),
        f"{name}_effect_largest": max(abs(ruling.effect) for ruling in verdict.rulings),
        f"{name}_delta": verdict.delta,
        f"{name}_neurons": float(scores.strength.numel()),
        f"{name}_associated": float((scores.strength > scores.threshold).sum()),
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("task", nargs="?", choices=list(TASKS))
    parser.add_argument("--controls", type=int, default=200, help="other neurons per layer")
    parser.add_argument("--examples", type=int, default=48)
    asked = parser.parse_args()
    run_parts(
        {name: partial(verdicts, name, asked.controls, asked.examples) for name in TASKS},
        asked,
        only=asked.task,
    )
