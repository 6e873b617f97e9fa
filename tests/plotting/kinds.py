"""One planted drawing of every kind of figure that is drawn from its table alone."""

from collections.abc import Callable

from lens_skills.plotting import Drawing, figures
from tests.plotting.conftest import make_scores, make_selection
from tests.plotting.results import make_verdict

KINDS: dict[str, Callable[[], Drawing]] = {
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
