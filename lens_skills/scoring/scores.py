"""`Scores`: the correlations of one pass, for every neuron, position and metric, and what chance
makes of them; `MetricScores`: one metric of them; how both are printed, tabled and saved.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lens_skills.activations.components import Components, neuron_names
from lens_skills.cards import Tabled
from lens_skills.errors import LensSkillsError, did_you_mean
from lens_skills.results import Result
from lens_skills.stats.calibration import Calibration, calibrate
from lens_skills.stats.intervals import chance_max_r

EXPLORATORY = "EXPLORATORY: examples were used before; nothing here is confirmed"

CARD_METRICS = 20
"""Of a card of scores."""

LEVEL = 0.05
"""Of the family-wise p and the false discovery rates behind a word such as *associated*."""


@dataclass(frozen=True)
class Sharing:
    """What one metric's r were drawn towards.

    Attributes:
        tasks: The other tasks, in the order they were given.
        metrics: The metric of each.
        common: ω, how much neurons differ (sd of atanh r) in what the tasks have in common.
        own: τ of this task and of each other one, in what is a task's own (the same unit).
        n_effective: Of this task and of each other one: 3 + 1 / s², how many independent examples
            give r the sampling variance s² that its intervals say it has.
        weight: The share of a neuron's own r in its shrunk r, 0 to 1 (on Fisher's z); the rest is
            what the other tasks say.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    common: float
    own: tuple[float, ...]
    n_effective: tuple[float, ...]
    weight: float

    @property
    def line(self) -> str:
        """For the card."""
        names = ", ".join(self.tasks)
        return (
            f"shrunk r: posterior means given the same neurons in {names} (empirical Bayes): a "
            f"neuron's own r counts {self.weight:.0%}; sd over neurons of what the tasks share "
            f"{self.common:.2f}, of what is this task's own {self.own[0]:.2f}; this task's labels "
            f"tell as much as {self.n_effective[0]:.0f} independent ones"
        )


@dataclass(frozen=True, eq=False)
class Scores(Result):
    """Correlations of every neuron with every metric, and what chance makes of them.

    Attributes:
        metrics: Names of the metrics.
        layer, neuron: What each unit is.
        positions: Labels of the positions read.
        r: Pearson's r, or the partial r given ``provenance["given"]``; in [-1, 1], never NaN (0
            where a unit is excluded).
        low, high: Ends of its 95 % interval, robust to clusters (groups), on Fisher's z: of each
            neuron by itself, so that those of the strongest of many are optimistic.
        p: Permutation p of one neuron: among its own draws where there are 999 or more, else
            among the draws of all neurons together. None without a null.
        p_family: Max-T p: the chance that *any* neuron at any position reaches such an |r|; of a
            label of several categories, with any of its categories.
        q: Benjamini–Hochberg over all neurons and positions, and over a label's categories.
        p_control, q_control: p of one neuron under the matched control task (the metric's own
            means of the input types exchanged among the types, and its residuals within them),
            and Benjamini–Hochberg over all neurons and positions. None where no input types are
            declared, or fewer than eight.
        excess: |r| over the root mean square r of random directions of the neuron's own layer,
            on standardised activations: how many times as strong as a random direction.
        p_basis, q_basis: The share of its own layer's random directions that reach its |r|, and
            Benjamini–Hochberg over all neurons and positions. None, as ``excess``, where layers
            were not scored whole or no direction was drawn.
        thresholds: What |r| must exceed, per metric, for p_family <= 5 %; None without a null.
        null_max: Largest |r| of each draw of the null, per metric.
        control_max: The same of each draw of the control task; empty where none was drawn.
        rotated_r: r of every random direction of the standardised layers, per metric.
        mean, std: Of each unit's activation (population std).
        class_means: For 0/1 metrics: mean activation where 0 and where 1.
        smd: For 0/1 metrics: difference of those over the pooled within-class std.
        predictivity: For 0/1 metrics, with a baseline: see `score`.
        values: The metrics of each example, in the order of ``example_ids``.
        excluded: Units left out because they do not vary.
        shrunk_r, shrunk_low, shrunk_high: With ``share=``: the posterior mean of r given the same
            neurons in other tasks, and its 95 % posterior interval; else None.
        sharing: With ``share=``, per metric: what was shared; see `Sharing`.
        n_examples, n_groups: How many; ``effective_groups``: (Σ n_g)² / Σ n_g², how many groups
            of equal size tell as much (Carter, Schnepel & Steigerwald 2017).
        notes: Sentences a reader of the numbers must see.
        excluded_metrics: Metrics left out because they did not vary, with the reason.
        exploratory: True where the examples had been used before, for a baseline or a prompt.
        provenance: Model, task, split, site, seed and versions behind the numbers.
    """

    metrics: tuple[str, ...]
    layer: Int[Tensor, " unit"]
    neuron: Int[Tensor, " unit"]
    positions: tuple[str, ...]
    r: Float[Tensor, "metric pos unit"]
    low: Float[Tensor, "metric pos unit"]
    high: Float[Tensor, "metric pos unit"]
    p: Float[Tensor, "metric pos unit"] | None
    p_family: Float[Tensor, "metric pos unit"] | None
    q: Float[Tensor, "metric pos unit"] | None
    thresholds: dict[str, float | None]
    null_max: dict[str, Tensor]
    control_max: dict[str, Tensor]
    rotated_r: dict[str, Tensor]
    mean: Float[Tensor, "pos unit"]
    std: Float[Tensor, "pos unit"]
    class_means: dict[str, Tensor]
    smd: dict[str, Tensor]
    predictivity: dict[str, Tensor]
    values: dict[str, Tensor]
    excluded: Bool[Tensor, " unit"]
    site: str
    n_examples: int
    n_groups: int
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    p_control: Float[Tensor, "metric pos unit"] | None = None
    q_control: Float[Tensor, "metric pos unit"] | None = None
    excess: Float[Tensor, "metric pos unit"] | None = None
    p_basis: Float[Tensor, "metric pos unit"] | None = None
    q_basis: Float[Tensor, "metric pos unit"] | None = None
    shrunk_r: Float[Tensor, "metric pos unit"] | None = None
    shrunk_low: Float[Tensor, "metric pos unit"] | None = None
    shrunk_high: Float[Tensor, "metric pos unit"] | None = None
    sharing: dict[str, Sharing] = field(default_factory=dict)
    effective_groups: float = 0.0
    notes: tuple[str, ...] = ()
    excluded_metrics: dict[str, str] = field(default_factory=dict)
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> "MetricScores":
        if metric in self.excluded_metrics:
            raise LensSkillsError(
                f"the metric {metric!r} was left out: {self.excluded_metrics[metric]}"
            )
        if metric not in self.metrics:
            raise LensSkillsError(
                f"no metric {metric!r} in these scores.{did_you_mean(metric, self.metrics)} "
                f"They hold: {', '.join(self.metrics)}."
            )
        return MetricScores(self, metric)

    def frame(self, *, metric: str | None = None) -> pd.DataFrame:
        """One row per metric, position and neuron, strongest |r| first within a metric.

        Columns: name layer neuron position metric r low high; with ``share=`` shrunk_r shrunk_low
        shrunk_high (and the strongest |shrunk_r| first); with a null p p_family q; with a
        control task p_control q_control; with random directions excess p_basis q_basis; then mean
        std excluded, and for 0/1 metrics mean_0 mean_1 smd (and predictivity with a baseline).
        """
        parts = [metric_frame(self, name) for name in self.metrics if metric in (None, name)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def calibration(self, *, n_bins: int = 10) -> Calibration | None:
        """Reliability of ``confidence`` against ``first_token_correct`` (or ``correct``).

        None where the pass held no such pair. The confidence is that of the first token, so
        ``first_token_correct`` is its proper partner; ``correct`` asks more.
        """
        truth = next((n for n in ("first_token_correct", "correct") if n in self.values), None)
        if truth is None or "confidence" not in self.values:
            return None
        return calibrate(self.values["confidence"], self.values[truth] > 0.5, n_bins=n_bins)

    def __add__(self, other: Any) -> "Scores":
        raise LensSkillsError(
            "finished scores cannot be added: what chance makes of all examples is drawn over all. "
            "Score parts, ls.score_part(model, part, examples, …), add those with +, and finish "
            "with .scores(examples)."
        )

    @property
    def n_units(self) -> int:
        return len(self.layer)

    def components(self, places: Int[Tensor, " place"]) -> Components:
        """The units at these places, as any verb takes them."""
        rows = torch.stack([self.layer[places], self.neuron[places]], dim=1)
        return Components.of(rows, self.site, self.provenance)

    def names(self) -> list[str]:
        """Every unit's name, such as ``L17N635``."""
        rows = torch.stack([self.layer, self.neuron], dim=1)
        return neuron_names(rows, self.site, self.provenance)

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """The place of each (layer, neuron) among the units."""
        pairs = zip(self.layer.tolist(), self.neuron.tolist(), strict=True)
        return {pair: place for place, pair in enumerate(pairs)}

    def __repr__(self) -> str:
        parts = [summary(self, metric) for metric in self.metrics[:CARD_METRICS]]
        if len(self.metrics) > CARD_METRICS:
            more = len(self.metrics) - CARD_METRICS
            parts.append(f"… and {more:,} more metrics: scores[{self.metrics[-1]!r}], .frame()")
        parts += [f"{name}: left out, {why}" for name, why in self.excluded_metrics.items()]
        table = self.calibration()
        if table is not None:
            parts.append(f"calibration error of the confidence: {table.error:.2f}")
        return "\n".join(parts)


@dataclass(frozen=True, eq=False)
class MetricScores(Tabled):
    """One metric's column of `Scores`; arrays are ``pos unit``.

    ``scores["name"]`` makes one. Everything else about the pass is in ``scores``.
    """

    scores: Scores
    metric: str

    def _of(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[self.scores.metrics.index(self.metric)]

    @property
    def r(self) -> Float[Tensor, "pos unit"]:
        return self.scores.r[self.scores.metrics.index(self.metric)]

    @property
    def low(self) -> Float[Tensor, "pos unit"]:
        return self.scores.low[self.scores.metrics.index(self.metric)]

    @property
    def high(self) -> Float[Tensor, "pos unit"]:
        return self.scores.high[self.scores.metrics.index(self.metric)]

    @property
    def shrunk_r(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.shrunk_r)

    @property
    def p(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.p)

    @property
    def p_family(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.p_family)

    @property
    def q(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.q)

    @property
    def p_control(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.p_control)

    @property
    def q_control(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.q_control)

    @property
    def excess(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.excess)

    @property
    def p_basis(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.p_basis)

    @property
    def q_basis(self) -> Float[Tensor, "pos unit"] | None:
        return self._of(self.scores.q_basis)

    @property
    def associated(self) -> Bool[Tensor, "pos unit"]:
        """Where the family-wise p is at most 5 %; nowhere without a null."""
        return self._within(self.p_family)

    @property
    def beats_control(self) -> Bool[Tensor, "pos unit"]:
        """Where associated and q of the control task is at most 5 %; nowhere without one."""
        return self.associated & self._within(self.q_control)

    @property
    def basis_privileged(self) -> Bool[Tensor, "pos unit"]:
        """Where q of the basis is at most 5 %; nowhere where no random direction was drawn."""
        return self._within(self.q_basis)

    def _within(self, chance: Float[Tensor, "pos unit"] | None) -> Bool[Tensor, "pos unit"]:
        if chance is None:
            return torch.zeros(self.r.shape, dtype=torch.bool)
        return (chance <= LEVEL) & ~self.scores.excluded[None].to(chance.device)

    @property
    def threshold(self) -> float | None:
        """What |r| must exceed for a family-wise p of at most 5 %; None without a null."""
        return self.scores.thresholds[self.metric]

    @property
    def strength(self) -> Float[Tensor, " unit"]:
        """Largest |r| of each unit over the positions."""
        return self.r.abs().max(dim=0).values

    @cached_property
    def strongest_position(self) -> Int[Tensor, " unit"]:
        """The place of the position at which each unit's |r| is largest."""
        return self.r.abs().argmax(dim=0)

    def strongest_of(self, unit: int) -> int:
        """The same of one unit; does not read the others."""
        return int(self.r[:, unit].abs().argmax())

    def at_strongest(self, values: Shaped[Tensor, "pos unit"]) -> Shaped[Tensor, " unit"]:
        """Of each unit the value at that position."""
        return values.gather(0, rearrange(self.strongest_position, "unit -> 1 unit"))[0]

    def top(self, k: int) -> Components:
        """The k units of largest |r|, strongest first, as any verb takes them.

        Of the largest |shrunk r| where the scores were made with ``share=``.
        """
        shrunk = self.shrunk_r
        strength = self.strength if shrunk is None else shrunk.abs().max(dim=0).values
        order = strength.argsort(descending=True, stable=True)
        order = order[~self.scores.excluded[order]][:k]
        return self.scores.components(order)

    def passing(self) -> dict[str, Bool[Tensor, "pos unit"]]:
        """Which (position, unit) are ``associated``, and which of them ``beat the control task``.

        One without a null is missing.
        """
        passed: dict[str, Bool[Tensor, "pos unit"]] = {}
        if self.p_family is not None:
            passed["associated"] = self.associated
            if self.q_control is not None:
                passed["beat the control task"] = self.beats_control
        return passed

    def frame(self) -> pd.DataFrame:
        """One row per neuron and position, strongest first; see `Scores.frame`."""
        return self.scores.frame(metric=self.metric)

    def __repr__(self) -> str:
        return summary(self.scores, self.metric)


def one_metric(scores: Any) -> MetricScores:
    """A ``MetricScores`` as it is, or the only metric of ``Scores``.

    Raises:
        LensSkillsError: Several metrics, with their names; something that is no scores.
    """
    if isinstance(scores, MetricScores):
        return scores
    if not isinstance(scores, Scores):
        raise LensSkillsError(
            f"scores are expected, as `score` returns them, not a {type(scores).__name__}."
        )
    if len(scores.metrics) != 1:
        raise LensSkillsError(
            f"these scores hold {len(scores.metrics)} metrics: {', '.join(scores.metrics)}. "
            f"Choose one: scores[{scores.metrics[0]!r}]."
        )
    return scores[scores.metrics[0]]


def metric_frame(scores: Any, name: str) -> pd.DataFrame:
    """The rows of one metric of `Scores`, strongest |r| first; see `Scores.frame`."""
    place = scores.metrics.index(name)
    n_pos, n_units = scores.r.shape[1:]
    columns: dict[str, Any] = {
        "name": scores.names() * n_pos,
        "layer": scores.layer.repeat(n_pos).numpy(),
        "neuron": scores.neuron.repeat(n_pos).numpy(),
        "position": [label for label in scores.positions for _ in range(n_units)],
        "metric": name,
    }
    evidence = ("r", "low", "high", "shrunk_r", "shrunk_low", "shrunk_high", "p", "p_family")
    evidence += ("q", "p_control", "q_control", "excess", "p_basis", "q_basis")
    arrays = {column: getattr(scores, column) for column in evidence}
    named: dict[str, Tensor | None] = {
        column: None if array is None else array[place] for column, array in arrays.items()
    }
    named |= {
        "mean": scores.mean,
        "std": scores.std,
        "mean_0": scores.class_means[name][0] if name in scores.class_means else None,
        "mean_1": scores.class_means[name][1] if name in scores.class_means else None,
        "smd": scores.smd.get(name),
        "predictivity": scores.predictivity.get(name),
    }
    for column, tensor in named.items():
        if tensor is not None:
            columns[column] = tensor.reshape(-1).numpy()
    columns["excluded"] = scores.excluded.repeat(n_pos).numpy()
    if scores.exploratory:
        columns["exploratory"] = True
    frame = pd.DataFrame(columns)
    by = "r" if scores.shrunk_r is None else "shrunk_r"
    return frame.sort_values(by, key=abs, ascending=False, kind="stable", ignore_index=True)


def summary(scores: Any, metric: str) -> str:
    """A few lines about one metric: how many are associated, the strongest, and what to know."""
    view = scores[metric]
    n_pos = len(scores.positions)
    size = f"{scores.n_examples:,} examples in {scores.n_groups:,} groups"
    if 0 < scores.effective_groups < 0.95 * scores.n_groups:
        size += f" (they tell as much as {scores.effective_groups:.0f} of one size)"
    steps = [f"{scores.n_units:,} neurons"]
    steps += [f"{int(mask.any(0).sum()):,} {word}" for word, mask in view.passing().items()]
    line = " → ".join(steps)
    if scores.q_basis is not None and scores.p_family is not None:
        both = view.associated & view.basis_privileged
        line += f" ({int(both.any(0).sum()):,} of the associated basis-privileged)"
    lines = [EXPLORATORY] if scores.exploratory else []
    lines += [
        f"{metric} · {scores.site} at {', '.join(scores.positions)}",
        f"  {size}",
        f"  {line}",
        *_meanings(scores, view, family_words(scores.n_units, n_pos)),
    ]
    left_out = int(scores.excluded.sum())
    if left_out:
        lines.append(f"  {left_out:,} neurons do not vary and are left out")
    if metric in scores.sharing:
        lines.append(f"  {scores.sharing[metric].line}")
        lines.append("  p and q are of the r of these labels alone; the strongest by |shrunk r|:")
    else:
        lines.append(
            "  the strongest by |r|, chosen for it: r and its 95 % interval lie too far out"
        )
    for unit in view.top(3):
        place = scores.places[unit.layer, unit.index]
        lines.append(f"    {unit.name}: {_numbers(view, place)}")
    lines += [f"  note: {note}" for note in scores.notes]
    return "\n".join(card_lines(lines))


def card_lines(lines: Iterable[str]) -> list[str]:
    """The lines of a card in rows of at most 80 columns, what follows the first further in.

    A line of steps is broken at an arrow.
    """
    rows = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        if len(line) <= 80:
            rows.append(line)
            continue
        steps = line.split(" → ")
        if len(steps) > 2 and max(map(len, steps)) <= 74:
            row = steps[0]
            for step in steps[1:]:
                if len(row) + 3 + len(step) > 80:
                    rows.append(row)
                    row = f"{indent}→ {step}"
                else:
                    row += f" → {step}"
            rows.append(row)
        else:
            rows += textwrap.wrap(
                line, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
    return rows


def family_words(n_units: int, n_positions: int) -> str:
    """What a family of tests consists of.

    >>> family_words(46_080, 1)
    '46,080 neurons × 1 position'
    """
    return f"{n_units:,} neurons × {n_positions} position" + "s" * (n_positions > 1)


def _meanings(scores: Any, view: MetricScores, family: str) -> list[str]:
    """What each word of the line of counts means here, and over what its p or q is."""
    if scores.p_family is None:
        chance = chance_max_r(scores.n_units * len(scores.positions), scores.n_examples)
        return [
            "  no null was drawn: these are descriptions, without p-values; the largest |r| of "
            f"as many independent neurons would be about {chance:.2f} by chance"
        ]
    lines = [
        f"  associated: p ≤ {LEVEL:.0%} family-wise over {family}"
        + ("" if view.threshold is None else f" (|r| > {view.threshold:.2f})")
    ]
    if scores.q_control is not None:
        lines.append(f"  beat the control task: associated, and its q ≤ {LEVEL:.0%} over {family}")
    if scores.q_basis is not None:
        lines.append(
            f"  basis-privileged: q ≤ {LEVEL:.0%} over {family}, p being among random "
            "directions of its layer"
        )
        lines.append("  excess: |r| over that of random directions of its layer (root mean square)")
    return lines


def _numbers(view: MetricScores, unit: int) -> str:
    """One neuron's r, interval and evidence, at its strongest position."""
    spot = view.strongest_of(unit)

    def at(part: Tensor) -> float:
        return float(part[spot, unit])

    text = f"r = {at(view.r):+.2f} [{at(view.low):+.2f}, {at(view.high):+.2f}]"
    if view.shrunk_r is not None:
        scores, row = view.scores, view.scores.metrics.index(view.metric)
        assert scores.shrunk_low is not None
        assert scores.shrunk_high is not None
        best = view.shrunk_r[:, unit].abs().argmax()
        mean, low, high = (
            float(part[row, best, unit])
            for part in (scores.shrunk_r, scores.shrunk_low, scores.shrunk_high)
            if part is not None
        )
        text = f"shrunk r = {mean:+.2f} [{low:+.2f}, {high:+.2f}] ({text})"
    if view.p_family is not None:
        text += f", p {at(view.p_family):.1g}"
    if view.q_control is not None:
        text += f", q control {at(view.q_control):.1g}"
    if view.excess is not None:
        text += f", excess {at(view.excess):.1f}"
    return text
