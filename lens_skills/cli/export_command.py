"""`lens-skills export`: results as tables for a paper and as Neuronpedia's files."""

from pathlib import Path
from typing import Annotated

import typer

from lens_skills.cli.console import call
from lens_skills.cli.shared_options import ResultsFolder


def export(
    folder: ResultsFolder,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write (default: FOLDER/export).")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Rows of a table at most.")] = 20,
    scan: Annotated[str, typer.Option(help="What Neuronpedia calls the model.")] = "",
    features_url: Annotated[
        str, typer.Option(help="Where neuronpedia/features will be served, for its graphs.")
    ] = "",
) -> None:
    """Write the results in FOLDER for other programs: LaTeX, Markdown, Neuronpedia's JSON."""
    from lens_skills.reporting import export as write_files
    from lens_skills.reporting.exported import LEFT_OUT

    told, place = call(), out or folder / "export"
    write_files(folder, place, most=most, scan=scan, features_url=features_url)
    counts = {
        "tables": len(list(place.glob("tables/*.tex"))),
        "graphs": len(list(place.glob("neuronpedia/*.json"))),
        "neurons": len(list(place.glob("neuronpedia/features/[0-9]*.json"))),
    }
    if (place / LEFT_OUT).exists():
        for line in (place / LEFT_OUT).read_text(encoding="utf-8").splitlines():
            told.note(line)
    lines = [", ".join(f"{what}: {count:,}" for what, count in counts.items())]
    if not counts["neurons"]:
        lines.append(
            f"no neuron's examples were read yet: `lens-skills report {folder}` reads them"
        )
    told.wrote(place)
    told.show_lines("export", {"folder": str(place), **counts}, lines)
