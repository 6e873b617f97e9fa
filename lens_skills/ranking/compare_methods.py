"""`compare`: every method's strongest neurons on trial, side by side.

`Comparison`: which methods find neurons that matter, in one table.

How much rankings agree: over all neurons, and among their strongest.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import BATCH_SIZE, DEFAULT_SITE, Metric, Position
from lens_skills.activations.locations import edited_positions
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import Edit, ablate
from lens_skills.interventions.effects import effect_metric
from lens_skills.interventions.verdict import OPPOSES, SUPPORTS
from lens_skills.interventions.verify import removes_work
from lens_skills.models import SoftPrompt, with_soft_prompt
from lens_skills.ranking.causal_hits import (
    AblationEffects,
    EffectTests,
    hear,
    known_among,
    parse_roles,
)
from lens_skills.ranking.methods import METHODS, find_methods
from lens_skills.ranking.rank import Ranking, Rankings, rank_all
from lens_skills.ranking.rotated_basis import ABLATIONS, direction_effects, strongest_directions
from lens_skills.scoring import EXPLORATORY
from lens_skills.scoring.leakage import check_prompt, shared
from lens_skills.stats.correlation import spearman
from lens_skills.stats.intervals import wilson_interval
from lens_skills.stats.moments import random_rotation


def rank_correlations(rankings: Sequence[Ranking]) -> Float[Tensor, "method other"]:
    """Spearman's correlation of the strengths over all neurons, -1 to 1.

    Neurons a method does not rank share its last place.
    """
    return spearman(torch.stack([ranking.strength for ranking in rankings]))


def jaccard(rankings: Sequence[Ranking], k: int) -> Float[Tensor, "method other"]:
    """Of the neurons two methods name among their k strongest, the share both name (0 to 1)."""
    sets = [set(ranking.names(k)) for ranking in rankings]
    shares = [[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets]
    return torch.tensor(shares, dtype=torch.float64)


ROTATED = "rotated basis"


BASELINES = ("random", ROTATED)
"""The rows every comparison has: what any method must beat."""


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method's strongest neurons on trial.

    Attributes:
        method: Its name; ``"random"`` and ``"rotated basis"`` are the rows to beat.
        trials: Its list of k neurons; of ``"random"`` several lists, each judged by itself.
        seconds: What ranking took.
        agreement: Mean rank correlation with the other methods; None for the rows to beat, and
            where there is no other.
        known: For each role in ``truth``: how many of its neurons are in the list.
    """

    method: str
    trials: tuple[EffectTests, ...]
    seconds: float
    agreement: float | None
    known: Mapping[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many neurons were tried."""
        return sum(len(trial.names) for trial in self.trials)

    @property
    def hits(self) -> int:
        """How many of them have a causal effect."""
        return sum(trial.hits for trial in self.trials)

    @property
    def share(self) -> float:
        """Hits among those tried; 0 where none was."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, neurons taken as independent."""
        return wilson_interval(self.share, self.n) if self.n else (0.0, 1.0)

    @property
    def mean_effect(self) -> float:
        """Mean over the neurons of |mean effect|, in the causal metric's unit."""
        sizes = [float(size) for trial in self.trials for size in trial.effect.abs()]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def count(self, word: str) -> int:
        """How many neurons have a word."""
        return sum(trial.words.count(word) for trial in self.trials)


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """Several methods' strongest neurons, all tried on the same examples.

    Does not show: that a method is better in general. It is one model, one task and one k, and
    the intervals are wide.

    Attributes:
        rows: One per method, by share of hits; the rows to beat come last.
        k: How many neurons each method may name.
        metric, causal, unit: What was ranked by; what the neurons were tried on, and its unit.
        do: The edit in words.
        delta: The smallest effect that counts; ``delta_from`` says where it is from.
        n_controls: Other neurons of the same layers.
        methods: The methods that ranked, in the order of the two matrices.
        spearman: Rank correlation of their strengths over all neurons.
        jaccard: Overlap of their k strongest.
        left_out: Methods that could not rank here, and why.
        truth: The known neurons, by role.
        site, position: Where neurons were read and edited.
        n_explore, n_examples, n_groups: Of the splits ranked on and tried on.
        exploratory: True where a rule against reuse was waived.
        provenance: Model, task, splits, seed and versions behind the numbers.
    """

    rows: tuple[MethodRow, ...]
    k: int
    metric: str
    causal: str
    unit: str
    do: str
    delta: float
    delta_from: str
    n_controls: int
    methods: tuple[str, ...]
    spearman: Float[Tensor, "method other"]
    jaccard: Float[Tensor, "method other"]
    left_out: Mapping[str, str]
    truth: Mapping[str, Sequence[str]]
    site: str
    position: str
    n_explore: int
    n_examples: int
    n_groups: int
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, method: str) -> MethodRow:
        for row in self.rows:
            if row.method == method:
                return row
        if method in self.left_out:
            raise LensSkillsError(f"{method!r} was left out: {self.left_out[method]}")
        raise LensSkillsError(
            f"no method {method!r} here. There are: {', '.join(row.method for row in self.rows)}."
        )

    def frame(self) -> pd.DataFrame:
        """One row per method.

        Columns: method n hits share low high supports opposes mean_effect agreement seconds, and
        with known neurons recall precision (of the first role) and one column per further role.
        """
        found = []
        for row in self.rows:
            low, high = row.interval
            entry: dict[str, Any] = {
                "method": row.method,
                "n": row.n,
                "hits": row.hits,
                "share": row.share,
                "low": low,
                "high": high,
                "supports": row.count(SUPPORTS),
                "opposes": row.count(OPPOSES),
                "mean_effect": row.mean_effect,
                "agreement": row.agreement,
                "seconds": row.seconds,
            }
            for place, (role, names) in enumerate(self.truth.items()):
                known = row.known.get(role)
                if place == 0:
                    lists = max(len(row.trials), 1)
                    entry["recall"] = None if known is None else known / len(names) / lists
                    entry["precision"] = None if known is None or not row.n else known / row.n
                else:
                    entry[role] = known
            found.append(entry)
        return pd.DataFrame(found)

    def neurons(self) -> pd.DataFrame:
        """One row per method and neuron: method list rank name effect low high p q word."""
        found = [
            {
                "method": row.method,
                "list": place,
                "rank": rank + 1,
                "name": name,
                **{key: float(getattr(trial, key)[rank]) for key in _NUMBERS},
                "word": trial.words[rank],
            }
            for row in self.rows
            for place, trial in enumerate(row.trials)
            for rank, name in enumerate(trial.names)
        ]
        return pd.DataFrame(found)

    def __repr__(self) -> str:
        lines = [
            f"{self.metric} · the {self.k} strongest neurons of each method on trial · "
            f"{self.site} at {self.position}",
            f"  ranked on {self.n_explore:,} examples, tried on {self.n_examples:,} in "
            f"{self.n_groups:,} groups: {self.do}, effect on {self.causal}",
            f"  a hit: 95 % interval beyond δ = {self.delta:.3g} {self.unit} ({self.delta_from}) "
            f"and q <= 0.05 among {self.n_controls:,} controls",
        ]
        if self.exploratory:
            lines.insert(0, EXPLORATORY)
        lines += ["", *_table(self.frame())]
        lines += [f"  left out: {why}" for why in self.left_out.values()]
        return "\n".join(lines)


_NUMBERS = ("effect", "low", "high", "p", "q")


def _table(frame: pd.DataFrame) -> list[str]:
    """Aligned lines of the frame, with what needs words in words."""
    rows = [["method", "hits", "95 % interval", "supports/opposes", "mean |effect|", "agreement"]]
    more = [name for name in frame.columns[11:] if frame[name].notna().any()]
    rows[0] += ["seconds", *more]
    for entry in frame.to_dict("records"):
        cells = [
            entry["method"],
            f"{entry['hits']} of {entry['n']}",
            f"{entry['low']:.2f} to {entry['high']:.2f}",
            f"{entry['supports']}/{entry['opposes']}",
            f"{entry['mean_effect']:.3g}",
            "" if pd.isna(entry["agreement"]) else f"{entry['agreement']:.2f}",
            f"{entry['seconds']:.1f}",
        ]
        cells += ["" if pd.isna(entry[name]) else f"{entry[name]:.3g}" for name in more]
        rows.append(cells)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


_RANDOM = "random"


def compare_methods(
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
) -> MethodComparison:
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
    adapter = with_soft_prompt(model, prompt)
    waived = _check_splits(explore, intervene, exploratory)
    waived |= check_prompt(adapter.soft, intervene, exploratory)
    edited_positions("last" if position is None else position)
    watched = effect_metric(causal)
    names = [name for name in (METHODS if methods is None else methods) if name != _RANDOM]
    wanted = find_methods([*names, _RANDOM])
    do = ablate("mean", over=explore) if do is None else do
    taken = removes_work(do, removes)
    rankings = rank_all(
        adapter,
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
        adapter,
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
    agree = rank_correlations(list(found.values()))
    rows = []
    for order, (name, ranking) in enumerate(found.items()):
        trials = (hearing.of(lists[name]),) if name in lists else ()
        others = [float(agree[order, other]) for other in range(len(found)) if other != order]
        mean = sum(others) / len(others) if others else None
        rows.append(MethodRow(name, trials, ranking.seconds, mean, known_among(trials, roles)))
    rows.sort(key=lambda row: (-row.share, -row.mean_effect))
    if rankings.seen.rotated is not None:
        rows.append(_rotated(rankings, hearing, intervene, do, watched, k=k, seed=seed))
    trials = tuple(hearing.of(part) for part in drawn.top(k * n_random).split(k))
    rows.append(MethodRow(_RANDOM, trials, 0.0, None, known_among(trials, roles)))
    return MethodComparison(
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
    hearing: AblationEffects,
    examples: Sequence[Example],
    do: Edit,
    metric: Metric,
    *,
    k: int,
    seed: int,
) -> MethodRow:
    reader = rankings.reader
    assert rankings.seen.rotated is not None
    assert reader.adapter is not None
    start = time.perf_counter()
    directions = strongest_directions(rankings.seen.rotated, reader.site, reader.width, k)
    total = direction_effects(
        reader.adapter,
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
    return MethodRow(ROTATED, (hearing.judge(names, total),), time.perf_counter() - start, None)


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
