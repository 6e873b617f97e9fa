"""The page for every reader: by ear, by keyboard, on a phone, in the dark, on paper; in time."""

import re
import statistics

import pytest

from tests.browser import documents
from tests.browser.waiting import until

PLACES = {
    "summary": ("ordinary", ""),
    "neuron": ("ordinary", "#neuron-L3N7"),
    "no page": ("ordinary", "#neuron-L0N99"),
    "circuit": ("ordinary", "#circuit-L28N907"),
    "nothing": ("nothing", ""),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 320])
@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing(opened, axe, place, width, scheme):
    name, at = PLACES[place]
    page = opened(name, at, width=width, scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    if place == "circuit":
        page.locator(".node").first.focus()
        page.keyboard.press("Enter")
        assert page.locator(".node[aria-pressed=true]").count() == 1
        page.locator(".edges button").first.focus()
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ] == []
    assert len(found["passes"]) > 10


def test_axe_would_have_found_something(opened, axe):
    page = opened("ordinary")
    page.evaluate("document.querySelector('img.sheet').removeAttribute('alt')")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert "image-alt" in [rule["id"] for rule in found["violations"]]


@pytest.mark.parametrize("at", ["", "#neuron-L3N7", "#neuron-L0N99"])
def test_a_phone_scrolls_one_way_only(opened, at):
    page = opened("ordinary", at, width=320)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    if not at:
        page.check("input[value=all]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def luminance(page, selector="body"):
    colour = page.locator(selector).first.evaluate("one => getComputedStyle(one).backgroundColor")
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3


def test_dark_follows_the_system_and_the_button(opened):
    assert luminance(opened("ordinary")) == 255
    page = opened("ordinary", scheme="dark")
    assert luminance(page) < 40
    assert luminance(page, ".sheet") == 255  # pictures stay on white
    page.click("text=Light")
    assert luminance(page) == 255
    page.click("text=Dark")
    assert luminance(page) < 40
    page.keyboard.press("d")
    assert luminance(page) == 255
    page.emulate_media(color_scheme="light")
    page.click("text=Dark")
    assert luminance(page) < 40


def test_paper_has_everything_and_no_controls(opened):
    page = opened("ordinary", scheme="dark")
    assert page.locator("#neuron-table tbody tr:not(.gap)").count() < 40
    page.emulate_media(media="print")
    assert luminance(page) == 255
    assert page.locator("#neuron-table tbody tr:not(.gap)").count() == 40
    assert page.locator("details.help:not([open])").count() == 0
    until(page, "[...document.images].every(one => one.complete && one.naturalWidth)")
    page.set_viewport_size({"width": 680, "height": 900})  # of A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    for control in (".filters", "header nav", ".tools", ".command button"):
        assert page.locator(control).first.is_hidden()
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    page.emulate_media(media="screen")
    assert page.locator("details[open]").count() == 0
    assert page.is_visible(".filters")


def test_paper_of_a_neuron_is_its_page(opened):
    page = opened("ordinary", "#neuron-L3N7")
    page.emulate_media(media="print")
    assert page.is_hidden("#summary")
    assert page.is_visible("#neuron-page .graph")
    assert page.is_hidden(".stepping")


def test_paper_of_a_long_table_says_what_it_leaves_out(opened):
    page = opened("large")
    page.emulate_media(media="print")
    until(page, "document.getElementById('neuron-table').innerText.includes('and 700 more')")


def test_it_is_read_without_scripts(browser, written):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written("ordinary").as_uri())
    text = page.inner_text("body")
    document = documents.ordinary()
    for sentence in (*document.found, *document.caveats, *document.reproduce):
        assert sentence in text
    assert page.locator("#neuron-table tbody tr").count() == 40
    assert "need JavaScript" in text
    context.close()


def test_a_first_press_of_tab_skips_to_the_report(opened):
    page = opened("ordinary")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert page.evaluate("getComputedStyle(document.activeElement).position") == "absolute"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_focus_is_seen(opened):
    page = opened("ordinary")
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement);"
            " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1; })()"
        )
        assert outline


def test_a_large_report_is_small_and_opens_in_time(browser, written):
    """46,080 neurons under 4 metrics and 100 pages of 24 examples: 5 MB and a second at most."""
    path = written("large")
    assert path.stat().st_size <= 5_000_000
    times = []
    for at in ["", "", "", "#neuron-L3N3", "#neuron-L3N3"]:
        context = browser.new_context()
        page = context.new_page()
        page.goto(path.as_uri() + at)
        times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        context.close()
    print(f"{path.stat().st_size / 1e6:.2f} MB, opened in {statistics.median(times):.0f} ms")
    assert statistics.median(times) <= 1000


def test_sorting_and_filtering_all_neurons_is_quick(opened):
    page = opened("large")
    page.check("input[value=all]")
    spent = page.evaluate(
        """() => {
            const start = performance.now();
            document.querySelectorAll("#neuron-table thead button")[3].click();
            const filter = document.getElementById("filter");
            filter.value = "n15";
            filter.dispatchEvent(new Event("input", { bubbles: true }));
            return performance.now() - start;
        }"""
    )
    assert spent < 1000
