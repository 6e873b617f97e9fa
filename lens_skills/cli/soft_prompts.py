"""The shell's commands around prompts: train a soft prompt, and let the model write."""

from pathlib import Path
from typing import Annotated

import typer

from lens_skills.cli.console import Implementation, Model, Seed, limited, open_model, say_if_done

Soft = Annotated[
    Path | None, typer.Option(help="A soft prompt's folder, written by `lens-skills prompt`.")
]


def prompt(
    task: Annotated[str, typer.Argument(help="A task with answers; see `lens-skills tasks`.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    tokens: Annotated[int, typer.Option(help="Vectors after the input.")] = 8,
    prefix: Annotated[int, typer.Option(help="Vectors before it.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many prompts, each from a seed of its own.")] = 1,
    share: Annotated[
        float, typer.Option(help="Share of the task to train on; the rest is left to be scored.")
    ] = 0.25,
    epochs: Annotated[int, typer.Option(help="At most so many.")] = 40,
    ending: Annotated[
        str, typer.Option(help=r"Text to follow every answer, learned with it, e.g. '\n'.")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Use at most so many examples.")] = None,
    hard: Annotated[
        list[str] | None, typer.Option(help="A written prompt to compare with (may repeat).")
    ] = None,
    model: Model = None,
    implementation: Implementation = None,
    seed: Seed = 0,
) -> None:
    """Train a soft prompt on part of TASK; writes OUT, or OUT/0, OUT/1, … of several seeds.

    The rest of the task, or 200 examples of it, shows what the prompt is worth.
    """
    from lens_skills.soft_prompts import compare_prompts, fit_prompt
    from lens_skills.tasks import few, open_task

    opened = limited(open_task(task), limit, seed)
    train, rest = opened.split(share, 1 - share, seed=seed, names=("training", "rest"))
    say_if_done(out, "a trained prompt")
    opened_model = open_model(model, implementation)
    ending = ending.replace("\\n", "\n")
    fitted = fit_prompt(
        opened_model, train, n_tokens=tokens, n_prefix=prefix, seeds=seeds, epochs=epochs,
        ending=ending, seed=seed,
    )  # fmt: skip
    several = fitted if isinstance(fitted, tuple) else (fitted,)
    for number, one in enumerate(several):
        typer.echo(repr(one))
        one.save(out if len(several) == 1 else out / str(number))
    typer.echo(repr(compare_prompts(opened_model, few(rest, 200), fitted, hard=tuple(hard or ()))))
    typer.echo(f"\nwritten to {out}; next: lens-skills score {task} --prompt {out} --out …")


def generate(
    task: Annotated[str, typer.Argument(help="A task, e.g. skill_mix.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    prompt: Soft = None,
    tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 60,
    temperature: Annotated[float, typer.Option(help="0 writes the likeliest token.")] = 0.8,
    chat: Annotated[bool, typer.Option(help="Apply the tokenizer's chat template.")] = False,
    limit: Annotated[int | None, typer.Option(help="Use at most so many examples.")] = None,
    grades: Annotated[
        list[Path] | None, typer.Option(help="CSV or JSONL of grades given by hand or by a model.")
    ] = None,
    model: Model = None,
    implementation: Implementation = None,
    seed: Seed = 0,
) -> None:
    """Let the model write for each example of TASK, and grade it by rules; writes OUT.

    Interrupted, the same command goes on where it stopped.
    """
    from lens_skills.generation import generate as write
    from lens_skills.generation import graders
    from lens_skills.models import SoftPrompt
    from lens_skills.tasks import open_task

    opened = limited(open_task(task), limit, seed)
    soft = None if prompt is None else SoftPrompt.load(prompt)
    say_if_done(out, "these texts")
    graded = write(
        open_model(model, implementation),
        opened,
        prompt=soft,
        graders=[graders.detectors, *map(graders.from_file, grades or ())],
        max_new_tokens=tokens,
        temperature=temperature,
        chat=chat,
        seed=seed,
        checkpoint=out.with_name(f".{out.name}-unfinished"),
    )
    graded.save(out)
    graded.frame().to_csv(out.with_suffix(".csv"), index=False)
    typer.echo(repr(graded))
    typer.echo(f"\nwritten to {out} and {out.with_suffix('.csv')}")
