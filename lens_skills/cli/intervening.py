"""The shell's commands that intervene: on what a run selected, and on neurons somebody names."""

from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, is_run, open_run_model
from lens_skills.cli.shared_options import (
    CausalMetric,
    ControlNeurons,
    ControlSets,
    Delta,
    Folder,
    Metric,
    Most,
)


def verify(
    run: Folder,
    metric: Metric = None,
    causal_metric: CausalMetric = None,
    delta: Delta = None,
    limit: Annotated[int, typer.Option(min=1, help="Examples to intervene on.")] = 64,
    most: Most = 20,
    control_sets: ControlSets = 200,
    control_neurons: ControlNeurons = 400,
) -> None:
    """Ablate the selected neurons of RUN on its third split, beside control neurons.

    Interrupted, the same command goes on where it stopped.
    """
    is_run(run)
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.interventions import Verdict, controls

    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    opened.causal_metric(opened.intervene_split(limit), causal_metric)
    asked: dict[str, Any] = {"causal_metric": causal_metric, "delta": delta}
    asked |= {"limit": limit, "most": most}
    sizes = {"control_sets": control_sets, "control_neurons": control_neurons}
    step = opened.verifying(name, opened.selected(name), **asked, **sizes)
    if told.begin(step, lambda: {"verdict": Verdict.load(step.place)}):
        against = controls(control_sets, neurons=control_neurons)
        verdict = opened.verify(open_run_model(opened), name, controls=against, **asked)
        told.show("verdict", verdict)
        told.end(step)
