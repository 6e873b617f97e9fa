"""What `detectors.py` measures: answers, probes on few neurons, transfer, scaling.

Every step takes what the steps before it found, and gives plain tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.activations.activation_reader import read_neurons
from lens_skills.activations.continuations import pad_left
from lens_skills.activations.forward import encode_examples
from lens_skills.models import as_adapter
from lens_skills.ranking.detectors import AnswerContributions, cett, fit_detector
from lens_skills.ranking.own_answers import OwnAnswers, read_own_answers

FEWEST = 12
"""Answers of a class without which nothing is fitted or measured."""
N_DRAWS = 1000
NEAREST = 50
"""Neurons of the layer among which a matched one is drawn."""
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
NAMES = {"+": "+", "-": "−", "*": "×"}


class NotKept(Exception):
    """A step that is not finished, and is not to be made now."""


@dataclass(eq=False)
class Answers:
    """The model's own answers to a task.

    Attributes:
        ids, groups: Of the examples it answered.
        cells: Operation and digits of each.
        own: Its answers, with every neuron's contributions.
        right: Whether each is the right answer and stops there.
    """

    ids: list[str]
    groups: list[str]
    cells: list[tuple[str, int]]
    own: OwnAnswers
    right: np.ndarray

    @property
    def first_probability(self) -> np.ndarray:
        return np.exp([parts[0] for parts in self.own.log_probabilities])

    @property
    def mean_log_probability(self) -> np.ndarray:
        return np.array([np.mean(parts) for parts in self.own.log_probabilities])

    def rows(self, task: Sequence[ls.Example]) -> np.ndarray:
        """The places of a split's examples."""
        place = {id: row for row, id in enumerate(self.ids)}
        return np.array([place[e.id] for e in task if e.id in place], dtype=int)

    def contributions(self, rows: np.ndarray, seed: int) -> AnswerContributions:
        """Some of the answers, as methods of `rank` take them."""
        chosen = torch.from_numpy(rows)
        own = replace(
            self.own,
            kept=chosen,
            tokens=tuple(self.own.tokens[row] for row in rows),
            log_probabilities=tuple(self.own.log_probabilities[row] for row in rows),
            answer=self.own.answer[chosen],
            other=self.own.other[chosen],
        )
        right = torch.from_numpy(self.right[rows])
        return AnswerContributions(own, right, [self.groups[row] for row in rows], seed)


def answer(model: Any, task: ls.Task) -> Answers:
    """One token more than the longest answer is written, so that an answer that goes on is seen."""
    adapter = as_adapter(model)
    encoded = encode_examples(adapter, task, answers=True)
    longest = max(len(item.answer_tokens or ()) for item in encoded)
    own = read_own_answers(adapter, task, n_tokens=longest + 1)
    right = []
    for row, place in enumerate(own.kept.tolist()):
        wanted, told = encoded[place].answer_tokens, own.tokens[row]
        assert wanted is not None
        following = told[len(wanted) : len(wanted) + 1]
        stops = not following or not adapter.decode(following[0])[:1].isalnum()
        right.append(told[: len(wanted)] == wanted and stops)
    examples = [task[place] for place in own.kept.tolist()]
    cells = [(str(e.column("op")), int(e.column("digits") or 0)) for e in examples]
    ids, groups = [e.id for e in examples], [e.group for e in examples]
    return Answers(ids, groups, cells, own, np.array(right))


# Detection.


def telling(
    train: np.ndarray, truth: np.ndarray, test: np.ndarray, *, penalty: float = 1.0
) -> np.ndarray:
    """Log-odds of a right answer on test: a logistic probe (L2) of standardised columns.

    Classes weigh alike, so that yes is what is above 0.
    """
    from sklearn.linear_model import LogisticRegression

    mean, spread = train.mean(0), train.std(0)
    spread = np.where(spread > 1e-9 * np.abs(mean).clip(1e-9), spread, np.inf)
    probe = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=1000)
    probe.fit((train - mean) / spread, truth)
    return probe.decision_function((test - mean) / spread)


def auroc(scores: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> float:
    """P(a right answer's score is above a wrong one's), ties half; NaN with one class alone."""
    weights = np.ones((1, len(truth))) if weight is None else weight[None]
    return float(aurocs(scores, truth, weights)[0])


def aurocs(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same for each row of weights, ``[draw, row]``."""
    above = np.sign(scores[truth][:, None] - scores[~truth][None]) / 2 + 0.5
    yes, no = weights[:, truth], weights[:, ~truth]
    total = yes.sum(1) * no.sum(1)
    won = ((yes @ above) * no).sum(1)
    return np.divide(won, total, out=np.full(len(weights), np.nan), where=total > 0)


def balanced(scores: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean of the shares told among right and among wrong answers; yes is above 0."""
    weight = np.ones(len(truth)) if weight is None else weight
    if min(weight[truth].sum(), weight[~truth].sum()) == 0:
        return float("nan")
    told = (scores > 0) == truth
    return (
        float(
            np.average(told[truth], weights=weight[truth])
            + np.average(told[~truth], weights=weight[~truth])
        )
        / 2
    )


def group_weights(groups: Sequence[str], seed: int) -> np.ndarray:
    """How often each row is drawn where its group is, ``[draw, row]``: a bootstrap of groups."""
    names = sorted(set(groups))
    place = np.array([names.index(group) for group in groups])
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=N_DRAWS)
    return drawn[:, place].astype(float)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The middle 95 %; NaN where more than one in twenty draws gives no number."""
    array = np.asarray(values)
    if np.isnan(array).mean() > 0.05:
        return float("nan"), float("nan")
    low, high = np.nanquantile(array, [0.025, 0.975])
    return float(low), float(high)


def random_places(
    chosen: np.ndarray, width: int, n_sets: int, seed: int, level: np.ndarray | None = None
) -> list[np.ndarray]:
    """Other neurons of the same layers, as many in each; with ``level`` of like size too.

    ``level`` is a number per unit: each neuron's stand-in is drawn among the `NEAREST` others of
    its layer, and none twice.
    """
    random, taken, found = np.random.default_rng(seed), set(chosen.tolist()), []
    for _ in range(n_sets):
        some: list[int] = []
        for place in chosen:
            layer = place // width
            others = np.arange(layer * width, (layer + 1) * width)
            others = np.array([unit for unit in others if unit not in taken and unit not in some])
            if level is not None:
                distance = np.abs(level[others] - level[place])
                others = others[np.argsort(distance, kind="stable")[:NEAREST]]
            some.append(int(random.choice(others)))
        found.append(np.array(some))
    return found


@dataclass(eq=False)
class Detected:
    """The neurons of each recipe, strongest first, and what each row of the table is worth."""

    lists: dict[str, np.ndarray]
    table: pd.DataFrame
    scores: dict[str, np.ndarray]
    random: np.ndarray


def detect(
    model: Any, task: ls.Task, found: Answers, train: np.ndarray, test: np.ndarray, *,
    n_random: int, seed: int,
) -> Detected:  # fmt: skip
    """Which of several things tell right from wrong answers in groups that took no part."""
    truth = found.right
    own, contributions = found.own.answer.numpy().astype(float), found.contributions(train, seed)
    lists = paper_neurons(contributions)
    k = len(lists["H-neurons"])
    d = cett(contributions).nan_to_num().numpy()
    lists["CETT, one by one"] = np.argsort(-np.abs(d), kind="stable")[: max(k, 1)]
    example = {e.id: e for e in task}
    answered = [example[id] for id in found.ids]
    explore = [answered[row] for row in train]
    by_r = ls.rank(model, explore, truth[train].astype(float), method="pearson")
    lists["|r| before the answer"] = by_r.order(max(k, 1)).numpy()

    columns = {name: own[:, places] for name, places in lists.items() if "|r|" not in name}
    acts = read_neurons(model, answered, by_r.top(max(k, 1)).names, position="last")
    columns["|r| before the answer"] = acts.values.T.numpy()
    columns["probability of the first token"] = np.log(found.first_probability)[:, None]
    columns["mean log-probability"] = found.mean_log_probability[:, None]
    cells = sorted(set(found.cells))
    problem = np.array([[cell == other for other in cells] for cell in found.cells], dtype=float)
    length = np.array([[len(tokens)] for tokens in found.own.tokens], dtype=float)
    columns["the problem alone"] = np.hstack([problem, length])
    confidence = np.hstack(
        [columns["probability of the first token"], columns["mean log-probability"]]
    )
    columns["problem and confidence"] = np.hstack([columns["the problem alone"], confidence])
    if k:
        columns["problem, confidence and H-neurons"] = np.hstack(
            [columns["problem and confidence"], columns["H-neurons"]]
        )
    scores = {
        name: telling(values[train], truth[train], values[test])
        for name, values in columns.items()
        if values.shape[1]
    }
    drawn = random_places(lists["H-neurons"], found.own.width, n_random, seed)
    random = np.array([telling(own[train][:, p], truth[train], own[test][:, p]) for p in drawn])
    groups = [found.groups[row] for row in test]
    table = detection_rows(scores, random, truth[test], groups, seed)
    sizes = {name: values.shape[1] for name, values in columns.items()}
    table.insert(1, "columns", table["what"].map(sizes).fillna(k).astype(int))
    return Detected(lists, table, scores, random)


def paper_neurons(contributions: AnswerContributions) -> dict[str, np.ndarray]:
    """The paper's H-neurons, and all neurons of the probe on answers alone, strongest first."""
    with_others = fit_detector(contributions).coefficients.numpy()
    answers = fit_detector(contributions, others=False).coefficients.numpy()
    order = np.argsort(with_others, kind="stable")  # those of wrong answers first
    return {
        "H-neurons": order[: int((with_others < 0).sum())],
        "probe on answers alone": np.argsort(-np.abs(answers), kind="stable")[
            : int((answers != 0).sum())
        ],
    }


def detection_rows(
    scores: Mapping[str, np.ndarray], random: np.ndarray, truth: np.ndarray,
    groups: Sequence[str], seed: int,
) -> pd.DataFrame:  # fmt: skip
    """AUROC and balanced accuracy with intervals over groups, and the gain over random sets."""
    weights = group_weights(groups, seed)
    chance = np.mean([aurocs(one, truth, weights) for one in random], axis=0) if len(random) else 0
    each = [auroc(one, truth) for one in random]
    rows = []
    for name, one in scores.items():
        row: dict[str, Any] = {"what": name, "auroc": auroc(one, truth)}
        draws = aurocs(one, truth, weights)
        row["auroc_low"], row["auroc_high"] = interval(draws)
        row["balanced_accuracy"] = balanced(one, truth)
        row["ba_low"], row["ba_high"] = interval([balanced(one, truth, w) for w in weights])
        if len(random):
            row["over_random"] = row["auroc"] - float(np.mean(each))
            row["over_low"], row["over_high"] = interval(draws - chance)
            row["p"] = (1 + sum(other >= row["auroc"] for other in each)) / (1 + len(each))
        rows.append(row)
    if len(random):
        low, high = np.quantile(each, [0.025, 0.975])
        accuracy = [balanced(one, truth) for one in random]
        ba_low, ba_high = np.quantile(accuracy, [0.025, 0.975])
        rows.append(
            {"what": f"{len(random)} random sets of these layers", "auroc": float(np.mean(each)),
             "auroc_low": low, "auroc_high": high, "balanced_accuracy": float(np.mean(accuracy)),
             "ba_low": ba_low, "ba_high": ba_high}
        )  # fmt: skip
    return pd.DataFrame(rows)


# Transfer.


def kinds_of(found: Answers) -> dict[str, np.ndarray]:
    """Which answers are to problems of each operation, and of each number of digits."""
    cells = found.cells
    ops = list(dict.fromkeys(op for op, _ in cells))
    digits = sorted({n for _, n in cells})
    kinds = {NAMES.get(op, op): np.array([cell[0] == op for cell in cells]) for op in ops}
    kinds |= {f"{n} digit{'s' * (n > 1)}": np.array([c[1] == n for c in cells]) for n in digits}
    return kinds | {"all": np.ones(len(cells), dtype=bool)}


def transfer(found: Answers, train: np.ndarray, test: np.ndarray, seed: int) -> pd.DataFrame:
    """AUROC on problems of one kind of neurons found, and refitted, on problems of another."""
    own, truth, rows = found.own.answer.numpy().astype(float), found.right, []
    kinds = kinds_of(found)
    for source, among in kinds.items():
        learn = train[among[train]]
        classes = min(int(truth[learn].sum()), int((~truth[learn]).sum()))
        neurons = np.array([], dtype=int)
        if classes >= FEWEST:
            neurons = paper_neurons(found.contributions(learn, seed))["H-neurons"]
        for target, there in kinds.items():
            held = test[there[test]]
            row = {"trained_on": source, "tested_on": target, "n_train": len(learn)}
            wrong = int((~truth[held]).sum())
            row |= {"n_test": len(held), "wrong": wrong, "neurons": len(neurons)}
            row |= {"groups": len({found.groups[r] for r in held})}
            few = min(classes, wrong, len(held) - wrong) < (FEWEST if source else 0)
            row["auroc"] = row["low"] = row["high"] = float("nan")
            if not few and len(neurons):
                one = telling(own[learn][:, neurons], truth[learn], own[held][:, neurons])
                weights = group_weights([found.groups[r] for r in held], seed)
                row["auroc"] = auroc(one, truth[held])
                row["low"], row["high"] = interval(aurocs(one, truth[held], weights))
            rows.append(row)
    return pd.DataFrame(rows)


# Scaling.


def scaled(
    model: Any, examples: Sequence[ls.Example], sets: Mapping[str, list[str]],
    texts: Sequence[str], alphas: Sequence[float], keep: Any,
) -> pd.DataFrame:  # fmt: skip
    """Each set scaled by each factor at every token: per example and text, what it does.

    Args:
        model: The model.
        examples: With answers and foils.
        sets: Names of neurons.
        texts: Neutral ones.
        alphas: Factors; 1 is the model as it is, measured once.
        keep: From a name and a function to its table, which it may have kept.
    """
    adapter = as_adapter(model)
    metrics = ["correct", "logit_diff"]

    def measured() -> pd.DataFrame:
        found = evaluate(model, examples, metrics)
        rows = {"id": [e.id for e in examples], "group": [e.group for e in examples]}
        return pd.DataFrame(rows | {name: values.tolist() for name, values in found.items()})

    before: list[Tensor] = []
    parts = [keep("clean", measured).assign(set="", alpha=1.0, what="example")]
    # The ends of the range first, whole: an unfinished run has something to compare.
    outward = sorted((alpha for alpha in alphas if alpha != 1), key=lambda alpha: -abs(alpha - 1.4))
    first = [(name, alpha) for name in list(sets)[:1] for alpha in outward]
    rest = [(name, alpha) for alpha in outward for name in list(sets)[1:]]
    for name, alpha in [*first, *rest]:
        units = sets[name]

        def both(units: list[str] = units, alpha: float = alpha) -> pd.DataFrame:
            with ls.edited(model, units, ls.scale(by=alpha), position="all"):
                here = measured().assign(what="example")
                after = next_tokens(adapter, texts)
            if not before:
                before.extend(next_tokens(adapter, texts))
            damage = divergence(before, after)
            there = {"id": [str(place) for place in range(len(texts))], "damage": damage}
            return pd.concat([here, pd.DataFrame(there).assign(what="text")])

        try:
            parts.append(keep(f"{name}_{alpha:g}", both).assign(set=name, alpha=alpha))
        except NotKept:
            continue
    return pd.concat(parts, ignore_index=True)


def next_tokens(adapter: Any, texts: Sequence[str]) -> list[Tensor]:
    """Log-probabilities of the next token at every token of each text (float32)."""
    found: list[Tensor] = []
    for start in range(0, len(texts), 10):
        rows = [adapter.encode(text) for text in texts[start : start + 10]]
        tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
        at = torch.arange(tokens.shape[1]).expand(len(rows), -1)
        logits = adapter.forward(tokens, mask, readers={}, logits_at=at.to(adapter.device))
        assert logits is not None
        for row, logit in zip(rows, logits, strict=True):
            found.append(logit[-len(row) :].float().log_softmax(-1).cpu())
    return found


def divergence(clean: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """KL(clean ‖ other) of each text, the mean over its tokens, in nats."""
    pairs = zip(clean, other, strict=True)
    return [float((p.exp() * (p - q)).sum(-1).clamp(min=0).mean()) for p, q in pairs]


MEASURES = {"accuracy": "correct", "logit_diff": "logit_diff", "damage": "damage"}


def scaling_rows(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row per factor: what the set changes, per example and text, beside random sets.

    Of accuracy and logit difference: scaled minus clean, with an interval over groups; of the
    damage an interval over texts.
    """
    if not {"", "detectors"} <= set(table["set"]):
        return pd.DataFrame()
    clean = table[table["set"] == ""].set_index("id")
    weights = group_weights(clean["group"].tolist(), seed)
    random, rows = np.random.default_rng(seed), []
    for alpha in sorted(table["alpha"].unique()):
        here = table[(table["alpha"] == alpha) & (table["set"] != "")]
        others = sorted(name for name in here["set"].unique() if name != "detectors")
        if alpha != 1 and "detectors" not in set(here["set"]):
            continue
        row: dict[str, Any] = {"alpha": alpha, "random_sets": len(others)}
        for measure, column in MEASURES.items():
            kind = "text" if measure == "damage" else "example"
            row[f"clean_{measure}"] = 0.0 if kind == "text" else float(clean[column].mean())
            change = {name: np.zeros(1) for name in ("detectors", *others)}
            for name in change if alpha != 1 else ():
                one = here[(here["set"] == name) & (here["what"] == kind)].set_index("id")[column]
                change[name] = one.to_numpy(float)
                if kind == "example":
                    change[name] = (one.loc[clean.index] - clean[column]).to_numpy(float)
            mine = change.pop("detectors")
            row[measure] = float(mine.mean())
            drawn = random.integers(len(mine), size=(N_DRAWS, len(mine)))
            draws = mine[drawn].mean(1)
            if kind == "example" and alpha != 1:
                draws = weights @ mine / weights.sum(1)
            row[f"{measure}_low"], row[f"{measure}_high"] = interval(draws.tolist())
            means = [float(values.mean()) for values in change.values()]
            means = means or [0.0 if alpha == 1 else float("nan")]
            row[f"random_{measure}"] = float(np.mean(means))
            row |= {f"random_{measure}_low": min(means), f"random_{measure}_high": max(means)}
        rows.append(row)
    return pd.DataFrame(rows)
