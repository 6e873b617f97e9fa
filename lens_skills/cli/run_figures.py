"""The figures of a run folder, of any saved result, or of a folder of figures drawn before."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_skills.cli.console import call, is_run
from lens_skills.errors import LensSkillsError

if TYPE_CHECKING:
    from lens_skills.plotting import Drawing

_ENDINGS = ("pdf", "svg", "png", "csv", "json")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def figures(
    run: Annotated[
        Path, typer.Argument(help="A run folder, a saved result, or a folder of saved figures.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Default: RUN/figures; beside the figures drawn before.")
    ] = None,
    style: Annotated[
        str, typer.Option(help="page (with caption), paper (panels alone) or talk (16:9).")
    ] = "page",
    width: Annotated[
        str | None, typer.Option(help="column (85 mm), page (178 mm) or millimetres.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="This figure alone, by its name (may repeat).")
    ] = None,
    panels: Annotated[
        bool, typer.Option("--panels", help="Letter them a, b, c … in their order.")
    ] = False,
) -> None:
    """Draw the figures of RUN: PDF, SVG, PNG, and the numbers of each as CSV and JSON.

    What a style leaves out of the picture is printed as its caption.
    """
    found = [one.styled(style, width=_width(width)) for one in _drawings(run)]
    drawings = _chosen(found, only)
    if panels and len(drawings) > len(_LETTERS):
        raise LensSkillsError(
            f"{len(drawings)} figures are more than there are letters. Name those of the paper: "
            "--only NAME."
        )
    if panels:
        drawings = [
            one.styled(style, width=_width(width), panel=letter)
            for one, letter in zip(drawings, _LETTERS, strict=False)
        ]
    target = out or (run if _is_figures(run) else run / "figures")
    for drawing in drawings:
        drawing.save(target)
    stems = [str(target / drawing.name) for drawing in drawings]
    told = call()
    told.written += [f"{stem}.{ending}" for stem in stems for ending in _ENDINGS]
    captions = [one.caption for one in drawings] if style != "page" else [""] * len(drawings)
    kinds = " ".join(f".{ending}" for ending in _ENDINGS)
    lines = [f"{stem}{kinds}" for stem in stems]
    if style != "page":
        lines = [f"{line}\n  {text}" for line, text in zip(lines, captions, strict=True)]
    told.show_lines("figures", stems, lines)
    if (run / "run.json").exists():
        told.then(f"lens-skills report {run}")


def _width(width: str | None) -> str | float | None:
    try:
        return None if width is None else float(width)
    except ValueError:
        return width


def _chosen(drawings: Sequence["Drawing"], only: Sequence[str] | None) -> list["Drawing"]:
    if not only:
        return list(drawings)
    chosen = []
    for name in only:
        found = [one for one in drawings if name in (one.name, one.kind)]
        if not found:
            raise LensSkillsError(
                f"no figure {name!r} here. There are: {', '.join(one.name for one in drawings)}."
            )
        chosen += [one for one in found if one not in chosen]
    return chosen


def _drawings(run: Path) -> list["Drawing"]:
    from lens_skills.plotting.drawing import redraw
    from lens_skills.plotting.result_figures import drawn
    from lens_skills.results import is_saved
    from lens_skills.saved import load

    if _is_figures(run):
        return [redraw(path) for path in _figure_files(run)]
    results: Any = load(run) if is_saved(run) else dict(_results(run))
    drawings, without = drawn(results)
    for name, why in without.items():
        call().note(f"no figure of {name or 'this'}: {why}")
    if not drawings:
        raise LensSkillsError(f"{run} holds nothing that has a figure.")
    return drawings


def _results(run: Path) -> Iterator[tuple[str, Any]]:
    """The results of a run, by folder; what cannot be read is noted."""
    from lens_skills.cli.runs import Run
    from lens_skills.results import is_saved
    from lens_skills.saved import load

    is_run(run)
    Run.load(run).scores()
    for place in sorted(path for path in run.iterdir() if is_saved(path)):
        try:
            yield place.name, load(place)
        except LensSkillsError as damaged:
            call().note(str(damaged))


def _is_figures(folder: Path) -> bool:
    from lens_skills.results import is_saved

    return bool(_figure_files(folder)) and not is_saved(folder)


def _figure_files(folder: Path) -> list[Path]:
    """What `Drawing.save` wrote there: each JSON file beside a table of its name."""
    if not folder.is_dir() or (folder / "run.json").exists():
        return []
    return [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".csv").exists()]
