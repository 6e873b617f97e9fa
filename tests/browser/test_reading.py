"""What a reader does with the page of a report: sort, filter, follow links, press keys."""

import re

import numpy as np
import pytest

from tests.browser import documents
from tests.browser.waiting import until

DOCUMENT = documents.ordinary()
NAMES = [row["neuron"] for row in DOCUMENT.rows]


def column(page, k):
    """The texts of a column of the rows that stand in the page."""
    return page.eval_on_selector_all(
        "#neuron-table tbody tr:not(.gap)", f"rows => rows.map(row => row.cells[{k}].textContent)"
    )


def first_number(text):
    return float(re.match(r"[−\d.]+", text)[0].replace("−", "-"))


def test_all_that_the_document_says_is_read(opened):
    page = opened("ordinary")
    text = page.inner_text("body")
    for sentence in (*DOCUMENT.found, *DOCUMENT.caveats, *DOCUMENT.reproduce):
        assert sentence in text
    for fact in (*DOCUMENT.asked, *DOCUMENT.data, *DOCUMENT.grades, *DOCUMENT.missing):
        assert fact.name in text
        assert fact.value in text
    for step in DOCUMENT.attrition:
        assert step.note in text
    for k, sheet in enumerate(page.locator(".sheet").all()):
        sheet.scroll_into_view_if_needed()
        until(page, f"document.querySelectorAll('.sheet')[{k}].naturalWidth > 0")


def test_the_table_is_that_of_the_document(opened):
    page = opened("ordinary")
    assert column(page, 0) == NAMES[: len(column(page, 0))]
    row = DOCUMENT.rows[1]
    text = f"{row['r']:.3f} [{row['r_low']:.3f}, {row['r_high']:.3f}]".replace("-", "−")
    assert column(page, 3)[1] == text
    assert column(page, 4)[30] == "–"


def test_a_head_sorts_by_size_down_and_up(opened):
    page = opened("ordinary")
    head = page.locator("#neuron-table thead th").nth(4)
    effects = [row["effect"] for row in DOCUMENT.rows if row["effect"] is not None]
    for state, wanted in (
        ("other", sorted(effects, key=lambda x: -abs(x))),
        ("descending", sorted(effects, reverse=True)),
        ("ascending", sorted(effects)),
    ):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == state
        shown = column(page, 4)
        np.testing.assert_allclose([first_number(x) for x in shown[:12]], wanted, atol=5e-4)
        assert set(shown[12:]) == {"–"}  # what was not measured is last, whichever way
    assert head.locator("button").evaluate("button => button === document.activeElement")


def test_filters_by_text_choice_layer_and_size(opened):
    page = opened("ordinary")
    status = page.locator("#neuron-table [role=status]")
    page.fill("#filter", "l3n1")
    assert set(column(page, 0)) == {name for name in NAMES if name.startswith("L3N1")}
    page.click("text=Clear")
    assert status.inner_text() == "40 of 40 rows."
    page.select_option("select[name=facet-6]", "A")
    assert set(column(page, 6)) == {"A"}
    page.fill("input[name=from]", "2")
    page.fill("input[name=to]", "2")
    wanted = [r["neuron"] for r in DOCUMENT.rows if r["grade"] == "A" and r["layer"] == 2]
    assert column(page, 0) == wanted
    page.click("text=Clear")
    page.fill("input[name=least]", "0.8")
    assert column(page, 0) == [r["neuron"] for r in DOCUMENT.rows if abs(r["r"]) >= 0.8]
    page.fill("#filter", "no such neuron")
    assert status.inner_text() == "No neuron passes these filters."


def test_all_neurons_with_their_numbers(opened):
    page = opened("ordinary")
    page.check("input[value=all]")
    every = DOCUMENT.every
    r = np.asarray(every.r["plural"])
    size = np.round(np.nan_to_num(np.abs(r)), 4)  # the page has four decimals; ties stay in order
    best = np.argsort(-size, kind="stable")[:10]
    assert column(page, 0)[:10] == [f"L{every.layer[k]}N{every.index[k]}" for k in best]
    np.testing.assert_allclose([first_number(x) for x in column(page, 2)[:10]], r[best], atol=6e-4)
    assert "r, plural (|r| ≥ 0.213)" in page.inner_text("#neuron-table thead")
    assert "family-wise 5 % threshold" in page.inner_text("#neuron-table [role=status]")
    page.fill("#filter", "L0N1")
    page.locator("#neuron-table thead th").nth(0).locator("button").click()
    assert column(page, 0)[:2] == ["L0N1", "L0N10"]
    assert column(page, 2)[0] == "–"  # it does not vary
    page.check("input[value=associated]")
    assert column(page, 0)[0] == NAMES[0]


def test_only_the_rows_in_sight_stand_in_the_page(opened):
    page = opened("large", "#neurons")
    page.check("input[value=all]")
    assert "46,080 of 46,080" in page.inner_text("#neuron-table [role=status]")
    assert len(column(page, 0)) < 80
    box = page.locator(".rows")
    assert box.evaluate("box => box.scrollHeight") > 46_080 * 20
    box.evaluate("box => { box.scrollTop = box.scrollHeight; }")
    until(page, "document.querySelector('tr[aria-rowindex=\"46081\"]')")
    # The rows stand where the scrolling says: the last one at the end of the box.
    end = box.evaluate(
        "box => box.getBoundingClientRect().bottom - "
        "box.querySelector('tr[aria-rowindex=\"46081\"]').getBoundingClientRect().bottom"
    )
    assert abs(end) < 30


def test_a_deep_link_opens_a_neuron(opened):
    page = opened("ordinary", "#neuron-L2N8")
    assert page.locator("#neuron-page h2").inner_text().startswith("L2N8")
    assert page.is_hidden("#summary")
    assert page.title() == "L2N8 – Agreement on planted-4"


def test_a_link_and_back(opened):
    page = opened("ordinary")
    page.locator("#neuron-table a", has_text="L1N21").scroll_into_view_if_needed()
    page.evaluate("window.scrollTo(0, 700)")
    page.locator("#neuron-table a", has_text="L1N13").click()
    page.wait_for_selector("#neuron-page:not([hidden])")
    assert page.url.endswith("#neuron-L1N13")
    assert page.is_hidden("#summary")
    assert page.evaluate("document.activeElement.tagName") == "H2"
    page.click("text=L0N99")  # a correlated neuron, of which there is no page
    page.wait_for_selector("text=No page was made")
    r = DOCUMENT.every.r["plural"][99]
    assert f"{r:.3f}".replace("-", "−") in page.inner_text("#neuron-page")
    page.go_back()
    page.wait_for_selector("#neuron-page h2:has-text('L1N13')")
    assert page.locator("#neuron-page h2").inner_text().startswith("L1N13")
    page.go_back()
    page.wait_for_selector("#summary:not([hidden])")
    assert page.is_hidden("#neuron-page")
    assert abs(page.evaluate("window.scrollY") - 700) < 5
    page.go_forward()
    page.wait_for_selector("#neuron-page h2:has-text('L1N13')")


def test_a_link_to_a_section_from_a_neuron(opened):
    page = opened("ordinary", "#neuron-L3N7")
    page.evaluate("location.hash = '#figure-forest'")
    until(page, "!document.getElementById('summary').hidden")
    top = page.evaluate("document.getElementById('figure-forest').getBoundingClientRect().top")
    assert -5 < top < 900
    page.evaluate("location.hash = '#neuron-nonsense'")
    page.wait_for_selector("text=No neuron nonsense stands in this report.")


def test_what_is_on_the_page_of_a_neuron(opened):
    page = opened("ordinary", "#neuron-L3N7")
    known = DOCUMENT.neurons[0]
    text = page.inner_text("#neuron-page")
    for wanted in (known.summary, known.verdict, known.controls.rank, *known.explanation):
        assert wanted in text
    row = known.row
    assert f"{row['r']:.3f} [{row['r_low']:.3f}, {row['r_high']:.3f}]" in text
    # The bar stands where the number is, on the scale of all rows.
    bar = page.locator(".evidence svg").first
    point = float(bar.locator("circle").get_attribute("cx"))
    low, high = (float(bar.locator(".whisker").get_attribute(end)) for end in ("x1", "x2"))
    zero = float(bar.locator(".zero").get_attribute("x1"))
    assert zero < low < point < high
    np.testing.assert_allclose((point - zero) / (high - zero), row["r"] / row["r_high"], atol=1e-6)
    assert page.locator(".strip svg .control").count() == 200
    tokens = page.locator(".tokens").first.locator(".token")
    assert tokens.count() == len(documents.SENTENCE)
    assert tokens.nth(1).inner_text() == "·keys"
    assert tokens.nth(7).inner_text() == "·on↵"
    assert page.locator(".tokens .read").count() == 10


def test_the_colour_of_a_token_is_its_value(opened):
    page = opened("ordinary", "#neuron-L3N7")
    values = [v for q in DOCUMENT.neurons[0].quantiles for row in q.rows for v in row.values]
    shades = page.eval_on_selector_all(
        ".tokens .token",
        "all => all.map(one => [one.style.getPropertyValue('--fill'), "
        "parseFloat(one.style.getPropertyValue('--strength'))])",
    )
    assert len(shades) == len(values)
    most = max(abs(v) for v in values)
    for (fill, strength), value in zip(shades, values, strict=True):
        assert fill == ("var(--inactive)" if value < 0 else "var(--active)")
        assert strength == pytest.approx(100 * abs(value) / most, abs=0.1)


def test_a_value_is_shown_to_pointer_focus_and_finger(opened):
    page = opened("ordinary", "#neuron-L3N7")
    hint = page.locator("#hint")
    tokens = page.locator(".tokens").first.locator(".token")
    row = DOCUMENT.neurons[0].quantiles[0].rows[0]

    def says(k):
        sign = "+" if row.values[k] > 0 else "−"
        return f"{sign}{float(f'{abs(row.values[k]):.4g}'):g}"

    assert hint.is_hidden()
    tokens.nth(2).hover()
    assert hint.inner_text().startswith(says(2))
    tokens.nth(0).focus()
    assert hint.inner_text().startswith(says(0))
    page.keyboard.press("ArrowRight")
    assert hint.inner_text().startswith(says(1))
    page.keyboard.press("End")
    assert "read here" in hint.inner_text()
    assert page.url.endswith("#neuron-L3N7")  # the arrows did not leave the page
    page.keyboard.press("Escape")
    phone = opened("ordinary", "#neuron-L3N7", width=320)
    phone.locator(".tokens").first.locator(".token").nth(3).tap()
    assert phone.locator("#hint").inner_text().startswith(says(3))


def test_keys_go_from_neuron_to_neuron(opened):
    page = opened("ordinary", "#neuron-L3N7")
    for key, wanted in (("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)):
        page.keyboard.press(key)
        until(page, f"location.hash === '#neuron-{NAMES[wanted]}'")
        page.wait_for_selector(f"#neuron-page h2:has-text('{NAMES[wanted]}')")
    page.keyboard.press("u")
    until(page, "!document.getElementById('summary').hidden")
    page.keyboard.press("/")
    until(page, "document.activeElement.id === 'filter'")
    page.keyboard.type("j?d/")
    assert page.input_value("#filter") == "j?d/"  # keys that are typed are text
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("dialog[open]")
    page.keyboard.press("Escape")
    assert page.is_hidden("dialog")


def test_the_order_of_the_pages_is_that_of_the_table(opened):
    page = opened("ordinary")
    page.locator("#neuron-table thead th").nth(5).locator("button").click()  # q, the largest first
    paged = [n for n in reversed(NAMES) if n in {p.name for p in DOCUMENT.neurons}]
    page.evaluate(f"location.hash = '#neuron-{paged[0]}'")
    page.wait_for_selector("#neuron-page h2")
    page.keyboard.press("j")
    until(page, f"location.hash === '#neuron-{paged[1]}'")


def test_a_command_is_copied(opened):
    page = opened("ordinary")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("#reproduce .command button")
    button.click()
    until(page, "document.querySelector('#reproduce .command button').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == DOCUMENT.reproduce[0]


def test_the_graph_hides_pins_and_links(opened):
    page = opened("ordinary", "#circuit-L28N907")
    graph = page.locator("#circuit-L28N907")
    shown = graph.locator(".link:not([hidden])")
    assert shown.count() == 15
    graph.locator("input[type=checkbox]").uncheck()
    assert shown.count() == 17
    graph.locator("input[type=checkbox]").check()
    # Half of the largest on its target: counted here from the document.
    edges = [e for e in DOCUMENT.circuits[0].edges if e.verdict == "confirmed"]
    largest = {
        t: max(abs(e.effect) for e in edges if e.target == t) for t in ("logit_diff", "L28N907")
    }
    graph.locator("input[type=range]").fill("50")
    wanted = sum(abs(e.effect) >= 0.5 * largest[e.target] for e in edges)
    assert 0 < wanted < 15
    assert shown.count() == wanted
    assert graph.locator(".edges tbody tr:not([hidden])").count() == wanted
    graph.locator("input[type=range]").fill("0")
    graph.locator(".node[aria-label^='L27H8,'] rect").click()
    assert graph.locator(".link.dim:not([hidden])").count() == 13  # it has two edges
    assert "Pinned: L27H8, 2 edges." in graph.inner_text()
    graph.locator(".node[aria-label^='L27H8,'] rect").click()
    assert graph.locator(".link.dim").count() == 0
    graph.locator(".graph a", has_text="L28N907").click()
    until(page, "location.hash === '#neuron-L3N7'")
    assert page.locator("#neuron-page .graph .here").count() == 1


def test_an_edge_says_its_effect_and_interval(opened):
    page = opened("ordinary", "#circuit-L28N907")
    graph = page.locator("#circuit-L28N907")
    edge = DOCUMENT.circuits[0].edges[0]
    wanted = f"+{edge.effect:.3f} [{edge.low:.3f}, {edge.high:.3f}] logits on logit_diff"
    graph.locator(".edges button").first.focus()
    assert wanted in page.inner_text("#hint")
    assert graph.locator(".link.lit").count() == 1
    graph.locator(".edges button").first.evaluate("button => button.blur()")
    assert page.is_hidden("#hint")
    graph.locator(".node[aria-label^='answer,']").focus()
    page.keyboard.press("ArrowRight")
    assert wanted in page.inner_text("#hint")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("answer,")


def test_a_sign_is_a_colour_and_a_dash(opened):
    page = opened("ordinary", "#circuit-L28N907")
    page.locator("#circuit-L28N907 input[type=checkbox]").uncheck()
    graph = page.locator("#circuit-L28N907 .graph")
    edges = DOCUMENT.circuits[0].edges
    dashes = graph.locator(".arrow").evaluate_all(
        "all => all.map(one => getComputedStyle(one).strokeDasharray)"
    )
    assert [dash != "none" for dash in dashes] == [edge.effect > 0 for edge in edges]


def test_nothing_found_is_an_honest_page(opened):
    page = opened("nothing")
    lines = [line for line in page.inner_text("main").split("\n") if line]
    assert lines == ["Found", "Nothing was found.", "Asked", "task", "noise"]
    page.evaluate("location.hash = '#neuron-L0N0'")
    page.wait_for_selector("text=No neuron L0N0 stands in this report.")
    page.keyboard.press("j")
    page.keyboard.press("/")


def test_a_neuron_with_holes_in_what_was_measured(opened):
    """No interval, controls without a number, an example without an activation: nothing breaks."""
    page = opened("holes", "#neuron-L3N7")
    text = page.inner_text("#neuron-page")
    assert "2 controls from −0.100 to 0.200" in text
    assert page.locator(".strip svg .control").count() == 2
    assert page.locator(".tokens .token").count() == 2
    page.keyboard.press("j")
    page.wait_for_selector("#neuron-page h2:has-text('L2N8')")
    assert page.locator(".strip").count() == 0
    page.keyboard.press("u")
    page.wait_for_selector("#summary:not([hidden])")
    assert column(page, 3)[0] == "–"


def test_only_what_is_shown_is_laid_out(opened):
    page = opened("ordinary", "#circuit-L28N907")
    graph = page.locator("#circuit-L28N907")
    wide = float(graph.locator(".graph").get_attribute("width"))
    assert graph.locator(".node.token").count() == 0  # no confirmed edge leads from it
    graph.locator("input[type=checkbox]").uncheck()
    assert graph.locator(".node.token").count() == 1
    assert float(graph.locator(".graph").get_attribute("width")) > wide


def test_crowded_boxes_do_not_cover_one_another(opened):
    page = opened("crowded", "#circuit-L7N1")
    boxes = page.eval_on_selector_all(
        ".node rect",
        "all => all.map(one => ['x', 'y', 'width', 'height'].map(name => +one.getAttribute(name)))",
    )
    assert len(boxes) == 41
    for k, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:k]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    wide, high = (float(page.locator(".graph").get_attribute(side)) for side in ("width", "height"))
    assert wide < 1600
    assert all(x >= 0 and y >= 0 and x + w <= wide and y + h <= high for x, y, w, h in boxes)
    assert "L5H3 at −3 → L7N1 at −1" in page.inner_text(".edges")
