"""`lens-skills report`: any folder of results as one HTML file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, open_model, open_run_model
from lens_skills.cli.shared_options import ResultsFolder
from lens_skills.errors import LensSkillsError


def report(
    folder: ResultsFolder,
    out: Annotated[
        Path | None, typer.Option(help="The file to write (default: FOLDER/report.html).")
    ] = None,
    neurons: Annotated[int, typer.Option(min=0, help="How many get a page of their own.")] = 100,
    no_model: Annotated[
        bool,
        typer.Option("--no-model", help="Show examples only where they were read before."),
    ] = False,
) -> None:
    """Write the results in FOLDER as one HTML file to read, sort and print: no network needed.

    The neurons of a run are read on its explore split, token by token, which opens the model; what
    was read is kept in the folder. Of other folders this is done where --model names theirs.
    """
    from lens_skills.reporting import report as write_report
    from lens_skills.reporting.written_report import needs_examples

    told, path = call(), out or folder / "report.html"
    reading: dict[str, Any] = {}
    if not no_model and needs_examples(folder, neurons=neurons):
        reading = _reading(folder)
    written = write_report(folder, path, neurons=neurons, **reading)
    told.wrote(written)
    told.show_lines("report", str(written), [f"open it in a browser: {written.resolve().as_uri()}"])


def _reading(folder: Path) -> dict[str, Any]:
    """The model, and the examples and soft prompt of a run, to read its neurons on."""
    if (folder / "run.json").exists():
        from lens_skills.cli.runs import Run

        try:
            run = Run.load(folder)
            examples, prompt = run.splits()[0], run.prompt()
            return {"examples": examples, "prompt": prompt, "model": open_run_model(run)}
        except LensSkillsError as why:  # a table or a model that has been moved, an older run
            call().note(f"no examples are read: {why}")
            return {}
    if call().opening.get("model") is None:
        call().note("no examples are read: this is no run's folder, and --model names no model")
        return {}
    return {"model": open_model()}
