"""`compare_methods`: which methods of ranking find neurons that matter, side by side.

Each method names its strongest neurons, and all are edited one by one on other examples, beside two
rows to beat: random neurons, and directions of a rotated basis. Methods that rank alike are one row
of the `MethodComparison`.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.locations import edited_positions
from lens_skills.checkpoints import resumable
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import Controls
from lens_skills.interventions.edits import Edit, ablate
from lens_skills.interventions.effects import effect_metric
from lens_skills.interventions.verify import removes_work
from lens_skills.models import ModelAdapter, SoftPrompt, with_soft_prompt
from lens_skills.ranking.causal_hits import (
    ABLATIONS,
    AblationEffects,
    ablation_effects,
    direction_effects,
    strongest_directions,
)
from lens_skills.ranking.contrasts import Contrast, halved_contrasts
from lens_skills.ranking.method_comparison import RANDOM, ROTATED, MethodComparison, MethodRow
from lens_skills.ranking.method_shares import common_covariance
from lens_skills.ranking.methods import METHODS, find_methods
from lens_skills.ranking.rank import Ranking, Rankings, rank_all
from lens_skills.ranking.specificity import SkillTests, contrast_effects, skill_tests
from lens_skills.ranking.target_statistics import target_of
from lens_skills.scoring.leakage import check_prompt, known_to
from lens_skills.stats.correlation import spearman
from lens_skills.stats.effect_tests import FEWEST_GROUPS, effective_groups
from lens_skills.stats.rotations import Rotation

AUTOMATIC = 2048
"""Up to so many neurons in the layers read, ``exhaustive=None`` tries them all."""

N_CONTROLS = 200
"""Random neurons of a layer, unless ``controls`` says otherwise."""

N_RESAMPLES = 1000
"""Of the groups, for the variance of a share."""

N_RECALL = 200
"""Of the groups, for the variance of a recall, which every neuron's effect takes part in."""

_ALIKE = 1e-6  # of a rank correlation: what rounding moves


@resumable()
def compare_methods(
    model: Any,
    explore: Sequence[Example],
    metric: Any,
    *,
    intervene: Sequence[Example],
    methods: Sequence[str] | None = None,
    k: int = 20,
    do: Edit | None = None,
    causal_metric: Any = "logit_diff",
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
    split: str | None = None,
    gate: bool = True,
    delta: float | None = None,
    controls: Controls | None = None,
    n_random: int = 5,
    exhaustive: bool | None = None,
    removes: bool | None = None,
    contrast: Any = None,
    seed: int = 0,
    exploratory: bool = False,
    checkpoint: str | Path | None = None,
) -> MethodComparison:
    """Which methods find neurons that matter: a `MethodComparison`.

    Every method ranks all neurons on ``explore``. The k strongest of each are edited one by one on
    ``intervene``. A *causal hit* is a neuron whose mean effect has a 95 % interval outside [-δ, δ]
    and whose \\|mean effect\\| is rare among random neurons of its layer (rank p <= 0.05). δ is the
    layer's: the larger of 1 % of the clean metric's \\|mean\\| and the 95th percentile of those
    random neurons without its sampling noise. The random neurons are one draw of the layer, by
    ``seed``, whatever the methods name (a neuron in the draw is compared with the others), and the
    level is each neuron's own: so a neuron's word depends neither on the list that named it nor
    on any other method. At most 1 in 20 random neurons is a hit; the row *random* shows how many
    are. It is a light form of `verify`'s verdict: no equivalence test, no mixed classes, no control
    sets. A layer with fewer than 100 others is compared with all layers.

    Methods whose ranks are the same (a correlation, a difference of means and F on a 0/1 label) are
    one row. Two rows are always there. *random*: k ``n_random`` neurons drawn over all layers; its
    share is the base rate. *rotated basis*: in a random rotation of each layer's standardised
    neurons, the k directions whose values the metric explains best; ablating direction v turns the
    standardised a into a - (a·v - its mean) v. A method worth its name beats both.

    Args:
        model: A HookedTransformer or TransformerBridge.
        explore: The split to rank on.
        metric: What to rank by, as in `rank`. Methods of gradients differentiate
            ``causal_metric``.
        intervene: The split to try the neurons on; it shares no group with ``explore``.
        methods: Names among `METHODS` (default all but those that let the model answer or take
            passes for every layer, which is long); those that cannot rank by this metric, or on
            this model, are left out, and the result says why.
        k: How many neurons each method may name.
        do: The edit; default ``ablate("mean", over=explore)``.
        causal_metric: What the edit may change; a metric of the model.
        at, position, layers, prompt, split, gate: As in `rank`; it is edited at the same position.
        delta: δ, in the metric's unit, for all layers.
        controls: ``ls.controls(neurons=400)``: how many random neurons of its layer an effect must
            be rare among (default 200; 21 at least; None for the whole layer). They are edited
            only in the layers where some effect is beyond 1 % of the clean mean.
        n_random: Random neurons are ``n_random`` times k.
        exhaustive: Whether to try *all* neurons of the layers read, for recall at k: of the k of
            largest \\|effect\\|, how many each method names. None: where they are 2,048 at most. No
            neuron's word changes by it.
        removes: Whether the edit takes the neuron's work away (only clamping needs it said).
        contrast: Other tasks (a sequence of `Task`, or a mapping from names; ``[]`` for neutral
            text alone, which is always one). Then the causal hits are edited there too, and those
            whose relative effect on the task is beyond chance larger than on every contrast are
            *skill hits*; see `skill_tests`. Methods such as ``"specific"`` rank with one half of
            each contrast's groups, and the hits are tried on the other.
        seed: Of everything that is drawn.
        exploratory: Allow splits that share examples, and mark the result.
        checkpoint: A folder that keeps what is finished and the sums so far, about once a minute;
            the same call goes on there with the same numbers.

    Raises:
        LensSkillsError: Splits that share examples or groups, fewer than 8 groups to try neurons
            on, a position that cannot be edited, a causal metric that is a column of the task, no
            method that can rank, too few neurons to compare with, unknown names, a contrast that is
            no task or that the model cannot do.
    """
    if k < 1 or n_random < 1:
        raise LensSkillsError(f"k={k}, n_random={n_random}: both must be 1 or more.")
    if controls is not None and controls != Controls(neurons=controls.neurons):
        raise LensSkillsError(
            "compare_methods compares with single neurons: ls.controls(neurons=…). Leave sets= and "
            "important= out; n_random= says how many lists of random neurons are tried."
        )
    adapter = with_soft_prompt(model, prompt)
    reused = _check_splits(explore, intervene, exploratory)
    reused |= check_prompt(adapter.soft, explore, exploratory)
    reused |= check_prompt(adapter.soft, intervene, exploratory)
    edited_positions("last" if position is None else position)
    watched = effect_metric(causal_metric)
    usual = [name for name, method in METHODS.items() if not method.takes_long]
    names = [name for name in (usual if methods is None else methods) if name != RANDOM]
    wanted = find_methods([*names, RANDOM])
    do = ablate("mean", over=explore) if do is None else do
    taken = removes_work(do, removes)
    ranked_with, tried_on = None, ()
    if contrast is not None:
        ranked_with, tried_on = halved_contrasts(contrast, watched, seed=seed)
    reader = ActivationReader(
        adapter, explore, at=at, position=position, layers=layers, purpose="ranked"
    )
    ranked = rank_all(
        reader,
        target_of(adapter, explore, metric, split=split),
        wanted,
        differentiated=watched,
        gate=gate,
        contrast=ranked_with,
        rotation_seed=seed if do.kind in ABLATIONS else None,
        seed=seed,
    )
    drawn = ranked.rankings[RANDOM]
    rankings = {name: each for name, each in ranked.rankings.items() if name != RANDOM}
    if not rankings:
        raise LensSkillsError(
            "no method can rank here: " + " ".join(dict.fromkeys(ranked.left_out.values()))
        )
    if do.over is explore:
        do = replace(do, over=ranked.baseline)  # measured already, on the way
    lists = {name: ranking.top(k).rows for name, ranking in rankings.items()}
    random = drawn.top(k * n_random).rows
    everyone = torch.stack([drawn.layer, drawn.neuron], dim=1)
    whole = len(everyone) <= AUTOMATIC if exhaustive is None else exhaustive
    named = torch.cat([*lists.values(), random]).unique(dim=0)
    rotated = ranked.statistics.rotated
    turned = None
    if rotated is not None:
        turned = _rotated(ranked, rotated, intervene, do, watched, k=k, seed=seed)
    ablations = ablation_effects(
        adapter,
        intervene,
        everyone if whole else named,
        everyone,
        do,
        metric=watched,
        at=at,
        position=reader.position,
        delta=delta,
        n_controls=N_CONTROLS if controls is None else controls.neurons,
        removes=taken,
        seed=seed,
        others=None if turned is None else (turned.layers, turned.total),
    )
    # Neurons a method does not rank share its last place.
    agree = spearman(torch.stack([ranking.strength for ranking in rankings.values()]))
    parts = alike(list(rankings.values()), agree, k)
    first = torch.tensor([part[0] for part in parts])
    agree = agree[first][:, first]
    names = list(rankings)
    rows = []
    for order, part in enumerate(parts):
        each = [names[place] for place in part]
        others = [float(agree[order, other]) for other in range(len(parts)) if other != order]
        mean = sum(others) / len(others) if others else None
        tests = ablations.of(rankings[each[0]].top(k).rows)
        rows.append(MethodRow(tuple(each), tests, rankings[each[0]].seconds, mean))
    methods = tuple(row.method for row in rows)
    rows.sort(key=lambda row: (-row.share, -row.mean_effect))
    if turned is not None:
        tests = ablations.tests(turned.names, turned.layers, turned.total)
        rows.append(MethodRow((ROTATED,), tests, turned.seconds, None))
    rows.append(MethodRow((RANDOM,), ablations.of(random), 0.0, None))
    rows, common = _with_variances(rows, ablations, turned)
    n_hits = None
    if whole:
        rows = _with_recall(rows, ablations, k)
        n_hits = ablations.of(everyone, n_resamples=1).hits
    specific = None
    if contrast is not None:
        specific = _skill_tests(adapter, ablations, named, tried_on, do, reader.site.name, seed)
    return MethodComparison(
        rows=tuple(rows),
        k=k,
        metric=ranked.target.name,
        causal_metric=watched.name,
        unit=watched.unit,
        do=ablations.effects.do,
        floor=ablations.floor,
        floor_from="1 % of the clean mean" if delta is None else "declared",
        deltas={f"L{layer}": each.delta for layer, each in ablations.controls.items()},
        n_controls=max((len(each.names) for each in ablations.controls.values()), default=0),
        n_swept=len(everyone) if whole else None,
        n_hits=n_hits,
        methods=methods,
        spearman=agree,
        jaccard=jaccard([rankings[names[part[0]]] for part in parts], k),
        common=common,
        left_out=ranked.left_out,
        site=reader.site.name,
        position=reader.labels[0],
        n_explore=len(explore),
        n_examples=len(intervene),
        n_groups=len(set(ablations.effects.groups)),
        effective_groups=effective_groups(ablations.effects.groups),
        exploratory=reused,
        specific=specific,
        provenance={
            **drawn.provenance,
            "intervene": ablations.effects.provenance,
            "methods": names,
            "k": k,
            "contrasts": [each.name for each in tried_on],
        },
    )


def _skill_tests(
    adapter: ModelAdapter,
    ablations: AblationEffects,
    named: Int[Tensor, "neuron 2"],
    contrasts: Sequence[Contrast],
    do: Edit,
    at: str,
    seed: int,
) -> SkillTests:
    """Of all that some method names, the causal hits tried on the contrasts."""
    tests = ablations.of(named, n_resamples=1)
    place = {tuple(row): number for number, row in enumerate(ablations.tried.tolist())}
    own = torch.tensor([place[tuple(row)] for row in named.tolist()], dtype=torch.long)
    task = replace(ablations.effects, names=tests.names, total=ablations.effects.total[own])
    others = contrast_effects(adapter, contrasts, named[tests.is_hit], do, at=at, seed=seed)
    names = [each.name for each in contrasts]
    return skill_tests(tests, task, list(zip(names, others, strict=True)))


def alike(
    rankings: Sequence[Ranking], agree: Float[Tensor, "method other"], k: int
) -> list[list[int]]:
    """Places of the rankings that are one: the same ranks to rounding, and the same k strongest."""
    parts: list[list[int]] = []
    for place, ranking in enumerate(rankings):
        for part in parts:
            same = float(agree[part[0], place]) >= 1 - _ALIKE
            if same and set(rankings[part[0]].names(k)) == set(ranking.names(k)):
                part.append(place)
                break
        else:
            parts.append([place])
    return parts


def _with_variances(
    rows: list[MethodRow], ablations: AblationEffects, turned: "_Directions | None"
) -> tuple[list[MethodRow], Float[Tensor, "row row2"]]:
    """The rows, each with what the resampled groups do to its share; and their covariance."""
    place = {name: row for row, name in enumerate(ablations.effects.names)}
    hits: dict[str, Tensor] = {}
    for row in rows:
        if turned is not None and ROTATED in row.methods:
            total = turned.total
        else:
            own = [place[name] for name in row.tests.names]
            total = ablations.effects.total[torch.tensor(own, dtype=torch.long)]
        drawn = ablations.resampled(row.tests, total, N_RESAMPLES)
        hits |= dict(zip(row.tests.names, drawn, strict=True))
    common = common_covariance([row.tests.names for row in rows], hits)
    return [replace(row, common=float(common[at, at])) for at, row in enumerate(rows)], common


def _with_recall(rows: list[MethodRow], ablations: AblationEffects, k: int) -> list[MethodRow]:
    """The rows, each with how many of the k neurons of largest |effect| it names."""
    names, total = ablations.effects.names, ablations.effects.total
    k = min(k, len(names))

    def strongest(size: Float[Tensor, "neuron draw"]) -> Bool[Tensor, "neuron draw"]:
        found = torch.zeros_like(size, dtype=torch.bool)
        return found.scatter_(0, size.topk(k, dim=0).indices, True)

    top = strongest(total.double().mean(dim=1, keepdim=True).abs())[:, 0]
    drawn = strongest(ablations.resampled_means(total, N_RECALL).abs())
    place = {name: row for row, name in enumerate(names)}
    found = []
    for row in rows:
        if ROTATED in row.methods:
            found.append(row)
            continue
        own = [place[name] for name in row.tests.names]
        lists = max(round(row.n / k), 1) if RANDOM in row.methods else 1
        inside = {name: drawn[place[name]] for name in row.tests.names}
        common = common_covariance([row.tests.names], inside, size=[k * lists])
        n = int(top[own].sum())
        found.append(replace(row, found=n, found_common=float(common[0, 0])))
    return found


@dataclass(frozen=True, eq=False)
class _Directions:
    """The directions a rotated basis names, and their effects."""

    names: list[str]
    layers: list[int]
    total: Float[Tensor, "k example"]
    seconds: float


def _rotated(
    ranked: Rankings,
    explained: Float[Tensor, " unit"],
    examples: Sequence[Example],
    do: Edit,
    metric: Metric,
    *,
    k: int,
    seed: int,
) -> _Directions:
    reader = ranked.reader
    assert reader.adapter is not None
    scale = ranked.statistics.scale
    assert scale is not None
    start = time.perf_counter()
    directions = strongest_directions(explained, reader.site, reader.width, k)
    total = direction_effects(
        reader.adapter,
        examples,
        directions,
        Rotation.of(reader.width, seed=seed),
        do,
        metric=metric,
        site=reader.site.name,
        position=reader.position,
        scale=dict(zip(reader.site.layers, scale.split(reader.width), strict=True)),
    )
    names = [f"L{layer}Q{column}" for layer, column in directions.tolist()]
    return _Directions(names, directions[:, 0].tolist(), total, time.perf_counter() - start)


def _check_splits(
    explore: Sequence[Example], intervene: Sequence[Example], exploratory: bool
) -> bool:
    """Whether the splits share examples; refused unless ``exploratory``."""
    if len(intervene) == 0:
        raise LensSkillsError(
            "no examples to intervene on: the split is empty. Loosen the filter, or split anew."
        )
    ids, groups = [example.id for example in intervene], [example.group for example in intervene]
    n_groups = len(set(groups))
    if n_groups < FEWEST_GROUPS:
        raise LensSkillsError(
            f"{n_groups} groups to try neurons on, but an interval needs {FEWEST_GROUPS} at least. "
            "Give more groups (of the other split, or a larger task). What each method names can "
            "be said all the same: rank(model, explore, metric, method=…)."
        )
    what = known_to(explore, {"example_ids": ids, "groups": groups})
    if what and not exploratory:
        raise LensSkillsError(
            f"explore and intervene share {what}, so what ranked a neuron would also try it. Use "
            "task.split(…), or say exploratory=True to mark the result."
        )
    return bool(what)


def jaccard(rankings: Sequence[Ranking], k: int) -> Float[Tensor, "method other"]:
    """Of the neurons two methods name among their k strongest, the share both name (0 to 1)."""
    sets = [set(ranking.names(k)) for ranking in rankings]
    shares = [[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets]
    return torch.tensor(shares, dtype=torch.float64)
