"""Family-wise error of the nulls on metrics that have nothing to do with the activations.

Every rate is compared with the level by the binomial 99 % interval of as many datasets. With 100
draws the level is exactly 5/101: the observation must be among the five largest of 101.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.activations import capture, parse_metrics
from lens_skills.data import Example
from lens_skills.scoring import score
from lens_skills.scoring.correlations import Correlations
from lens_skills.scoring.design_matrix import DesignMatrix
from lens_skills.stats.moments import RunningMoments
from lens_skills.stats.multiple_testing import family_threshold
from tests.scoring.test_handmade import examples_with, from_the_pass, handmade

DRAWS, LEVEL = 100, 5 / 101
DATASETS = pytest.mark.parametrize("n", [700, pytest.param(4_000, marks=pytest.mark.slow)])
N, GROUP, UNITS = 80, 4, 40
OWN = examples_with(N)
GROUPED = examples_with(N, groups=np.arange(N) // GROUP)


def activations(random: np.random.Generator, grouped: bool) -> np.ndarray:
    """Skewed and correlated; some units nearly constant; where grouped, alike inside groups."""
    factors = random.normal(size=(N, 6))
    noise = random.normal(size=(N, UNITS))
    if grouped:
        codes = np.arange(N) // GROUP
        factors += 2 * random.normal(size=(N // GROUP, 6))[codes]
    units = factors @ random.normal(size=(6, UNITS)) + noise
    units[:, ::3] = np.maximum(units[:, ::3], 0)
    # Nearly constant, and one example moves it most. (Without the small part, many labels would
    # tie for the largest r of a draw, and the test would be right to be cautious.)
    units[:, 0] = 1 + 1e-5 * noise[:, 0] + 1e-3 * (np.arange(N) == random.integers(N))
    return units


def balanced(random: np.random.Generator) -> np.ndarray:
    return random.permutation(np.arange(N) % 2).astype(float)


def rare(random: np.random.Generator) -> np.ndarray:
    return random.permutation((np.arange(N) < N // 20).astype(float))  # 5 % positive


def skewed(random: np.random.Generator) -> np.ndarray:
    return np.exp(random.normal(size=N))


def whole(random: np.random.Generator) -> np.ndarray:
    """One number per group."""
    return np.repeat(random.permutation(np.arange(N // GROUP) % 2), GROUP).astype(float)


def mixed(random: np.random.Generator) -> np.ndarray:
    """A part per group and a part per example, as a model's confidence has."""
    return np.repeat(random.normal(size=N // GROUP), GROUP) + random.normal(size=N)


def significant(
    units: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    examples: list[Example],
    *,
    computed: tuple[str, ...] = (),
    exchange: str = "auto",
    seed: int,
) -> dict[str, bool]:
    """Whether any unit exceeds each metric's family-wise threshold, by the parts `score` uses."""
    wanted = [
        from_the_pass(name) if name in computed else parse_metrics({name: values})[0]
        for name, values in metrics.items()
    ]
    values = {name: torch.from_numpy(numbers) for name, numbers in metrics.items()}
    n = len(units)
    columns = DesignMatrix(
        wanted,
        {name: v for name, v in values.items() if name not in computed},
        examples,
        given=(),
        exchange=exchange,
        n_draws=DRAWS,
        n_controls=0,
        seed=seed,
        intervals=False,
    )
    layout = columns.layout
    running = RunningMoments(layout.n_columns, units.shape[1], n_base=layout.n_base)
    running.absorb(columns.of(torch.arange(n), values), torch.from_numpy(units))
    association = Correlations(running.freeze(), layout)
    found = {}
    for place, name in enumerate(metrics):
        null = association.null(name).abs().amax(1)
        r = association.correlations(slice(place, place + 1)).abs().max()
        found[name] = bool(r > family_threshold(null))
    return found


def assert_level(hits: int, n: int) -> None:
    low, high = stats.binom.interval(0.99, n, LEVEL)
    assert low <= hits <= high, f"{hits} of {n}: {hits / n:.3f}, not {LEVEL:.3f}"


@DATASETS
def test_the_level_holds_where_examples_are_independent(n: int) -> None:
    random = np.random.default_rng(0)
    hits = dict.fromkeys(("balanced", "rare", "skewed", "computed"), 0)
    for dataset in range(n):
        metrics = {
            "balanced": balanced(random),
            "rare": rare(random),
            "skewed": skewed(random),
            "computed": balanced(random) + 0.5 * random.normal(size=N),
        }
        units = activations(random, grouped=False)
        found = significant(units, metrics, OWN, computed=("computed",), seed=dataset)
        for name, hit in found.items():
            hits[name] += hit
    for count in hits.values():
        assert_level(count, n)


@DATASETS
def test_the_level_holds_in_groups_and_free_exchange_breaks_it(n: int) -> None:
    """Both directions: what respects the groups holds; free exchange calls everything something."""
    random = np.random.default_rng(1)
    hits = dict.fromkeys(("whole", "mixed", "computed", "free"), 0)
    for dataset in range(n):
        units = activations(random, grouped=True)
        metrics = {"whole": whole(random), "mixed": mixed(random), "computed": mixed(random)}
        found = significant(units, metrics, GROUPED, computed=("computed",), seed=dataset)
        if dataset % 10 == 0:
            freely = {"free": metrics["whole"]}
            found |= significant(units, freely, GROUPED, exchange="free", seed=dataset)
        for name, hit in found.items():
            hits[name] += hit
    free = hits.pop("free") / (n / 10)
    assert free > 0.3, f"free exchange across groups has an error of {free:.2f} only"
    assert_level(hits["whole"], n)
    for name in ("mixed", "computed"):
        # Flipped signs are exact for many groups only; with twenty they are a little cautious.
        high = stats.binom.interval(0.99, n, LEVEL)[1]
        assert 0.6 * LEVEL * n <= hits[name] <= high, f"{name}: {hits[name]} of {n}"


def of_size(codes: np.ndarray) -> list[Example]:
    return examples_with(len(codes), groups=codes)


@pytest.mark.parametrize("n_groups", [40, 15])
def test_the_level_holds_for_a_metric_that_goes_with_group_size(n_groups: int) -> None:
    """Log group size: 19 and 28 % of data sets before each group had a factor of its own."""
    random, n = np.random.default_rng(3), 300
    hits = 0
    for dataset in range(n):
        sizes = np.maximum(1, np.round(np.exp(random.normal(0.5, 1, n_groups)))).astype(int)
        codes = np.repeat(np.arange(n_groups), sizes)
        metric = np.log(sizes + 0.1)[codes]
        units = random.normal(size=(n_groups, UNITS))[codes] + random.normal(
            size=(len(codes), UNITS)
        )
        hits += significant(units, {"m": metric}, of_size(codes), computed=("m",), seed=dataset)[
            "m"
        ]
    assert hits <= stats.binom.ppf(0.999, n, LEVEL), f"{hits} of {n}"


def test_whole_input_types_trade_inside_their_group() -> None:
    """Neurons that know word forms and nothing of number: nearly all data sets before."""
    random, n = np.random.default_rng(4), 200
    noun = np.repeat(np.arange(16), 6)
    form = 2 * noun + np.tile([0, 0, 0, 1, 1, 1], 16)
    examples = examples_with(96, groups=noun, kinds=form, labels={"plural": form % 2})
    hits = {"auto": 0, "within": 0}
    for dataset in range(n):
        units = random.normal(size=(32, UNITS))[form] + random.normal(size=(96, UNITS))
        for exchange in hits:
            found = significant(
                units, {"m": (form % 2).astype(float)}, examples, exchange=exchange, seed=dataset
            )
            hits[exchange] += found["m"]
    assert hits["within"] > 0.5 * n, hits
    assert hits["auto"] <= stats.binom.ppf(0.999, n, LEVEL), hits


def test_large_groups_may_not_trade_with_small_ones() -> None:
    """A label of the larger groups: whole groups that trade find something far too often."""
    random, n = np.random.default_rng(2), 500
    codes = np.repeat(np.arange(56), [3] * 12 + [1] * 44)
    label = (codes < 12).astype(float)
    examples = examples_with(N, groups=codes)
    hits = {"auto": 0, "between": 0}
    for dataset in range(n):
        units = random.normal(size=(56, UNITS))[codes] + 0.5 * random.normal(size=(N, UNITS))
        for exchange in hits:
            found = significant(units, {"m": label}, examples, exchange=exchange, seed=dataset)
            hits[exchange] += found["m"]
    assert hits["between"] > 2 * LEVEL * n, hits
    assert hits["auto"] <= stats.binom.interval(0.99, n, 1.2 * LEVEL)[1], hits


@pytest.mark.slow
def test_the_level_holds_on_the_activations_of_the_default_model(
    smollm: Any, tmp_path: Path
) -> None:
    """200 metrics of each kind that mean nothing, on real, correlated neurons."""
    random = np.random.default_rng(2)
    nouns = ("key", "cabinet", "author", "doctor", "boy", "girl", "guard", "table", "house", "car")
    texts = [f"The {a} near the {b}s" for a in nouns for b in nouns if a != b]
    texts += [f"The {a}s to the {b}" for a in nouns for b in nouns if a != b]
    n, runs = len(texts), 200
    prompts = [Example(f"e{i}", text) for i, text in enumerate(texts)]
    read = capture(smollm, prompts, tmp_path / "read", layers=[2, 15, 27])
    acts = read.activations().float().numpy()
    # Near-constant neurons among them: most of what moves them is one example.
    share = 1e-4 * random.normal(size=(n, 1, 20))
    share[random.integers(n, size=20), 0, np.arange(20)] += 1e-2
    # Of the size of their layer, whose rounding they share.
    acts[:, :, :20] = np.sqrt((acts**2).mean(axis=(0, 2), keepdims=True)) * (1 + share)
    nouns_of = np.repeat(np.arange(20), 9)
    computed = {f"sure{run}": random.normal(size=n) for run in range(runs)}
    single, grouped = examples_with(n), examples_with(n, groups=nouns_of)
    table = handmade(tmp_path / "table", acts, single, computed=computed)
    rate: Counter[str] = Counter()
    for run in range(runs):
        known = {
            "balanced": random.permutation(np.arange(n) % 2),
            "rare": random.permutation(np.arange(n) < n // 20),  # 5 % positive
            "skewed": np.exp(random.normal(size=n)),
        }
        whole = {"whole": random.permutation(np.arange(20) % 2)[nouns_of]}
        for examples, metrics in (
            (single, [*parse_metrics(known), from_the_pass(f"sure{run}")]),
            (grouped, parse_metrics(whole)),
        ):
            found = score(
                table,
                examples,
                metrics=metrics,
                n_permutations=DRAWS,
                n_controls=0,
                n_rotations=0,
                seed=run,
            )
            assert not found.excluded.any()
            for name in found.metrics:
                hit = found[name].passing()["associated"].any()
                rate[name.rstrip("0123456789")] += int(hit)
    assert set(rate) == {"balanced", "rare", "skewed", "sure", "whole"}
    for hits in rate.values():
        assert_level(hits, runs)
