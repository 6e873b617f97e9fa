"""`Drawing`: a figure together with the numbers it draws, saved and shown.

`Column`: one number per example, as a figure takes it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Real
from matplotlib.figure import Figure
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.style import settle, style
from lens_skills.results import file_name, write_file

_KINDS = ("pdf", "svg", "png")
_SCREEN, _PRINT = 200, 300  # dots per inch in a notebook and in a file
MANY = 2_000  # points beyond which they are drawn as one picture in PDF and SVG
# No time of day, so that the same numbers give the same bytes.
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

# Lengths are compared by hand, so that the message says which is short.
Column = (
    Real[Tensor, " _"]
    | Bool[Tensor, " _"]
    | Real[np.ndarray, " _"]
    | Bool[np.ndarray, " _"]
    | Sequence[float]
)


@dataclass(frozen=True, eq=False, repr=False)
class Drawing:
    """A figure, the numbers drawn in it, and a name for its files. Shows itself in a notebook.

    Attributes:
        figure: A Matplotlib figure, made without pyplot; change it as you like.
        frame: The numbers drawn, one row per mark.
        name: File name without a suffix.
    """

    figure: Figure
    frame: pd.DataFrame
    name: str

    def __repr__(self) -> str:
        """Its name and the size of its table: the picture shows itself."""
        return f"Drawing({self.name!r}, {len(self.frame)} rows)"

    def savefig(self, path: str | Path) -> Path:
        """The one file written, of the kind its suffix says (``.pdf``, ``.svg``, ``.png``, …).

        ``.csv`` writes the numbers. Folders are made as needed; PDF and SVG have the same bytes
        each time.

        Raises:
            LensSkillsError: No such kind of file, or it cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower().removeprefix(".")
        known = [*self.figure.canvas.get_supported_filetypes(), "csv"]
        if kind not in known:
            raise LensSkillsError(
                f"{path.name!r} does not say what kind of file to write. "
                f"End it in one of: {', '.join('.' + name for name in sorted(known))}."
            )
        content = _table(self.frame) if kind == "csv" else _picture(self.figure, kind)
        return write_file(path, content)

    def save(self, folder: str | Path) -> Path:
        """Writes ``<name>.pdf``, ``.svg``, ``.png`` and ``.csv``; returns the path of the PDF."""
        return save(self.figure, Path(folder) / self.name, self.frame)

    def _repr_png_(self) -> bytes:
        return _picture(self.figure, "png", dpi=_SCREEN)


def save(figure: Figure, path: str | Path, frame: pd.DataFrame) -> Path:
    """Writes a figure as PDF, SVG and PNG with its numbers as CSV beside; returns the PDF's path.

    Args:
        figure: Any Matplotlib figure, also one of your own.
        path: Folder and name without a suffix; folders are made as needed.
        frame: The numbers drawn.

    Raises:
        LensSkillsError: The folder cannot be written.

    >>> import tempfile
    >>> import pandas as pd
    >>> from matplotlib.figure import Figure
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(Figure(), f"{folder}/new/empty", pd.DataFrame({"x": [1]}))
    ...     sorted(file.name for file in path.parent.iterdir())
    ['empty.csv', 'empty.pdf', 'empty.png', 'empty.svg']
    """
    path = Path(path)
    # Everything is drawn before anything is written.
    contents = {kind: _picture(figure, kind) for kind in _KINDS} | {"csv": _table(frame)}
    for kind, content in contents.items():
        write_file(path.with_name(f"{path.name}.{kind}"), content)
    return path.with_name(f"{path.name}.pdf")


def _picture(figure: Figure, kind: str, *, dpi: int = _PRINT) -> bytes:
    buffer = io.BytesIO()
    with style():  # fonts, hash salt and font types are read while a file is written
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))
    return buffer.getvalue()


def _table(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def finished(figure: Figure, frame: pd.DataFrame, *name: str) -> Drawing:
    """The drawing of a figure that has everything in it; ``name``: the parts of its file's name."""
    settle(figure)
    return Drawing(figure, frame, file_name(*name))


def bin_rows(what: str, edges: np.ndarray, counts: np.ndarray) -> list[dict[str, object]]:
    """Rows of a table for a histogram: the ends of each bin and its count as ``value``."""
    return [
        {"what": what, "low": low, "high": high, "value": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]


def finite(column: Column, what: str) -> np.ndarray:
    """A column as float64.

    Raises:
        LensSkillsError: A value that is not finite (whose).
    """
    values = numbers(column)
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise LensSkillsError(f"the {what} of example {place} is {values[place]}, not a number.")
    return values


def numbers(column: Column) -> np.ndarray:
    """A column as float64, whatever its values."""
    plain = column.detach().cpu().numpy() if isinstance(column, Tensor) else column
    return np.asarray(plain, dtype=np.float64)
