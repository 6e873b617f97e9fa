"""Figures of the committed pages: the picture, its numbers, and what else it is drawn from."""

from pathlib import Path

from lens_skills.plotting import Drawing


def keep(drawing: Drawing, path: Path) -> Path:
    """Writes a figure as PNG with its CSV and JSON, from which `figures.redraw` draws it again.

    A point in the name, as in a model's, becomes "_": else what follows it would be the suffix.
    """
    path = path.with_name(path.name.replace(".", "_"))
    for kind in ("csv", "json", "png"):
        drawing.savefig(path.with_suffix(f".{kind}"))
    return path.with_suffix(".png")
