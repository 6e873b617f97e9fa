"""The shell's analyses of a run: explain neurons, look for shortcuts, trace a circuit, compare."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_skills.cli.console import call, choose, is_run, limited, open_read_model, open_run_model
from lens_skills.cli.shared_options import (
    CausalMetric,
    Delta,
    Folder,
    Intervene,
    Metric,
    Neurons,
    ThirdSplit,
    Top,
)
from lens_skills.cli.steps import Step
from lens_skills.errors import LensSkillsError


def explain(
    run: Folder,
    metric: Metric = None,
    neuron: Neurons = None,
    top: Top = 10,
    limit: ThirdSplit = 1000,
    describer: Annotated[
        str | None,
        typer.Option(
            help="A sentence for each neuron: features (the feature bank's), or the URL of an "
            "OpenAI-compatible endpoint, which is also asked to judge them."
        ),
    ] = None,
    describer_model: Annotated[
        str | None, typer.Option(help="What the model is called at the endpoint.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the endpoint's key.")
    ] = None,
) -> None:
    """What neurons of RUN fire for and what they write, on the split that chose none of them."""
    is_run(run)
    who = _describer(describer, describer_model, api_key_env, run / "words")
    from lens_skills.activations import check_names
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.explanation import Explanations
    from lens_skills.explanation import explain as explained

    check_names(neuron or [])
    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    examples = opened.intervene_split(limit)
    place = opened.path("explanations", name)
    asked = {"--neuron": neuron, "--limit": limit} | ({} if neuron else {"--top": top})
    if describer:
        url = getattr(who, "report", dict)().get("url")  # without a password that the address holds
        asked |= {"--describer": url or describer, "--describer-model": describer_model}
    then = f"lens-skills circuit {run}"
    step = Step(place, f"the explanations for {name}", asked, then=then)
    if told.begin(step, lambda: {"explanations": Explanations.load(place)}):
        explanations = told.make(
            explained,
            open_run_model(opened),
            examples,
            opened.neurons(name, neuron, top),
            at=opened.scores().site,
            prompt=opened.prompt(),
            chat=opened.request.options.get("chat", False),
            describer=who,
            **opened.as_scored(),
        )
        told.keep(step, "explanations", explanations, run / "figures")


def _describer(named: str | None, model: str | None, key: str | None, cache: Path) -> Any:
    """Who describes, and keeps what an endpoint answered in the run's folder."""
    if named is None or "://" not in named:
        if model or key:
            raise LensSkillsError(
                "--describer-model and --api-key-env belong to an endpoint: say --describer URL."
            )
        if named not in (None, "features"):
            raise LensSkillsError(
                f"describer= is 'features', or an endpoint's address (http://…), not "
                f"{named.rpartition('@')[2]!r}."
            )
        return named
    if model is None:
        raise LensSkillsError("which model at the endpoint? Say --describer-model NAME.")
    from lens_skills.generation import endpoint

    return endpoint(named, model=model, api_key_env=key, cache=cache)


def shortcuts(
    run: Folder,
    metric: Metric = None,
    neuron: Annotated[
        list[str] | None,
        typer.Option(help="L17N635 (may repeat). Default: a search for the strongest."),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="How many neurons of the search to test.")] = 5,
    sets: Annotated[
        int, typer.Option(min=0, help="Of so many, test those of one feature together as well.")
    ] = 0,
    control_sets: Annotated[
        int, typer.Option(min=1, help="Random sets that each set is compared with.")
    ] = 200,
    least: Annotated[
        float, typer.Option(min=0, max=1, help="Share of variance from which a feature explains.")
    ] = 0.1,
    causal_metric: CausalMetric = None,
    delta: Delta = None,
    control_neurons: Annotated[
        int, typer.Option(min=1, help="The most alike of its layer that each is compared with.")
    ] = 100,
    permutations: Annotated[
        int, typer.Option(min=19, help="Draws of the null, of the search and of the features.")
    ] = 999,
    limit: ThirdSplit = 200,
) -> None:
    """Which strong neurons of RUN owe it to a surface feature of the prompt; ablation decides."""
    is_run(run)
    from lens_skills.activations import check_names, parse_metric
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.explanation import Shortcuts
    from lens_skills.explanation import shortcuts as find_shortcuts
    from lens_skills.explanation.shortcuts import check_groups, parse_causal_metric
    from lens_skills.interventions import controls

    check_names(neuron or [])
    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    intervene = opened.intervene_split(limit)
    explore, confirm, *_ = opened.splits()
    check_groups(explore, confirm, intervene)
    parse_causal_metric(parse_metric(name, explore, asked="--metric"), causal_metric, intervene)
    place = opened.path("shortcuts", name)
    asked = {"--neuron": neuron, "--least": least, "--causal-metric": causal_metric}
    asked |= {"--delta": delta, "--control-neurons": control_neurons} | (
        {} if neuron else {"--k": k}
    )
    asked |= {"--permutations": permutations, "--limit": limit}
    asked |= {"--sets": sets, "--control-sets": control_sets} if sets else {}
    step = Step(place, f"the shortcuts for {name}", asked, then=f"lens-skills figures {run}")
    if told.begin(step, lambda: {"shortcuts": Shortcuts.load(place)}):
        found = told.make(
            find_shortcuts,
            open_read_model(opened),
            explore,
            confirm,
            intervene,
            metric=name,
            neurons=neuron,
            k=k,
            at=opened.scores().site,
            causal_metric=causal_metric,
            least=least,
            delta=delta,
            controls=controls(neurons=control_neurons, sets=control_sets),
            sets=sets,
            n_permutations=permutations,
            **opened.as_scored(),
        )
        told.keep(step, "shortcuts", found, run / "figures")


def regulators(
    run: Folder,
    metric: Metric = None,
    neuron: Neurons = None,
    top: Top = 10,
    causal_metric: Annotated[
        str | None,
        typer.Option(
            help="What they may regulate: confidence (default, unless the run's metric is such a "
            "number), entropy, logit_diff …"
        ),
    ] = None,
    intervene: Intervene = 64,
    control_neurons: Annotated[
        int | None,
        typer.Option(min=19, help="Random neurons of its layer (default 100, or all there are)."),
    ] = None,
    limit: ThirdSplit = 1000,
) -> None:
    """Do neurons of RUN carry the skill, or regulate confidence on any text?"""
    is_run(run)
    from lens_skills.activations import DEFAULT_SITE, check_names, parse_metric
    from lens_skills.cli.runs import Run, main_metric
    from lens_skills.diagnostics import Regulators, confidence_regulators

    check_names(neuron or [])
    told, opened = call(), Run.load(run)
    scores = opened.scores()
    name = main_metric(scores.metrics, metric)
    if not neuron and scores.site != DEFAULT_SITE:
        raise LensSkillsError(
            f"{run} was scored at {scores.site}, and regulators are neurons at {DEFAULT_SITE}. "
            "Name some: --neuron L17N635."
        )
    examples = opened.intervene_split(limit)
    found = parse_metric(causal_metric or name, examples, asked="--causal-metric")
    if causal_metric is None and (found.known or found.unit == "0/1" or "stop" in found.reads):
        found = parse_metric("confidence", examples, asked="--causal-metric")
    place = opened.path("regulators", name)
    asked = {"--neuron": neuron, "--causal-metric": found.name, "--intervene": intervene}
    asked |= {"--control-neurons": control_neurons, "--limit": limit}
    asked |= {} if neuron else {"--top": top}
    step = Step(place, f"the regulators for {name}", asked, then=f"lens-skills figures {run}")
    if told.begin(step, lambda: {"regulators": Regulators.load(place)}):
        diagnosed = told.make(
            confidence_regulators,
            open_run_model(opened),
            examples,
            opened.neurons(name, neuron, top),
            metric=found,
            prompt=opened.prompt(),
            chat=opened.request.options.get("chat", False),
            n_effects=intervene,
            n_controls=control_neurons,
            seed=opened.request.seed,
        )
        told.keep(step, "regulators", diagnosed, run / "figures")


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
    from lens_skills.cli.runs import Run, chosen_metric, main_metric
    from lens_skills.ranking import METHODS, MethodComparison
    from lens_skills.ranking import compare_methods as compared

    for one in method or ():
        choose("method", one, tuple(METHODS))
    told, opened = call(), Run.load(run)
    name = main_metric(opened.scores().metrics, metric)
    examples = opened.intervene_split(limit)
    causal = chosen_metric(examples, causal_metric)
    place = opened.path("methods", name)
    asked = {"--method": method, "--k": k, "--causal-metric": causal, "--limit": limit}
    then = f"lens-skills figures {run}"
    step = Step(place, f"the comparison of methods for {name}", asked, then=then)
    if told.begin(step, lambda: {"methods": MethodComparison.load(place)}):
        comparison = told.make(
            compared,
            open_read_model(opened),
            opened.splits()[0],
            name,
            intervene=examples,
            methods=method,
            k=k,
            causal_metric=causal,
            at=opened.scores().site,
            **opened.as_scored(),
        )
        told.keep(step, "methods", comparison, run / "figures")


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
    from lens_skills.cli.runs import Run, chosen_metric, joined

    told, opened = call(), Run.load(run)
    causal = chosen_metric(opened.intervene_split(None), causal_metric)
    start: Any = "answer" if not neuron else neuron[0] if len(neuron) == 1 else neuron
    named = joined(neuron or ["answer"])
    place = opened.path("circuit", named)
    asked = {"--causal-metric": causal, "--edges": edges, "--depth": depth}
    asked |= {"--proposals": proposals, "--limit": limit}
    step = Step(place, f"the circuit of {named}", asked, then=f"lens-skills figures {run}")
    if told.begin(step, lambda: {"circuit": Circuit.load(place)}):
        model = open_run_model(opened)
        pairs = equal_length_pairs(model, opened.intervene_split(None))
        result = told.make(
            traced,
            model,
            limited(pairs, limit, opened.request.seed),
            start,
            metric=causal,
            proposals=proposals,
            n_edges=edges,
            depth=depth,
            prompt=opened.prompt(),
            chat=opened.request.options.get("chat", False),
            **opened.as_scored(),
        )
        told.keep(step, "circuit", result, run / "figures")
