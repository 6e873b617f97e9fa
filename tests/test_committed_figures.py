"""The committed pictures are those of the committed tables, and the gallery shows every kind."""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lens_skills.plotting.drawing import DRAWN

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

gallery_page: Any = import_module("gallery_page")
redraw_figures: Any = import_module("redraw_figures")

PINNED = f"matplotlib=={version('matplotlib')}" in (ROOT / "constraints.txt").read_text()
COMMITTED = redraw_figures.committed()


@pytest.mark.skipif(not PINNED, reason="pictures have the bytes of the pinned matplotlib")
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_picture_has_the_bytes_of_its_table(path: Path) -> None:
    for picture, content in redraw_figures.redrawn(path):
        assert picture.read_bytes() == content, f"{picture.name} is stale: make figures"


def test_a_changed_table_is_seen(tmp_path: Path) -> None:
    path = ROOT / "figures" / "agreement" / "layer_profile-label_plural.json"
    for suffix in (".json", ".csv", ".png"):
        (tmp_path / f"a{suffix}").write_bytes(path.with_suffix(suffix).read_bytes())
    table = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(table.replace(",0.", ",0.1", 1))
    ((picture, content),) = redraw_figures.redrawn(tmp_path / "a.json")
    assert picture.read_bytes() != content


def test_every_picture_has_its_table() -> None:
    """So that it can be drawn again, and its numbers read."""
    pictures = [
        path for kind in ("png", "svg", "pdf") for path in (ROOT / "figures").rglob(f"*.{kind}")
    ]
    without = [
        str(path.relative_to(ROOT))
        for path in pictures
        if path.with_suffix(".json") not in COMMITTED and "demo" not in path.parts
    ]
    assert without == []


def test_the_gallery_shows_every_kind_once() -> None:
    asked = [kind for section in gallery_page.QUESTIONS.values() for kind in section]
    assert sorted(asked) == sorted(set(asked)) == sorted(DRAWN)
    assert set(gallery_page.shown()) == set(DRAWN)
    for picture in gallery_page.shown().values():
        assert picture.is_file()
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for kind in DRAWN:
        assert f"`figures.{kind}(" in page, kind
