"""The shell's commands that show what there is: models that can be opened, tasks."""

from typing import Annotated

import typer

from lens_skills.shell import Implementation, Model, open_model, show_table


def models(
    hooks: Annotated[
        bool, typer.Option("--hooks", help="List the hook points of a model's blocks.")
    ] = False,
    model: Model = None,
    implementation: Implementation = None,
) -> None:
    """What can be opened here, and how."""
    from lens_skills.models import as_lens, describe_openable

    if hooks:
        from lens_skills.activations import site_names

        names = site_names(as_lens(open_model(model, implementation)).hook_names())
        typer.echo("\n".join(names))
        return
    show_table(
        ["", "name", "how", "here"],
        [[row.what, row.name, row.how, row.state] for row in describe_openable()],
    )


def tasks(
    task: Annotated[str | None, typer.Argument(help="Show this task instead of the list.")] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Preflight: can the model do it at all?")
    ] = False,
    limit: Annotated[int, typer.Option(help="Examples of the preflight.")] = 200,
    model: Model = None,
    implementation: Implementation = None,
) -> None:
    """The tasks that come with the toolkit, or one task: its columns and first examples."""
    from lens_skills.tasks import GENERATORS, open_task

    if task is None:
        rows = [[name, text] for name, text in GENERATORS.items()]
        rows.append(
            ["PATH", "a BIG-bench JSON file or folder, or a CSV, TSV, JSONL or Parquet file"]
        )
        show_table(["task", "what it asks"], rows)
        return
    opened = open_task(task)
    typer.echo(repr(opened))
    if describe:
        if limit < len(opened):
            (opened,) = opened.split(limit / len(opened), seed=0)
        typer.echo(repr(opened.describe(open_model(model, implementation))))
        return
    typer.echo("columns: " + ", ".join(opened.column_names))
    for example in opened[:3]:
        typer.echo(f"{example.prompt!r} → {example.answer!r}, not {example.foil!r}")
