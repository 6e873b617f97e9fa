"""Moments equal those of NumPy however rows are batched; a random rotation is orthogonal."""

from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lens_skills.stats import rotations
from lens_skills.stats.moments import Moments, RunningMoments
from lens_skills.stats.rotations import Rotation, haar_matrix

N_COLUMNS, N_BASE, N_UNITS = 5, 2, 12
# How 97 rows may arrive: at once, one by one, unevenly.
BATCHINGS = {
    "whole": [97],
    "one by one": [1] * 97,
    "halves": [48, 49],
    "uneven": [1, 2, 3, 5, 8, 13, 21, 34, 10],
}
OFFSETS = {"centred": (0.0, 1.0), "mean/std = 1e4": (1e4, 1.0), "mean/std = -1e4": (-1.0, 1e-4)}


def rows(offset: float, spread: float, n: int = 97, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Columns and correlated units with the given mean and standard deviation, float64."""
    random = np.random.default_rng(seed)
    factor = random.normal(size=(n, 3))
    columns = factor @ random.normal(size=(3, N_COLUMNS)) + random.normal(size=(n, N_COLUMNS))
    units = factor @ random.normal(size=(3, N_UNITS)) + random.normal(size=(n, N_UNITS))
    return (
        torch.from_numpy(offset + spread * columns),
        torch.from_numpy(offset + spread * units),
    )


def oracle(columns: Any, units: Any, weights: Any = None) -> dict[str, np.ndarray]:
    """Centred sums by NumPy in extended precision, two passes."""
    c, x = np.asarray(columns, dtype=np.longdouble), np.asarray(units, dtype=np.longdouble)
    w = np.ones(len(c), dtype=np.longdouble) if weights is None else np.asarray(weights)
    w = w.astype(np.longdouble)[:, None]
    c_mean, x_mean = (w * c).sum(0) / w.sum(), (w * x).sum(0) / w.sum()
    c, x = c - c_mean, x - x_mean
    sums = {
        "column_mean": c_mean,
        "unit_mean": x_mean,
        "gram": (w * c).T @ c,
        "column_square": (w * c**2).sum(0),
        "cross": (w * c).T @ x,
        "square": (w * x**2).sum(0),
    }
    return {name: value.astype(np.float64) for name, value in sums.items()}


def assert_close(moments: Moments, expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Every sum, relative to the size its terms have (a cross product may cancel to zero)."""
    column, unit = np.sqrt(expected["column_square"]), np.sqrt(expected["square"])
    n_base = moments.gram.shape[1]
    scales = {
        "column_mean": np.abs(expected["column_mean"]) + column,
        "unit_mean": np.abs(expected["unit_mean"]) + unit,
        "gram": np.outer(column, column[:n_base]),
        "column_square": expected["column_square"],
        "cross": np.outer(column, unit),
        "square": expected["square"],
    }
    for name, scale in scales.items():
        want = expected[name][:, :n_base] if name == "gram" else expected[name]
        error = np.abs(getattr(moments, name).numpy() - want) / scale
        assert error.max() <= tolerance, f"{name}: relative error {error.max():.1e}"


def stream(columns: Tensor, units: Tensor, sizes: list[int], **options: Any) -> RunningMoments:
    running = RunningMoments(columns.shape[1], units.shape[1], **options)
    for c, x in zip(columns.split(sizes), units.split(sizes), strict=True):
        running.absorb(c, x)
    return running


@pytest.mark.parametrize("offset", OFFSETS)
def test_of_equals_numpy(offset: str) -> None:
    columns, units = rows(*OFFSETS[offset])
    moments = Moments.of(columns, units)
    assert moments.weight == 97
    assert_close(moments, oracle(columns, units), 1e-10)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_streamed_equals_numpy(batching: str, offset: str) -> None:
    columns, units = rows(*OFFSETS[offset])
    running = stream(columns, units, BATCHINGS[batching], n_base=N_BASE)
    moments = running.freeze()
    assert moments.weight == 97
    assert moments.gram.shape == (N_COLUMNS, N_BASE)
    assert_close(moments, oracle(columns, units), 1e-10)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_sum_of_moments_equals_numpy(batching: str, offset: str) -> None:
    columns, units = rows(*OFFSETS[offset])
    sizes = BATCHINGS[batching]
    parts = [
        Moments.of(c, x) for c, x in zip(columns.split(sizes), units.split(sizes), strict=True)
    ]
    assert_close(reduce(add, parts), oracle(columns, units), 1e-10)


def test_addition_is_associative_and_commutative() -> None:
    columns, units = rows(1e3, 1.0)
    a, b, c = (
        Moments.of(x, y)
        for x, y in zip(columns.split([20, 30, 47]), units.split([20, 30, 47]), strict=True)
    )
    expected = oracle(columns, units)
    for total in ((a + b) + c, a + (b + c), c + b + a, b + (c + a)):
        assert_close(total, expected, 1e-11)


def test_the_order_of_the_rows_does_not_matter() -> None:
    columns, units = rows(0.0, 1.0)
    order = torch.randperm(97, generator=torch.Generator().manual_seed(1))
    shuffled = stream(columns[order], units[order], BATCHINGS["uneven"]).freeze()
    assert_close(shuffled, oracle(columns, units), 1e-12)


def test_float32_units_are_summed_in_float64() -> None:
    """Of float32 activations with a large mean, nothing is lost beyond their own rounding."""
    columns, units = rows(1e4, 1.0)
    narrow = units.float()
    moments = stream(columns.float(), narrow, BATCHINGS["uneven"]).freeze()
    assert_close(moments, oracle(columns.float(), narrow), 1e-10)
    assert moments.cross.dtype == torch.float64


def test_covariance_and_correlation_by_numpys_own_functions() -> None:
    columns, units = rows(3.0, 2.0)
    moments = stream(columns, units, BATCHINGS["halves"]).freeze()
    both = np.concatenate([columns.numpy(), units.numpy()], axis=1)
    covariance = np.cov(both, rowvar=False)
    cross = covariance[:N_COLUMNS, N_COLUMNS:]
    np.testing.assert_allclose(moments.cross / 96, cross, rtol=1e-10, atol=1e-12)
    r = moments.cross / torch.outer(moments.column_square, moments.square).sqrt()
    expected = np.corrcoef(both, rowvar=False)[:N_COLUMNS, N_COLUMNS:]
    np.testing.assert_allclose(r, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_weighted_rows_with_residuals_equal_the_tokens_themselves(offset: float) -> None:
    """An example read at T tokens is T rows that share its columns."""
    random = np.random.default_rng(2)
    lengths = random.integers(1, 9, size=30)
    columns = offset + random.normal(size=(30, N_COLUMNS))
    tokens = [offset + random.normal(size=(length, N_UNITS)) for length in lengths]
    rotation = Rotation.of(4, seed=3)
    running = RunningMoments(N_COLUMNS, N_UNITS, rotations=[rotation])
    for start in range(0, 30, 7):
        part = tokens[start : start + 7]
        means = np.stack([example.mean(0) for example in part])
        left = np.concatenate([e - m for e, m in zip(part, means, strict=True)])
        running.absorb(
            torch.from_numpy(columns[start : start + 7]),
            torch.from_numpy(means),
            weights=torch.from_numpy(lengths[start : start + 7].astype(float)),
            residuals=torch.from_numpy(left),
        )
    moments = running.freeze()
    everything = np.concatenate(tokens)
    assert moments.weight == lengths.sum() == len(everything)
    assert_close(moments, oracle(np.repeat(columns, lengths, axis=0), everything), 1e-10)
    centred = everything - everything.mean(0)
    scaled = centred / moments.scale.numpy()
    turned = scaled.reshape(-1, 3, 4) @ rotation.matrices[0].double().numpy()
    expected = (turned.reshape(-1, N_UNITS) ** 2).sum(0)
    np.testing.assert_allclose(moments.rotated_square[0], expected, rtol=1e-5)


def test_weights_equal_repeated_rows() -> None:
    columns, units = rows(0.0, 1.0, n=20)
    times = torch.arange(20) % 4 + 1
    running = RunningMoments(N_COLUMNS, N_UNITS)
    for part in torch.arange(20).split(6):
        running.absorb(columns[part], units[part], weights=times[part].double())
    repeated = Moments.of(columns.repeat_interleave(times, 0), units.repeat_interleave(times, 0))
    expected = oracle(columns.repeat_interleave(times, 0), units.repeat_interleave(times, 0))
    assert_close(running.freeze(), expected, 1e-12)
    assert_close(repeated, expected, 1e-12)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_rotated_sums_equal_sums_of_rotated_units(batching: str) -> None:
    columns, units = rows(2.0, 1.0)
    rotations = [Rotation.of(4, seed=seed) for seed in (0, 1)]
    running = stream(columns, units, BATCHINGS[batching], rotations=rotations)
    moments = running.freeze()
    blocks = (units / moments.scale).numpy().reshape(-1, 3, 4)
    for sums, rotation in zip(moments.rotated_square, rotations, strict=True):
        turned = (blocks @ rotation.matrices[0].double().numpy()).reshape(-1, N_UNITS)
        expected = ((turned - turned.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(sums, expected, rtol=1e-5)  # rotated in float32


@pytest.mark.parametrize("batching", BATCHINGS)
def test_the_scale_is_about_the_standard_deviation(batching: str) -> None:
    """Of the first rows: near enough for no unit to be loud, and exact where all rows are first."""
    columns, units = rows(2.0, 1.0)
    units = units * torch.logspace(-3, 3, N_UNITS)
    units[:, 5] = 1.0  # constant: not blown up
    running = stream(columns, units, BATCHINGS[batching], rotations=[Rotation.of(4, seed=0)])
    scale, spread = running.freeze().scale, units.std(0, correction=0)
    assert scale[5] == pytest.approx(0.01 * torch.cat([spread[4:5], spread[5:8]]).median())
    others = torch.arange(N_UNITS) != 5
    floor = 0.01 * spread.reshape(3, 4).median(1).values.repeat_interleave(4)
    expected = torch.maximum(spread, floor)
    torch.testing.assert_close(scale[others], expected[others], rtol=1e-9, atol=0)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_squares_beside_marks_equal_numpy(batching: str, offset: str) -> None:
    columns, units = rows(*OFFSETS[offset])
    running = stream(columns, units, BATCHINGS[batching], squared=slice(1, 4))
    moments = running.freeze()
    x = (units - moments.origin).numpy().astype(np.longdouble)
    expected = columns[:, 1:4].numpy().astype(np.longdouble).T @ x**2
    np.testing.assert_allclose(moments.squares, expected.astype(float), rtol=1e-8)


def test_identical_rows_leave_exactly_zero() -> None:
    """So that a constant unit can be told from one that varies a little."""
    columns, units = rows(0.0, 1.0, n=1)
    values = units.float().expand(97, -1)
    moments = stream(columns.float().expand(97, -1), values, BATCHINGS["uneven"]).freeze()
    assert not moments.square.any()
    assert not moments.cross.any()


@pytest.mark.parametrize("width", [1, 2, 17, 64])
def test_a_rotation_is_orthogonal(width: int) -> None:
    q = haar_matrix(width, seed=0).double()
    torch.testing.assert_close(q @ q.T, torch.eye(width).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.T @ q, torch.eye(width).double(), rtol=0, atol=1e-5)


def test_the_seed_alone_decides() -> None:
    torch.manual_seed(1)
    first = haar_matrix(8, seed=5)
    torch.manual_seed(2)
    torch.testing.assert_close(first, haar_matrix(8, seed=5), rtol=0, atol=0)
    assert not torch.allclose(first, haar_matrix(8, seed=6))


def test_rotations_leave_the_global_seed_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    haar_matrix(8, seed=0)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_rotations_are_uniform() -> None:
    """The corner entry of a Haar matrix has (x² of) a Beta(1/2, (d-1)/2) distribution, no bias.

    Without the signs of R's diagonal the entry's sign is fixed by the QR algorithm.
    """
    entries = np.array([haar_matrix(4, seed=seed)[0, 0].item() for seed in range(600)])
    assert stats.kstest(entries**2, stats.beta(0.5, 1.5).cdf).pvalue > 0.01
    assert stats.binomtest(int((entries > 0).sum()), len(entries)).pvalue > 0.01


def test_every_block_is_turned_by_the_same_matrix() -> None:
    random = np.random.default_rng(0)
    units = random.normal(size=(7, 3 * 5))
    rotation, q = Rotation.of(5, seed=0), haar_matrix(5, seed=0)
    turned = rotation.turn(torch.from_numpy(units)).numpy()
    for block in range(3):
        here = slice(5 * block, 5 * block + 5)
        np.testing.assert_allclose(turned[:, here], units[:, here] @ q.double().numpy(), atol=1e-12)


def test_rotating_and_back_is_the_identity() -> None:
    units = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = Rotation.of(8, seed=1)
    back = replace(turned, matrices=tuple(q.T for q in turned.matrices))
    torch.testing.assert_close(back.turn(turned.turn(units)), units, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [7, 12, 13, 16, 23])
def test_a_wide_layer_is_turned_part_by_part(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orthonormal, by hand, every unit in one part, parts as large as they may be."""
    monkeypatch.setattr(rotations, "WIDEST", 6)
    rotation = Rotation.of(width, seed=2)
    sizes = [len(matrix) for _, matrix in rotation.parts()]
    assert sum(sizes) == width
    assert len(sizes) == -(-width // 6)
    assert max(sizes) - min(sizes) <= 1
    assert sorted(rotation.order.tolist()) == list(range(width))
    assert rotation.order.tolist() != list(range(width))
    whole = torch.stack([rotation.direction(k) for k in range(width)], dim=1).double()
    torch.testing.assert_close(whole @ whole.T, torch.eye(width).double(), rtol=0, atol=1e-5)
    units = torch.randn(5, 2 * width, dtype=torch.float64)
    expected = torch.cat([units[:, :width] @ whole, units[:, width:] @ whole], dim=1)
    torch.testing.assert_close(rotation.turn(units), expected, rtol=0, atol=1e-6)


def test_directions_of_parts_correlate_as_those_of_the_whole_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read off a rotated basis: the quantiles of |r|, with a factor that units share."""
    random = torch.Generator().manual_seed(0)
    metric = torch.randn(300, generator=random)
    shared = 0.3 * metric[:, None] + torch.randn(300, 1, generator=random)
    units = torch.randn(300, 1024, generator=random) + 0.1 * shared
    quantiles = []
    for widest in (1024, 256):
        monkeypatch.setattr(rotations, "WIDEST", widest)
        turned = [Rotation.of(1024, seed=seed).turn(units) for seed in range(6)]
        r = torch.corrcoef(torch.cat([metric[None], *[one.T for one in turned]]))[0, 1:].abs()
        quantiles.append(torch.quantile(r, torch.tensor([0.5, 0.9, 0.99])))
    torch.testing.assert_close(quantiles[1], quantiles[0], rtol=0.05, atol=0)


def test_squares_about_another_origin_and_added() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 4, generator=generator, dtype=torch.float64) + 3
    columns = torch.randn(90, 3, generator=generator, dtype=torch.float64)
    parts = []
    for start, stop in ((0, 40), (40, 90)):
        running = RunningMoments(3, 4, squared=slice(1, 3))
        running.absorb(columns[start:stop], rows[start:stop])
        parts.append(running.freeze())
    one, two = parts
    assert one.origin is not None
    both = one + two.at_origin(one.origin, slice(1, 3))
    want = columns[:, 1:].T @ (rows - one.origin).square()
    torch.testing.assert_close(both.squares, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError, match="two origins"):
        one + two
