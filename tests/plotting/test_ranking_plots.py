"""The method comparison: what is drawn is what the comparison holds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing
from lens_skills.plotting.ranking_plots import (
    hundredths,
    leaderboard,
    method_comparison,
    method_words,
)
from lens_skills.plotting.style import OPPOSES, SUPPORTS
from lens_skills.ranking.causal_hits import EffectTests
from lens_skills.ranking.method_comparison import MethodComparison, MethodRow
from tests.plotting.probes import check_repeats, labels, words
from tests.plotting.test_drawing import overlaps

METHODS = ("taylor", "pearson", "probeless", "predictivity")
WORDS = {
    "taylor": ["supports"] * 3 + ["opposes"] * 2 + ["-"] * 3,
    "pearson": ["supports"] * 2 + ["-"] * 6,
    "probeless": ["-"] * 8,
    "predictivity": ["opposes"] + ["-"] * 4,
    "rotated basis": ["-"] * 8,
}


def make_tests(said: list[str], seed: int) -> EffectTests:
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(len(said), generator=generator, dtype=torch.float64) - 0.5
    names = tuple(f"L{seed}N{place}" for place in range(len(said)))
    p = torch.full((len(said),), 0.1, dtype=torch.float64)
    return EffectTests(
        names, (seed,) * len(said), size, size - 0.1, size + 0.1, p, p, p, tuple(said)
    )


def make_comparison() -> MethodComparison:
    rows = [
        MethodRow((name,), make_tests(said, place), 1.5, 0.3 if name in METHODS else None, 0.002)
        for place, (name, said) in enumerate(WORDS.items())
    ]
    rows.append(MethodRow(("random",), make_tests(["supports"] + ["-"] * 21, 9), 0.0, None))
    generator = torch.Generator().manual_seed(0)
    half = torch.rand(4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    ranks = (half + half.T) / 2
    ranks[0, 1] = ranks[1, 0] = -0.001
    return MethodComparison(
        rows=tuple(rows),
        k=8,
        metric="label:plural",
        causal_metric="logit_diff",
        unit="nats",
        do="mean ablation over agreement",
        floor=0.02,
        floor_from="1 % of the clean mean",
        deltas={"L3": 0.02, "L4": 0.05},
        n_controls=200,
        n_swept=None,
        n_hits=None,
        methods=("pearson", "taylor", "predictivity", "probeless"),
        spearman=ranks.fill_diagonal_(1),
        jaccard=(half.abs() + half.abs().T) / 2,
        common=torch.eye(6, dtype=torch.float64) * 0.002,
        left_out={"auroc": "auroc needs numbers"},
        site="mlp.hook_post",
        position="last",
        n_explore=240,
        n_examples=48,
        n_groups=40,
        effective_groups=40.0,
        provenance={"model": "tiny"},
    )


def make_board() -> pd.DataFrame:
    """Two methods and the rows to beat, on one task."""
    frame = make_comparison().frame()
    kept = frame[frame["method"].isin(["taylor", "pearson", "rotated basis", "random"])]
    return kept.assign(a=kept["share"])


def panels() -> tuple[Axes, Axes, MethodComparison]:
    comparison = make_comparison()
    left, right = method_comparison(comparison).figure.axes[:2]
    return left, right, comparison


def test_bars_are_the_shares_and_lines_their_intervals() -> None:
    left, _, comparison = panels()
    frame = comparison.frame()
    bars = [patch for patch in left.patches if patch.get_gid() != "random"]
    supports, opposes = bars[: len(frame)], bars[len(frame) :]
    for row, entry in enumerate(frame.itertuples()):
        first, second = supports[row], opposes[row]
        assert first.get_width() == pytest.approx(entry.supports / entry.n)
        assert second.get_x() == pytest.approx(first.get_width())
        assert second.get_width() == pytest.approx(entry.opposes / entry.n)
        assert first.get_width() + second.get_width() == pytest.approx(entry.share)
    assert to_hex(supports[0].get_facecolor()).upper() == SUPPORTS
    assert to_hex(opposes[0].get_facecolor()).upper() == OPPOSES
    (lines,) = left.collections
    ends = [segment[:, 0] for segment in lines.get_segments()]
    np.testing.assert_allclose(ends, frame[["low", "high"]].to_numpy(), atol=1e-12)
    (band,) = [patch for patch in left.patches if patch.get_gid() == "random"]
    box = band.get_extents().transformed(left.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx(comparison["random"].interval)
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == [method_words(name) for name in frame["method"]]
    assert "Pearson r" in names
    said = [f"{entry.hits} of {entry.n}" for entry in frame.itertuples()]
    assert [text.get_text() for text in left.texts] == said
    assert labels(left) == ["supports", "opposes", "random neurons"]
    assert said[-1] == "1 of 22"
    assert said[3] == "1 of 5"


def test_the_matrix_holds_ranks_above_and_overlap_below() -> None:
    _, right, comparison = panels()
    order = [comparison.methods.index(name) for name in METHODS]
    drawn = {mesh.get_gid(): mesh for mesh in right.collections}
    ranks, overlap = comparison.spearman.numpy(), comparison.jaccard.numpy()
    shown = {tuple(map(round, text.get_position())): text.get_text() for text in right.texts}
    for name, values, limits in (("spearman", ranks, (-1, 1)), ("jaccard", overlap, (0, 1))):
        cells = np.ma.filled(drawn[name].get_array(), np.nan).reshape(4, 4)
        assert drawn[name].get_clim() == limits
        for row in range(4):
            for column in range(4):
                mine = column > row if name == "spearman" else column < row
                wanted = values[order[row], order[column]] if mine else np.nan
                np.testing.assert_equal(cells[row, column], wanted)
                if mine:
                    assert shown[column, row] == hundredths(wanted)
    assert [text.get_text() for text in right.get_xticklabels()] == [
        method_words(name) for name in METHODS
    ]
    assert len(shown) == 12
    assert shown[1, 0] == "0"  # -0.001, without a sign
    assert "× 100" in right.get_title(loc="left")


def test_a_table_without_its_matrices_is_drawn_without_them(tmp_path: Path) -> None:
    drawing = method_comparison(make_comparison())
    about = {key: value for key, value in drawing.about.items() if key != "spearman"}
    bare = Drawing("method_comparison", drawing.frame, about, "bare")
    assert len(bare.figure.axes) == 1
    assert overlaps(bare.figure) == []


def test_the_board_shows_all_tasks_together_and_each() -> None:
    board = make_board()
    left, right = leaderboard(board, {"a": "first task"}, k=8).figure.axes
    assert [bar.get_width() for bar in left.patches if bar.get_height() < 0.6] == list(
        board["share"]
    )
    assert [text.get_text() for text in right.texts] == [hundredths(a) for a in board["a"]]
    assert [text.get_text() for text in right.get_xticklabels()] == ["first task"]
    for changed, said in (
        (board.drop(columns="low"), "no column 'low'"),
        (board[board["method"] != "random"], "no row of method 'random'"),
    ):
        with pytest.raises(LensSkillsError, match=said):
            leaderboard(changed, {"a": "first task"}, k=8)


def test_the_words_say_what_a_hit_is() -> None:
    drawing = method_comparison(make_comparison())
    said = words(drawing)
    assert "whose neurons have an effect on logit difference" in said
    assert "beyond δ = 0.02 to 0.05 nats" in said
    assert "among 200 random neurons of its layer" in said
    assert "Left out: AUROC." in said
    assert "tried on 48 examples, 40 groups" in said
    assert drawing.name == "method_comparison-label_plural"
    assert list(drawing.frame["method"]) == [row.method for row in make_comparison().rows]


def test_nothing_overlaps_and_an_exploratory_one_is_stamped(tmp_path: Path) -> None:
    drawing = method_comparison(make_comparison())
    assert overlaps(drawing.figure) == []
    check_repeats(lambda: method_comparison(make_comparison()), tmp_path)
    stamped = method_comparison(replace(make_comparison(), exploratory=True))
    assert "EXPLORATORY" in words(stamped)
    assert "EXPLORATORY" not in words(drawing)
