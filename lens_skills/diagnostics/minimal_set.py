"""`minimal_set`: how few neurons tell a label as well as all of them do?

Neurons that go together are made one, the rest is ranked, and the smallest number whose probe comes
within a margin of the probe on all is chosen by cross-validation: over all layers, and in each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position
from lens_skills.activations.activation_reader import metric_values, metrics_of, read_neurons
from lens_skills.activations.components import neuron_names
from lens_skills.cards import fold
from lens_skills.data import Example
from lens_skills.diagnostics.class_probes import (
    Codes,
    Columns,
    accuracy_interval,
    balanced,
    balanced_mean,
    elastic_net,
    predict,
    probeless,
    reach,
    standardised,
)
from lens_skills.diagnostics.redundancy import cluster_by, medoids
from lens_skills.diagnostics.sparse_probe import refuse_shared
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, SoftPrompt
from lens_skills.progress import progress
from lens_skills.results import Result
from lens_skills.stats.correlation import standardise
from lens_skills.stats.effect_tests import FEW_GROUPS

Method = Literal["elastic_net", "probeless"]
Reference = Literal["all", "best"]

N_FOLDS = 5
N_DRAWS = 1000
"""Of the groups, for the interval of k."""

CURVE_DRAWS = 5
"""Random sets of each size that was not chosen."""

FEWEST = 10
"""Examples of each class, in either split, at least."""

MOST_CLASSES = 20
ALL_LAYERS = "all layers"

Places = Int[Tensor, "_"]


@dataclass(frozen=True, eq=False)
class MinimalSet(Result):
    """The fewest neurons whose probe tells a label about as well as that on all neurons.

    Attributes:
        neurons: (layer, index) rows of the set chosen over all layers, the strongest first.
        scopes: One row for ``"all layers"`` and one per layer: ``n_neurons``; ``n_clusters``, what
            is left of them after clustering; ``k`` with ``k_low`` and ``k_high``, the 2.5 and 97.5
            percentiles of the k that is chosen when the groups of the training split are drawn
            anew; ``share`` of ``n_neurons`` with its ends, and ``redundant``, 1 - share.
            ``accuracy``, ``all`` (with ``_low``, ``_high``): balanced accuracy on the test split of
            k neurons and of all. ``random``, ``random_low``, ``random_high``: mean, smallest and
            largest of as many random representatives; ``difference`` from their mean with its
            interval; ``p_random``: the rank of ``accuracy`` among the draws. ``cv``, ``cv_all``:
            what k was chosen by.
        curve: One row per k tried over all layers: ``cv``; ``accuracy``, ``random`` as above.
        metric, classes: What is told.
        margin: How much accuracy may be lost, 0 to 1.
        method: What ranks the neurons.
        reference: What is to be reached: the probe on ``"all"``, or the ``"best"`` k tried.
        threshold: Neurons of a layer are one where their clusters' 1 - |r| is below it; NaN: all
            are kept.
        n_random: Draws.
        n_train, n_test, n_groups: Examples, and groups of the test split.
        site, position: Where the neurons were read.
        provenance: Model, task, and the groups they were selected on.
    """

    neurons: Int[Tensor, "neuron 2"]
    scopes: pd.DataFrame
    curve: pd.DataFrame
    metric: str
    classes: tuple[str, ...]
    margin: float
    method: str
    reference: str
    threshold: float
    n_random: int
    n_train: int
    n_test: int
    n_groups: int
    site: str
    position: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``, the strongest first."""
        return neuron_names(self.neurons, self.site, self.provenance)

    @property
    def k(self) -> int:
        """The size of the set over all layers."""
        return len(self.neurons)

    @property
    def chance(self) -> float:
        """The balanced accuracy of a guess: one over the number of classes."""
        return 1 / len(self.classes)

    @property
    def word(self) -> str:
        """Whether so few tell the label, beyond chance and beyond as many random neurons."""
        row = self.scopes.iloc[0]
        if row["low"] <= self.chance:
            return "chance: no set of neurons was found that tells it"
        noun = "neuron tells" if self.k == 1 else "neurons tell"
        what = "all" if self.reference == "all" else "the best number of them"
        told = f"{self.k:,} {noun} it about as well as {what}"
        if row["difference_low"] <= 0:
            return f"{told}, and as many random ones may do the same"
        return told

    def frame(self) -> pd.DataFrame:
        """One row per scope; see the attributes."""
        return self.scopes.copy()

    def __repr__(self) -> str:
        row = self.scopes.iloc[0]
        kept = "" if np.isnan(self.threshold) else (
            f" · {row['n_clusters']:,} left where |r| of {1 - self.threshold:.2g} or more "
            "in a layer makes them one"
        )  # fmt: skip
        lines = [
            f"{self.metric} ({len(self.classes)} classes): {self.word}",
            f"  {row['n_neurons']:,} neurons{kept}",
            f"  k = {row['k']:,} [{row['k_low']:,}, {row['k_high']:,}]: "
            f"{row['share']:.2%} [{row['share_low']:.2%}, {row['share_high']:.2%}] of the neurons; "
            f"{row['redundant']:.2%} are redundant for this label",
            f"  balanced accuracy {_span(row, 'accuracy', '')} · all {_span(row, 'all', 'all_')} · "
            f"chance {self.chance:.2f}",
            f"  {self.n_random} random sets of {row['k']:,}: {row['random']:.3f} "
            f"({row['random_low']:.3f} to {row['random_high']:.3f}); difference "
            f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, "
            f"{row['difference_high']:+.3f}]",
        ]
        layers = self.scopes.iloc[1:]
        if len(layers) > 1:
            told = layers.loc[layers["low"] > self.chance]
            few = told.loc[told["k"].idxmin()] if len(told) else None
            lines.append(
                f"  in one layer: k {layers['k'].min():,} to {layers['k'].max():,}, the middle one "
                f"{layers['k'].median():,.0f}"
                + (f"; fewest in {few['scope']}, {_span(few, 'accuracy', '')}"
                   if few is not None else "; none beyond chance")
            )  # fmt: skip
        best = self.curve.loc[self.curve["cv"].idxmax()]
        if best["cv"] > row["cv_all"] + self.margin and self.reference == "all":
            lines.append(
                f"  {int(best['k']):,} would do better than all ({best['cv']:.3f} against "
                f"{row['cv_all']:.3f} in cross-validation): with few examples a probe on all "
                "learns too much; reference='best' asks for that"
            )
        lines.append(
            f"trained on {self.n_train:,}, tested on {self.n_test:,} examples in "
            f"{self.n_groups:,} other groups · {self.site} at {self.position} · ranked by "
            f"{self.method.replace('_', ' ')}, k by cross-validation on the training split"
        )
        if self.n_groups < FEW_GROUPS:
            lines.append(f"  fewer than {FEW_GROUPS} groups: the intervals are too narrow")
        lines.append("  [ ]: 95 % over groups; that of k is how the choice would vary")
        lines.append("  what a probe can tell need not be used by the model")
        return "\n".join(fold(line) for line in lines)


def _span(row: Any, name: str, before: str) -> str:
    return f"{row[name]:.3f} [{row[f'{before}low']:.3f}, {row[f'{before}high']:.3f}]"


def minimal_set(
    model: Any,
    train: Sequence[Example],
    test: Sequence[Example],
    neurons: Any = None,
    *,
    metric: Any,
    margin: float = 0.01,
    method: Method = "elastic_net",
    reference: Reference = "all",
    threshold: float | None = 0.3,
    ks: Sequence[int] | None = None,
    layerwise: bool = True,
    n_random: int = 20,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    chat: Chat = False,
    seed: int = 0,
) -> MinimalSet:
    """The smallest k with the accuracy of all neurons minus a margin, beside k random neurons.

    (1) In each layer neurons are clustered by 1 - |r| on ``train``, without the labels, and one is
    kept of each cluster (`redundancy`). (2) These representatives are ranked by the label. (3) For
    each k a logistic probe on the first k, standardised, classes weighing the same; k is the
    smallest whose accuracy in cross-validation over the groups of ``train`` is at least that of the
    probe on all neurons minus ``margin``. Ranks are made anew inside of each fold, and ``test`` has
    no part in any of this; it says what the chosen k, all, and k random representatives are worth.
    The interval of k: the same choice when the groups of ``train`` are drawn anew (the folds'
    probes stay), so it says how firm the choice is.

    Args:
        model: A model, or an `ActivationTable` that holds both splits.
        train, test: Two splits that share no group.
        neurons: The candidates: None for every neuron, names, rows, a `Selection`.
        metric: A label of 2 to `MOST_CLASSES` values, such as ``"label:token"``.
        margin: Of balanced accuracy, 0 to 1 (0.01: one percentage point).
        method: ``"elastic_net"``: by Σ over the classes of |coefficient| in a softmax regression
            with penalty `PENALTY` · (`L1_RATIO` |w| + (1 - `L1_RATIO`) w² / 2), the rest by their
            spread between the classes. ``"probeless"``: by Σ over pairs of classes of |difference
            of the class means| in units of the activation, as in `rank`.
        reference: ``"all"``; or ``"best"``: the best of the k tried, where all are too many for a
            probe on so few examples.
        threshold: Of the clusters, 0 to 1; None keeps every neuron.
        ks: Sizes to try; None doubles from 1 up to all representatives, over all layers with a
            step between.
        layerwise: Whether to ask each layer too, when there are several.
        n_random: Draws of random sets of the chosen size; of other sizes `CURVE_DRAWS`.
        at, position: Where they are read; ``"last"`` unless asked otherwise.
        prompt: A soft prompt to read with.
        chat: As in `score`.
        seed: Of all draws.

    Raises:
        LensSkillsError: Splits that share groups, a label with one value only, with too many, or
            with a class of fewer than `FEWEST` examples; numbers outside of what they can be.

    Source: Sharma et al. 2023 (arXiv 2305.00875); clusters and minimal sets, Dalvi et al. 2020
    (arXiv 2004.04010); elastic net, Dalvi et al. 2018 (arXiv 1812.09355). Here k is chosen by
    nested cross-validation, accuracy is balanced, clusters stay within a layer, and at most
    `CANDIDATES` neurons enter the elastic net.

    Does not show: that the model uses these neurons, or that no other set is as small.

    >>> import lens_skills as ls
    >>> train, test = ls.tasks.arithmetic("+", digits=(1,)).split(0.5, 0.5, seed=0)
    >>> found = ls.minimal_set(ls.load_model("arithmetic-small"), train, test,
    ...                        metric="label:carry", ks=(1, 4), n_random=2, layerwise=False)
    >>> found.k, found.names[:1] == found.names, found.frame()["scope"].tolist()
    (1, True, ['all layers'])
    """
    _check(margin, threshold, n_random)
    refuse_shared(train, test, neurons)
    both, n = [*train, *test], len(train)
    groups = [example.group for example in both]
    where: dict[str, Any] = {"prompt": prompt, "chat": chat}
    name, codes, classes = _classes(model, both, metric, n, where)
    found = read_neurons(model, both, neurons, at=at, position=position, **where)
    layers = found.neurons[:, 0]
    raw = found.values.float()
    learn = _Split(codes[:n], groups[:n], _folds(codes[:n], groups[:n]))
    held = _Split(codes[n:], groups[n:], [])
    kept = _representatives(raw[:, :n], layers, threshold)
    present = sorted(set(layers.tolist()))
    scopes: list[tuple[str, Tensor]] = [(ALL_LAYERS, torch.ones(len(layers), dtype=torch.bool))]
    if layerwise and len(present) > 1:
        scopes += [(f"layer {layer}", layers == layer) for layer in present]
    rows, chosen, curve = [], torch.zeros(0, dtype=torch.long), pd.DataFrame()
    for scope, inside in progress(scopes, len(scopes), "minimal set", "scopes"):
        places = (inside & kept).nonzero()[:, 0]
        tried = _sizes(ks, len(places), asked=scope == ALL_LAYERS)
        work = _Work(
            raw, learn, held, inside.nonzero()[:, 0], places, tried, margin, method, reference,
            n_random, seed,
        )  # fmt: skip
        row, order, here = work.done(whole=scope == ALL_LAYERS)
        if scope == ALL_LAYERS:
            chosen, curve = order, here
        rows.append({"scope": scope, **row})
    return MinimalSet(
        neurons=found.neurons[chosen],
        scopes=pd.DataFrame(rows),
        curve=curve,
        metric=name,
        classes=classes,
        margin=float(margin),
        method=method,
        reference=reference,
        threshold=float("nan") if threshold is None else float(threshold),
        n_random=n_random,
        n_train=n,
        n_test=len(test),
        n_groups=len(set(groups[n:])),
        site=found.site,
        position=found.position,
        provenance=found.about
        | {"task": getattr(train, "name", "examples"), "groups": sorted(set(groups[:n]))},
    )


def _check(margin: float, threshold: float | None, n_random: int) -> None:
    if not 0 <= margin < 1:
        raise LensSkillsError(f"margin={margin}: accuracy that may be lost, from 0 to below 1.")
    if threshold is not None and not 0 < threshold < 1:
        raise LensSkillsError(f"threshold={threshold}: 1 - |r| lies between 0 and 1; None is none.")
    if n_random < 2:
        raise LensSkillsError(f"n_random={n_random}: two draws are the least that have a spread.")


def _classes(
    model: Any, both: Sequence[Example], metric: Any, n: int, where: dict[str, Any]
) -> tuple[str, Codes, tuple[str, ...]]:
    """The metric's name, each example's class and the classes' names."""
    parts = list(metrics_of(model, metric, both))
    values = metric_values(model, both, parts, **where)
    if len(parts) > 1:
        if not isinstance(metric, str):
            raise LensSkillsError(f"minimal_set(metric={metric!r:.60}): give one metric.")
        name, columns = metric, torch.stack([values[part.name] for part in parts])
        codes = columns.argmax(0)
        classes = tuple(part.name.removeprefix(f"{metric}=") for part in parts)
    else:
        (name,) = values
        distinct, codes = torch.unique(values[name], return_inverse=True)
        classes = tuple(f"{float(value):g}" for value in distinct)
    if len(classes) < 2:
        raise LensSkillsError(
            f"{name!r} has one value only here (always {', '.join(classes)}), and there is nothing "
            "to tell. Give examples of two classes or more."
        )
    if len(classes) > MOST_CLASSES:
        raise LensSkillsError(
            f"{name!r} takes {len(classes)} values, and classes are at most {MOST_CLASSES}. Choose "
            "a label, or cut the number into a few."
        )
    for part, words in ((codes[:n], "train"), (codes[n:], "test")):
        sizes = torch.bincount(part, minlength=len(classes))
        if int(sizes.min()) < FEWEST:
            raise LensSkillsError(
                f"{words} holds {int(sizes.min())} examples where {name!r} is "
                f"{classes[int(sizes.argmin())]!r}; {FEWEST} of each class or more are needed. "
                "Give more examples."
            )
    return name, codes.long(), classes


def _sizes(ks: Sequence[int] | None, most: int, *, asked: bool) -> list[int]:
    """The k to try, ascending; the last is all representatives."""
    if ks is not None:
        wrong = [k for k in ks if k < 1 or (asked and k > most)]
        if wrong or not len(ks):
            raise LensSkillsError(
                f"ks={tuple(ks)}: each k lies between 1 and the {most:,} neurons that are left "
                "after clustering."
            )
        return sorted({k for k in ks if k <= most} | {most})
    found, k = {most}, 1
    while k < most:
        found |= {k, k + k // 2} if asked and k + k // 2 < most else {k}
        k *= 2
    return sorted(found)


@dataclass(frozen=True)
class _Split:
    """Classes and groups of a split, and its folds (inside, outside)."""

    codes: Codes
    groups: Sequence[str]
    folds: list[tuple[Tensor, Tensor]]


def _folds(codes: Codes, groups: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    from sklearn.model_selection import GroupKFold

    n_folds = min(N_FOLDS, len(set(groups)))
    if n_folds < 2:
        raise LensSkillsError(
            "train is one group, and k is chosen by cross-validation over groups. Give examples of "
            "several groups."
        )
    split = GroupKFold(n_folds).split(codes.numpy(), groups=groups)
    folds = [(torch.from_numpy(inside), torch.from_numpy(outside)) for inside, outside in split]
    n_classes = int(codes.max()) + 1
    for inside, _ in folds:
        if len(codes[inside].unique()) < n_classes:
            raise LensSkillsError(
                "one class is in so few groups of train that a fold lacks it. Give it more groups."
            )
    return folds


def _representatives(
    values: Columns, layers: Int[Tensor, " neuron"], threshold: float | None
) -> Bool[Tensor, " neuron"]:
    """One neuron of each cluster of each layer, of those that vary."""
    spread = values.std(1, correction=0)
    varies = spread > 1e-6 * values.abs().amax(1)
    if not bool(varies.any()):
        raise LensSkillsError("no neuron varies on the training split: nothing can be told.")
    if threshold is None:
        return varies
    kept = torch.zeros(len(values), dtype=torch.bool)
    every = sorted(set(layers.tolist()))
    for layer in progress(every, len(every), "minimal set: clusters", "layers"):
        places = (varies & (layers == layer)).nonzero()[:, 0]
        if len(places) < 2:
            kept[places] = True
            continue
        unit = standardise(values[places].double())
        r = (unit @ unit.T / unit.shape[1]).clamp(-1, 1)
        cluster, _ = cluster_by(r, threshold)
        kept[places[medoids(r, cluster)]] = True
    return kept


@dataclass(frozen=True)
class _Work:
    """One scope: some neurons, their representatives, and what is asked of them."""

    raw: Columns
    learn: _Split
    held: _Split
    every: Places
    places: Places
    ks: list[int]
    margin: float
    method: str
    reference: str
    n_random: int
    seed: int

    def done(self, *, whole: bool) -> tuple[dict[str, Any], Places, pd.DataFrame]:
        """The scope's row, the neurons chosen, and (of the ``whole``) the curve."""
        n, n_all = len(self.learn.codes), len(self.every)
        right, right_all = self._out_of_fold()
        cv = [balanced(row, self.learn.codes) for row in right]
        cv_all = balanced(right_all, self.learn.codes)
        chosen = smallest(torch.tensor(cv), cv_all, self.margin, self.reference)
        k = self.ks[chosen]
        drawn = self._drawn_k(right, right_all)
        rows = torch.arange(n)
        ranked = self._ranked(rows)
        tell = self._tell(rows, torch.arange(n, n + len(self.held.codes)), self.held.codes)
        correct, everything = tell(ranked[:k]), tell(self.every)
        own, goal = self._point(correct), self._point(everything)
        random = self._random(tell, k)
        table = []
        for place, size in enumerate(self.ks if whole else []):
            own_here = own if size == k else self._point(tell(ranked[:size]))
            others = random if size == k else self._random(tell, size, most=CURVE_DRAWS)
            each = [balanced(one, self.held.codes) for one in others]
            table.append(
                {"k": size, "cv": cv[place], "accuracy": own_here[0], "low": own_here[1],
                 "high": own_here[2], "random": float(np.mean(each)), "random_low": min(each),
                 "random_high": max(each)}
            )  # fmt: skip
        each = [balanced(one, self.held.codes) for one in random]
        difference = self._difference(correct, random)
        low, high = (int(x) for x in np.quantile(drawn, [0.025, 0.975], method="inverted_cdf"))
        row = {
            "n_neurons": n_all, "n_clusters": len(self.places),
            "k": k, "k_low": min(low, k), "k_high": max(high, k),
            "share": k / n_all, "share_low": min(low, k) / n_all,
            "share_high": max(high, k) / n_all,
            "redundant": 1 - k / n_all,
            "accuracy": own[0], "low": own[1], "high": own[2],
            "all": goal[0], "all_low": goal[1], "all_high": goal[2],
            "random": float(np.mean(each)), "random_low": min(each), "random_high": max(each),
            "difference": difference[0], "difference_low": difference[1],
            "difference_high": difference[2],
            "p_random": (1 + sum(one >= own[0] for one in each)) / (1 + len(each)),
            "cv": cv[chosen], "cv_all": cv_all,
        }  # fmt: skip
        return row, ranked[:k], pd.DataFrame(table)

    def _out_of_fold(self) -> tuple[Bool[Tensor, "size example"], Bool[Tensor, " example"]]:
        """Which training examples are told by the other folds: for each k, and by all neurons."""
        n = len(self.learn.codes)
        right = torch.zeros(len(self.ks), n, dtype=torch.bool)
        whole = torch.zeros(n, dtype=torch.bool)
        for inside, outside in self.learn.folds:
            order = self._ranked(inside)
            tell = self._tell(inside, outside, self.learn.codes[outside])
            whole[outside] = tell(self.every)
            for place, k in enumerate(self.ks):
                right[place, outside] = tell(order[:k])
        return right, whole

    def _ranked(self, rows: Tensor) -> Places:
        """The representatives, the strongest first, by these training examples."""
        values, codes = self.raw[self.places][:, rows], self.learn.codes[rows]
        if self.method == "probeless":
            strength = probeless(values, codes)
        else:
            strength = elastic_net(standardised(values, values), codes)
        return self.places[strength.argsort(descending=True, stable=True)]

    def _tell(
        self, rows: Tensor, other: Tensor, truth: Codes
    ) -> Callable[[Places], Bool[Tensor, " example"]]:
        """What says which of the other examples a probe on some neurons tells."""
        codes = self.learn.codes[rows]

        def tell(places: Places) -> Bool[Tensor, " example"]:
            some = self.raw[places]
            values, held = some[:, rows], some[:, other]
            return predict(standardised(values, values), codes, standardised(values, held)) == truth

        return tell

    def _random(
        self, tell: Callable[[Places], Bool[Tensor, " example"]], k: int, most: int | None = None
    ) -> list[Bool[Tensor, " example"]]:
        n_draws = min(self.n_random, most or self.n_random)
        random = np.random.default_rng([self.seed, k])
        draws = [random.choice(len(self.places), k, replace=False) for _ in range(n_draws)]
        return [tell(self.places[torch.from_numpy(draw)]) for draw in draws]

    def _drawn_k(
        self, right: Bool[Tensor, "size example"], whole: Bool[Tensor, " example"]
    ) -> list[int]:
        """The k that is chosen when groups are drawn anew."""
        names, group = np.unique(np.array(self.learn.groups), return_inverse=True)
        random = np.random.default_rng(self.seed)
        weight = random.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=N_DRAWS
        ).astype(float)[:, group]
        every = torch.cat([right, whole[None]]).double().numpy()
        total = np.zeros((N_DRAWS, len(every)))
        n_classes = int(self.learn.codes.max()) + 1
        for one in range(n_classes):
            of_class = (self.learn.codes == one).numpy()
            here = weight[:, of_class]
            total += here @ every[:, of_class].T / np.maximum(here.sum(1), 1)[:, None]
        means = torch.from_numpy(total / n_classes)
        return [
            self.ks[smallest(row[:-1], float(row[-1]), self.margin, self.reference)]
            for row in means
        ]

    def _point(self, correct: Bool[Tensor, " example"]) -> tuple[float, float, float]:
        return accuracy_interval(correct, self.held.codes, self.held.groups)

    def _difference(
        self, correct: Bool[Tensor, " example"], random: Sequence[Bool[Tensor, " example"]]
    ) -> tuple[float, float, float]:
        """The set's accuracy minus the random sets' mean, the spread of the draws included."""
        others = torch.stack([one.double() for one in random])
        more = correct.double() - others.mean(0)
        value, error = balanced_mean(more, self.held.codes, self.held.groups)
        each = torch.tensor([balanced(one, self.held.codes) for one in random])
        error = (error**2 + float(each.var()) / len(each)) ** 0.5
        half = reach(self.held.groups) * error
        return value, value - half, value + half


def smallest(
    cv: Float[Tensor, " size"], whole: float, margin: float, reference: Reference | str
) -> int:
    """The place of the first accuracy that is within the margin; of the last where none is.

    >>> smallest(torch.tensor([0.5, 0.8, 0.795, 0.9]), 0.8, 0.01, "all")
    1
    """
    goal = whole if reference == "all" else float(cv.max())
    enough = cv >= goal - margin - 1e-9
    return int(enough.long().argmax()) if bool(enough.any()) else len(cv) - 1
