"""The shell's commands around prompts: train a soft prompt, and let the model write."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, limited, open_model
from lens_skills.cli.shared_options import Chat, Limit, Seed, Soft
from lens_skills.cli.steps import Step


def prompt(
    task: Annotated[str, typer.Argument(help="A task with answers; see `lens-skills tasks`.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    tokens: Annotated[int, typer.Option(min=1, help="Vectors after the input.")] = 8,
    prefix: Annotated[int, typer.Option(min=0, help="Vectors before it.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many prompts, each from a seed of its own.")
    ] = 1,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the task to train on; the rest is left to be scored."
        ),
    ] = 0.25,
    epochs: Annotated[int, typer.Option(min=1, help="At most so many.")] = 40,
    ending: Annotated[
        str, typer.Option(help=r"Text to follow every answer, learned with it, e.g. '\n'.")
    ] = "",
    limit: Limit = None,
    chat: Chat = False,
    hard: Annotated[
        list[str] | None, typer.Option(help="A written prompt to compare with (may repeat).")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train a soft prompt on part of TASK; writes OUT, or OUT/0, OUT/1, … of several seeds.

    The rest of the task, or 200 examples of it, shows what the prompt is worth.
    """
    from lens_skills.models import SoftPrompt
    from lens_skills.soft_prompts import PromptComparison, compare_prompts, fit_prompt
    from lens_skills.tasks import few, open_task

    told, opened = call(), limited(open_task(task), limit, seed)
    train, rest = opened.split(share, 1 - share, seed=seed, names=("training", "rest"))
    places = [out] if seeds == 1 else [out / str(number) for number in range(seeds)]
    beside = out.with_name(f"{out.name}-comparison")
    asked = {"TASK": task, "--tokens": tokens, "--prefix": prefix, "--seeds": seeds}
    asked |= {"--share": share, "--epochs": epochs, "--ending": ending, "--limit": limit}
    asked |= {"--hard": hard, "--chat": chat, "--seed": seed, "--model": told.opening["model"]}
    next_command = f"lens-skills score {task} --prompt {places[0]} --out …"
    step = Step(out, "a trained prompt", asked, then=next_command)

    def saved() -> dict[str, Any]:
        there = {place.name: SoftPrompt.load(place) for place in places}
        return there | ({"comparison": PromptComparison.load(beside)} if beside.exists() else {})

    if told.begin(step, saved):
        model = open_model()
        fitted = told.make(
            fit_prompt, model, train, n_tokens=tokens, n_prefix=prefix, seeds=seeds, epochs=epochs,
            ending=ending.replace("\\n", "\n"), seed=seed, chat=chat,
        )  # fmt: skip
        several = fitted if isinstance(fitted, tuple) else (fitted,)
        for place, one in zip(places, several, strict=True):
            one.save(place)
            told.show(place.name, one)
        compared = compare_prompts(model, few(rest, 200), fitted, hard=tuple(hard or ()), chat=chat)
        compared.save(beside)
        told.show("comparison", compared)
        told.wrote(beside)
        told.end(step)


def generate(
    task: Annotated[str, typer.Argument(help="A task, e.g. skill_mix.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    prompt: Soft = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0 writes the likeliest token.")] = 0.8,
    chat: Chat = False,
    limit: Limit = None,
    grades: Annotated[
        list[Path] | None, typer.Option(help="CSV or JSONL of grades given by hand or by a model.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Let the model write for each example of TASK, and grade it by rules; writes OUT.

    Interrupted, the same command goes on where it stopped.
    """
    from lens_skills.generation import Graded, graders
    from lens_skills.generation import generate as write
    from lens_skills.models import SoftPrompt
    from lens_skills.tasks import open_task

    told, opened = call(), limited(open_task(task), limit, seed)
    soft = None if prompt is None else SoftPrompt.load(prompt)
    asked = {"TASK": task, "--prompt": prompt, "--tokens": tokens, "--temperature": temperature}
    asked |= {"--chat": chat, "--limit": limit, "--grades": grades, "--seed": seed}
    asked |= {"--model": told.opening["model"]}
    kept = out.with_name(f".{out.name}-unfinished")
    step = Step(out, "these texts", asked, checkpoint=kept)
    by_hand = [graders.from_file(path) for path in grades or ()]
    if told.begin(step, lambda: {"texts": Graded.load(out)}):
        graded = told.make(
            write,
            open_model(),
            opened,
            prompt=soft,
            graders=[graders.detectors, *by_hand],
            max_new_tokens=tokens,
            temperature=temperature,
            chat=chat,
            seed=seed,
            checkpoint=kept,
        )
        graded.save(out)
        told.show("texts", graded)
        table = out.with_name(f"{out.name}.csv")
        graded.frame().to_csv(table, index=False)
        told.wrote(table)
        told.end(step)
