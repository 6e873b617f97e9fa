"""What the commands of the shell share: options, opening a model, a table."""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str | None,
    typer.Option(help="Hub name, local folder or .gguf file. Default: bundled SmolLM2-135M."),
]
Implementation = Annotated[
    str | None, typer.Option(help="hooked (HookedTransformer) or bridge (TransformerBridge).")
]
Seed = Annotated[int, typer.Option(help="Seed of the split and of all random draws.")]


def open_model(model: str | None, implementation: str | None) -> Any:
    """The model named on the command line."""
    from lens_skills.models import load_model

    typer.echo("opening the model …", err=True)
    return load_model(model, implementation=implementation)


def open_run_model(run: Any) -> Any:
    """The model a run was scored with."""
    return open_model(run.request.model, run.request.implementation)


def limited(task: Any, limit: int | None, seed: int) -> Any:
    """The task, or ``limit`` examples of it from as many groups as can be; see `tasks.few`."""
    from lens_skills.tasks import few

    return task if limit is None else few(task, limit, seed=seed)


def say_if_done(place: Path, what: str, go_on: str = "") -> None:
    """Says, before a finished command starts over, that it is finished, and what comes next."""
    if place.exists():
        follows = f" To go on instead: {go_on}" if go_on else ""
        typer.echo(
            f"{place} holds {what} already. Made anew; what is there is kept until then "
            f"(Ctrl-C leaves it).{follows}",
            err=True,
        )


def named(name: str, values: list[str] | None) -> dict[str, Any]:
    """An option that may be repeated, as a keyword argument where it was given."""
    return {name: tuple(values)} if values else {}


def show_table(head: list[str], rows: list[list[str]]) -> None:
    """Prints a table whose columns fold instead of being cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")  # what is to be typed must not be cut short
    for row in rows:
        table.add_row(*row)
    Console().print(table)
