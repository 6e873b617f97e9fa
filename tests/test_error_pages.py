"""The pages of common errors: the wrong code gives the message on the page, the right code runs."""

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.test_documentation import ROOT, same_text

FOLDER = ROOT / "docs" / "errors"
PAGES = sorted(set(FOLDER.glob("*.md")) - {FOLDER / "index.md"})
BLOCK = re.compile(
    r"(?:^## (?P<head>[^\n]*)\n|^```(?P<language>python|text)\n(?P<code>.*?)^```$)", re.M | re.S
)
HEADS = ["Symptom", "Cause", "Wrong", "Right"]
FEWEST = 12

Part = tuple[str, str, str]


def parts(text: str) -> list[Part]:
    """Each block of a page: the heading above it, its language, its code."""
    found, head = [], ""
    for block in BLOCK.finditer(text):
        head = block["head"] or head
        if block["language"]:
            found.append((head, block["language"], block["code"]))
    return found


@pytest.fixture(scope="module")
def begun() -> dict[str, Any]:
    """What stands on the first page and all others go on from."""
    namespace: dict[str, Any] = {"__name__": "errors"}
    for _, language, code in parts((FOLDER / "index.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(code, namespace)
    return namespace


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_wrong_code_fails_as_said_and_the_right_code_runs(
    page: Path, begun: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert re.findall(r"^## (.*)$", text, re.M) == HEADS
    assert Counter((head, language) for head, language, _ in parts(text)) == {
        ("Symptom", "text"): 1,
        ("Wrong", "python"): 1,
        ("Right", "python"): 1,
    }
    code = {head: code for head, _, code in parts(text)}
    with pytest.raises(Exception) as raised:  # noqa: PT011
        exec(code["Wrong"], dict(begun))
    shown = f"{type(raised.value).__name__}: {raised.value}\n"
    assert same_text(code["Symptom"], shown), shown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        exec(code["Right"], dict(begun))


def test_there_are_pages_and_all_are_listed() -> None:
    assert len(PAGES) >= FEWEST
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\(([\w-]+\.md)\)", index) == [page.name for page in PAGES]
    # Each message stands on the first page too, as far as it is the same for everybody.
    for page in PAGES:
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert title in index, title


def test_the_reader_of_a_page() -> None:
    text = "# A\n\n## Symptom\n\n```text\nm\n```\n\n## Right\n\n```python\nx = 1\n```\n"
    assert parts(text) == [("Symptom", "text", "m\n"), ("Right", "python", "x = 1\n")]
