"""Which neurons that move subject-verb agreement end in grade A, and which test stops the others.

Every associated neuron is edited on the third split, whatever its grade, beside random ones of its
layer. Of those whose effect is wholly beyond 1 % of the clean metric, how many are
graded A? By how many nouns (groups) each split holds.

    python benchmarks/agreement_grades.py            # the default model; about 20 minutes
    python benchmarks/agreement_grades.py --save     # into benchmarks/results
"""

import argparse
from typing import Any

from timing import save

import lens_skills as ls
from lens_skills.tasks import few

METRIC, BEYOND = "label:plural", 0.01


def measured(model: Any, n: int, *, seed: int, controls: int) -> dict[str, Any]:
    """One line of the table: ``n`` examples of agreement, split 0.4, 0.2, 0.4 by noun."""
    explore, confirm, rest = ls.tasks.agreement(n=n).split(0.4, 0.2, 0.4, seed=seed)
    intervene = few(rest, 64, seed=seed)
    found = ls.score(model, explore, metrics=METRIC, seed=seed)
    strongest = found[METRIC].top(200)
    again = ls.score(model, confirm, metrics=METRIC, neurons=strongest, seed=seed)
    selection = ls.select(found, again)
    evidence = selection.evidence()
    verdict = ls.verify(
        model,
        intervene,
        list(evidence["name"]),
        do=ls.ablate("mean", over=found),
        controls=ls.controls(sets=0, neurons=controls),
        seed=seed,
    )
    clean = abs(float(verdict.effects.clean.mean()))
    graded = selection.graded(verdict)
    rulings = verdict.frame().set_index("name")

    def large(name: str) -> bool:
        row = rulings.loc[name]
        return max(row["low"], -row["high"]) > BEYOND * clean

    graded["large"] = [large(name) for name in graded["name"]]
    print(verdict)
    print(graded.to_string())
    missed = graded[graded["large"] & (graded["grade"] != "A")]
    random = verdict.control_neuron_effect.abs()
    return {
        "groups": found.n_groups,
        "examples": found.n_examples,
        "associated": len(graded),
        "beat_control": int(found[METRIC].beats_control.any(0).sum()),
        "A": int((graded["grade"] == "A").sum()),
        "large": int(graded["large"].sum()),
        "large_A": int((graded["large"] & (graded["grade"] == "A")).sum()),
        "missed": {
            row["name"]: str(row["stopped_by"] or row["verdict"]) for _, row in missed.iterrows()
        },
        "privileged": int((graded["badge"] != "").sum()),
        "random": len(random),
        "random_beyond": int((random > BEYOND * clean).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, nargs="+", default=[240, 360, 480])
    parser.add_argument("--controls", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    model = ls.load_model()
    figures = {}
    for n in options.examples:
        row = measured(model, n, seed=options.seed, controls=options.controls)
        print(row, flush=True)  # with what stopped those that are missed
        groups, _ = row.pop("groups"), row.pop("missed")
        figures |= {f"groups_{groups}_{name}": value for name, value in row.items()}
        if options.save:
            save("", figures)


if __name__ == "__main__":
    main()
