"""The shell's analyses of a run: explain neurons, compare methods, trace a circuit."""

import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, choose, is_run, limited, open_run_model
from lens_skills.cli.shared_options import CausalMetric, Folder, Metric, Neurons, ThirdSplit
from lens_skills.cli.steps import Step
from lens_skills.errors import LensSkillsError


def explain(
    run: Folder,
    metric: Metric = None,
    neuron: Neurons = None,
    top: Annotated[int, typer.Option(help="How many of explore, where none is confirmed.")] = 10,
    limit: ThirdSplit = 1000,
) -> None:
    """What neurons of RUN fire for and what they write, on the split that chose none of them."""
    is_run(run)
    from lens_skills.activations import check_names
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.explanation import Explanations
    from lens_skills.explanation import explain as explained
    from lens_skills.plotting import figures

    check_names(neuron or [])
    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    examples = opened.intervene_split(limit)
    place = opened.path("explanations", name)
    asked = {"--neuron": neuron, "--limit": limit} | ({} if neuron else {"--top": top})
    step = Step(place, f"the explanations for {name}", asked)
    if told.begin(step, lambda: {"explanations": Explanations.load(place)}):
        explanations = explained(
            open_run_model(opened),
            examples,
            neuron or _confirmed(opened, name, top),
            at=opened.scores().site,
            **_as_scored(opened),
        )
        _keep(opened, step, "explanations", explanations, figures.feature_matrix)


def compare_methods(
    run: Folder,
    metric: Metric = None,
    method: Annotated[
        list[str] | None, typer.Option(help="pearson, auroc, taylor … (may repeat; default all).")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="How many neurons each method may name.")] = 20,
    causal_metric: CausalMetric = None,
    limit: ThirdSplit = 64,
) -> None:
    """Which methods find neurons that matter: each ranks on explore, its strongest are ablated."""
    is_run(run)
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.models import with_soft_prompt
    from lens_skills.plotting import figures
    from lens_skills.ranking import METHODS, MethodComparison
    from lens_skills.ranking import compare_methods as compared

    for one in method or ():
        choose("method", one, tuple(METHODS))
    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    examples = opened.intervene_split(limit)
    causal = opened.causal_metric(examples, causal_metric)
    place = opened.path("methods", name)
    asked = {"--method": method, "--k": k, "--causal-metric": causal, "--limit": limit}
    step = Step(place, f"the comparison of methods for {name}", asked)
    if told.begin(step, lambda: {"methods": MethodComparison.load(place)}):
        scored = _as_scored(opened)
        comparison = compared(
            with_soft_prompt(open_run_model(opened), scored.pop("prompt"), scored.pop("chat")),
            opened.splits()[0],
            name,
            intervene=examples,
            methods=method,
            k=k,
            causal_metric=causal,
            at=opened.scores().site,
            **scored,
        )
        _keep(opened, step, "methods", comparison, figures.method_comparison)


def circuit(
    run: Folder,
    neuron: Annotated[
        list[str] | None,
        typer.Option(help="L17N635 or L9H3 (may repeat: a set). Default: the answer itself."),
    ] = None,
    causal_metric: CausalMetric = None,
    edges: Annotated[int, typer.Option(min=1, help="Edges to test per stage.")] = 60,
    depth: Annotated[
        int, typer.Option(min=1, help="1: edges into and out of it; 2: of those; …")
    ] = 2,
    proposals: Annotated[
        str, typer.Option(help="attribution, integrated or relevance.")
    ] = "attribution",
    limit: ThirdSplit = 128,
) -> None:
    """What sets a neuron, a head or the answer, and through what it acts: every edge tested."""
    choose("kind of proposals", proposals, ("attribution", "integrated", "relevance"))
    for name in neuron or ():
        if not re.fullmatch(r"L\d+[A-Z]+[\d.]*", name):
            raise LensSkillsError(f"no neuron or head {name!r}. Names look like L17N635 or L9H3.")
    is_run(run)
    from lens_skills.circuits import Circuit, equal_length_pairs
    from lens_skills.circuits import circuit as traced
    from lens_skills.cli.runs import Run
    from lens_skills.plotting import figures

    told, opened = call(), Run.load(run)
    causal = opened.causal_metric(opened.intervene_split(None), causal_metric)
    start: Any = "answer" if not neuron else neuron[0] if len(neuron) == 1 else neuron
    named = start if isinstance(start, str) else "+".join(start)
    place = opened.path("circuit", named)
    asked = {"--causal-metric": causal, "--edges": edges, "--depth": depth}
    asked |= {"--proposals": proposals, "--limit": limit}
    step = Step(place, f"the circuit of {named}", asked)
    if told.begin(step, lambda: {"circuit": Circuit.load(place)}):
        model = open_run_model(opened)
        pairs = equal_length_pairs(model, opened.intervene_split(None))
        result = traced(
            model,
            limited(pairs, limit, opened.request.seed),
            start,
            metric=causal,
            proposals=proposals,
            n_edges=edges,
            depth=depth,
            **_as_scored(opened),
        )
        _keep(opened, step, "circuit", result, figures.circuit_graph)


def _keep(run: Any, step: Step, name: str, result: Any, draw: Callable[[Any], Any]) -> None:
    """Saves a result, prints it, and writes its table and its figure into the run's folder."""
    result.save(step.place)
    call().show(name, result)
    table = step.place.with_name(f"{step.place.name}.csv")
    result.frame().to_csv(table, index=False)
    call().wrote(table)
    try:
        call().wrote(draw(result).save(run.folder / "figures"))
    except LensSkillsError as nothing:  # no edge, say: the table has what was tested
        call().note(f"no figure: {nothing}")
    call().end(step)


def _as_scored(run: Any) -> dict[str, Any]:
    """Position, prompt, chat and seed of the run's scores; of a soft prompt's vectors, the last."""
    position = str(run.request.options.get("position", "last"))
    position = "last" if position == "prompt" else position
    about = {"prompt": run.prompt(), "chat": run.request.options.get("chat", False)}
    return {"position": position, "seed": run.request.seed, **about}


def _confirmed(run: Any, metric: str, top: int) -> Any:
    """What was confirmed for the metric, or the strongest of explore where nothing was."""
    for selection in run.selections():
        if selection.metric == metric and len(selection):
            return selection
    call().note(f"nothing of {metric!r} is confirmed: the {top} strongest of explore")
    return run.scores()[metric].top(top)
