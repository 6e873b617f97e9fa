"""The shell's commands that intervene: on what a run selected, and on units somebody names."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import (
    call,
    choose,
    is_run,
    limited,
    nearest_run,
    open_model,
    open_read_model,
    open_run_model,
)
from lens_skills.cli.feature_folders import featured, open_dictionaries, site_of
from lens_skills.cli.shared_options import (
    CausalMetric,
    Chat,
    ControlNeurons,
    ControlSets,
    Delta,
    Features,
    Folder,
    Intervene,
    Metric,
    Most,
    Permutations,
    Seed,
)
from lens_skills.cli.steps import Step
from lens_skills.errors import LensSkillsError

POSITIONS = ("last", "all")  # or an index; where a value was pooled over all, all are edited


def verify(
    run: Folder,
    metric: Metric = None,
    causal_metric: CausalMetric = None,
    delta: Delta = None,
    limit: Intervene = 64,
    most: Most = 20,
    control_sets: ControlSets = 200,
    control_neurons: ControlNeurons = 400,
) -> None:
    """Ablate the selected neurons of RUN on its third split, beside control neurons.

    Interrupted, the same command goes on where it stopped.
    """
    is_run(run)
    from lens_skills.cli.runs import Run, chosen_metric, main_metric
    from lens_skills.interventions import Verdict, controls

    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    chosen_metric(opened.intervene_split(limit), causal_metric)
    asked: dict[str, Any] = {"causal_metric": causal_metric, "delta": delta}
    asked |= {"limit": limit, "most": most}
    sizes: dict[str, Any] = {"control_sets": control_sets, "control_neurons": control_neurons}
    step = opened.verifying(name, opened.selected(name), **asked, **sizes)
    if told.begin(step, lambda: {"verdict": Verdict.load(step.place)}):
        against = controls(control_sets, neurons=control_neurons)
        verdict = opened.verify(open_run_model(opened), name, controls=against, **asked)
        told.show("verdict", verdict)
        told.end(step)


def dose(
    run: Folder,
    metric: Metric = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(
            help="L17N635 or L9H3 (may repeat: steered together). Default: the one of largest "
            "effect, else the strongest."
        ),
    ] = None,
    by: Annotated[
        list[float] | None,
        typer.Option(help="A dose in standard deviations (may repeat; default -4 -2 0 1 2 4)."),
    ] = None,
    causal_metric: CausalMetric = None,
    limit: Intervene = 64,
) -> None:
    """Steer neurons of RUN by several doses: what the metric does, and what other text suffers."""
    is_run(run)
    from lens_skills.activations import check_names
    from lens_skills.cli.runs import Run, chosen_metric, joined, main_metric
    from lens_skills.interventions import DoseResponse, dose_response
    from lens_skills.interventions.dose_response import DOSES, check_doses

    check_names(neuron or [])
    doses = check_doses(by or DOSES)
    told, opened = call(), Run.load(run)
    scores = opened.scores()
    name = main_metric(scores.metrics, metric)
    examples = opened.intervene_split(limit)
    causal = chosen_metric(examples, causal_metric)
    steered = neuron or [opened.strongest(name)]
    place = opened.path("dose", joined(steered))
    asked = {"--by": doses, "--causal-metric": causal, "--limit": limit}
    what = f"the effects of steering {joined(steered)}"
    step = Step(place, what, asked, then=f"lens-skills figures {run}")
    if told.begin(step, lambda: {"dose": DoseResponse.load(place)}):
        curve = told.make(
            dose_response,
            open_read_model(opened),
            examples,
            steered,
            doses=doses,
            metric=causal,
            over=scores if set(steered) <= set(scores.names()) else opened.splits()[0],
            at=scores.site,
            **_edited_where_scored(opened),
        )
        told.keep(step, "dose", curve, run / "figures")


def sweep(
    run: Folder,
    causal_metric: CausalMetric = None,
    screen: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Measure only this share, that of which gradients expect most (0.07), and a "
            "random sample of the rest, which says how much was left out.",
        ),
    ] = None,
    limit: Intervene = 16,
) -> None:
    """Ablate every neuron of RUN alone, on its third split: what each does to the metric.

    Interrupted, the same command goes on where it stopped.
    """
    is_run(run)
    from lens_skills.cli.runs import Run, chosen_metric
    from lens_skills.interventions import Effects, ablate
    from lens_skills.interventions import sweep as swept

    if screen == 0:
        raise LensSkillsError("--screen 0 would measure nothing. Leave it out to measure all.")
    told, opened = call(), Run.load(run)
    examples = opened.intervene_split(limit)
    causal = chosen_metric(examples, causal_metric)
    place = opened.path("sweep", causal)
    asked = {"--causal-metric": causal, "--screen": screen, "--limit": limit}
    step = Step(place, f"the sweep of {causal}", asked, then=f"lens-skills report {run}")
    if told.begin(step, lambda: {"sweep": Effects.load(place)}):
        effects = told.make(
            swept,
            open_read_model(opened),
            examples,
            do=ablate("mean", over=opened.splits()[0]),
            metric=causal,
            at=opened.scores().site,
            screen=screen,
            checkpoint=opened.path("sweeping", causal),
            **_edited_where_scored(opened),
        )
        told.keep(step, "sweep", effects, run / "figures")


def _edited_where_scored(opened: Any) -> dict[str, Any]:
    """Position and seed of the run's scores; what was pooled over all tokens is edited at all."""
    where = opened.as_scored()
    return where | ({"position": "all"} if _pooled(where["position"]) else {})


def _pooled(position: str) -> bool:
    """Whether it is a number over all tokens, which names none of them to be edited."""
    return position in ("mean", "max") or position.startswith("count")


def audit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|TASK",
            help="A run folder (its third split is read), or a task as `score` takes it.",
        ),
    ],
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="L17N635, L9H3, L5MLP …")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write, of a task (of a run: RUN itself).")
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(
            help="A metric they are said to carry (may repeat). Default: those of the run; of a "
            "task its labels and the causal metric."
        ),
    ] = None,
    causal_metric: CausalMetric = None,
    delta: Delta = None,
    at: Annotated[
        str | None, typer.Option(help="Hook point of units named as neurons (mlp.hook_post).")
    ] = None,
    features: Features = None,
    position: Annotated[
        str | None, typer.Option(help="Where they are read and edited: last, -2, all.")
    ] = None,
    control_sets: ControlSets = 200,
    control_neurons: ControlNeurons = 400,
    permutations: Permutations = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most so many examples.")] = 200,
    seed: Seed = 0,
    chat: Chat = False,
) -> None:
    """Somebody names neurons or heads: what is left of the claim, by nulls and by ablation.

    Half of the examples are read for what the units carry, on the other half they are ablated.
    """
    from lens_skills.activations import check_names, known_values, parse_metrics
    from lens_skills.cli.runs import chosen_metric, joined
    from lens_skills.interventions import Audit, controls
    from lens_skills.interventions import audit as audited
    from lens_skills.results import file_name

    told = call()
    check_names(names)
    if position is not None and not position.lstrip("-").isdigit():
        choose("position", position, POSITIONS)
    task, run, folder = _audited(source, out, limit, seed)
    where = {"position": "last", "seed": seed} if run is None else run.as_scored()
    if _pooled(where["position"]):
        where["position"] = "all"
    where |= {} if position is None else {"position": position}
    if run is not None and features:
        raise LensSkillsError(
            f"{source} is a run, which says its own features. Leave out --features, or name the "
            "task instead of the run."
        )
    site = site_of(at, features or ()) if run is None else at or run.request.options.get("at")
    open_dictionaries(features or ())
    claims = claim or (None if run is None else list(run.request.metrics))
    causal = chosen_metric(task, causal_metric)
    known_values(parse_metrics(claims or (), task), task)
    place = folder / file_name("audit", joined(names))
    asked = {"--claim": claims, "--causal-metric": causal, "--delta": delta, "--at": site}
    asked |= {f"--{name}": value for name, value in where.items()}
    asked |= {"--control-sets": control_sets, "--control-neurons": control_neurons}
    asked |= {"--permutations": permutations, "--limit": limit, "--chat": chat}
    asked |= {} if run else {"TASK": source, "--model": told.opening["model"], **told.columns}
    asked |= {"--features": features} if features else {}
    then = f"lens-skills figures {folder}" if run else f"lens-skills show {folder}"
    step = Step(place, f"the audit of {', '.join(names)}", asked, then=then)
    if told.begin(step, lambda: {"audit": Audit.load(place)}):
        result = told.make(
            audited,
            open_read_model(run) if run else featured(open_model(), features or ()),
            task,
            neurons=names,
            metric=causal,
            claims=claims,
            at=site or "mlp.hook_post",
            controls=controls(control_sets, neurons=control_neurons),
            delta=delta,
            n_permutations=permutations,
            chat=False if run else chat,
            **where,
        )
        told.keep(step, "audit", result, folder / "figures")


def _audited(source: str, out: Path | None, limit: int, seed: int) -> tuple[Any, Any, Path]:
    """The examples of an audit, the run they are of (None for a task), and the folder to write."""
    from lens_skills.cli.runs import Run
    from lens_skills.tasks import open_task

    told = call()
    if (Path(source) / "run.json").exists():
        given = [f"--{name}" for name, value in told.opening.items() if value and name == "model"]
        if given or told.columns:
            raise LensSkillsError(
                f"{source} is a run, which says its own model and columns. Leave out --model and "
                "the columns of a table, or name the task instead of the run."
            )
        run = Run.load(source)
        return run.intervene_split(limit), run, out or run.folder
    if out is None:
        raise LensSkillsError(
            f"{source} is no run.{nearest_run(Path(source))} Of a task, say where to write: "
            "--out FOLDER."
        )
    return limited(open_task(source, told.columns), limit, seed), None, out
