"""What is expected of a size: against plain least squares, its error and its power."""

import numpy as np
import pytest
import torch

from lens_skills.stats.multiple_testing import false_discovery_q, rank_p
from lens_skills.stats.size_adjustment import beyond_expected


def layer(random: np.random.Generator, n: int = 1_500) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of some units, and effects that grow with them, with heavy tails."""
    shared = [[1, 0.8, 0.2], [0.8, 1, 0.2], [0.2, 0.2, 1]]
    features = random.multivariate_normal([0, 0, 0], shared, size=n)
    expected = np.exp(features @ np.array([0.2, 0.5, 0.4]))
    return features, np.abs(expected * random.standard_t(5, size=n))


def test_it_is_least_squares_of_the_logarithm() -> None:
    random = np.random.default_rng(0)
    features, strength = layer(random, 300)
    some, rest = slice(0, 10), slice(10, 300)
    own, others = beyond_expected(
        *(torch.from_numpy(part) for part in (strength[some], features[some])),
        *(torch.from_numpy(part) for part in (strength[rest], features[rest])),
    )
    pairs = [features[:, i] * features[:, j] for i in range(3) for j in range(i, 3)]
    terms = np.column_stack([np.ones(300), features, *pairs])
    logs = np.log(np.maximum(strength, 0.01 * np.median(strength[rest])))
    fit = np.linalg.lstsq(terms[rest], logs[rest], rcond=None)[0]
    assert own.tolist() == pytest.approx(logs[some] - terms[some] @ fit)
    assert others.tolist() == pytest.approx(logs[rest] - terms[rest] @ fit)


def test_constant_features_and_few_others_change_nothing_of_the_ranks() -> None:
    strength = torch.tensor([3.0, 0.5])
    for n in (5, 50, 500):
        others = torch.linspace(0.1, 2.0, n).double()
        own, null = beyond_expected(strength, torch.zeros(2, 3), others, torch.zeros(n, 3))
        assert rank_p(own.exp(), null.exp()).tolist() == rank_p(strength.double(), others).tolist()
    own, null = beyond_expected(
        torch.zeros(1), torch.zeros(1, 3), torch.zeros(9), torch.zeros(9, 3)
    )
    assert own.isfinite().all()
    assert null.isfinite().all()


def rates(which: str, *, n: int = 60) -> tuple[float, float, float, float]:
    """Shares with q <= 0.05 among all and beyond size: of the plain, and of those planted."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(n):
        features, strength = layer(random)
        if which == "size":  # the 20 largest, with no regard to what they do
            chosen = np.argsort(-(features[:, 1] + features[:, 2]))[:20]
        else:
            chosen = random.choice(1_500, 20, replace=False)
            expected = np.exp(features[chosen[:5]] @ np.array([0.2, 0.5, 0.4]))
            strength[chosen[:5]] = 20 * expected
        others = np.setdiff1d(np.arange(1_500), chosen)[:1_000]
        parts = [
            torch.from_numpy(part[index])
            for index in (chosen, others)
            for part in (strength, features)
        ]
        own, null = beyond_expected(*parts)
        q_all = false_discovery_q(rank_p(parts[0], parts[2])).numpy()
        q_size = false_discovery_q(rank_p(own.exp(), null.exp())).numpy()
        both = (q_all <= 0.05) & (q_size <= 0.05)
        found.append(
            [
                (q_all <= 0.05)[5:].mean(),
                both[5:].mean(),
                (q_all <= 0.05)[:5].mean(),
                both[:5].mean(),
            ]
        )
    return tuple(np.mean(found, axis=0))


def test_neurons_chosen_by_size_alone_do_not_pass() -> None:
    among_all, beyond_size, *_ = rates("size")
    assert among_all > 0.3  # as they did
    assert beyond_size <= 0.05


def test_neurons_that_do_more_than_their_size_says_still_pass() -> None:
    *_, among_all, beyond_size = rates("random")
    assert beyond_size >= 0.9 * among_all
    assert among_all > 0.5
