"""`PROPOSALS`: the ways in which edges are proposed, by name."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial

from lens_skills.circuits.relevance import relevance_slopes
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.slopes import Slopes, gradient_slopes, integrated_points
from lens_skills.circuits.target import Target
from lens_skills.errors import LensSkillsError

PROPOSALS: Mapping[str, Callable[[Scene, Target], Slopes]] = {
    "attribution": gradient_slopes,
    "integrated": partial(gradient_slopes, points=integrated_points()),
    "relevance": relevance_slopes,
}
"""Gradient at the clean prompt; mean gradient on the way to the corrupted one; relevance."""


def check_proposals(name: str) -> None:
    """Nothing; raises for a way of proposing there is none of."""
    if name not in PROPOSALS:
        near = difflib.get_close_matches(str(name), PROPOSALS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LensSkillsError(
            f"no way to propose edges called {name!r}.{hint} Choose from: {', '.join(PROPOSALS)}."
        )
