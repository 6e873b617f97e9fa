"""A figure that is laid out is drawn once per file, and a PDF has the glyphs and no more."""

from typing import Any

import pytest
from fontTools.subset import Options
from matplotlib.figure import Figure

from lens_skills import figures
from lens_skills.plotting.drawing import encoded


@pytest.fixture(scope="module")
def drawing() -> Any:
    found = figures.attrition({"neurons": 46_080, "associated": 210, "confirmed": 4})
    found.figure  # noqa: B018  laid out here
    return found


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_it_is_drawn_once(drawing: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = Figure.draw

    def counted(self: Figure, renderer: Any) -> Any:
        drawn.append(renderer)
        return draw(self, renderer)

    monkeypatch.setattr(Figure, "draw", counted)
    assert encoded(drawing, kind)
    assert len(drawn) == 1


def test_fonts_are_embedded_without_what_places_glyphs(
    drawing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[list[str]] = []
    make = Options.__init__

    def kept(self: Options, **options: Any) -> None:
        make(self, **options)
        dropped.append(list(self.drop_tables))

    before = Options().drop_tables
    monkeypatch.setattr(Options, "__init__", kept)
    bare = encoded(drawing, "pdf")
    assert dropped
    assert all({"GSUB", "GPOS", "GDEF"} <= set(tables) for tables in dropped)
    assert Options().drop_tables == before
    assert bare.count(b"/FontFile2") >= 1
