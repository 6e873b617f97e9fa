"""`preflight`: what a task is to a model, before any neuron is looked at.

Is there a skill here to explain, and what would explain it away? Competence beside chance and
trivial rules, what the covariates alone predict, saturation and calibration.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lens_skills.activations import Metric, column_values, evaluate, parse_metrics
from lens_skills.activations.columns import MOST_CATEGORIES, reading_of
from lens_skills.cards import card_lines
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, as_adapter
from lens_skills.models.precision import faster_here, in_precision, rounding_note
from lens_skills.results import Result
from lens_skills.stats.calibration import Calibration, calibrate
from lens_skills.stats.effect_tests import FEWEST_GROUPS, effective_groups
from lens_skills.stats.intervals import chance_max_r, share_interval


@dataclass(frozen=True)
class Competence:
    """One way to ask whether the model can do the task, against what needs no skill.

    Attributes:
        name: What counts as a success.
        rate: Share of successes, 0 to 1.
        low, high: Its exact 95 % interval over groups; None with fewer than `FEWEST_GROUPS` groups.
        chance: What guessing or the best trivial rule reaches.
        rule: Which rule that is.
    """

    name: str
    rate: float
    low: float | None
    high: float | None
    chance: float
    rule: str

    @property
    def above_chance(self) -> bool | None:
        """Whether the whole interval lies above what needs no skill; None without an interval."""
        return None if self.low is None else self.low > self.chance


@dataclass(frozen=True, eq=False)
class Preflight(Result):
    """What a task is to a model, before any neuron is looked at.

    Attributes:
        task, model: Their names.
        n_examples, n_groups: Sizes.
        effective_groups: How many groups of one size say as much, G* = (Σ n_g)² / Σ n_g².
        competences: Ways to succeed, the whole written answer first.
        baselines: What trivial rules would score as whole answers.
        copying: Accuracy where the answer stands in the prompt, and elsewhere (None where one of
            them has no examples).
        predicted: For each metric, how well the covariates alone predict it on held-out groups:
            AUROC for 0/1 metrics (0.5 is nothing), R² for others (0 is nothing or worse). Empty
            with fewer than `FEWEST_GROUPS` groups.
        saturated: For each probability, the share of examples above 0.99 or below 0.0001.
        constant: Metrics that take one value only.
        binary: The metrics that are 0 or 1 in every example.
        outcomes: What can say how well the model does, best first, and what speaks against each
            ("" where nothing does).
        chance_r: About the largest |r| that chance reaches among all MLP neurons at this size.
        chance_r_groups: The same of a metric that is constant in each group, at G* groups.
        calibration: Confidence in the first token against its being right.
        readings: How each label of a few whole numbers was read, as classes or as one number, and
            how to say otherwise.
        precision: What the pass was computed in; None: the model's own precision.
        faster: What of this machine would score this model faster in bfloat16; "" for nothing.
        advice: What to do with all that, a sentence each.
    """

    task: str
    model: str
    n_examples: int
    n_groups: int
    effective_groups: float
    competences: tuple[Competence, ...]
    baselines: dict[str, float]
    copying: dict[str, float | None]
    predicted: dict[str, float]
    saturated: dict[str, float]
    constant: tuple[str, ...]
    binary: tuple[str, ...]
    outcomes: dict[str, str]
    chance_r: float
    chance_r_groups: float
    calibration: Calibration | None
    readings: tuple[str, ...] = ()
    precision: str | None = None
    faster: str = ""

    @property
    def skill(self) -> bool | None:
        """Whether any competence lies above chance; None without answers, or with few groups."""
        known = [c.above_chance for c in self.competences if c.above_chance is not None]
        return any(known) if known else None

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do with what was found, a sentence each; never empty."""
        return tuple(_advice(self))

    def frame(self) -> pd.DataFrame:
        """One row per competence: name rate low high chance rule above_chance."""
        rows = [asdict(c) | {"above_chance": c.above_chance} for c in self.competences]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        few = self.n_groups < FEWEST_GROUPS
        head = f"{self.task} on {self.model}: {self.n_examples:,} examples, {self.n_groups:,} group"
        head += "s" * (self.n_groups != 1)
        if self.effective_groups < 0.95 * self.n_groups:
            head += f", which say as much as {self.effective_groups:.1f} of one size"
        lines = card_lines(head)
        for c in self.competences:
            text = f"{c.name:<18} {c.rate:4.0%} "
            if c.low is not None:
                text += f"[{c.low:.0%}, {c.high:.0%}] "
            text += f"chance {c.chance:.0%} ({c.rule})"
            if c.above_chance is not None:
                text += f": {'above' if c.above_chance else 'not above'} chance"
            lines += card_lines(text, indent=2, hang=19)
        if self.competences and not few:
            lines += card_lines("in brackets: exact 95 % intervals over groups", indent=2)
        if few:
            lines += card_lines(
                f"{self.n_groups} of the {FEWEST_GROUPS} groups that an interval takes: the shares "
                "are those of these examples and say nothing about others",
                indent=2,
            )
        if self.skill is False:
            lines.append("  no skill to explain: correct answers here are no better than a guess")
        inside, outside = self.copying.get("inside"), self.copying.get("outside")
        if inside is not None and outside is not None:
            told = (
                f"correct where the answer stands in the prompt {inside:.0%}, elsewhere "
                f"{outside:.0%}" + (": mostly copying" if inside > 3 * outside else "")
            )
            lines += card_lines(told, indent=2)
        for name, quality in self.predicted.items():
            measure = "AUROC" if name in self.binary else "R²"
            lines += card_lines(
                f"other columns alone predict {name}: {measure} {quality:.2f}", indent=2
            )
        for name, share in self.saturated.items():
            if share > _SATURATED:
                lines += card_lines(f"{name} is saturated in {share:.0%} of the examples", indent=2)
        for sentence in self.readings:
            lines += card_lines(sentence, indent=2)
        for name in self.constant:
            lines += card_lines(
                f"{name} takes one value only: nothing can correlate with it", indent=2
            )
        if self.calibration is not None:
            lines += card_lines(
                f"calibration error of the first-token confidence {self.calibration.error:.2f}",
                indent=2,
            )
        if self.precision:
            lines += card_lines(rounding_note(self.precision), indent=2)
        chance = f"chance alone reaches |r| ≈ {self.chance_r:.2f} among all MLP neurons"
        if self.n_groups < self.n_examples:
            reach = self.chance_r_groups
            bar = f"|r| ≈ {reach:.2f}" if reach < 0.95 else "any |r|"
            chance += f"; for a metric that is constant in each group {bar}"
        lines += card_lines(chance, indent=2)
        for place, sentence in enumerate(self.advice):
            lines += card_lines(f"{'and' if place else 'so'}: {sentence}")
        return "\n".join(lines)


def _advice(found: Preflight) -> list[str]:
    """The sentences of `Preflight.advice`: groups, then skill, the metric, the other columns."""
    said = []
    if found.n_groups < FEWEST_GROUPS:
        said.append(
            f"give more groups before all else, {FEWEST_GROUPS} at least: no p, interval or "
            f"verdict can be had from {found.n_groups}"
        )
    elif found.effective_groups < FEWEST_GROUPS:
        said.append(
            f"even the groups out: a few large ones leave {found.effective_groups:.1f} of the "
            f"{FEWEST_GROUPS} that a p or an interval takes"
        )
    if found.skill is False:
        said.append(
            "take an easier task, a larger model, or show it examples in the prompt: what neurons "
            "correlate with here is no skill"
        )
    if not found.competences:
        said.append(
            "score labels, or the model's confidence: without answers nothing says whether the "
            "model can do the task"
        )
    else:
        said += _outcome_advice(found.outcomes)
    told = [
        name for name, quality in found.predicted.items() if quality > _TOLD[name in found.binary]
    ]
    if told:
        more = f" and {len(told) - 2} more" if len(told) > 2 else ""
        said.append(
            f"score {', '.join(told[:2])}{more} with given=[…]: other columns alone predict "
            f"{'it' if len(told) == 1 else 'them'}, and a neuron may carry those instead"
        )
    said = said or ["go on: nothing here speaks against scoring it"]
    if found.faster:
        said.append(
            f"score with precision='bfloat16' if it takes long: {found.faster} multiply it faster "
            "than float32"
        )
    return said


def _outcome_advice(outcomes: Mapping[str, str]) -> list[str]:
    """Which outcome to measure, and which not, because of what."""
    good = [name for name, against in outcomes.items() if not against]
    bad = [(name, against) for name, against in outcomes.items() if against]
    because = "; ".join(f"{name} {against}" for name, against in bad)
    if not good:
        give = "" if "logit_diff" in outcomes else ", so that logit_diff can be measured"
        return [
            f"give {'other examples' if not give else f'every example a foil{give}'}: {because}"
        ]
    if bad:
        names = " or ".join(name for name, _ in bad)
        return [f"use {good[0]}, not {names}, because {because}"]
    return [f"use {good[0]} for how well the model does"]


# Beyond these a probability says little more than "yes" or "no", and its differences are noise.
_SATURATED_HIGH, _SATURATED_LOW = 0.99, 1e-4
_SATURATED = 0.2  # share of the examples from which on a probability is called saturated
_OTHER_PROMPTS = 100  # examples that are asked with another group's prompt
_RARE = 0.1  # share of right or of wrong answers below which a 0/1 outcome has too few of them
# How well other columns must predict a metric (R², and AUROC where it is 0/1) to be warned of.
_TOLD = {False: 0.25, True: 0.75}


def preflight(
    model: Any,
    task: Sequence[Example],
    *,
    metrics: Any = None,
    chat: Chat = False,
    precision: str | None = None,
) -> Preflight:
    """The preflight of a task on a model: competence, trivial rules, covariates, saturation.

    One pass without activations. Competence is asked in every way the task allows: the whole
    answer written greedily (against the most frequent answer and against copying a column of the
    task), the answer against its foil (against 1/2), the best of the options (against 1/k). Where
    the model prefers answers to foils, or to other options, even after the prompts of other groups
    (asked of at most 100 examples), that share is what a skill has to beat.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: A `Task` (``task.preflight(model)`` is the same).
        metrics: What is to be scored later; default the labels and the model's usual metrics.
        chat: Read prompts in the tokenizer's chat template; a text: with this system prompt.
        precision: As in `score`.

    Returns:
        `Preflight`; printing it says *no skill to explain* where no competence is above chance,
        and ends with what to do ("so: use logit_diff, not correct, because …").

    Source: exact shares with an effective sample size, Korn & Graubard 1998; G*, Carter, Schnepel
    & Steigerwald 2017.
    """
    adapter = in_precision(as_adapter(model), precision)
    wanted = list(_default_metrics(task)) if metrics is None else list(parse_metrics(metrics, task))
    names = {metric.name for metric in wanted}
    helpers = [metric for metric in _competence_metrics(task) if metric.name not in names]
    found = evaluate(adapter, task, [*wanted, *helpers], chat=chat)
    values = {name: numbers.numpy() for name, numbers in found.items()}
    baselines = _baselines(task)
    constant = tuple(m.name for m in wanted if np.ptp(values[m.name]) == 0)
    varying = [m for m in wanted if m.name not in constant]
    probabilities = [n for n in ("confidence", "answer_probability") if n in values]
    groups = [example.group for example in task]
    n_groups, equal_groups = len(set(groups)), effective_groups(groups)
    # Without neurons, what would be scored in their stead.
    n_units = sum(adapter.mlp_widths) or adapter.n_layers * adapter.d_model
    saturated = {
        name: float(((values[name] > _SATURATED_HIGH) | (values[name] < _SATURATED_LOW)).mean())
        for name in probabilities
    }
    return Preflight(
        task=getattr(task, "name", "examples"),
        model=adapter.name,
        n_examples=len(task),
        n_groups=n_groups,
        effective_groups=equal_groups,
        competences=tuple(
            _competences(task, values, baselines, _without_the_question(adapter, task, chat))
        ),
        baselines=baselines,
        copying=_copying(task, values.get("correct")),
        predicted={m.name: p for m in varying if (p := _predicted(task, m, values)) is not None}
        if n_groups >= FEWEST_GROUPS
        else {},
        saturated=saturated,
        constant=constant,
        binary=tuple(m.name for m in wanted if np.isin(values[m.name], (0, 1)).all()),
        outcomes=_outcomes(task, values, saturated),
        chance_r=chance_max_r(n_units, len(task)),
        chance_r_groups=chance_max_r(n_units, max(1, round(equal_groups))),
        calibration=_calibration(values),
        readings=tuple(_readings(task)),
        precision=adapter.precision,
        faster=faster_here(adapter),
    )


def _readings(task: Sequence[Example]) -> Iterator[str]:
    """A sentence for each label of three to twelve whole numbers."""
    for name in dict.fromkeys(name for example in task for name in example.labels):
        values = {example.labels.get(name) for example in task} - {None}
        if 2 < len(values) <= MOST_CATEGORIES and all(type(value) is int for value in values):
            classes = reading_of(task, name, "labels")[1]
            yield (
                f"label:{name} is read as {len(values)} classes, a metric each (one quantity: "
                f"label:{name}:number)"
                if classes
                else f"label:{name} is read as a number (classes: label:{name}:classes)"
            )


def _default_metrics(task: Sequence[Example]) -> Sequence[Metric]:
    labels = sorted({name for example in task for name in example.labels})
    names = []
    for name in labels:
        kinds = {example.labels.get(name) for example in task}
        if None not in kinds and (len(kinds) <= 2 or not any(isinstance(k, str) for k in kinds)):
            names.append(f"label:{name}")
    names.append("confidence")
    if _has(task, "answer"):
        names.append("correct")
    return parse_metrics(names, task)


def _competence_metrics(task: Sequence[Example]) -> Sequence[Metric]:
    names = ["confidence"]
    if _has(task, "answer"):
        names += ["correct", "first_token_correct", "answer_probability"]
        if _has(task, "foil") or all(len(example.options) > 1 for example in task):
            names.append("logit_diff")
    return parse_metrics(names)


def _has(task: Sequence[Example], part: str) -> bool:
    return all(getattr(example, part) is not None for example in task)


def _baselines(task: Sequence[Example]) -> dict[str, float]:
    """Share of whole answers that trivial rules would get right."""
    if not _has(task, "answer"):
        return {}
    answers = [(example.answer or "").strip() for example in task]
    found = {"always the most frequent answer": Counter(answers).most_common(1)[0][1] / len(task)}
    columns = sorted({name for example in task for name in example.covariates})
    for name in columns:
        copies = [str(e.column(name)) == a for e, a in zip(task, answers, strict=True)]
        # A rule has to read its column off the prompt; a column that always holds the answer is
        # no rule but the task itself (who the indirect object is).
        in_prompt = all(str(example.column(name)) in example.prompt for example in task)
        if in_prompt and any(copies) and not all(copies):
            found[f"copying {name}"] = float(np.mean(copies))
    return found


def _without_the_question(adapter: Any, task: Sequence[Example], chat: Chat) -> float | None:
    """How often an answer beats its foil, or the other options, after another group's prompt.

    None where that is nothing beyond a coin or a guess, or cannot be asked.
    """
    groups = sorted({example.group for example in task})
    pairs = _has(task, "answer") and _has(task, "foil")
    options = _has(task, "answer") and all(len(example.options) > 1 for example in task)
    if not (pairs or options) or len(groups) < FEWEST_GROUPS:
        return None
    draw = random.Random(0)
    some = draw.sample(list(task), min(len(task), _OTHER_PROMPTS))
    swapped = []
    for one in some:
        other = draw.choice([example for example in task if example.group != one.group])
        swapped.append(replace(one, prompt=other.prompt))
    try:
        margin = evaluate(adapter, swapped, parse_metrics(["logit_diff"]), chat=chat)["logit_diff"]
    except LensSkillsError:  # an answer that another prompt's end would join
        return None
    wins = (margin > 0).double()
    chance = 0.5 if pairs else float(np.mean([1 / len(example.options) for example in some]))
    low, _ = share_interval(wins, [example.group for example in some])
    return float(wins.mean()) if low > chance else None


def _competences(
    task: Sequence[Example],
    values: dict[str, np.ndarray],
    baselines: dict[str, float],
    anyway: float | None,
) -> list[Competence]:
    found = []
    if "correct" in values and baselines:
        rule = max(baselines, key=lambda name: baselines[name])
        found.append(_competence(task, "whole answer", values["correct"], baselines[rule], rule))
    if "logit_diff" in values:
        wins = (values["logit_diff"] > 0).astype(float)
        if _has(task, "foil"):
            name, chance, rule = "answer over foil", 0.5, "a coin"
        else:
            name, rule = "best of the options", "a guess"
            chance = float(np.mean([1 / len(example.options) for example in task]))
        if anyway is not None:
            chance, rule = anyway, "the same after other prompts"
        found.append(_competence(task, name, wins, chance, rule))
    return found


def _competence(
    task: Sequence[Example], name: str, successes: np.ndarray, chance: float, rule: str
) -> Competence:
    rate, groups = float(successes.mean()), [example.group for example in task]
    if len(set(groups)) < FEWEST_GROUPS:
        return Competence(name, rate, None, None, chance, rule)
    low, high = share_interval(torch.from_numpy(successes.astype(float)), groups)
    return Competence(name, rate, float(low), float(high), chance, rule)


def _outcomes(
    task: Sequence[Example], values: dict[str, np.ndarray], saturated: Mapping[str, float]
) -> dict[str, str]:
    """What can say how well the model does, best first, and what speaks against each.

    A difference of logits goes before a probability, which ends at 0 and 1, and that before a 0/1
    outcome, which does not say by how much.
    """
    if not _has(task, "answer"):
        return {}
    found = {}
    for name in ("logit_diff", "answer_probability", "correct"):
        if name not in values:
            continue
        mean = float(values[name].mean())
        found[name] = ""
        if np.ptp(values[name]) == 0:
            found[name] = "takes one value only"
        elif saturated.get(name, 0.0) > _SATURATED:
            found[name] = f"is saturated in {saturated[name]:.0%} of the examples"
        elif name == "correct" and not _RARE <= mean <= 1 - _RARE:
            found[name] = f"is {int(mean > 0.5)} in {max(mean, 1 - mean):.0%} of the examples"
        elif name == "correct":
            found[name] = "is 0 or 1 and does not say by how much"
    # Where nothing finer can be had, a 0/1 outcome of both kinds serves.
    others = [name for name, against in found.items() if name != "correct" and not against]
    if not others and found.get("correct", "").startswith("is 0 or 1"):
        found["correct"] = ""
    return found


def _copying(task: Sequence[Example], correct: np.ndarray | None) -> dict[str, float | None]:
    if correct is None:
        return {}
    inside = np.array([_stands_in_prompt(example) for example in task])
    return {
        "inside": float(correct[inside].mean()) if inside.any() else None,
        "outside": float(correct[~inside].mean()) if (~inside).any() else None,
    }


def _stands_in_prompt(example: Example) -> bool:
    words = "".join(c if c.isalnum() or c == "-" else " " for c in example.prompt).split()
    return (example.answer or "").strip() in words


def _predicted(
    task: Sequence[Example], metric: Metric, values: dict[str, np.ndarray]
) -> float | None:
    """Cross-validated prediction of a metric from the covariates, groups kept together."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import r2_score, roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    design, target = _design(task, metric.name), values[metric.name]
    groups = [example.group for example in task]
    n_folds = min(5, len(set(groups)))
    if design is None or n_folds < 2:
        return None
    binary = set(np.unique(target)) <= {0.0, 1.0}
    folds = list(GroupKFold(n_folds).split(design, target, groups))
    if binary and any(len(np.unique(target[train])) < 2 for train, _ in folds):
        return None
    model = LogisticRegression(max_iter=2000) if binary else RidgeCV(np.logspace(-2, 4, 13))
    pipeline = make_pipeline(StandardScaler(), model)
    method = "predict_proba" if binary else "predict"
    guess = np.asarray(cross_val_predict(pipeline, design, target, cv=folds, method=method))
    if binary:
        return float(roc_auc_score(target, guess[:, 1]))
    return max(0.0, float(r2_score(target, guess)))


def _design(task: Sequence[Example], metric_name: str) -> np.ndarray | None:
    """Every other column of the task, categories one-hot; those of many categories left out."""
    own = metric_name.partition(":")[2]
    # Neither the column itself nor, for one of its categories, the column it is taken from.
    own_columns = {own, own.rpartition("=")[0]}
    names = sorted({name for e in task for name in (*e.labels, *e.covariates)} - own_columns)
    columns = []
    for name in names:
        raw = [example.column(name) for example in task]
        if any(value is None for value in raw):
            continue
        if any(isinstance(value, str) for value in raw):
            categories = Counter(str(value) for value in raw)
            if len(categories) > 30:
                continue
            columns += [np.array([str(v) == c for v in raw], dtype=float) for c in categories]
        else:
            columns.append(column_values(task, name).numpy())
    columns = [column for column in columns if np.ptp(column) > 0]
    return np.stack(columns, axis=1) if columns else None


def _calibration(values: dict[str, np.ndarray]) -> Calibration | None:
    if "confidence" not in values or "first_token_correct" not in values:
        return None
    right = torch.from_numpy(values["first_token_correct"] > 0.5)
    return calibrate(torch.from_numpy(values["confidence"]), right)


def require_examples(task: Sequence[Example], n: int) -> None:
    """Refuses a task too small to be split and scored."""
    if len(task) < n:
        raise LensSkillsError(
            f"{len(task)} examples are too few: splitting, scoring and confirming need {n} at "
            "least, and some hundreds to find anything."
        )
