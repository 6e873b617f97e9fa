"""Entropy and information against scikit-learn and SciPy, and their laws."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from sklearn.feature_selection import mutual_info_regression
from sklearn.metrics import mutual_info_score

from lens_skills.errors import LensSkillsError
from lens_skills.stats.information import (
    binned_information,
    entropy,
    equal_width_codes,
    indicators,
    information_of_columns,
    kraskov_information,
)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(2)
    codes = torch.from_numpy(random.integers(0, 5, size=700))
    noise = torch.from_numpy(random.standard_normal((6, 700)))
    return noise + codes * torch.linspace(0, 2, 6)[:, None], codes


@pytest.mark.parametrize("n_bins", [2, 8, 30])
def test_binned_information_is_that_of_scikit_learn_on_numpys_bins(rows, n_bins: int) -> None:
    x, codes = rows
    found = binned_information(x, codes, n_bins=n_bins)
    for row, bits in zip(x.numpy(), found.tolist(), strict=True):
        edges = np.histogram_bin_edges(row, n_bins)
        wanted = mutual_info_score(np.digitize(row, edges[1:-1]), codes) / np.log(2)
        assert bits == pytest.approx(wanted, abs=1e-12)


def test_features_side_by_side_are_each_their_own(rows) -> None:
    x, codes = rows
    other = (codes > 2).long()
    columns = torch.cat([torch.nn.functional.one_hot(c) for c in (codes, other)], 1)
    inside = indicators(equal_width_codes(x), 8)
    together = information_of_columns(inside, columns.float(), [5, 2])
    for place, y in enumerate((codes, other)):
        torch.testing.assert_close(together[:, place], binned_information(x, y))


def test_entropy_is_scipys(rows) -> None:
    x = equal_width_codes(rows[0])
    for row, bits in zip(x, entropy(x).tolist(), strict=True):
        assert bits == pytest.approx(scipy_entropy(torch.bincount(row), base=2), abs=1e-12)


def test_a_variable_tells_all_of_itself_and_a_constant_nothing(rows) -> None:
    codes = rows[1]
    itself = binned_information(codes.double()[None], codes, n_bins=5)
    torch.testing.assert_close(itself[0], entropy(codes))
    constant = binned_information(torch.ones(1, 700), codes)
    assert constant.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.5, 3.0])
def test_kraskov_is_that_of_scikit_learn(slope: float) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal(400)
    y = slope * x + random.standard_normal(400)
    wanted = mutual_info_regression(x[:, None], y, n_neighbors=3, random_state=0)[0]
    found = kraskov_information(torch.from_numpy(x), torch.from_numpy(y), k=3)
    assert found == pytest.approx(wanted, abs=1e-2)


def test_kraskov_of_correlated_normals_is_the_formula() -> None:
    random = np.random.default_rng(5)
    x, noise = torch.from_numpy(random.standard_normal((2, 4000)))
    y = 0.8 * x + 0.6 * noise
    wanted = -0.5 * np.log(1 - 0.8**2)
    assert kraskov_information(x, y) == pytest.approx(wanted, abs=0.04)
    assert kraskov_information(x, y) == pytest.approx(kraskov_information(y, x), abs=1e-3)


def test_ties_and_constants_do_not_break_kraskov() -> None:
    coin = torch.tensor([0.0, 1.0]).repeat(50)
    assert kraskov_information(torch.ones(100), coin) < 0.2
    assert np.isfinite(kraskov_information(coin, coin))


def test_refusals() -> None:
    with pytest.raises(LensSkillsError, match="3 rows are too few for 3 neighbours"):
        kraskov_information(torch.rand(3), torch.rand(3))
    with pytest.raises(LensSkillsError, match="at least 2 bins"):
        equal_width_codes(torch.rand(3), n_bins=1)
