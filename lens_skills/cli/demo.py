"""The demonstration: a skill the model has, and one it mostly has not, through every step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lens_skills.activations import stream
from lens_skills.cli.console import Call, open_model
from lens_skills.cli.steps import Step
from lens_skills.cli.terminal import say
from lens_skills.estimation import estimate
from lens_skills.interventions import Controls
from lens_skills.plotting import figures
from lens_skills.plotting.style import joined, source
from lens_skills.reporting import report
from lens_skills.settings import config
from lens_skills.studies import Study, study
from lens_skills.tasks import open_task

# What an arithmetic prompt says without any adding: with these taken out, is anything left?
SURFACE = ("op", "operand_a", "operand_b", "result", "answer_is_operand", "contains_zero")

_AGREEMENT, _ARITHMETIC = "agreement", "arithmetic:+-*:1,2"

# Enough for twenty neurons, and few enough for a demonstration.
CONTROLS = Controls(sets=100, neurons=200)

# Edits on answers of several tokens take longer than all the rest.
WITHOUT_VERDICT = (0.4, 0.2)


def run_demo(call: Call, out: Path, *, seed: int = 0) -> None:
    """Studies agreement and arithmetic: a card each, figures and tables, one report to read."""
    lacks = open_task(_ARITHMETIC)
    correct = {"metric": "correct", "fractions": WITHOUT_VERDICT}
    has = {"metric": "label:plural", "controls": CONTROLS}
    has["also"] = ("logit_diff", "confidence", "first_token_correct")
    parts: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("agreement", "1. A skill the model has: subject-verb agreement", open_task(_AGREEMENT),
         has),
        ("arithmetic", "2. A skill it mostly has not: BIG-bench arithmetic, neurons that know it "
         "will be right", lacks, correct | {"also": ("confidence", "first_token_correct")}),
        ("arithmetic-given-surface", "3. The same, with what the prompt says on its surface "
         "partialled out", lacks, correct | {"given": SURFACE}),
    ]  # fmt: skip
    model, before, waiting = None, None, dict[Path, Study]()
    for name, title, task, options in parts:
        place = out / name / "study"
        opened = {f"--{option}": value for option, value in call.opening.items()}
        about = {"task": _AGREEMENT if options is has else _ARITHMETIC}
        step = Step(place, f"the study of {name}", {"--seed": seed, **opened, **about})
        if not call.as_json:
            print(f"\n━━ {title} ━━", flush=True)
        if not call.begin(step, lambda place=place: {place.parent.name: Study.load(place)}):
            before = Study.load(place)
            if not any((out / name).glob("activation-*.json")):
                waiting[out / name] = before
            continue
        model = model or open_model()
        if call.dry_run:
            call.show_estimate(name, estimate("study", model, task, seed=seed, **options))
            continue
        earlier = before if name == "arithmetic-given-surface" else None
        before = result = study(model, task, earlier=earlier, seed=seed, **options)
        call.show(name, result)
        draw(result, out / name)
        result.save(place)
        call.end(step)
        waiting[out / name] = result
    if call.dry_run:
        call.end_dry_run()
    if waiting:
        model = model or open_model()
        draw_strongest(model, waiting)
    written = report(out, out / "report.html", model=model)
    call.wrote(written)
    say(f"all of it to read, sort and print: {written.resolve().as_uri()}")
    call.then(f"lens-skills publish {out} --licence CC-BY-4.0")


def draw(result: Study, folder: Path) -> None:
    """Every figure of a study that needs no model."""
    for drawing in figures.of(result, metrics=[result.metric]):
        drawing.save(folder)


def draw_strongest(model: Any, studies: Mapping[Path, Study]) -> None:
    """Of each study the strongest neuron's activations; of the same examples in one pass.

    Args:
        model: The model the studies are of.
        studies: By the folder of their figures.
    """
    waiting = dict(studies)
    while waiting:
        explore = next(iter(waiting.values())).explore
        same = {
            folder: (found, found.scores[found.metric].top(1)[0])
            for folder, found in waiting.items()
            if [*found.explore] == [*explore]
        }
        layers = sorted({unit.layer for _, unit in same.values()})
        order: list[int] = []
        activations: dict[Path, list[float]] = {folder: [] for folder in same}
        with config(progress=False):
            for batch in stream(model, explore, layers=layers):
                order += batch.index.tolist()
                for folder, (_, unit) in same.items():
                    place = layers.index(unit.layer)
                    activations[folder] += batch.activations[:, place, unit.index].tolist()
        for folder, (found, unit) in same.items():
            scores = found.scores
            figures.activation_scatter(
                activations[folder],
                scores.values[found.metric][order],
                name=unit.name,
                metric=found.metric,
                site=scores.site,
                position=scores.positions[0],
                groups=[explore[place].group for place in order],
                about=joined(*source(scores.provenance)),
            ).save(folder)
            del waiting[folder]
