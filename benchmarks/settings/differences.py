"""What differs between a model's page and SmolLM2's: both pages' kept numbers, side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

RESULTS = Path(__file__).resolve().parents[1] / "results"


def differing(
    file: str,
    figures: Mapping[str, float],
    names: Mapping[str, str],
    model: str,
    *,
    folder: Path = RESULTS,
) -> pd.DataFrame:
    """One row per number that both pages have: what it is, SmolLM2's, the model's.

    Args:
        file: Name of SmolLM2's file of numbers, without its ending.
        figures: The model's numbers.
        names: In words, what each of them is; the order of the rows.
        model: What the model is called.
        folder: Where the files of numbers are.
    """
    path = folder / f"{file}.json"
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = [
        {"number": words, "SmolLM2": float(before[key]), model: float(figures[key])}
        for key, words in names.items()
        if key in before and key in figures
    ]
    return pd.DataFrame(rows, columns=["number", "SmolLM2", model])
