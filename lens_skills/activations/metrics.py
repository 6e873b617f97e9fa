"""Metrics, one number per example: correctness, the model's confidence, columns of the task.

`parse_metrics` reads them as a user writes them: names, functions, numbers, and lists and dicts of
those. A column of numbers stays as it is; categories become one 0/1 metric each.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_skills.activations.columns import (
    MOST_CATEGORIES,
    categories_of,
    column_values,
    ordered_name,
    reading_of,
)
from lens_skills.data import Example, cells_of
from lens_skills.errors import LensSkillsError, did_you_mean

# What is public as `ls.metrics`.
__all__ = [
    "Metric",
    "confidence",
    "correct",
    "covariate",
    "first_token_correct",
    "label",
    "logit_diff",
    "model_answer",
]


@dataclass(frozen=True)
class Continuation:
    """How the model takes one given continuation of each prompt.

    Attributes:
        log_probability: Joint log-probability of its tokens (nats).
        greedy: Whether every token of it is the model's first choice.
        stops: Whether the model's first choice after it does not extend it: the next token begins
            with neither a letter nor a digit (``12`` extends ``1``; a space or a line end do not).
            None where no metric asked.
    """

    log_probability: Float[Tensor, " batch"]
    greedy: Bool[Tensor, " batch"]
    stops: Bool[Tensor, " batch"] | None


@dataclass(frozen=True)
class Readout:
    """The model's output for one batch, as far as the metrics of a pass need it.

    Attributes:
        logits: At the last prompt token, where the first answer token is predicted; None where no
            metric of the pass reads the whole vocabulary.
        answer: The answer as a whole, or None where no metric reads it.
        foil: The foil likewise.
        options: One `Continuation` per example over its own options, or None.
    """

    logits: Float[Tensor, "batch d_vocab"] | None
    answer: Continuation | None = None
    foil: Continuation | None = None
    options: tuple[Continuation, ...] | None = None

    @cached_property
    def log_probabilities(self) -> Float[Tensor, "batch d_vocab"]:
        """Of the first answer token (float64): computed once for all metrics that read it."""
        return _need(self.logits).double().log_softmax(-1)


def answer_tokens(example: Any) -> tuple[int, ...]:
    """The example's answer in tokens; raises where it has none."""
    if example.answer_tokens is None:
        raise LensSkillsError(f"example {example.id!r} has no answer, but the metric needs one.")
    return example.answer_tokens


def single_token_readout(
    logits: Float[Tensor, "batch d_vocab"],
    examples: Sequence[Any],
    name: str,
    reads: frozenset[str],
) -> Readout:
    """A readout made of first-token logits alone, for a metric called ``name``.

    Raises:
        LensSkillsError: The metric reads more than one position (an answer of several tokens, the
            stop after it), or an example lacks what it reads.
    """
    shares = logits.double().log_softmax(-1).cpu()

    def of(tokens: Sequence[tuple[int, ...] | None]) -> Continuation | None:
        if any(part is None for part in tokens):
            return None
        if any(len(part) != 1 for part in tokens if part is not None) or "stop" in reads:
            raise LensSkillsError(
                f"{name} needs more than the logits of one position here (answers of "
                "several tokens, or the stop after them). Use lens_skills.activations.evaluate."
            )
        first = torch.tensor([part[0] for part in tokens if part is not None])
        return Continuation(
            shares[torch.arange(len(first)), first], shares.argmax(-1) == first, None
        )

    needs_sequences = reads - {"logits", "user"}
    if not needs_sequences:
        return Readout(logits)
    if "answer" in reads:
        for example in examples:
            answer_tokens(example)
    options = None
    if "options" in reads or "contrast" in reads:
        rows = [
            Continuation(
                row[torch.tensor([tokens[0] for tokens in example.option_tokens])],
                torch.zeros(len(example.option_tokens), dtype=torch.bool),
                None,
            )
            for row, example in zip(shares, examples, strict=True)
            if example.option_tokens
        ]
        options = tuple(rows) if len(rows) == len(examples) else None
    foil = of([example.foil_tokens for example in examples])
    if options is None and ("options" in reads or ("contrast" in reads and not foil)):
        raise LensSkillsError(f"{name} needs a foil or options, which an example lacks.")
    return Readout(
        logits,
        answer=of([example.answer_tokens for example in examples]),
        foil=foil,
        options=options,
    )


@dataclass(frozen=True)
class Metric:
    """A named number per example, and what must be known to compute it.

    Attributes:
        name: How results call it.
        of: From a batch's `Readout` and its examples to ``float[batch]``.
        reads: The parts of the readout it needs; empty for a column of the task.
        unit: What its numbers are measured in.
        is_log_odds: Whether it is the log-odds of the answer against the foil, or against the best
            other option: for single tokens, two columns of the unembedding then give it.
        held: Its number for some examples, by id, where the same model gave it before; where a
            metric alone is wanted of all of these, the model is not asked again.
    """

    name: str
    of: Callable[[Readout, Sequence[Any]], Tensor]
    reads: frozenset[str]
    unit: str = ""
    is_log_odds: bool = False
    held: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def known(self) -> bool:
        """Whether the metric is known before the model runs."""
        return not self.reads

    def __call__(
        self, logits: Float[Tensor, "batch d_vocab"], examples: Sequence[Any]
    ) -> Float[Tensor, " batch"]:
        """The metric of logits at the first answer token, for use outside a pass.

        Answers of several tokens need the whole readout and are refused here.
        """
        return self.of(single_token_readout(logits, examples, self.name, self.reads), examples)


def logit_diff() -> Metric:
    """Log-odds of the answer against the foil, in nats: the default causal metric.

    Log-probability of the answer minus that of the foil. For answers of one token this is exactly
    the difference of their logits, because the softmax's normaliser cancels; for several tokens
    the joint log-probabilities are compared. Without a foil, the best other option takes its
    place.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 2, for single tokens.
    """

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        answer = _need(readout.answer).log_probability
        # Read off the readout, not off this batch: the whole pass follows one rule.
        if readout.foil is not None:
            return answer - readout.foil.log_probability
        best = [
            max(
                p
                for option, p in zip(example.options, row.log_probability.tolist(), strict=True)
                if option != example.answer
            )
            for example, row in zip(examples, _need(readout.options), strict=True)
        ]
        return answer - torch.tensor(best, dtype=torch.float64)

    reads = frozenset({"answer", "contrast"})
    return Metric("logit_diff", compute, reads, "nats", is_log_odds=True)


def correct() -> Metric:
    """1 where the model, decoding greedily, writes the whole answer and then stops, else 0.

    Every answer token must be the first choice, and the first choice after the answer must not
    extend it (``12`` is no correct ``1``).
    """

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        answer = _need(readout.answer)
        return (answer.greedy & _need(answer.stops)).double()

    return Metric("correct", compute, frozenset({"answer", "stop"}), "0/1")


def first_token_correct() -> Metric:
    """1 where the first answer token is the model's first choice, else 0.

    Does not show that the answer is right: with SmolLM2 every answer that begins with a space
    and a digit shares its first token.
    """

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        first = torch.tensor([answer_tokens(example)[0] for example in examples])
        return (_need(readout.logits).argmax(-1).cpu() == first).double()

    return Metric("first_token_correct", compute, frozenset({"logits", "tokens"}), "0/1")


_Kind = Literal["top", "answer", "margin", "entropy"]
_Over = Literal["vocabulary", "options"]


def confidence(kind: _Kind = "top", *, over: _Over = "vocabulary") -> Metric:
    """The model's confidence, read where the answer begins.

    Args:
        kind: ``"top"``: probability of the first choice (0 to 1). ``"answer"``: joint probability
            of the right answer (0 to 1). ``"margin"``: log-probability of the first choice minus
            that of the second (nats, >= 0). ``"entropy"``: -Σ p ln p (nats; *low* means sure).
        over: All tokens, or the example's answer options only: their joint probabilities,
            renormalised to sum to 1.

    Source: Zhao et al. 2025 (arXiv 2511.21610) name the model's confidence; the forms are ours.

    >>> confidence("entropy", over="options").name
    'entropy:options'
    """
    names = {"top": "confidence", "answer": "answer_probability"}
    if kind not in get_args(_Kind):
        raise LensSkillsError(
            f"no confidence of kind {kind!r}. Choose 'top', 'answer', 'margin' or 'entropy'."
        )
    if over not in get_args(_Over):
        raise LensSkillsError(f"confidence over {over!r}? Choose 'vocabulary' or 'options'.")
    name = names.get(kind, kind)
    unit = "nats" if kind in ("margin", "entropy") else "probability"
    if over == "options":
        reads = {"logits", "options", *(("tokens",) if kind == "answer" else ())}
        return Metric(f"{name}:options", _over_options(kind), frozenset(reads), unit)

    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        if kind == "answer":
            return _need(readout.answer).log_probability.exp()
        return _spread(readout.log_probabilities, kind).cpu()

    return Metric(name, compute, frozenset({"answer" if kind == "answer" else "logits"}), unit)


def _over_options(kind: str) -> Callable[[Readout, Sequence[Any]], Tensor]:
    def compute(readout: Readout, examples: Sequence[Any]) -> Tensor:
        numbers = []
        for example, row in zip(examples, _need(readout.options), strict=True):
            shares = row.log_probability.log_softmax(-1)
            if kind == "answer":
                numbers.append(shares[example.options.index(example.answer)].exp())
            else:
                numbers.append(_spread(shares[None], kind)[0])
        return torch.stack(numbers)

    return compute


def _spread(log_probabilities: Float[Tensor, "batch choice"], kind: str) -> Float[Tensor, " batch"]:
    if kind == "entropy":
        return -(log_probabilities.exp() * log_probabilities.clamp(min=-1e4)).sum(-1)
    best = log_probabilities.topk(2, dim=-1).values
    return best[:, 0].exp() if kind == "top" else best[:, 0] - best[:, 1]


def _need(part: Any) -> Any:
    assert part is not None, "the readout lacks a part this metric reads"
    return part


@dataclass(frozen=True)
class Column(Metric):
    """A metric that is a column of the task.

    Attributes:
        column: Its name.
        kind: ``labels`` or ``covariates``.
    """

    column: str = ""
    kind: str = "labels"

    def by_category(self, examples: Sequence[Any]) -> tuple[Metric, ...]:
        """The column itself, or one 0/1 metric per category where there are three or more.

        What is a category, `columns.reading_of` says.

        Raises:
            LensSkillsError: More categories than `MOST_CATEGORIES`.
        """
        # A missing value is left to the reading of the column, which names the example.
        column, classes = reading_of(examples, self.column, self.kind)
        if not classes:
            return (self,)
        called = self.name.removesuffix(":classes")
        categories = categories_of(cells_of(examples, column, self.kind))
        if len(categories) > MOST_CATEGORIES:
            raise LensSkillsError(
                f"{column!r} has {len(categories)} categories ({', '.join(categories[:3])}, "
                f"…), more than {MOST_CATEGORIES}, to be one metric each. Name those you want, "
                f"each against the rest: '{self.kind[:-1]}:{column}={categories[0]}'; or, "
                f"where they have an order, all: '{self.kind[:-1]}:{column}:ordered=[…]'; or "
                "give the examples a column of fewer."
            )
        return tuple(
            replace(
                column_metric(f"{column}={category}", self.kind),
                name=f"{called}={category}",
            )
            for category in categories
        )


def label(name: str, *, ordered: Sequence[Any] | None = None, number: bool | None = None) -> Metric:
    """A label of the task as a metric, or one of its categories against the rest.

    Two categories are 0 and 1 (in sorted order). A label of three to twelve categories, texts or
    class ids (whole numbers from -1, 0 or 1 to 12 at most), becomes one 0/1 metric each where it
    is asked for (``score``, ``evaluate``, …), called ``label:rule=a``, ``label:rule=b`` and so on;
    ``label("rule=a")`` is one of them alone. Other numbers stay as they are. What looks like class
    ids and is a quantity (stars, a count) is said to be one: ``label("stars", number=True)``, as
    text ``"label:stars:number"``; numbers that are classes: ``number=False``,
    ``"label:year:classes"``. The preflight says how a label of numbers was read.

    Categories that have an order stay one metric, 0, 1, 2 and so on: name them from the lowest, as
    ``ordered`` or as text, ``"label:level:ordered=[low, middle, high]"``. That finds a neuron that
    rises with the level, which no category alone is; the steps count as equally large.

    Args:
        name: The label, or ``"label=category"``.
        ordered: All its categories, from the lowest.
        number: Whether a column of numbers is one metric; None goes by its values.

    Raises:
        LensSkillsError: An order of fewer than two categories, or with one named twice. Examples of
            a category that it leaves out are named when they are read.

    >>> label("plural").name
    'label:plural'
    >>> label("level", ordered=["low", "high"]).name
    'label:level:ordered=[low, high]'
    """
    return column_metric(_read_as(name, ordered, number), "labels")


def covariate(
    name: str, *, ordered: Sequence[Any] | None = None, number: bool | None = None
) -> Metric:
    """A covariate of the task, read like a `label`, but that its numbers are never class ids."""
    return column_metric(_read_as(name, ordered, number), "covariates")


def _read_as(name: str, ordered: Sequence[Any] | None, number: bool | None) -> str:
    if ordered is not None:
        return ordered_name(name, ordered)
    return name if number is None else f"{name}:{'number' if number else 'classes'}"


def model_answer(
    label: Float[Tensor, " row"] | Sequence[float], right: Bool[Tensor, " row"] | Sequence[bool]
) -> Float[Tensor, " row"]:
    """What a model answered between two classes: the label where it was right, else the other.

    Args:
        label: 0 or 1.
        right: Whether it chose the label's answer, for instance ``logit_diff > 0``.

    Raises:
        LensSkillsError: A label that is not 0 or 1, or another number of answers.

    >>> model_answer([0.0, 0.0, 1.0], [True, False, False]).tolist()
    [0.0, 1.0, 0.0]
    """
    truth = torch.as_tensor(label, dtype=torch.float64)
    hit = torch.as_tensor(right, dtype=torch.bool)
    if truth.shape != hit.shape or not bool(((truth == 0) | (truth == 1)).all()):
        raise LensSkillsError(
            "model_answer takes a label of 0 or 1 and whether the model was right, one per "
            f"example: got {len(truth)} labels from {float(truth.min()):g} to "
            f"{float(truth.max()):g} and {len(hit)} answers."
        )
    return torch.where(hit, truth, 1 - truth)


def column_metric(name: str, kind: str) -> Column:
    """A column of the labels or of the covariates."""

    def compute(readout: Readout | None, examples: Sequence[Any]) -> Tensor:
        return column_values(examples, name, kind)

    return Column(f"{kind[:-1]}:{name}", compute, frozenset(), "column", column=name, kind=kind)


UserFunction = Callable[[Tensor, Sequence[Any]], Tensor]

_NAMED: dict[str, Callable[[], Metric]] = {
    "logit_diff": logit_diff,
    "correct": correct,
    "first_token_correct": first_token_correct,
    **{
        confidence(kind, over=over).name: partial(confidence, kind, over=over)
        for over in get_args(_Over)
        for kind in get_args(_Kind)
    },
}


def parse_metrics(metrics: Any, examples: Sequence[Any] = ()) -> tuple[Metric, ...]:
    """Metrics as the user may write them: a name, a `Metric`, a function, a list or a dict of them.

    In a dict the keys become the names. A sequence of numbers, one per example, is a metric too.

    Args:
        metrics: See above.
        examples: What they are asked of: a column that has three categories or more there becomes
            one 0/1 metric per category, ``label:rule=a`` and so on.

    >>> [metric.name for metric in parse_metrics(["correct", "label:plural"])]
    ['correct', 'label:plural']

    Raises:
        LensSkillsError: An unknown name (with all known ones), two metrics of one name, or more
            categories than can be told apart.
    """
    if isinstance(metrics, Mapping):
        found = [
            replace(_parse_metric(value, examples), name=str(key)) for key, value in metrics.items()
        ]
    elif isinstance(metrics, str | Metric | np.ndarray | Tensor) or callable(metrics):
        found = [_parse_metric(metrics, examples)]
    elif isinstance(metrics, Sequence | Set):
        found = [_parse_metric(metric, examples) for metric in metrics]
    else:
        raise LensSkillsError(
            f"metrics={metrics!r:.60} are no metrics: give names, metrics, a function, numbers "
            "(one per example), a list of these, or a dict that names them."
        )
    found = [
        part
        for metric in found
        for part in (metric.by_category(examples) if isinstance(metric, Column) else (metric,))
    ]
    names = [metric.name for metric in found]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise LensSkillsError(
            f"two metrics are called {double[0]!r}. Name them apart with a dict: "
            "metrics={'mine': …, 'other': …}."
        )
    return tuple(found)


def parse_metric(metric: Any, examples: Sequence[Any], *, asked: str) -> Metric:
    """The one metric that is wanted, read as `parse_metrics` does; ``asked`` is the call.

    Raises:
        LensSkillsError: As there; none, or several (which).
    """
    found = parse_metrics(metric, examples)
    if len(found) != 1:
        raise LensSkillsError(
            f"{asked} takes one metric; {metric!r} is {len(found)} metrics"
            f"{': ' if found else ''}{', '.join(repr(each.name) for each in found)}. Name one."
        )
    return found[0]


def _parse_metric(metric: Any, examples: Sequence[Any]) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        kind, _, name = metric.partition(":")
        if metric in _NAMED:
            return _NAMED[metric]()
        if kind in ("label", "covariate") and name:
            return column_metric(name, f"{kind}s")
        raise LensSkillsError(
            f"no metric {metric!r}.{_nearest(metric, examples)} "
            f"Known: {', '.join(_NAMED)}, label:NAME, covariate:NAME; or "
            "give a function (logits, examples) -> float[batch], or one number per example."
        )
    if callable(metric):
        function: UserFunction = metric  # type: ignore[assignment]
        return Metric(
            getattr(metric, "__name__", "metric").replace("<lambda>", "metric"),
            lambda readout, examples: _user_numbers(function, readout, examples),
            frozenset({"logits", "user"}),
        )
    # A copy: pandas hands out read-only arrays, and the caller's numbers stay the caller's.
    try:
        numbers = torch.from_numpy(np.array(metric, dtype=np.float64))
    except (TypeError, ValueError):
        numbers = torch.zeros(())
    if numbers.ndim != 1:
        raise LensSkillsError("a metric given as numbers needs one number per example.")
    return Metric("metric", _given(numbers), frozenset(), "column")


def _nearest(name: str, examples: Sequence[Any]) -> str:
    """The question after a metric's name that is nearly one, or that lacks what it is a label of.

    >>> _nearest("plural", [Example("a", "x", labels={"plural": 1})])
    " Did you mean 'label:plural'?"
    """
    columns = {f"label:{column}" for example in examples for column in example.labels}
    columns |= {f"covariate:{column}" for example in examples for column in example.covariates}
    for kind in ("label", "covariate"):
        if f"{kind}:{name}" in columns:
            return f" Did you mean {f'{kind}:{name}'!r}?"
    return did_you_mean(name, [*_NAMED, *sorted(columns)])


def _given(numbers: Float[Tensor, " row"]) -> Callable[[Readout, Sequence[Any]], Tensor]:
    def compute(readout: Readout | None, examples: Sequence[Any]) -> Tensor:
        if len(numbers) != len(examples):
            raise LensSkillsError(
                f"{len(numbers)} metric values were given for {len(examples)} examples."
            )
        return numbers.clone()

    return compute


def _user_numbers(function: UserFunction, readout: Readout, examples: Sequence[Any]) -> Tensor:
    logits = _need(readout.logits)
    try:
        numbers = torch.as_tensor(function(logits, examples)).detach().cpu().double()
    except Exception as error:
        name = getattr(function, "__name__", "the function")
        raise LensSkillsError(
            f"the metric {name}(logits, examples) failed: {type(error).__name__}: {error}."
        ) from error
    if numbers.shape != (len(examples),):
        raise LensSkillsError(
            f"a metric function must return one number per example: expected shape "
            f"({len(examples)},), found {tuple(numbers.shape)}."
        )
    return numbers


def causal_metric(examples: Sequence[Example]) -> str | None:
    """The metric that interventions are usually judged by; None where answers are missing.

    ``logit_diff`` where every example has a foil or options, else ``answer_probability``.

    >>> causal_metric([Example(id="a", prompt="The key", answer=" is", foil=" are")])
    'logit_diff'
    """
    if any(example.answer is None for example in examples):
        return None
    contrast = all(example.foil is not None or len(example.options) > 1 for example in examples)
    return "logit_diff" if contrast else "answer_probability"
