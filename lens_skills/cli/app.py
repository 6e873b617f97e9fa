"""The commands of the shell: each parses, calls the API and prints."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lens_skills.cli.analyses import CausalMetric, Folder, Metric, circuit, compare_methods, explain
from lens_skills.cli.console import (
    Implementation,
    Model,
    Seed,
    limited,
    named,
    open_model,
    open_run_model,
    say_if_done,
    show_table,
)
from lens_skills.cli.soft_prompts import Soft, generate, prompt
from lens_skills.errors import LensSkillsError
from lens_skills.settings import config


class Commands(TyperGroup):
    """The commands; one that there is none of is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is typed first, with what follows it."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            longer = [name for name in self.commands if name.startswith(args[0])]
            nearest = [*longer, *get_close_matches(args[0], self.commands)][:1]
            raise LensSkillsError(
                f"no command {args[0]!r}. "
                + "".join(f"Did you mean {name!r}? " for name in nearest)
                + f"`lens-skills --help` lists all {len(self.commands)}."
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """The command; stopped by Ctrl-C, it says what is kept (exit code 130)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            said = str(stopped) or (
                "stopped; nothing of this step is kept, and what was saved before is as it was. "
                "The same command begins it again."
            )
            typer.secho(f"\nlens-skills: {said}", fg="yellow", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)


@app.callback()
def options(
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per forward pass (default: each command's own).")
    ] = None,
    progress: Annotated[
        bool | None, typer.Option(help="Show progress bars (default: on a terminal only).")
    ] = None,
) -> None:
    """Find, confirm, test and draw the neurons of a language model that carry a skill.

    These options change no result; they stand before the command.
    """
    config(batch_size=batch_size, progress=progress)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where figures and tables go.")] = Path("figures/demo"),
    model: Model = None,
    implementation: Implementation = None,
    seed: Seed = 0,
) -> None:
    """The whole pipeline on a skill the model has and on one it mostly has not."""
    from lens_skills.cli.demo import run_demo

    run_demo(open_model(model, implementation), out, seed=seed)


@app.command()
def score(
    task: Annotated[
        str,
        typer.Argument(
            help="agreement, ioi, arithmetic[:OPS:DIGITS], a BIG-bench JSON file or folder, or a "
            "CSV/TSV/JSONL/Parquet file (then say --text)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="label:NAME, covariate:NAME, correct, confidence, entropy, logit_diff …"),
    ] = None,
    model: Model = None,
    implementation: Implementation = None,
    at: Annotated[str, typer.Option(help="Hook point within a block.")] = "mlp.hook_post",
    position: Annotated[
        str | None, typer.Option(help="last, an index such as -2, mean, max, all or prompt.")
    ] = None,
    prompt: Soft = None,
    given: Annotated[
        list[str] | None, typer.Option(help="Column to partial out (repeat for several).")
    ] = None,
    exchange: Annotated[
        str, typer.Option(help="auto, within, kinds, between, free or signs: what trades places.")
    ] = "auto",
    permutations: Annotated[
        int | None, typer.Option(help="Draws of the null (default 100 for a whole model).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many examples.")] = None,
    seed: Seed = 0,
    chat: Annotated[bool, typer.Option(help="Apply the tokenizer's chat template.")] = False,
    text: Annotated[
        str | None,
        typer.Option(help="Tables: prompt column, or a template like '{a} plus {b} is'."),
    ] = None,
    answer: Annotated[str | None, typer.Option(help="Tables: answer column.")] = None,
    foil: Annotated[str | None, typer.Option(help="Tables: column of the wrong answer.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Tables: label column (repeat for several).")
    ] = None,
    covariate: Annotated[
        list[str] | None, typer.Option(help="Tables: covariate column (repeat for several).")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Tables: group column.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Tables: column of input types, for the control task.")
    ] = None,
) -> None:
    """Score every neuron on the explore split of TASK; writes the run folder OUT.

    Interrupted, the same command goes on where it stopped.
    """
    from lens_skills.cli.runs import Run, RunRequest

    columns = {"prompt": text, "answer": answer, "foil": foil, "group": group, "kind": kind}
    columns = {name: column for name, column in columns.items() if column is not None}
    request = RunRequest(
        task=task,
        metrics=tuple(metric or ["confidence"]),
        model=model,
        implementation=implementation,
        columns=columns | named("labels", label) | named("covariates", covariate),
        options={
            "at": at,
            "position": position or ("last" if prompt is None else "prompt"),
            "exchange": exchange,
            "chat": chat,
        }
        | named("given", given)
        | ({} if permutations is None else {"n_permutations": permutations}),
        seed=seed,
        limit=limit,
        prompt=None if prompt is None else str(prompt),
    )
    Run(out, request).check()
    run = Run.create(out, request)
    say_if_done(out / "explore", "these scores", f"lens-skills select {out}")
    typer.echo(repr(run.explore(open_model(model, implementation))))
    typer.echo(f"\nwritten to {out}; next: lens-skills select {out}")


@app.command()
def select(
    run: Folder,
    metric: Metric = None,
    fdr: Annotated[float, typer.Option(help="Expected share of false discoveries.")] = 0.05,
    top: Annotated[int, typer.Option(help="How many of explore's strongest to test.")] = 200,
    grade: Annotated[
        str | None,
        typer.Option(help="B or C: the lowest grade to keep (default B, without control task C)."),
    ] = None,
) -> None:
    """Test the strongest neurons of RUN on its unseen confirm split; prints the evidence."""
    from lens_skills.cli.runs import Run, main_metric

    opened = Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    done = f"lens-skills verify {run} --metric {name}"
    say_if_done(opened.path("selection", name), f"the selection for {name}", done)
    model = open_run_model(opened)
    selection = opened.confirm(model, name, fdr=fdr, top=top, grade=grade)
    typer.echo(repr(selection))
    if len(selection):
        typer.echo(f"\nnext: {done}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder in which neurons were selected.")],
    metric: Annotated[
        str | None, typer.Option(help="Whose neurons (default: the run's first metric).")
    ] = None,
    causal_metric: CausalMetric = None,
    delta: Annotated[
        float | None, typer.Option(help="The smallest effect that matters, in that metric's unit.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Examples to intervene on.")] = 64,
    most: Annotated[int, typer.Option(help="How many of the selected neurons to try.")] = 20,
) -> None:
    """Ablate the selected neurons of RUN on its third split, beside control neurons.

    Interrupted, the same command goes on where it stopped.
    """
    from lens_skills.cli.runs import Run, main_metric

    opened = Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    opened.causal_metric(opened.intervene_split(limit), causal_metric)
    say_if_done(
        opened.path("verdict", name), f"the verdict on {name}", f"lens-skills figures {run}"
    )
    model = open_run_model(opened)
    verdict = opened.verify(
        model, name, causal_metric=causal_metric, delta=delta, limit=limit, most=most
    )
    typer.echo(repr(verdict))


@app.command()
def figures(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="Default: RUN/figures.")] = None,
) -> None:
    """Draw the figures of RUN: PDF, SVG, PNG, and the numbers of each as CSV."""
    from lens_skills.cli.runs import Run, draw_all, draw_verdict

    opened, target = Run.load(run), out or run / "figures"
    scores, verdicts = opened.scores(), opened.verdicts()
    drawings = [
        *draw_all(scores, opened.selections(), verdicts=verdicts),
        *(d for name, v in verdicts.items() for d in draw_verdict(v, scores[name])),
    ]
    for drawing in drawings:
        drawing.save(target)
        typer.echo(f"{target / drawing.name}.pdf .svg .png .csv")


@app.command()
def models(
    hooks: Annotated[
        bool, typer.Option("--hooks", help="List the hook points of a model's blocks.")
    ] = False,
    model: Model = None,
    implementation: Implementation = None,
) -> None:
    """What can be opened here, and how."""
    from lens_skills.models import as_adapter, describe_openable

    if hooks:
        from lens_skills.activations import site_names

        names = site_names(as_adapter(open_model(model, implementation)).hook_names())
        typer.echo("\n".join(names))
        return
    show_table(
        ["", "name", "how", "here"],
        [[row.what, row.name, row.how, row.state] for row in describe_openable()],
    )


@app.command()
def tasks(
    task: Annotated[str | None, typer.Argument(help="Show this task instead of the list.")] = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Can the model do it at all?")
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
    if preflight:
        typer.echo(
            repr(limited(opened, limit, seed=0).preflight(open_model(model, implementation)))
        )
        return
    typer.echo("columns: " + ", ".join(opened.column_names))
    for example in opened[:3]:
        typer.echo(f"{example.prompt!r} → {example.answer!r}, not {example.foil!r}")


for command in (explain, compare_methods, circuit, prompt, generate):
    app.command()(command)


def main() -> None:
    """Runs a command; the user's mistakes are one line, not a traceback."""
    try:
        app()
    except LensSkillsError as error:
        typer.secho(f"lens-skills: {error}", fg="red", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
