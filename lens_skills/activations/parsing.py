"""Metrics as the user may write them: names, functions, numbers, lists and dicts of those."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.labels import Column, covariate, label
from lens_skills.activations.metrics import (
    Metric,
    confidence,
    correct,
    first_token_correct,
    logit_diff,
)
from lens_skills.activations.readout import Readout
from lens_skills.errors import LensSkillsError

UserFunction = Callable[[Tensor, Sequence[Any]], Tensor]

_NAMED: dict[str, Callable[[], Metric]] = {
    "logit_diff": logit_diff,
    "correct": correct,
    "first_token_correct": first_token_correct,
    "confidence": confidence,
    "answer_probability": lambda: confidence("answer"),
    "margin": lambda: confidence("margin"),
    "entropy": lambda: confidence("entropy"),
    "confidence:options": lambda: confidence(over="options"),
    "answer_probability:options": lambda: confidence("answer", over="options"),
    "margin:options": lambda: confidence("margin", over="options"),
    "entropy:options": lambda: confidence("entropy", over="options"),
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
        found = [_renamed(_parse_metric(value), str(key)) for key, value in metrics.items()]
    elif isinstance(metrics, str | Metric | np.ndarray | Tensor) or callable(metrics):
        found = [_parse_metric(metrics)]
    else:
        found = [_parse_metric(metric) for metric in metrics]
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
    """The one metric that is wanted.

    Args:
        metric: As in `parse_metrics`.
        examples: As there.
        asked: The call, for the message.

    Raises:
        LensSkillsError: As `parse_metrics`; none, or several (which).
    """
    found = parse_metrics(metric, examples)
    if len(found) != 1:
        raise LensSkillsError(
            f"{asked} takes one metric; {metric!r} is {len(found)} metrics"
            f"{': ' if found else ''}{', '.join(repr(each.name) for each in found)}. Name one."
        )
    return found[0]


def _parse_metric(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        kind, _, name = metric.partition(":")
        if metric in _NAMED:
            return _NAMED[metric]()
        if kind == "label" and name:
            return label(name)
        if kind == "covariate" and name:
            return covariate(name)
        raise LensSkillsError(
            f"no metric {metric!r}. Known: {', '.join(_NAMED)}, label:NAME, covariate:NAME; or "
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
    numbers = torch.from_numpy(np.array(metric, dtype=np.float64))
    if numbers.ndim != 1:
        raise LensSkillsError("a metric given as numbers needs one number per example.")
    return Metric("metric", _given(numbers), frozenset(), "column")


def _given(numbers: Float[Tensor, " row"]) -> Callable[[Readout, Sequence[Any]], Tensor]:
    def compute(readout: Readout | None, examples: Sequence[Any]) -> Tensor:
        if len(numbers) != len(examples):
            raise LensSkillsError(
                f"{len(numbers)} metric values were given for {len(examples)} examples."
            )
        return numbers.clone()

    return compute


def _user_numbers(function: UserFunction, readout: Readout, examples: Sequence[Any]) -> Tensor:
    numbers = torch.as_tensor(function(readout.logits, examples)).detach().cpu().double()
    if numbers.shape != (len(examples),):
        raise LensSkillsError(
            f"a metric function must return one number per example: expected shape "
            f"({len(examples)},), found {tuple(numbers.shape)}."
        )
    return numbers


def _renamed(metric: Metric, name: str) -> Metric:
    return replace(metric, name=name)
