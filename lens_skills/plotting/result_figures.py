"""`of`: every figure that results have, by what they are and what they were saved as."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.plotting.attrition_plot import attrition
from lens_skills.plotting.circuit_plots import circuit_graph
from lens_skills.plotting.competition_plots import dissection
from lens_skills.plotting.confidence_plots import reliability
from lens_skills.plotting.description_plot import description_scores
from lens_skills.plotting.diagnostic_plots import (
    confidence_regulation,
    memorisation,
    minimal_set,
    redundancy,
    sparse_probe,
)
from lens_skills.plotting.drawing import Drawing
from lens_skills.plotting.effect_vs_r_plot import effect_against_r
from lens_skills.plotting.explanation_plots import feature_matrix, shortcut_effects
from lens_skills.plotting.faithfulness_plot import faithfulness
from lens_skills.plotting.finetuning_plots import accuracy_matrices
from lens_skills.plotting.intervention_plots import (
    dose_response,
    effect_against_controls,
    effect_forest,
)
from lens_skills.plotting.prompt_comparison_plot import compare_scores
from lens_skills.plotting.ranking_plots import method_comparison
from lens_skills.plotting.scoring_plots import (
    correlation_by_position,
    layer_profile,
    r_distribution,
)
from lens_skills.plotting.segmentation_plot import segmentation
from lens_skills.plotting.skill_plots import (
    damage_matrix,
    metric_heatmap,
    skill_matrix,
)
from lens_skills.plotting.stability_plot import stability
from lens_skills.results import Result, file_name
from lens_skills.scoring import MetricScores, Scores, Selection
from lens_skills.scoring import skill_matrix as compare_skills
from lens_skills.scoring.evidence import GENERAL, tried

# The figure of a result that stands by itself; by the name of its kind, as some are made above.
OWN: dict[str, Callable[[Any], Drawing]] = {
    "Circuit": circuit_graph,
    "Continual": accuracy_matrices,
    "DamageMatrix": damage_matrix,
    "Dissection": dissection,
    "DoseResponse": dose_response,
    "Explanations": feature_matrix,
    "Faithfulness": faithfulness,
    "Memorisation": memorisation,
    "MethodComparison": method_comparison,
    "MinimalSet": minimal_set,
    "Redundancy": redundancy,
    "Regulators": confidence_regulation,
    "ScoreComparison": compare_scores,
    "Segmentation": segmentation,
    "Shortcuts": shortcut_effects,
    "SkillMatrix": skill_matrix,
    "SparseProbe": sparse_probe,
    "Stability": stability,
}
_Plan = tuple[str, Callable[[], Drawing]]
"""What a drawing is called behind its kind, and what draws it."""


def of(results: Any, *, metrics: Sequence[str] | None = None) -> list[Drawing]:
    """Every figure that the results have: those of each, and those of several together.

    A drawing's name is its kind and what it is of, so that the figures of one run do not overwrite
    one another.

    Args:
        results: What `lens_skills.load` opens: a result, a study, or results by name, such as those
            of a run's folder.
        metrics: Of the scores, only these; default all.

    Raises:
        LensSkillsError: None has a figure (why).

    >>> import lens_skills as ls
    >>> model, task = ls.load_model("arithmetic-small"), ls.tasks.arithmetic()[:60]
    >>> scores = ls.score(model, task, metrics=["label:carry"], n_permutations=20)
    >>> [drawing.name for drawing in ls.figures.of(scores)]
    ['r_distribution-label_carry', 'layer_profile-label_carry']
    """
    drawings, without = drawn(results, metrics=metrics)
    if not drawings:
        why = "; ".join(f"{name}: {reason}" for name, reason in without.items())
        raise LensSkillsError(f"nothing to draw{': ' + why if why else ''}.")
    return drawings


def drawn(
    results: Any, *, metrics: Sequence[str] | None = None
) -> tuple[list[Drawing], dict[str, str]]:
    """The drawings of `of`, and of what has none, why."""
    found: dict[str, Drawing] = {}
    without: dict[str, str] = {}
    for name, draw in _plans(_by_name(results), metrics):
        try:
            drawing = draw()
        except LensSkillsError as nothing:
            without[name] = str(nothing)
            continue
        full = file_name(drawing.kind, name) if name else drawing.name
        found[full] = replace(drawing, name=full)
    return list(found.values()), without


def _by_name(results: Any) -> dict[str, Any]:
    """The results one by one; a study as the steps that it is."""
    if isinstance(results, MetricScores):
        results = results.scores
    if isinstance(results, Result):
        results = {"": results}
    if not isinstance(results, Mapping):
        raise LensSkillsError(
            f"figures are of results, not of a {type(results).__name__}. Give a result, or results "
            "by name as ls.load opens them from a run's folder."
        )
    parts: dict[str, Any] = {}
    for name, result in results.items():
        if type(result).__name__ != "Study":
            parts[name] = result
        elif "explore" not in results:  # a run that holds a study holds its steps too
            parts |= {"explore": result.scores, f"selection-{result.metric}": result.selection}
            if result.verdict is not None:
                parts[file_name("verdict", result.metric)] = result.verdict
    return parts


def _plans(parts: Mapping[str, Any], metrics: Sequence[str] | None) -> Iterator[_Plan]:
    # What was confirmed is a pass over a few neurons: it has no distribution and no layers.
    passes = {
        name: one
        for name, one in parts.items()
        if isinstance(one, Scores) and not name.startswith("confirm")
    }
    main = passes.get("explore") or next(iter(passes.values()), None)
    verdicts = {_about(name): one for name, one in parts.items() if name.startswith("verdict")}
    for name, scores in passes.items():
        yield from _of_scores("" if scores is main else name, scores, metrics)
    selections = [one for one in parts.values() if isinstance(one, Selection)]
    for one in selections:
        beside = verdicts.get(file_name(one.metric))
        yield one.metric, lambda one=one, beside=beside: attrition(one, beside)
    if main is not None and len(selections) > 1 and any(len(one) for one in selections):
        yield "", lambda: skill_matrix(compare_skills(main, selections))
    for name, result in parts.items():
        kind = type(result).__name__
        if kind == "Verdict":
            yield from _of_verdict(_about(name), result, main, selections)
        elif kind == "Audit":
            yield from _of_verdict(name, result.verdict, None, ())
        elif kind in OWN:
            yield _about(name), lambda kind=kind, result=result: OWN[kind](result)
        if kind == "Explanations" and len(result.descriptions):
            yield _about(name), lambda result=result: description_scores(result)


def _about(name: str) -> str:
    """What a result of a run is of: behind the step that its folder begins with."""
    return name.partition("-")[2] if "-" in name else ""


def _of_scores(name: str, scores: Scores, metrics: Sequence[str] | None) -> Iterator[_Plan]:
    about = [name] if name else []
    for metric in metrics or scores.metrics:
        view = scores[metric]
        for draw in (r_distribution, layer_profile):
            yield file_name(*about, metric), lambda draw=draw, view=view: draw(view)
        if len(scores.positions) > 1:
            yield file_name(*about, metric), lambda view=view: correlation_by_position(view)
    if len(scores.metrics) > 1:
        yield name, lambda: metric_heatmap(scores)
    if scores.calibration() is not None:
        yield name, lambda: reliability(scores)


def _of_verdict(
    name: str, verdict: Any, scores: Scores | None, selections: Sequence[Selection]
) -> Iterator[_Plan]:
    if scores is not None:
        known = set(scores.names())
        metric = next((one for one in scores.metrics if file_name(one) == name), None)
        if metric is not None and any(one.name in known for one in verdict.singles):
            view = scores[metric]
            own = next((one for one in selections if one.metric == metric), None)
            marked = {} if own is None else _general(own, verdict)
            yield name, lambda: effect_against_r(view, verdict, marked=marked)
    yield name, lambda: effect_against_controls(verdict)
    yield name, lambda: effect_forest(verdict)


def _general(selection: Selection, verdict: Any) -> dict[str, str]:
    """The causes of which no association was found."""
    rows = tried(selection.rows, verdict)
    return {row["name"]: GENERAL for row in rows if row["grade"] == GENERAL}
