"""What a figure shows, read back from it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from lens_skills.plotting import Drawing


def words(drawing: Drawing) -> str:
    return " ".join(text.get_text() for text in drawing.figure.texts)


def labels(axis: Axes) -> list[str]:
    legend = axis.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def band(axis: Axes, which: str = "y") -> list[tuple[float, float]]:
    """Ends of the ±δ bands."""
    found = []
    for patch in axis.patches:
        if patch.get_gid() == "delta":
            assert isinstance(patch, Polygon | Rectangle)
            box = patch.get_path().get_extents(patch.get_patch_transform())
            found.append((box.y0, box.y1) if which == "y" else (box.x0, box.x1))
    return found


def check_repeats(draw: Callable[[], Drawing], folder: Path) -> None:
    """Two drawings of one result have the same bytes, and their table reads back exactly."""
    drawings = [draw(), draw()]
    for suffix in ("pdf", "svg", "csv"):
        one, other = (
            drawing.savefig(folder / f"{place}.{suffix}").read_bytes()
            for place, drawing in enumerate(drawings)
        )
        assert one == other, suffix
    read = pd.read_csv(folder / "0.csv", dtype=str)
    assert list(read) == list(drawings[0].frame)
    for column in drawings[0].frame.select_dtypes("number"):
        np.testing.assert_array_equal(read[column].map(float), drawings[0].frame[column])
