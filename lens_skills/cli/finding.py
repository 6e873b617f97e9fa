"""The shell's commands that find neurons: score them, select what is confirmed, or all in one."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, choose, is_run, named, open_run_model
from lens_skills.cli.feature_folders import site_of
from lens_skills.cli.shared_options import (
    At,
    CausalMetric,
    Chat,
    ControlNeurons,
    ControlSets,
    Delta,
    Exchange,
    Fdr,
    Features,
    Folder,
    Given,
    Intervene,
    Limit,
    Metric,
    Most,
    Out,
    Permutations,
    Precision,
    Seed,
    Soft,
    TaskName,
)
from lens_skills.cli.steps import Step

EXCHANGES = ("auto", "within", "kinds", "between", "free", "signs")
DOORS = ("association", "prediction", "both")
POSITIONS = ("last", "mean", "max", "all", "prompt")  # or an index, or count(0.5)
PRECISIONS = ("bfloat16",)
POSITIONS_HELP = "last, an index such as -2, mean, max, count(0.5), all"


def score(
    task: TaskName,
    out: Out,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="label:NAME, covariate:NAME, correct, confidence, entropy, logit_diff …"),
    ] = None,
    at: At = None,
    features: Features = None,
    position: Annotated[str | None, typer.Option(help=f"{POSITIONS_HELP} or prompt.")] = None,
    prompt: Soft = None,
    given: Given = None,
    exchange: Exchange = "auto",
    permutations: Permutations = None,
    limit: Limit = None,
    seed: Seed = 0,
    chat: Chat = False,
    precision: Precision = None,
) -> None:
    """Score every neuron on the explore split of TASK; writes the run folder OUT.

    Interrupted, the same command goes on where it stopped.
    """
    request = _request(
        task,
        tuple(metric or ["confidence"]),
        at=at,
        features=features,
        position=position or ("last" if prompt is None else "prompt"),
        given=given,
        exchange=exchange,
        permutations=permutations,
        limit=limit,
        seed=seed,
        chat=chat,
        prompt=prompt,
        precision=precision,
    )
    from lens_skills.cli.runs import Run

    told = call()
    Run(out, request).check()
    run = Run.create(out, request, command=told.command, written=not told.dry_run)
    if told.begin(run.exploring(), lambda: {"scores": run.scores()}):
        told.show("scores", run.explore(open_run_model(run)))
        told.wrote(out)
        told.then(run.exploring().next())


def _request(
    task: str,
    metrics: tuple[str, ...],
    *,
    position: str,
    exchange: str,
    given: list[str] | None,
    permutations: int | None,
    limit: int | None,
    seed: int,
    at: str | None,
    features: list[str] | None,
    prompt: Path | None = None,
    precision: str | None = None,
    **options: Any,
) -> Any:
    """What a run was asked on the command line; values that are none of those known are refused."""
    choose("exchange scheme", exchange, EXCHANGES)
    if precision is not None:
        choose("precision", precision, PRECISIONS)
        options["precision"] = precision
    if position.startswith("count"):
        from lens_skills.activations import parse_position

        parse_position(position)
    elif not position.lstrip("-").isdigit():
        choose("position", position, POSITIONS)
    from lens_skills.cli.runs import RunRequest

    told = call()
    options |= {"at": site_of(at, features or ()), "position": position, "exchange": exchange}
    options |= named("given", given)
    return RunRequest(
        task=task,
        metrics=metrics,
        model=told.opening["model"],
        implementation=told.opening["implementation"],
        dtype=told.opening["dtype"],
        columns=told.columns,
        options=options | ({} if permutations is None else {"n_permutations": permutations}),
        seed=seed,
        limit=limit,
        prompt=None if prompt is None else str(prompt),
        features=tuple(features or ()),
    )


def study(
    task: TaskName,
    out: Out,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="What to look for (default logit_diff, else correct, else a label); repeated, "
            "further metrics of the same pass."
        ),
    ] = None,
    at: At = None,
    features: Features = None,
    position: Annotated[str, typer.Option(help=f"{POSITIONS_HELP}.")] = "last",
    given: Given = None,
    exchange: Exchange = "auto",
    permutations: Permutations = None,
    fdr: Fdr = 0.05,
    causal_metric: CausalMetric = None,
    delta: Delta = None,
    intervene: Intervene = 64,
    most: Most = 20,
    by: Annotated[
        str,
        typer.Option(
            help="association (what neurons know), prediction (what gradients expect an edit of "
            "each to do) or both; --most of each are tried."
        ),
    ] = "association",
    control_sets: ControlSets = 200,
    control_neurons: ControlNeurons = 400,
    limit: Limit = None,
    seed: Seed = 0,
    chat: Chat = False,
) -> None:
    """Preflight, score, select and verify TASK in one call; writes the run folder OUT.

    The other commands go on from OUT as from one that `score` began. Interrupted, it begins again;
    `score`, `select` and `verify` do the same in steps and lose less.
    """
    request = _request(
        task,
        tuple(metric or [""]),
        at=at,
        features=features,
        position=position,
        given=given,
        exchange=exchange,
        permutations=permutations,
        limit=limit,
        seed=seed,
        chat=chat,
    )
    choose("way to find neurons", by, DOORS)
    from lens_skills.activations import parse_metrics
    from lens_skills.cli.demo import draw, draw_strongest
    from lens_skills.cli.runs import Run
    from lens_skills.interventions import controls
    from lens_skills.studies import Study, default_metric
    from lens_skills.studies import study as studied
    from lens_skills.tasks import require_examples

    told = call()
    opened = Run(out, request).task()
    require_examples(opened, 40)
    main, *further = metric or [default_metric(opened)]
    request = replace(request, metrics=(main, *(name for name in further if name != main)))
    Run(out, request).check()
    parse_metrics(causal_metric or (), opened)
    run = Run.create(out, request, command=told.command, written=not told.dry_run)
    asked = {"--fdr": fdr, "--most": most, "--causal-metric": causal_metric, "--delta": delta}
    asked |= {"--control-sets": control_sets, "--control-neurons": control_neurons}
    asked |= {"--intervene": intervene, "--by": by}
    place = out / "study"
    step = Step(place, "this study", asked, then=f"lens-skills explain {out} --metric {main}")
    if told.begin(step, lambda: {"study": Study.load(place)}):
        model = open_run_model(run)
        result = told.make(
            studied,
            model,
            opened,
            metric=main,
            also=request.metrics[1:],
            causal_metric=causal_metric,
            delta=delta,
            n_intervene=intervene,
            controls=controls(control_sets, neurons=control_neurons),
            fdr=fdr,
            most=most,
            by=by,
            seed=seed,
            **request.options,
        )
        told.show("study", result)
        run.keep(result)
        run.selecting(main, fdr=fdr).record()
        if result.verdict is not None:
            run.verifying(
                main,
                result.selection,
                causal_metric=causal_metric,
                delta=delta,
                limit=intervene,
                most=most,
                control_sets=control_sets,
                control_neurons=control_neurons,
            ).record()
        draw(result, out / "figures")
        draw_strongest(model, {out / "figures": result})
        told.wrote(out / "figures")
        result.save(place)
        told.end(step)


def select(
    run: Folder,
    metric: Metric = None,
    fdr: Fdr = 0.05,
    top: Annotated[int, typer.Option(min=1, help="How many of explore's strongest to test.")] = 200,
    grade: Annotated[
        str | None,
        typer.Option(help="B or C: the lowest grade to keep (default B, without control task C)."),
    ] = None,
) -> None:
    """Test the strongest neurons of RUN on its unseen confirm split; prints the evidence."""
    choose("grade", grade, ("B", "C"))
    is_run(run)
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.scoring import Selection

    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    step = opened.selecting(name, fdr=fdr, top=top, grade=grade)
    if told.begin(step, lambda: {"selection": Selection.load(step.place)}):
        selection = opened.confirm(open_run_model(opened), name, fdr=fdr, top=top, grade=grade)
        told.show("selection", selection)
        told.end(step)
