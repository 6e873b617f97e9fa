"""Simulated data sets of known truth, scored: how often `score` says what is not so.

Each function draws ``n`` data sets and returns how often something happened and among how many.
Activations are made up and read as an `ActivationTable`; everything else is the package's own.
The same lines score with an older tree of the package, whose results hold other fields.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch

import lens_skills as ls
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.data import Example

Count = tuple[int, int]
"""How often, and of how many."""
Simulation = Callable[[int], Count]

UNITS, DRAWS = 60, 99
"""Neurons of a data set where nothing else is said, and draws of its nulls."""
LEVEL = 0.05


def made_up(
    numbers: np.ndarray,
    examples: Sequence[Example],
    computed: Mapping[str, np.ndarray] | None = None,
) -> ActivationTable:
    """A table of one activation per example, layer and neuron, and metrics the pass computes."""
    if numbers.ndim == 2:
        numbers = numbers[:, None]
    about = {
        "model": "made up",
        "model_fingerprint": "made up",
        "site": "mlp.hook_post",
        "layers": list(range(numbers.shape[1])),
        "positions": ["last"],
    }
    return ActivationTable.of(torch.from_numpy(numbers).float(), examples, about, computed)


def examples_of(
    groups: Sequence[Any] | np.ndarray,
    kinds: Sequence[Any] | np.ndarray | None = None,
    columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
) -> list[Example]:
    """One example per entry, with its group, its input type and its covariates."""
    kinds = groups if kinds is None else kinds
    columns = columns or {}
    return [
        Example(
            id=f"e{row}",
            prompt="x",
            group=f"g{group}",
            kind=f"k{kind}",
            covariates={name: _plain(values[row]) for name, values in columns.items()},
        )
        for row, (group, kind) in enumerate(zip(groups, kinds, strict=True))
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def scored(
    numbers: np.ndarray,
    examples: Sequence[Example],
    metric: Any,
    *,
    computed: Mapping[str, np.ndarray] | None = None,
    draws: int = DRAWS,
    control: bool = False,
    **options: Any,
) -> Any:
    """The scores of a data set; without ``control`` its control task is not drawn."""
    known = inspect.signature(ls.score).parameters
    options = {"n_permutations": draws, "n_controls": 99 * control, "n_rotations": 0} | options
    options = {name: value for name, value in options.items() if name in known}
    with ls.config(batch_size=1000, progress=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes of the scores say the same
        return ls.score(made_up(numbers, examples, computed), examples, metrics=metric, **options)


def seeds(n: int, purpose: str) -> Iterator[tuple[int, np.random.Generator]]:
    """Every data set's seed and its random numbers."""
    for seed in range(n):
        yield seed, np.random.default_rng([seed, *purpose.encode()])


def associated(scores: Any) -> bool:
    """Whether any neuron has a family-wise p of at most 5 % with any of the metrics."""
    return bool((scores.p_family <= LEVEL).any())


def beats_control(view: Any) -> torch.Tensor:
    """Which neurons beat the control task, at the one position."""
    if hasattr(view, "beats_control"):
        return view.beats_control[0]
    return view.passing()["beat the control task"][0]


def privileged(view: Any) -> torch.Tensor:
    """Which neurons the score calls more than a direction of their layer."""
    if hasattr(view, "basis_privileged"):
        return view.basis_privileged[0]
    return view.r[0].abs() > view.thresholds.rotated


# The basis ---------------------------------------------------------------------------------------


def special_when_none_is(n: int, *, layers: int = 4, width: int = 64, rows: int = 200) -> Count:
    """Some neuron is called special, though the neurons are a random basis of each layer."""
    hits = 0
    for seed, random in seeds(n, "special"):
        label = random.permutation(np.arange(rows) % 2).astype(float)
        # Directions of unequal size, the larger half of them tied to the label, turned at random.
        latent = random.normal(size=(layers, rows, width)) * np.arange(1, width + 1) ** -0.5
        latent[:, :, : width // 2] += 0.1 * (label - 0.5)[None, :, None]
        turn, _ = np.linalg.qr(random.normal(size=(layers, width, width)))
        numbers = np.moveaxis(latent @ turn, 0, 1)
        examples = examples_of(range(rows))
        scores = scored(numbers, examples, {"y": label}, draws=0, n_rotations=None, seed=seed)
        hits += bool(privileged(scores["y"]).any())
    return hits, n


def quiet_layer(n: int, *, r: float = 0.75, width: int = 128, rows: int = 200) -> Count:
    """A neuron of r = .75 is called special in a quiet layer; another layer carries the label."""
    hits = 0
    for seed, random in seeds(n, "quiet"):
        label = random.normal(size=rows)
        numbers = random.normal(size=(rows, 2, width))
        numbers[:, 1] = 5 * (0.4 * label[:, None] + (1 - 0.4**2) ** 0.5 * numbers[:, 1])
        numbers[:, 0, 7] = r * label + (1 - r**2) ** 0.5 * numbers[:, 0, 7]
        examples = examples_of(range(rows))
        scores = scored(numbers, examples, {"y": label}, draws=0, n_rotations=None, seed=seed)
        hits += bool(privileged(scores["y"])[7])
    return hits, n


# Exchange ----------------------------------------------------------------------------------------


def word_forms(random: np.random.Generator, nouns: int = 16) -> tuple[np.ndarray, list[Example]]:
    """Three prompts for each of a noun's two forms; neurons know forms and nothing of number."""
    forms = np.repeat(np.arange(2 * nouns), 3)
    numbers = random.normal(size=(2 * nouns, UNITS))[forms] + random.normal(size=(6 * nouns, UNITS))
    return numbers, examples_of(forms // 2, forms, {"plural": forms % 2})


def forms_associated(n: int) -> Count:
    """Some neuron is associated with the number of nouns, of which it knows nothing."""
    hits = 0
    for seed, random in seeds(n, "forms"):
        numbers, examples = word_forms(random)
        hits += associated(scored(numbers, examples, "covariate:plural", seed=seed))
    return hits, n


def forms_confirmed(n: int) -> Count:
    """Neurons with p <= 5 % on the confirm split, where they know nothing of number."""
    hits = 0
    for seed, random in seeds(n, "forms confirm"):
        numbers, examples = word_forms(random)
        scores = scored(numbers, examples, "covariate:plural", draws=999, seed=seed)
        hits += int((scores.p <= LEVEL).sum())
    return hits, n * UNITS


def uneven_groups(random: np.random.Generator, n_groups: int, rows: int) -> np.ndarray:
    """Each example's group; sizes are log-normal, at least one example each."""
    sizes = np.exp(0.8 * random.normal(size=n_groups))
    sizes = np.maximum(np.round(sizes * rows / sizes.sum()), 1).astype(int)
    return np.repeat(np.arange(n_groups), sizes)


def group_size(n: int, *, n_groups: int, larger: bool) -> Count:
    """Some neuron is associated with a metric tied to its group's size, of which none knows."""
    hits = 0
    for seed, random in seeds(n, f"size {n_groups} {larger}"):
        groups = uneven_groups(random, n_groups, 5 * n_groups)
        sizes = np.bincount(groups)
        metric = (sizes > np.median(sizes)).astype(float) if larger else np.log(sizes)
        numbers = random.normal(size=(n_groups, UNITS))[groups]
        numbers = numbers + random.normal(size=(len(groups), UNITS))
        examples = examples_of(groups)
        hits += associated(scored(numbers, examples, {"y": metric[groups]}, seed=seed))
    return hits, n


def categories(n: int, *, n_categories: int = 12, rows: int = 240) -> Count:
    """Some category is associated with some neuron, where nothing is."""
    hits = 0
    for seed, random in seeds(n, "categories"):
        names = random.permutation(np.arange(rows) % n_categories)
        examples = examples_of(range(rows), None, {"rule": [f"c{name:02}" for name in names]})
        numbers = random.normal(size=(rows, UNITS))
        hits += associated(scored(numbers, examples, "covariate:rule", seed=seed))
    return hits, n


# Covariates --------------------------------------------------------------------------------------


def confounded(n: int, *, computed: bool, rows: int = 160) -> Count:
    """A covariate that acts as its square is partialled out, and its effect found nonetheless."""
    hits = 0
    for seed, random in seeds(n, f"confounded {computed}"):
        x = random.normal(size=rows)
        metric = x**2 + random.normal(size=rows)
        numbers = (x**2)[:, None] + random.normal(size=(rows, UNITS))
        examples = examples_of(range(rows), None, {"x": x})
        wanted, values = ("confidence", {"confidence": metric}) if computed else ({"y": metric}, {})
        scores = scored(numbers, examples, wanted, computed=values, given=["x"], seed=seed)
        hits += associated(scores) and not warned(scores)
    return hits, n


def warned(scores: Any) -> bool:
    """Whether a note says that the covariates still tell too much of the metric."""
    return any("too much" in note for note in getattr(scores, "notes", ()))


# Intervals of r ----------------------------------------------------------------------------------

TRUE_R = (0.0, 0.3, 0.7)


@cache
def covered(n: int, computed: bool, n_groups: int = 40) -> tuple[int, ...]:
    """How often the interval holds each true r: uneven groups, activations alike in them."""
    hits = [0] * len(TRUE_R)
    for seed, random in seeds(n, f"interval {computed}"):
        groups = uneven_groups(random, n_groups, 5 * n_groups)

        def spread(share: float, groups: np.ndarray = groups, random: Any = random) -> np.ndarray:
            whole, own = random.normal(size=n_groups)[groups], random.normal(size=len(groups))
            return share**0.5 * whole + (1 - share) ** 0.5 * own

        metric = spread(0.8 if computed else 1.0)
        columns = [r * metric + (1 - r**2) ** 0.5 * spread(0.5) for r in TRUE_R]
        examples = examples_of(groups)
        wanted, values = ("confidence", {"confidence": metric}) if computed else ({"y": metric}, {})
        numbers = np.stack(columns, axis=1)
        scores = scored(numbers, examples, wanted, computed=values, draws=99, seed=seed)
        for place, r in enumerate(TRUE_R):
            hits[place] += bool(scores.low[0, 0, place] <= r <= scores.high[0, 0, place])
    return tuple(hits)


def r_covered(n: int, *, place: int, computed: bool) -> Count:
    """The interval of r holds the true one."""
    return covered(n, computed)[place], n


# The control task --------------------------------------------------------------------------------


def typed(random: np.random.Generator, between: float, n_kinds: int, rows: int) -> tuple[Any, ...]:
    """Kinds of examples, and a metric with a share of its variance between them."""
    kinds = np.arange(rows) % n_kinds
    whole, own = random.normal(size=n_kinds)[kinds], random.normal(size=rows)
    return kinds, between**0.5 * whole + (1 - between) ** 0.5 * own


def knows_types(random: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
    """Neurons that know the kind of an example and nothing else."""
    whole = random.normal(size=(int(kinds.max()) + 1, UNITS))[kinds]
    return whole + 0.5 * random.normal(size=(len(kinds), UNITS))


def real_beats_control(n: int, *, between: float, n_kinds: int = 24, rows: int = 240) -> Count:
    """A neuron that follows the metric itself, r = .5, beats the control task."""
    hits = 0
    for seed, random in seeds(n, f"control power {between}"):
        kinds, metric = typed(random, between, n_kinds, rows)
        numbers = knows_types(random, kinds)
        numbers[:, 7] = 0.5 * metric + 0.75**0.5 * random.normal(size=rows)
        examples = examples_of(range(rows), kinds)
        scores = scored(numbers, examples, {"y": metric}, control=True, seed=seed)
        hits += bool(beats_control(scores["y"])[7])
    return hits, n


def type_beats_control(n: int, *, between: float, n_kinds: int = 24, rows: int = 240) -> Count:
    """Some neuron beats the control task, though all know the input type and nothing else."""
    hits = 0
    for seed, random in seeds(n, f"control size {between}"):
        kinds, metric = typed(random, between, n_kinds, rows)
        numbers = knows_types(random, kinds)
        examples = examples_of(range(rows), kinds)
        scores = scored(numbers, examples, {"y": metric}, control=True, seed=seed)
        hits += bool(beats_control(scores["y"]).any())
    return hits, n


SIMULATIONS: dict[str, Simulation] = {
    "special": special_when_none_is,
    "quiet": quiet_layer,
    "forms_associated": forms_associated,
    "forms_confirmed": forms_confirmed,
    **{
        f"r_{metric}_{str(TRUE_R[place])[2:]}": partial(r_covered, place=place, computed=computed)
        for metric, computed in (("uneven", False), ("confidence", True))
        for place in range(len(TRUE_R))
    },
    **{
        f"size_{name}_{n_groups}": partial(group_size, n_groups=n_groups, larger=larger)
        for name, larger in (("log", False), ("larger", True))
        for n_groups in (40, 15)
    },
    "confounder_known": partial(confounded, computed=False),
    "confounder_computed": partial(confounded, computed=True),
    "control_power_10": partial(real_beats_control, between=0.1),
    "control_power_30": partial(real_beats_control, between=0.3),
    "control_size_30": partial(type_beats_control, between=0.3),
    "control_size_100": partial(type_beats_control, between=1.0),
    "categories": categories,
}
