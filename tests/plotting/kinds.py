"""One planted drawing of every kind of figure that is drawn from its table alone."""

from collections.abc import Callable

import pandas as pd

from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.diagnostic_plots import confidence_regulation
from tests.plotting.conftest import draw_scatter, make_scores, make_selection
from tests.plotting.prompts_and_skills import (
    RULES,
    draw_certainty,
    draw_classes,
    draw_curves,
    make_seeds,
    make_skills,
    make_stability,
)
from tests.plotting.results import make_continual, make_curve, make_matrix, make_verdict
from tests.plotting.test_circuit_plots import make_circuit, make_faithfulness
from tests.plotting.test_competition_plots import make_dissection
from tests.plotting.test_diagnostic_plots import (
    make_memorisation,
    make_minimal,
    make_probe,
    make_redundancy,
    make_regulators,
    make_segmentation,
)
from tests.plotting.test_explanation_plots import (
    make_described,
    make_half,
    make_shortcuts,
    make_why,
)
from tests.plotting.test_ranking_plots import make_board, make_comparison


def draw_costs() -> Drawing:
    """A cost that is linear in two sizes, and a limit far below it."""
    rows = [
        {"varied": varied, "size": size, "score": 0.02 * size, "forward": 0.025 * size,
         "limit": 0.008 * size}
        for varied in ("examples", "tokens")
        for size in (64, 128, 256, 512)
    ]  # fmt: skip
    return figures.cost_curves(pd.DataFrame(rows), machine="planted numbers")


def draw_scaling() -> Drawing:
    """A set that matters only where it is turned up, beside sets that never do."""
    rows = []
    for alpha in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        excess = max(0.0, alpha - 1)
        row = {"alpha": alpha}
        values = {"accuracy": -0.2 * excess, "logit_diff": -excess, "damage": 0.1 * excess}
        for name, value in values.items():
            row |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
            row |= {f"random_{name}": 0.0, f"random_{name}_low": -0.02}
            row[f"random_{name}_high"] = 0.02
        rows.append(row)
    return figures.scaling_curve(
        pd.DataFrame(rows), title="five neurons, scaled", lines=("planted",)
    )


def draw_number_curves() -> Drawing:
    """Two panels; one series with a band, one without."""
    rows = [
        {"panel": panel, "series": name, "x": x, "value": 0.1 * x**0.5, "low": low, "high": 0.9}
        for panel in ("at the verb", "at the argument")
        for name, low in (("bring", 0.05), ("clean", float("nan")))
        for x in (1, 2, 4, 64)
    ]
    return figures.number_curves(
        pd.DataFrame(rows), title="F1 against k", x="neurons k", y="F1", lines=("planted",),
        log=True, level=0.25, x_names={64: "all"},
    )  # fmt: skip


def draw_pairs() -> Drawing:
    """Three tasks under two conditions, of which one is better in two of them."""
    rows = [
        {"label": task, "what": what, "value": value, "low": value - 0.1, "high": value + 0.1}
        for task, own, shared in (("first", 0.3, 0.6), ("second", 0.4, 0.5), ("third", 0.7, 0.6))
        for what, value in (("own labels alone", own), ("with other tasks", shared))
    ]
    return figures.paired_intervals(
        pd.DataFrame(rows), title="Planted", axis="share confirmed", reference=0.2
    )


def draw_circuits() -> Drawing:
    """Two tasks and both curves; a good ranking, a bad one, and random neurons."""
    rows = [
        {"task": task, "what": what, "method": method, "size": size, "value": value,
         "low": value - 0.1, "high": value + 0.1}
        for task in ("first", "second")
        for what in ("faithfulness", "completeness")
        for method, rate in (("attribution", 1.0), ("pearson", 0.4), ("random", 0.05))
        for size in (1, 10, 100, 1000)
        for value in [min(1.0, rate * size / 300)]
    ]  # fmt: skip
    return figures.neuron_circuits(pd.DataFrame(rows), about="planted numbers")


def draw_read_outs() -> Drawing:
    """Two kinds of clue; a read-out that tells nothing of one."""
    rows = [
        {"clue": clue, "read_out": name, "r2": r2, "low": r2 - 0.2, "high": min(1.0, r2 + 0.1)}
        for clue, values in (("negations", (0.9, 0.5, 0.4)), ("names", (0.6, 0.1, -0.1)))
        for name, r2 in zip(("count", "mean", "max"), values, strict=True)
    ]
    return figures.read_outs(pd.DataFrame(rows), title="How many clues?")


KINDS: dict[str, Callable[[], Drawing]] = {
    "accuracy_matrices": lambda: figures.accuracy_matrices(make_continual()),
    "forgetting": lambda: figures.forgetting(make_continual()),
    "activation_by_class": lambda: draw_classes(RULES),
    "activation_map": lambda: figures.activation_map(make_half(), "L1N0"),
    "activation_scatter": lambda: draw_scatter(make_scores(), "confidence"),
    "confidence_against_correctness": draw_certainty,
    "confidence_regulation": lambda: confidence_regulation(make_regulators()),
    "description_scores": lambda: figures.description_scores(make_described()),
    "feature_matrix": lambda: figures.feature_matrix(make_why()),
    "memorisation": lambda: figures.memorisation(make_memorisation()),
    "segmentation": lambda: figures.segmentation(make_segmentation()),
    "redundancy": lambda: figures.redundancy(make_redundancy()),
    "neuron_circuits": draw_circuits,
    "number_curves": draw_number_curves,
    "paired_intervals": draw_pairs,
    "reliability": lambda: figures.reliability(make_scores()),
    "shortcut_effects": lambda: figures.shortcut_effects(make_shortcuts()),
    "minimal_set": lambda: figures.minimal_set(make_minimal()),
    "sparse_probe": lambda: figures.sparse_probe(make_probe()),
    "circuit_graph": lambda: figures.circuit_graph(make_circuit()),
    "compare_scores": lambda: figures.compare_scores(make_seeds()),
    "cost_curves": draw_costs,
    "damage_matrix": lambda: figures.damage_matrix(make_matrix()),
    "dissection": lambda: figures.dissection(make_dissection()),
    "read_outs": draw_read_outs,
    "dose_response": lambda: figures.dose_response(make_curve()),
    "scaling_curve": draw_scaling,
    "effect_against_controls": lambda: figures.effect_against_controls(make_verdict()),
    "effect_forest": lambda: figures.effect_forest(make_verdict(8)),
    "faithfulness": lambda: figures.faithfulness(make_faithfulness()),
    "leaderboard": lambda: figures.leaderboard(make_board(), {"a": "first task"}, k=8),
    "learning_curves": lambda: draw_curves(3, baselines={"no prompt": 0.02}),
    "method_comparison": lambda: figures.method_comparison(make_comparison()),
    "metric_heatmap": lambda: figures.metric_heatmap(make_scores(), k=6),
    "skill_matrix": lambda: figures.skill_matrix(make_skills(), k=9),
    "stability": lambda: figures.stability(make_stability(), k=9),
    "r_distribution": lambda: figures.r_distribution(make_scores()["confidence"]),
    "layer_profile": lambda: figures.layer_profile(make_scores()["label:plural"]),
    "correlation_by_position": lambda: figures.correlation_by_position(
        make_scores(positions=("0", "subject", "last"))["label:plural"]
    ),
    "attrition": lambda: figures.attrition(make_selection()),
    "effect_against_r": lambda: figures.effect_against_r(
        make_scores()["label:plural"], make_verdict()
    ),
}
