"""The writer on the page about shards, without this package, gives the scores of the model."""

import re
from pathlib import Path
from typing import Any

import torch

from lens_skills.data import Example
from lens_skills.saved import load
from lens_skills.scoring import score

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "shards.md"
WORDS = ("The key", "The boys to the", "A doctor", "An author near the cabinets", "Girls")


def writer() -> Any:
    """``write_shards`` as the page has it."""
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(
        r"^```python\n(import json, pathlib, torch\n.*?)^with torch", page, re.M | re.S
    )
    assert code is not None
    assert "lens_skills" not in code[1]
    body = code[1].partition("def write_shards")[2].strip().splitlines()
    assert len(body) == 21  # its first line and twenty more
    namespace: dict[str, Any] = {}
    exec(compile(code[1], str(PAGE), "exec"), namespace)
    return namespace["write_shards"]


def test_the_writer_of_the_page_gives_the_scores_of_the_model(
    tiny: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "id": f"{n}",
            "prompt": f"{WORDS[n % 5]} {n % 7}",
            "label:odd": n % 2,
            "group": f"g{n % 9}",
        }
        for n in range(63)
    ]
    with torch.no_grad():
        writer()(str(tiny_folder), rows, tmp_path / "shards", size=25, batch=4)
    table = load(tmp_path / "shards")
    assert len(table.shards) == 3
    examples = [
        Example(row["id"], row["prompt"], labels={"odd": row["label:odd"]}, group=row["group"])
        for row in rows
    ]
    assert list(table.examples) == examples
    asked: dict[str, Any] = {"metrics": ["label:odd", "confidence"], "n_permutations": 39}
    exact, theirs = score(tiny, examples, **asked), score(table, table.examples, **asked)
    torch.testing.assert_close(theirs.r, exact.r, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.mean, exact.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.p_family, exact.p_family, rtol=0, atol=0.03)
    for name in asked["metrics"]:
        torch.testing.assert_close(theirs.values[name], exact.values[name], rtol=0, atol=1e-5)
