"""One planted drawing of every kind of figure that is drawn from its table alone."""

from collections.abc import Callable

from lens_skills.plotting import Drawing, figures
from tests.plotting.conftest import make_scores

KINDS: dict[str, Callable[[], Drawing]] = {
    "r_distribution": lambda: figures.r_distribution(make_scores()["confidence"]),
}
