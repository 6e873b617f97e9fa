"""What a notebook shows: card, figure, tokens and table, whatever they hold, without a script."""

import re
import time
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import lens_skills as ls
from lens_skills.activations.components import Component, Components
from lens_skills.activations.excerpts import Excerpt
from lens_skills.data import Example
from lens_skills.plotting import figures
from lens_skills.reporting import notebook_view
from lens_skills.reporting.notebook_view import excerpt, html, main_figure
from lens_skills.results import Result
from lens_skills.tasks import Task
from tests import test_cards
from tests.plotting.conftest import make_scores
from tests.plotting.results import make_verdict
from tests.reporting.test_paper_tables import HOSTILE
from tests.test_cards import made, result_classes

TAGS = {
    "div", "pre", "img", "p", "b", "span", "bdi", "details", "summary", "table", "thead", "tbody",
    "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {"style", "title", "alt", "src", "width", "dir"}


class Read(HTMLParser):
    """A page as a browser reads it: its tags, all closed, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
            assert str(dict(attrs)["src"]).startswith("data:image/png;base64,")
        else:
            self.open.append(tag)
        for name, value in attrs:
            if name == "style":
                # No ground or ink of its own but the shades, which either theme shows through.
                colours = re.findall(r"#[0-9a-f]{3,6}|(?<!-)color:", str(value))
                assert colours == [], value

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the figure, which takes its time; other tests draw it."""
    monkeypatch.setattr(notebook_view, "main_figure", lambda shown: None)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", [kind.__name__ for kind in result_classes()])
def test_any_text_is_shown_and_not_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_cards, "LABEL", HOSTILE)
    kinds = {one.__name__: one for one in result_classes()}
    with np.errstate(invalid="ignore"):
        shown = made(kinds[kind])
        source = shown._repr_html_()
        read = Read(source)
        card = notebook_view.plain(repr(shown))
    assert "".join(card.split()) in "".join(read.text.split())  # folded once more at most
    assert "<script>" not in source
    assert "\u202e" not in source
    assert read.tags.count("details") == 1 + (kind == "Graded")
    assert len(source) < 200_000


def test_the_figure_stands_in_place() -> None:
    verdict = make_verdict(4)
    read = Read(html(verdict))
    (image,) = read.images
    assert image["alt"] == figures.effect_forest(verdict).caption
    study = test_cards._study()
    (image,) = Read(html(study)).images
    assert image["alt"] == figures.attrition(study.selection, study.verdict).caption


def test_one_figure_of_each_kind_that_has_one() -> None:
    scores = make_scores()
    drawn = {
        "Scores": (scores, "metric_heatmap"),
        "MetricScores": (scores["confidence"], "r_distribution"),
        "Verdict": (make_verdict(3), "effect_forest"),
        "Audit": (made_kind("Audit"), "effect_forest"),
        "Selection": (made_kind("Selection"), "attrition"),
        "DoseResponse": (made_kind("DoseResponse"), "dose_response"),
        "SkillMatrix": (made_kind("SkillMatrix"), "skill_matrix"),
    }
    for shown, name in drawn.values():
        drawing = main_figure(shown)
        assert drawing is not None
        assert drawing.name.startswith(name)
    assert main_figure(made_kind("Preflight")) is None


def made_kind(name: str) -> Result:
    return made(next(kind for kind in result_classes() if kind.__name__ == name))


def test_what_cannot_be_drawn_leaves_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    verdict = make_verdict(2)
    monkeypatch.setattr(notebook_view, "main_figure", broken)
    monkeypatch.setattr(notebook_view, "paper_table", broken)
    read = Read(html(verdict))
    assert read.images == []
    assert "details" not in read.tags
    assert repr(verdict).split("\n")[0] in read.text


@pytest.fixture
def row() -> Excerpt:
    tokens = ("The", " <b>", "\u202eevil", "\n", "", " is")
    return Excerpt("e", "The", -2.0, tokens, (0.0, 1.0, -2.0, 0.5, float("nan"), -1.0), read=5)


def test_tokens_are_shaded_by_their_values(row: Excerpt) -> None:
    source = excerpt(row, 2.0)
    Read(source)
    tokens = re.findall(r"<bdi( title=\"(.*?)\")?( style=\"(.*?)\")?>(.*?)</bdi>", source)
    shown = [unescape(text) for *_, text in tokens]
    assert shown == ["The", "·<b>", "\N{REPLACEMENT CHARACTER}evil", "↵", "∅", "·is"]
    values = [title for _, title, *_ in tokens]
    assert values == ["0.000", "+1.000", "−2.000", "+0.500", "–", "−1.000"]
    shades = [re.findall(r"rgba\((.*?)\)", style) for *_, style, _ in tokens]
    below, above = notebook_view._BELOW, notebook_view._ABOVE
    assert shades == [
        [], [f"{above},0.31"], [f"{below},0.62"], [f"{above},{0.62 / 4:.2f}"], [],
        [f"{below},0.31"],
    ]  # fmt: skip
    assert ["outline" in style for *_, style, _ in tokens] == [False] * 5 + [True]


def test_a_long_prompt_is_cut_around_what_was_read(row: Excerpt) -> None:
    n = 5000
    tokens, values = tuple(f"t{k}" for k in range(n)), tuple(float(k) for k in range(n))
    long = replace(row, tokens=tokens, values=values, read=2000)
    source = excerpt(long, n)
    shown = re.findall(r">(t\d+)</bdi>", source)
    assert "t2000" in shown
    assert len(shown) == notebook_view._TOKENS
    assert source.count("…") == 2
    last = excerpt(replace(long, read=None), n)
    assert "t4999" in last
    assert last.count("…") == 1


@pytest.fixture(scope="module")
def task() -> Task:
    return ls.tasks.arithmetic(digits=(1,))[:40]


@pytest.fixture(scope="module")
def examples(task: Task) -> Any:
    return ls.activating_examples(ls.load_model("arithmetic-small"), task, ["L1N5", "L2N9"])


def test_examples_of_neurons_under_one_legend(examples: Any) -> None:
    source = examples._repr_html_()
    read = Read(source)
    assert source.count("point at a token for its value") == 1
    for name in ("L1N5", "L2N9"):
        assert f"<b>{name}</b>" in source
        lowest = examples[name]["lowest"].excerpts[-1].activation
        assert f"{lowest:+.3f}".replace("-", "−") in read.text
    assert read.tags.count("bdi") > 100
    assert "L1N5" in examples["L1N5"]._repr_html_()
    assert Read(examples["L1N5"].quantiles[0].excerpts[0]._repr_html_()).tags.count("bdi") > 5


def test_tasks_and_units_show_themselves(task: Task) -> None:
    read = Read(task._repr_html_())
    assert "the first of 40 examples" in read.text
    assert read.tags.count("tr") == 11
    hostile = Task("t", [Example("a", HOSTILE + "x" * 10_000, answer=HOSTILE, labels={"<b>": 1})])
    source = hostile._repr_html_()
    assert "<script>" not in source
    assert len(Read(source).text) < 3000
    units = Components(Component(f"L1N{k}", 1, "mlp.hook_post", k, k + 1) for k in range(300))
    read = Read(units._repr_html_())
    assert "300 units" in read.text
    assert read.tags.count("tr") == 51


def test_it_is_small_and_fast(task: Task) -> None:
    scores = make_scores()
    html(scores)  # what is loaded once
    begun = time.process_time()
    source = html(scores)
    assert time.process_time() - begun < 2.0  # on a busy machine; half a second on a quiet one
    assert len(source) < 1_000_000
