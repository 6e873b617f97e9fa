"""One planted drawing of every kind of figure that is drawn from its table alone."""

from collections.abc import Callable

from lens_skills.plotting import Drawing, figures
from lens_skills.plotting.diagnostic_plots import confidence_regulation
from tests.plotting.conftest import draw_scatter, make_scores, make_selection
from tests.plotting.prompts_and_skills import RULES, draw_certainty, draw_classes
from tests.plotting.results import make_verdict
from tests.plotting.test_diagnostic_plots import make_probe, make_redundancy, make_regulators
from tests.plotting.test_explanation_plots import make_half, make_shortcuts, make_why

KINDS: dict[str, Callable[[], Drawing]] = {
    "activation_by_class": lambda: draw_classes(RULES),
    "activation_map": lambda: figures.activation_map(make_half(), "L1N0"),
    "activation_scatter": lambda: draw_scatter(make_scores(), "confidence"),
    "confidence_against_correctness": draw_certainty,
    "confidence_regulation": lambda: confidence_regulation(make_regulators()),
    "feature_matrix": lambda: figures.feature_matrix(make_why()),
    "redundancy": lambda: figures.redundancy(make_redundancy()),
    "reliability": lambda: figures.reliability(make_scores()),
    "shortcut_effects": lambda: figures.shortcut_effects(make_shortcuts()),
    "sparse_probe": lambda: figures.sparse_probe(make_probe()),
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
