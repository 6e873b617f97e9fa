"""Forest, dose-response and damage matrix: the numbers drawn are the result's."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from lens_skills.interventions.dose_response import DoseResponse
from lens_skills.interventions.verdict import NO_EFFECT, WORDS
from lens_skills.plotting import figures
from lens_skills.plotting.style import BLACK, DAMAGE
from tests.plotting.probes import band, labels, words
from tests.plotting.results import make_bare, make_curve, make_matrix, make_verdict
from tests.plotting.test_drawing import overlaps


def test_the_forest_holds_every_ruling() -> None:
    verdict = make_verdict(9)
    drawing = figures.effect_forest(verdict)
    frame = drawing.frame
    assert frame["name"].iloc[-1] == "set"
    assert sorted(frame["name"]) == sorted(ruling.name for ruling in verdict.rulings)
    columns = ["word", "effect", "low", "high", "direct", "direct_low", "direct_high"]
    for row in frame.to_dict("records"):
        assert [row[name] for name in columns] == [
            getattr(verdict[row["name"]], name) for name in columns
        ]
    order = [WORDS.index(word) for word in frame["word"].iloc[:-1]]
    assert order == sorted(order)
    (axis,) = drawing.figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == frame["name"].tolist()
    lines = {tuple(line.get_xdata()) for line in axis.lines}
    for row in frame.itertuples():
        assert {(row.low, row.high), (row.effect,)} <= lines
        assert {(row.direct_low, row.direct_high), (row.direct,)} <= lines
    short = [word.replace(NO_EFFECT, "none beyond δ") for word in frame["word"]]
    assert [text.get_text() for text in axis.texts] == short
    assert "direct effect" in labels(axis)
    assert {(round(low, 9), round(high, 9)) for low, high in band(axis, "x")} == {(-0.2, 0.2)}
    assert len(band(axis, "x")) == len(frame)


def test_a_large_set_has_a_scale_of_its_own() -> None:
    near, far = (figures.effect_forest(make_verdict(6, set_scale=scale)) for scale in (1, 20))
    assert len(near.figure.axes) == 1
    assert "scale of its own" not in words(near)
    above, below = far.figure.axes
    assert "scale of its own" in words(far)
    assert [text.get_text() for text in below.get_yticklabels()] == ["set"]
    assert below.get_xlim()[0] < 3 * above.get_xlim()[0]


def test_the_least_telling_neurons_are_cut_and_counted() -> None:
    drawing = figures.effect_forest(make_verdict(30), k=8)
    assert len(drawing.frame) == 9
    assert "22 more neurons" in words(drawing)
    assert set(drawing.frame["word"]) == {"supports", "opposes"}


def test_what_is_not_known_is_not_drawn() -> None:
    drawing = figures.effect_forest(make_bare(2))
    (axis,) = drawing.figure.axes
    assert drawing.frame["direct"].isna().all()
    assert "direct effect" not in labels(axis)
    assert all(np.isfinite(np.asarray(line.get_xdata(), float)).all() for line in axis.lines)
    assert "the edit" in axis.get_xlabel()


def test_the_curve_is_the_frame() -> None:
    curve = make_curve()
    drawing = figures.dose_response(curve)
    above, below = drawing.figure.axes
    frame = drawing.frame
    pd.testing.assert_frame_equal(frame[list(curve.frame())], curve.frame())
    for axis, column, which in ((above, "effect", ""), (below, "damage", "damage_")):
        (line,) = [line for line in axis.lines if line.get_label() == f"mean {column}"]
        np.testing.assert_array_equal(line.get_xydata(), frame[["dose", column]])
        ends = np.array([path[:, 1] for path in axis.collections[0].get_segments()])
        np.testing.assert_array_equal(ends, frame[[f"{which}low", f"{which}high"]])
        assert any(set(line.get_ydata()) == {0} for line in axis.lines), "a line at 0"
    assert np.polyfit(frame["dose"], frame["fit"], 1)[0] == pytest.approx(curve.slope)
    assert frame["fit"].mean() == pytest.approx(frame["effect"].mean())
    assert below.get_ylim()[0] == 0
    assert above.yaxis.label.get_color() != below.yaxis.label.get_color()
    assert "slope +0.38 [+0.3, +0.45] nats per std" in words(drawing)


def test_a_curve_of_one_group_has_no_bars() -> None:
    curve = make_curve(n_texts=1)
    ends = {"low": torch.full_like(curve.low, -math.inf), "high": curve.high + math.inf}
    single: DoseResponse = replace(curve, **ends, slope_low=-math.inf, slope_high=math.inf)
    drawing = figures.dose_response(single)
    for axis in drawing.figure.axes:
        assert len(axis.collections[0].get_segments()) == 0
        assert np.isfinite(axis.get_ylim()).all()
    assert "inf" not in words(drawing)


def test_no_damage_and_no_effect_are_drawn_flat() -> None:
    curve = make_curve()
    zero = {name: torch.zeros_like(getattr(curve, name)) for name in ("effects", "low", "high")}
    flat = replace(curve, **zero, damage=torch.zeros_like(curve.damage), slope=0.0)
    drawing = figures.dose_response(flat)
    assert (drawing.frame[["effect", "damage", "fit"]] == 0).all(axis=None)
    assert overlaps(drawing.figure) == []


def test_the_table_is_the_matrix() -> None:
    matrix = make_matrix()
    drawing = figures.damage_matrix(matrix)
    frame = drawing.frame
    axis = drawing.figure.axes[0]
    pd.testing.assert_frame_equal(frame.drop(columns="star"), matrix.frame(), check_dtype=False)
    assert frame["star"].tolist() == ((matrix.low > 0) | (matrix.high < 0)).flatten().tolist()
    np.testing.assert_array_equal(axis.collections[0].get_array(), -matrix.damage)
    shown = [text.get_text() for text in axis.texts]
    for text, row in zip(shown, frame.itertuples(), strict=True):
        assert float(text.rstrip("*").replace("\N{MINUS SIGN}", "-")) == round(row.effect, 2)
        assert text.endswith("*") == row.star
    frames: dict[str, set[tuple[int, int]]] = {BLACK: set(), DAMAGE: set()}
    for patch in axis.patches:
        assert isinstance(patch, Rectangle)
        frames[to_hex(patch.get_edgecolor()).upper()].add(
            (int(patch.get_y() + 0.1), int(patch.get_x() + 0.1))
        )
    assert frames[BLACK] == {(0, 0), (1, 1), (2, 2)}
    sure = ((matrix.high < 0) & ~torch.eye(3, dtype=torch.bool)).nonzero().tolist()
    assert frames[DAMAGE] == set(map(tuple, sure)) != set()
    assert labels(axis) == ["its own task", "another task falls"]
    assert axis.get_yticklabels()[0].get_text() == "add (10)"
    assert axis.get_xticklabels()[0].get_text() == "add (64)"
    said = words(drawing)
    assert "+0.61 std · p = 0.17 over 6 relabelings" in said
    assert "3 by add and mul" in said


def test_a_star_stays_where_a_number_has_no_room() -> None:
    drawing = figures.damage_matrix(make_matrix([f"skill {place}" for place in range(12)]))
    shown = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert shown == ["*" * star for star in drawing.frame["star"]]
    assert any(shown)


def test_of_many_neurons_the_one_with_an_open_effect_is_shown() -> None:
    verdict = make_bare(30)
    none = replace(verdict.rulings[0], word="no total effect beyond δ", effect=0.001)
    rulings = [replace(none, name=f"L0N{k}", effect=0.001 * k) for k in range(29)]
    wide = replace(none, name="L1N7", word="undecided", effect=-0.2, low=-0.5, high=0.1)
    verdict = replace(verdict, rulings=(*rulings, wide))
    frame = figures.effect_forest(verdict, k=8).frame
    assert "L1N7" in set(frame["name"])
    assert len(frame) == 8
