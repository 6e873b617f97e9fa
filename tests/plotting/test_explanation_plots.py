"""The pictures of explanations and shortcuts: what is drawn is what the result holds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle

from lens_skills.activations.excerpts import Excerpt
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanation, Explanations, Shortcut, Shortcuts
from lens_skills.explanation.descriptions import Description, ShuffledScores
from lens_skills.explanation.shortcut_report import SHORTCUT, UNEXPLAINED, ControlledEffect
from lens_skills.plotting import figures
from lens_skills.plotting.description_plot import description_scores
from lens_skills.plotting.explanation_plots import activation_map, feature_matrix, shortcut_effects
from tests.plotting.probes import labels, words

A, B = (side.flatten() for side in np.meshgrid(np.arange(10), np.arange(10)))
VALUES = pd.DataFrame(
    {"a": A, "b": B, "an operand is 5": ((A == 5) | (B == 5)).astype(int), "word": "x"}
)


def row(name: str, explained: float, p: float | None = 0.01, **more: Any) -> dict[str, Any]:
    kind = "flag" if " is " in name else "number"
    return {
        "feature": name,
        "kind": kind,
        "surface": name != "the result is odd",
        "explained_fitted": explained,
        "variance_explained": explained,
        "direction": 1,
        "overlap_top": 0.8 if kind == "flag" else None,
        "base": 0.2,
        "information": 0.3,
        "p": p,
        "q": p,
        "accepted": kind == "flag",
    } | more


def make_one(name: str, order: tuple[int, ...] = (0, 1, 2, 3), p: float | None = 0.01) -> Any:
    names = ("an operand is 5", "the result is odd", "a", "b")
    rows = [row(names[n], 0.6 / (1 + place), p) for place, n in enumerate(order)]
    if p is not None:
        rows[-1]["p"] = 0.5
    excerpt = Excerpt("e", "5 plus 3", 3.0, ("5", " plus", " 3"), (3.0, 0.0, 1.0))
    fires = torch.from_numpy(VALUES["an operand is 5"].to_numpy(float) * (1 + A))
    return Explanation(name, tuple(rows), (excerpt,), (excerpt,), None, fires, VALUES)


def make_why(n: int = 3, p: float | None = 0.01) -> Explanations:
    orders = [(0, 1, 2, 3), (2, 0, 3, 1), (1, 3, 0, 2)]
    neurons = tuple(make_one(f"L1N{k}", orders[k % 3], p) for k in range(n))
    about = {"model": "tiny", "task": "sums"}
    frame = pd.DataFrame({"feature": ["an operand is 5"]})
    return Explanations(
        neurons, frame, "mlp.hook_post", "last", 50, 50, 20, 10, 199, {}, provenance=about
    )


def test_a_map_holds_the_mean_of_every_cell() -> None:
    why = make_why(1)
    one = why["L1N0"]
    drawing = activation_map(why, "L1N0")
    frame = drawing.frame
    assert len(frame) == 100
    for cell in frame.sample(20, random_state=0).itertuples():
        here = (cell.x == A) & (cell.y == B)
        assert cell.activation == pytest.approx(float(one.activation[torch.from_numpy(here)][0]))
        assert cell.holds == (5 in (cell.x, cell.y))
    axis = drawing.figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("a", "b")
    assert "an operand is 5" in words(drawing)
    assert "60%" in words(drawing)
    assert "tiny · sums" in words(drawing)


def test_the_winning_feature_is_outlined() -> None:
    axis = activation_map(make_why(1), "L1N0").figure.axes[0]
    # A cross of one row and one column of ten cells: 4 arms and 4 ends.
    drawn = sum(
        abs(np.diff(line.get_xdata())[0]) + abs(np.diff(line.get_ydata())[0]) for line in axis.lines
    )
    assert drawn == pytest.approx(4 * 9 + 4)
    for line in axis.lines:
        for x, y in np.stack([line.get_xdata(), line.get_ydata()], 1).tolist():
            assert x in (4.5, 5.5, -0.5, 9.5) or y in (4.5, 5.5, -0.5, 9.5)


def test_many_values_are_put_into_bins() -> None:
    why = make_why(1)
    rows = np.arange(3000)
    wide = pd.DataFrame({"a": rows % 90, "b": rows % 70, "an operand is 5": rows % 2})
    big = replace(why["L1N0"], values=wide, activation=torch.from_numpy(rows / 1000))
    frame = activation_map(replace(why, neurons=(big,)), "L1N0").frame
    assert frame["n"].sum() == 3000
    assert len(frame) <= 18 * 18
    weighted = (frame["activation"] * frame["n"]).sum() / 3000
    assert weighted == pytest.approx(rows.mean() / 1000)


def test_a_map_refuses_what_is_no_number_and_no_flag() -> None:
    why = make_why(1)
    with pytest.raises(LensSkillsError, match=r"'word' is no number .* There are: a, b"):
        activation_map(why, "L1N0", "a", "word")
    with pytest.raises(LensSkillsError, match="'a' is a number, which holds nowhere"):
        activation_map(why, "L1N0", feature="a")
    with pytest.raises(LensSkillsError, match="'L9N9' was not explained"):
        activation_map(why, "L9N9")


def test_a_cell_without_an_example_is_hatched_and_said() -> None:
    """A low activation is a colour; where nothing was measured there is none."""
    drawing = activation_map(make_half(), "L1N0")
    (axis, _) = drawing.figure.axes
    grid = np.ma.masked_invalid(np.asarray(axis.collections[0].get_array(), dtype=float))
    assert grid.mask.sum() == 45
    assert grid.count() == len(drawing.frame) == 55
    assert axis.patch.get_hatch()
    assert labels(axis) == ["no example"]
    assert axis.collections[0].get_clim()[0] < 0 < axis.collections[0].get_clim()[1]
    whole = activation_map(make_why(1), "L1N0").figure.axes[0]
    assert labels(whole) == []
    assert whole.patch.get_hatch() is None


def test_a_matrix_shows_every_cell_and_the_best() -> None:
    why = make_why()
    drawing = feature_matrix(why)
    frame = drawing.frame
    assert len(frame) == 4 * 3
    wanted = why.frame().set_index(["name", "feature"])["variance_explained"]
    for cell in frame.to_dict("records"):
        assert cell["variance_explained"] == wanted[cell["name"], cell["feature"]]
    axis = drawing.figure.axes[0]
    features = [text.get_text() for text in axis.get_yticklabels()]
    assert features[-1] == "the result is odd"  # what defines the task stands last
    outlined = [patch for patch in axis.patches if not patch.get_hatch()]
    hatched = [patch for patch in axis.patches if patch.get_hatch()]
    assert (len(outlined), len(hatched)) == (3, 3)
    for patch, one in zip(outlined, why.neurons, strict=True):
        assert isinstance(patch, Rectangle)
        assert features[int(patch.get_y())] == one.rows[0]["feature"]
    assert "within the null" in words(drawing)


def test_a_matrix_without_a_null_says_so() -> None:
    drawing = feature_matrix(make_why(1, p=None))
    assert "No null was drawn" in words(drawing)
    assert len(drawing.figure.axes[0].patches) == 1
    silent = replace(make_one("L1N0"), rows=())
    with pytest.raises(LensSkillsError, match="never active"):
        feature_matrix(replace(make_why(), neurons=(silent,)))


def make_half() -> Explanations:
    """Problems whose first operand is the larger: half of the pairs do not occur."""
    why, there = make_why(1), A >= B
    one = replace(
        why["L1N0"],
        values=VALUES[there].reset_index(drop=True),
        activation=why["L1N0"].activation[torch.from_numpy(there)] - 1.5,
    )
    return replace(why, neurons=(one,))


def make_described() -> Explanations:
    """A sentence that is above both nulls, one that is not, one without a null, and none."""

    def null(of: str, mean: float) -> ShuffledScores:
        return ShuffledScores(
            of, torch.linspace(mean - 0.1, mean + 0.1, 41), mean, mean + 0.09, 0.02
        )

    both = null("other neurons' sentences", 0.52), null("other neurons", 0.5)
    told = [
        Description("Fires where an operand is 5.", "highest", 0.97, 0.91, 0.99, 20, 30, 0, *both,
                    p=0.02, q=0.04),
        Description("Fires where a is 3 or more.", "lowest", 0.6, 0.5, 0.69, 25, 25, 0, *both,
                    p=0.3, q=0.3),
        Description("Fires where there is a five.", "highest", 0.8, 0.7, 0.88, 10, 40),
        Description("", "highest", note="no feature in the bank fits"),
    ]  # fmt: skip
    why = make_why(4)
    answers = pd.DataFrame({"id": [str(k) for k in range(50)]})
    neurons = tuple(
        replace(one, described=own) for one, own in zip(why.neurons, told, strict=True)
    )  # fmt: skip
    return replace(why, neurons=neurons, answers=answers)


def test_sentences_stand_beside_their_nulls() -> None:
    why = make_described()
    drawing = description_scores(why)
    assert drawing.frame["name"].tolist() == ["L1N0", "L1N1", "L1N2"]
    axis = drawing.figure.axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [0.97, 0.6, 0.8]
    filled = [dot.get_markerfacecolor() == dot.get_color() for dot in dots]
    assert filled == [True, False, False]
    assert len(axis.collections) == 4  # two nulls of each of the two that have them
    shown = " ".join([words(drawing), *(text.get_text() for text in axis.texts)])
    for part in (
        "1 of 3 sentences are above",
        "Fires where an operand is 5.",
        "1 without a sentence.",
    ):
        assert part in shown
    assert [one.kind for one in figures.of(why)] == ["feature_matrix", "description_scores"]
    with pytest.raises(LensSkillsError, match="describer='features'"):
        description_scores(make_why())


def make_shortcut(name: str, word: str, difference: ControlledEffect | None) -> Shortcut:
    effect = ControlledEffect(-0.1, -0.2, 0.0, -0.18, -0.02, 0.01, 0.02, 0.03)
    tied = difference is not None
    return Shortcut(
        name=name,
        word=word,
        why="",
        r=0.5,
        feature="an operand is 5" if tied else "",
        condition="an operand is 5" if tied else "",
        explained=0.5 if tied else None,
        p=0.01 if tied else None,
        q=0.02 if tied else None,
        task_feature="",
        task_feature_explained=None,
        raises=True,
        n_present=20,
        n_absent=80,
        n_right=3,
        n_wrong=17,
        n_right_moved=2,
        n_wrong_moved=15,
        difference=difference,
        effect=effect,
        effect_present=-0.5 if tied else None,
        effect_absent=0.01 if tied else None,
        n_controls=100,
    )


def make_shortcuts() -> Shortcuts:
    wide = ControlledEffect(-0.51, -0.7, -0.3, -0.66, -0.36, 0.01, 0.02, 0.05)
    neurons = (make_shortcut("L1N0", SHORTCUT, wide), make_shortcut("L1N1", UNEXPLAINED, None))
    return Shortcuts(
        neurons, None, torch.zeros(2, 1), torch.zeros(2, 1), ("e",), "confidence", "confidence",
        "probability", "mean ablation", (), {"model": "tiny", "task": "sums"},
    )  # fmt: skip


def test_effects_stand_as_the_report_holds_them() -> None:
    found = make_shortcuts()
    drawing = shortcut_effects(found)
    axis = drawing.figure.axes[0]
    drawn = {tuple(np.asarray(line.get_xdata()).tolist()) for line in axis.lines}
    assert {(-0.7, -0.3), (-0.51,), (-0.5,), (0.01,), (-0.2, 0.0), (-0.1,)} <= drawn
    assert labels(axis) == ["with it", "without", "difference", "of a shortcut"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["L1N0", "L1N1"]
    told = [text.get_text() for text in axis.texts]
    assert told == ["an operand is 5: shortcut", UNEXPLAINED]
    assert "1 of 2 neurons is a shortcut" in words(drawing)
    assert "(probability)" in axis.get_xlabel()
    assert drawing.frame["name"].tolist() == ["L1N0", "L1N1"]
    with pytest.raises(LensSkillsError, match="none was tested"):
        shortcut_effects(replace(found, neurons=(), notes=("nothing held up",)))


@pytest.mark.parametrize(
    "name", ["x" * 5_000, "a line\nand \N{SLIGHTLY SMILING FACE}", "$\\frac{1}{0}$"]
)
def test_any_name_is_drawn(name: str) -> None:
    """In moderate time, at a size that can be printed, and without a warning."""
    why = make_why(2)
    neurons = [
        replace(
            one,
            rows=tuple(
                {**row, "feature": name} if row["feature"] == "an operand is 5" else row
                for row in one.rows
            ),
            values=one.values.rename(columns={"an operand is 5": name}),
        )
        for one in why.neurons
    ]
    named = replace(why, neurons=tuple(neurons), provenance={"model": name, "task": name})
    for drawing in (feature_matrix(named), activation_map(named, "L1N0")):
        assert drawing.figure.get_figheight() < 12
        assert name in drawing.about["lines"][1]
