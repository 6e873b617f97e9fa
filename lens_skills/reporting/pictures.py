"""The figures of a report, each with what it shows in words."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lens_skills.circuits import Circuit, Faithfulness
from lens_skills.diagnostics import Redundancy, Regulators, SparseProbe
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanations, Shortcuts
from lens_skills.interventions import DamageMatrix, DoseResponse
from lens_skills.plotting import figures
from lens_skills.plotting.drawing import Drawing
from lens_skills.ranking import MethodComparison
from lens_skills.reporting.document import Fact, Picture
from lens_skills.reporting.found_analyses import Analysis
from lens_skills.reporting.neuron_table import frame_rows
from lens_skills.reporting.phrases import change, counted, listed
from lens_skills.reporting.sources import Sources
from lens_skills.resampling import Stability
from lens_skills.results import file_name
from lens_skills.scoring import ScoreComparison, SkillMatrix

_TABLE = 60  # rows of a picture's numbers; all are in the file that `figures` writes

Draw = Callable[[], Drawing]
Plan = tuple[str, str, Draw]
"""A title, what is to be seen in words, and what draws it."""


def pictures(
    analyses: Sequence[Analysis], names: Sequence[str], sources: Sources
) -> tuple[tuple[Picture, ...], tuple[Fact, ...]]:
    """All that can be drawn, and of what cannot, why."""
    plans: list[tuple[str, Plan]] = []
    for one, name in zip(analyses, names, strict=True):
        about = f" ({name})" if len(analyses) > 1 else ""
        plans += [(one.place, (f"{plan[0]}{about}", *plan[1:])) for plan in _of_analysis(one)]
    plans += _of_passes(analyses)
    for name, result in sources.results.items():
        plans += [(_parent(name), plan) for plan in _of_result(result)]
    found: list[Picture] = []
    failed: list[Fact] = []
    used: set[str] = set()
    for place, (title, alt, draw) in plans:
        try:
            drawing = draw()
            svg = _svg(drawing)
        except Exception as error:  # a report without one picture is better than none
            words = str(error) if isinstance(error, LensSkillsError) else f"{error!r:.200}"
            failed.append(Fact(f"figure: {title}", words))
            continue
        parts = (place.replace("/", "-"), drawing.name)
        anchor = _unused("-".join(["figure", *(file_name(part) for part in parts if part)]), used)
        found.append(Picture(anchor, title, svg, alt, frame_rows(drawing.frame, _TABLE)))
    return tuple(found), tuple(failed)


def _svg(drawing: Drawing) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = drawing.savefig(Path(folder) / "drawing.svg")
        return smaller(path.read_text(encoding="utf-8"))


def smaller(svg: str) -> str:
    """A picture as Matplotlib writes it at half the size: it looks the same.

    Without names that nothing refers to and without white space; lengths to a hundredth of a point
    (a glyph is drawn at a scale, which stays as it is).

    >>> smaller('<g id="a_1">\\n <path d="M 1.23456 2 \\nL 3 4 \\n" style="x: y"/>\\n</g>')
    '<g><path d="M1.23 2L3 4" style="x: y"/></g>'
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    named = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in named else "", svg)
    short = {name: f"i{number}" for number, name in enumerate(sorted(named))}
    svg = re.sub(r'(?<=["(]#)[^")]+', lambda found: short.get(found[0], found[0]), svg)
    svg = re.sub(r'(?<= id=")[^"]*', lambda found: short[found[0]], svg)
    lengths = r' (?:d|x|y|points)="[^"]*"|translate\([^)]*\)'
    svg = re.sub(lengths, lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r' d="[^"]*"', lambda found: _tight(found[0]), svg)
    looks = Counter(re.findall(r' style="([^"]*)"', svg))
    classes = {look: f"s{k}" for k, look in enumerate(looks) if looks[look] > 3}
    rules = "".join(f".{name}{{{look}}}" for look, name in classes.items())
    svg = re.sub(
        r' style="([^"]*)"',
        lambda found: f' class="{classes[found[1]]}"' if found[1] in classes else found[0],
        svg,
    )
    return re.sub(r">\s+<", "><", svg.replace("</style>", f"{rules}</style>", 1))


def _tight(path: str) -> str:
    return ' d="' + re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(path[4:-1].split())) + '"'


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _unused(anchor: str, used: set[str]) -> str:
    """The anchor, numbered where another has it."""
    number, free = 2, anchor
    while free in used:
        free, number = f"{anchor}-{number}", number + 1
    used.add(free)
    return free


def _of_analysis(one: Analysis) -> Iterator[Plan]:
    selection, verdict, scores = one.selection, one.verdict, one.scores
    if selection is not None:
        yield (
            "What is left after each step",
            f"{selection.attrition_line(verdict)}. Below, what speaks for the strongest, a row "
            "each.",
            lambda: figures.attrition(selection, verdict),
        )
    if scores is not None and len(scores.scores.layer) > 1:
        held = scores.scores
        beyond = int(scores.associated.any(0).sum())
        limit = "" if scores.threshold is None else f" beyond |r| = {scores.threshold:.2f}"
        top = scores.top(1).names
        yield (
            f"Correlations of all neurons with {one.metric}",
            f"A histogram of r of {counted(held.n_units, 'neuron')}; "
            f"{counted(beyond, 'neuron')} associated{limit}; the strongest is {listed(top)}.",
            lambda: figures.r_distribution(scores),
        )
        yield (
            f"Where {one.metric} is found, by layer",
            f"The largest |r| of each of {counted(len(set(held.layer.tolist())), 'layer')}, beside "
            "that of random directions of the same layer.",
            lambda: figures.layer_profile(scores),
        )
        if len(held.positions) > 1:
            yield (
                f"Where {one.metric} is found, by layer and position",
                f"A map of the largest |r| in each layer at {listed(held.positions)}.",
                lambda: figures.correlation_by_position(scores),
            )
    if verdict is not None:
        yield from _of_verdict(one)


def _of_verdict(one: Analysis) -> Iterator[Plan]:
    verdict, scores = one.verdict, one.scores
    assert verdict is not None
    words = ", ".join(f"{n} {word}" for word, n in verdict.counts.items() if n)
    unit, metric = verdict.effects.unit, verdict.effects.metric
    if scores is not None and any(ruling.name in one.places for ruling in verdict.singles):
        yield (
            f"Effect on {metric} against correlation",
            f"{counted(len(verdict), 'neuron')} tried, each at its r and its effect in {unit}: "
            f"{words}.",
            lambda: figures.effect_against_r(scores, verdict),
        )
    whole = verdict.rulings[-1]
    told = change(whole.effect, whole.low, whole.high, unit, whole.percent)
    yield (
        f"Effect on {metric} among the controls",
        f"{'All together' if whole.name == 'set' else whole.name}: {told}, number "
        f"{whole.rank or '–'} among {whole.n_controls:,} controls.",
        lambda: figures.effect_against_controls(verdict),
    )
    yield (
        f"Effects on {metric}, neuron by neuron",
        f"Effects with 95 % intervals in {unit}: {words}.",
        lambda: figures.effect_forest(verdict),
    )


def _of_passes(analyses: Sequence[Analysis]) -> Iterator[tuple[str, Plan]]:
    """Of all metrics of one pass together, once a pass, with where it lies."""
    seen: set[int] = set()
    for one in analyses:
        for plan in _of_pass(one, seen):
            yield one.place, plan


def _of_pass(one: Analysis, seen: set[int]) -> Iterator[Plan]:
    held = None if one.scores is None else one.scores.scores
    if held is None or id(held) in seen:
        return
    seen.add(id(held))
    if len(held.metrics) > 1:
        yield (
            f"The metrics beside one another ({one.task})",
            f"A map of r of the strongest neurons with each of {listed(held.metrics)}.",
            lambda: figures.metric_heatmap(held),
        )
    table = held.calibration()
    if table is not None:
        yield (
            f"Whether the confidence means what it says ({one.task})",
            f"Accuracy against confidence in bins; calibration error {table.error:.2f} (0 is "
            "perfect).",
            lambda: figures.reliability(held),
        )


def _of_result(result: Any) -> Iterator[Plan]:
    """The figure of a result that has one of its own."""
    for kind, title, draw in OWN_FIGURES:
        if isinstance(result, kind):
            first = next((line.strip() for line in repr(result).split("\n") if line.strip()), "")
            yield title(result), f"{first}. The card below has the numbers.", _later(draw, result)


def _later(draw: Callable[[Any], Drawing], result: Any) -> Draw:
    return lambda: draw(result)


OWN_FIGURES: tuple[tuple[type, Callable[[Any], str], Callable[[Any], Drawing]], ...] = (
    (Circuit, lambda one: f"Circuit of {one.target}", figures.circuit_graph),
    (
        Faithfulness,
        lambda one: "What the circuit alone does",
        figures.faithfulness,
    ),
    (
        Explanations,
        lambda one: "What drives the neurons",
        figures.feature_matrix,
    ),
    (
        Shortcuts,
        lambda one: f"Shortcuts to {one.metric}",
        figures.shortcut_effects,
    ),
    (
        Regulators,
        lambda one: "Neurons that regulate the confidence",
        figures.confidence_regulation,
    ),
    (Redundancy, lambda one: "Neurons that do the same", figures.redundancy),
    (
        SparseProbe,
        lambda one: "How many neurons tell the label",
        figures.sparse_probe,
    ),
    (
        MethodComparison,
        lambda one: "Which methods find neurons that matter",
        figures.method_comparison,
    ),
    (
        DoseResponse,
        lambda one: f"Steering {listed(one.names, 3)}",
        figures.dose_response,
    ),
    (DamageMatrix, lambda one: "Damage to other skills", figures.damage_matrix),
    (Stability, lambda one: "Found again on other examples", figures.stability),
    (
        SkillMatrix,
        lambda one: "Neurons that several skills share",
        figures.skill_matrix,
    ),
    (ScoreComparison, lambda one: "Two passes beside each other", figures.compare_scores),
)
