"""Every figure a result gives: scores with their selections, or a verdict."""

from collections.abc import Iterator, Mapping, Sequence

from lens_skills.interventions.damage_matrix import DamageMatrix
from lens_skills.interventions.dose_response import DoseResponse
from lens_skills.interventions.verdict import Verdict
from lens_skills.plotting import figures
from lens_skills.plotting.drawing import Drawing
from lens_skills.scoring import MetricScores, Scores, Selection, skill_matrix
from lens_skills.scoring.scores import one_metric


def draw_all(
    scores: Scores, selections: Sequence[Selection] = (), *, metrics: Sequence[str] | None = None
) -> Iterator[Drawing]:
    """All figures of one pass, one after another: per metric (default all), then of the whole."""
    for metric in metrics or scores.metrics:
        yield figures.r_distribution(scores[metric])
        yield figures.layer_profile(scores[metric])
        if len(scores.positions) > 1:
            yield figures.correlation_by_position(scores[metric])
    if len(scores.metrics) > 1:
        yield figures.metric_heatmap(scores)
    if scores.calibration() is not None:
        yield figures.reliability(scores)
    for selection in selections:
        yield figures.attrition(selection)
    if len(selections) > 1 and any(len(selection.neurons) for selection in selections):
        yield figures.skill_matrix(skill_matrix(scores, selections))


def draw_verdict(
    verdict: Verdict,
    scores: MetricScores | Scores | None = None,
    *,
    marked: Mapping[str, str] | None = None,
    curve: DoseResponse | None = None,
    matrix: DamageMatrix | None = None,
) -> Iterator[Drawing]:
    """All figures of one verdict, one after another, then those of what was measured beside it.

    Args:
        verdict: From `verify` or `audit`.
        scores: The scores its neurons were selected from; without them, or where they hold none of
            the units (heads, say), the picture of r against effect is left out.
        marked: For that picture: ``{"L1N2": "decoy"}``.
        curve: A dose-response of the same neurons.
        matrix: Of several skills.
    """
    if scores is not None:
        scores = one_metric(scores)
        scored = {f"L{layer}N{neuron}" for layer, neuron in scores.scores.places}
        if any(ruling.name in scored for ruling in verdict.singles):
            yield figures.effect_against_r(scores, verdict, marked=marked)
    yield figures.effect_against_controls(verdict)
    yield figures.effect_forest(verdict)
    if curve is not None:
        yield figures.dose_response(curve, exploratory=verdict.exploratory)
    if matrix is not None:
        yield figures.damage_matrix(matrix, exploratory=verdict.exploratory)
