"""The site builds without a warning and without a network, and its pages ask for none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
# What a browser fetches by itself when it opens a page; a link that is clicked is something else.
FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*?"""
    r"""\b(?:src|href|data)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
)
IN_CSS = re.compile(r"""(?:@import\s*|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")


def fetched(text: str) -> list[str]:
    """The addresses on other machines that a page or a style sheet makes a browser fetch."""
    found = [*FETCHED.findall(text), *IN_CSS.findall(text)]
    return [address for address in found if not address.startswith("http://www.w3.org/")]


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """MkDocs on a configuration; no proxy answers."""
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"},
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_no_page_asks_the_network(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 40
    asked = {
        f"{page.relative_to(site)}: {found}" for page in pages for found in fetched(text_of(page))
    }
    assert asked == set()


def test_what_a_browser_would_fetch_is_found() -> None:
    assert fetched('<a href="https://arxiv.org/abs/1">') == []
    assert fetched('<script async\n src="https://a.org/x.js">') == ["https://a.org/x.js"]
    assert fetched("<link rel=stylesheet href=//a.org/x.css>") == ["//a.org/x.css"]
    assert fetched("@import 'https://a.org/y.css'; b{src: url(https://a.org/f.woff)}") == [
        "https://a.org/y.css",
        "https://a.org/f.woff",
    ]


def test_every_public_name_is_documented(site: Path) -> None:
    """On a page of the API, with its signature, and listed on the first."""
    import lens_skills as ls

    index = text_of(site / "api" / "index.html")
    pages = " ".join(text_of(page) for page in (site / "api").glob("*.html"))
    for name in set(ls.__all__) - {"__version__"}:
        assert f"<code>ls.{name}</code>" in index, name
        assert re.search(rf"<h[23][^>]*>\s*(?:<[^>]*>\s*)*ls\.{name}\b", pages), name


def test_every_command_is_on_the_page_of_the_shell(site: Path) -> None:
    import typer

    from lens_skills.cli.app import app

    page = text_of(site / "api" / "shell.html")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 10
    for name, command in commands.items():
        assert f"lens-skills {name}" in page
        for option in command.params:
            if option.param_type_name == "option":
                assert f"<code>{' '.join(option.opts)}</code>" in page, (name, option.opts)


def test_every_notebook_is_a_page(site: Path) -> None:
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= {page.stem for page in (site / "notebooks").glob("*.html")}


def test_examples_of_docstrings_are_code(site: Path) -> None:
    """``>>>`` is a quotation in Markdown."""
    for page in (site / "api").glob("*.html"):
        assert "<blockquote>" not in text_of(page), page.name
        assert ":func:" not in text_of(page), page.name


def test_the_search_works_from_a_disk(site: Path) -> None:
    assert text_of(site / "search" / "search_index.js").startswith("var __index = {")
    assert 'src="assets/iframe-worker.js"' in text_of(site / "index.html")


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    config = text_of(ROOT / "mkdocs.yml").partition("\nnav:")[0]
    keep = [line for line in config.splitlines() if "site_hooks" not in line and line != "hooks:"]
    text = "\n".join(keep).replace("exclude_docs: |", "")
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    for name in ("site.css", "iframe-worker.js"):
        (tmp_path / "docs" / "assets" / name).touch()
    (tmp_path / "mkdocs.yml").write_text(text)
    page = tmp_path / "docs" / "index.md"
    page.write_text("# A\n\n[b](#a)\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0
    for text in ("# A\n\n[b](c.md)\n", "# A\n\n[b](#c)\n"):
        page.write_text(text)
        assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode != 0
