"""`Drawing`: a picture that is a function of its table, saved and shown.

`draws`: registers how the figures of a kind are drawn from their tables. `redraw`: a figure from
its saved files. `Column`: one number per example, as a figure takes it.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Real
from matplotlib.figure import Figure
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.file_names import is_file_name, place_to_read
from lens_skills.plotting.figure_table import (
    columns_of,
    plain_json,
    plain_table,
    read_table,
    write_table,
)
from lens_skills.plotting.style import MM, About, Look, make_look, style
from lens_skills.results import undamaged, write_file

FORMAT = 1
_KINDS = ("pdf", "svg", "png")
_SCREEN, _PRINT = 200, 300  # dots per inch in a notebook and in a file
MANY = 2_000  # points beyond which they are drawn as one picture in PDF and SVG
# No time of day and no version, so that the same numbers give the same bytes.
_UNDATED = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}

# Lengths are compared by hand, so that the message says which is short.
Column = (
    Real[Tensor, " _"]
    | Bool[Tensor, " _"]
    | Real[np.ndarray, " _"]
    | Bool[np.ndarray, " _"]
    | Sequence[float]
)


Draw = Callable[[pd.DataFrame, About, Look], Figure]
DRAWN: dict[str, tuple[Draw, str]] = {}
"""Of each kind of figure how it is drawn, and its usual width."""


def draws(kind: str, *, width: str = "column") -> Callable[[Draw], Draw]:
    """Registers a function as what draws the figures of a kind, from nothing but their tables."""

    def register(draw: Draw) -> Draw:
        DRAWN[kind] = draw, width
        return draw

    return register


USUAL = Look()
"""Style page, at the usual width of the kind."""


@dataclass(frozen=True, eq=False, repr=False)
class Drawing:
    """A figure: a table, what there is to say about it, and the picture that follows from the two.

    It shows itself in a notebook. The picture is made when it is first asked for.

    Attributes:
        kind: What kind of figure, such as ``"r_distribution"``.
        frame: The numbers drawn, one row per mark.
        about: Title, lines of the caption and whatever the picture says beside its numbers, as
            plain JSON.
        name: File name without a suffix.
        look: Style, width and panel letter: see `styled`.
    """

    kind: str
    frame: pd.DataFrame
    about: About
    name: str
    look: Look = USUAL

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", plain_table(self.frame))
        object.__setattr__(self, "about", plain_json(self.about))
        if self.look is USUAL:
            usual = DRAWN[self.kind][1] if self.kind in DRAWN else "column"
            object.__setattr__(self, "look", make_look("page", usual))

    def __repr__(self) -> str:
        """Its name and the size of its table: the picture shows itself."""
        return f"Drawing({self.name!r}, {len(self.frame)} rows)"

    @cached_property
    def figure(self) -> Figure:
        """The Matplotlib figure, made without pyplot; change it as you like."""
        draw, _ = DRAWN[self.kind]
        with style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # drawn as a box
            return draw(self.frame.copy(), self.about, self.look)

    @property
    def caption(self) -> str:
        """Title, lines and note in words, for the caption of a paper."""
        parts = [self.about.get("title", ""), *self.about.get("lines", ())]
        parts = [f"{part.rstrip('.')}." for part in parts if part]
        return " ".join([*parts, self.about.get("note", "")]).strip()

    def styled(
        self, style: str = "page", *, width: str | float | None = None, panel: str = ""
    ) -> "Drawing":
        """The same figure for another place.

        Args:
            style: ``"page"``: title and caption in the picture, as in a notebook. ``"paper"``: the
                panels alone; what they leave out is ``caption``. ``"talk"``: 16:9 with large type
                and the title.
            width: ``"column"`` (85 mm), ``"page"`` (178 mm) or millimetres; None takes the usual
                width of the kind. A talk has its own.
            panel: A letter for the upper left corner.

        Raises:
            LensSkillsError: No such style or width.

        >>> from lens_skills import figures
        >>> drawing = figures.attrition({"neurons": 46_080, "confirmed": 4})
        >>> paper = drawing.styled("paper", width="page", panel="a")
        >>> round(paper.figure.get_figwidth() * 25.4)
        178
        """
        usual = DRAWN[self.kind][1] if self.kind in DRAWN else "column"
        look = make_look(style, usual if width is None else width, panel)
        return Drawing(self.kind, self.frame, self.about, self.name, look)

    def savefig(self, path: str | Path) -> Path:
        """The one file written, of the kind its suffix says (``.pdf``, ``.svg``, ``.png``, …).

        ``.csv`` writes the numbers and ``.json`` everything else, from which `redraw` draws again.
        Folders are made as needed; every file has the same bytes each time.

        Raises:
            LensSkillsError: No such kind of file, or it cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower().removeprefix(".")
        tables = {"csv": lambda: write_table(self.frame), "json": self._written}
        known = [*self.figure.canvas.get_supported_filetypes(), *tables]
        if kind not in known:
            raise LensSkillsError(
                f"{path.name!r} does not say what kind of file to write. "
                f"End it in one of: {', '.join('.' + name for name in sorted(known))}."
            )
        return write_file(path, tables[kind]() if kind in tables else encoded(self, kind))

    def save(self, folder: str | Path) -> Path:
        """Writes ``<name>.pdf``, ``.svg``, ``.png``, ``.csv`` and ``.json``; the path of the PDF.

        `redraw` takes the last two.

        Raises:
            LensSkillsError: The folder cannot be written.
        """
        path = Path(folder) / self.name
        # Everything is drawn before anything is written.
        contents = {kind: encoded(self, kind) for kind in _KINDS}
        contents |= {"csv": write_table(self.frame), "json": self._written()}
        for kind, content in contents.items():
            write_file(path.with_name(f"{path.name}.{kind}"), content)
        return path.with_name(f"{path.name}.pdf")

    def _written(self) -> bytes:
        content = {
            "kind": self.kind,
            "format": FORMAT,
            "name": self.name,
            "style": self.look.style,
            "width_mm": round(self.look.width / MM, 3),
            "panel": self.look.panel,
            "columns": columns_of(self.frame),
            "about": self.about,
        }
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(
            errors="backslashreplace"
        )

    def _repr_png_(self) -> bytes:
        return _picture(self.figure, "png", dpi=_SCREEN)


def redraw(
    path: str | Path,
    style: str | None = None,
    *,
    width: str | float | None = None,
    panel: str | None = None,
) -> Drawing:
    """The figure drawn again from its saved numbers: no model, no result.

    Args:
        path: Of its ``.csv`` or ``.json``, or of both without a suffix.
        style: As in `Drawing.styled`; None as it was saved.
        width: The same.
        panel: The same.

    Raises:
        LensSkillsError: A file is missing or damaged, or was written by a newer version.

    >>> import tempfile
    >>> from lens_skills import figures
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     drawing = figures.attrition({"neurons": 46_080, "confirmed": 4})
    ...     saved = drawing.save(folder).read_bytes()
    ...     figures.redraw(f"{folder}/attrition").savefig(f"{folder}/new.pdf").read_bytes() == saved
    True
    """
    path = place_to_read(path)
    stem = path.with_suffix("") if path.suffix in (".csv", ".json") else path
    missing = [end for end in (".csv", ".json") if not Path(f"{stem}{end}").is_file()]
    if missing:
        raise LensSkillsError(
            f"{stem}{missing[0]} is missing: a figure is drawn again from its numbers (.csv) and "
            "what is said about them (.json), which save() writes together."
        )
    try:
        saved = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        kind, version, columns = saved["kind"], int(saved["format"]), dict(saved["columns"])
        about, name = dict(saved["about"]), str(saved["name"])
        was = str(saved["style"]), float(saved["width_mm"]), str(saved["panel"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LensSkillsError(
            f"{stem}.json does not say what figure to draw ({error!r:.100}). Save the figure again."
        ) from error
    if not is_file_name(name):
        raise LensSkillsError(
            f"{stem}.json says that the figure is called {name!r:.80}, which is no file's name. "
            "Save the figure again, or correct its name."
        )
    if version > FORMAT or kind not in DRAWN:
        newer = " Update lens-skills." if version > FORMAT else ""
        raise LensSkillsError(
            f"{stem}.json holds a figure {kind!r} of format {version}, which this version does not "
            f"draw.{newer} It draws, up to format {FORMAT}: {', '.join(sorted(DRAWN))}."
        )
    if style is None or style == was[0]:
        style, width = was[0], was[1] if width is None else width
    look = make_look(
        style, DRAWN[kind][1] if width is None else width, was[2] if panel is None else panel
    )
    drawing = Drawing(
        kind, read_table(Path(f"{stem}.csv").read_bytes(), columns), about, name, look
    )
    with undamaged(stem.parent, f"figure {stem.name}"):
        drawing.figure  # noqa: B018  a table that was changed by hand fails here, with a name
    return drawing


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
    contents = {kind: _picture(figure, kind) for kind in _KINDS} | {"csv": write_table(frame)}
    for kind, content in contents.items():
        write_file(path.with_name(f"{path.name}.{kind}"), content)
    return path.with_name(f"{path.name}.pdf")


def encoded(drawing: Drawing, kind: str) -> bytes:
    """The picture as a file of a kind such as ``"svg"``."""
    return _picture(drawing.figure, kind, dpi=drawing.look.dots)


def _picture(figure: Figure, kind: str, *, dpi: float = _PRINT) -> bytes:
    buffer = io.BytesIO()
    # Fonts, hash salt and font types are read while a file is written.
    fonts = _bare_fonts() if kind == "pdf" else nullcontext()
    with style(), fonts, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # drawn as a box
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))
    return buffer.getvalue()


@contextmanager
def _bare_fonts() -> Iterator[None]:
    """Fonts are embedded without their tables of ligatures, kerning and formulas.

    Matplotlib has placed every glyph by then, and no reader of a PDF looks at them; to cut them
    down took three quarters of the time.
    """
    from fontTools.subset import Options

    default = getattr(Options, "_drop_tables_default", None)
    if not isinstance(default, list):  # another version of fontTools
        yield
        return
    Options._drop_tables_default = [*default, "GSUB", "GPOS", "GDEF", "MATH", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = default


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
