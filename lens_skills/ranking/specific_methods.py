"""`exact`, `specific` and `specific_exact`: what an edit does, and does here more than elsewhere.

All predict by `ActivationGradients.ablated`, the first-order effect of mean ablation. The exact
ones then measure the edit of the neurons that come first, on a few examples of the split ranked on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric, Position
from lens_skills.activations.components import parse_components, sites_of
from lens_skills.activations.locations import Site
from lens_skills.data import Example
from lens_skills.interventions.attribution import ActivationGradients, expected_effects
from lens_skills.interventions.baselines import Baseline
from lens_skills.interventions.edits import ablate
from lens_skills.interventions.effects import measure_effects, reads_answers
from lens_skills.models import ModelAdapter
from lens_skills.ranking.split_passes import SplitPasses

DOZEN = 12
"""Examples an edit is measured on, each of another group as far as there are so many."""

MEASURED = 0.005
"""The share of all units that is measured: the strongest by prediction."""

FEWEST = 100
"""At least so many are measured."""


def exact(passes: SplitPasses) -> Float[Tensor, " unit"]:
    """The effect of mean ablation, measured where the prediction is large; the metric's unit.

    Of the strongest 0.5 % of the units by ``"prediction"`` (100 at least) each is ablated on 12
    examples. What the first order misses there (mean of measured - predicted) is added to the
    prediction over the whole split: a difference estimator (Cochran 1977, section 7.2), whose
    sampling error is that of the first order's *error* instead of the effect's. Others are NaN:
    they are not ranked.

    Does not show: an effect on other examples; and a neuron whose gradient is small everywhere is
    never measured.
    """
    own = passes.gradients()
    chosen = _strongest(own.ablated.abs())
    return _filled(len(own.ablated), chosen, _corrected(_of_task(passes), chosen))


def specific(passes: SplitPasses) -> Float[Tensor, " unit"]:
    """|prediction| on the task minus its largest on a contrast, as shares of the clean metrics.

    Each contrast (other tasks, and neutral text with the log-probability of its next word) has its
    own prediction: mean ablation on its own examples, with its own means. All are divided by the
    |mean| of their clean metric, so that tasks in other units or of other sizes can be compared.
    The sign is that of the task's effect; 0 where a contrast has the larger one.
    """
    own, others = passes.gradients(), passes.contrast_gradients()
    elsewhere = torch.stack([_share(each) for each in others]).amax(dim=0)
    return own.ablated.sign() * (_share(own) - elsewhere).clamp(min=0)


def specific_exact(passes: SplitPasses) -> Float[Tensor, " unit"]:
    """As ``"specific"``, with the effects of the strongest measured as ``"exact"`` does.

    The strongest 0.5 % of the units by ``"specific"`` (100 at least) are ablated on 12 examples of
    the task and of each contrast; others are NaN.
    """
    own, chosen = passes.gradients(), _strongest(specific(passes).abs())
    effect = _corrected(_of_task(passes), chosen) / abs(own.clean)
    others = []
    gradients = passes.contrast_gradients()
    for contrast, found in zip(passes.contrasts(), gradients, strict=True):
        adapter = contrast.adapter(passes.adapter)
        split = _Split(
            adapter, contrast.examples, contrast.metric, passes.reader.site, found, passes.seed
        )
        others.append(_corrected(split, chosen).abs() / abs(found.clean))
    elsewhere = torch.stack(others).amax(dim=0)
    score = effect.sign() * (effect.abs() - elsewhere).clamp(min=0)
    return _filled(len(own.ablated), chosen, score)


@dataclass(frozen=True, eq=False)
class _Split:
    """Examples, what is watched there, and what gradients expect."""

    adapter: ModelAdapter
    examples: Sequence[Example]
    metric: Metric
    site: Site
    gradients: ActivationGradients
    seed: int
    position: Position = "last"


def _of_task(passes: SplitPasses) -> _Split:
    assert passes.metric is not None, "a method of effects without a metric"
    reader = passes.reader
    return _Split(
        passes.adapter, passes.examples, passes.metric, reader.site, passes.gradients(),
        passes.seed, reader.position,
    )  # fmt: skip


def _share(gradients: ActivationGradients) -> Float[Tensor, " unit"]:
    return gradients.ablated.abs() / max(abs(gradients.clean), 1e-12)


def _strongest(size: Float[Tensor, " unit"]) -> Int[Tensor, " chosen"]:
    n = min(len(size), max(FEWEST, math.ceil(MEASURED * len(size))))
    return size.argsort(descending=True, stable=True)[:n].sort().values


def _filled(
    n: int, chosen: Int[Tensor, " chosen"], score: Float[Tensor, " chosen"]
) -> Float[Tensor, " unit"]:
    found = torch.full((n,), torch.nan, dtype=torch.float64)
    found[chosen] = score.double()
    return found


def _corrected(split: _Split, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, " chosen"]:
    """The prediction over the split, plus the mean of what it misses on a few examples."""
    site, examples = split.site, dozen(split.examples)
    width = len(split.gradients.mean) // len(site.layers)
    layers = torch.tensor(site.layers)
    rows = torch.stack([layers[chosen // width], chosen % width], dim=1)
    units = parse_components(split.adapter, rows, at=site.name)
    means = split.gradients.mean.reshape(len(site.layers), 1, width)
    table = {(layer, site.name): means[place] for place, layer in enumerate(site.layers)}
    edit = ablate("mean", over=Baseline(table, table, "the split ranked on"))
    change = edit.bind(
        split.adapter, examples, sites_of(units), position=split.position, seed=split.seed,
        answers=reads_answers(split.metric),
    )  # fmt: skip
    measured = measure_effects(
        split.adapter,
        examples,
        [(unit,) for unit in units],
        change,
        metric=split.metric,
        position=split.position,
        seed=split.seed,
    )
    _, predicted = expected_effects(
        split.adapter, examples, units, metric=split.metric, change=change, position=split.position
    )
    assert predicted is not None
    return split.gradients.ablated[chosen] + (measured.total - predicted).mean(dim=1)


def dozen(examples: Sequence[Example]) -> list[Example]:
    """The first examples of as many groups as there are, `DOZEN` at most.

    >>> dozen([Example("a", "x", group="g"), Example("b", "y", group="g")])[0].id
    'a'
    """
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.group, example)
    chosen = list(first.values())[:DOZEN]
    ids = {example.id for example in chosen}
    return [*chosen, *[each for each in examples if each.id not in ids]][:DOZEN]
