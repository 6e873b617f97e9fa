"""A real browser for the page of a report: Debian's chromium, without a window or a network.

Without one these tests are skipped; LENS_SKILLS_BROWSER=1 (``make browser``) makes that a failure.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lens_skills.reporting.html_page import render
from tests.browser import documents

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WANTED = os.environ.get("LENS_SKILLS_BROWSER") == "1"


def without(what: str) -> Any:
    """Skips, or fails where a browser is asked for."""
    reason = f"{what}; `make browser` needs Debian's chromium, and npm"
    return pytest.fail(reason) if WANTED else pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = os.environ.get("LENS_SKILLS_CHROMIUM") or shutil.which("chromium")
    if program is None:
        without("no chromium is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        without("playwright is not installed (the extra `browser`)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which checks a page for what keeps readers out."""
    place = Path(sys.prefix) / "npm" / "node_modules" / "axe-core" / "axe.min.js"
    place = Path(os.environ.get("LENS_SKILLS_AXE", place))
    if not place.is_file():
        without(f"no axe-core at {place}")
    return place.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a document of `documents`, by its name."""
    folder = tmp_path_factory.mktemp("pages")

    def file(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(render(getattr(documents, name)()), encoding="utf-8")
        return path

    return file


@pytest.fixture
def opened(browser: Any, written: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Opens a document at an address; afterwards nothing was complained of, nothing asked for."""
    contexts, complaints, requests = [], [], []

    def open_(name: str, at: str = "", *, width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(written(name).as_uri() + at)
        page.complaints, page.requests = complaints, requests
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    fetched = [url for url in requests if not url.startswith(("file://", "data:"))]
    assert fetched == []
