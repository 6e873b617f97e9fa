"""Shares and their paired differences: against SciPy, by hand, and by simulation."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.ranking import differences_over_tasks
from lens_skills.ranking.causal_hits import LEVEL
from lens_skills.ranking.method_shares import (
    common_covariance,
    difference_interval,
    share_of_hits,
)
from lens_skills.ranking.task_differences import sign_test
from lens_skills.stats.multiple_testing import false_discovery_q, rank_p
from tests.plotting.test_ranking_plots import make_comparison
from tests.ranking.simulated_effects import made_up


def words(n: int, hits: int, first: int = 0) -> dict[str, bool]:
    return {f"L0N{first + place}": place < hits for place in range(n)}


def test_without_a_common_part_a_share_has_wilson_s_interval() -> None:
    for hits, n in ((0, 20), (3, 10), (10, 10)):
        wanted = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert share_of_hits(hits, n) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    low, high = share_of_hits(3, 10, 0.02)
    narrow = share_of_hits(3, 10)
    assert low < narrow[0] < narrow[1] < high
    assert share_of_hits(3, 10, -1.0) == narrow


def test_lists_that_share_nothing_differ_as_two_samples_do() -> None:
    """Agresti and Caffo's interval, by hand."""
    value, low, high = difference_interval(words(20, 9), words(20, 3, first=100))
    assert value == pytest.approx(0.3)
    p, q = 10 / 22, 4 / 22
    centre = (p - q) * 20 / 20
    half = stats.norm.ppf(0.975) * np.sqrt(p * (1 - p) / 22 + q * (1 - q) / 22)
    assert (low, high) == pytest.approx((centre - half, centre + half))


def test_what_both_name_cancels() -> None:
    mine = words(20, 9)
    assert difference_interval(mine, mine) == (0.0, 0.0, 0.0)
    other = dict(list(mine.items())[:19]) | {"L9N9": True}
    value, low, high = difference_interval(mine, other)
    assert value == pytest.approx(-0.05)
    assert low >= -0.12
    assert high <= 0.07
    apart = difference_interval(mine, words(20, 9, first=100))
    assert high - low < 0.3 * (apart[2] - apart[1])


def test_the_common_part_is_what_neurons_do_together() -> None:
    random = np.random.default_rng(0)
    shared = torch.from_numpy(random.random(4000) < 0.5)
    together = {f"L0N{place}": shared for place in range(10)}
    alone = {f"L0N{place}": torch.from_numpy(random.random(4000) < 0.5) for place in range(10)}
    names = [list(together)[:5], list(together)[5:]]
    found = common_covariance(names, together)
    # All flip together: the whole variance .25, less .25 / 5 of each neuron by itself.
    torch.testing.assert_close(
        found, torch.tensor([[0.2, 0.25], [0.25, 0.2]]).double(), atol=0.01, rtol=0
    )
    assert common_covariance(names, alone).abs().max() < 0.01


@pytest.mark.parametrize("together", [0.0, 0.5])
def test_equal_methods_seldom_differ_and_unequal_ones_do(together: float) -> None:
    """Lists of 20, 8 of them shared, 24 groups; what is shared by all neurons, ``together``."""

    def rate(first: float, second: float, n: int, seed: int) -> tuple[float, float]:
        random = np.random.default_rng(seed)
        rejected = covered = 0
        values = []
        ends = []
        for draw in range(n):
            good = [random.random(8) < (first + second) / 2]
            good += [random.random(12) < each for each in (first, second)]
            mean = np.where(np.concatenate(good), random.choice([-0.06, 0.06], 32), 0.0)
            group = random.normal(size=24)
            total = mean[:, None] * (1 + together * group) + 0.05 * random.normal(size=(32, 24))
            controls = 0.01 * random.normal(size=(200, 24))
            ablations = made_up(total, controls, [f"{g}" for g in range(24)], seed=draw)
            tests = ablations.of(torch.tensor([[0, place] for place in range(32)]), n_resamples=2)
            hits = ablations.resampled(tests, ablations.effects.total, 200)
            word = dict(zip(tests.names, tests.is_hit.tolist(), strict=True))
            lists = [tests.names[:20], tests.names[:8] + tests.names[20:]]
            common = common_covariance(lists, dict(zip(tests.names, hits, strict=True)))
            value, low, high = difference_interval(
                *({name: word[name] for name in names} for names in lists),
                common=float(common[0, 0] + common[1, 1] - 2 * common[0, 1]),
            )
            values.append(value)
            ends.append((low, high))
            rejected += low > 0 or high < 0
        centre = float(np.mean(values))
        covered = sum(low <= centre <= high for low, high in ends)
        return rejected / n, covered / n

    wrong, covered = rate(0.5, 0.5, 60, 1)
    assert wrong <= 0.1  # 5 % and three standard errors of 60 draws would be .13
    assert covered >= 0.9
    right, covered = rate(0.9, 0.2, 60, 2)
    assert right >= 0.7
    assert covered >= 0.9


def test_a_word_of_its_own_level_does_not_move_with_its_companions() -> None:
    """BH over a list made a neuron of rank p .015 a hit among strong companions only."""
    random = np.random.default_rng(0)
    controls = np.abs(random.standard_t(3, size=400))
    mine = float(np.quantile(controls, 0.987))
    strong, inert = np.full(9, controls.max() * 2), np.full(9, 0.01)

    def old(companions: np.ndarray) -> bool:
        sizes = torch.from_numpy(np.append(companions, mine))
        return float(false_discovery_q(rank_p(sizes, torch.from_numpy(controls)))[-1]) <= 0.05

    assert old(strong)
    assert not old(inert)
    groups = [str(place) for place in range(20)]
    said = set()
    for companions in (strong, inert):
        size = np.append(companions, mine * 1.02)
        total = size[:, None] + 1e-4 * random.normal(size=(10, 20))
        ablations = made_up(total, controls[:, None] * np.ones((1, 20)), groups)
        tests = ablations.of(torch.tensor([[0, place] for place in range(10)]))
        said.add(tests.verdicts[-1])
    assert said == {"opposes"}


def test_few_random_neurons_are_hits_and_every_strong_one_is() -> None:
    """Heavy-tailed effects, all of one law; five strong ones, whatever 200 others are drawn."""
    random = np.random.default_rng(0)
    groups = [str(i) for i in range(30)]
    hits = strong = n = 0
    for draw in range(40):
        size = random.standard_t(3, size=301)
        noise = random.normal(size=(301, 30)) * 0.3
        total = size[:, None] + noise
        total[:5] = 12 + noise[:5]  # beyond any ordinary neuron
        ablations = made_up(total[:101], total[101:], groups, clean=10.0, seed=draw)
        tests = ablations.of(torch.tensor([[0, place] for place in range(101)]), n_resamples=2)
        strong += int(tests.is_hit[:5].sum())
        hits += int(tests.is_hit[5:].sum())
        n += 96
    assert hits / n <= LEVEL
    assert strong == 5 * 40


def test_how_often_a_word_stays_when_groups_are_drawn_anew() -> None:
    random = np.random.default_rng(0)
    groups = [str(i) for i in range(30)]
    mean = np.array([0.5, 0.06, 0.0])
    total = mean[:, None] + 0.1 * random.normal(size=(3, 30))
    controls = 0.02 * random.normal(size=(200, 30))
    tests = made_up(total, controls, groups).of(torch.tensor([[0, 0], [0, 1], [0, 2]]))
    assert tests.kept[0] == 1.0
    assert 0.05 < float(tests.kept[1]) < 1.0
    assert tests.kept[2] < 0.1


def test_signs_over_tasks_are_scipy_s_binomial_test() -> None:
    assert sign_test([1, 2, 3, -1, 0]) == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert sign_test([0.1] * 6) == pytest.approx(2 / 64)
    one = make_comparison()
    found = differences_over_tasks({"a": one, "b": one}, first="taylor")
    assert isinstance(found, pd.DataFrame)
    row = found.set_index("other").loc["pearson"]
    assert (row.n_tasks, row.wins, row.losses, row.ties) == (2, 2, 0, 0)
    assert row.difference == pytest.approx(5 / 8 - 2 / 8)
    assert (row.low, row.high) == pytest.approx((row.difference, row.difference))
    assert len(differences_over_tasks({"a": one})) == 6 * 5 // 2
    assert differences_over_tasks({"a": one})["low"].isna().all()
    with pytest.raises(LensSkillsError, match="no comparison"):
        differences_over_tasks({})
    with pytest.raises(LensSkillsError, match="no method 'mine' here"):
        differences_over_tasks({"a": one}, first="mine")
