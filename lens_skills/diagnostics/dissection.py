"""`dissect`: which neurons win among their likes, what they stand for, and whether they suffice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Metric, Position, parse_metric
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.activations.activation_table import ActivationTable
from lens_skills.activations.components import find_places, neuron_names
from lens_skills.activations.locations import edited_positions, find_site
from lens_skills.activations.stream import evaluate
from lens_skills.checkpoints import part, resumable
from lens_skills.diagnostics.competition import Competition, Keep, compete
from lens_skills.diagnostics.concept_match import Concepts, match_concepts
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.feature_bank import FeatureBank, feature_bank
from lens_skills.models import Chat, with_soft_prompt
from lens_skills.progress import progress
from lens_skills.results import Result, provenance
from lens_skills.stats.effect_tests import check_groups, cluster_interval
from lens_skills.stats.intervals import share_difference, share_interval
from lens_skills.stats.multiple_testing import family_threshold
from lens_skills.tasks import Task

SHARES = (0.01, 0.02, 0.04, 0.1)
NAMED = 0.04
"""The share whose winners are counted and named: 4 % are active in the network of the paper."""

ACCURACY = "accuracy"
FEWEST = 20
"""Examples in either half at least."""

MOST_WIDTH = 8192  # of a layer, whose tree takes the square of it


@dataclass(frozen=True, eq=False)
class Dissection(Result):
    """Winners among like neurons, the concept of each, and the accuracy that they keep.

    Attributes:
        curve: One row per share: ``share`` asked for, ``n_active`` neurons of each layer; the mean
            metric on the held-out half where only ``winners`` keep their deviation from the mean,
            or as many ``random`` neurons (mean of the draws, ``random_least`` and ``random_most``
            of them), and ``difference`` of the two, each with ``_low`` and ``_high`` (95 % over
            groups).
        concepts: One row per neuron that was named: ``name``, ``wins`` (share of the examples it
            wins its cluster on), ``cluster_size``, and by soft-WPMI and by information ``concept``,
            value and family-wise p.
        clean, clean_low, clean_high: Mean metric of the model as it is.
        none, none_low, none_high: Of the model in which every neuron is at its mean.
        wins: Share of the examples of the first half on which each neuron wins its cluster, at
            ``named_share``.
        cluster: Its cluster there, counted from 0 in each layer.
        layers: Of the rows of both.
        named_share: The share closest to 4 %.
        metric, unit: What the curve measures.
        n_explore, n_held, n_groups: Examples of either half, groups of the second.
        n_random, n_permutations: Draws.
        site, position: What competes, and where.
        left_out: Concepts that were not taken, and why.
        provenance: Model, task.
    """

    curve: pd.DataFrame
    concepts: pd.DataFrame
    clean: float
    clean_low: float
    clean_high: float
    none: float
    none_low: float
    none_high: float
    wins: Float[Tensor, "layer neuron"]
    cluster: Int[Tensor, "layer neuron"]
    layers: tuple[int, ...]
    named_share: float
    metric: str
    unit: str
    n_explore: int
    n_held: int
    n_groups: int
    n_random: int
    n_permutations: int
    site: str
    position: str
    left_out: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row per neuron that was named; see ``concepts``."""
        return self.concepts.copy()

    @property
    def sizes(self) -> Int[Tensor, "layer neuron"]:
        """How many neurons each neuron's cluster has."""
        return torch.stack([row.bincount()[row] for row in self.cluster])

    @property
    def entropies(self) -> Float[Tensor, " cluster"]:
        """Of each cluster of two or more: entropy of its members' shares of wins.

        Over its largest, log2 of the members: 0 where one always wins, 1 where all win alike.
        """
        found = []
        for wins, cluster in zip(self.wins.double(), self.cluster, strict=True):
            size = cluster.bincount()
            terms = torch.special.entr(wins) / np.log(2)
            total = torch.zeros(len(size), dtype=torch.float64).index_add_(0, cluster, terms)
            several = size > 1
            found.append(total[several] / size[several].double().log2())
        return torch.cat(found)

    def at(self, share: float) -> dict[str, Any]:
        """The row of the curve for one share.

        Raises:
            LensSkillsError: A share that was not measured.
        """
        rows = self.curve.loc[np.isclose(self.curve["share"], share)]
        if len(rows) != 1:
            raise LensSkillsError(
                f"no share {share}: measured were {self.curve['share'].tolist()}."
            )
        return rows.iloc[0].to_dict()

    def __repr__(self) -> str:
        entropies = self.entropies
        n_single = int((self.sizes == 1).sum())
        n_clusters = sum(int(row.max()) + 1 for row in self.cluster)
        spread = "none holds two" if len(entropies) == 0 else f"{float(entropies.mean()):.2f}"
        lines = [
            f"{self.metric} on {self.n_held:,} held-out examples in {self.n_groups:,} groups · "
            f"{self.site} at {self.position}, {len(self.layers)} layers of {self.wins.shape[1]:,}",
            f"  all active {self.clean:.2f} [{self.clean_low:.2f}, {self.clean_high:.2f}] · all at "
            f"their mean {self.none:.2f} [{self.none_low:.2f}, {self.none_high:.2f}]",
            "  active   winners only         random only   winners - random",
        ]
        for row in self.curve.to_dict("records"):
            star = "*" if row["difference_low"] > 0 else " "
            lines.append(
                f"  {row['share']:6.1%}   {row['winners']:.2f} [{row['winners_low']:.2f}, "
                f"{row['winners_high']:.2f}]   {row['random']:>10.2f}   {row['difference']:+.2f} "
                f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}] {star}"
            )
        lines += [
            f"  at {self.named_share:.0%} active: {n_clusters:,} clusters, {n_single:,} of one "
            f"neuron; entropy of the wins inside the others {spread} (0: always the same, 1: all "
            "alike)",
        ]
        for row in self.concepts.head(5).to_dict("records"):
            lines.append(f"  {row['name']} wins {row['wins']:.0%}: {self._said(row)}")
        if len(self.concepts) > 5:
            lines.append(f"  … and {len(self.concepts) - 5} more neurons in .frame()")
        lines += [
            "  [ ]: 95 % over groups · *: the interval is above 0",
            "  p: family-wise over neurons and concepts",
            "  a concept goes with a neuron; that the neuron computes it is not shown",
        ]
        return "\n".join(lines)

    @staticmethod
    def _said(row: dict[str, Any]) -> str:
        parts = [
            f"{row[name]!r} ({words}, p {row[f'{name}_p']:.2g})"
            for name, words in (("wpmi", "soft-WPMI"), ("information", "information"))
            if row[f"{name}_p"] <= 0.05
        ]
        return " · ".join(parts) or "no concept (p > 0.05 by both measures)"


@resumable()
def dissect(
    model: Any,
    task: Task,
    bank: FeatureBank | None = None,
    neurons: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    metric: Any = None,
    layers: int | Sequence[int] | None = None,
    n_neurons: int = 20,
    k: int | None = None,
    n_random: int = 3,
    n_permutations: int = 199,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    chat: Chat = False,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Dissection:
    """Concepts of neurons, winners among like neurons, and what the model keeps of its accuracy.

    The task is split in two by group. On the first half neurons of each layer are grouped by
    average linkage on 1 - |r|, in as many clusters as ``share`` of them makes; winner of a cluster
    on an example is its neuron with the largest z-score; concepts of a neuron are matched by
    soft-WPMI and by binned mutual information. On the other half the model runs while the winners
    of that very run keep their activation and every other neuron is held at its mean of the first
    half, at the position's token; beside it as many random neurons, drawn anew for each example.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: With groups; at least 20 examples in either half.
        bank: Where concepts come from; default `feature_bank` of the task.
        neurons: Whose concepts are matched; default those that win most often.
        shares: Of each layer's neurons that are active, above 0 and below 1.
        metric: What is kept; default the accuracy: the answer is likelier than the foil where the
            task has foils or options, else ``correct``.
        layers: Which layers compete (default all); the others stay as they are.
        n_neurons: How many to name where ``neurons`` is left out.
        k: How many of the most active examples soft-WPMI looks at; default a quarter, 10 at least.
            Of few, all may hold a common concept by chance, and then no match can be told from it.
        n_random: Draws of random neurons.
        n_permutations: Of the concepts' nulls.
        at, position, chat: As in `score`; one token.
        seed: Of the split and of all draws.

    Returns:
        `Dissection`.
        checkpoint: A folder that keeps what is finished and the sums so far, about once a minute;
            the same call goes on there with the same numbers.

    Raises:
        LensSkillsError: A bank without features or without one that tells the examples apart; one
            neuron; shares beyond 0 and 1, or of which every neuron would be its own cluster; a
            table, which cannot be edited; a pooled position; too few examples or groups.

    Source: an analogue of DISCOVER (arXiv 2310.04929), where units of a block compete while the
    network is trained, so that about 4 % are active; here competition is put on a trained model
    and clusters stand for blocks. soft-WPMI: arXiv 2204.10965.

    Does not show: that a winner is needed (`verify` ablates it), or that the model computes with
    the concept. Clusters of average linkage are uneven: many hold one neuron, which always wins.

    >>> import lens_skills as ls
    >>> model = ls.load_model("arithmetic-small")
    >>> task = ls.tasks.few(ls.tasks.arithmetic("+", digits=1), 48)
    >>> found = ls.dissect(model, task, shares=(0.04,), n_neurons=3, n_random=1, layers=[2, 3])
    >>> found.curve["n_active"].tolist(), len(found.frame())
    ([15], 3)
    """
    if isinstance(model, ActivationTable):
        raise LensSkillsError(
            "a table of activations cannot be edited, and winners are kept by an edit. Give the "
            "model; ls.explain reads tables."
        )
    wanted = _checked(shares)
    if n_neurons < 1 or n_random < 1:
        raise LensSkillsError(
            f"n_neurons={n_neurons}, n_random={n_random}: one of each is the least."
        )
    family_threshold(torch.zeros(n_permutations, dtype=torch.float64))
    adapter = with_soft_prompt(model, None, chat)
    where = "last" if position is None else position
    if len(edited_positions(where).spots) != 1 or edited_positions(where).ragged:
        raise LensSkillsError(
            f"position {position!r} is several tokens, and neurons compete at one: 'last', an "
            "index or span('text')."
        )
    site = find_site(adapter, at, layers)
    explore, held = task.split(0.5, 0.5, seed=seed, names=("explore", "held out"))
    if min(len(explore), len(held)) < FEWEST:
        raise LensSkillsError(
            f"{len(task)} examples leave {len(explore)} to find winners on and {len(held)} to "
            f"measure them on; {FEWEST} of each are the least. Give more examples."
        )
    check_groups([example.group for example in held], "an interval of what is kept")
    measured, right = _measured(task, metric)
    concepts = Concepts.of(feature_bank(task) if bank is None else bank, explore)
    reader = ActivationReader(
        adapter, explore, at=site.name, position=where, layers=site.layers, metrics=[measured],
        purpose="dissected",
    )  # fmt: skip
    width = reader.width
    _check_width(site.name, width, wanted)
    chosen = None
    if neurons is not None:
        chosen = find_places(neurons, site.layers, width, site.name, adapter.d_head)
    values = part("activations", partial(_values, reader, len(explore)))
    competition = Competition.of(values, wanted)
    named_share = min(wanted, key=lambda share: abs(share - NAMED))
    won = torch.stack(
        [
            competition.winners(layer, values[layer].T, named_share).double().mean(0)
            for layer in range(len(site.layers))
        ]
    )
    if chosen is None:
        chosen = won.flatten().argsort(descending=True, stable=True)[:n_neurons]
    arms: list[tuple[float, str, Keep]] = []
    for share in wanted:
        arms.append((share, "winners", competition.keep_winners(share)))
        arms += [
            (share, "random", competition.keep_random(share, seed=seed * 101 + draw))
            for draw in range(n_random)
        ]
    options: dict[str, Any] = {"layers": site.layers, "site": site.name, "position": where}

    def kept(keep: Keep | None) -> Float[Tensor, " row"]:
        run = partial(compete, adapter, held, measured, competition, keep, **options)
        values = part("run", run)
        return (values > 0).double() if right else values

    whole = evaluate(adapter, held, [measured])[measured.name]
    clean = (whole > 0).double() if right else whole
    none = kept(None)
    runs = progress(arms, len(arms), "dissect", "runs")
    found = [(share, arm, kept(keep)) for share, arm, keep in runs]
    groups = [example.group for example in held]
    curve = [
        {"share": share, "n_active": competition.sizes[share], **_row(share, found, groups)}
        for share in wanted
    ]
    ends: dict[str, Any] = {}
    for name, kind in (("clean", clean), ("none", none)):
        low, high = _interval(kind, groups)
        ends |= {name: float(kind.mean()), f"{name}_low": low, f"{name}_high": high}
    match = match_concepts(
        values.flatten(0, 1)[chosen],
        concepts,
        [example.group for example in explore],
        k=max(10, len(explore) // 4) if k is None else k,
        n_permutations=n_permutations,
        seed=seed,
    )
    cluster = competition.cluster[named_share]
    sizes = torch.stack([row.bincount()[row] for row in cluster]).flatten()
    rows = torch.stack([reader.layer[chosen], reader.neuron[chosen]], dim=1)
    table: dict[str, Any] = {
        "name": neuron_names(rows, site.name, reader.about),
        "wins": won.flatten()[chosen].tolist(),
        "cluster_size": sizes[chosen].tolist(),
    }
    for measure, one in match.items():
        table[measure] = [concepts.names[place] for place in one.place.tolist()]
        table[f"{measure}_value"] = one.value.tolist()
        table[f"{measure}_p"] = one.p.tolist()
    return Dissection(
        curve=pd.DataFrame(curve),
        concepts=pd.DataFrame(table),
        **ends,
        wins=won,
        cluster=cluster,
        layers=tuple(site.layers),
        named_share=named_share,
        metric=ACCURACY if metric is None else measured.name,
        unit="share" if metric is None else measured.unit,
        n_explore=len(explore),
        n_held=len(held),
        n_groups=len(set(groups)),
        n_random=n_random,
        n_permutations=n_permutations,
        site=site.name,
        position=reader.labels[0],
        left_out=concepts.left_out,
        provenance={**provenance(task, adapter), "seed": seed},
    )


def _checked(shares: Sequence[float]) -> list[float]:
    wanted = sorted({float(share) for share in shares})
    if not wanted or not all(0 < share < 1 for share in wanted):
        raise LensSkillsError(
            f"shares={tuple(shares)}: give parts of each layer's neurons, above 0 and below 1, "
            "such as 0.04."
        )
    return wanted


def _check_width(site: str, width: int, shares: Sequence[float]) -> None:
    if width < 2:
        raise LensSkillsError(f"{site} has one unit in each layer, so that nothing competes.")
    if width > MOST_WIDTH:
        raise LensSkillsError(
            f"layers of {width:,} neurons: clusters take the square of it, and {MOST_WIDTH:,} are "
            "the most."
        )
    if max(1, round(shares[-1] * width)) >= width:
        raise LensSkillsError(
            f"share {shares[-1]} of {width} neurons makes each its own cluster: nothing competes. "
            "Give smaller shares."
        )


def _measured(task: Task, metric: Any) -> tuple[Metric, bool]:
    """What is read, and whether it counts as right where it is above 0."""
    if metric is not None:
        return parse_metric(metric, task, asked="dissect(metric=…)"), False
    if all(example.foil is not None or len(example.options) > 1 for example in task):
        return parse_metric("logit_diff", task, asked="dissect"), True
    return parse_metric("correct", task, asked="dissect"), False


def _values(reader: ActivationReader, n: int) -> Float[Tensor, "layer neuron row"]:
    layers = len(reader.site.layers)
    found = torch.zeros(layers, reader.width, n, dtype=torch.float32)
    for batch in reader.batches():
        units = reader.rows(batch)[0].float().cpu()
        found[:, :, batch.index] = units.T.reshape(layers, reader.width, -1)
    return found


def _interval(values: Float[Tensor, " row"], groups: Sequence[str]) -> tuple[float, float]:
    """95 % of a mean: exact where every value is 0 or 1, else the cluster bootstrap's."""
    binary = bool(((values == 0) | (values == 1)).all())
    low, high = (share_interval if binary else cluster_interval)(values[None], groups)
    return float(low[0]), float(high[0])


def _row(
    share: float, arms: Sequence[tuple[float, str, Tensor]], groups: Sequence[str]
) -> dict[str, float]:
    """Means of both arms at one share, and their paired difference."""
    (winners,) = (values for at, arm, values in arms if at == share and arm == "winners")
    drawn = torch.stack([values for at, arm, values in arms if at == share and arm == "random"])
    random, change = drawn.mean(0), winners - drawn.mean(0)
    shares = bool(((winners == 0) | (winners == 1)).all() & ((drawn == 0) | (drawn == 1)).all())
    ends = (share_difference if shares else cluster_interval)(change[None], groups)
    low, high = _interval(winners, groups)
    random_low, random_high = (float(end[0]) for end in cluster_interval(random[None], groups))
    if shares:
        random_low, random_high = max(0.0, random_low), min(1.0, random_high)
    return {
        "winners": float(winners.mean()), "winners_low": low, "winners_high": high,
        "random": float(random.mean()), "random_low": random_low, "random_high": random_high,
        "random_least": float(drawn.mean(1).min()), "random_most": float(drawn.mean(1).max()),
        "difference": float(change.mean()), "difference_low": float(ends[0][0]),
        "difference_high": float(ends[1][0]),
    }  # fmt: skip
