"""What holds for the figures of soft prompts and several skills, and what each of them shows."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.words import metric_words
from tests.plotting.conftest import make_scores
from tests.plotting.probes import check_repeats, labels, words
from tests.plotting.prompts_and_skills import (
    CASES,
    RULES,
    make_prompt,
    make_seeds,
    make_skills,
    make_stability,
)
from tests.plotting.test_drawing import overlaps


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Callable[..., Drawing]:
    return CASES[request.param]


@pytest.mark.parametrize("width", ["column", "page"])
def test_no_text_is_cut_off_or_lies_on_another(case: Callable[..., Drawing], width: str) -> None:
    assert overlaps(case().styled(width=width).figure) == []


@pytest.mark.parametrize("name", [name for name in CASES if "," not in name])
def test_the_same_result_gives_the_same_bytes_and_its_numbers(name: str, tmp_path: Path) -> None:
    check_repeats(CASES[name], tmp_path)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("curves")])
def test_exploratory_is_stamped_and_only_then(name: str) -> None:
    for exploratory in (False, True):
        texts = CASES[name](exploratory=exploratory).figure.texts
        assert any(text.get_gid() == "exploratory" for text in texts) == exploratory


def test_curves_are_those_of_the_prompts() -> None:
    prompts = [make_prompt(seed) for seed in (4, 7)]
    drawing = figures.learning_curves(prompts, baselines={"no prompt": 0.1})
    loss, accuracy = drawing.figure.axes
    assert labels(loss) == ["seed 4", "seed 7", "held out", "training batches"]
    for place, prompt in enumerate(prompts):
        rows = drawing.frame[drawing.frame["prompt"] == place]
        table = prompt.frame()
        np.testing.assert_array_equal(rows["held_out_loss"], table["held_out_loss"])
        thick = [line for line in loss.lines if line.get_gid() == "held out"][place]
        np.testing.assert_array_equal(thick.get_ydata(), table["held_out_loss"])
        np.testing.assert_array_equal(thick.get_xdata(), table["step"])
        best = rows[rows["best"]]
        assert best["held_out_loss"].item() == table["held_out_loss"].min()
    assert "no prompt" in [text.get_text() for text in accuracy.texts]
    assert loss.get_yscale() == "linear"
    assert loss.get_ylim()[0] == 0
    assert figures.learning_curves(prompts[0]).frame["seed"].unique().tolist() == [4]
    with pytest.raises(LensSkillsError, match="no learning curve"):
        figures.learning_curves([make_prompt(1, n_looks=0)])
    for several in ([], [make_prompt(seed) for seed in range(11)]):
        with pytest.raises(LensSkillsError, match="draw 1 to 10"):
            figures.learning_curves(several)


def test_the_axis_of_a_loss_fits_it() -> None:
    prompt = make_prompt(1)

    def drawn(change: Callable[[float], float], accuracy: float = 0.5) -> Drawing:
        rows = [
            row
            | {name: change(row[name]) for name in ("train_loss", "held_out_loss")}
            | {"held_out_accuracy": accuracy}
            for row in prompt.curve
        ]
        return figures.learning_curves(replace(prompt, curve=tuple(rows)))

    steep = drawn(lambda loss: max(loss - 1.0, 0.1) ** 3)
    assert steep.figure.axes[0].get_yscale() == "log"
    flat = drawn(lambda loss: 48 + loss)
    low, high = flat.figure.axes[0].get_ylim()
    assert 47 < low < 49.5 < high < 53
    assert "does not start at 0" in words(flat)
    never = drawn(lambda loss: loss, accuracy=0.0)
    assert len(never.figure.axes) == 1
    assert "accuracy is 0 at every step" in words(never)
    for drawing in (steep, flat, never):
        assert overlaps(drawing.figure) == []


def test_the_map_holds_the_largest_r_of_every_cell() -> None:
    scores = make_scores(positions=("-3", "-2", "-1"))
    found = scores["confidence"]
    drawing = figures.correlation_by_position(found)
    bar = found.threshold
    assert bar is not None
    for row in drawing.frame.itertuples():
        place = scores.positions.index(row.position)
        inside = (scores.layer == row.layer) & ~scores.excluded
        r = found.r[place, inside]
        assert row.strongest == float(r.abs().max())
        assert row.r == float(found.r[place, scores.places[row.layer, row.neuron]])
        assert row.n_beyond == int((r.abs() > bar).sum())
        assert row.beyond == (row.strongest > bar)
    hatched = [patch for patch in drawing.figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == (~drawing.frame["beyond"].astype(bool)).sum() > 0
    bare = figures.correlation_by_position(make_scores(nulls=False)["confidence"])
    assert not bare.frame["beyond"].any()
    assert "No null was drawn" in words(bare)


def test_classes_are_counted_in_the_same_bins() -> None:
    random = np.random.default_rng(0)
    y, names = random.normal(size=90), np.array(RULES)[np.arange(90) % 3]
    frame = figures.activation_by_class(y, names, name="L1N2", metric="rule", bins=9).frame
    edges = np.histogram_bin_edges(y, bins=9)
    for one in RULES:
        rows = frame[frame["class"] == one]
        mine = y[names == one]
        np.testing.assert_array_equal(rows["count"], np.histogram(mine, edges)[0])
        assert rows["share"].sum() == pytest.approx(1)
        assert rows["mean"].iloc[0] == pytest.approx(mine.mean())
    numbers = figures.activation_by_class(
        torch.tensor(y), names == RULES[0], name="L1N2", metric="rule"
    )
    assert set(numbers.frame["class"]) == {"0", "1"}
    options = {"name": "L1N2", "metric": "rule"}
    with pytest.raises(LensSkillsError, match="90 activations, 2 classes"):
        figures.activation_by_class(y, ["a", "b"], **options)
    with pytest.raises(LensSkillsError, match="activation of example 1 is nan"):
        figures.activation_by_class([0.0, np.nan], ["a", "b"], **options)
    with pytest.raises(LensSkillsError, match="90 classes"):
        figures.activation_by_class(y, [str(i) for i in range(90)], **options)


def test_the_matrix_shows_its_sets() -> None:
    matrix = make_skills()
    drawing = figures.skill_matrix(matrix, k=9)
    assert len(drawing.frame) == 9 * len(matrix.skills)
    whole = matrix.frame().set_index(["name", "skill"])
    for row in drawing.frame.itertuples():
        assert row.r == whole.loc[(row.name, row.skill), "r"]
    axis = drawing.figure.axes[1]
    outlined = [p for p in axis.patches if p.get_hatch() is None]
    assert len(outlined) == drawing.frame["selected"].sum()
    hatched = [p for p in axis.patches if p.get_hatch()]
    assert len(hatched) == (~drawing.frame["beyond"] & ~drawing.frame["selected"]).sum()
    kinds = drawing.frame["kind"].tolist()
    assert kinds == sorted(kinds, key=["shared", "specific", "unclear"].index)
    columns = [text.get_text() for text in axis.get_xticklabels()]
    assert columns == [metric_words(matrix.skills[place]) for place in matrix.order]
    assert labels(drawing.figure.axes[0]) == ["in the skill's set", "within its null"]
    none = replace(
        matrix,
        neurons=matrix.neurons[:0],
        selected=matrix.selected[:0],
        beyond=matrix.beyond[:0],
        r=matrix.r[:0],
        low=matrix.low[:0],
        high=matrix.high[:0],
    )
    with pytest.raises(LensSkillsError, match="no neurons to draw"):
        figures.skill_matrix(none)


def test_comparison_bars_are_the_shared_neurons() -> None:
    found = make_seeds(4)
    drawing = figures.compare_scores(found)
    left, right = drawing.figure.axes
    assert [bar.get_width() for bar in left.containers[0]] == found.shared.tolist()
    np.testing.assert_array_equal(left.lines[0].get_xdata(), found.expected)
    np.testing.assert_array_equal(left.lines[1].get_xdata(), found.expected_by_layer)
    signs, chance, ranks = right.lines
    np.testing.assert_array_equal(signs.get_xdata(), found.sign_agreement)
    np.testing.assert_array_equal(ranks.get_xdata(), found.rank_r)
    assert set(chance.get_xdata()) == {0.5}
    assert labels(right) == ["same sign (share)", "signs by chance", "rank correlation"]
    unsure = replace(found, sign_agreement=found.sign_agreement * math.nan)
    right = figures.compare_scores(unsure).figure.axes[1]
    assert labels(right) == ["rank correlation"]  # a legend names what is drawn, and no more
    assert f"{len(found.stable):,} neurons significant" in words(drawing)


def test_stability_bars_are_shares_of_the_runs() -> None:
    found = make_stability()
    drawing = figures.stability(found, k=12)
    left, right = drawing.figure.axes
    widths = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in left.patches}
    assert [widths[row] for row in range(12)] == found.share[:12].tolist()
    names = drawing.frame.query("what == 'name'")["name"].tolist()
    assert names == list(found.names[:12])
    assert labels(left) == ["95 % interval", "found in the whole", "not in the whole"]
    np.testing.assert_array_equal(right.lines[0].get_xdata(), found.shared)
    np.testing.assert_array_equal(right.lines[1].get_xdata(), found.expected)
    with pytest.raises(LensSkillsError, match="nothing to draw"):
        figures.stability(replace(found, names=(), in_whole=found.in_whole[:0],
                                  found=found.found[:, :0]))  # fmt: skip


def test_confidence_bins_and_auroc() -> None:
    random = np.random.default_rng(0)
    x = np.round(random.normal(size=200), 1)  # with ties
    y = (random.random(200) < 1 / (1 + np.exp(-x))).astype(float)
    drawing = figures.confidence_against_correctness(x, y, metric="margin", unit="nats")
    frame = drawing.frame.query("what == 'bin'")
    whole = drawing.frame.query("what == 'histogram'")
    for which, side in (("right", 1), ("wrong", 0)):
        inside = [*whole["low"], whole["high"].iloc[-1]]
        np.testing.assert_array_equal(whole[which], np.histogram(x[y == side], inside)[0])
    u = stats.mannwhitneyu(x[y == 1], x[y == 0]).statistic
    assert frame["auroc"].iloc[0] == pytest.approx(u / ((y == 1).sum() * (y == 0).sum()))
    assert frame["right"].sum() == y.sum()
    assert (frame["right"] + frame["wrong"]).sum() == 200
    for row in frame.itertuples():
        mine = (x >= row.low) & (x <= row.high)
        assert y[mine].mean() == pytest.approx(row.share)
        oracle = stats.binomtest(row.right, int(mine.sum())).proportion_ci(method="wilson")
        assert (row.share_low, row.share_high) == pytest.approx(tuple(oracle))
    assert drawing.figure.axes[1].get_xlabel() == "margin (nats)"
    scores = make_scores()
    assert "12 groups" in words(figures.confidence_against_correctness(scores))
    one = figures.confidence_against_correctness(x, np.ones(200))
    assert "one class only" in words(one)
    with pytest.raises(LensSkillsError, match="hold no 'margin'"):
        figures.confidence_against_correctness(scores, metric="margin")
    for a, b, message in (
        ([0.1, 0.2], [1], "2 confidences and 1 answers"),
        ([0.1, np.inf], [1, 0], "confidence of example 1 is inf"),
        ([0.1, 0.2], [1, 0.5], r"example 1 is 0\.5 correct"),
    ):
        with pytest.raises(LensSkillsError, match=message):
            figures.confidence_against_correctness(a, b)
