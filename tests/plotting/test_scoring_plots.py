"""The numbers drawn are the numbers scored: distribution, layers, heat map."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle, StepPatch

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing, figures
from lens_skills.scoring import Scores
from tests.plotting.conftest import LAYERS, METRICS, WIDTH, make_scores
from tests.plotting.results import make_verdict

TWO = ("subject", "last")


def texts(drawing: Drawing) -> list[str]:
    return [text.get_text() for axis in drawing.figure.axes for text in axis.texts]


@pytest.mark.parametrize("position", [None, "last"])
def test_every_neuron_is_counted_once_per_position(position: str | None) -> None:
    scores = make_scores(positions=TWO)
    drawing = figures.r_distribution(scores["confidence"], position=position)
    rows = scores.frame(metric="confidence")
    rows = rows[~rows["excluded"] & rows["position"].isin([position] if position else TWO)]
    bins = drawing.frame[drawing.frame["what"] == "neurons"]
    assert bins["value"].sum() == len(rows) == (LAYERS * WIDTH - 1) * (1 if position else 2)
    for _, row in bins.iterrows():
        inside = (rows["r"] >= row["low"]) & (rows["r"] < row["high"])
        assert inside.sum() == row["value"]
    turned = drawing.frame[drawing.frame["what"] == "random directions"]
    assert turned["value"].sum() == pytest.approx(LAYERS * WIDTH * (1 if position else 2))


def test_one_position_shows_its_own_rotated_directions() -> None:
    """The pass lays a rotated r out by position, then unit."""
    scores = make_scores(positions=TWO)
    turned = torch.tensor([0.05, 0.25], dtype=torch.float64).repeat_interleave(120)[None]
    scores = replace(scores, rotated_r=dict.fromkeys(METRICS, turned))
    for position, r in (("subject", 0.05), ("last", 0.25)):
        frame = figures.r_distribution(scores["correct"], position=position).frame
        (row,) = frame.query("what == 'random directions' and value > 0").to_dict("records")
        assert row["low"] - 1e-9 <= r <= row["high"] + 1e-9
        profile = figures.layer_profile(scores["correct"], position=position).frame
        assert profile["random_largest"].tolist() == [r] * LAYERS


def test_the_histogram_drawn_is_the_frame(scores: Scores) -> None:
    drawing = figures.r_distribution(scores["confidence"])
    (axis,) = drawing.figure.axes
    steps = [patch for patch in axis.patches if isinstance(patch, StepPatch)]
    for patch, what in zip(steps, ("neurons", "random directions"), strict=True):
        rows = drawing.frame[drawing.frame["what"] == what]
        counts = rows["value"].to_numpy(float)
        values, edges, _ = patch.get_data()
        np.testing.assert_array_equal(values[counts >= 1], counts[counts >= 1])
        np.testing.assert_allclose(edges, [*rows["low"], rows["high"].iloc[-1]])
    bar = scores.thresholds["confidence"]
    assert {line.get_xdata()[0] for line in axis.lines} == {-bar, bar}
    drawn = drawing.frame.query("what == 'threshold'").set_index("name")["value"].to_dict()
    assert drawn == {"permutation": bar}


def test_the_strongest_neurons_are_named(scores: Scores) -> None:
    view = scores["confidence"]
    drawing = figures.r_distribution(view, n_labels=4)
    named = drawing.frame.query("what == 'neuron'")
    assert named["name"].tolist() == view.top(4).names
    assert named["value"].abs().tolist() == view.strength.sort(descending=True).values[:4].tolist()
    assert set(named["name"]) <= set(texts(drawing))
    assert not figures.r_distribution(view, n_labels=0).frame["what"].eq("neuron").any()


def test_all_neurons_constant_is_an_empty_histogram(scores: Scores) -> None:
    empty = replace(scores, excluded=torch.ones_like(scores.excluded), r=torch.zeros_like(scores.r))
    frame = figures.r_distribution(empty["confidence"]).frame
    assert frame.query("what == 'neurons'")["value"].sum() == 0
    assert figures.layer_profile(empty["confidence"]).frame["neurons"].sum() == 0


@pytest.mark.parametrize("positions", [("last",), TWO])
def test_the_profile_is_each_layer_of_the_table(positions: tuple[str, ...]) -> None:
    scores = make_scores(positions=positions)
    view = scores["confidence"]
    frame = figures.layer_profile(view).frame.set_index("layer")
    rows = scores.frame(metric="confidence")
    rows = rows[~rows["excluded"]].assign(strength=lambda table: table["r"].abs())
    strength = rows.groupby(["layer", "neuron"])["strength"].max().groupby("layer")
    np.testing.assert_array_equal(frame["largest"], strength.max())
    np.testing.assert_allclose(frame["percentile_99"], strength.quantile(0.99))
    assert frame["neurons"].tolist() == [WIDTH - 1, WIDTH, WIDTH, WIDTH]
    for gate, passed in view.passing().items():
        assert frame[gate].sum() == int(passed.any(0).sum())
    turned = scores.rotated_r["confidence"].numpy().reshape(2, len(positions), LAYERS, WIDTH)
    np.testing.assert_array_equal(frame["random_largest"], np.abs(turned).max(axis=(0, 1, 3)))
    assert set(frame["threshold"]) == {view.threshold}
    badged = (view.associated & view.basis_privileged).any(0).sum()
    assert frame["basis-privileged"].sum() == int(badged) > 0


def test_the_profile_draws_its_frame(scores: Scores) -> None:
    drawing = figures.layer_profile(scores["confidence"])
    curves = {line.get_label(): line.get_ydata() for line in drawing.figure.axes[0].lines}
    frame = drawing.frame
    np.testing.assert_array_equal(curves["neurons: largest"], frame["largest"])
    np.testing.assert_array_equal(curves["random: largest"], frame["random_largest"])
    assert "may be the answer" in " ".join(text.get_text() for text in drawing.figure.texts)


def test_a_few_scored_neurons_still_have_a_profile(scores: Scores) -> None:
    """As on the confirm split: some layers only, and no random directions."""
    keep = torch.tensor([35, 36, 100])
    few = replace(
        make_scores(nulls=False),
        layer=scores.layer[keep],
        neuron=scores.neuron[keep],
        excluded=scores.excluded[keep],
        **{name: getattr(scores, name)[..., keep] for name in ("r", "low", "high", "mean", "std")},
    )
    assert figures.layer_profile(few["correct"]).frame["layer"].tolist() == [1, 3]
    assert "random_largest" not in figures.layer_profile(few["correct"]).frame


def test_the_heat_map_holds_r_of_every_cell(scores: Scores) -> None:
    drawing = figures.metric_heatmap(scores, k=6, by="correct")
    frame = drawing.frame
    assert len(frame) == 6 * len(METRICS)
    order = [tuple(pair) for pair in scores["correct"].top(6).rows.tolist()]
    assert list(dict.fromkeys(zip(frame["layer"], frame["neuron"], strict=True))) == order
    whole = scores.frame().set_index(["metric", "layer", "neuron"])["r"]
    for row in frame.itertuples():
        assert row.r == whole[row.metric, row.layer, row.neuron]
        assert row.threshold == scores.thresholds[row.metric]
        assert row.beyond == (abs(row.r) > row.threshold)
    axis = drawing.figure.axes[0]
    np.testing.assert_array_equal(axis.collections[0].get_array().ravel(), frame["r"].to_numpy())
    low, high = axis.collections[0].get_clim()
    assert low == -high <= -frame["r"].abs().max()
    hatched = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert len(hatched) == (~frame["beyond"]).sum() > 0


def test_the_heat_map_takes_named_neurons_in_their_order(scores: Scores) -> None:
    frame = figures.metric_heatmap(scores, neurons=["L3N4", "L0N2"]).frame
    assert frame["name"].unique().tolist() == ["L3N4", "L0N2"]
    with pytest.raises(LensSkillsError, match="L9N9 was not scored"):
        figures.metric_heatmap(scores, neurons=["L9N9"])
    with pytest.raises(LensSkillsError, match="no neurons to draw"):
        figures.metric_heatmap(scores, k=0)


@pytest.mark.parametrize(("width", "numbers"), [(3.4, True), (1.9, False)])
def test_numbers_stand_in_cells_that_hold_them(scores: Scores, width: float, numbers: bool) -> None:
    drawing = figures.metric_heatmap(scores, k=1).styled(width=width * 25.4)
    shown = [f"{abs(r):.2f}" for r in drawing.frame["r"]] if numbers else []
    assert [text.lstrip("+\N{MINUS SIGN}") for text in texts(drawing)] == shown


def test_a_neuron_stands_at_its_strongest_position() -> None:
    scores = make_scores(positions=TWO)
    frame = figures.metric_heatmap(scores, k=10, by="correct").frame.query("metric == 'correct'")
    best = scores["correct"].strength.sort(descending=True).values[:10]
    assert frame["r"].abs().tolist() == best.tolist()
    assert set(frame["position"]) == set(TWO)


def test_without_a_null_nothing_is_hatched_or_barred() -> None:
    scores = make_scores(nulls=False)
    heat = figures.metric_heatmap(scores, k=4)
    assert not heat.figure.axes[0].patches
    assert heat.frame["threshold"].isna().all()
    assert set(figures.r_distribution(scores["correct"]).frame["what"]) == {"neurons", "neuron"}
    profile = figures.layer_profile(scores["correct"]).frame
    assert profile["threshold"].isna().all()
    assert "associated" not in profile
    for drawing in (heat, figures.r_distribution(scores["correct"])):
        assert any("No null was drawn" in text.get_text() for text in drawing.figure.texts)


def test_an_unknown_position_names_those_there_are() -> None:
    scores = make_scores(positions=TWO)
    for draw in (figures.r_distribution, figures.layer_profile):
        with pytest.raises(LensSkillsError, match="They hold: subject, last"):
            draw(scores["correct"], position="first")


def test_the_caption_says_what_was_measured(scores: Scores) -> None:
    partial = replace(scores, provenance={**scores.provenance, "given": ["carry"]})
    drawing = figures.r_distribution(partial["confidence"])
    words = " ".join(text.get_text() for text in drawing.figure.texts)
    for part in ("confidence", "MLP activations, last token", "tiny", "60 examples, 12 groups"):
        assert part in words
    assert "partial r given carry" in drawing.figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    "draw",
    [
        figures.r_distribution,
        figures.layer_profile,
        figures.correlation_by_position,
        lambda scores: figures.effect_against_r(scores, make_verdict()),
    ],
    ids=["r_distribution", "layer_profile", "correlation_by_position", "effect_against_r"],
)
def test_scores_of_one_metric_are_taken_as_they_are(
    draw: Callable[[Any], Drawing], scores: Scores
) -> None:
    chosen = METRICS[:1]
    one = replace(
        scores,
        metrics=chosen,
        r=scores.r[:1],
        low=scores.low[:1],
        high=scores.high[:1],
        **dict.fromkeys(
            ("p", "p_family", "q", "p_control", "q_control", "excess", "p_basis", "q_basis")
        ),
    )
    drawn, named = draw(one), draw(one[chosen[0]])
    pd.testing.assert_frame_equal(drawn.frame, named.frame)
    assert drawn.name == named.name
    several = f"hold 3 metrics: {', '.join(METRICS)}. Choose one: scores['{METRICS[0]}']"
    with pytest.raises(LensSkillsError, match=re.escape(several)):
        draw(scores)
