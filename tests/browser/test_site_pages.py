"""The site in a browser, from a disk: asks for nothing, complains of nothing, can be searched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_site import ROOT, build

pytestmark = pytest.mark.slow
PAGES = (
    "index",
    "start",
    "howto/edits",
    "errors/control_task",
    "api/interventions",
    "notebooks/02_verify_causally",
)
PHONE = 390


@pytest.fixture(scope="module")
def folder(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", place)
    assert built.returncode == 0, built.stderr
    return place


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": PHONE, "height": 800}, color_scheme="dark")
    asked, said = [], []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert said == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_on_a_phone_without_a_network(folder: Path, page: Any, name: str) -> None:
    page.goto((folder / f"{name}.html").as_uri())
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"  # dark, as asked


def test_the_search_finds_a_verb(folder: Path, page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((folder / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("damage_matrix")
    page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    links = page.locator(".md-search-result__link").evaluate_all("all => all.map(a => a.href)")
    assert any("api/interventions.html" in link for link in links)
