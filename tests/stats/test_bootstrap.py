"""Studentised cluster bootstrap: against a plain loop, SciPy, and the truth it should cover."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.stats.effect_tests import (
    ClusteredRatio,
    cluster_error,
    cluster_interval,
    cluster_p,
    effective_groups,
    ratio_interval,
    skewed,
)


def grouped(n_groups: int, *, seed: int = 0, n_sets: int = 1) -> tuple[torch.Tensor, list[str]]:
    """Normal numbers of which half the variance is shared by the group; groups of 1 to 7."""
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_groups), random.integers(1, 8, size=n_groups))
    values = random.normal(size=(n_sets, n_groups))[:, codes]
    values = values + random.normal(size=(n_sets, len(codes)))
    return torch.from_numpy(values), [f"g{code}" for code in codes]


def test_the_interval_is_that_of_a_plain_loop() -> None:
    values, groups = grouped(12)
    n_draws, seed = 300, 5
    low, high = cluster_interval(values[0], groups, n_draws=n_draws, seed=seed)
    members = [
        values[0, [place for place, name in enumerate(groups) if name == group]].numpy()
        for group in sorted(set(groups))
    ]

    def mean_and_error(parts: list[np.ndarray]) -> tuple[float, float]:
        """The error is the jackknife's: each group left out in turn."""
        mean, n = np.concatenate(parts).mean(), len(parts)
        without = [np.concatenate(parts[:at] + parts[at + 1 :]).mean() for at in range(n)]
        return float(mean), float(np.sqrt((n - 1) / n * ((without - mean) ** 2).sum()))

    mean, error = mean_and_error(members)
    drawn = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=n_draws)
    t = []
    for counts in drawn:
        parts = [part for part, count in zip(members, counts, strict=True) for _ in range(count)]
        one, its_error = mean_and_error(parts)
        t.append((one - mean) / its_error)
    t.sort()
    place = int((n_draws + 1) * 0.025) - 1
    sizes = np.array([len(part) for part in members])
    reach = stats.t.ppf(0.975, sizes.sum() ** 2 / (sizes**2).sum() - 1)
    assert low.item() == pytest.approx(mean - max(t[-1 - place], reach) * error)
    assert high.item() == pytest.approx(mean - min(t[place], -reach) * error)


def test_the_error_is_scipys_where_every_example_is_its_own_group() -> None:
    values = torch.from_numpy(np.random.default_rng(1).exponential(size=40))
    names = [str(place) for place in range(40)]
    assert cluster_error(values, names).item() == pytest.approx(stats.sem(values.numpy()))
    twice = values.repeat_interleave(2)  # every group says the same thing twice: no news
    error = cluster_error(twice, [name for name in names for _ in range(2)])
    assert error.item() == pytest.approx(stats.sem(values.numpy()))


def test_the_interval_of_many_normal_numbers_is_students() -> None:
    values = torch.from_numpy(np.random.default_rng(2).normal(1.0, 2.0, size=400))
    low, high = cluster_interval(values, [str(i) for i in range(400)], n_draws=20_000)
    expected = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    width = expected.high - expected.low
    assert low.item() == pytest.approx(expected.low, abs=0.05 * width)
    assert high.item() == pytest.approx(expected.high, abs=0.05 * width)


def test_the_interval_moves_and_stretches_with_the_numbers() -> None:
    values, groups = grouped(9)
    low, high = cluster_interval(values[0], groups)
    moved_low, moved_high = cluster_interval(5 + 3 * values[0], groups)
    assert moved_low.item() == pytest.approx(5 + 3 * low.item())
    assert moved_high.item() == pytest.approx(5 + 3 * high.item())
    turned_low, turned_high = cluster_interval(-values[0], groups)
    assert (turned_low.item(), turned_high.item()) == pytest.approx((-high.item(), -low.item()))


def test_many_sets_at_once_are_each_alone_and_order_does_not_matter() -> None:
    values, groups = grouped(15, n_sets=1_200)  # more than fit one chunk
    low, high = cluster_interval(values, groups)
    for place in (0, 499, 500, 1_199):
        alone = cluster_interval(values[place], groups)
        assert (low[place].item(), high[place].item()) == pytest.approx(
            (alone[0].item(), alone[1].item())
        )
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    shuffled = cluster_interval(values[0, order], [groups[at] for at in order.tolist()])
    assert shuffled[0].item() == pytest.approx(low[0].item())
    assert cluster_interval(values[0], groups, seed=1)[0].item() != low[0].item()


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0])
def test_numbers_that_do_not_vary_have_an_interval_of_no_width(constant: float) -> None:
    low, high = cluster_interval(torch.full((50,), constant), [str(i % 10) for i in range(50)])
    assert low.item() == high.item() == pytest.approx(constant)
    assert low.item() != 0 or constant == 0


def test_one_group_says_nothing() -> None:
    with pytest.raises(LensSkillsError, match="all examples are of one group"):
        cluster_interval(torch.tensor([1.0, 2.0, 3.0]), ["a", "a", "a"])


@pytest.mark.parametrize(("n_groups", "n_reacting"), [(40, 1), (16, 1), (16, 2), (8, 1), (3, 1)])
def test_an_effect_on_few_groups_has_finite_ends(n_groups: int, n_reacting: int) -> None:
    """So many draws miss what reacts, and do not vary, that the bootstrap's own end is infinite."""
    values = torch.zeros(n_groups)
    values[:n_reacting] = torch.linspace(1, 2, n_reacting)
    low, high = cluster_interval(values, [str(i) for i in range(n_groups)])
    assert low.isfinite().all()
    assert high.isfinite().all()
    assert low.item() < float(values.mean()) < high.item()
    assert high.item() < 7 * float(values.mean())


def test_the_wild_bootstrap_is_that_of_a_plain_loop() -> None:
    """Webb's weights on the residuals, each draw in its own jackknife error."""
    values = np.zeros(12)
    values[3] = 1.0
    names, n_draws, seed = [f"{i:02}" for i in range(12)], 199, 4
    random = np.random.default_rng(seed)
    random.multinomial(12, np.full(12, 1 / 12), size=n_draws)
    six = [-(1.5**0.5), -1, -(0.5**0.5), 0.5**0.5, 1, 1.5**0.5]
    weights = random.choice(six, size=(n_draws, 12))
    mean, error = values.mean(), stats.sem(values)
    t = []
    for row in weights:
        drawn = row * (values - mean) * 12 / 11
        t.append(drawn.mean() / stats.sem(drawn))
    t.sort()
    reach = stats.t.ppf(0.975, 11)
    low, high = cluster_interval(torch.from_numpy(values), names, n_draws=n_draws, seed=seed)
    assert low.item() == pytest.approx(mean - max(t[-5], reach) * error)
    assert high.item() == pytest.approx(mean - min(t[4], -reach) * error)


def test_a_ratio_of_proportional_numbers_is_certain() -> None:
    values, groups = grouped(20)
    positive = values.exp()
    low, high = ratio_interval(3 * positive, positive, groups)
    assert low.item() == pytest.approx(3)
    assert high.item() == pytest.approx(3)


def test_the_error_of_a_ratio_is_the_delta_methods() -> None:
    random = np.random.default_rng(3)
    below = random.normal(4.0, 1.0, size=5_000)
    above = 0.5 * below + random.normal(size=5_000)
    ratio = ClusteredRatio.of(
        torch.from_numpy(above)[None], torch.from_numpy(below)[None], [str(i) for i in range(5_000)]
    )
    covariance = np.cov(above, below) / 5_000
    slope = np.array([1, -above.mean() / below.mean()]) / below.mean()
    assert ratio.value.item() == pytest.approx(above.mean() / below.mean())
    assert ratio.error.item() == pytest.approx(float(np.sqrt(slope @ covariance @ slope)))


def coverage(n_groups: int, level: float, *, cluster: bool = True, n: int = 2_000) -> float:
    """Share of simulations whose interval holds the true mean, 0."""
    values, groups = grouped(n_groups, seed=n_groups, n_sets=n)
    names = groups if cluster else [str(i) for i in range(len(groups))]
    low, high = cluster_interval(values, names, level=level)
    return float(((low <= 0) & (high >= 0)).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("n_groups", [30, 100])
def test_the_interval_covers_the_truth(n_groups: int) -> None:
    assert 0.93 <= coverage(n_groups, 0.95) <= 0.97
    assert 0.88 <= coverage(n_groups, 0.9) <= 0.92


def test_forgetting_the_groups_covers_too_little() -> None:
    assert coverage(30, 0.95, n=500) > 0.9
    assert coverage(30, 0.95, cluster=False, n=500) < 0.85


def uneven(
    n_groups: int, n_sets: int, kind: str, random: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """Numbers of mean 0 in groups whose sizes are log-normal; half or all lies between groups."""
    sizes = np.maximum(1, np.round(np.exp(random.normal(np.log(6), 1.0, n_groups)))).astype(int)
    codes = np.repeat(np.arange(n_groups), sizes)
    own = random.normal(size=(n_sets, n_groups))
    if kind == "normal":
        values = own[:, codes] + random.normal(size=(n_sets, len(codes)))
    else:
        values = (np.exp(1.5 * own) - np.exp(1.125))[:, codes]
    return torch.from_numpy(values), [f"g{code}" for code in codes]


def rates(n_groups: int, kind: str, *, designs: int, each: int) -> dict[str, float]:
    """Over several designs of uneven groups: what covers 0, what is said of it, what p does."""
    random = np.random.default_rng(n_groups)
    covered, doubted, rejected = [], [], []
    for _ in range(designs):
        values, groups = uneven(n_groups, each, kind, random)
        low, high = cluster_interval(values, groups, n_draws=399)
        assert low.isfinite().all()
        assert high.isfinite().all()
        covered.append((low <= 0) & (high >= 0))
        doubted.append(skewed(values, groups))
        rejected.append(cluster_p(values, groups) <= 0.05)
    right, doubt, wrong = (torch.cat(part).double() for part in (covered, doubted, rejected))
    return {
        "covered": float(right.mean()),
        "doubted": float(doubt.mean()),
        "covered or doubted": float((right + doubt).clamp(max=1).mean()),
        "rejected": float(wrong.mean()),
    }


@pytest.mark.parametrize("n_groups", [8, 16, 30])
def test_uneven_groups_are_covered_or_the_interval_is_doubted(n_groups: int) -> None:
    """Bars are three standard errors of 600 simulated sets wide of .92, .98 and .05."""
    normal = rates(n_groups, "normal", designs=20, each=30)
    assert 0.92 <= normal["covered"] <= 0.99
    assert normal["rejected"] <= 0.08
    assert normal["doubted"] <= (0.36 if n_groups == 8 else 0.05)
    skew = rates(n_groups, "log-normal", designs=20, each=30)
    assert skew["covered or doubted"] >= 0.90
    assert skew["doubted"] >= (0.7 if n_groups == 8 else 0.9)


def test_large_groups_do_not_shrink_the_error() -> None:
    """One group of 40 among eleven of 2: the usual error forgets what its mean took away."""
    sizes = [40] + [2] * 11
    groups = [f"{g:02}" for g, size in enumerate(sizes) for _ in range(size)]
    codes = np.array([int(name) for name in groups])
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(size=(2_000, 12))[:, codes])
    spread = float(values.mean(1).std())
    ratio = ClusteredRatio.of(values, torch.ones_like(values), groups)
    usual = (12 / 11 * (ratio.residual**2).sum(1)).sqrt() / len(groups)
    assert float(usual.square().mean().sqrt()) < 0.6 * spread
    assert float(ratio.error.square().mean().sqrt()) > 0.9 * spread
    assert ratio.effective[0].item() == pytest.approx(effective_groups(groups))
    assert float((cluster_p(values, groups) <= 0.05).double().mean()) <= 0.07


def test_skewness_is_hoskings() -> None:
    """L-skewness from probability-weighted moments, against the sum over all triples."""
    random = np.random.default_rng(3)
    names = [str(place) for place in range(9)]
    said = []
    for values in np.exp(random.normal(scale=np.linspace(0.1, 2, 40)[:, None], size=(40, 9))):
        triples = [np.sort(values[[i, j, k]]) for i in range(9) for j in range(i) for k in range(j)]
        third = np.mean([three[2] - 2 * three[1] + three[0] for three in triples]) / 3
        second = np.mean([abs(values[i] - values[j]) for i in range(9) for j in range(i)]) / 2
        expected = abs(third / second) > 0.35 * (1 - 3 / 9)
        said.append(bool(skewed(torch.from_numpy(values)[None], names)))
        assert said[-1] == expected
    assert 0 < sum(said) < 40
    assert not skewed(torch.full((1, 9), 0.1), names).item()
