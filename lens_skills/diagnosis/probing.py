"""`sparse_probe`: is a label in one neuron, in few, or spread over many?"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import DEFAULT_SITE, Position, parse_metric
from lens_skills.diagnosis.marks import MARKS, marks_of
from lens_skills.diagnosis.probe import SparseProbe
from lens_skills.diagnosis.readings import read
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example
from lens_skills.models import SoftPrompt
from lens_skills.stats.exchange import signs

KS = (1, 2, 4, 8, 16, 32)
N_FOLDS = 5
FEWEST = 10
"""Examples of either class, in either split, that a probe takes at least."""

Columns = Float[Tensor, "neuron example"]
Truth = Bool[Tensor, " example"]


def sparse_probe(
    model: Any,
    train: Sequence[Example],
    test: Sequence[Example],
    neurons: Any = None,
    *,
    label: Any,
    ks: Sequence[int] = KS,
    by: str | None = None,
    n_random: int = 5,
    at: str = DEFAULT_SITE,
    position: Position | None = None,
    prompt: SoftPrompt | None = None,
    batch_size: int = 32,
    progress: bool | None = None,
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
        model: A model, or an `ActivationTable` that holds both splits.
        train, test: Two splits that share no group.
        neurons: The candidates: None for every neuron, names, rows, a `Selection`, or anything
            with ``.neurons`` in order of strength.
        label: A metric of two values, such as ``"label:plural"``, ``"correct"``.
        ks: How many neurons to try.
        by: ``"difference"``: ranked on ``train`` by |difference of the class means| in standard
            deviations; ``"given"``: in the order of ``neurons``. None: given where ``neurons`` is
            a result that has an order, else difference.
        n_random: Draws of random neurons.
        at, position: Where they are read; ``"last"`` unless asked otherwise.
        prompt: A soft prompt to read with.
        batch_size, progress: Of the pass.
        seed: Of the draws and the control labels.

    Raises:
        LensSkillsError: Splits that share groups, a label of more or fewer than two values, a class
            of fewer than `FEWEST` examples, more neurons asked for than there are candidates,
            neurons that were selected on ``test``.

    Source: Gurnee et al. 2023 (arXiv 2305.01610); control task and selectivity, Hewitt & Liang
    2019 (arXiv 1909.03368); description length, arXiv 2212.04590.
    """
    _refuse_shared(train, test, neurons)
    both = [*train, *test]
    watched = parse_metric(label, both, asked="sparse_probe(label=…)")
    found = read(
        model, both, neurons, at=at, position=position, metrics=[watched], prompt=prompt,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    values, n = found.values, len(train)
    truth = _two_values(found.metrics[watched.name], watched.name, n)
    m = len(values)
    tried = sorted(set(ks))
    if not tried or tried[0] < 1 or tried[-1] > m:
        raise LensSkillsError(
            f"ks={tuple(ks)}: each k lies between 1 and the {m:,} candidate neurons."
        )
    given = _given(neurons, by)
    groups = [example.group for example in both]
    learn, held = slice(0, n), slice(n, None)
    values = _scaled(values, learn)
    order = torch.arange(m) if given else ranking(values[:, learn], truth[learn])
    control = signs([example.kind for example in both], 1, seed=seed, purpose="probe")[:, 0] > 0
    control_order = order if given else ranking(values[:, learn], control[learn])
    bits = _bits(values[:, learn], truth[learn], groups[learn], tried, given)
    rows: list[dict[str, Any]] = [{"k": 0, "bits": bits[0], "description": bits[0]}]
    random = np.random.default_rng(seed)
    for k in tried:
        score = _probe(values[order[:k]], truth, learn, held)
        row: dict[str, Any] = {"k": k}
        for name, mark in marks_of(score, truth[held], groups[held]).items():
            row |= {name: mark.value, f"{name}_low": mark.low, f"{name}_high": mark.high}
        drawn = [
            _balanced(values[random.choice(m, k, replace=False)], truth, learn, held)
            for _ in range(n_random)
        ]
        row |= {"random": np.mean(drawn), "random_low": min(drawn), "random_high": max(drawn)}
        row["control"] = _balanced(values[control_order[:k]], control, learn, held)
        row["selectivity"] = row[MARKS[0]] - row["control"]
        row["bits"], row["description"] = bits[k], bits[k] + k * math.log2(m)
        rows.append(row)
    table = pd.DataFrame(rows)
    trained = {example.kind for example in train}
    return SparseProbe(
        neurons=found.neurons[order[: tried[-1]]],
        table=table,
        chosen=min(rows, key=lambda row: row["description"])["k"],
        n_candidates=m,
        label=watched.name,
        shared_kinds=sum(example.kind in trained for example in test) / len(test),
        order_from="in the order given" if given else "ranked on the training split",
        n_train=n,
        n_test=len(test),
        n_groups=len(set(groups[held])),
        site=found.site,
        position=found.position,
        provenance=found.about | {"task": getattr(train, "name", "examples")},
    )


def ranking(values: Columns, truth: Truth) -> Int[Tensor, " neuron"]:
    """Neurons by |difference of class means| of standardised values, the largest first."""
    difference = values[:, truth].mean(1) - values[:, ~truth].mean(1)
    return difference.abs().argsort(descending=True, stable=True)


def _scaled(values: Columns, learn: slice) -> Columns:
    """In standard deviations of the training split; a neuron that is constant there is 0."""
    mean = values[:, learn].mean(1, keepdim=True)
    spread = values[:, learn].std(1, correction=0, keepdim=True)
    flat = spread <= 1e-9 * values.abs().amax(1, keepdim=True)
    return torch.where(flat, 0.0, (values - mean) / spread.clamp(min=1e-300))


def _fit(values: Columns, truth: Truth, weights: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight=weights, max_iter=1000).fit(
        values.T.numpy(), truth.numpy()
    )


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


def _bits(
    values: Columns, truth: Truth, groups: Sequence[str], ks: Sequence[int], given: bool
) -> dict[int, float]:
    """Bits of the training labels given k neurons, each label told by the other folds."""
    from sklearn.model_selection import GroupKFold

    found = dict.fromkeys((0, *ks), 0.0)
    n_folds = min(N_FOLDS, len(set(groups)))
    for inside, outside in GroupKFold(n_folds).split(truth.numpy(), groups=groups):
        yes = truth[outside].double()
        share = (float(truth[inside].double().sum()) + 0.5) / (len(inside) + 1)
        found[0] -= float((yes * math.log2(share) + (1 - yes) * math.log2(1 - share)).sum())
        if len(truth[inside].unique()) < 2:
            for k in ks:
                found[k] = math.inf
            continue
        order = torch.arange(len(values)) if given else ranking(values[:, inside], truth[inside])
        for k in ks:
            fitted = _fit(values[order[:k]][:, inside], truth[inside], None)
            logit = torch.from_numpy(fitted.decision_function(values[order[:k]][:, outside].T))
            wrong = torch.where(truth[outside], -logit, logit)
            found[k] += float(torch.nn.functional.softplus(wrong).sum()) / math.log(2)
    return found


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


def _given(neurons: Any, by: str | None) -> bool:
    if by not in (None, "difference", "given") or (by == "given" and neurons is None):
        raise LensSkillsError(f"by={by!r}: 'difference', or 'given' together with neurons.")
    return by == "given" or (by is None and hasattr(neurons, "neurons"))


def _refuse_shared(train: Sequence[Example], test: Sequence[Example], neurons: Any) -> None:
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
