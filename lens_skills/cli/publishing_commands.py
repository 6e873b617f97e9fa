"""`lens-skills publish` and `check`: a run's neurons as a file for others, and theirs for you."""

from pathlib import Path
from typing import Annotated

import typer

from lens_skills.cli.console import call, is_run, open_model, open_run_model
from lens_skills.cli.shared_options import Folder, Metric


def publish(
    run: Folder,
    licence: Annotated[str, typer.Option(help="Under which others may use it: CC-BY-4.0, …")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write (default: RUN/neuron-set).")
    ] = None,
    metric: Metric = None,
    citation: Annotated[str, typer.Option(help="How to cite it.")] = "",
    name: Annotated[str, typer.Option(help="What the set is called (default: the task).")] = "",
    push: Annotated[
        str | None, typer.Option(help="Upload it to this repository of the hub: user/name.")
    ] = None,
) -> None:
    """Write the neurons RUN confirmed, with all evidence, as a NeuronSet that others can check."""
    is_run(run)
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.interventions import Verdict
    from lens_skills.publishing import NeuronSet

    told, opened = call(), Run.load(run)
    chosen = main_metric(opened.scores().metrics, metric)
    selection, tried = opened.selected(chosen), opened.path("verdict", chosen)
    made = NeuronSet.of(
        selection,
        open_run_model(opened),
        opened.task(),
        licence=licence,
        citation=citation,
        name=name,
        verdict=Verdict.load(tried) if tried.exists() else None,
    )
    told.show("neuron_set", made)
    if not tried.exists():
        told.note(f"nothing is known of effects: `lens-skills verify {run}` measures them")
    told.wrote(made.save(out or run / "neuron-set"))
    if push is not None:
        told.wrote(made.push(push))


def check(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|hub:user/name", help="A published NeuronSet.")
    ],
) -> None:
    """Does --model hold the weights that a published NeuronSet is of? If not, what differs."""
    from lens_skills.publishing import NeuronSet

    told = call()
    theirs = NeuronSet.load(source)
    told.show("neuron_set", theirs)
    told.show("check", theirs.check(open_model()))
