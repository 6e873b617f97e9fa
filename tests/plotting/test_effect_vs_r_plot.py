"""An effect against r, and among its controls: the numbers drawn are the verdict's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import StepPatch
from matplotlib.text import Annotation

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.verdict import CAUSAL, NO_EFFECT, WORDS
from lens_skills.plotting import figures
from lens_skills.plotting.intervention_plots import LOOKS
from lens_skills.plotting.label_placement import name_points
from lens_skills.scoring import Scores
from tests.plotting.conftest import LAYERS, WIDTH, make_scores
from tests.plotting.probes import band, labels, words
from tests.plotting.results import make_bare, make_verdict


def test_points_are_the_verdicts_effects_at_the_scores_r(scores: Scores) -> None:
    found, verdict = scores["confidence"], make_verdict(20)
    drawing = figures.effect_against_r(found, verdict, marked={"L1N1": "decoy"})
    table = scores.frame(metric="confidence")
    r = {f"L{row.layer}N{row.neuron}": row.r for row in table.itertuples()}
    edited = drawing.frame.query("what == 'edited'")
    assert edited["name"].tolist() == [ruling.name for ruling in verdict.singles]
    for row in edited.itertuples():
        ruling = verdict[str(row.name)]
        assert (row.r, row.strength) == (r[row.name], abs(r[row.name]))
        assert (row.effect, row.low, row.high) == (ruling.effect, ruling.low, ruling.high)
        assert (row.word, row.mark) == (ruling.word, "decoy" if row.name == "L1N1" else "")
    cloud = drawing.frame.query("what == 'compared with'").set_index("name")
    effect = dict(zip(verdict.control_neurons, verdict.control_neuron_effect.tolist(), strict=True))
    # L0N0 does not vary, so it has no r.
    assert set(cloud.index) == set(verdict.control_neurons) - {"L0N0"}
    assert cloud["effect"].to_dict() == {name: effect[name] for name in cloud.index}
    assert cloud["r"].to_dict() == {name: r[name] for name in cloud.index}
    (axis,) = drawing.figure.axes
    dots = axis.collections[0].get_offsets()
    np.testing.assert_array_equal(dots, cloud[["strength", "effect"]])
    for word in WORDS:
        here = edited[edited["word"] == word]
        (line,) = [line for line in axis.lines if line.get_label() and drawn(line, word)]
        np.testing.assert_array_equal(line.get_xydata(), here[["strength", "effect"]])
    assert band(axis) == [(-0.2, 0.2)]
    threshold = drawing.frame.query("what == 'threshold'")["strength"].tolist()
    assert threshold == [found.threshold]


def drawn(line: Any, word: str) -> bool:
    """Whether these are the marks of the word: a marker of its colour on no line."""
    look = LOOKS[word]
    hollow = line.get_markerfacecolor() == "white"
    return (
        line.get_linestyle() == "None"
        and line.get_marker() == look.marker
        and line.get_color() == look.colour
        and hollow != look.filled
        and line.get_markersize() < 7
    )


def test_the_strongest_are_named_and_no_name_covers_a_point(scores: Scores) -> None:
    drawing = figures.effect_against_r(scores["confidence"], make_verdict(60), n_labels=10)
    (axis,) = drawing.figure.axes
    named = [text.get_text() for text in axis.texts if isinstance(text, Annotation)]
    edited = drawing.frame.query("what == 'edited'")
    # What has an effect comes first.
    causal = edited[edited["word"].isin(CAUSAL)]
    order = causal["effect"].abs().sort_values(ascending=False, kind="stable").index[:10]
    strongest = edited.loc[order, "name"].tolist()
    assert named[:3] == strongest[:3]
    assert set(named) <= set(strongest)
    assert len(named) >= 6
    points = axis.transData.transform(edited[["strength", "effect"]].to_numpy(float))
    drawing.figure.draw_without_rendering()
    for text in (text for text in axis.texts if isinstance(text, Annotation)):
        box = super(Annotation, text).get_window_extent()  # the letters without the leader
        assert not any(box.contains(x, y) for x, y in points)


def test_every_neuron_with_an_effect_is_named_unless_told_otherwise(scores: Scores) -> None:
    verdict = make_verdict(12)
    frame = figures.effect_against_r(scores["confidence"], verdict).about
    assert frame["n_labels"] == sum(one.word in CAUSAL for one in verdict.singles) == 6
    nothing = replace(
        verdict, rulings=tuple(replace(one, word=NO_EFFECT) for one in verdict.rulings)
    )
    assert figures.effect_against_r(scores["confidence"], nothing).about["n_labels"] == 5


@pytest.mark.parametrize("delta", [0.2, 0.004])
def test_the_band_is_seen_however_narrow_it_is(scores: Scores, delta: float) -> None:
    """On an axis that is logarithmic beyond ±δ, with numbers at its ticks, where it has to be."""
    verdict = replace(make_verdict(12), delta=delta)
    drawing = figures.effect_against_r(scores["confidence"], verdict)
    (axis,) = drawing.figure.axes
    low, high = axis.transData.transform([[0, -delta], [0, delta]])[:, 1]
    share = (high - low) / axis.get_window_extent().height
    assert share > 0.1
    assert ("logarithmic beyond" in drawing.caption) == (delta < 0.1)
    if delta < 0.1:
        ticks = [float(t.get_text().replace("\N{MINUS SIGN}", "-")) for t in axis.get_yticklabels()]
        assert ticks == pytest.approx(axis.get_yticks().tolist())
        assert min(abs(tick) for tick in ticks if tick) > delta
    assert "±δ" in [text.get_text() for text in axis.texts]


def test_a_name_without_room_is_left_out(scores: Scores) -> None:
    (axis,) = figures.effect_against_r(scores["confidence"], make_verdict(2)).figure.axes
    low, high = axis.get_ylim()
    grid = np.array([[x, y] for x in np.linspace(0, 1, 60) for y in np.linspace(low, high, 60)])
    point = np.array([[0.3, 0.0]])
    nothing = np.zeros((0, 3))
    assert name_points(axis, ["L1N2"], point, marks=grid, bars=nothing) == []
    assert len(name_points(axis, ["L1N2"], point, marks=point, bars=nothing)) == 1


def test_marks_are_ringed_and_counted(scores: Scores) -> None:
    view, verdict = scores["confidence"], make_verdict()
    other = verdict.control_neurons[5]
    marked = {"L0N1": "decoy", other: "decoy", "L1N1": "writer"}
    drawing = figures.effect_against_r(view, verdict, marked=marked)
    (axis,) = drawing.figure.axes
    assert {"decoy (2)", "writer (1)"} <= set(labels(axis))
    rings = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert [len(line.get_xdata()) for line in rings] == [2, 1]
    assert rings[0].get_marker() != rings[1].get_marker()
    with pytest.raises(LensSkillsError, match="no neuron 'L9N9' in this verdict to mark"):
        figures.effect_against_r(view, verdict, marked={"L9N9": "decoy"})


def test_the_legend_counts_words(scores: Scores) -> None:
    (axis,) = figures.effect_against_r(scores["confidence"], make_verdict(8)).figure.axes
    counted = {"supports (2)", "opposes (2)", "mixed (1)", f"{NO_EFFECT} (1)"}
    assert counted <= set(labels(axis))
    assert "removing it" in axis.get_ylabel()
    assert "logit difference (nats)" in axis.get_ylabel()


def test_r_is_that_of_the_verdicts_position() -> None:
    scores = make_scores(positions=("subject", "last"))
    view = scores["confidence"]
    unit = scores.places[0, 1]
    for position, r in (
        ("last", float(view.r[1, unit])),
        ("subject", float(view.r[0, unit])),
        ("subject, last", max(view.r[:, unit].tolist(), key=abs)),
    ):
        verdict = make_verdict(2)
        verdict = replace(verdict, effects=replace(verdict.effects, position=position))
        frame = figures.effect_against_r(view, verdict).frame
        assert frame.query("name == 'L0N1'")["r"].tolist() == [r]


def test_what_was_not_scored_is_left_out_and_said(scores: Scores) -> None:
    verdict = make_verdict(3)
    heads = [replace(ruling, name=f"L{place}H0") for place, ruling in enumerate(verdict.singles)]
    one = replace(verdict, rulings=(verdict.rulings[0], *heads[1:], verdict["set"]))
    drawing = figures.effect_against_r(scores["confidence"], one)
    assert "2 of 3" in words(drawing)
    assert drawing.frame.query("what == 'edited'")["name"].tolist() == ["L0N1"]
    with pytest.raises(LensSkillsError, match="none of the 3 edited units was scored"):
        figures.effect_against_r(scores["confidence"], replace(verdict, rulings=tuple(heads)))


def test_scores_of_another_site_or_model_are_refused(scores: Scores) -> None:
    verdict = make_verdict()
    with pytest.raises(LensSkillsError, match=r"scores are of mlp.hook_pre, the verdict of mlp"):
        figures.effect_against_r(replace(scores, site="mlp.hook_pre")["confidence"], verdict)
    mine = replace(scores, provenance={**scores.provenance, "model_fingerprint": "a"})
    verdict.provenance["model_fingerprint"] = "b"
    with pytest.raises(LensSkillsError, match="of different models"):
        figures.effect_against_r(mine["confidence"], verdict)
    verdict.provenance["model_fingerprint"] = "a"
    figures.effect_against_r(mine["confidence"], verdict)


def test_the_histograms_are_the_control_sets() -> None:
    verdict = make_verdict()
    drawing = figures.effect_against_controls(verdict)
    (axis,) = drawing.figure.axes
    steps = [patch for patch in axis.patches if isinstance(patch, StepPatch)]
    kinds = {"matched sets": verdict.control_effect, "important sets": verdict.important_effect}
    for patch, (kind, effects) in zip(steps, kinds.items(), strict=True):
        rows = drawing.frame[drawing.frame["what"] == kind]
        assert rows["value"].sum() == len(effects)
        counts, edges, _ = patch.get_data()
        np.testing.assert_array_equal(counts, rows["value"])
        np.testing.assert_array_equal(edges, [*rows["low"], rows["high"].iloc[-1]])
        np.testing.assert_array_equal(counts, np.histogram(effects.numpy(), edges)[0])
    whole = verdict["set"]
    (row,) = drawing.frame.query("what == 'set'").to_dict("records")
    assert (row["value"], row["low"], row["high"]) == (whole.effect, whole.low, whole.high)
    assert (row["rank"], row["n_controls"], row["p"]) == (1, 80, whole.p)
    assert "rank 1 of 81 by |effect| · p = 0.012, 0.048 among the important" in words(drawing)
    places = [line.get_xdata()[0] for line in axis.lines]
    assert places.count(whole.effect) == 2
    assert whole.low in places
    assert band(axis, "x") == [(-0.2, 0.2)]


@pytest.mark.parametrize("across", [True, False])
def test_a_neuron_is_held_against_the_units_it_is_compared_with(across: bool) -> None:
    verdict = make_verdict(n_control_neurons=LAYERS * WIDTH - 6)
    verdict.provenance["control_neurons"] = "all layers" if across else "own layer"
    drawing = figures.effect_against_controls(verdict, name="L2N1")
    layer = [name.startswith("L2N") for name in verdict.control_neurons]
    rows = drawing.frame[drawing.frame["what"].str.contains("other")]
    assert rows["value"].sum() == (len(layer) if across else sum(layer))
    row = drawing.frame.set_index("what").loc["L2N1"]
    assert row["value"] == verdict["L2N1"].effect


def test_without_controls_it_says_so() -> None:
    drawing = figures.effect_against_controls(make_bare(3))
    assert "without controls" in words(drawing)
    assert set(drawing.frame["what"]) == {"set", "delta"}
    with pytest.raises(LensSkillsError, match="no ruling on 'L9N9'"):
        figures.effect_against_controls(make_verdict(), name="L9N9")
