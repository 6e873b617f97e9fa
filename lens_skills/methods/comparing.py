"""`compare`: every method's strongest neurons on trial, side by side."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lens_skills.activations import BATCH_SIZE, DEFAULT_SITE, Metric, Position
from lens_skills.causal.baseline import edited_positions
from lens_skills.causal.edits import Edit, ablate
from lens_skills.causal.measurement import one_metric
from lens_skills.causal.refusals import removes_work
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.methods.agreement import jaccard, spearman
from lens_skills.methods.catalogue import METHODS, find_methods
from lens_skills.methods.comparison import ROTATED, Comparison, Row
from lens_skills.methods.hearing import Hearing, hear
from lens_skills.methods.rankings import Rankings, rank_all
from lens_skills.methods.rotated import ABLATIONS, direction_effects, strongest_directions
from lens_skills.methods.truth import known_among, parse_roles
from lens_skills.models import SoftPrompt, prompted
from lens_skills.scoring.matching import check_prompt, shared
from lens_skills.stats.rotation import random_rotation

_RANDOM = "random"


def compare(
    model: Any,
    explore: Sequence[Example],
    metric: Any,
    *,
    intervene: Sequence[Example],
    methods: Sequence[str] | None = None,
    k: int = 20,
    do: Edit | None = None,
    causal: Any = "logit_diff",
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    layers: int | Iterable[int] | None = None,
    prompt: SoftPrompt | None = None,
    split: str | None = None,
    gate: bool = True,
    truth: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    delta: float | None = None,
    n_controls: int | None = None,
    n_random: int = 5,
    removes: bool | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    exploratory: bool = False,
    progress: bool | None = None,
) -> Comparison:
    """Which methods find neurons that matter: a `Comparison`.

    Every method ranks all neurons on ``explore``. The k strongest of each are edited one by one on
    ``intervene``, in a single sweep over their union. A *causal hit* is a neuron whose mean effect
    has a 95 % interval outside [-δ, δ], δ being the 95th percentile of the \\|mean effect\\| of
    random other neurons of the same layers on the same examples, and whose \\|mean effect\\| is
    rare among those (rank p, Benjamini–Hochberg q <= 0.05 over the k neurons of its own list). The
    layers are those any method named, as often as they were named. It is a light form of
    `verify`'s ruling: no equivalence test, no mixed classes, no control sets.

    Two rows are always there. *random*: ``n_random`` lists of k neurons drawn over all layers,
    each judged like a method's; its share is the base rate. *rotated basis*: in a random rotation
    of each layer, the k directions whose values the metric explains best; ablating direction v
    turns a into a - (a·v - its mean) v. A method worth its name beats both.

    Args:
        model: A HookedTransformer or TransformerBridge.
        explore: The split to rank on.
        metric: What to rank by, as in `rank`. Methods of gradients differentiate ``causal``.
        intervene: The split to try the neurons on; it shares no group with ``explore``.
        methods: Names among `METHODS` (default all); those that cannot rank by this metric, or on
            this model, are left out, and the result says why.
        k: How many neurons each method may name.
        do: The edit; default ``ablate("mean", over=explore)``.
        causal: What the edit may change; a metric of the model.
        at, position, layers, prompt, split, gate: As in `rank`; it is edited at the same position.
        truth: Names of neurons that are known to carry the skill, or a mapping from role to names
            (``{"skill": […], "decoy": […]}``), the skill first: recall and precision are about
            the first role, the others are counted.
        delta: δ, in the metric's unit, instead of the controls' percentile.
        n_controls: Random other neurons (default 20 k, so that one hit alone can pass).
        n_random: Lists of random neurons.
        removes: Whether the edit takes the neuron's work away (only clamping needs it said).
        seed: Of everything that is drawn.
        batch_size, progress: As in `score`.
        exploratory: Allow splits that share examples, and mark the result.

    Raises:
        LensSkillsError: Splits that share examples or groups, a position that cannot be edited, a
            causal metric that is a column of the task, no method that can rank, unknown names.
    """
    if k < 1 or n_random < 1:
        raise LensSkillsError(f"k={k}, n_random={n_random}: both must be 1 or more.")
    lens = prompted(model, prompt)
    waived = _check_splits(explore, intervene, exploratory)
    waived |= check_prompt(lens.soft, intervene, exploratory)
    edited_positions("last" if position is None else position)
    watched = one_metric(causal)
    names = [name for name in (METHODS if methods is None else methods) if name != _RANDOM]
    wanted = find_methods([*names, _RANDOM])
    do = ablate("mean", over=explore) if do is None else do
    taken = removes_work(do, removes)
    rankings = rank_all(
        lens,
        explore,
        metric,
        wanted,
        differentiated=watched,
        at=at,
        position=position,
        layers=layers,
        split=split,
        gate=gate,
        rotation_seed=seed if do.kind in ABLATIONS else None,
        seed=seed,
        batch_size=batch_size,
        exploratory=exploratory,
        progress=progress,
    )
    found = {name: each for name, each in rankings.found.items() if name != _RANDOM}
    if not found:
        raise LensSkillsError(
            "no method can rank here: " + " ".join(dict.fromkeys(rankings.left_out.values()))
        )
    if do.over is explore:
        do = replace(do, over=rankings.baseline)  # measured already, on the way
    drawn = rankings.found[_RANDOM]
    lists = {name: ranking.top(k) for name, ranking in found.items() if ranking.n_ranked}
    hearing = hear(
        lens,
        intervene,
        torch.cat([*lists.values(), drawn.top(k * n_random)]).unique(dim=0),
        torch.stack([drawn.layer, drawn.neuron], dim=1),
        do,
        metric=watched,
        at=at,
        position=rankings.reader.position,
        delta=delta,
        n_controls=20 * k if n_controls is None else n_controls,
        removes=taken,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    roles = parse_roles(truth)
    agree = spearman(list(found.values()))
    rows = []
    for order, (name, ranking) in enumerate(found.items()):
        trials = (hearing.of(lists[name]),) if name in lists else ()
        others = [float(agree[order, other]) for other in range(len(found)) if other != order]
        mean = sum(others) / len(others) if others else None
        rows.append(Row(name, trials, ranking.seconds, mean, known_among(trials, roles)))
    rows.sort(key=lambda row: (-row.share, -row.mean_effect))
    if rankings.seen.rotated is not None:
        rows.append(_rotated(rankings, hearing, intervene, do, watched, k=k, seed=seed))
    trials = tuple(hearing.of(part) for part in drawn.top(k * n_random).split(k))
    rows.append(Row(_RANDOM, trials, 0.0, None, known_among(trials, roles)))
    return Comparison(
        rows=tuple(rows),
        k=k,
        metric=rankings.target.name,
        causal=watched.name,
        unit=watched.unit,
        do=hearing.effects.do,
        delta=hearing.delta,
        delta_from="declared" if hearing.declared else "95th percentile of the controls",
        n_controls=len(hearing.controls),
        methods=tuple(found),
        spearman=agree,
        jaccard=jaccard(list(found.values()), k),
        left_out=rankings.left_out,
        truth=roles,
        site=rankings.reader.site.name,
        position=rankings.reader.label,
        n_explore=len(explore),
        n_examples=len(intervene),
        n_groups=len(set(hearing.effects.groups)),
        exploratory=waived,
        provenance={
            **drawn.provenance,
            "intervene": hearing.effects.provenance,
            "methods": list(found),
            "k": k,
        },
    )


def _rotated(
    rankings: Rankings,
    hearing: Hearing,
    examples: Sequence[Example],
    do: Edit,
    metric: Metric,
    *,
    k: int,
    seed: int,
) -> Row:
    reader = rankings.reader
    assert rankings.seen.rotated is not None
    assert reader.lens is not None
    start = time.perf_counter()
    directions = strongest_directions(rankings.seen.rotated, reader.site, reader.width, k)
    total = direction_effects(
        reader.lens,
        examples,
        directions,
        random_rotation(reader.width, seed=seed),
        do,
        metric=metric,
        site=reader.site.name,
        position=reader.position,
        batch_size=reader.batch_size,
    )
    names = [f"L{layer}R{column}" for layer, column in directions.tolist()]
    return Row(ROTATED, (hearing.judge(names, total),), time.perf_counter() - start, None)


def _check_splits(
    explore: Sequence[Example], intervene: Sequence[Example], exploratory: bool
) -> bool:
    """Whether the splits share examples; refused unless ``exploratory``."""
    if len(intervene) == 0:
        raise LensSkillsError(
            "no examples to intervene on: the split is empty. Loosen the filter, or split anew."
        )
    what = shared(
        (example.id for example in explore),
        (example.group for example in explore),
        (example.id for example in intervene),
        (example.group for example in intervene),
    )
    if what and not exploratory:
        raise LensSkillsError(
            f"explore and intervene share {what}, so what ranked a neuron would also try it. Use "
            "task.split(…), or say exploratory=True to mark the result."
        )
    return bool(what)
