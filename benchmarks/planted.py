"""Ground truth in the real model: planted skill neurons, decoys and writers, found and tested.

    python benchmarks/planted.py            # all three parts
    python benchmarks/planted.py planted    # one: intervals, random or planted

A code is made up: every word of a list is given one of two colours by a coin, which no model can
know. *Skill* neurons are planted that fire for the words of one colour and write towards its name;
*decoys* fire likewise and write nothing; *writers* write, but fire for the words of another coin.
The search (three nulls, confirmation on other words) must find skill neurons and decoys, the
verdict must confirm the former and reject the latter. Then random neurons are tested, and the
intervals are checked against simulated effects whose mean is known.
"""

import time
from typing import Any

import numpy as np
import torch
from planted_code import LAYERS, coded, plant_roles, words
from timing import arguments, run_parts, table

import lens_skills as ls
from lens_skills.interventions import ablate, verify
from lens_skills.interventions.verdict import CAUSAL, NO_EFFECT, OPPOSES, SUPPORTS, UNDECIDED
from lens_skills.stats.effect_tests import cluster_interval
from lens_skills.tasks import Task

# By role: the index in each layer, what it fires for, and whether it writes.
ROLES = {"skill": (101, "red", True), "decoy": (202, "red", False), "writer": (303, "coin", True)}
TESTED_LAYERS = (11, 23)  # of the random neurons


def task(model: Any, n_words: int) -> Task:
    """Every word in every frame; the label is its coin, the group the word."""
    random = np.random.default_rng(1)
    red = random.permutation(np.arange(n_words) % 2).tolist()
    coin = random.permutation(np.arange(n_words) % 2).tolist()
    return coded("made-up code", words(model, n_words), red, {"coin": coin})


def planted(model: Any, n_words: int, n_neurons: int) -> dict[str, float]:
    """The search and the verdict on what was planted, and on random neurons."""
    whole = task(model, n_words)
    skills, decoys, writers = plant_roles(model, whole, ROLES).values()
    explore, confirm, intervene = whole.split(0.4, 0.4, 0.2, seed=0)
    scores = ls.score(model, explore, metrics="label:red")["label:red"]
    confirmed = ls.score(model, confirm, metrics="label:red", neurons=scores.top(200))["label:red"]
    selection = ls.select(scores, confirmed)
    print(f"\n{selection}")
    once = intervene.where(frame=0)
    mean = ablate("mean", over=explore.where(frame=[0, 1]))
    chosen = [name for name in selection.names if name in {*skills, *decoys}]
    # The planted ones only, and the writers beside them: what else was found is not ground truth.
    start = time.perf_counter()
    controls = ls.controls(sets=100, neurons=n_neurons)
    verdict = verify(model, once, [*chosen, *writers], do=mean, controls=controls, also=())
    seconds = time.perf_counter() - start
    print(f"\n{verdict}\n\nfound by the search beside them: {set(selection.names) - set(chosen)}")
    convicted = [name for name in skills if name in chosen and verdict[name].word == SUPPORTS]
    rejected = [n for n in decoys if n in chosen and verdict[n].word not in CAUSAL]
    table(
        f"planted in layers {LAYERS}, {len(once)} examples, {seconds:.0f} s",
        {
            "skill neurons found and confirmed": f"{len(convicted)} of {len(skills)}",
            "decoys found": f"{len(set(decoys) & set(chosen))} of {len(decoys)}",
            "decoys rejected": f"{len(rejected)} of {len(decoys)}",
            "writers found": f"{len(set(writers) & set(selection.names))} of {len(writers)}",
            "writers": ", ".join(f"{verdict[name].word}" for name in writers),
        },
    )
    return {
        "planted_recall": len(convicted) / len(skills),
        "decoys_found": len(set(decoys) & set(chosen)) / len(decoys),
        "decoys_rejected": len(rejected) / len(decoys),
        "writers_left_out": 1 - len(set(writers) & set(selection.names)) / len(writers),
    }


def one_of_each_group(examples: Task) -> Task:
    """As many groups as there are, so that the intervals hold."""
    kept = {example.group: example.id for example in examples}
    return examples.where(lambda example: kept[example.group] == example.id)


def random_neurons(model: Any, n: int, n_neurons: int, n_examples: int) -> dict[str, float]:
    """Verdicts on random neurons, on agreement: a causal one is false, or a find."""
    explore, intervene = ls.tasks.agreement().split(0.5, 0.5, seed=0)
    random = np.random.default_rng(0)
    per_layer = n // len(TESTED_LAYERS)
    names = [
        f"L{layer}N{index}"
        for layer in TESTED_LAYERS
        for index in random.choice(model.cfg.d_mlp, size=per_layer, replace=False).tolist()
    ]
    start = time.perf_counter()
    verdict = verify(
        model,
        one_of_each_group(intervene)[:n_examples],
        names,
        do=ablate("mean", over=explore[:100]),
        controls=ls.controls(sets=0, neurons=n_neurons),
        also=(),
        pairs=False,
    )
    causal = verdict.causal
    rows = {word: f"{count} of {len(names)}" for word, count in verdict.counts.items()}
    table(f"random neurons, {time.perf_counter() - start:.0f} s, {verdict.delta_from}", rows)
    print(f"  {[(name, verdict[name].effect, verdict[name].q) for name in causal]}")
    print("\n".join(f"  {note}" for note in verdict.notes))
    signed = verdict.named(SUPPORTS, OPPOSES)
    return {
        "false_causal_share": len(causal) / len(names),
        "false_causal": len(causal),
        "random_tested": len(names),
        "random_no_effect": verdict.counts.get(NO_EFFECT, 0),
        "random_undecided": verdict.counts.get(UNDECIDED, 0),
        "false_signed": len(signed),
    }


def coverage(kind: str, n_groups: int, n: int = 2_000) -> float:
    """Share of simulated effects whose 95 % interval holds their true mean, 0."""
    random = np.random.default_rng(n_groups)
    draw = {
        "normal": lambda *shape: random.normal(size=shape),
        "exponential": lambda *shape: random.exponential(size=shape) - 1,
        "lognormal": lambda *shape: np.exp(1.5 * random.normal(size=shape)) - np.exp(1.125),
    }[kind]
    held = []
    for part in range(4):
        codes = np.repeat(np.arange(n_groups), random.integers(1, 8, size=n_groups))
        values = draw(n // 4, n_groups)[:, codes] + draw(n // 4, len(codes))
        low, high = cluster_interval(
            torch.from_numpy(values), [str(code) for code in codes], seed=part
        )
        held.append(((low <= 0) & (high >= 0)).double())
    return float(torch.cat(held).mean())


def intervals() -> dict[str, float]:
    """Coverage of the 95 % interval: normal effects, and skewed ones beside them."""
    rows, figures = {}, {}
    for kind in ("normal", "exponential", "lognormal"):
        for n_groups in (10, 30, 60, 200):
            share = coverage(kind, n_groups)
            rows[f"{kind}, {n_groups} groups"] = f"{share:.3f}"
            figures[f"interval_coverage_{kind}_{n_groups}_groups"] = share
    table("share of 2,000 simulations covered by the 95 % interval", rows)
    skewed = [figures[f"interval_coverage_lognormal_{n}_groups"] for n in (30, 60, 200)]
    return figures | {
        "interval_coverage": figures["interval_coverage_normal_30_groups"],
        "interval_coverage_lognormal_lowest": min(skewed),
        "interval_coverage_lognormal_highest": max(skewed),
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("part", nargs="?", choices=["intervals", "random", "planted"])
    parser.add_argument("--words", type=int, default=240)
    parser.add_argument("--controls", type=int, default=1000, help="other neurons per layer")
    parser.add_argument("--random", type=int, default=200, help="random neurons to test")
    parser.add_argument("--examples", type=int, default=60, help="for the random neurons")
    asked = parser.parse_args()
    run_parts(
        {
            "intervals": intervals,
            "random": lambda: random_neurons(
                ls.load_model(), asked.random, asked.controls, asked.examples
            ),
            "planted": lambda: planted(ls.load_model(), asked.words, asked.controls),
        },
        asked,
        only=asked.part,
    )
