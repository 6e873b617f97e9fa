"""What a baseline in place of each unit is expected to do, from gradients on the way to it.

`expected_changes` has the first-order form (`attribution`), its mean along the straight path from
the clean activation to the baseline (`integrated_gradients`), and the same product with the
coefficients of relevance propagation (`relevance`). The last two are methods of `rank`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position
from lens_skills.activations.continuations import Scores
from lens_skills.activations.forward import (
    Encoded,
    RequiredOutputs,
    TokenOdds,
    prepare,
    read_metrics,
)
from lens_skills.activations.locations import Site
from lens_skills.activations.stream import batches
from lens_skills.checkpoints import part
from lens_skills.circuits.edge_attribution import integrated_points, relevance_gradients
from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.attribution import activations_and_gradients
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.batched_edits import EditRows, edited_places
from lens_skills.interventions.edits import ablate, patch
from lens_skills.interventions.effects import reads_answers
from lens_skills.models import ModelAdapter, keep_activation
from lens_skills.models.partial_forward import CannotResume, prefill
from lens_skills.models.sublayers import ModelWeights
from lens_skills.ranking.split_passes import SplitPasses

STEPS = 10
"""Points of the path of ``"integrated_gradients"``: the middles of so many equal steps."""

_COLUMNS = 1024  # of all points and examples whose graph is held at once


@dataclass(frozen=True, eq=False)
class PathInputs:
    """A split, the metric to differentiate and the units.

    Attributes:
        adapter: The model.
        examples: The split.
        metric: Of the model's answer.
        site: Where the units are.
        position: Where they are replaced; of several positions all of a layer at once.
    """

    adapter: ModelAdapter
    examples: Sequence[Example]
    metric: Metric
    site: Site
    position: Position

    @classmethod
    def of(cls, passes: SplitPasses) -> "PathInputs":
        """Of the split that a method of `rank` is given."""
        assert passes.metric is not None, "a method of gradients without a metric"
        reader = passes.reader
        return cls(passes.adapter, passes.examples, passes.metric, reader.site, reader.position)

    @property
    def twins(self) -> bool:
        """Whether every example has a corrupted twin."""
        return all(example.corrupted is not None for example in self.examples)

    def bind(self) -> Change:
        """The baselines, read once: each example's twin, or where there are none the mean."""
        edit = patch("corrupted") if self.twins else ablate("mean", over=self.examples)
        return edit.bind(
            self.adapter,
            self.examples,
            {self.site.name: self.site.layers},
            position=self.position,
            answers=reads_answers(self.metric),
        )


@dataclass(frozen=True, eq=False)
class _Slopes:
    """One layer of a batch: activations and coefficients, where the units are replaced."""

    old: Float[Tensor, "example pos unit"]
    slope: Float[Tensor, "example pos unit"]


_Find = Callable[
    [PathInputs, Sequence[Encoded], RequiredOutputs, Mapping[int, Sequence[int]], Change],
    dict[int, _Slopes],
]


def expected_changes(
    inputs: PathInputs, how: str = "attribution"
) -> Float[Tensor, "layer pos unit example"]:
    """What each unit's baseline in place of its activation is expected to do to the metric.

    (baseline - a) · coefficient, in the metric's unit; the coefficient is ``"attribution"``: ∂m/∂a
    on the clean prompt; ``"integrated_gradients"``: its mean on the straight path from a to the
    baseline, all units of the layer and the positions moving together; ``"relevance"``: see
    `relevance`. Memory: layers x positions x units x examples numbers of 4 bytes.

    Raises:
        LensSkillsError: A metric without a gradient; a model whose last columns cannot run alone;
            relevance at another site than the neurons, or of an answer of several tokens.
    """
    find = _FIND[how]
    encoded, plan = prepare(inputs.adapter, inputs.examples, [inputs.metric])
    places = edited_places(inputs.adapter, encoded, inputs.position)
    change, parts = inputs.bind(), list[Tensor]()
    index = list[int]()

    def measure(batch: list[Encoded]) -> Float[Tensor, "layer pos unit example"]:
        try:
            found = find(inputs, batch, plan, places, change)
        except CannotResume as reason:
            raise LensSkillsError(f"no {how} of {inputs.adapter.name}: {reason}.") from reason
        examples = torch.tensor([item.index for item in batch])
        layers = []
        for layer in inputs.site.layers:
            one = found[layer]
            new = _baseline(change, layer, inputs.site.name, one.old, examples)
            moved = (new - one.old) * one.slope
            layers.append(rearrange(moved, "example pos unit -> pos unit example").float().cpu())
        return torch.stack(layers)

    for batch in batches(encoded, plan, how.replace("_", " ")):
        index += [item.index for item in batch]
        parts.append(part(how, partial(measure, batch)))
    whole = torch.cat(parts, dim=3)
    return whole[..., torch.tensor(index).argsort()]


def _baseline(
    change: Change, layer: int, site: str, old: Float[Tensor, "example pos unit"], examples: Tensor
) -> Float[Tensor, "example pos unit"]:
    units = torch.arange(old.shape[2], device=old.device).expand(len(old), -1)
    return change.new(layer, site, old, units, examples)


def _attribution(
    inputs: PathInputs,
    batch: Sequence[Encoded],
    plan: RequiredOutputs,
    places: Mapping[int, Sequence[int]],
    change: Change,
) -> dict[int, _Slopes]:
    sites = {inputs.site.name: inputs.site.layers}
    found = activations_and_gradients(inputs.adapter, batch, plan, inputs.metric, places, sites)
    return {layer: _Slopes(part.old, part.slope) for (layer, _), part in found.items()}


def _integrated(
    inputs: PathInputs,
    batch: Sequence[Encoded],
    plan: RequiredOutputs,
    places: Mapping[int, Sequence[int]],
    change: Change,
) -> dict[int, _Slopes]:
    adapter, site = inputs.adapter, inputs.site
    tree = plan.tree(adapter, batch)
    at = EditRows.of(batch, places, tree.starts)
    start, seen = int(at.columns.min()), dict[str, Tensor]()
    suffix = prefill(
        adapter, tree.tokens, tree.mask, start=start, readers={}, branches=tree.branches
    )
    names = [site.hook_name(layer) for layer in site.layers]
    with torch.no_grad():
        suffix.run(
            suffix.clean(0, 1), 0, editors={name: keep_activation(seen, name) for name in names}
        )
    here = at.shifted(start).to(adapter.device)
    valid = here.valid[:, :, None]
    odds = TokenOdds.of(adapter, batch, plan, inputs.metric)
    last = suffix.width - suffix.start - 1

    def measure(out: Float[Tensor, "point example column d_model"]) -> Tensor:
        if odds is not None:
            return odds(suffix.normalise(out[:, :, last]))
        rows = [replace(item, index=k) for k, item in enumerate(list(batch) * len(out))]
        scores = Scores.of(
            tree, tree.suffix_logits(suffix, out), n_sets=len(out), first=plan.vocabulary
        )
        return read_metrics(adapter, rows, plan, [inputs.metric], scores)[inputs.metric.name]

    size = max(1, _COLUMNS // (len(batch) * suffix.n_columns))
    points = torch.tensor(integrated_points(STEPS), device=adapter.device)
    found = {}
    for layer, name in zip(site.layers, names, strict=True):
        old = here.taken(seen[name])
        new = _baseline(change, layer, site.name, old, at.examples)
        total = torch.zeros_like(old)
        for some in points.split(size):
            moved = old + some[:, None, None, None].to(old) * (new - old)
            leaf = rearrange(moved, "point e pos u -> (point e) pos u").requires_grad_()
            rows = here.repeated(len(some))
            put = _putting(leaf, rows)
            with torch.enable_grad(), suffix.differentiable():
                out = suffix.run(suffix.clean(layer, len(some)), layer, editors={name: put})
                value = measure(out)
                if not value.requires_grad:
                    raise LensSkillsError(
                        f"the metric {inputs.metric.name!r} has no gradient. Choose logit_diff() "
                        "or confidence('answer'), or a method that reads activations."
                    )
                (slope,) = torch.autograd.grad(value.sum(), leaf)
            total += rearrange(slope, "(point e) pos u -> point e pos u", e=len(batch)).sum(0)
        found[layer] = _Slopes(old, total / len(points) * valid)
    return found


def _putting(leaf: Float[Tensor, "row pos unit"], at: EditRows) -> Callable[[Tensor], Tensor]:
    """A hook that puts the leaf's values in place where they count."""
    row, pos = at.valid.nonzero(as_tuple=True)
    column = at.columns[row, pos]

    def put(activation: Tensor) -> Tensor:
        flat = activation.detach().flatten(2).clone()
        flat = flat.index_put((row.to(flat.device), column.to(flat.device)), leaf[row, pos])
        return flat.view(activation.shape)

    return put


def _relevance(
    inputs: PathInputs,
    batch: Sequence[Encoded],
    plan: RequiredOutputs,
    places: Mapping[int, Sequence[int]],
    change: Change,
) -> dict[int, _Slopes]:
    if inputs.site.name != DEFAULT_SITE:
        raise LensSkillsError(
            f"relevance is propagated to neurons, {DEFAULT_SITE!r}, not to {inputs.site.name!r}. "
            "Choose integrated_gradients there."
        )
    spots = [(places[item.index], len(item.prompt_tokens)) for item in batch]
    n_columns = max(length - min(some) for some, length in spots)
    cache = PairedCache(ModelWeights(inputs.adapter), plan, batch, batch, n_columns)
    slopes = relevance_gradients(cache, AnswerTarget(inputs.metric)).neurons
    widest = max(len(some) for some, _ in spots)
    columns = torch.zeros(len(batch), widest, dtype=torch.long)
    valid = torch.zeros(len(batch), widest, 1)
    for row, (some, length) in enumerate(spots):
        shifted = torch.tensor(some) + n_columns - length
        columns[row, : len(some)], columns[row, len(some) :] = shifted, shifted[0]
        valid[row, : len(some), 0] = torch.tensor([p not in some[:k] for k, p in enumerate(some)])
    rows = torch.arange(len(batch))[:, None]
    return {
        layer: _Slopes(
            cache.post(layer)[rows, columns],
            slopes[layer][rows, columns] * valid.to(slopes[layer]),
        )
        for layer in inputs.site.layers
    }


_FIND: Mapping[str, _Find] = {
    "attribution": _attribution,
    "integrated_gradients": _integrated,
    "relevance": _relevance,
}


def integrated_gradients(passes: SplitPasses) -> Float[Tensor, " place"]:
    """Mean over the examples of (baseline - a) · mean of ∂m/∂a on the path from a to the baseline.

    The baseline is the corrupted twin's activation, or the split's mean where examples have no
    twins. A layer's units move together, all else being computed anew, so that over a layer they
    add up to m(layer at its baseline) - m(clean), to the error of `STEPS` middle points.

    Does not show: an effect of one unit alone, which its layer's others may change.
    """
    return _mean(expected_changes(PathInputs.of(passes), "integrated_gradients"))


def relevance(passes: SplitPasses) -> Float[Tensor, " place"]:
    """Mean over the examples of (baseline - a) · coefficient of relevance propagation.

    The coefficients are the derivative in a linear model that agrees with this one on the prompt:
    attention patterns and norm scales held, act(gate) · up halved between its factors and act(x)
    a line through 0 (`lens_skills.circuits.edge_attribution.relevance_gradients`). So the relevance
    a · coefficient of all that enters the sum at one depth adds up to what is above it, biases
    aside; with (baseline - a) in place of a nothing need add up. Baselines as in
    `integrated_gradients`.

    Does not show: what reaches the answer through queries, keys or the norms' scales.
    """
    return _mean(expected_changes(PathInputs.of(passes), "relevance"))


def _mean(changes: Float[Tensor, "layer pos unit example"]) -> Float[Tensor, " place"]:
    return rearrange(changes.double().mean(3).sum(1), "layer unit -> (layer unit)")
