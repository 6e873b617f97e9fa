"""`METHODS`: every way of ranking neurons there is, by name."""

from collections.abc import Iterable

from lens_skills.errors import LensSkillsError
from lens_skills.methods.anova import F
from lens_skills.methods.auroc import AUROC
from lens_skills.methods.chance import RANDOM
from lens_skills.methods.gradient import GRADIENT
from lens_skills.methods.information import INFORMATION
from lens_skills.methods.lape import LAPE
from lens_skills.methods.logistic import L1
from lens_skills.methods.mean_difference import SMD
from lens_skills.methods.method import Method
from lens_skills.methods.pearson import PEARSON
from lens_skills.methods.predictivity import PREDICTIVITY
from lens_skills.methods.probeless import PROBELESS
from lens_skills.methods.taylor import TAYLOR

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        PEARSON,
        PREDICTIVITY,
        SMD,
        F,
        INFORMATION,
        AUROC,
        L1,
        PROBELESS,
        LAPE,
        TAYLOR,
        GRADIENT,
        RANDOM,
    )
}
"""Every method by its name, each with what it is, its source, and the metrics it takes."""


def find_methods(names: Iterable[str]) -> tuple[Method, ...]:
    """The methods of these names, in this order.

    Raises:
        LensSkillsError: A name that is no method, or one named twice.
    """
    wanted = list(names)
    for name in wanted:
        if name not in METHODS:
            raise LensSkillsError(f"no method {name!r}. Choose from: {', '.join(METHODS)}.")
        if wanted.count(name) > 1:
            raise LensSkillsError(f"the method {name!r} is named twice. Name each once.")
    return tuple(METHODS[name] for name in wanted)
