"""`Ruling`: what the evidence says of one neuron or one set, in one word with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lens_skills.causal.effects import Effects
from lens_skills.causal.estimates import Classes, Estimates, estimate, estimate_classes
from lens_skills.stats.equivalence import equivalent, examples_needed

SUPPORTS, OPPOSES, MIXED = "supports", "opposes", "mixed"
COMPENSATED, NO_EFFECT, UNDECIDED = "compensated", "no total effect beyond δ", "undecided"
WORDS = (SUPPORTS, OPPOSES, MIXED, COMPENSATED, NO_EFFECT, UNDECIDED)
CAUSAL = (SUPPORTS, OPPOSES, MIXED)
"""The words that claim an effect."""

ALPHA = 0.05


@dataclass(frozen=True)
class Ruling:
    """One neuron's or set's word, and the numbers it rests on, in the metric's unit.

    Effects are edited minus clean: removing a neuron that supports the skill gives a negative one.

    Attributes:
        name: Such as ``"L17N635"``, or ``"set"``.
        word: One of `WORDS`, about the neuron and not about the edit.
        why: The reason, where the word alone does not say it.
        effect, low, high: Mean total effect and its 95 % interval.
        low90, high90: The 90 % interval that the test of equivalence reads.
        size: Mean over standard deviation of the per-example effects.
        rank, n_controls: Place of |effect| among the controls, 1 being the largest.
        p, q: (1 + controls at least as large) / (1 + controls), and Benjamini–Hochberg over the
            neurons (the set has one test: q = p). None without controls.
        direct, direct_low, direct_high: The part that passes no later layer, or None.
        self_repair, repair_low, repair_high: total - direct: what later layers add. Its sign is
            opposite to the direct effect's where they make up for the loss.
        needed: Examples that would settle an undecided effect, should mean and spread stay.
    """

    name: str
    word: str
    why: str
    effect: float
    low: float
    high: float
    low90: float
    high90: float
    size: float
    rank: int | None = None
    n_controls: int = 0
    p: float | None = None
    q: float | None = None
    direct: float | None = None
    direct_low: float | None = None
    direct_high: float | None = None
    self_repair: float | None = None
    repair_low: float | None = None
    repair_high: float | None = None
    needed: int | None = None


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where each set's |effect| stands among its controls; nothing where it had none.

    ``mixed_q`` holds, per column of classes, the q of the sets' opposition (see
    `lens_skills.causal.estimates.opposition`) among that of the controls.
    """

    rank: Sequence[int | None]
    n_controls: Sequence[int]
    p: Sequence[float | None]
    q: Sequence[float | None]
    mixed_q: Mapping[str, Sequence[float | None]]


def rule(
    effects: Effects,
    ranks: Ranks,
    *,
    delta: float,
    classes: Classes | None = None,
    removes: bool = True,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[Ruling, ...]:
    """One ruling per set of ``effects``.

    In this order: *mixed* where two classes of a column have intervals beyond delta on opposite
    sides, and such opposition is rare among the controls (q <= 0.05). *Supports*, or *opposes*,
    where the 95 % interval lies beyond delta and q <= 0.05. Where the 90 % interval lies inside
    [-delta, delta]: *compensated* if the direct effect's 95 % interval is beyond delta, otherwise
    *no total effect beyond δ*. Else *undecided*, with the number of examples it would take.

    Args:
        effects: Per example, total and (where known) direct.
        ranks: Among the controls.
        delta: The smallest effect that matters, in the metric's unit.
        classes: Examples by class, for *mixed*.
        removes: Whether the edit takes the neuron's work away. For one that adds to it (steering
            up) a neuron that supports the skill raises the metric.

    Source: two one-sided tests (Schuirmann 1987); direct effect and self-repair: McGrath et al.
    2023 (arXiv 2307.15771), Rushing & Nanda 2024 (arXiv 2402.15390), whose self-repair
    "change of the logit plus direct effect" is total - direct here, as their direct effect is what
    the neuron gives and ours what the edit takes.
    """
    groups = effects.groups
    total = estimate(effects.total, groups, n_draws=n_draws, seed=seed)
    by_class = estimate_classes(effects.total, groups, classes or {}, n_draws=n_draws, seed=seed)
    direct = repair = None
    if effects.direct is not None:
        direct = estimate(effects.direct, groups, n_draws=n_draws, seed=seed)
        repair = estimate(effects.total - effects.direct, groups, n_draws=n_draws, seed=seed)
    rulings = []
    for place, name in enumerate(effects.names):
        word, why = _word(place, total, direct, by_class, ranks, delta, removes)
        needed = None
        if word == UNDECIDED and not _beyond(total, place, delta):
            needed = examples_needed(
                float(total.mean[place]), float(total.error[place]), delta, len(effects.clean)
            )
            why = f"about {needed:,} examples would decide" if needed else "as large as δ itself"
        rulings.append(
            Ruling(
                name=name,
                word=word,
                why=why,
                effect=float(total.mean[place]),
                low=float(total.low[place]),
                high=float(total.high[place]),
                low90=float(total.low90[place]),
                high90=float(total.high90[place]),
                size=float(total.size[place]),
                rank=ranks.rank[place],
                n_controls=ranks.n_controls[place],
                p=ranks.p[place],
                q=ranks.q[place],
                direct=_at(direct, "mean", place),
                direct_low=_at(direct, "low", place),
                direct_high=_at(direct, "high", place),
                self_repair=_at(repair, "mean", place),
                repair_low=_at(repair, "low", place),
                repair_high=_at(repair, "high", place),
                needed=needed,
            )
        )
    return tuple(rulings)


def _word(
    place: int,
    total: Estimates,
    direct: Estimates | None,
    by_class: Mapping[str, Mapping[str, Estimates]],
    ranks: Ranks,
    delta: float,
    removes: bool,
) -> tuple[str, str]:
    for column, members in by_class.items():
        sides = {value: _beyond(found, place, delta) for value, found in members.items()}
        q = ranks.mixed_q.get(column, [None] * (place + 1))[place]
        if {-1, 1} <= set(sides.values()) and q is not None and q <= ALPHA:
            parts = [
                f"{SUPPORTS if (side < 0) == removes else OPPOSES} at {column} = {value}"
                for value, side in sides.items()
                if side
            ]
            return MIXED, ", ".join(parts)
    q, side = ranks.q[place], _beyond(total, place, delta)
    if side and q is not None and q <= ALPHA:
        return (SUPPORTS if (side < 0) == removes else OPPOSES), ""
    if bool(equivalent(total.low90, total.high90, delta)[place]):
        if direct is None:
            return NO_EFFECT, "direct effect not known"
        if _beyond(direct, place, delta):
            return COMPENSATED, f"direct {float(direct.mean[place]):+.3g}, made up for later"
        return NO_EFFECT, ""
    if side and q is None:
        return UNDECIDED, "beyond δ, but without controls to compare with"
    if side:
        return UNDECIDED, f"beyond δ, but controls reach as much (q = {q:.2g})"
    return UNDECIDED, ""


def _beyond(found: Estimates, place: int, delta: float) -> int:
    """-1 or 1 where the whole interval is below -delta or above delta, else 0."""
    return int(found.low[place] > delta) - int(found.high[place] < -delta)


def _at(found: Estimates | None, name: str, place: int) -> float | None:
    if found is None:
        return None
    values: Float[Tensor, " set"] = getattr(found, name)
    return float(values[place])
