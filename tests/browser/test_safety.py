"""No text of a document is run, and nothing is fetched."""

import re

import pytest

from lens_skills.reporting.page_data import seen
from tests.browser import documents
from tests.browser.waiting import until


@pytest.mark.parametrize("at", ["", "#neuron-L3N7", "#circuit-__proto__", "#neuron-__proto__"])
def test_hostile_text_is_shown_and_not_run(opened, at):
    page = opened("hostile", at)
    assert page.evaluate("window.ran") is None
    assert page.locator("main b:not(figcaption b)").count() == 0
    assert page.locator("img[src=x]").count() == 0
    if at.endswith("__proto__") and "neuron" in at:
        assert "No neuron __proto__" in page.inner_text("#neuron-page")
        return
    shown = page.evaluate("document.querySelector('main').textContent")
    for text in documents.NASTY:
        assert seen(text) in shown
    assert not re.search("[\u202e\u2028\u0000\u0007]", shown)


def test_hostile_keys_are_values_like_others(opened):
    page = opened("hostile")
    heads = page.locator("#neuron-table thead th").all_inner_texts()
    assert "__proto__" in heads
    assert "constructor" in heads
    page.locator("#neuron-table thead button", has_text="__proto__").click()
    page.fill("#filter", "constructor")
    page.check("input[value=all]")
    assert "r, __proto__" in page.locator("#neuron-table thead").inner_text()
    for name in ("constructor", "__proto__", "toString", "%E0%A4%A"):
        page.evaluate(f"location.hash = '#neuron-{name}'")
        page.wait_for_selector("text=stands in this report")
    page.evaluate("location.hash = ''")
    until(page, "!document.getElementById('summary').hidden")
    page.keyboard.press("j")


def test_a_long_text_does_not_widen_the_page(opened):
    page = opened("hostile", width=320)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_policy_lets_no_other_script_run(opened):
    page = opened("ordinary")
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "http://127.0.0.1:9/x.png";
            document.body.append(image);
            document.body.insertAdjacentHTML("beforeend", "<img src=x: onerror='window.ran = 1'>");
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    blocked = [text for text in page.complaints if "Content Security Policy" in text]
    assert len(blocked) >= 3
    page.complaints.clear()
    page.requests.clear()  # asked for, and not let through


def test_a_script_in_a_picture_does_not_run(opened):
    page = opened("hostile")
    assert page.locator("img.sheet").count() == 2  # beside what was found, and as a figure
    assert page.locator("main svg script").count() == 0
