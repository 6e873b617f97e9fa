"""`prescreen`: what gradients expect of every neuron, to choose what to sweep.

`activations_and_gradients` differentiates the last columns of a batch only, `whole_gradients` whole
passes, where the last columns cannot run alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.activations.continuations import Scores
from lens_skills.activations.forward import (
    Encoded,
    RequiredOutputs,
    forward_batch,
    prepare,
    read_metrics,
)
from lens_skills.activations.locations import Site
from lens_skills.activations.stream import batches
from lens_skills.cards import card_lines
from lens_skills.checkpoints import Checkpoint
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.batched_edits import EditRows, edited_places
from lens_skills.interventions.edits import Edit
from lens_skills.interventions.effects import CARD_ROWS, Effects, effect_metric, reads_answers
from lens_skills.models import (
    Chat,
    EditHook,
    ModelAdapter,
    keep_activation,
    with_soft_prompt,
)
from lens_skills.models.backends import as_adapter
from lens_skills.models.partial_forward import CannotResume, prefill
from lens_skills.models.precision import in_precision, rounding_note
from lens_skills.models.weights import LayerSite
from lens_skills.results import Result
from lens_skills.stats.correlation import rank_agreement


@dataclass(frozen=True, eq=False)
class Prescreen(Result):
    """What the gradient of a metric expects of each unit; an estimate, not an effect.

    Attributes:
        names: Of the units.
        taylor: Mean over examples of \\|Σ a · ∂m/∂a\\| over the unit's features and positions: how
            much setting it to zero moves the metric, to first order (in its unit, >= 0).
        predicted: Σ (new - old) · ∂m/∂a of each example under the edit, signed; None without one.
        metric, do, position: What was differentiated, and the edit in words.
        precision: What the passes were computed in; None: the model's own.
    """

    names: tuple[str, ...]
    taylor: Float[Tensor, " unit"]
    predicted: Float[Tensor, "unit example"] | None
    metric: str
    do: str
    position: str
    precision: str | None = None

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

    def __repr__(self) -> str:
        lines = [
            *card_lines(f"what the gradient of {self.metric} expects · {len(self.names):,} units"),
            *card_lines(
                f"at {self.position}; taylor: |change of {self.metric}| at zero, to first order"
                + (f"; predicted: under {self.do}" if self.predicted is not None else ""),
                indent=2,
            ),
        ]
        if self.precision:
            lines += card_lines(rounding_note(self.precision), indent=2)
        for name in self.top(CARD_ROWS):
            place = self.names.index(name)
            row = f"    {name:12} {float(self.taylor[place]):.3g}"
            if self.predicted is not None:
                row += f"  predicted {float(self.predicted[place].mean()):+.3g}"
            lines.append(row)
        if len(self.names) > CARD_ROWS:
            lines.append(f"    … {len(self.names) - CARD_ROWS:,} more: .frame()")
        lines += card_lines("An estimate, not an effect: sweep or verify measures it.", indent=2)
        return "\n".join(lines)


def prescreen(
    model: Any,
    examples: Sequence[Example],
    neurons: Any = "all",
    *,
    metric: Any,
    do: Edit | None = None,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    chat: Chat = False,
    precision: str | None = None,
    seed: int = 0,
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
        at, position, chat, seed: As in `sweep`.
        precision: As in `score`.

    Raises:
        LensSkillsError: A metric without a gradient (``correct``, functions of the user), a model
            whose last columns cannot be run alone, no examples.
    """
    adapter = with_soft_prompt(in_precision(as_adapter(model), precision), None, chat)
    watched = effect_metric(metric)
    if len(examples) == 0:
        raise LensSkillsError("no examples to prescreen on: the task is empty (after filtering?).")
    units = parse_components(adapter, neurons, at=at)
    if not units:
        raise LensSkillsError("no neurons to screen: the list is empty.")
    sites, answers = sites_of(units), reads_answers(watched)
    change = do and do.bind(adapter, examples, sites, position=position, seed=seed, answers=answers)
    taylor, predicted = expected_effects(
        adapter, examples, units, metric=watched, change=change, position=position
    )
    return Prescreen(
        names=tuple(unit.name for unit in units),
        taylor=taylor.abs().mean(1),
        predicted=predicted,
        metric=watched.name,
        do=change.name if change else "",
        position=str(position),
        precision=adapter.precision,
    )


def expected_effects(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    units: Sequence[Component],
    *,
    metric: Metric,
    change: Change | None,
    position: Position,
) -> tuple[Float[Tensor, "unit example"], Float[Tensor, "unit example"] | None]:
    """Σ a · ∂m/∂a of each unit and example, and Σ (new - old) · ∂m/∂a under an edit.

    Raises:
        LensSkillsError: As `prescreen`.
    """
    encoded, plan = prepare(adapter, examples, [metric])
    sites = sites_of(units)
    places = edited_places(adapter, encoded, position)
    rows: dict[LayerSite, list[int]] = defaultdict(list)
    for row, unit in enumerate(units):
        rows[unit.layer, unit.site].append(row)
    starts = torch.tensor([unit.start for unit in units])
    stops = torch.tensor([unit.stop for unit in units])
    taylor = torch.zeros(len(units), len(encoded), dtype=torch.float64)
    predicted = torch.zeros_like(taylor)
    n_draws = 0 if change is None else change.n_draws
    for batch in batches(encoded, plan, "prescreen"):
        columns = torch.tensor([item.index for item in batch])
        try:
            found = activations_and_gradients(adapter, batch, plan, metric, places, sites)
        except CannotResume as reason:
            raise LensSkillsError(f"no gradient: {reason}. Use sweep instead.") from reason
        for spot, part in found.items():
            here = torch.tensor(rows[spot])
            start, stop = starts[here], stops[here]
            taylor[here[:, None], columns] = part.summed(part.old, start, stop)
            for draw in range(n_draws):
                assert change is not None
                moved = part.new(change, *spot, draw) - part.old
                predicted[here[:, None], columns] += part.summed(moved, start, stop) / n_draws
    return taylor, None if change is None else predicted


@dataclass(frozen=True, eq=False)
class Gradient:
    """One hook point of a batch.

    Attributes:
        old: Activations at the edited positions.
        slope: The metric's derivative by each, 0 at positions that do not count.
        examples: Which example each row is.
        values: The metric of each.
    """

    old: Float[Tensor, "example pos feature"]
    slope: Float[Tensor, "example pos feature"]
    examples: Int[Tensor, " example"]
    values: Float[Tensor, " example"]

    def new(
        self, change: Change, layer: int, site: str, draw: int
    ) -> Float[Tensor, "example pos feature"]:
        """What an edit of every feature puts in place."""
        features = torch.arange(self.old.shape[-1], device=self.old.device)
        index = features.expand(len(self.old), -1)
        return change.new(layer, site, self.old, index, self.examples, draw)

    def summed(
        self,
        by: Float[Tensor, "example pos feature"],
        start: Int[Tensor, " unit"],
        stop: Int[Tensor, " unit"],
    ) -> Float[Tensor, "unit example"]:
        """Σ by · slope over the features of each unit and all positions (float64)."""
        each = (by.double() * self.slope.double()).sum(1).cpu()
        if bool((stop - start == 1).all()):
            return each[:, start].T
        ends = torch.cat([torch.zeros(len(each), 1, dtype=each.dtype), each.cumsum(1)], dim=1)
        return (ends[:, stop] - ends[:, start]).T


def activations_and_gradients(
    adapter: Any,
    batch: Sequence[Encoded],
    plan: RequiredOutputs,
    metric: Metric,
    places: Mapping[int, Sequence[int]],
    sites: Mapping[str, Sequence[int]],
) -> dict[LayerSite, Gradient]:
    """Each hook point's activations and gradients at the edited positions.

    All columns that a metric reads (those of answers of several tokens) are in the graph.

    Raises:
        CannotResume: See `lens_skills.models.partial_forward.prefill`.
        LensSkillsError: The metric has no gradient.
    """
    names = {
        f"blocks.{layer}.{site}": (layer, site)
        for site, layers in sites.items()
        for layer in layers
    }
    tree = plan.tree(adapter, batch)
    at = EditRows.of(batch, places, tree.starts)
    start, seen = int(at.columns.min()), dict[str, Tensor]()
    suffix = prefill(
        adapter, tree.tokens, tree.mask, start=start, readers={}, branches=tree.branches
    )
    keep = {name: keep_activation(seen, name) for name in names}
    with torch.enable_grad(), suffix.differentiable():
        # The prefix is left out of the graph: no earlier column depends on what is edited.
        residual = suffix.clean(0, 1).clone().requires_grad_()
        out = suffix.run(residual, 0, editors=keep)
        scores = Scores.of(tree, tree.suffix_logits(suffix, out), first=plan.vocabulary)
        values = read_metrics(adapter, batch, plan, [metric], scores)[metric.name]
        return _by_place(values, metric, [(seen, at.shifted(start))], names)


def whole_gradients(
    adapter: ModelAdapter,
    batch: Sequence[Encoded],
    plan: RequiredOutputs,
    metric: Metric,
    places: Mapping[int, Sequence[int]],
    site: Site,
) -> dict[LayerSite, Gradient]:
    """What `activations_and_gradients` gives, from passes whose graph holds every token.

    Several times slower and larger. Needed where the suffix of a batch does not repeat the whole
    pass closely enough, as may happen to single batches by rounding alone.

    Raises:
        LensSkillsError: The metric has no gradient.
    """
    names = {site.hook_name(layer): (layer, site.name) for layer in site.layers}
    passes: list[tuple[dict[str, Tensor], EditRows]] = []

    def editing(part: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, EditHook]:
        seen: dict[str, Tensor] = {}
        passes.append((seen, EditRows.of(part, places, starts)))
        return {name: keep_activation(seen, name, _beginning_of_graph) for name in names}

    forward = partial(adapter.forward, differentiable=True)
    with torch.enable_grad():
        read = forward_batch(adapter, batch, plan, [metric], {}, {}, editing, forward=forward)
        values = read[metric.name]
        return _by_place(values, metric, passes, names)


def _by_place(
    values: Float[Tensor, " example"],
    metric: Metric,
    passes: Sequence[tuple[Mapping[str, Tensor], EditRows]],
    names: Mapping[str, LayerSite],
) -> dict[LayerSite, Gradient]:
    """The gradients of a metric's values by what its passes kept, added up over the passes.

    The first pass holds the whole batch, later ones some of its rows.
    """
    if not values.requires_grad:
        raise LensSkillsError(
            f"the metric {metric.name!r} has no gradient. Choose logit_diff() or "
            "confidence('answer'), or what needs none: sweep, methods that read activations."
        )
    inputs = [kept[name] for kept, _ in passes for name in names]
    slopes = iter(torch.autograd.grad(values.sum(), inputs, allow_unused=True))
    row_of = {example: row for row, example in enumerate(passes[0][1].examples.tolist())}
    found: dict[LayerSite, Gradient] = {}
    for kept, at in passes:
        rows = torch.tensor([row_of[example] for example in at.examples.tolist()])
        for name, spot in names.items():
            slope = next(slopes)
            old = at.taken(kept[name].detach())
            here = torch.zeros_like(old)
            if slope is not None:
                here = at.taken(slope) * at.valid[:, :, None].to(old)
            before = found.get(spot)
            if before is None:
                found[spot] = Gradient(old, here, at.examples, values.detach())
            else:
                total = before.slope.index_add(0, rows.to(here.device), here)
                found[spot] = replace(before, slope=total)
    return found


def _beginning_of_graph(activation: Tensor) -> Tensor:
    """The activation itself; where no weight asks for gradients, the graph begins here."""
    return activation if activation.requires_grad else activation.requires_grad_()


@dataclass(frozen=True, eq=False)
class ActivationGradients:
    """What gradients say of every unit at one position, averaged over the examples.

    Attributes:
        taylor: Mean of |a · ∂m/∂a|, in the metric's unit.
        slope: Mean of ∂m/∂a, signed, in the metric's unit per unit of activation.
        product: Mean of a · ∂m/∂a, signed, in the metric's unit.
        mean: Mean of a.
        spread: Standard deviation over the examples of (mean - a) · ∂m/∂a, in the metric's unit.
        clean: Mean of the metric.
        metric: What was differentiated.
        n_examples: On how many examples.
    """

    taylor: Float[Tensor, " unit"]
    slope: Float[Tensor, " unit"]
    product: Float[Tensor, " unit"]
    mean: Float[Tensor, " unit"]
    spread: Float[Tensor, " unit"]
    clean: float
    metric: str
    n_examples: int

    @property
    def ablated(self) -> Float[Tensor, " unit"]:
        """Mean over the examples of (mean - a) · ∂m/∂a: mean ablation's effect to first order."""
        return self.mean * self.slope - self.product


_SUMS = ("level", "a", "g", "ag", "gg", "agg", "aagg")


def slopes_of(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    metric: Metric,
    site: Site,
    *,
    position: Position,
) -> ActivationGradients:
    """The slopes of a site's units at a position, from one forward and one backward pass each.

    Only the last columns are differentiated where that gives the same numbers, else whole passes.

    Raises:
        LensSkillsError: A metric without a gradient, or a position that pools tokens.
    """
    sums: dict[str, dict[int, Any]] = {name: defaultdict(float) for name in _SUMS}
    clean, done = 0.0, 0
    saved = Checkpoint.at({"metric": metric.name, "site": site.name}, name="gradients")
    if saved is not None and (kept := saved.read()) is not None:
        clean, done = float(kept[1]["clean"]), int(kept[1]["batches"])
        for key, numbers in kept[0].items():
            name, _, layer = key.partition("/")
            sums[name][int(layer)] = numbers
    skip = done

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{name}/{at}": t for name, each in sums.items() for at, t in each.items()}
        return tensors, {"clean": clean, "batches": done}

    for _, found in _site_gradients(adapter, examples, metric, site, position, skip):
        clean += float(next(iter(found.values())).values.double().sum())
        for (layer, _), part in found.items():
            a, g = part.old.double(), part.slope.double()
            each = {"level": (a * g).sum(1).abs(), "a": a, "g": g, "ag": a * g, "gg": g * g}
            each |= {"agg": a * g * g, "aagg": (a * g).square()}
            for name, numbers in each.items():
                sums[name][layer] = sums[name][layer] + numbers.flatten(0, -2).sum(0).cpu()
        done += 1
        if saved is not None and saved.due():
            saved.write(*state())
    if saved is not None and done > skip:
        saved.finish(*state())
    n = len(examples)
    level, mean, slope, product, gg, agg, aagg = (
        torch.stack([sums[name][layer] for layer in site.layers]).flatten() / n for name in _SUMS
    )
    square = mean.square() * gg - 2 * mean * agg + aagg
    spread = (square - (mean * slope - product).square()).clamp(min=0).sqrt()
    return ActivationGradients(level, slope, product, mean, spread, clean / n, metric.name, n)


def check_gradient(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    metric: Metric,
    site: Site,
    *,
    position: Position,
) -> None:
    """Nothing; raises where two of the examples show that the metric has no gradient.

    Raises:
        LensSkillsError: As `slopes_of`.
    """
    for _ in _site_gradients(adapter, list(examples)[:2], metric, site, position):
        pass


def predicted_means(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    metric: Metric,
    site: Site,
    change: Change,
    *,
    position: Position,
) -> Float[Tensor, " unit"]:
    """Each unit's first-order effect of an edit, the mean over the examples, in the metric's unit.

    Units are a site's features, layer by layer.

    Raises:
        LensSkillsError: As `slopes_of`.
    """
    total = defaultdict(lambda: torch.zeros(1).double())
    for _, found in _site_gradients(adapter, examples, metric, site, position):
        for spot, part in found.items():
            for draw in range(change.n_draws):
                moved = (part.new(change, *spot, draw) - part.old).double()
                each = (moved * part.slope.double()).sum((0, 1)).cpu()
                total[spot[0]] = total[spot[0]] + each / change.n_draws
    return torch.stack([total[layer] for layer in site.layers]).flatten() / len(examples)


def predicted_each(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    metric: Metric,
    site: Site,
    change: Change,
    rows: Int[Tensor, "unit 2"],
    *,
    position: Position,
) -> Float[Tensor, "unit example"]:
    """What `predicted_means` averages, of some units: (layer, index) rows of the site.

    Raises:
        LensSkillsError: As `slopes_of`.
    """
    here = replace(site, layers=tuple(sorted(set(rows[:, 0].tolist()))))
    predicted = torch.zeros(len(rows), len(examples), dtype=torch.float64)
    for batch, found in _site_gradients(adapter, examples, metric, here, position):
        columns = torch.tensor([item.index for item in batch])
        for spot, part in found.items():
            units = (rows[:, 0] == spot[0]).nonzero()[:, 0]
            start = rows[units, 1]
            for draw in range(change.n_draws):
                moved = part.new(change, *spot, draw) - part.old
                each = part.summed(moved, start, start + 1) / change.n_draws
                predicted[units[:, None], columns] += each
    return predicted


def _site_gradients(
    adapter: ModelAdapter,
    examples: Sequence[Example],
    metric: Metric,
    site: Site,
    position: Position,
    skip: int = 0,
) -> Iterator[tuple[Sequence[Encoded], dict[LayerSite, Gradient]]]:
    """Each batch with the gradients at a site, of its last columns where that is the same."""
    encoded, plan = prepare(adapter, examples, [metric])
    places = edited_places(adapter, encoded, position)
    for batch in batches(encoded, plan, "gradients", skip=skip):
        sites = {site.name: site.layers}
        try:
            found = activations_and_gradients(adapter, batch, plan, metric, places, sites)
        except CannotResume:
            found = whole_gradients(adapter, batch, plan, metric, places, site)
        yield batch, found
