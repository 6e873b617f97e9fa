"""Redraws every committed figure from its committed table; no model, no result, seconds.

    python benchmarks/redraw_figures.py            # writes the pictures anew
    python benchmarks/redraw_figures.py --check    # only says which would be other bytes

A figure is a JSON file beside a CSV file of its name; the pictures beside them (PDF, SVG, PNG) are
what is redrawn. The bytes are the same wherever the versions of ``constraints.txt`` are installed.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.drawing import encoded

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
PICTURES = (".pdf", ".svg", ".png")


def committed(folder: Path = FIGURES) -> list[Path]:
    """The JSON files of all figures, but those of a demo that was run here."""
    found = sorted(folder.rglob("*.json"))
    return [
        path for path in found if path.with_suffix(".csv").exists() and "demo" not in path.parts
    ]


def kind_of(path: Path) -> str:
    """What kind of figure a JSON file is of."""
    return str(json.loads(path.read_text(encoding="utf-8"))["kind"])


def redrawn(path: Path) -> Iterator[tuple[Path, bytes]]:
    """Every picture beside the file, and the bytes it should have."""
    drawing: Drawing = figures.redraw(path)
    for suffix in PICTURES:
        if path.with_suffix(suffix).exists():
            yield path.with_suffix(suffix), encoded(drawing, suffix[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    asked = parser.parse_args()
    n, other = 0, 0
    for path in committed():
        for picture, content in redrawn(path):
            n += 1
            if picture.read_bytes() != content:
                other += 1
                print(f"{'other bytes' if asked.check else 'written'}: {picture.relative_to(ROOT)}")
                if not asked.check:
                    picture.write_bytes(content)
    print(f"{n} pictures of {len(committed())} figures, {other} of them with other bytes")
    raise SystemExit(1 if asked.check and other else 0)


if __name__ == "__main__":
    main()
