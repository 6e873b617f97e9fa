"""The p among random directions: exact where the theory is, and powerless where it should be."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.stats.multiple_testing import false_discovery_q
from lens_skills.stats.random_directions import among_directions

WIDTH, LAYERS, ROWS = 256, 4, 200


def directions_of(x: np.ndarray, m: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """r of random unit directions of standardised activations with the metric."""
    drawn = x @ random.normal(size=(x.shape[1], n))
    drawn -= drawn.mean(0)
    return (drawn.T @ (m - m.mean())) / np.sqrt((drawn**2).sum(0) * ((m - m.mean()) ** 2).sum())


def test_the_tail_is_the_beta_of_uncorrelated_units() -> None:
    """r² of a random direction of n - 1 whitened dimensions is Beta(1/2, (k - 1)/2)."""
    random, k = np.random.default_rng(0), 40
    null = random.normal(size=(1, 2_000, k))
    null = null[..., 0] / np.sqrt((null**2).sum(-1))
    strength = np.array([[0.3, 0.5, 0.6, 0.7]])
    _, p = among_directions(torch.from_numpy(strength), torch.from_numpy(null))
    exact = stats.beta.sf(strength**2, 0.5, (k - 1) / 2)
    np.testing.assert_allclose(np.log10(p.numpy()), np.log10(exact), rtol=0.15)


def test_counted_ps_are_ranks_and_the_excess_a_ratio() -> None:
    null = torch.linspace(0, 0.5, 500)[None]
    excess, p = among_directions(torch.tensor([[0.25, 0.45]]), null)
    expected = [(1 + int((null >= s).sum())) / 501 for s in (0.25, 0.45)]
    assert p[0].tolist() == pytest.approx(expected)
    rms = null.double().square().mean().sqrt().item()
    assert excess[0].tolist() == pytest.approx([0.25 / rms, 0.45 / rms], rel=1e-6)


def test_a_layer_of_constants_has_no_directions() -> None:
    excess, p = among_directions(torch.zeros(1, 3), torch.zeros(1, 50))
    assert excess.tolist() == [[0, 0, 0]]
    assert p.tolist() == [[1, 1, 1]]


def found_in(random: np.random.Generator, planted: float, loud: float) -> torch.Tensor:
    """q of every neuron of four layers of correlated activations, one neuron planted in layer 0."""
    metric = random.normal(size=ROWS)
    p = []
    for layer in range(LAYERS):
        basis = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]
        x = random.normal(size=(ROWS, WIDTH)) * np.linspace(0.2, 2, WIDTH) @ basis
        x[:, 7] *= loud
        if planted and layer == 0:
            x[:, 3] = planted * metric + np.sqrt(1 - planted**2) * random.normal(size=ROWS)
        x = (x - x.mean(0)) / x.std(0)
        m = (metric - metric.mean()) / metric.std()
        r, null = x.T @ m / ROWS, directions_of(x, metric, 1024, random)
        p.append(among_directions(torch.from_numpy(r)[None], torch.from_numpy(null)[None])[1][0])
    return false_discovery_q(torch.cat(p))


@pytest.mark.parametrize("loud", [1.0, 100.0])
def test_nothing_is_special_where_the_basis_is_one_of_many(loud: float) -> None:
    """The gate before (the largest neuron above the largest direction) said so in half of them."""
    random, n = np.random.default_rng(1), 60
    hits = sum(bool((found_in(random, 0.0, loud) <= 0.05).any()) for _ in range(n))
    assert hits <= stats.binom.ppf(0.999, n, 0.05)


def test_a_planted_neuron_stands_out() -> None:
    random, n = np.random.default_rng(2), 20
    hits = sum(found_in(random, 0.75, 1.0)[3].item() <= 0.05 for _ in range(n))
    assert hits >= 0.95 * n
