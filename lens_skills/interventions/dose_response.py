"""`dose_response`: what steering a set does, dose by dose, to a metric and to neutral text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import Encoded, encode_examples, placed
from lens_skills.activations.locations import edited_positions
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change, describe_source, measure_baseline
from lens_skills.interventions.batched_edits import edited_places, editing_of
from lens_skills.interventions.edits import steer
from lens_skills.interventions.effects import effect_metric, measure_effects, reads_answers
from lens_skills.models import Chat, ModelAdapter, with_soft_prompt
from lens_skills.progress import progress
from lens_skills.results import Result, provenance
from lens_skills.stats.correlation import spearman
from lens_skills.stats.effect_tests import FEW_GROUPS, check_groups, cluster_interval
from lens_skills.tasks.word_lists import neutral_texts


@dataclass(frozen=True, eq=False)
class DoseResponse(Result):
    """What steering a set by each dose does to a metric, and to text that is none of its business.

    Attributes:
        names: The units of the set, steered together.
        doses: In each unit's own standard deviation; positive raises the activation.
        effects: Edited minus clean metric of every example, in the metric's unit.
        low, high: 95 % interval of the mean effect of each dose, by group.
        slope: Least-squares change of the metric per standard deviation, over all doses.
        slope_low, slope_high: Its 95 % interval, by group.
        monotonicity: Spearman's correlation of the dose and the mean effect, -1 to 1; 0 where
            the mean effect is the same at all doses.
        damage: KL(clean ‖ edited) in nats per token of each neutral text, steered everywhere.
        clean: The metric without an edit.
        example_ids, groups: Of the examples, in order.
        metric, unit: What was measured.
        over: The split of the standard deviations, in words.
        site, position: Where the set was steered.
        provenance: Model, task, seed and versions behind the numbers.
    """

    names: tuple[str, ...]
    doses: Float[Tensor, " dose"]
    effects: Float[Tensor, "dose example"]
    low: Float[Tensor, " dose"]
    high: Float[Tensor, " dose"]
    slope: float
    slope_low: float
    slope_high: float
    monotonicity: float
    damage: Float[Tensor, "dose text"]
    clean: Float[Tensor, " example"]
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    unit: str
    over: str
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per dose: dose effect low high damage damage_low damage_high.

        The ends of the damage are missing where there is one text only.
        """
        if self.n_texts > 1:
            low, high = cluster_interval(self.damage, [str(text) for text in range(self.n_texts)])
        else:
            low = high = torch.full_like(self.doses, torch.nan)
        return pd.DataFrame(
            {
                "dose": self.doses.numpy(),
                "effect": self.effects.mean(1).numpy(),
                "low": self.low.numpy(),
                "high": self.high.numpy(),
                "damage": self.damage.mean(1).numpy(),
                "damage_low": low.clamp(min=0).numpy(),
                "damage_high": high.numpy(),
            }
        )

    @property
    def n_texts(self) -> int:
        """How many neutral texts the damage was measured on."""
        return self.damage.shape[1]

    def __repr__(self) -> str:
        named = ", ".join(self.names[:3]) + (" …" if len(self.names) > 3 else "")
        lines = [
            f"{self.metric} against dose · {named} ({len(self.names)} units) · {self.site} at "
            f"{self.position} · {len(self.example_ids):,} examples in "
            f"{len(set(self.groups)):,} groups",
            f"  slope {self.slope:+.3g} [{self.slope_low:+.3g}, {self.slope_high:+.3g}] "
            f"{self.unit} per std over {self.over}; monotonicity {self.monotonicity:+.2f}",
            f"  {'dose':>5}  {'effect':>8}  {'95 % interval':<20}  damage (nats per token)",
        ]
        for dose, effect, low, high, damage, *_ in self.frame().itertuples(index=False):
            interval = f"[{low:+.3g}, {high:+.3g}]"
            lines.append(f"  {dose:>+5g}  {effect:>+8.3g}  {interval:<20}  {damage:.3g}")
        if len(set(self.groups)) < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups: the intervals cover less than 95 %")
        return "\n".join(lines)


DOSES = (-4.0, -2.0, 0.0, 1.0, 2.0, 4.0)


def dose_response(
    model: Any,
    examples: Sequence[Example],
    neurons: Any,
    *,
    doses: Sequence[float] = DOSES,
    metric: Any = "logit_diff",
    position: Position = "last",
    over: Any = None,
    neutral: Sequence[str] | None = None,
    at: str = DEFAULT_SITE,
    chat: Chat = False,
    seed: int = 0,
) -> DoseResponse:
    """The effect of steering a set by each dose, its slope, and the damage done elsewhere.

    At dose d every unit of the set is moved by d of its own standard deviations, all at once. The
    slope is that of least squares, Σ_d (d − d̄) e_d / Σ_d (d − d̄)², per example, then averaged.

    Args:
        model: A HookedTransformer or TransformerBridge.
        examples: What the effect is measured on.
        neurons: The set: names, rows, or a `Selection`.
        doses: In standard deviations; at least two different ones.
        metric: Any metric; see `parse_metrics`.
        position: One position, or ``"all"``.
        over: Where the standard deviations come from: a split or `Scores`. None takes those of the
            `Selection`, or else of the examples themselves.
        neutral: Texts to measure the damage on, steered at every token by the same amount; None
            takes the project's own sixty sentences.
        at: The site of what is named as a neuron.
        chat: As in `score`; neutral texts are read as plain text all the same.
        seed: Of the bootstrap.

    Intervals are those of `cluster_interval`; the slope's is that of the per-example slopes.

    Does not show: that the model itself goes there; few activations lie beyond 4 std.

    Raises:
        LensSkillsError: Fewer than two doses or eight groups, a list of positions, units that
            the model lacks.
    """
    check_groups([example.group for example in examples], "an interval of each dose")
    adapter = with_soft_prompt(model, None, chat)
    amounts = check_doses(doses)
    if len(edited_positions(position).labels) > 1:
        raise LensSkillsError("dose_response steers at one position, or at 'all'; not at a list.")
    found = parse_components(adapter, neurons, at=at)
    if not found:
        raise LensSkillsError("no units to steer: the set is empty.")
    if over is None:
        over = neurons if getattr(neurons, "std", None) is not None else examples
    sites = sites_of(found)
    # Measured once, for all doses.
    # Prompts end where they end in the pass that measures the effect.
    answers = reads_answers(effect_metric(metric))
    baseline = measure_baseline(adapter, over, sites, position=position, answers=answers)
    # Dose 0 changes nothing and needs no pass.
    given = [place for place, dose in enumerate(amounts) if dose != 0]
    edits = [steer(by=amounts[place], over=baseline) for place in given]
    measured = [
        measure_effects(
            adapter, examples, [found], edit, metric=metric, position=position, seed=seed
        )
        for edit in edits
    ]
    effects = torch.zeros(len(amounts), len(examples), dtype=torch.float64)
    effects[given] = torch.cat([one.total.double() for one in measured])
    first = measured[0]
    low, high = cluster_interval(effects, first.groups, seed=seed)
    slopes = slope_of(torch.tensor(amounts, dtype=torch.float64), effects)
    slope_low, slope_high = cluster_interval(slopes, first.groups, seed=seed)
    changes = [edit.bind(adapter, (), sites, position=position) for edit in edits]
    texts = neutral_texts() if neutral is None else tuple(neutral)
    damage = torch.zeros(len(amounts), len(texts), dtype=torch.float64)
    damage[given] = text_damage(adapter.in_chat(False), texts, found, changes)
    return DoseResponse(
        names=tuple(unit.name for unit in found),
        doses=torch.tensor(amounts, dtype=torch.float64),
        effects=effects,
        low=low,
        high=high,
        slope=float(slopes.mean()),
        slope_low=float(slope_low),
        slope_high=float(slope_high),
        monotonicity=_monotonicity(amounts, effects.mean(1).tolist()),
        damage=damage,
        clean=first.clean,
        example_ids=first.example_ids,
        groups=first.groups,
        metric=first.metric,
        unit=first.unit,
        over=describe_source(over),
        site=", ".join(sites),
        position=first.position,
        provenance={
            **provenance(examples, adapter),
            "neutral": "shipped" if neutral is None else len(texts),
            "seed": seed,
        },
    )


def slope_of(
    doses: Float[Tensor, " dose"], effects: Float[Tensor, "dose example"]
) -> Float[Tensor, " example"]:
    """The least-squares slope of each example's effect against the dose.

    >>> slope_of(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0], [3.0], [6.0]])).tolist()
    [3.0]
    """
    centred = doses - doses.mean()
    return einsum(centred, effects, "dose, dose example -> example") / (centred**2).sum()


def check_doses(doses: Sequence[float]) -> list[float]:
    """The doses in order; raises where there are fewer than two different finite ones."""
    amounts = [float(dose) for dose in doses]
    if len(set(amounts)) < 2 or len(set(amounts)) < len(amounts) or not np.isfinite(amounts).all():
        raise LensSkillsError(
            f"doses must be two or more different finite numbers, not {amounts}: a slope needs a "
            "contrast. For a single strength use sweep or verify with do=steer(by=…)."
        )
    return sorted(amounts)


def _monotonicity(doses: Sequence[float], means: Sequence[float]) -> float:
    if max(means) == min(means):
        return 0.0
    return float(spearman(torch.tensor([doses, means], dtype=torch.float64))[0, 1])


TEXTS = 4  # texts whose logits over the whole vocabulary, at every token, are held at once


def text_damage(
    adapter: ModelAdapter,
    texts: Sequence[str],
    units: Sequence[Component],
    changes: Sequence[Change],
) -> Float[Tensor, "change text"]:
    """How far each change, made at every token, moves the model's predictions; nats per token.

    For each text the mean over its tokens of KL(clean ‖ edited) = Σ_v p_v (ln p_v − ln q_v) of the
    next-token distributions, ≥ 0. The beginning-of-sequence token is neither edited nor counted.
    A change must be the same for every example (steering, a clamp, a mean).
    """
    examples = [Example(id=f"text {place}", prompt=text) for place, text in enumerate(texts)]
    encoded = encode_examples(adapter, examples, answers=False)
    places = edited_places(adapter, encoded, "all")
    damage = torch.zeros(len(changes), len(texts), dtype=torch.float64)
    ordered = sorted(encoded, key=lambda item: len(item.prompt_tokens))
    starts = range(0, len(ordered), TEXTS)
    for start in progress(starts, len(starts), "dose response", "batches of texts"):
        batch = ordered[start : start + TEXTS]
        index = [item.index for item in batch]
        clean, counted = _log_probabilities(adapter, batch, None, units, places)
        for row, change in enumerate(changes):
            other, _ = _log_probabilities(adapter, batch, change, units, places)
            divergence = (clean.exp() * (clean - other)).sum(-1).double().clamp(min=0)
            total = (divergence * counted).sum(1) / counted.sum(1)
            damage[row, index] = total.cpu()
    return damage


def _log_probabilities(
    adapter: ModelAdapter,
    batch: Sequence[Encoded],
    change: Change | None,
    units: Sequence[Component],
    places: dict[int, list[int]],
) -> tuple[Float[Tensor, "batch pos d_vocab"], Bool[Tensor, "batch pos"]]:
    """Of the next token at every column, and which columns count."""
    rows = [item.prompt_tokens.tolist() for item in batch]
    tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
    width = tokens.shape[1]
    logits = adapter.forward(
        tokens,
        mask,
        readers={},
        logits_at=repeat(torch.arange(width), "pos -> batch pos", batch=len(batch)),
        editors=placed(None if change is None else editing_of(change, units, places), batch, rows),
    )
    assert logits is not None, "logits were asked for"
    counted = torch.zeros_like(mask)
    for row, item in enumerate(batch):
        start = width - len(rows[row])
        counted[row, [start + place for place in places[item.index]]] = True
    return logits.float().log_softmax(-1), counted
