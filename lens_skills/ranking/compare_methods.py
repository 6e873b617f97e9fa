"""`compare_methods`: which methods of ranking find neurons that matter, side by side.

Each method names its strongest neurons, all are edited one by one on other examples, and a
`MethodComparison` holds one `MethodRow` per method beside two rows to beat: random neurons, and
directions of a rotated basis.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.locations import edited_positions
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import Controls
from lens_skills.interventions.edits import Edit, ablate
from lens_skills.interventions.effects import effect_metric
from lens_skills.interventions.verdict import OPPOSES, SUPPORTS
from lens_skills.interventions.verify import removes_work
from lens_skills.models import SoftPrompt, with_soft_prompt
from lens_skills.ranking.causal_hits import (
    ABLATIONS,
    AblationEffects,
    EffectTests,
    ablation_effects,
    count_known,
    direction_effects,
    parse_roles,
    strongest_directions,
)
from lens_skills.ranking.methods import METHODS, find_methods
from lens_skills.ranking.rank import Ranking, Rankings, rank_all
from lens_skills.ranking.target_statistics import target_of
from lens_skills.results import Result
from lens_skills.scoring import EXPLORATORY
from lens_skills.scoring.leakage import check_prompt, known_to
from lens_skills.stats.correlation import spearman
from lens_skills.stats.intervals import wilson_interval
from lens_skills.stats.moments import random_rotation

RANDOM, ROTATED = "random", "rotated basis"

BASELINES = (RANDOM, ROTATED)
"""The rows every comparison has: what any method must beat."""


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One method's strongest neurons, tried.

    Attributes:
        method: Its name; ``"random"`` and ``"rotated basis"`` are the rows to beat.
        tests: Of its list of k neurons; of ``"random"`` several lists, each tested by itself.
        seconds: What ranking took.
        agreement: Mean rank correlation with the other methods; None for the rows to beat, and
            where there is no other.
        known: For each role in ``truth``: how many of its neurons are in the list.
    """

    method: str
    tests: tuple[EffectTests, ...]
    seconds: float
    agreement: float | None
    known: Mapping[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many neurons were tried."""
        return sum(len(tests.names) for tests in self.tests)

    @property
    def hits(self) -> int:
        """How many of them have a causal effect."""
        return sum(tests.hits for tests in self.tests)

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
        sizes = [float(size) for tests in self.tests for size in tests.effect.abs()]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def count(self, verdict: str) -> int:
        """On how many neurons this is the verdict."""
        return sum(tests.verdicts.count(verdict) for tests in self.tests)


@dataclass(frozen=True, eq=False)
class MethodComparison(Result):
    """Several methods' strongest neurons, all tried on the same examples.

    Does not show: that a method is better in general. It is one model, one task and one k, and
    the intervals are wide.

    Attributes:
        rows: One per method, by share of hits; the rows to beat come last.
        k: How many neurons each method may name.
        metric, causal_metric, unit: What was ranked by; what was watched, and its unit.
        do: The edit in words.
        delta: The smallest effect that counts; ``delta_from`` says where it is from.
        n_controls: Other neurons of the same layers.
        methods: The methods that ranked, in the order of the two matrices.
        spearman: Rank correlation of their strengths over all neurons.
        jaccard: Overlap of their k strongest.
        left_out: Methods that could not rank here, and why.
        site, position: Where neurons were read and edited.
        n_explore, n_examples, n_groups: Of the splits ranked on and tried on.
        exploratory: True where examples were used again.
        truth: The known neurons, by role: see `against`.
        provenance: Model, task, splits, seed and versions behind the numbers.
    """

    rows: tuple[MethodRow, ...]
    k: int
    metric: str
    causal_metric: str
    unit: str
    do: str
    delta: float
    delta_from: str
    n_controls: int
    methods: tuple[str, ...]
    spearman: Float[Tensor, "method other"]
    jaccard: Float[Tensor, "method other"]
    left_out: Mapping[str, str]
    site: str
    position: str
    n_explore: int
    n_examples: int
    n_groups: int
    exploratory: bool = False
    truth: Mapping[str, Sequence[str]] = field(default_factory=dict)
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

    def against(self, truth: Mapping[str, Sequence[str]] | Sequence[str]) -> "MethodComparison":
        """The same, with how many of the neurons that are known beforehand each method found.

        Args:
            truth: Names of neurons that carry the skill, or a mapping from role to names
                (``{"skill": […], "decoy": […]}``), the skill first: recall and precision are about
                the first role, the others are counted.

        Raises:
            LensSkillsError: A role without a neuron.
        """
        roles = parse_roles(truth)
        rows = tuple(
            row if row.method == ROTATED else replace(row, known=count_known(row.tests, roles))
            for row in self.rows
        )
        return replace(self, truth=roles, rows=rows)

    def frame(self) -> pd.DataFrame:
        """One row per method.

        Columns: method n hits share low high supports opposes mean_effect agreement seconds, and
        with known neurons recall precision (of the first role) and one column per further role.
        """
        rows = []
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
                    lists = max(len(row.tests), 1)
                    entry["recall"] = None if known is None else known / len(names) / lists
                    entry["precision"] = None if known is None or not row.n else known / row.n
                else:
                    entry[role] = known
            rows.append(entry)
        return pd.DataFrame(rows)

    def neurons(self) -> pd.DataFrame:
        """One row per method and neuron: method list rank name effect low high p q verdict."""
        numbers = ("effect", "low", "high", "p", "q")
        rows = [
            {
                "method": row.method,
                "list": place,
                "rank": rank + 1,
                "name": name,
                **{key: float(getattr(tests, key)[rank]) for key in numbers},
                "verdict": tests.verdicts[rank],
            }
            for row in self.rows
            for place, tests in enumerate(row.tests)
            for rank, name in enumerate(tests.names)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        lines = [
            f"{self.metric} · the {self.k} strongest neurons of each method tried · "
            f"{self.site} at {self.position}",
            f"  ranked on {self.n_explore:,} examples, tried on {self.n_examples:,} in "
            f"{self.n_groups:,} groups: {self.do}, effect on {self.causal_metric}",
            f"  a hit: 95 % interval beyond δ = {self.delta:.3g} {self.unit} ({self.delta_from}) "
            f"and q <= 0.05 among {self.n_controls:,} controls",
        ]
        if self.exploratory:
            lines.insert(0, EXPLORATORY)
        lines += ["", *_table(self.frame())]
        lines += [f"  left out: {why}" for why in self.left_out.values()]
        return "\n".join(lines)


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
    removes: bool | None = None,
    seed: int = 0,
    exploratory: bool = False,
) -> MethodComparison:
    """Which methods find neurons that matter: a `MethodComparison`.

    Every method ranks all neurons on ``explore``. The k strongest of each are edited one by one on
    ``intervene``, in a single sweep over their union. A *causal hit* is a neuron whose mean effect
    has a 95 % interval outside [-δ, δ], δ being the 95th percentile of the \\|mean effect\\| of
    random other neurons of the same layers on the same examples, and whose \\|mean effect\\| is
    rare among those (rank p, Benjamini–Hochberg q <= 0.05 over the k neurons of its own list). The
    layers are those any method named, as often as they were named. It is a light form of
    `verify`'s verdict: no equivalence test, no mixed classes, no control sets.

    Two rows are always there. *random*: ``n_random`` lists of k neurons drawn over all layers,
    each tested like a method's; its share is the base rate. *rotated basis*: in a random rotation
    of each layer, the k directions whose values the metric explains best; ablating direction v
    turns a into a - (a·v - its mean) v. A method worth its name beats both.

    Args:
        model: A HookedTransformer or TransformerBridge.
        explore: The split to rank on.
        metric: What to rank by, as in `rank`. Methods of gradients differentiate
            ``causal_metric``.
        intervene: The split to try the neurons on; it shares no group with ``explore``.
        methods: Names among `METHODS` (default all); those that cannot rank by this metric, or on
            this model, are left out, and the result says why.
        k: How many neurons each method may name.
        do: The edit; default ``ablate("mean", over=explore)``.
        causal_metric: What the edit may change; a metric of the model.
        at, position, layers, prompt, split, gate: As in `rank`; it is edited at the same position.
        delta: δ, in the metric's unit, instead of the controls' percentile.
        controls: ``ls.controls(neurons=1000)``: how many random other neurons of the same layers
            an effect must be rare among. Default: 20 k, so that one hit alone can pass.
        n_random: Lists of random neurons.
        removes: Whether the edit takes the neuron's work away (only clamping needs it said).
        seed: Of everything that is drawn.
        exploratory: Allow splits that share examples, and mark the result.

    Raises:
        LensSkillsError: Splits that share examples or groups, a position that cannot be edited, a
            causal metric that is a column of the task, no method that can rank, unknown names.
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
    names = [name for name in (METHODS if methods is None else methods) if name != RANDOM]
    wanted = find_methods([*names, RANDOM])
    do = ablate("mean", over=explore) if do is None else do
    taken = removes_work(do, removes)
    reader = ActivationReader(
        adapter, explore, at=at, position=position, layers=layers, purpose="ranked"
    )
    ranked = rank_all(
        reader,
        target_of(adapter, explore, metric, split=split),
        wanted,
        differentiated=watched,
        gate=gate,
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
    lists = {name: ranking.top(k) for name, ranking in rankings.items() if ranking.n_ranked}
    random = drawn.top(k * n_random)
    everyone = torch.stack([drawn.layer, drawn.neuron], dim=1)
    n_controls = 20 * k if controls is None else controls.neurons
    ablations = ablation_effects(
        adapter,
        intervene,
        torch.cat([*lists.values(), random]).unique(dim=0),
        everyone,
        do,
        metric=watched,
        at=at,
        position=reader.position,
        delta=delta,
        n_controls=len(everyone) if n_controls is None else n_controls,
        removes=taken,
        seed=seed,
    )
    # Neurons a method does not rank share its last place.
    agree = spearman(torch.stack([ranking.strength for ranking in rankings.values()]))
    rows = []
    for order, (name, ranking) in enumerate(rankings.items()):
        tests = (ablations.of(lists[name]),) if name in lists else ()
        others = [float(agree[order, other]) for other in range(len(agree)) if other != order]
        mean = sum(others) / len(others) if others else None
        rows.append(MethodRow(name, tests, ranking.seconds, mean))
    rows.sort(key=lambda row: (-row.share, -row.mean_effect))
    if ranked.statistics.rotated is not None:
        rows.append(_rotated(ranked, ablations, intervene, do, watched, k=k, seed=seed))
    tests = tuple(ablations.of(part) for part in random.split(k))
    rows.append(MethodRow(RANDOM, tests, 0.0, None))
    return MethodComparison(
        rows=tuple(rows),
        k=k,
        metric=ranked.target.name,
        causal_metric=watched.name,
        unit=watched.unit,
        do=ablations.effects.do,
        delta=ablations.delta,
        delta_from="95th percentile of the controls" if delta is None else "declared",
        n_controls=len(ablations.controls),
        methods=tuple(rankings),
        spearman=agree,
        jaccard=jaccard(list(rankings.values()), k),
        left_out=ranked.left_out,
        site=reader.site.name,
        position=reader.labels[0],
        n_explore=len(explore),
        n_examples=len(intervene),
        n_groups=len(set(ablations.effects.groups)),
        exploratory=reused,
        provenance={
            **drawn.provenance,
            "intervene": ablations.effects.provenance,
            "methods": list(rankings),
            "k": k,
        },
    )


def _rotated(
    ranked: Rankings,
    ablations: AblationEffects,
    examples: Sequence[Example],
    do: Edit,
    metric: Metric,
    *,
    k: int,
    seed: int,
) -> MethodRow:
    reader, explained = ranked.reader, ranked.statistics.rotated
    assert explained is not None
    assert reader.adapter is not None
    start = time.perf_counter()
    directions = strongest_directions(explained, reader.site, reader.width, k)
    total = direction_effects(
        reader.adapter,
        examples,
        directions,
        random_rotation(reader.width, seed=seed),
        do,
        metric=metric,
        site=reader.site.name,
        position=reader.position,
    )
    names = [f"L{layer}R{column}" for layer, column in directions.tolist()]
    return MethodRow(ROTATED, (ablations.tests(names, total),), time.perf_counter() - start, None)


def _check_splits(
    explore: Sequence[Example], intervene: Sequence[Example], exploratory: bool
) -> bool:
    """Whether the splits share examples; refused unless ``exploratory``."""
    if len(intervene) == 0:
        raise LensSkillsError(
            "no examples to intervene on: the split is empty. Loosen the filter, or split anew."
        )
    ids, groups = [example.id for example in intervene], [example.group for example in intervene]
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
