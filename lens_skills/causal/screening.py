"""`prescreen`: what gradients expect of every neuron, to choose what to sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.plan import prepare
from lens_skills.activations.stream import BATCH_SIZE, batches
from lens_skills.causal.edits import Edit
from lens_skills.causal.effects import Effects
from lens_skills.causal.gradients import activations_and_gradients
from lens_skills.causal.measurement import one_metric
from lens_skills.causal.placement import edited_places
from lens_skills.causal.units import parse_units, sites_of
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import as_lens
from lens_skills.models.suffix import CannotResume


@dataclass(frozen=True, eq=False)
class Prescreen:
    """What the gradient of a metric expects of each unit; an estimate, not an effect.

    Attributes:
        names: Of the units.
        taylor: Mean over examples of \\|Σ a · ∂m/∂a\\| over the unit's features and positions: how
            much setting it to zero moves the metric, to first order (in its unit, >= 0).
        predicted: Σ (new - old) · ∂m/∂a of each example under the edit, signed; None without one.
        metric, do, position: What was differentiated, and the edit in words.
    """

    names: tuple[str, ...]
    taylor: Float[Tensor, " unit"]
    predicted: Float[Tensor, "unit example"] | None
    metric: str
    do: str
    position: str

    def top(self, k: int) -> list[str]:
        """The names of the ``k`` units with the largest expected effect, the largest first.

        By the mean over examples of the predicted magnitude where there is an edit, else by
        ``taylor``.
        """
        size = self.taylor if self.predicted is None else self.predicted.abs().mean(1)
        order = size.argsort(descending=True, stable=True)[:k]
        return [self.names[place] for place in order.tolist()]

    def agreement(self, effects: Effects) -> dict[str, float]:
        """How well the estimates rank the exact effects of the same units (Spearman, -1 to 1).

        ``taylor`` against the mean magnitude of the effects, ``predicted`` against their signed
        mean. Report it beside anything the prescreen chose.

        Raises:
            LensSkillsError: Effects of units that were not prescreened, or of fewer than three.
        """
        place = {name: index for index, name in enumerate(self.names)}
        missing = [name for name in effects.names if name not in place]
        if missing:
            raise LensSkillsError(f"{missing[0]} has an effect but was not prescreened.")
        rows = [place[name] for name in effects.names]
        found = {"taylor": rank_agreement(self.taylor[rows], effects.total.abs().mean(1))}
        if self.predicted is not None:
            predicted = self.predicted.mean(1)[rows]
            found["predicted"] = rank_agreement(predicted, effects.total.mean(1))
        return found

    def frame(self) -> pd.DataFrame:
        """One row per unit: name, taylor and, with an edit, the mean predicted effect."""
        frame = pd.DataFrame({"name": list(self.names), "taylor": self.taylor.numpy()})
        if self.predicted is not None:
            frame["predicted"] = self.predicted.mean(1).numpy()
        return frame


def rank_agreement(estimate: Float[Tensor, " unit"], exact: Float[Tensor, " unit"]) -> float:
    """Spearman's rank correlation of an estimate with the exact effects (-1 to 1).

    >>> rank_agreement(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 40.0]))
    1.0

    Raises:
        LensSkillsError: Fewer than three units, or all alike: nothing to rank.
    """
    if len(estimate) < 3:
        raise LensSkillsError(f"{len(estimate)} units cannot be ranked. Sweep three or more.")
    if estimate.unique().numel() < 2 or exact.unique().numel() < 2:
        raise LensSkillsError("all units are alike, so there is nothing to rank.")
    found: Any = stats.spearmanr(estimate.numpy(), exact.numpy())
    return round(float(found.statistic), 12)


def prescreen(
    model: Any,
    examples: Sequence[Example],
    neurons: Any = "all",
    *,
    metric: Any,
    do: Edit | None = None,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Prescreen:
    """What gradients expect of every neuron, from one forward and one backward pass per batch.

    Source: Taylor, |a · ∂m/∂a|: arXiv 2407.06488. An edit's first-order effect,
    (new - old) · ∂m/∂a: arXiv 2412.18053.

    Does not show: an effect. Saturated and cooperating neurons are misjudged; report the rank
    agreement (`Prescreen.agreement`) with a sweep of some.

    Args:
        model: A HookedTransformer or TransformerBridge; its gradients and flags stay as they are.
        examples: A `Task` or any sequence of `Example`.
        neurons: ``"all"`` at the site, names, rows, a `Selection`.
        metric: What to differentiate, e.g. ``logit_diff()`` or ``confidence("answer")``.
        do: An edit to predict; its expectation is averaged over random draws.
        at, position, seed, batch_size, progress: As in `sweep`.

    Raises:
        LensSkillsError: A metric without a gradient (``correct``, functions of the user), a model
            whose last columns cannot be run alone, no examples.
    """
    lens = as_lens(model)
    watched = one_metric(metric)
    if len(examples) == 0:
        raise LensSkillsError("no examples to prescreen on: the task is empty (after filtering?).")
    units = parse_units(lens, neurons, at=at)
    encoded, plan = prepare(lens, examples, [watched], False)
    sites, answers = sites_of(units), bool(watched.reads - {"logits"})
    change = do and do.bind(
        lens, examples, sites, position=position, seed=seed, batch_size=batch_size, answers=answers
    )
    n_draws = 0 if change is None else change.n_draws
    places = edited_places(lens, encoded, position)
    taylor = torch.zeros(len(units), len(encoded), dtype=torch.float64)
    predicted = torch.zeros_like(taylor)
    for batch in batches(encoded, plan, batch_size, 0, progress, "prescreen"):
        columns = torch.tensor([item.index for item in batch])
        try:
            found = activations_and_gradients(lens, batch, plan, watched, places, sites)
        except CannotResume as reason:
            raise LensSkillsError(f"no gradient: {reason}. Use sweep instead.") from reason
        for (layer, site), part in found.items():
            here = [k for k, unit in enumerate(units) if (unit.layer, unit.site) == (layer, site)]
            rows = torch.tensor(here)
            start = torch.tensor([units[k].start for k in here])
            stop = torch.tensor([units[k].stop for k in here])
            taylor[rows[:, None], columns] = part.summed(part.old, start, stop)
            for draw in range(n_draws):
                assert change is not None
                moved = part.new(change, layer, site, draw) - part.old
                predicted[rows[:, None], columns] += part.summed(moved, start, stop) / n_draws
    return Prescreen(
        names=tuple(unit.name for unit in units),
        taylor=taylor.abs().mean(1),
        predicted=predicted if change else None,
        metric=watched.name,
        do=change.name if change else "",
        position=str(position),
    )
