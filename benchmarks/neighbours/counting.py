"""Does a count of tokens above a threshold tell how many clues a text holds, better than others?

    python benchmarks/neighbours/counting.py --save
    python benchmarks/neighbours/counting.py --quick

Texts hold 0 to 5 negations, or names, among neutral sentences of as many words (SmolLM2);
problems hold 0 to 2 carries, and lists of solved problems 0 to 4 (arithmetic-small). On the
discovery half each neuron's threshold is chosen (`ls.fit_count`), for every read-out the neuron
with the largest |r|, and its line; on the other half, whose groups share no noun, name or problem
with it, R² of that line is compared. Finished tasks are kept in ``runs/counting``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kept_rows import kept_rows
from pictures import keep

import lens_skills as ls
from lens_skills.activations import stream
from lens_skills.activations.locations import Count
from lens_skills.stats.effect_tests import ratio_interval
from lens_skills.tasks.word_lists import NAMES, PEOPLE, SUBJECTS

RUNS = Path("runs/counting")
RESULT = Path("benchmarks/results/neighbours_counting.json")
PAGE = Path("figures/neighbours/counting.md")
READ_OUTS = ("count", "mean", "max")
ADJECTIVES = ("red", "old", "new", "big", "cold", "dark", "clean", "heavy", "small", "warm")
VERBS = ("left", "slept", "came", "stayed", "called", "waited", "sang", "ran")
N_GROUPS, EACH = 16, 6
CLUES = "covariate:clues"


def negations(random: np.random.Generator) -> list[ls.Example]:
    """Five sentences, zero to five of which say "not" where the others say "very"."""
    nouns = [one for one, _ in random.permutation([*SUBJECTS, *PEOPLE]).tolist()]
    found = []
    for group in range(N_GROUPS):
        mine = nouns[group * 5 : group * 5 + 5]
        for many in range(EACH):
            says = random.permutation(["not"] * many + ["very"] * (5 - many))
            text = " ".join(
                f"The {noun} is {word} {random.choice(ADJECTIVES)}."
                for noun, word in zip(random.permutation(mine), says, strict=True)
            )
            found.append(example(f"n{group}-{many}", text, many, group))
    return found


def names(random: np.random.Generator) -> list[ls.Example]:
    """Five sentences, zero to five of which are of somebody by name, the others of people."""
    given = random.permutation(NAMES).tolist()
    people = [many for _, many in random.permutation(PEOPLE).tolist()]
    found = []
    for group in range(N_GROUPS):
        mine = given[group * 2 : group * 2 + 2]
        for many in range(EACH):
            who = [str(random.choice(mine)) for _ in range(many)]
            who += random.permutation(people)[: 5 - many].tolist()
            text = " ".join(
                f"Then {one} {random.choice(VERBS)}." for one in random.permutation(who)
            )
            found.append(example(f"p{group}-{many}", text, many, group))
    return found


def carries(random: np.random.Generator) -> list[ls.Example]:
    """Sums of two numbers of two digits; a carry of the ones, of the tens, or of both."""
    found = []
    for group, (a, b) in enumerate(random.integers(10, 100, (240, 2)).tolist()):
        many = (a % 10 + b % 10 > 9) + (a + b > 99)
        pair = "-".join(map(str, sorted((a, b))))
        found.append(example(f"c{group}", f"\nQ: What is {a} plus {b}?\nA: ", many, pair))
    return found


def lists(random: np.random.Generator) -> list[ls.Example]:
    """Four solved sums of two digits and one, zero to four of which carry from the ones."""
    pools: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for a in range(10, 90):
        for b in range(1, 10):
            pools[a % 10 + b > 9].append((a, b))
    drawn = {carry: random.permutation(pool).tolist() for carry, pool in pools.items()}
    found = []
    for group in range(24):
        mine = {carry: pool[group * 12 : group * 12 + 12] for carry, pool in drawn.items()}
        for many in range(5):
            some = [*_some(mine[True], many, random), *_some(mine[False], 4 - many, random)]
            text = "".join(
                f"\nQ: What is {a} plus {b}?\nA: {a + b}" for a, b in random.permutation(some)
            )
            found.append(example(f"l{group}-{many}", text, many, group))
    return found


def _some(pool: list[Any], n: int, random: np.random.Generator) -> list[Any]:
    return [pool[place] for place in random.permutation(len(pool))[:n]]


def example(name: str, text: str, many: int, group: Any) -> ls.Example:
    return ls.Example(name, text, covariates={"clues": int(many)}, group=str(group))


@dataclass(frozen=True)
class Trial:
    """A kind of clue, its texts and the model that reads them."""

    words: str
    model: str
    texts: Callable[[np.random.Generator], list[ls.Example]]


TRIALS = {
    "negations": Trial("negations in five sentences", "SmolLM2-135M", negations),
    "names": Trial("names in five sentences", "SmolLM2-135M", names),
    "carries": Trial("carries of one sum", "arithmetic-small", carries),
    "lists": Trial("sums with a carry, of four solved ones", "arithmetic-small", lists),
}


def read(model: Any, task: ls.Task, where: Count) -> dict[str, Tensor]:
    """Every read-out of every neuron, (example, neuron), from one pass at all tokens."""
    found: dict[str, list[Tensor]] = {name: [] for name in READ_OUTS}
    order = []
    assert where.thresholds is not None
    theta = torch.stack([where.thresholds[layer] for layer in sorted(where.thresholds)])
    for batch in stream(model, task, position="all"):
        for row, index in enumerate(batch.index.tolist()):
            own = batch.activations[row, batch.mask[row]]  # type: ignore[index]
            order.append(index)
            found["count"].append((own > theta).sum(0).flatten().float())
            found["mean"].append(own.mean(0).flatten())
            found["max"].append(own.amax(0).flatten())
    back = torch.tensor(order).argsort()
    return {name: torch.stack(rows)[back] for name, rows in found.items()}


def fit(values: Tensor, y: Tensor) -> tuple[int, float, float]:
    """The neuron of the largest |r|, and the line from its values to the number of clues."""
    x, centred = values.double(), y - y.mean()
    offset = x - x.mean(0)
    spread = offset.square().sum(0)
    r = (centred @ offset) / (spread * centred.square().sum()).clamp(min=1e-30).sqrt()
    r = torch.where(spread > 1e-9 * len(y), r, 0.0)
    best = int(r.abs().argmax())
    slope = float((centred @ offset[:, best]) / spread[best])
    return best, slope, float(y.mean() - slope * x[:, best].mean())


def measure(trial: Trial, seed: int) -> list[dict[str, Any]]:
    """R² of every read-out on the unseen half, and what a count has over the two others."""
    start = time.process_time()
    model = ls.load_model() if trial.model.startswith("SmolLM2") else ls.load_model(trial.model)
    texts = ls.Task(trial.words, trial.texts(np.random.default_rng(seed)))
    discovery, unseen = texts.split(0.5, 0.5, seed=seed)
    where = ls.fit_count(model, discovery, CLUES)
    known, new = read(model, discovery, where), read(model, unseen, where)
    y, held = (
        torch.tensor([float(e.covariates["clues"]) for e in part]).double()
        for part in (discovery, unseen)
    )
    groups = [e.group for e in unseen]
    whole = (held - y.mean()).square()
    n_neurons = known["count"].shape[1]
    width = n_neurons // len(where.thresholds or {})
    rows, wrong = [], {}
    for name in READ_OUTS:
        best, slope, offset = fit(known[name], y)
        wrong[name] = (held - offset - slope * new[name][:, best].double()).square()
        low, high = ratio_interval(wrong[name][None], whole[None], groups)
        rows.append(
            {"read_out": name, "neuron": f"L{best // width}N{best % width}",
             "r2": 1 - float(wrong[name].sum() / whole.sum()),
             "low": 1 - float(high[0]), "high": min(1.0, 1 - float(low[0]))}
        )  # fmt: skip
    for name in READ_OUTS[1:]:
        less = wrong[name] - wrong["count"]
        low, high = ratio_interval(less[None], whole[None], groups)
        rows.append(
            {"read_out": f"count - {name}", "neuron": "", "r2": float(less.sum() / whole.sum()),
             "low": float(low[0]), "high": float(high[0])}
        )  # fmt: skip
    about = {
        "words": trial.words, "model": trial.model, "n_discovery": len(discovery),
        "n_unseen": len(unseen), "n_groups": len(set(groups)), "n_neurons": n_neurons,
        "seed": seed, "minutes": (time.process_time() - start) / 60,
    }  # fmt: skip
    return [row | about for row in rows]


def kept(name: str, seed: int) -> list[dict[str, Any]]:
    """A trial's rows, measured once."""
    return kept_rows(RUNS / f"{name}-{seed}.json", lambda: measure(TRIALS[name], seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--save", action="store_true", help="write the result, the page, the figure"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.quick:
        trial = TRIALS["lists"]
        print(pd.DataFrame(measure(trial, asked.seed)).to_string())
        return
    found = {}
    for name in sorted(TRIALS, key=lambda name: TRIALS[name].model, reverse=True):
        found[name] = kept(name, asked.seed)
        print(pd.DataFrame(found[name]).iloc[:, :5].to_string(index=False), flush=True)
    if asked.save:
        from counting_page import write

        write(found, RESULT, PAGE, keep)


if __name__ == "__main__":
    main()
