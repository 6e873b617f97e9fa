"""A picture is a function of its table: drawn again from its files, it has the same bytes."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest

from lens_skills.errors import LensSkillsError
from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.drawing import DRAWN
from lens_skills.plotting.figure_table import columns_of, plain_table, read_table, write_table
from lens_skills.plotting.style import MM, STYLES
from tests.plotting.kinds import KINDS
from tests.plotting.test_drawing import overlaps

PICTURES = ("pdf", "svg", "png")


@pytest.fixture(scope="module", params=KINDS)
def drawing(request: pytest.FixtureRequest) -> Drawing:
    return KINDS[request.param]()


def test_every_kind_is_tried() -> None:
    assert set(KINDS) == set(DRAWN)
    assert set(DRAWN) <= set(vars(figures))


def test_a_figure_drawn_from_its_files_has_the_same_bytes(drawing: Drawing, tmp_path: Path) -> None:
    first = drawing.styled("paper", width="page", panel="b")
    first.save(tmp_path / "one")
    again = figures.redraw(tmp_path / "one" / f"{first.name}.json")
    again.save(tmp_path / "two")
    pd.testing.assert_frame_equal(again.frame, first.frame)
    for kind in (*PICTURES, "csv", "json"):
        one, two = (tmp_path / n / f"{first.name}.{kind}" for n in ("one", "two"))
        assert one.read_bytes() == two.read_bytes(), kind


def test_a_style_is_another_drawing_of_the_same_table(drawing: Drawing) -> None:
    """Nothing is cut off or covered; a paper's figure has no title, and its caption has it."""
    for style, width in zip(STYLES, ("column", "page", "column"), strict=True):
        styled = drawing.styled(style, width=width, panel="a")
        assert overlaps(styled.figure) == [], style
        written = [text.get_text() for text in styled.figure.texts]
        assert any(re.match(r"a\b", text) for text in written)
        title = drawing.about["title"]
        assert (title.split()[0] in " ".join(written)) == (style != "paper")
        assert title in styled.caption
        wide, high = styled.figure.get_size_inches()
        if style == "talk":
            assert wide / high <= 16 / 9 + 1e-9
        else:
            assert wide / MM == pytest.approx(85 if width == "column" else 178)


def test_a_picture_has_the_pixels_of_its_style(tmp_path: Path) -> None:
    for style, pixels in (("paper", 85 / 25.4 * 300), ("talk", 1920)):
        path = KINDS["r_distribution"]().styled(style).savefig(tmp_path / "a.png")
        assert matplotlib.image.imread(path).shape[1] == pytest.approx(pixels, abs=1)


def test_fonts_are_embedded_as_truetype(tmp_path: Path) -> None:
    content = KINDS["r_distribution"]().savefig(tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_a_letter_that_no_font_has_is_no_error(tmp_path: Path) -> None:
    """A box, and no warning; the caption and the files keep the letter."""
    drawing = figures.attrition({"neurons": 9, "confirmed": 1}, metric="複数形 \u05d0 🙂")
    assert "複数形" in drawing.caption
    again = figures.redraw(drawing.save(tmp_path).with_suffix(".json"))
    assert again.about == drawing.about
    for style in STYLES:
        assert drawing.styled(style).savefig(tmp_path / "a.png").stat().st_size > 0


def test_neither_a_display_nor_latex_is_asked_for(tmp_path: Path) -> None:
    """Whatever a user's own settings ask of Matplotlib."""
    with matplotlib.rc_context({"text.usetex": True, "font.family": "no such font"}):
        path = KINDS["r_distribution"]().save(tmp_path)
    assert path.stat().st_size > 0
    assert path.read_bytes() == KINDS["r_distribution"]().savefig(tmp_path / "b.pdf").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"style": "poster"}, "no style 'poster'.*'page'.*'paper'.*'talk'"),
        ({"width": 3.4}, "millimetres from 40"),
        ({"width": "wide"}, "'column'"),
        ({"width": True}, "'column'"),
        ({"panel": "panel a"}, "a letter"),
    ],
)
def test_no_such_style(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LensSkillsError, match=words):
        KINDS["r_distribution"]().styled(**options)


HOSTILE = pd.DataFrame(
    {
        "text": ["NA", "nan", "None", "", 'a "b", c\nd\re', " a ", "1", "True"],
        "number": [0.1 + 0.2, 1e-300, -0.0, float("inf"), None, 1 / 3, 2**60 + 0.0, 5],
        "whole": [2**60, *range(7)],
        "flag": [True, None, False, True, True, True, None, False],
        "gappy": [1, None, 3, 4, 5, 6, 7, 8],
        "small": pd.array([0.1] * 8, dtype="float32"),
        "nothing": [None] * 8,
    }
)


def test_a_table_comes_back_to_the_last_bit() -> None:
    plain = plain_table(HOSTILE)
    kinds = columns_of(plain)
    assert list(kinds.values()) == [
        "text", "number", "whole", "flag", "number", "number", "number",
    ]  # fmt: skip
    again = read_table(write_table(plain), kinds)
    pd.testing.assert_frame_equal(again, plain, check_exact=True)
    pd.testing.assert_frame_equal(plain_table(again), again, check_exact=True)


def test_what_cannot_be_redrawn_is_said(tmp_path: Path) -> None:
    drawing = KINDS["r_distribution"]()
    path = drawing.save(tmp_path).with_suffix(".json")
    saved = json.loads(path.read_text())
    csv = path.with_suffix(".csv").read_text()
    for change, words in (
        ({"kind": "pie"}, "'pie'.*does not draw.*r_distribution"),
        ({"format": 99}, "format 99"),
        ({"columns": {"a": "text"}}, "holds the columns what"),
        ({"about": 3}, "does not say what figure"),
        ({"about": {}}, "is damaged"),
    ):
        path.write_text(json.dumps(saved | change))
        with pytest.raises(LensSkillsError, match=words):
            figures.redraw(path)
    path.write_text("[")
    with pytest.raises(LensSkillsError, match="does not say what figure"):
        figures.redraw(path)
    path.write_text(json.dumps(saved))
    path.with_suffix(".csv").write_text(csv.replace(",-", ",x"))
    with pytest.raises(LensSkillsError, match="is no number"):
        figures.redraw(path.with_suffix(""))
    path.with_suffix(".csv").unlink()
    with pytest.raises(LensSkillsError, match=r"\.csv is missing"):
        figures.redraw(path)
