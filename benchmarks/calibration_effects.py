"""Simulated effects of known truth: intervals, verdicts, edges of circuits, causal hits.

Each function draws ``n`` data sets and returns how often something happened and among how many.
Effects per example are made up; the words are the package's own. The same lines run on an older
tree of the package, whose functions take less.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch

from lens_skills.activations.components import Component
from lens_skills.circuits.graph import Edge, Node
from lens_skills.interventions import ablate, control_effects, control_neurons
from lens_skills.interventions.control_neurons import ComponentTable
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.verdict import CAUSAL, COMPENSATED, NO_EFFECT, Ranks, rule
from lens_skills.ranking import causal_hits
from lens_skills.stats import effect_tests

Count = tuple[int, int]
"""How often, and of how many."""

SETS = 20
"""Data sets that share their groups, and so their bootstrap draws."""


def first(*names: str) -> Any:
    """The first of some modules of the package that there is."""
    for name in names[:-1]:
        if importlib.util.find_spec(f"lens_skills.{name}") is not None:
            return importlib.import_module(f"lens_skills.{name}")
    return importlib.import_module(f"lens_skills.{names[-1]}")


estimate = first("stats.effect_estimates", "stats.effect_tests").estimate


def batches(n: int, purpose: str, size: int = SETS) -> Iterator[tuple[int, int, Any]]:
    """Of every batch its seed, how many data sets it holds and its random numbers."""
    for seed, start in enumerate(range(0, n, size)):
        yield seed, min(size, n - start), np.random.default_rng([seed, *purpose.encode()])


def uneven(random: np.random.Generator, n_groups: int) -> np.ndarray:
    """Each example's group; about five examples a group, of log-normal sizes."""
    sizes = np.maximum(np.round(5 * np.exp(0.8 * random.normal(size=n_groups) - 0.32)), 1)
    return np.repeat(np.arange(n_groups), sizes.astype(int))


def named(groups: np.ndarray) -> list[str]:
    """Groups as names."""
    return [f"g{group}" for group in groups]


def effects_of(
    total: np.ndarray, groups: np.ndarray, names: Sequence[str], clean: np.ndarray
) -> Effects:
    """Effects per example, as `measure_effects` gives them."""
    return Effects(
        names=tuple(names),
        clean=torch.from_numpy(clean).double(),
        total=torch.from_numpy(total).double(),
        direct=None,
        example_ids=tuple(f"e{row}" for row in range(len(groups))),
        groups=tuple(named(groups)),
        metric="made up",
        unit="nats",
        do="mean ablation",
        site="mlp.hook_post",
        position="last",
    )


# Intervals ---------------------------------------------------------------------------------------


def drawn(kind: str, random: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of mean 0: normal, log-normal, or those of a tenth that react."""
    if kind == "normal":
        return random.normal(size=shape)
    if kind == "lognormal":
        return np.exp(1.5 * random.normal(size=shape)) - np.exp(1.125)
    return (random.random(size=shape) < 0.1) - 0.1


def intervals(
    n: int, kind: str, n_groups: int, own: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
    """Ends of the intervals of means that are 0, and the estimates; examples add ``own`` noise."""
    for seed, size, random in batches(n, f"{kind} {n_groups}"):
        groups = uneven(random, n_groups)
        values = drawn(kind, random, size, n_groups)[:, groups]
        if own:
            values = values + drawn(kind, random, size, len(groups))
        found = estimate(torch.from_numpy(values), named(groups), seed=seed)
        yield found.low, found.high, found


def covered(n: int, *, kind: str, n_groups: int) -> Count:
    """The interval of a mean effect holds it or, of skewed ones, is said not to be trusted."""
    hits = 0
    for low, high, found in intervals(n, kind, n_groups, own=True):
        held = (low <= 0) & (high >= 0)
        hits += int((held if kind == "normal" else held | doubtful(found)).sum())
    return hits, n


def doubted(n: int, *, n_groups: int) -> Count:
    """The interval of normal effects, which could be trusted, is said not to be."""
    parts = intervals(n, "normal", n_groups, own=True)
    return sum(int(doubtful(found).sum()) for *_, found in parts), n


def doubtful(found: Any) -> torch.Tensor:
    """Which estimates say that their interval is not to be trusted."""
    none = torch.zeros(len(found.mean), dtype=torch.bool)
    return getattr(found, "doubtful", none)


def infinite(n: int, *, n_groups: int) -> Count:
    """The interval of a mean effect has an infinite end; a tenth of the groups react."""
    hits = 0
    for low, high, _ in intervals(n, "sparse", n_groups, own=False):
        hits += int((~(low.isfinite() & high.isfinite())).sum())
    return hits, n


# Verdicts ----------------------------------------------------------------------------------------


def unranked(n: int) -> Ranks:
    """No controls."""
    return Ranks([None] * n, [0] * n, [None] * n, [None] * n, {})


def false_no_effect(n: int, *, n_groups: int, rate: float = 0.05, delta: float = 0.02) -> Count:
    """A neuron whose removal turns 5 % of right answers wrong is said to have no effect."""
    hits = 0
    for seed, size, random in batches(n, f"shares {n_groups}", 100):
        groups = np.arange(n_groups)
        total = -(random.random(size=(size, n_groups)) < rate).astype(float)
        names = [f"L0N{place}" for place in range(size)]
        effects = effects_of(total, groups, names, np.ones(n_groups))
        rulings = rule(effects, unranked(size), delta=delta, seed=seed)
        hits += sum(ruling.word in (NO_EFFECT, COMPENSATED) for ruling in rulings)
    return hits, n


def population(
    random: np.random.Generator, n_neurons: int, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features and effects of neurons that differ in size; the effects know of nothing else."""
    std, norm, level = (np.exp(0.5 * random.normal(size=n_neurons)) for _ in range(3))
    features = np.stack([std * level**0.3, std, norm], axis=1)
    size = 0.01 * std * norm
    mean = size * random.normal(size=n_neurons)
    whole = random.normal(size=(n_neurons, groups.max() + 1))[:, groups]
    noise = whole + random.normal(size=(n_neurons, len(groups)))
    return features, mean[:, None] + 0.5 * size[:, None] * noise


def by_size(random: np.random.Generator, n_neurons: int, groups: np.ndarray) -> tuple[Any, Any]:
    """Features and effects of neurons, the largest first."""
    features, total = population(random, n_neurons, groups)
    order = np.argsort(-features[:, 1] * features[:, 2])
    return features[order], total[order]


def large_called_causal(n: int, *, k: int = 20, width: int = 520, n_groups: int = 16) -> Count:
    """Neurons chosen by size alone are called causal, without the words *large neuron*."""
    hits, groups = 0, np.repeat(np.arange(n_groups), 3)
    for seed, _, random in batches(n, "large", 1):
        features, total = by_size(random, width, groups)
        rulings = verdicts(range(k), features, total, groups, random, seed)
        hits += sum(ruling.word in CAUSAL and not called_large(ruling) for ruling in rulings)
    return hits, n * k


def strong_called_causal(n: int, *, k: int = 20, width: int = 520, n_groups: int = 16) -> Count:
    """A neuron of middling size and great effect is called causal, without these words."""
    hits, groups = 0, np.repeat(np.arange(n_groups), 3)
    for seed, _, random in batches(n, "strong", 1):
        features, total = by_size(random, width, groups)
        middle = width // 2
        total[middle] += 0.1 * np.sign(total[middle].mean())
        rulings = verdicts((middle, *range(k - 1)), features, total, groups, random, seed)
        hits += rulings[0].word in CAUSAL and not called_large(rulings[0])
    return hits, n


def verdicts(
    tried: Sequence[int],
    features: np.ndarray,
    total: np.ndarray,
    groups: np.ndarray,
    random: np.random.Generator,
    seed: int,
) -> Sequence[Any]:
    """The rulings on some units of a layer, compared with all others."""
    names = [f"L0N{place}" for place in range(len(total))]
    units = [
        Component(name, 0, "mlp.hook_post", place, place + 1) for place, name in enumerate(names)
    ]
    home = torch.zeros(len(units), dtype=torch.long)
    table = ComponentTable.of(units, home, home, torch.from_numpy(features))
    rows = list(tried)
    others = [place for place in range(len(units)) if place not in set(rows)]
    effects = effects_of(
        total[rows],
        groups,
        [names[row] for row in rows],
        3.1 + random.normal(size=len(groups)),
    )
    parts = {
        "units": tuple(units[place] for place in others),
        "total": torch.from_numpy(total[others]),
        "candidates": tuple(units[row] for row in rows),
        "candidate_total": effects.total,
        "home": home[others],
        "candidate_home": home[rows],
        "drawn": torch.ones(len(rows), dtype=torch.bool),
        "scaled": table.scaled[others],
        "candidate_scaled": table.scaled[rows],
        "across": False,
        "groups": effects.groups,
        "sets": None,
        "set_total": torch.zeros(0, len(groups), dtype=torch.float64),
        "strict_effect": torch.zeros(0, dtype=torch.float64),
        "notes": (),
    }
    known = {field.name for field in fields(control_effects.ControlEffects)}
    compared = control_effects.ControlEffects(**{k: v for k, v in parts.items() if k in known})
    ranks = compared.ranks(effects, {})
    declare: Any = partial(
        control_effects.declare_delta, unmeasured, compared, ablate("zero"), None
    )
    if "scale" not in inspect.signature(declare).parameters:
        delta, _ = declare(seed=seed)
        return rule(effects, ranks, delta=delta, seed=seed)
    scale = float(effects.clean.mean().abs())
    deltas = declare(scale=scale)
    return rule(effects, ranks, delta=deltas.values, scale=scale, seed=seed)


def unmeasured(*args: Any, **options: Any) -> Effects:
    """No model is there to measure more on."""
    raise AssertionError


def called_large(ruling: Any) -> bool:
    """Whether *large neuron* stands beside the word."""
    return bool(getattr(ruling, "large", False)) or "large neuron" in f"{ruling.word} {ruling.why}"


# Circuits ----------------------------------------------------------------------------------------


def random_edges(n: int, *, k: int = 60, n_groups: int = 20) -> Count:
    """Random edges, each of which carries a little, are confirmed."""
    hits = 0
    for seed, _, random in batches(n, "edges", 1):
        groups = np.repeat(np.arange(n_groups), 2)
        effects = torch.from_numpy(little(random, 2 * k, groups))
        hits += sum(edge.confirmed for edge in decided(effects, groups, k, seed))
    return hits, n * k


def strong_edges(n: int, *, k: int = 60, n_strong: int = 10, n_groups: int = 20) -> Count:
    """Edges that carry 5 % of the total each, among others that carry a little, are confirmed."""
    hits = 0
    for seed, _, random in batches(n, "strong edges", 1):
        groups = np.repeat(np.arange(n_groups), 2)
        effects = torch.from_numpy(little(random, 2 * k, groups))
        effects[:n_strong] += 0.05
        hits += sum(edge.confirmed for edge in decided(effects, groups, k, seed)[:n_strong])
    return hits, n * n_strong


def little(random: np.random.Generator, n_edges: int, groups: np.ndarray) -> np.ndarray:
    """Effects of edges as shares of a total of 1: .1 % in the median, as random ones were found."""
    share = 0.001 * np.exp(1.2 * random.normal(size=n_edges)) * random.choice([-1, 1], size=n_edges)
    spread = np.abs(share)[:, None] * np.exp(0.8 * random.normal(size=(n_edges, 1)))
    whole = random.normal(size=(n_edges, int(groups.max()) + 1))[:, groups]
    noise = whole + random.normal(size=(n_edges, len(groups)))
    return share[:, None] + 2 * spread * noise


def decided(effects: torch.Tensor, groups: np.ndarray, k: int, seed: int) -> list[Edge]:
    """The first k edges, decided; the others are the random edges beside them."""
    sender, receiver = Node(0, "mlp", None, "-1"), Node(1, "mlp", None, "-1")
    edges = [Edge(sender, receiver, "in", "L1N0", 0.0) for _ in range(len(effects))]
    tests = first("circuits.edge_tests", "circuits.discovery")
    if not hasattr(tests, "decide"):
        return tests.confirm(
            tests.edge_statistics(edges[:k], effects[:k], named(groups), 1.0, seed=seed)
        )
    tested = tests.edge_statistics(
        edges, effects, named(groups), 1.0, tests.EPSILON * 1.0, seed=seed
    )
    return tests.decide(tested[:k], tested[k:], n_stages=1)


# Lists -------------------------------------------------------------------------------------------


def word_depends_on_list(n: int, *, width: int = 1500, n_groups: int = 16) -> Count:
    """A neuron's word differs between a list of inert and one of strong companions."""
    hits = 0
    for seed, _, random in batches(n, "lists", 1):
        groups = np.repeat(np.arange(n_groups), 3)
        mean = 0.01 * random.normal(size=width)
        mean[0], mean[1:10], mean[10:19] = random.uniform(0.02, 0.07), 0.0, 0.2
        total = mean[:, None] + 0.01 * random.normal(size=(width, len(groups)))
        inert, strong = ((0, *range(start, start + 9)) for start in (1, 10))
        hits += listed(total, groups, inert, seed) != listed(total, groups, strong, seed)
    return hits, n


def listed(total: np.ndarray, groups: np.ndarray, members: Sequence[int], seed: int) -> str:
    """The word of neuron 0 in a list, beside random neurons of its layer."""
    every = torch.tensor([[0, place] for place in range(len(total))])
    names = [f"L0N{place}" for place in range(len(total))]
    tried, clean = every[list(members)], np.ones(len(groups))
    rows = list(members)
    effects = effects_of(total[rows], groups, [names[row] for row in rows], clean)
    if hasattr(causal_hits, "draw_of_layer"):
        drawn = causal_hits.draw_of_layer(every, 0, 1000, seed=seed)[:, 1].tolist()
        others = torch.from_numpy(total[drawn])
        delta = effect_tests.smallest_effect(others, named(groups), 1.0)
        layer = causal_hits.LayerControls(tuple(names[row] for row in drawn), others, delta)
        found = causal_hits.AblationEffects(effects, {0: layer}, 0.01, True, seed, tried)
    else:
        draw = getattr(control_neurons, "draw_controls")  # noqa: B009 (of the tree before)
        drawn = draw(tried, every, 1000, seed=seed)[:, 1].tolist()
        controls = torch.from_numpy(np.abs(total[drawn].mean(axis=1)))
        delta = effect_tests.delta_from_controls(controls)
        found = causal_hits.AblationEffects(effects, controls, delta, True, seed)
    return found.of(tried).verdicts[0]


SIMULATIONS: dict[str, Callable[[int], Count]] = {
    **{
        f"no_effect_{n_groups}": partial(false_no_effect, n_groups=n_groups)
        for n_groups in (16, 30, 60)
    },
    "large": large_called_causal,
    "strong": strong_called_causal,
    "random_edges": random_edges,
    "strong_edges": strong_edges,
    "lists": word_depends_on_list,
    **{
        f"coverage_{kind}_{n_groups}": partial(covered, kind=kind, n_groups=n_groups)
        for kind in ("normal", "lognormal")
        for n_groups in (8, 16, 30)
    },
    **{f"doubted_{n_groups}": partial(doubted, n_groups=n_groups) for n_groups in (8, 16, 30)},
    **{f"infinite_{n_groups}": partial(infinite, n_groups=n_groups) for n_groups in (8, 16, 30)},
}
