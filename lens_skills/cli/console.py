"""What the commands of the shell share: options, opening a model, a table."""

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
    """The task, or at most about ``limit`` examples of it in whole groups."""
    if limit is None or limit >= len(task):
        return task
    return task.split(limit / len(task), seed=seed)[0]


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
