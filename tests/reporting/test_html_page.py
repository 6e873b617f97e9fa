"""The page of a report as text: whole, the same twice, nothing in it run, all of it read back."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import unquote

import numpy as np
import pytest

from lens_skills.reporting.document import Document, EveryNeuron, Fact, Picture, Step
from lens_skills.reporting.html_page import SCRIPTS, render
from lens_skills.reporting.page_data import MOST_NUMBERS, seen
from tests.browser import documents

VOID = {"meta", "link", "img", "input", "br", "rect"}


class Reader(HTMLParser):
    """Checks that every element is closed, and keeps scripts, identifiers, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.attributes = [], [], [], []
        self.scripts, self.text = {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name) for name, _ in attributes]
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        if tag not in VOID:
            self.open.append(named.get("id", "main") if tag == "script" else tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name) for name, _ in attributes]

    def handle_endtag(self, tag):
        last = self.open.pop()
        assert tag == last or tag == "script"

    def handle_data(self, data):
        if self.open and self.cdata_elem == "script":
            self.scripts[self.open[-1]] = self.scripts.get(self.open[-1], "") + data
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def ordinary():
    return render(documents.ordinary())


@pytest.fixture(scope="module")
def hostile():
    return render(documents.hostile())


def data(page):
    return json.loads(Reader(page).scripts["data"])


def test_the_same_document_gives_the_same_bytes(ordinary):
    assert render(documents.ordinary()) == ordinary
    ordinary.encode("utf-8")


@pytest.mark.parametrize("name", ["ordinary", "hostile", "nothing"])
def test_every_element_is_closed_and_every_identifier_unique(name):
    read = Reader(render(getattr(documents, name)()))
    assert read.open == []
    assert len(set(read.ids)) == len(read.ids)
    for link in read.links:
        assert link[0] == "#"
        assert link[1:] in read.ids


def test_the_policy_allows_this_script_and_no_other(ordinary):
    script = Reader(ordinary).scripts["main"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', ordinary)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert script.count("innerHTML") == 0
    assert script.count("eval(") == 0


def test_nothing_is_fetched(ordinary):
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#|\.)\w+:""", ordinary)
    assert set(re.findall(r"https?://[^\s\"'<&]*", ordinary)) == {"http://www.w3.org/2000/svg"}


def test_hostile_text_is_text(hostile):
    read = Reader(hostile)
    assert read.open == []
    assert set(read.scripts) == {"main", "data", "about"}
    assert not [name for _, name in read.attributes if name.startswith("on")]
    assert {tag for tag, _ in read.attributes}.isdisjoint({"b", "iframe", "object"})
    for text in documents.NASTY:
        assert seen(text) in read.text
    assert not re.search("[\x00\x07\x1b\u202e\u2028\u2029\ud800]", hostile)
    hostile.encode("utf-8")


def test_texts_of_the_data_come_back(hostile):
    found = data(hostile)
    page = found["neurons"][0]
    assert page["explanation"] == [seen(text) for text in documents.NASTY]
    tokens = [found["tokens"][k] for k in page["quantiles"][0][4][0][0]]
    assert tokens == [seen(text) for text in documents.NASTY]
    assert found["every"]["metrics"] == ["__proto__", documents.MARKUP]
    assert json.loads(Reader(hostile).scripts["about"]) == {"__proto__": documents.MARKUP}
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', hostile):
        assert not set(block) & set("<>&")
        assert block.isascii()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x00", "⟨U+0000⟩"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("tab\tline\n", "tab\tline\n"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("नमस्ते עברית", "नमस्ते עברית"),
    ],
)
def test_what_is_not_seen_is_written_out(text, written):
    assert seen(text) == written
    assert seen((text, {text: [text]})) == (written, {written: [written]})


def test_rows_and_pages_come_back(ordinary):
    document, found = documents.ordinary(), data(ordinary)
    assert [column[0] for column in found["columns"]] == [c.key for c in document.columns]
    row = document.rows[3]
    assert found["rows"][3][:4] == [
        row["neuron"],
        row["layer"],
        row["metric"],
        [row["r"], row["r_low"], row["r_high"]],
    ]
    page = document.neurons[2]
    kept = found["neurons"][2]
    assert kept["name"] == page.name
    assert kept["controls"]["effects"] == list(page.controls.effects)
    for quantile, (name, low, high, n, rows) in zip(page.quantiles, kept["quantiles"], strict=True):
        assert (name, n) == (quantile.name, quantile.n_examples)
        np.testing.assert_allclose([low, high], [quantile.low, quantile.high], rtol=1e-3)
        for one, (tokens, values, read, activation, group, labels) in zip(
            quantile.rows, rows, strict=True
        ):
            assert tuple(found["tokens"][k] for k in tokens) == one.tokens
            np.testing.assert_allclose(values, one.values, rtol=1e-3)
            assert (read, group, tuple(labels)) == (one.read, one.group, one.labels)
            assert activation == pytest.approx(one.activation, rel=1e-3)
    graph = document.circuits[0]
    (kept,) = found["circuits"]
    for edge, line in zip(graph.edges, kept["edges"], strict=True):
        assert (graph.nodes[line[0]].id, graph.nodes[line[1]].id) == (edge.sender, edge.receiver)
        assert line[2:5] == [edge.channel, edge.target, edge.verdict]
        assert line[5] == pytest.approx(edge.effect, rel=1e-3)


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_correlations_of_all_neurons_come_back(ordinary):
    every, kept = documents.ordinary().every, data(ordinary)["every"]
    assert (kept["wide"], kept["layer"], kept["index"]) == (100, None, None)
    for name, text in zip(kept["metrics"], kept["r"], strict=True):
        steps = unpacked(text, "<i2").astype(float)
        steps[steps == -32768] = np.nan
        np.testing.assert_allclose(steps / 10_000, every.r[name], atol=5.1e-5)
    assert kept["total"] == 400
    assert kept["threshold"] == [0.213, None]


def test_of_a_model_too_large_the_strongest_are_kept():
    n = MOST_NUMBERS // 2 + 1000
    r = np.linspace(-1, 1, n)
    every = EveryNeuron(
        tuple((np.arange(n) // 1000).tolist()),
        tuple((np.arange(n) % 1000).tolist()),
        {"a": tuple(r.tolist()), "b": tuple((r * np.nan).tolist())},
        {},
    )
    page = render(Document("Large", ("Something.",), (), (), every=every))
    kept = data(page)["every"]
    left = unpacked(kept["r"][0], "<i2") / 10_000
    assert kept["total"] == n
    assert len(left) == MOST_NUMBERS // 2
    assert (kept["wide"], kept["layer"], kept["index"]) == (1000, None, None)
    at = np.unpackbits(unpacked(kept["held"], "<u1")).nonzero()[0]
    np.testing.assert_allclose(left, r[at], atol=5.1e-5)
    assert np.abs(left).min() > np.sort(np.abs(r))[990] - 1e-4


def test_numbers_that_are_not_finite_are_not_measured():
    document = documents.ordinary()
    row = {**document.rows[0], "r": float("nan"), "effect": float("inf"), "q": np.float32(0.5)}
    page = render(replace(document, rows=(row,)))
    kept = data(page)["rows"][0]
    assert kept[3][0] is None
    assert kept[4][0] is None
    assert kept[5] == 0.5


def test_a_picture_is_whole_and_apart():
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg width="10pt" viewBox="0 0 12 34.4">\n'
        '<metadata>x</metadata><!-- <script> -->\n<text>50% #1 & "it\'s"</text>\n</svg>'
    )
    picture = Picture("figure-a", "A", svg, 'says "a" & <b>')
    page = render(Document("Pictures", ("One.",), (), (), pictures=(picture,)))
    source = re.search(r'<img class="sheet" src="([^"]*)"', page)[1]
    assert 'width="12" height="34"' in page
    shown = unquote(unescape(source)).removeprefix("data:image/svg+xml,")
    assert "metadata" not in shown
    assert "script" not in shown
    assert '50% #1 & "it\'s"' in shown
    assert "says &#34;a&#34; &amp; &lt;b&gt;" in page


def test_a_step_is_beside_the_one_before_it():
    steps = (Step("all", 400), Step("some", 100), Step("none", 0), Step("of none", 0))
    text = Reader(render(Document("Steps", ("x",), (), (), attrition=steps))).text
    assert "25 %" in text
    assert re.search(r"none\s*0\s*0 %", text)
    assert not re.search(r"of none\s*0\s*\d* %", text)


def test_sections_are_there_only_with_something_in_them():
    ids = Reader(render(Document("Empty", ("Nothing was found.",), (), ()))).ids
    assert set(ids) == {"tools", "main", "neuron-page", "summary", "found", "found-head", "data"}
    full = Reader(render(documents.ordinary())).ids
    for section in (
        "caveats",
        "asked",
        "attrition",
        "neurons",
        "circuits",
        "figures",
        "cards",
        "missing",
    ):
        assert section in full


def test_files_are_of_readable_length():
    names = ["page.css", "page.html.j2", *(f"page_{part}.js" for part in SCRIPTS)]
    for name in names:
        text = files("lens_skills.reporting").joinpath(name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 600


def test_a_large_report_stays_small():
    assert len(render(documents.large()).encode()) <= 5_000_000


def test_a_command_is_code():
    fact = Fact("Regulators", "lens-skills regulators RUN", code=True)
    page = render(Document("x", ("y",), (), (), missing=(fact,)))
    assert "<code>lens-skills regulators RUN</code>" in page


def test_a_picture_keeps_what_is_seen_of_it():
    svg = (
        '<svg viewBox="0 0 9 9"><g transform="translate(1.23456 7) scale(0.015625)">'
        '<path d="M 12.345678 -0.001234L3 4.5"/></g><use x="1.9999"/></svg>'
    )
    page = render(Document("P", ("x",), (), (), pictures=(Picture("figure-a", "A", svg, "a"),)))
    shown = unquote(unescape(re.search(r'class="sheet" src="([^"]*)"', page)[1]))
    for kept in ("translate(1.23 7) scale(0.015625)", "'M 12.34 -0.00L3 4.5'", "x='1.99'"):
        assert kept in shown


def test_correlations_with_no_metric_are_none():
    every = EveryNeuron((0, 0), (0, 1), {}, {})
    page = render(Document("None", ("Nothing.",), (), (), every=every))
    assert data(page)["every"] is None
    assert "neurons" not in Reader(page).ids
