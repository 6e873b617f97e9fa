"""Every ranking method on neurons whose role is known: which are found, and which of those act.

    python benchmarks/planted_methods.py

A code is made up: each word of a list is red or blue. It goes with a surface feature in part: of
the words that begin with a to l three quarters are red, of the others one quarter. In each of four
layers four neurons are planted. A *skill* neuron fires for red words and writes towards "red"; a
*decoy* fires likewise and writes nothing; a *writer* writes, but fires for the words of a coin; a
*shortcut* writes, but fires for words that begin with a to l. All methods rank all 46,080 neurons;
the strongest of each are ablated one by one on words that no method has seen.
"""

import time
from typing import Any

import numpy as np
from planted_code import coded, plant_roles, words
from timing import arguments, run_parts

import lens_skills as ls
from lens_skills.ranking import MethodComparison, compare_methods
from lens_skills.ranking.method_comparison import BASELINES
from lens_skills.tasks import Task

# By role: the index in each layer, what it fires for, and whether it writes.
ROLES = {
    "skill": (101, "red", True),
    "decoy": (202, "red", False),
    "writer": (303, "coin", True),
    "shortcut": (404, "early", True),
}
AGREES = 0.75  # of the words: the surface feature gives their colour


def task(model: Any, n_words: int) -> Task:
    """Every word in every frame; the label is its colour, the group the word."""
    random = np.random.default_rng(1)
    chosen = words(model, n_words)
    early = np.array([word.strip()[0] <= "l" for word in chosen])
    red = np.zeros(n_words, dtype=int)
    for part, share in ((early, AGREES), (~early, 1 - AGREES)):
        places = random.permutation(np.flatnonzero(part))
        red[places[: round(share * len(places))]] = 1
    coin = random.permutation(np.arange(n_words) % 2).tolist()
    columns = {"coin": coin, "early": early.astype(int).tolist()}
    return coded("made-up code with a shortcut", chosen, red.tolist(), columns)


def measured(comparison: MethodComparison, k: int) -> dict[str, float]:
    """The figures of each method, flat, and of the best one."""
    frame = comparison.frame().set_index("method")
    methods = frame.loc[list(comparison.methods)]
    ranked = [name for name in comparison.all_methods if name not in BASELINES]
    found: dict[str, float] = {"planted_methods_k": k}
    n_planted = len(comparison.truth["skill"])
    for name, row in ((name, methods.loc[comparison[name].method]) for name in ranked):
        found |= {f"planted_methods_{column}_{name}": row[column] for column in ("recall", "share")}
        found[f"planted_methods_skill_{name}"] = row["recall"] * n_planted
        for column in ("decoy", "writer", "shortcut", "hits", "opposes"):
            found[f"planted_methods_{column}_{name}"] = row[column]
    for name, short in (("random", "random"), ("rotated basis", "rotated")):
        for column in ("hits", "n", "share"):
            found[f"planted_methods_{column}_{short}"] = frame.loc[name, column]
    found["planted_methods_best_recall"] = methods["recall"].max()
    return {name: float(value) for name, value in found.items() if value == value}


def run(n_words: int, k: int, n_neurons: int) -> dict[str, float]:
    """The comparison on the planted model."""
    model = ls.load_model()
    whole = task(model, n_words)
    truth = plant_roles(model, whole, ROLES)
    explore, rest, _ = whole.split(0.25, 0.25, 0.5, seed=0)
    start = time.process_time()
    comparison = compare_methods(
        model,
        explore,
        metric="label:red",
        intervene=rest.where(frame=0),
        k=k,
        controls=ls.controls(neurons=n_neurons),
    ).against(truth)
    print(comparison)
    print(f"\n{time.process_time() - start:.0f} s of processor time")
    return measured(comparison, k)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--words", type=int, default=240)
    parser.add_argument("--k", type=int, default=8, help="neurons each method may name")
    parser.add_argument("--controls", type=int, default=200)
    asked = parser.parse_args()
    ls.config(progress=False)
    run_parts({"": lambda: run(asked.words, asked.k, asked.controls)}, asked)
