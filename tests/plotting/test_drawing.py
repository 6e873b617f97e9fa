"""What holds for every figure: the same bytes each time, its numbers, a stamp where one is due."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing, figures, save
from lens_skills.plotting.style import style
from lens_skills.scoring import Scores
from tests.plotting.conftest import make_scores

Draw = Callable[[Scores, float], Drawing]
ROOT = Path(__file__).resolve().parents[2]


def test_the_same_result_gives_the_same_bytes(draw: Draw, scores: Scores, tmp_path: Path) -> None:
    """Also under a user's own theme, and when one drawing is saved twice."""
    first = draw(scores, 3.4)
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "axes.grid": True}):
        second = draw(scores, 3.4)
        themed = second.save(tmp_path / "themed")
    for suffix, date in {".pdf": b"CreationDate", ".svg": b"<dc:date>"}.items():
        paths = [first.savefig(tmp_path / f"{n}{suffix}") for n in range(2)]
        contents = {path.read_bytes() for path in [*paths, themed.with_suffix(suffix)]}
        assert len(contents) == 1, suffix
        assert date not in contents.pop()


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """Whatever Python hashes strings to."""
    code = (
        "import sys; from lens_skills import figures;"
        "figures.attrition({'neurons': 99, 'confirmed': 3}).save(sys.argv[1])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=120,
        )
    for suffix in ("pdf", "svg", "csv"):
        one, other = ((tmp_path / seed / f"attrition.{suffix}").read_bytes() for seed in "12")
        assert one == other, suffix


def test_the_csv_holds_the_frame(draw: Draw, scores: Scores, tmp_path: Path) -> None:
    drawing = draw(scores, 3.4)
    # Read as text and parsed by float(): equal to the last bit.
    read = pd.read_csv(drawing.savefig(tmp_path / "figure.csv"), dtype=str)
    assert list(read) == list(drawing.frame)
    for column in drawing.frame.select_dtypes("number"):
        np.testing.assert_array_equal(read[column].map(float), drawing.frame[column])


def test_save_writes_every_kind_and_the_numbers(tmp_path: Path) -> None:
    drawing = figures.attrition({"neurons": 9}, metric="a/b c")
    path = drawing.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "attrition-a_b_c-0af99a60.pdf"
    names = {f"attrition-a_b_c-0af99a60.{kind}" for kind in ("pdf", "svg", "png", "csv", "json")}
    assert {file.name for file in path.parent.iterdir()} == names
    assert path.with_suffix(".csv").read_text() == "gate,count,share\nneurons,9,1.0\n"


def test_exploratory_is_stamped_and_only_then(
    draw: Draw, scores: Scores, exploratory: Scores, tmp_path: Path
) -> None:
    for result in (scores, exploratory):
        svg = draw(result, 3.4).savefig(tmp_path / "figure.svg").read_text()
        assert ('id="exploratory"' in svg) == result.exploratory
        assert ("EXPLORATORY" in svg) == result.exploratory


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        ("plain", 3.4),
        ("plain", 7.0),
        ("no nulls", 7.0),
        ("two positions", 3.4),
        ("long name, exploratory", 3.4),
    ],
)
def test_no_text_is_cut_off_or_lies_on_another(draw: Draw, kind: str, width: float) -> None:
    positions = {"two positions": ("span(keys to the cabinets, last)", "last")}.get(kind, ("last",))
    scores = make_scores(nulls=kind != "no nulls", positions=positions, seed=len(kind))
    if kind.startswith("long name"):
        scores = replace(scores, exploratory=True)
        scores.provenance["model"] = "a-folder-with-a-name-of-no-mean-length-that-nobody-shortened"
    drawing = draw(scores, width)
    assert drawing.figure.get_figwidth() == width
    assert overlaps(drawing.figure) == []


def overlaps(figure: Figure) -> list[str]:
    """Texts that leave the figure, and pairs that cover each other (the watermark apart)."""
    with style():  # as it is saved: the number of ticks hangs on the size of their labels
        figure.draw_without_rendering()
    unseen = unseen_tick_labels(figure)
    boxes: list[tuple[str, Bbox]] = []
    for text in figure.findobj(Text):
        shown = text.get_visible() and text.get_text().strip() and text not in unseen
        if shown and text.get_gid() != "exploratory":
            # The box of the letters alone, without an arrow that belongs to an annotation.
            boxes.append((text.get_text(), Text.get_window_extent(text)))
    found = [
        f"{name!r} is cut off"
        for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]
    for (name, box), (other, beside) in itertools.combinations(boxes, 2):
        shared = Bbox.intersection(box, beside)
        # Boxes hold the leading of a line too: a pixel or two at 100 dpi are white.
        if shared is not None and min(shared.width, shared.height) > 1.5:
            found.append(f"{name!r} lies on {other!r}")
    return found


def unseen_tick_labels(figure: Figure) -> set[Text]:
    """Labels of ticks beyond the ends of their axis: they exist, and are not drawn."""
    found: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - slack <= tick.get_loc() <= high + slack:
                    found |= {tick.label1, tick.label2}
    return found


def test_the_overlap_probe_sees_an_overlap() -> None:
    figure = Figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.5, "two")
    figure.text(0.9, 0.1, "far outside")
    assert overlaps(figure) == ["'far outside' is cut off", "'one' lies on 'two'"]


def test_savefig_writes_the_kind_of_the_suffix(tmp_path: Path) -> None:
    drawing = figures.attrition({"neurons": 9})
    starts = {"a.pdf": b"%PDF", "b.png": b"\x89PNG", "c.svg": b"<?xml", "d.csv": b"gate,count"}
    for name, start in starts.items():
        assert drawing.savefig(tmp_path / "x" / name).read_bytes().startswith(start)
    for name in ("figure", "figure.docx"):
        with pytest.raises(LensSkillsError, match=r"what kind of file.*\.pdf.*\.svg"):
            drawing.savefig(tmp_path / name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    drawing = figures.attrition({"neurons": 9})
    for write in (drawing.save, lambda folder: drawing.savefig(folder / "a.pdf")):
        with pytest.raises(LensSkillsError, match=r"taken.* cannot be written"):
            write(tmp_path / "taken")
    with pytest.raises(LensSkillsError, match="cannot be written"):
        save(drawing.figure, tmp_path / "taken" / "name", drawing.frame)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_drawing_shows_itself_in_a_notebook() -> None:
    assert figures.attrition({"neurons": 9})._repr_png_().startswith(b"\x89PNG")


def test_nothing_global_changes() -> None:
    """No pyplot, no theme, no backend: whoever draws their own figures sees no difference."""
    code = """
import sys, tempfile, matplotlib
plain = [name for name in matplotlib.rcParams if name != "backend"]  # asking imports pyplot
before = {name: matplotlib.rcParams[name] for name in plain}
from lens_skills import figures
drawing = figures.attrition({"neurons": 9})
drawing.save(tempfile.mkdtemp()); drawing._repr_png_()
assert {name: matplotlib.rcParams[name] for name in plain} == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    """Not the start of a formula."""
    drawing = figures.attrition({"neurons": 9}, metric="p($) > \\q($)")
    assert "p($) &gt; \\q($)" in drawing.savefig(tmp_path / "a.svg").read_text()
