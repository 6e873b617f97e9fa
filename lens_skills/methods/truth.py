"""Neurons that are known beforehand: how many of each role a method found."""

from collections.abc import Mapping, Sequence
from typing import Any

from lens_skills.errors import LensSkillsError
from lens_skills.methods.trial import Trial


def parse_roles(truth: Any) -> dict[str, tuple[str, ...]]:
    """Names by role, the skill first; a bare sequence of names is the skill's.

    Raises:
        LensSkillsError: A role without a neuron.

    >>> parse_roles(["L1N2"])
    {'skill': ('L1N2',)}
    """
    if truth is None:
        return {}
    if not isinstance(truth, Mapping):
        truth = {"skill": truth}
    found = {role: tuple(names) for role, names in truth.items()}
    empty = [role for role, names in found.items() if not names]
    if empty:
        raise LensSkillsError(f"truth names no neuron as {empty[0]!r}. Leave the role out.")
    return found


def known_among(trials: Sequence[Trial], roles: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How many neurons of each role the lists hold."""
    named = [name for trial in trials for name in trial.names]
    return {role: float(sum(name in set(names) for name in named)) for role, names in roles.items()}
