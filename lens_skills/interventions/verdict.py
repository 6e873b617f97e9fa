"""`Verdict`: what interventions say of each neuron and of all together, in words with numbers.

`rule` gives every neuron or set its word (a `Ruling`); `card_lines` prints them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.interventions.effects import Effects
from lens_skills.results import Result
from lens_skills.scoring import EXPLORATORY
from lens_skills.stats.effect_estimates import (
    Classes,
    EffectEstimates,
    estimate,
    estimate_classes,
)
from lens_skills.stats.effect_tests import beyond, equivalent, examples_needed, opposed

SUPPORTS, OPPOSES, MIXED = "supports", "opposes", "mixed"
COMPENSATED, NO_EFFECT, UNDECIDED = "compensated", "no total effect beyond δ", "undecided"
WORDS = (SUPPORTS, OPPOSES, MIXED, COMPENSATED, NO_EFFECT, UNDECIDED)
CAUSAL = (SUPPORTS, OPPOSES, MIXED)
"""The words that claim an effect."""
ALPHA = 0.05
SHOWN = 12  # neurons on the card

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
        delta: The smallest effect that matters, in the metric's unit, and where it is from.
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
    def singles(self) -> tuple[Ruling, ...]:
        """The rulings on single neurons."""
        return tuple(ruling for ruling in self.rulings if ruling.name != "set")

    def named(self, *words: str) -> list[str]:
        """The neurons with one of these words, e.g. ``verdict.named("supports")``."""
        return [ruling.name for ruling in self.singles if ruling.word in words]

    @property
    def causal(self) -> list[str]:
        """The neurons that support, oppose or do both."""
        return self.named(*CAUSAL)

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons got each word, in the order of `WORDS`."""
        return {word: len(self.named(word)) for word in WORDS}

    def frame(self) -> pd.DataFrame:
        """One row per neuron and one for the set, with the columns of `Ruling`."""
        frame = pd.DataFrame([vars(ruling) for ruling in self.rulings])
        return frame.assign(exploratory=True) if self.exploratory else frame

    def table(self, name: str) -> pd.DataFrame:
        """A further table.

        ``"classes"``: effect of every neuron within every class. ``"ablations"``: over the choice
        of ablation. ``"unrelated"``: on unrelated examples. ``"controls"``: the set among its
        control sets. ``"match"``: how alike the controls are. ``"set"``: the set against the sum
        of its neurons. ``"pairs"``: noising and denoising. Only those measured are there.
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

    def __repr__(self) -> str:
        return "\n".join(card_lines(self))


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where each set's |effect| stands among its controls; nothing where it had none.

    ``mixed_q`` holds, per column of classes, the q of the sets' opposition (see
    `lens_skills.stats.effect_tests.opposition`) among that of the controls.
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
                low90=float(total.low90[place]),
                high90=float(total.high90[place]),
                size=float(total.size[place]),
                rank=ranks.rank[place],
                n_controls=ranks.n_controls[place],
                p=ranks.p[place],
                q=ranks.q[place],
                needed=needed,
                **mean_and_ends(total, place),
                **mean_and_ends(direct, place, "direct", "direct_low", "direct_high"),
                **mean_and_ends(repair, place, "self_repair", "repair_low", "repair_high"),
            )
        )
    return tuple(rulings)


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


def card_lines(verdict: Any) -> list[str]:
    """The card's lines, the most telling first."""
    effects = verdict.effects
    unit = f" {effects.unit}" if effects.unit else ""
    lines = [
        f"{effects.metric} · {effects.do} · {effects.site} at {effects.position}",
        f"{len(effects.clean):,} examples in {len(set(effects.groups)):,} groups, clean mean "
        f"{float(effects.clean.mean()):.3g}{unit} · δ = {verdict.delta:.3g}{unit} "
        f"({verdict.delta_from})",
        "effects are edited minus clean"
        + (
            ": what supports the skill lowers the metric when removed"
            if verdict.removes
            else ": this edit adds, so what supports the skill raises the metric"
        ),
    ]
    if verdict.exploratory:
        lines.insert(0, EXPLORATORY)
    words = [f"{count} {word}" for word, count in verdict.counts.items() if count]
    lines.append(f"{len(verdict)} verified → {' · '.join(words)}")
    whole = [ruling for ruling in verdict.rulings if ruling.name == "set"]
    if whole:
        lines += ["", *_set(verdict, whole[0])]
    lines.append("")
    order = sorted(
        verdict.singles, key=lambda ruling: (WORDS.index(ruling.word), -abs(ruling.effect))
    )
    width = max(len(ruling.word) for ruling in order[:SHOWN])
    lines += [_line(ruling, width) for ruling in order[:SHOWN]]
    if len(order) > SHOWN:
        lines.append(f"  … and {len(order) - SHOWN} more in .frame()")
    lines += _further(verdict)
    if verdict.notes:
        lines += ["", *(f"note: {note}" for note in verdict.notes)]
    return lines


def _interval(effect: float, low: float, high: float, **_: Any) -> str:
    return f"{effect:+.3g} [{low:+.3g}, {high:+.3g}]"


def _line(ruling: Ruling, width: int) -> str:
    parts = [f"  {ruling.name:<9} {ruling.word:<{width}} {_interval(**vars(ruling))}"]
    if ruling.direct is not None and ruling.self_repair is not None:
        parts.append(f"direct {ruling.direct:+.3g}, later layers {ruling.self_repair:+.3g}")
    if ruling.q is not None:
        parts.append(f"q = {ruling.q:.2g}")
    if ruling.why:
        parts.append(ruling.why)
    return " · ".join(parts)


def _set(verdict: Any, whole: Ruling) -> list[str]:
    text = f"together: {whole.word} {_interval(**vars(whole))}"
    if whole.p is not None:
        text += f", p = {whole.p:.2g} among {whole.n_controls} matched sets"
    if whole.why:
        text += f" · {whole.why}"
    lines = [text]
    for row in verdict.tables.get("set", ()):
        if row["name"] == "sum of singles":
            lines.append(f"  the sum of its neurons, each alone: {row['effect']:+.3g}")
    for row in verdict.tables.get("controls", ()):
        lines.append(
            f"  {row['controls']} {row['kind']} sets: {row['low']:+.3g} to {row['high']:+.3g} "
            f"(90 % of them), p = {row['p']:.2g}"
        )
    match = [f"{row['feature']} {row['smd']:+.2f}" for row in verdict.tables.get("match", ())]
    if match:
        lines.append(f"  match (standardised mean difference): {', '.join(match)}")
    return lines


def _further(verdict: Any) -> list[str]:
    """What the other tables hold of the set, or of the only neuron."""
    name = verdict.rulings[-1].name
    ablations, pairs, unrelated = (
        [row for row in verdict.tables.get(table, ()) if row["name"] == name]
        for table in ("ablations", "pairs", "unrelated")
    )
    lines = []
    if ablations:
        parts = "; ".join(f"{row['do']} {_interval(**row)}" for row in ablations)
        lines += ["", f"over the choice of ablation ({name}): {parts}"]
    if pairs:
        lines.append("")
    lines += [
        f"{row['what']}: {row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of the "
        f"gap between clean and corrupted{' · sufficient' if row.get('sufficient') else ''}"
        for row in pairs
    ]
    lines += [f"on unrelated examples ({name}): {_interval(**row)}" for row in unrelated]
    return lines
