"""The words under a title: what was measured where, on how many examples."""

from collections.abc import Sequence

from lens_skills.errors import LensSkillsError
from lens_skills.scoring import MetricScores, Scores

LATE_LAYERS = (
    "Late layers write the answer itself: a large r there may be the answer, not the skill."
)


def places(scores: Scores, position: str | None) -> list[int]:
    """Indices of the positions to draw: one, or all of them where none is named."""
    if position is None:
        return list(range(len(scores.positions)))
    if position not in scores.positions:
        raise LensSkillsError(
            f"no position {position!r} in these scores. They hold: {', '.join(scores.positions)}."
        )
    return [scores.positions.index(position)]


def caption(scores: Scores, position: str | None = None) -> list[str]:
    """Two lines: site and position; model, task, examples and groups."""
    source = [str(scores.provenance[key]) for key in ("model", "task") if key in scores.provenance]
    where = ", ".join(scores.positions) if position is None else position
    return [f"{scores.site} at {where}", " · ".join([*source, size(scores)])]


def size(scores: Scores) -> str:
    """``576 examples in 48 groups``."""
    return count(scores.n_examples, scores.n_groups)


def count(n_examples: int, n_groups: int | None = None) -> str:
    """How many examples, and in how many groups where that is known.

    >>> count(1000, 24)
    '1,000 examples in 24 groups'
    """
    groups = "" if n_groups is None else f" in {n_groups:,} groups"
    return f"{n_examples:,} examples{groups}"


def correlation(scores: Scores) -> str:
    """The name of r: Pearson's, or partial given covariates."""
    given = scores.provenance.get("given") or []
    return f"partial r given {', '.join(given)}" if given else "Pearson r"


def with_unit(metric: str, unit: str | None) -> str:
    """A metric's name with its unit, where it has one.

    >>> with_unit("logit_diff", "nats")
    'logit_diff (nats)'
    """
    return f"{metric} ({unit})" if unit and unit not in ("column", "0/1") else metric


def file_name(*parts: str) -> str:
    """A name for files: letters, digits, ``-`` and ``_`` only.

    >>> file_name("layer_profile", "label:plural")
    'layer_profile-label_plural'
    """
    kept: Sequence[str] = [
        "".join(c if c.isalnum() or c in "-_" else "_" for c in part) for part in parts
    ]
    return "-".join(kept)


def bars(found: MetricScores) -> dict[str, float]:
    """The thresholds that were drawn, by null."""
    return {name: bar for name, bar in vars(found.thresholds).items() if bar is not None}
