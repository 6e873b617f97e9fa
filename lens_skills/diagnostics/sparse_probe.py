"""`sparse_probe`: is a label in one neuron, in few, or spread over many?

Logistic probes on the k best neurons for several k: balanced accuracy, F1 and AUROC on held-out
groups with intervals, beside random neurons and random labels, and the k that pays for itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, ActivationTable, Position, parse_metric
from lens_skills.activations.activation_reader import (
    ActivationReader,
    metric_values,
    metrics_of,
    read_neurons,
)
from lens_skills.activations.components import neuron_names
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt
from lens_skills.progress import progress
from lens_skills.results import Result
from lens_skills.stats.correlation import area_influence, area_under_curve
from lens_skills.stats.effect_tests import FEW_GROUPS, cluster_error
from lens_skills.stats.intervals import logit_interval, share_interval
from lens_skills.stats.multiple_testing import signs

KS = (1, 2, 4, 8, 16, 32)
N_FOLDS = 5

# Of a table, so many activations are kept (128 MB); of more, sums rank and a second pass reads the
# neurons that a probe takes.
_IN_MEMORY = 1 << 24

FEWEST = 10
"""Examples of either class, in either split, that a probe takes at least."""

FEW = 8
"""Up to so many neurons are few; a label that takes more is distributed over them."""

Columns = Float[Tensor, "neuron example"]
Truth = Bool[Tensor, " example"]


@dataclass(frozen=True, eq=False)
class SparseProbe(Result):
    """Held-out scores of logistic probes on the k best neurons.

    Attributes:
        neurons: (layer, index) rows, in the order in which the probes take them.
        table: One row per k, and k = 0 for no neuron. ``balanced_accuracy``, ``f1``, ``auroc``
            with ``_low`` and ``_high`` on the test split; ``random``, ``random_low``,
            ``random_high``: mean, smallest and largest balanced accuracy of a few probes on k
            random neurons (the range of few draws, no interval); ``control``: balanced accuracy on
            random labels; ``selectivity``: what the label has over it. ``bits``: of the training
            labels given k neurons, cross-validated; ``description``: bits + k log2 M.
        chosen: The k of the shortest description; 0 where no neuron pays for itself.
        n_candidates: M, the neurons that could be taken.
        metric: What is told.
        shared_kinds: Share of test examples whose kind, which carries the control label, was
            trained on; where it is low, the control task cannot be learned by heart.
        order_from: Where the order comes from, in words.
        n_train, n_test, n_groups: Examples, and groups of the test split.
        site, position: Where the neurons were read.
        provenance: Model, task.
    """

    neurons: Int[Tensor, "neuron 2"]
    table: pd.DataFrame
    chosen: int
    n_candidates: int
    metric: str
    shared_kinds: float
    order_from: str
    n_train: int
    n_test: int
    n_groups: int
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``, in the probes' order."""
        return neuron_names(self.neurons, self.site, self.provenance)

    @property
    def word(self) -> str:
        """Whether the label is in one neuron, few, or distributed, by the shortest description."""
        most = int(self.table.loc[:, "k"].max())
        if self.chosen == 0:
            return "no neuron pays for itself"
        if self.chosen == 1:
            return "one neuron"
        if self.chosen == most:
            return f"distributed: {most:,} or more neurons"
        kind = "few" if self.chosen <= FEW else "distributed"
        return f"{kind}: {self.chosen:,} neurons"

    def frame(self) -> pd.DataFrame:
        """One row per k; see the attributes."""
        return self.table.copy()

    def __repr__(self) -> str:
        lines = [
            f"{self.metric}: {self.word} (shortest description, of {self.n_candidates:,})",
            f"trained on {self.n_train:,}, tested on {self.n_test:,} examples in {self.n_groups:,} "
            f"other groups · {self.site} at {self.position} · {self.order_from}",
            "    k  balanced accuracy      AUROC   random  control    bits + neurons",
        ]
        for row in self.table.to_dict("records"):
            star = " *" if row["k"] == self.chosen else "  "
            if row["k"] == 0:
                lines.append(f"{star}{0:>3}  {0.5:.2f} by chance{'':>33}{row['description']:9.0f}")
                continue
            lines.append(
                f"{star}{row['k']:>3}  {row['balanced_accuracy']:.2f} "
                f"[{row['balanced_accuracy_low']:.2f}, {row['balanced_accuracy_high']:.2f}]"
                f"      {row['auroc']:.2f}     {row['random']:.2f}     {row['control']:.2f}"
                f"   {row['bits']:.0f} + {row['description'] - row['bits']:.0f} = "
                f"{row['description']:.0f}"
            )
        if self.shared_kinds < 0.5:
            lines.append(
                f"  only {self.shared_kinds:.0%} of the test examples are of a kind that was "
                "trained on: the control task is near chance for that reason"
            )
        if self.n_groups < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups: the intervals are too narrow")
        lines.append(
            "  [ ]: 95 % intervals over the groups of the test split; random: mean of few draws"
        )
        lines.append("  what a probe can tell need not be used by the model")
        return "\n".join(lines)


def sparse_probe(
    model: Any,
    train: Sequence[Example],
    test: Sequence[Example],
    neurons: Any = None,
    *,
    metric: Any,
    ks: Sequence[int] = KS,
    by: str | None = None,
    n_random: int = 5,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> SparseProbe:
    """The curve of held-out accuracy against the number of neurons, and the k that is worth it.

    For each k a logistic regression on the first k neurons, standardised, fitted on ``train`` and
    scored on ``test``; beside it k random neurons, and the same procedure on random labels, one
    per kind of example (control task). The k is chosen on ``train`` alone, by the shortest
    description: bits of the labels given k neurons, cross-validated over groups with the neurons
    ranked anew in each fold, plus k log2 M to name them among M. With n labels at most
    n / log2 M neurons can ever pay: few examples make few neurons.

    Args:
        model: A model, or an `ActivationTable` that holds both splits: a large one is read twice,
            for sums that rank and for the neurons that the probes take.
        train, test: Two splits that share no group.
        neurons: The candidates: None for every neuron, names, rows, a `Selection`, or anything
            with ``.neurons`` in order of strength.
        metric: One of two values, such as ``"label:plural"``, ``"correct"``.
        ks: How many neurons to try.
        by: ``"difference"``: ranked on ``train`` by |difference of the class means| in standard
            deviations; ``"given"``: in the order of ``neurons``. None: given where ``neurons`` is
            a result that has an order, else difference.
        n_random: Draws of random neurons.
        at, position: Where they are read; ``"last"`` unless asked otherwise.
        prompt: A soft prompt to read with.
        chat: As in `score`.
        seed: Of the draws and the control labels.

    Raises:
        LensSkillsError: Splits that share groups, a label of more or fewer than two values, a class
            of fewer than `FEWEST` examples, more neurons asked for than there are candidates,
            neurons that were selected on ``test``.

    Source: Gurnee et al. 2023 (arXiv 2305.01610); control task and selectivity, Hewitt & Liang
    2019 (arXiv 1909.03368); description length, arXiv 2212.04590.
    """
    refuse_shared(train, test, neurons)
    both = [*train, *test]
    named = metrics_of(model, metric, both)
    wanted = parse_metric(named, both, asked="sparse_probe(metric=…)")
    n, groups = len(train), [example.group for example in both]
    control = signs([example.kind for example in both], 1, seed=seed, purpose="probe")[:, 0] > 0
    given = _given(neurons, by)
    where: dict[str, Any] = {"at": at, "position": position, "prompt": prompt, "chat": chat}
    tried = sorted(set(ks))
    streamed = isinstance(model, ActivationTable) and not given
    if streamed:
        reader = ActivationReader(model, both, neurons=neurons, purpose="read", **where)
        streamed = len(reader.layer) * len(both) > _IN_MEMORY
    if streamed:
        truth = _two_values(metric_values(model, both, [wanted])[wanted.name], wanted.name, n)
        m = len(reader.layer)
        _check_ks(ks, tried, m)
        folds = _folds(truth[:n], groups[:n])
        orders = _orders_by_sums(reader, truth, control, n, folds, tried[-1])
        drawn = _random_places(m, tried, n_random, seed)
        by_chance = [places for some in drawn.values() for places in some]
        every = [orders.label, orders.control, *orders.folds, *by_chance]
        needed = torch.unique(torch.cat(every))
        rows_of = torch.stack([reader.layer, reader.neuron], dim=1)
        found = read_neurons(model, both, rows_of[needed], metrics=[wanted], **where)
        place = torch.zeros(m, dtype=torch.long)
        place[needed] = torch.arange(len(needed))
        values = _scaled(found.values, slice(0, n))
    else:
        found = read_neurons(model, both, neurons, metrics=[wanted], **where)
        truth = _two_values(found.metrics[wanted.name], wanted.name, n)
        m, rows_of = len(found.values), found.neurons
        _check_ks(ks, tried, m)
        folds = _folds(truth[:n], groups[:n])
        drawn = _random_places(m, tried, n_random, seed)
        place, values = torch.arange(m), _scaled(found.values, slice(0, n))
        orders = _orders(values[:, :n], truth[:n], control[:n], folds, given)
    learn, held = slice(0, n), slice(n, None)

    def some(places: Int[Tensor, " k"]) -> Columns:
        return values[place[places]]

    bits = _bits(some, truth[learn], folds, tried, orders)
    rows: list[dict[str, Any]] = [{"k": 0, "bits": bits[0], "description": bits[0]}]
    for k in progress(tried, len(tried), "sparse probe", "sizes"):
        score = _probe(some(orders.label[:k]), truth, learn, held)
        row: dict[str, Any] = {"k": k}
        for name, point in performance(score, truth[held], groups[held]).items():
            row |= {name: point.value, f"{name}_low": point.low, f"{name}_high": point.high}
        reached = [_balanced(some(places), truth, learn, held) for places in drawn[k]]
        row |= {
            "random": np.mean(reached), "random_low": min(reached), "random_high": max(reached),
        }  # fmt: skip
        row["control"] = _balanced(some(orders.control[:k]), control, learn, held)
        row["selectivity"] = row["balanced_accuracy"] - row["control"]
        row["bits"], row["description"] = bits[k], bits[k] + k * math.log2(m)
        rows.append(row)
    table = pd.DataFrame(rows)
    trained = {example.kind for example in train}
    return SparseProbe(
        neurons=rows_of[orders.label[: tried[-1]]],
        table=table,
        chosen=min(rows, key=lambda row: row["description"])["k"],
        n_candidates=m,
        metric=wanted.name,
        shared_kinds=sum(example.kind in trained for example in test) / len(test),
        order_from="in the order given" if given else "ranked on the training split",
        n_train=n,
        n_test=len(test),
        n_groups=len(set(groups[held])),
        site=found.site,
        position=found.position,
        provenance=found.about | {"task": getattr(train, "name", "examples")},
    )


def _given(neurons: Any, by: str | None) -> bool:
    if by not in (None, "difference", "given") or (by == "given" and neurons is None):
        raise LensSkillsError(f"by={by!r}: 'difference', or 'given' together with neurons.")
    return by == "given" or (by is None and hasattr(neurons, "neurons"))


def refuse_shared(train: Sequence[Example], test: Sequence[Example], neurons: Any) -> None:
    """Raises where two splits share a group, or where the neurons were selected on the test."""
    held = {example.group for example in test}
    shared = sorted({example.group for example in train} & held)
    if shared:
        raise LensSkillsError(
            f"train and test share {len(shared)} groups ({shared[0]!r}, …), so the test is no "
            "test. Split by group: task.split(0.5, 0.5, seed=0)."
        )
    about = getattr(neurons, "provenance", None) or {}
    seen = held & set(about.get("groups", ()))
    if seen:
        raise LensSkillsError(
            f"these neurons were selected on {len(seen)} groups of the test split. Test on a "
            "split that selected nothing."
        )


def _two_values(column: Float[Tensor, " example"], name: str, n: int) -> Truth:
    values = column.unique()
    if len(values) != 2:
        raise LensSkillsError(
            f"{name!r} takes {len(values)} values here, and a probe tells two apart. Choose a 0/1 "
            "label, one category of several ('label:rule=a'), or split a number in two."
        )
    truth = column == values[1]
    for part, where in ((truth[:n], "train"), (truth[n:], "test")):
        fewest = min(int(part.sum()), int((~part).sum()))
        if fewest < FEWEST:
            raise LensSkillsError(
                f"{where} holds {fewest} examples of one value of {name!r}; a probe takes "
                f"{FEWEST} of each or more. Give more examples."
            )
    return truth


def _scaled(values: Columns, learn: slice) -> Columns:
    """In standard deviations of the training split; a neuron that is constant there is 0."""
    mean = values[:, learn].mean(1, keepdim=True)
    spread = values[:, learn].std(1, correction=0, keepdim=True)
    flat = spread <= 1e-9 * values.abs().amax(1, keepdim=True)
    return torch.where(flat, 0.0, (values - mean) / spread.clamp(min=1e-300))


def ranking(values: Columns, truth: Truth) -> Int[Tensor, " neuron"]:
    """Neurons by |difference of class means| of standardised values, the largest first."""
    difference = values[:, truth].mean(1) - values[:, ~truth].mean(1)
    return difference.abs().argsort(descending=True, stable=True)


def _probe(values: Columns, truth: Truth, learn: slice, held: slice) -> Float[Tensor, " held"]:
    """Log-odds on the held-out split; classes weigh the same."""
    fitted = _fit(values[:, learn], truth[learn], "balanced")
    return torch.from_numpy(fitted.decision_function(values[:, held].T.numpy()))


def _balanced(values: Columns, truth: Truth, learn: slice, held: slice) -> float:
    """Balanced accuracy alone; 0.5 where a split holds one class only."""
    if len(truth[learn].unique()) < 2 or len(truth[held].unique()) < 2:
        return 0.5
    right = (_probe(values, truth, learn, held) > 0) == truth[held]
    yes = truth[held]
    return float(right[yes].double().mean() + right[~yes].double().mean()) / 2


def _fit(values: Columns, truth: Truth, weights: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight=weights, max_iter=1000).fit(
        values.T.numpy(), truth.numpy()
    )


def _check_ks(ks: Sequence[int], tried: Sequence[int], m: int) -> None:
    if not tried or tried[0] < 1 or tried[-1] > m:
        raise LensSkillsError(
            f"ks={tuple(ks)}: each k lies between 1 and the {m:,} candidate neurons."
        )


def _random_places(
    m: int, ks: Sequence[int], n_random: int, seed: int
) -> dict[int, list[Int[Tensor, " k"]]]:
    """For each k some draws of so many of the candidates."""
    random = np.random.default_rng(seed)
    return {
        k: [torch.from_numpy(random.choice(m, k, replace=False)) for _ in range(n_random)]
        for k in ks
    }


Folds = list[tuple[np.ndarray, np.ndarray]]


def _folds(truth: Truth, groups: Sequence[str]) -> Folds:
    """Rows of the training split inside and outside of each fold."""
    from sklearn.model_selection import GroupKFold

    n_folds = min(N_FOLDS, len(set(groups)))
    return list(GroupKFold(n_folds).split(truth.numpy(), groups=groups))


@dataclass(frozen=True)
class Orders:
    """Candidates, the strongest first: by the label, by the control label, and inside each fold."""

    label: Int[Tensor, " k"]
    control: Int[Tensor, " k"]
    folds: list[Int[Tensor, " k"]]


def _orders(values: Columns, truth: Truth, control: Truth, folds: Folds, given: bool) -> Orders:
    if given:
        order = torch.arange(len(values))
        return Orders(order, order, [order for _ in folds])
    inside = [ranking(values[:, rows], truth[rows]) for rows, _ in folds]
    return Orders(ranking(values, truth), ranking(values, control), inside)


def _orders_by_sums(
    reader: ActivationReader, truth: Truth, control: Truth, n: int, folds: Folds, k: int
) -> Orders:
    """The first k of `_orders`, from one pass that keeps sums: of each unit in each fold and class.

    Means are about those of the first rows, so that nothing is lost to their size.
    """
    sets = [control[:n], ~control[:n], truth[:n], ~truth[:n]]
    for _, outside in folds:
        here = torch.zeros(n, dtype=torch.bool)
        here[outside] = True
        sets += [truth[:n] & here, ~truth[:n] & here]
    members = torch.stack(sets).double()
    m = len(reader.layer)
    total = torch.zeros(len(sets), m, dtype=torch.float64)
    square, most = torch.zeros(m, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    origin: Tensor | None = None
    for batch in reader.batches():
        units = reader.rows(batch)[0].double()
        most = torch.maximum(most, units.abs().amax(0))
        learned = batch.index < n
        if not bool(learned.any()):
            continue
        units = units[learned]
        origin = units.mean(0) if origin is None else origin
        units = units - origin
        total += members[:, batch.index[learned]] @ units
        square += units.square().sum(0)
    size = members.sum(1)
    mean = (total[2] + total[3]) / n
    spread = (square / n - mean.square()).clamp(min=0).sqrt()
    flat = spread <= 1e-9 * most

    def first(high: Tensor, n_high: Tensor, low: Tensor, n_low: Tensor) -> Int[Tensor, " k"]:
        difference = (high / n_high - low / n_low) / spread.clamp(min=1e-300)
        difference = torch.where(flat, 0.0, difference).nan_to_num()
        return difference.abs().argsort(descending=True, stable=True)[:k]

    inside = []
    for fold in range(len(folds)):
        yes, no = 4 + 2 * fold, 5 + 2 * fold
        inside.append(
            first(
                total[2] - total[yes], size[2] - size[yes], total[3] - total[no], size[3] - size[no]
            )
        )
    label = first(total[2], size[2], total[3], size[3])
    return Orders(label, first(total[0], size[0], total[1], size[1]), inside)


def _bits(
    some: Callable[[Int[Tensor, " k"]], Columns],
    truth: Truth,
    folds: Folds,
    ks: Sequence[int],
    orders: Orders,
) -> dict[int, float]:
    """Bits of the training labels given k neurons, each label told by the other folds."""
    found = dict.fromkeys((0, *ks), 0.0)
    each = zip(folds, orders.folds, strict=True)
    for (inside, outside), order in progress(each, len(folds), "sparse probe", "folds"):
        yes = truth[outside].double()
        share = (float(truth[inside].double().sum()) + 0.5) / (len(inside) + 1)
        found[0] -= float((yes * math.log2(share) + (1 - yes) * math.log2(1 - share)).sum())
        if len(truth[inside].unique()) < 2:
            for k in ks:
                found[k] = math.inf
            continue
        for k in ks:
            values = some(order[:k])
            fitted = _fit(values[:, inside], truth[inside], None)
            logit = torch.from_numpy(fitted.decision_function(values[:, outside].T))
            wrong = torch.where(truth[outside], -logit, logit)
            found[k] += float(torch.nn.functional.softplus(wrong).sum()) / math.log(2)
    return found


@dataclass(frozen=True)
class ProbePoint:
    """One number between 0 and 1 with its interval."""

    value: float
    low: float
    high: float


def performance(
    score: Float[Tensor, " example"],
    truth: Bool[Tensor, " example"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
) -> dict[str, ProbePoint]:
    """What a prediction is worth that says yes where ``score`` > 0.

    ``balanced_accuracy``: mean of the shares right among true and among false, chance 0.5.
    ``f1``: 2 TP / (2 TP + FP + FN). ``auroc``: P(score of a true one > of a false one), ties
    counting half.
    The intervals are those of `logit_interval` with the cluster-robust standard error of the
    number's influence values (for AUROC, DeLong's components), over the smaller of the numbers of
    groups with a true and with a false example. Where a number between 0 and 1 has no error (the
    same answer to all), the exact interval of the share right stands in.

    Source: DeLong, DeLong & Clarke-Pearson 1988; clustered, Obuchowski 1997.
    Assumes: independent groups, 30 or more.

    >>> score, truth = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([True, True, False])
    >>> performance(score, truth, ["a", "b", "c"])["auroc"].value
    1.0
    """
    said, yes = score > 0, truth.double()
    share = float(yes.mean())
    right = (said == truth).double()
    rates = [float(right[truth].mean()), float(right[~truth].mean())]
    balanced = yes * (right - rates[0]) / share + (1 - yes) * (right - rates[1]) / (1 - share)
    hits, whole = 2 * (said & truth).double(), said.double() + yes
    f1 = float(hits.sum() / whole.sum())
    auroc = float(area_under_curve(score, yes))
    values = {"balanced_accuracy": sum(rates) / 2, "f1": f1, "auroc": auroc}
    influences = {
        "balanced_accuracy": balanced / 2,
        "f1": (hits - f1 * whole) / whole.mean(),
        "auroc": area_influence(score, truth),
    }
    sides = truth.tolist()
    fewest = min(len({g for g, yes in zip(groups, sides, strict=True) if yes is side})
                 for side in (True, False))  # fmt: skip
    exact = share_interval(right[None], groups, level=level)
    found = {}
    for name, value in values.items():
        error = float(cluster_error(influences[name][None], groups)[0])
        low, high = logit_interval(value, error, fewest, level=level)
        if error == 0 and 0 < value < 1:
            low, high = min(value, float(exact[0][0])), max(value, float(exact[1][0]))
        found[name] = ProbePoint(value, low, high)
    return found
