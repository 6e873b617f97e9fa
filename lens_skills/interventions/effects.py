"""`Effects`: what an edit of each neuron alone, or of each of many sets, does to a metric.

`measure_effects` is the one engine behind every effect that is reported: it binds the edit, cuts
examples and sets into parts that fit into memory, and hands an interrupted measurement on.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills import settings
from lens_skills.activations import (
    Metric,
    Position,
    parse_metrics,
    parse_position,
)
from lens_skills.activations.components import Component, sites_of
from lens_skills.activations.forward import prepare
from lens_skills.activations.stream import ordered_batches
from lens_skills.cards import card_lines
from lens_skills.checkpoints import Checkpoint
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.batched_edits import edited_places, stack_sets
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effect_engine import SweepSpec
from lens_skills.interventions.partial_effects import PartialEffects, Prepared, fill
from lens_skills.interventions.row_budget import RowBudget
from lens_skills.interventions.screening import LeftOut, Screening
from lens_skills.models import ModelAdapter
from lens_skills.models.weights import OutputWeights
from lens_skills.results import Result, provenance


@dataclass(frozen=True, eq=False)
class Effects(Result):
    """Change of a metric under an intervention: edited minus clean, in the metric's unit.

    Attributes:
        names: One name per set, such as ``"L17N635"`` or ``"top 10"``.
        clean: The metric of each example without the intervention.
        total: Edited minus clean; the mean over draws where the edit draws at random.
        direct: The part that reaches the answer without passing a later layer: the edit's write
            to the residual stream read through the clean pass's own final norm. None where it was
            not asked for or the metric does not allow it.
        example_ids, groups: Of the examples, in order.
        metric, unit: What was measured.
        do: The intervention in words, such as ``"mean ablation over agreement, explore split"``.
        site, position: Where it acts.
        provenance: Model, task, split, seed and versions behind the numbers, and how many columns
            were run at once.
        screening: Where gradients chose what was measured: all that was asked for, what they
            expect of it, and what was drawn from the rest; None where everything was measured.
    """

    names: tuple[str, ...]
    clean: Float[Tensor, " example"]
    total: Float[Tensor, "set example"]
    direct: Float[Tensor, "set example"] | None
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    unit: str
    do: str
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)
    screening: Screening | None = None

    @property
    def of_shares(self) -> bool:
        """Whether the metric is 0 or 1, so that a mean effect is a difference of shares."""
        edited = self.clean + self.total
        return bool(
            ((self.clean == 0) | (self.clean == 1)).all() and ((edited >= 0) & (edited <= 1)).all()
        )

    def frame(self, *, every: bool = False) -> pd.DataFrame:
        """One row per set: name, mean effect, its standard deviation over examples, direct.

        With ``every``, also those that a screening left out: ``known`` says whether an effect is
        ``"exact"``, and else NaN; then ``predicted`` is the gradient's estimate, or
        ``"unknown"`` where there is none. The estimate and Taylor's size stand in columns of their
        own.
        """
        columns: dict[str, Any] = {
            "name": list(self.names),
            "effect": self.total.mean(dim=1).numpy(),
            "std": self.total.std(dim=1, correction=0).numpy(),
        }
        if self.direct is not None:
            columns["direct"] = self.direct.mean(dim=1).numpy()
        measured = pd.DataFrame(columns)
        if not every:
            return measured
        screening = self.screening
        if screening is None:
            return measured.assign(known="exact")
        measured.index = pd.Index(screening.measured.nonzero()[:, 0].numpy())
        frame = measured.reindex(range(len(screening.names)))
        return frame.assign(
            name=list(screening.names),
            known=screening.known,
            predicted=screening.predicted.numpy(),
            taylor=screening.taylor.numpy(),
        )

    def left_out(self, k: int | None = None) -> LeftOut:
        """What the drawn units of a screened sweep say of those that were left out.

        How many of them are beyond the ``k``-th largest effect of those that gradients chose (None:
        the 100th, or the last of their largest tenth), with an exact interval; the sum of their
        sizes; how far predictions are off.

        Raises:
            LensSkillsError: A sweep without screening; ``k`` below 1.
        """
        if self.screening is None:
            raise LensSkillsError("nothing was left out: this sweep measured all it was asked for.")
        return self.screening.left_out(self.total.mean(dim=1), k)

    def __repr__(self) -> str:
        n, n_groups = len(self.example_ids), len(set(self.groups))
        unit = f" ({self.unit})" if self.unit else ""
        where = f"{self.site} at {self.position}"
        sets, screening = f"{len(self.names):,} sets", self.screening
        if screening is not None:
            sets = (
                f"{len(self.names):,} of {len(screening.names):,} units measured "
                f"({int(screening.chosen.sum()):,} chosen by gradients, "
                f"{int(screening.drawn.sum()):,} drawn from the rest)"
            )
        lines = [
            *card_lines(f"{self.do}: its effect on {self.metric}{unit}"),
            *card_lines(f"{sets} at {where} · {n:,} examples in {n_groups:,} groups"),
        ]
        if not self.names or not n:
            return "\n".join(lines)
        lines += card_lines(
            f"clean mean {float(self.clean.mean()):+.3g}; edited minus clean, mean over examples "
            "(± std over examples), the largest first:",
            indent=2,
        )
        means, spread = self.total.mean(dim=1), self.total.std(dim=1, correction=0)
        shown = means.abs().argsort(descending=True, stable=True)[:CARD_ROWS].tolist()
        width = max(len(_shortened(self.names[place])) for place in shown)
        for place in shown:
            row = f"    {_shortened(self.names[place]):{width}}  {float(means[place]):+10.3g}"
            row += f"  (± {float(spread[place]):.2g})"
            if self.direct is not None:
                row += f"  direct {float(self.direct[place].mean()):+.3g}"
            lines.append(row)
        if len(self.names) > len(shown):
            lines.append(f"    … {len(self.names) - len(shown):,} more: .frame()")
        if self.screening is not None:
            lines += self.left_out().lines(self.unit)
        lines += card_lines(
            "No controls and no test: verify says which effects are real.", indent=2
        )
        return "\n".join(lines)


CARD_ROWS = 10
"""So many rows are on a card; all are in its frame."""


def _shortened(name: str, longest: int = 30) -> str:
    return name if len(name) <= longest else f"{name[: longest - 2]} …"


def measure_effects(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    sets: Sequence[tuple[Component, ...]],
    do: Edit | Change,
    *,
    metric: Any,
    position: Position = "last",
    names: Sequence[str] | None = None,
    direct: bool = False,
    seed: int = 0,
) -> Effects:
    """The effect of each set of units, all edited together, per example; see `sweep`.

    ``do`` may be bound already: to these examples, and to every layer the sets touch. An empty set
    has no effect. Where an edit draws at random, the metric is averaged over its
    draws. ``provenance["whole_passes"]`` says why full passes were run where they were.
    """
    measured = effect_metric(metric)
    if len(examples) == 0:
        raise LensSkillsError(
            "no examples to measure effects on: the task is empty (after filtering?)."
        )
    labels = tuple(names) if names is not None else tuple(map(_name, sets))
    if len(labels) != len(sets):
        raise LensSkillsError(f"{len(labels)} names were given for {len(sets)} sets.")
    units = [unit for units in sets for unit in units]
    sites = sites_of(units)
    change, answers = do, reads_answers(measured)
    if not isinstance(change, Change):
        change = change.bind(
            adapter, examples, sites, position=position, seed=seed, answers=answers
        )
    spots = parse_position(position)
    prepared = partial(
        _prepared,
        examples=examples,
        sets=sets,
        metric=measured,
        change=change,
        position=position,
        direct=direct,
    )
    ready = prepared(adapter)
    about = {
        **provenance(examples, adapter),
        "implementation": adapter.implementation,
        "dtype": str(adapter.dtype),
        "metric": measured.name,
        "do": change.name,
        "n_draws": change.n_draws,
        "sites": {site: list(layers) for site, layers in sites.items()},
        "positions": list(spots.labels),
        "seed": seed,
    }
    asked = {
        **about,
        "sets": _sets_hash(sets),
        "direct": direct,
        "batch_size": settings.batch_size(),
    }
    saved = Checkpoint.at(asked, name="sweep")
    sheet = PartialEffects.begun(len(sets), len(examples), direct, saved)
    fill(ready, prepared, sheet, labels, saved)
    if saved is not None:
        saved.finish(*sheet.packed())
    return Effects(
        names=labels,
        clean=sheet.clean,
        total=sheet.total,
        direct=sheet.direct,
        example_ids=tuple(example.id for example in examples),
        groups=tuple(example.group for example in examples),
        metric=measured.name,
        unit=measured.unit,
        do=change.name,
        site=", ".join(sites),
        position=", ".join(spots.labels),
        provenance={**about, "whole_passes": sheet.whole, **ready.spec.rows.told},
    )


def _prepared(
    adapter: ModelAdapter,
    *,
    examples: Sequence[Example],
    sets: Sequence[tuple[Component, ...]],
    metric: Metric,
    change: Change,
    position: Position,
    direct: bool,
) -> Prepared:
    """The batches, the stacks and what they share, on one model."""
    encoded, plan = prepare(adapter, examples, [metric])
    units = [unit for units in sets for unit in units]
    spec = SweepSpec(
        adapter=adapter,
        plan=plan,
        metric=metric,
        change=change,
        places=edited_places(adapter, encoded, position),
        spots=frozenset((unit.layer, unit.site) for unit in units),
        ragged=parse_position(position).ragged,
        direct=direct,
        rows=RowBudget(adapter, settings.edit_rows()),
        writes=OutputWeights(adapter),
    )
    return Prepared(spec, ordered_batches(encoded, plan), stack_sets(sets))


def effect_metric(metric: Any) -> Metric:
    """The one metric an effect is measured on.

    Raises:
        LensSkillsError: Several metrics, or one that is known before the model runs.
    """
    found = parse_metrics(metric)
    if len(found) != 1:
        raise LensSkillsError(
            f"an effect is measured on one metric at a time, not {len(found)}: "
            f"{', '.join(each.name for each in found)}. Call once for each."
        )
    if found[0].known:
        raise LensSkillsError(
            f"{found[0].name!r} is a column of the task, known before the model runs, so no "
            "edit can change it. Choose what the model says: logit_diff(), correct(), …"
        )
    return found[0]


def _name(units: tuple[Component, ...]) -> str:
    shown = ", ".join(unit.name for unit in units[:3])
    return f"{shown}, … ({len(units)})" if len(units) > 3 else shown or "no unit"


def _sets_hash(sets: Sequence[tuple[Component, ...]]) -> str:
    digest = hashlib.sha256()
    for units in sets:
        rows = sorted((unit.layer, unit.site, unit.start, unit.stop) for unit in units)
        digest.update(repr(rows).encode())
    return digest.hexdigest()[:16]


def reads_answers(metric: Metric) -> bool:
    """Whether a metric reads answers: then a prompt's trailing space belongs to the answer."""
    return bool(metric.reads - {"logits"})


Measure = Callable[..., Effects]


def measurer(adapter: ModelAdapter, metric: Metric, position: Position, seed: int) -> Measure:
    """``measure(examples, sets, do, names=…)`` for one model, metric and position."""
    return partial(measure_effects, adapter, metric=metric, position=position, seed=seed)
