"""`Verdict`: what interventions say of each neuron and of all together, in words with numbers.

`rule` gives every neuron or set its word (a `Ruling`); `verdict_card` prints them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import BALANCED
from lens_skills.interventions.effects import Effects
from lens_skills.interventions.verdict_card import card_lines, detail_lines
from lens_skills.results import Result
from lens_skills.stats.effect_estimates import (
    Classes,
    EffectEstimates,
    estimate,
    estimate_classes,
)
from lens_skills.stats.effect_tests import (
    beyond,
    effective_groups,
    equivalent,
    examples_needed,
    opposed,
)

SUPPORTS, OPPOSES, MIXED = "supports", "opposes", "mixed"
COMPENSATED, NO_EFFECT, UNDECIDED = "compensated", "no total effect beyond δ", "undecided"
WORDS = (SUPPORTS, OPPOSES, MIXED, COMPENSATED, NO_EFFECT, UNDECIDED)
CAUSAL = (SUPPORTS, OPPOSES, MIXED)
"""The words that claim an effect."""
ALPHA = 0.05
LARGE = "large neuron"
"""Stands beside a word where the effect is no more than the neuron's size leads to expect."""
SIGN = "sign depends on the ablation"
"""Stands beside a word where another ablation has the opposite effect."""

Rows = tuple[dict[str, Any], ...]
"""A table of a verdict, row by row."""


@dataclass(frozen=True)
class Ruling:
    """One neuron's or set's word, and the numbers it rests on, in the metric's unit.

    Effects are edited minus clean: removing a neuron that supports the skill gives a negative one.

    Attributes:
        name: Such as ``"L17N635"``, or ``"set"``.
        word: One of `WORDS`, about the neuron and not about the edit.
        why: The reason, where the word alone does not say it.
        effect, low, high: Mean total effect and its 95 % interval, by group, of this one alone.
        low90, high90: The 90 % interval that the test of equivalence reads.
        size: Mean over standard deviation of the per-example effects.
        rank, n_controls: Place of |effect| among the controls, 1 being the largest.
        p, q: (1 + controls at least as large) / (1 + controls), and Benjamini–Hochberg over the
            neurons on trial (the set has one test: q = p). None without controls.
        direct, direct_low, direct_high: The part that passes no later layer, or None.
        self_repair, repair_low, repair_high: total - direct: what later layers and the final norm
            add. Its sign is opposite to the direct effect's where they make up for the loss.
        needed: Examples, in as many more groups, that would settle an undecided effect, should
            mean and spread stay.
        delta: The smallest effect that matters here, in the metric's unit.
        percent: The effect in % of the clean metric (or, where that cannot be told from 0, of the
            gap to the corrupted prompts); None where neither can.
        p_alike, q_alike: As p and q, for |effect| over what the neuron's mean |a|, std and ‖W_out‖
            lead to expect; see `lens_skills.stats.size_adjustment.beyond_expected`.
        large: Whether the effect is signed and no more than its size leads to expect
            (q_alike > 0.05): a *large neuron*.
        sign_depends: Whether another ablation of the table has an effect of the opposite sign,
            its 95 % interval leaving 0 out.
        doubtful: Whether the intervals are not to be trusted, because few groups carry most of
            the effect; see `lens_skills.stats.effect_tests.skewed`.
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
    delta: float = float("nan")
    percent: float | None = None
    p_alike: float | None = None
    q_alike: float | None = None
    large: bool = False
    sign_depends: bool = False
    doubtful: bool = False

    @property
    def label(self) -> str:
        """The word with what must stand beside it, e.g. ``"supports (large neuron)"``."""
        return self.word + f" ({LARGE})" * self.large + f"; {SIGN}" * self.sign_depends

    @property
    def causal(self) -> bool:
        """Whether the word claims an effect that is more than one of size."""
        return self.word in CAUSAL and not self.large


@dataclass(frozen=True, eq=False)
class Verdict(Result):
    """Signed effects with intervals, their place among controls, and a word for each neuron.

    Printing it shows one card.

    Attributes:
        rulings: One per neuron, in the order given, then one named ``"set"`` where there are
            several.
        effects: The per-example effects behind them, in the same order.
        control_neurons: The single units each neuron is compared with.
        control_neuron_effect: The mean effect of each.
        control_effect: Mean effect of every matched control set.
        important_effect: Of every control set drawn among important neurons (may be empty).
        delta: The largest of the rulings' δ, each the smallest effect that matters in its layer,
            in the metric's unit; ``delta_from`` says where they are from.
        scale: What effects are a share of, in the metric's unit; 0 where nothing serves.
        tables: Rows of further results by name; see `table`.
        notes: What a reader must know before quoting a number.
        removes: Whether the edit took the neurons' work away; see `rule`.
        exploratory: True where examples were used before, or are of another task.
        provenance: Model, task, split, seed and versions behind the numbers.
    """

    rulings: tuple[Ruling, ...]
    effects: Effects
    control_neurons: tuple[str, ...]
    control_neuron_effect: Float[Tensor, " neuron"]
    control_effect: Float[Tensor, " control"]
    important_effect: Float[Tensor, " important"]
    delta: float
    delta_from: str
    tables: Mapping[str, Rows]
    scale: float = 0.0
    notes: tuple[str, ...] = ()
    removes: bool = True
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Ruling:
        for ruling in self.rulings:
            if ruling.name == name:
                return ruling
        raise LensSkillsError(
            f"no ruling on {name!r}. There is one on: "
            + ", ".join(ruling.name for ruling in self.rulings)
            + "."
        )

    def __len__(self) -> int:
        return len(self.singles)

    @property
    def effective_groups(self) -> float:
        """How many groups of one size would say as much."""
        return effective_groups(self.effects.groups)

    @property
    def matched(self) -> bool:
        """Whether the control sets are like the set in mean |a|, std and ‖W_out‖."""
        rows = self.tables.get("match", ())
        return all(abs(float(row["smd"])) <= BALANCED for row in rows)

    @property
    def singles(self) -> tuple[Ruling, ...]:
        """The rulings on single neurons."""
        return tuple(ruling for ruling in self.rulings if ruling.name != "set")

    def named(self, *words: str) -> list[str]:
        """The neurons with one of these words, e.g. ``verdict.named("supports")``."""
        return [ruling.name for ruling in self.singles if ruling.word in words]

    @property
    def causal(self) -> list[str]:
        """The neurons that support, oppose or do both, more than their size leads to expect."""
        return [ruling.name for ruling in self.singles if ruling.causal]

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons got each word, in the order of `WORDS`."""
        return {word: len(self.named(word)) for word in WORDS}

    def frame(self) -> pd.DataFrame:
        """One row per neuron and one for the set: the columns of `Ruling`, and ``label``."""
        frame = pd.DataFrame([vars(one) | {"label": one.label} for one in self.rulings])
        return frame.assign(exploratory=True) if self.exploratory else frame

    def table(self, name: str) -> pd.DataFrame:
        """A further table.

        ``"classes"``: effect of every neuron within every class. ``"ablations"``: over the choice
        of ablation. ``"unrelated"``: on unrelated examples, or on neutral text. ``"controls"``:
        the set among its control sets. ``"match"``: how alike the controls are. ``"set"``: the
        set against the sum of its neurons. ``"pairs"``: noising and denoising. Only those measured
        are there.
        """
        if name not in self.tables:
            raise LensSkillsError(
                f"no table {name!r} in this verdict. It has: {', '.join(self.tables) or 'none'}."
            )
        return pd.DataFrame(list(self.tables[name]))

    def cloud(self) -> pd.DataFrame:
        """Every single unit measured, for a picture: name, effect, verified, word.

        ``word`` is empty for the units that served as comparison.
        """
        singles, n_controls = self.singles, len(self.control_neurons)
        return pd.DataFrame(
            {
                "name": [*(ruling.name for ruling in singles), *self.control_neurons],
                "effect": [
                    *(ruling.effect for ruling in singles),
                    *self.control_neuron_effect.tolist(),
                ],
                "verified": [True] * len(singles) + [False] * n_controls,
                "word": [*(ruling.word for ruling in singles), *[""] * n_controls],
            }
        )

    def details(self) -> str:
        """What the card leaves out: direct effects, controls and their match, other ablations,
        pairs, unrelated text."""
        return "\n".join(detail_lines(self))

    def __repr__(self) -> str:
        return "\n".join(card_lines(self))


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where each set's |effect| stands among its controls; nothing where it had none.

    ``mixed_q`` holds, per column of classes, the q of the sets' opposition (see
    `lens_skills.stats.effect_tests.opposition`) among that of the controls; ``p_alike`` and
    ``q_alike`` are those of |effect| over what size leads to expect.
    """

    rank: Sequence[int | None]
    n_controls: Sequence[int]
    p: Sequence[float | None]
    q: Sequence[float | None]
    mixed_q: Mapping[str, Sequence[float | None]]
    p_alike: Sequence[float | None] = ()
    q_alike: Sequence[float | None] = ()


def rule(
    effects: Effects,
    ranks: Ranks,
    *,
    delta: float | Sequence[float],
    classes: Classes | None = None,
    removes: bool = True,
    last: Sequence[bool] = (),
    scale: float = 0.0,
    n_draws: int = 2000,
    seed: int = 0,
) -> tuple[Ruling, ...]:
    """One ruling per set of ``effects``.

    In this order: *mixed* where two classes of a column have intervals beyond delta on opposite
    sides, and such opposition is rare among the controls (q <= 0.05). *Supports*, or *opposes*,
    where the 95 % interval lies beyond delta and q <= 0.05; a *large neuron* where it is no more
    than its size leads to expect. Where the 90 % interval lies inside [-delta, delta]:
    *compensated* if the direct effect's 95 % interval is beyond delta, otherwise *no total effect
    beyond δ*. Else *undecided*, with the number of examples it would take.

    Of a metric that is 0 or 1 the intervals are exact ones of shares, which nothing seen in few
    groups does not make narrow.

    Args:
        effects: Per example, total and (where known) direct.
        ranks: Among the controls.
        delta: The smallest effect that matters, in the metric's unit; or that of each set.
        classes: Examples by class, for *mixed*.
        removes: Whether the edit takes the neuron's work away. For one that adds to it (steering
            up) a neuron that supports the skill raises the metric.
        last: Which sets write after every layer: nothing but the final norm can make up for them,
            so they are never *compensated*.
        scale: What effects are a share of; see `Verdict`.
        n_draws, seed: Of the bootstrap.

    Source: two one-sided tests (Schuirmann 1987); direct effect and self-repair: McGrath et al.
    2023 (arXiv 2307.15771), Rushing & Nanda 2024 (arXiv 2402.15390), whose self-repair
    "change of the logit plus direct effect" is total - direct here, as their direct effect is what
    the neuron gives and ours what the edit takes.
    """
    groups, shares = effects.groups, effects.of_shares
    draws: dict[str, Any] = {"n_draws": n_draws, "seed": seed}
    total = estimate(effects.total, groups, shares=shares, **draws)
    by_class = estimate_classes(effects.total, groups, classes or {}, shares=shares, **draws)
    direct = repair = None
    if effects.direct is not None:
        direct = estimate(effects.direct, groups, **draws)
        repair = estimate(effects.total - effects.direct, groups, **draws)
    n_sets = len(effects.names)
    deltas = [float(delta)] * n_sets if isinstance(delta, int | float) else list(delta)
    rulings = []
    for place, name in enumerate(effects.names):
        at_end = bool(last) and last[place]
        word, why = _word(
            place, total, None if at_end else direct, by_class, ranks, deltas[place], removes
        )
        if word == NO_EFFECT and effects.direct is None:
            why = "direct effect not known"
        if float(total.error[place]) == 0 and not shares and word == NO_EFFECT:
            why = f"the same in all {len(set(groups))} groups"
        needed = None
        if word == UNDECIDED and not _beyond(total, place, deltas[place]):
            needed = _needed(effects, total, place, deltas[place])
            why = f"about {needed:,} examples would decide" if needed else "as large as δ itself"
        mean = float(total.mean[place])
        q_alike = ranks.q_alike[place] if ranks.q_alike else None
        rulings.append(
            Ruling(
                name=name,
                word=word,
                why=why,
                low90=float(total.low90[place]),
                high90=float(total.high90[place]),
                size=float(total.size[place]),
                rank=ranks.rank[place],
                n_controls=ranks.n_controls[place],
                p=ranks.p[place],
                q=ranks.q[place],
                needed=needed,
                delta=deltas[place],
                percent=100 * mean / scale if scale else None,
                p_alike=ranks.p_alike[place] if ranks.p_alike else None,
                q_alike=q_alike,
                large=word in (SUPPORTS, OPPOSES) and q_alike is not None and q_alike > ALPHA,
                doubtful=bool(total.doubtful[place]),
                **mean_and_ends(total, place),
                **mean_and_ends(direct, place, "direct", "direct_low", "direct_high"),
                **mean_and_ends(repair, place, "self_repair", "repair_low", "repair_high"),
            )
        )
    return tuple(rulings)


def _needed(effects: Effects, total: EffectEstimates, place: int, delta: float) -> int | None:
    """Examples that would decide, the interval shrinking with the root of their number."""
    n, mean = len(effects.clean), float(total.mean[place])
    n_groups = len(set(effects.groups))
    if total.exact and mean == 0 and float(total.error[place]) == 0:
        # Should nothing ever change: 1 - 0.05^(1/G) <= delta.
        if delta >= 1:
            return None
        return math.ceil(n * math.log(0.05) / math.log1p(-delta) / n_groups)
    reach = max(float(total.high[place]) - mean, mean - float(total.low[place]))
    return examples_needed(mean, reach / _NORMAL, delta, n)


_NORMAL = 1.959964  # half the width of a 95 % interval in standard errors


def with_ablations(
    rulings: Sequence[Ruling], rows: Sequence[Mapping[str, Any]]
) -> tuple[Ruling, ...]:
    """The rulings, saying whose sign another ablation turns.

    Args:
        rulings: Of the one edit.
        rows: Of all edits: name effect low high.
    """
    found = []
    for ruling in rulings:
        other = [row for row in rows if row["name"] == ruling.name]
        turned = any(
            row["effect"] * ruling.effect < 0 and (row["low"] > 0 or row["high"] < 0)
            for row in other
        )
        found.append(replace(ruling, sign_depends=ruling.word in (SUPPORTS, OPPOSES) and turned))
    return tuple(found)


def _word(
    place: int,
    total: EffectEstimates,
    direct: EffectEstimates | None,
    by_class: Mapping[str, Mapping[str, EffectEstimates]],
    ranks: Ranks,
    delta: float,
    removes: bool,
) -> tuple[str, str]:
    for column, members in by_class.items():
        sides = {value: _beyond(found, place, delta) for value, found in members.items()}
        q = ranks.mixed_q.get(column, [None] * (place + 1))[place]
        if opposed(sides.values()) and q is not None and q <= ALPHA:
            parts = [
                f"{signed_word(side, removes)} at {column} = {value}"
                for value, side in sides.items()
                if side
            ]
            return MIXED, ", ".join(parts)
    q, side = ranks.q[place], _beyond(total, place, delta)
    if side and q is not None and q <= ALPHA:
        return signed_word(side, removes), ""
    if bool(equivalent(total.low90, total.high90, delta)[place]):
        if direct is not None and _beyond(direct, place, delta):
            return COMPENSATED, f"direct {float(direct.mean[place]):+.3g}, made up for later"
        return NO_EFFECT, ""
    if side and q is None:
        return UNDECIDED, "beyond δ, but without controls to compare with"
    if side:
        return UNDECIDED, f"beyond δ, but controls reach as much (q = {q:.2g})"
    return UNDECIDED, ""


def _beyond(found: EffectEstimates, place: int, delta: float) -> int:
    """-1 or 1 where the whole interval is below -delta or above delta, else 0."""
    return int(beyond(found.low[place], found.high[place], delta))


def signed_word(side: int, removes: bool) -> str:
    """*Supports* or *opposes*: whether taking the neuron's work away lowers the metric."""
    return SUPPORTS if (side < 0) == removes else OPPOSES


def mean_and_ends(found: EffectEstimates | None, place: int, *names: str) -> dict[str, Any]:
    """A set's mean and its interval's ends, under ``effect low high`` or other names."""
    numbers = () if found is None else (found.mean, found.low, found.high)
    names = names or ("effect", "low", "high")
    return {name: float(values[place]) for name, values in zip(names, numbers, strict=False)}
