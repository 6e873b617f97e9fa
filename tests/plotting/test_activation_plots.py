"""The fit and its band, the strips, the reliability diagram and the bars, against oracles."""

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import figures
from lens_skills.plotting.activation_plots import fit_band
from lens_skills.scoring import Scores
from lens_skills.stats.calibration import calibrate
from tests.plotting.conftest import make_scores
from tests.plotting.probes import words


@pytest.fixture
def line() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=40)
    return x, 2 * x + random.normal(size=40)


def test_the_fit_and_its_band_are_those_of_least_squares(line: tuple[np.ndarray, ...]) -> None:
    x, y = line
    oracle = stats.linregress(x, y)
    at = np.array([0.0, x.mean(), 3.0])
    band = fit_band(x, y, at)
    np.testing.assert_allclose(band["activation"], oracle.intercept + oracle.slope * at)
    half = stats.t.ppf(0.975, len(x) - 2) * oracle.intercept_stderr  # the line at 0
    assert band["high"][0] - band["activation"][0] == pytest.approx(half)
    assert band["activation"][0] - band["low"][0] == pytest.approx(half)


def test_the_grouped_band_adds_up_residuals_by_group(line: tuple[np.ndarray, ...]) -> None:
    """At the mean of x the line is the mean of y, whose clustered variance is known."""
    x, y = line
    groups = np.arange(len(x)) % 8
    oracle = stats.linregress(x, y)
    residual = y - oracle.intercept - oracle.slope * x
    sums = np.bincount(groups, residual)
    error = np.sqrt(8 / 7 * (sums**2).sum()) / len(x)
    band = fit_band(x, y, np.array([x.mean()]), groups)
    half = (band["high"][0] - band["low"][0]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, 7) * error)


def test_copies_of_an_example_in_its_group_leave_the_band(line: tuple[np.ndarray, ...]) -> None:
    """What is repeated within a group is not new information; taken as new, it narrows the band."""
    x, y = line
    at, names = np.linspace(-1, 1, 5), np.arange(len(x))
    once = fit_band(x, y, at, names)
    thrice = fit_band(x.repeat(3), y.repeat(3), at, names.repeat(3))
    np.testing.assert_allclose(thrice[["low", "high"]], once[["low", "high"]])
    alone = fit_band(x.repeat(3), y.repeat(3), at)
    assert ((alone["high"] - alone["low"]) < 0.7 * (once["high"] - once["low"])).all()


def test_a_grouped_band_covers_the_true_line() -> None:
    """A shared shift per group: 95 % of the grouped bands hold the truth, few of the naive do."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    at, hits = np.array([1.0]), {"grouped": 0, "naive": 0}
    for _ in range(200):
        x = random.normal(size=30)[groups]
        y = x + random.normal(size=30)[groups] + 0.3 * random.normal(size=240)
        for kind, given in (("grouped", groups), ("naive", None)):
            band = fit_band(x, y, at, given)
            hits[kind] += bool(band["low"][0] <= 1 <= band["high"][0])
    assert hits["grouped"] / 200 > 0.89
    assert hits["naive"] / 200 < 0.75


@pytest.mark.parametrize("kind", [torch.tensor, np.asarray, list])
def test_every_example_is_a_point(line: tuple[np.ndarray, ...], kind: type) -> None:
    x, y = line
    drawing = figures.activation_scatter(
        kind(y.tolist()), kind(x.tolist()), name="L1N2", metric="logit_diff", unit="nats"
    )
    points = drawing.frame.query("what == 'example'")
    dots = drawing.figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[["x", "activation"]], dots)
    np.testing.assert_allclose(points["metric"], x, rtol=1e-6)
    assert drawing.figure.axes[0].get_xlabel() == "logit difference (nats)"
    assert f"r = {np.corrcoef(x, y)[0, 1]:+.2f}" in drawing.figure.texts[0].get_text()
    named = figures.activation_scatter(y, x, name="L1N2", metric="m", about="tiny · sums")
    assert "tiny · sums · 40 examples" in words(named)
    fit = drawing.frame.query("what == 'fit'")
    assert ((fit["low"] < fit["activation"]) & (fit["activation"] < fit["high"])).all()


def test_a_binary_metric_is_two_strips_with_their_means(line: tuple[np.ndarray, ...]) -> None:
    _, y = line
    side = np.arange(len(y)) % 2
    frame = figures.activation_scatter(y, side == 1, name="L1N2", metric="label:plural").frame
    points = frame.query("what == 'example'")
    means = frame.query("what == 'class mean'").set_index("metric")["activation"]
    for value in (0, 1):
        mine = points[points["metric"] == value]
        assert sorted(mine["activation"]) == sorted(y[side == value])
        assert (abs(mine["x"] - value) < 0.5).all()
        assert means[value] == pytest.approx(y[side == value].mean())
        bins = frame.query("what == 'histogram' and metric == @value")
        assert bins["share"].sum() == pytest.approx(1)


def test_one_class_or_a_constant_is_drawn_without_a_fit() -> None:
    ones = figures.activation_scatter(np.arange(5.0), np.ones(5), name="L1N2", metric="correct")
    assert set(ones.frame["what"]) == {"example", "class mean", "histogram"}
    flat = figures.activation_scatter(np.arange(5.0), np.full(5, 0.3), name="L1N2", metric="sure")
    assert set(flat.frame["what"]) == {"example"}
    for drawing in (ones, flat):
        assert "constant" in drawing.figure.texts[0].get_text()


def test_what_cannot_be_drawn_is_said() -> None:
    x = np.arange(4.0)
    options = {"name": "L1N2", "metric": "sure"}
    with pytest.raises(LensSkillsError, match="4 activations, 3 metric values"):
        figures.activation_scatter(x, x[:3], **options)
    with pytest.raises(LensSkillsError, match="5 groups"):
        figures.activation_scatter(x, x, groups="abcde", **options)
    with pytest.raises(LensSkillsError, match="2 examples are too few"):
        figures.activation_scatter(x[:2], x[:2], **options)
    with pytest.raises(LensSkillsError, match="metric of example 1 is nan"):
        figures.activation_scatter(x, np.array([0, np.nan, 1, 1]), **options)


def test_reliability_bars_are_wilson_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.8 * torch.rand(300, generator=generator)
    table = calibrate(confidence, torch.rand(300, generator=generator) < confidence)
    drawing = figures.reliability(table)
    frame = drawing.frame
    assert frame["count"].sum() == 300
    for row in frame[frame["count"] > 0].itertuples():
        hits = round(row.accuracy * row.count)
        oracle = stats.binomtest(hits, int(row.count)).proportion_ci(method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx(tuple(oracle))
    empty = frame[frame["count"] == 0]
    assert len(empty) == 2
    assert empty[["confidence", "accuracy", "accuracy_low", "accuracy_high"]].isna().all(axis=None)
    curve, counts = drawing.figure.axes
    marks = curve.collections[-1].get_offsets()
    np.testing.assert_array_equal(marks, frame[["confidence", "accuracy"]].dropna())
    assert [bar.get_height() for bar in counts.containers[0]] == frame["count"].tolist()
    assert f"ECE {table.error:.3f}" in curve.get_title(loc="left")


def test_a_bin_of_one_example_is_no_point_of_the_curve() -> None:
    """It is small and hollow, and the caption says what that means."""
    sure = torch.tensor([0.15] * 40 + [0.45] * 20 + [0.95])
    drawing = figures.reliability(calibrate(sure, torch.arange(61) % 3 == 0))
    curve = drawing.figure.axes[0]
    (line,) = [line for line in curve.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(line.get_xdata(), [0.15, 0.45])
    marks = curve.collections[-1]
    sizes = marks.get_sizes()
    assert sizes[0] > sizes[1] > sizes[2]
    faces = [tuple(face) for face in marks.get_facecolors()]
    assert faces[0] == faces[1] != faces[2] == (1, 1, 1, 1)
    assert "Hollow: fewer than 10 examples" in words(drawing)
    assert "Hollow" not in words(figures.reliability(calibrate(sure[:60], sure[:60] > 0.3)))
    low, high = curve.get_ylim()
    assert low < 0 < 1 < high  # the marks of a share of 0 and 1 are whole


@pytest.mark.parametrize(("share", "word"), [(0.0, "overconfident"), (1.0, "underconfident")])
def test_reliability_names_the_side_of_the_error(share: float, word: str) -> None:
    table = calibrate(torch.full((50,), 0.5), torch.full((50,), share) > 0.5)
    assert word in figures.reliability(table).figure.axes[0].get_title(loc="left")


def test_reliability_needs_a_pair(scores: Scores) -> None:
    assert "12 groups" in figures.reliability(scores).figure.texts[1].get_text()
    lone = make_scores()
    del lone.values["correct"]
    with pytest.raises(LensSkillsError, match="no pair of confidence and correctness"):
        figures.reliability(lone)
