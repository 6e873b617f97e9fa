"""The shell's analyses of a run: explain neurons, compare methods, trace a circuit."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import limited, open_run_model, say_if_done

Folder = Annotated[Path, typer.Argument(help="A run folder written by `lens-skills score`.")]
Metric = Annotated[str | None, typer.Option(help="Which metric (default: the run's first).")]
CausalMetric = Annotated[
    str | None,
    typer.Option(
        help="What effects are measured by (default logit_diff, else answer_probability)."
    ),
]
Limit = Annotated[int, typer.Option(help="Use at most so many examples of the third split.")]


def explain(
    run: Folder,
    metric: Metric = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(help="L17N635 (may repeat). Default: the confirmed ones, else the top."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many of explore, where none is confirmed.")] = 10,
    limit: Limit = 1000,
) -> None:
    """What neurons of RUN fire for and what they write, on the split that chose none of them."""
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.explanation import explain as explained
    from lens_skills.plotting import figures

    opened = Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    say_if_done(opened.path("explanations", name), f"the explanations for {name}")
    explanations = explained(
        open_run_model(opened),
        opened.intervene_split(limit),
        neuron or _confirmed(opened, name, top),
        at=opened.scores().site,
        **_as_scored(opened),
    )
    explanations.save(opened.path("explanations", name))
    _show(opened, "explanations", name, explanations, figures.feature_matrix(explanations))


def compare_methods(
    run: Folder,
    metric: Metric = None,
    method: Annotated[
        list[str] | None, typer.Option(help="pearson, auroc, taylor … (may repeat; default all).")
    ] = None,
    k: Annotated[int, typer.Option(help="How many neurons each method may name.")] = 20,
    causal_metric: CausalMetric = None,
    limit: Limit = 64,
) -> None:
    """Which methods find neurons that matter: each ranks on explore, its strongest are ablated."""
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.plotting import figures
    from lens_skills.ranking import compare_methods as compared

    opened = Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    examples = opened.intervene_split(limit)
    comparison = compared(
        open_run_model(opened),
        opened.splits()[0],
        name,
        intervene=examples,
        methods=method,
        k=k,
        causal_metric=opened.causal_metric(examples, causal_metric),
        at=opened.scores().site,
        **_as_scored(opened),
    )
    _show(opened, "methods", name, comparison, figures.method_comparison(comparison))


def circuit(
    run: Folder,
    neuron: Annotated[
        list[str] | None,
        typer.Option(help="L17N635 or L9H3 (may repeat: a set). Default: the answer itself."),
    ] = None,
    causal_metric: CausalMetric = None,
    edges: Annotated[int, typer.Option(help="Edges to test per stage.")] = 60,
    depth: Annotated[int, typer.Option(help="1: edges into and out of it; 2: of those; …")] = 2,
    proposals: Annotated[
        str, typer.Option(help="attribution, integrated or relevance.")
    ] = "attribution",
    limit: Limit = 128,
) -> None:
    """What sets a neuron, a head or the answer, and through what it acts: every edge tested."""
    from lens_skills.circuits import circuit as traced
    from lens_skills.circuits import equal_length_pairs
    from lens_skills.cli.runs import Run
    from lens_skills.plotting import figures

    opened = Run.load(run)
    opened.causal_metric(opened.intervene_split(None), causal_metric)
    model = open_run_model(opened)
    pairs = equal_length_pairs(model, opened.intervene_split(None))
    examples = limited(pairs, limit, opened.request.seed)
    start: Any = "answer" if not neuron else neuron[0] if len(neuron) == 1 else neuron
    result = traced(
        model,
        examples,
        start,
        metric=opened.causal_metric(examples, causal_metric),
        proposals=proposals,
        n_edges=edges,
        depth=depth,
        **_as_scored(opened),
    )
    result.save(opened.path("circuit", result.target))
    _show(opened, "circuit", result.target, result, figures.circuit_graph(result))


def _show(run: Any, what: str, name: str, result: Any, drawing: Any) -> None:
    """Prints a result, and writes its table and its figure into the run's folder."""
    typer.echo(repr(result))
    table = run.path(what, name, ".csv")
    result.frame().to_csv(table, index=False)
    figure = drawing.save(run.folder / "figures")
    typer.echo(f"\nwritten to {table} and {figure}")


def _as_scored(run: Any) -> dict[str, Any]:
    """Position, prompt and seed of the run's scores; of a soft prompt's vectors, the last."""
    position = str(run.request.options.get("position", "last"))
    position = "last" if position == "prompt" else position
    return {"position": position, "prompt": run.prompt(), "seed": run.request.seed}


def _confirmed(run: Any, metric: str, top: int) -> Any:
    """What was confirmed for the metric, or the strongest of explore where nothing was."""
    for selection in run.selections():
        if selection.metric == metric and len(selection):
            return selection
    typer.echo(f"nothing of {metric!r} is confirmed: the {top} strongest of explore", err=True)
    return run.scores()[metric].top(top)
