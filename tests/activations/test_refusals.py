"""What cannot be read is refused with the name of what is wrong."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.activations import (
    column_values,
    confidence,
    evaluate,
    find_site,
    known_values,
    parse_metrics,
    parse_position,
    span,
    stream,
)
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.settings import config

# As they are where no shape check runs: these calls break the declared types on purpose.
confidence = inspect.unwrap(confidence)
parse_position = inspect.unwrap(parse_position)
span = inspect.unwrap(span)

EXAMPLES = [
    Example("short", "The keys", " are", labels={"plural": 1}),
    Example("long", "The key to the cabinets is on the", " table", labels={"plural": 0}),
]


def run(model: Any, **options: Any) -> list[Any]:
    return list(stream(model, options.pop("examples", EXAMPLES), **options))


def test_an_unknown_hook_point_brings_the_nearest_names(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match=r"'mlp\.hook_pst'.*'mlp\.hook_post'"):
        run(tiny, at="mlp.hook_pst")
    # A point that only some layers have: made so by looking at a cut list of names.
    adapter = as_adapter(tiny)
    names = [name for name in adapter.hook_names() if name != "blocks.2.mlp.hook_post"]
    with pytest.raises(LensSkillsError, match=r"missing in layers \[2\]"):
        find_site(_Named(adapter.n_layers, names), "mlp.hook_post")


class _Named:
    def __init__(self, n_layers: int, names: list[str]) -> None:
        self.n_layers, self.hook_names = n_layers, lambda: names
        self.check_site = lambda at, layers: None
        self.dictionaries_at = lambda at: ()


@pytest.mark.parametrize("layers", [4, -5, [0, 9], []])
def test_a_layer_that_is_not_there(tiny: Any, layers: Any) -> None:
    with pytest.raises(LensSkillsError, match="in a model of 4 layers"):
        run(tiny, layers=layers)


@pytest.mark.parametrize("at", ["attn.hook_pattern", "attn.hook_attn_scores"])
@pytest.mark.parametrize("position", ["last", 0])
def test_a_hook_point_without_positions_is_refused(tiny: Any, at: str, position: Any) -> None:
    """``batch head query key``: the second axis is no position, and must not be read as one."""
    with pytest.raises(LensSkillsError, match=at.replace(".", r"\.")):
        run(tiny, at=at, position=position)


@pytest.mark.parametrize("position", [5, -6, [0, 7]])
def test_a_position_outside_a_prompt_names_the_example(tiny: Any, position: Any) -> None:
    """The prompt of "short" is a special token and two words."""
    with pytest.raises(LensSkillsError, match=r"outside the prompt of example 'short'.* 3 tokens"):
        run(tiny, position=position)


def test_a_span_that_is_not_in_the_prompt_names_the_example(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match=r"'cabinets' does not occur.*'short'"):
        run(tiny, position=span("cabinets"))
    with pytest.raises(LensSkillsError, match=r"None does not occur.*'short'"):
        run(tiny, position=span(column="verb"))


@pytest.mark.parametrize("position", ["middle", 1.5, True, None, [], ["last", "mean"], ["all"]])
def test_a_position_that_means_nothing(position: Any) -> None:
    with pytest.raises(LensSkillsError, match="position"):
        parse_position(position)


def test_a_span_takes_one_of_text_and_column() -> None:
    for arguments in ({}, {"text": "a", "column": "b"}):
        with pytest.raises(LensSkillsError, match="either text or column"):
            span(**arguments)
    with pytest.raises(LensSkillsError, match="cannot take 'middle'"):
        span("a", take="middle")  # type: ignore[arg-type]


def test_a_batch_size_below_one(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match="batch_size must be a whole number from 1 on"):
        config(batch_size=0)
    assert run(tiny)


@pytest.mark.parametrize(
    ("metric", "lacking"),
    [
        ("correct", "answer"),
        ("answer_probability", "answer"),
        ("first_token_correct", "answer"),
        ("logit_diff", "answer"),
        ("answer_probability:options", "answer"),
        ("entropy:options", "options"),
    ],
)
def test_what_a_metric_needs_and_an_example_lacks(tiny: Any, metric: str, lacking: str) -> None:
    whole = Example("whole", "The keys", " are", foil=" is", options=(" are", " is"))
    missing = {
        "answer": Example("bare", "The boys", options=(" are", " is"), foil=" is"),
        "options": Example("bare", "The boys", " are"),
    }
    with pytest.raises(LensSkillsError, match=f"'bare' has no {lacking}.*{metric}"):
        evaluate(tiny, [whole, missing[lacking]], metric)


def test_logit_diff_without_foil_and_options(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match="'short' has no foil and no options"):
        evaluate(tiny, EXAMPLES, "logit_diff")


def test_the_answer_must_be_among_the_options(tiny: Any) -> None:
    examples = [Example("odd", "The keys", " was", options=(" are", " is"))]
    with pytest.raises(LensSkillsError, match="'odd'"):
        evaluate(tiny, examples, "answer_probability:options")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_names_metric_and_example(tiny: Any, wrong: float) -> None:
    def mine(logits: Tensor, examples: Sequence[Any]) -> Tensor:
        return torch.tensor([wrong if e.id == "long" else 0.0 for e in examples])

    message = f"the metric 'mine' is {wrong} for example 'long'"
    with pytest.raises(LensSkillsError, match=message):
        run(tiny, metrics=mine)
    with pytest.raises(LensSkillsError, match=message):
        evaluate(tiny, EXAMPLES, {"mine": mine})
    with pytest.raises(LensSkillsError, match=message):
        known_values(parse_metrics({"mine": [0.0, wrong]}), EXAMPLES)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3,)])
def test_a_function_must_return_one_number_per_example(tiny: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(LensSkillsError, match=r"expected shape \(2,\), found"):
        run(tiny, metrics=lambda logits, examples: torch.zeros(shape))


def test_missing_columns_name_the_example_and_what_there_is() -> None:
    examples = [*EXAMPLES, Example("bare", "x", labels={"verb": 1})]
    with pytest.raises(LensSkillsError, match=r"'bare' has no label 'plural'. It has: verb"):
        known_values(parse_metrics("label:plural"), examples)
    with pytest.raises(LensSkillsError, match="'short' has no covariate 'plural'"):
        known_values(parse_metrics("covariate:plural"), examples)
    with pytest.raises(LensSkillsError, match="'short' has no 'size'"):
        column_values(examples, "size")


def test_a_metric_of_three_categories_is_refused() -> None:
    examples = [Example(name, "x", labels={"kind": name}) for name in "abc"]
    with pytest.raises(LensSkillsError, match="'kind' has 3 categories"):
        known_values(parse_metrics("label:kind"), examples)


def test_metrics_that_mean_nothing() -> None:
    with pytest.raises(
        LensSkillsError,
        match=r"no metric 'confidnce'\. Did you mean 'confidence'\? Known: .*confidence",
    ):
        parse_metrics(["confidnce"])
    with pytest.raises(LensSkillsError, match="two metrics are called 'correct'"):
        parse_metrics(["correct", "correct"])
    with pytest.raises(LensSkillsError, match="no confidence of kind 'best'"):
        confidence("best")  # type: ignore[arg-type]
    with pytest.raises(LensSkillsError, match="over 'digits'"):
        confidence(over="digits")  # type: ignore[arg-type]
    with pytest.raises(LensSkillsError, match="2 metric values were given for 3 examples"):
        known_values(parse_metrics({"m": [1, 2]}), [Example(name, "x") for name in "abc"])
    with pytest.raises(LensSkillsError, match="one number per example"):
        parse_metrics({"m": [[1, 2], [3, 4]]})


def test_something_that_is_no_model() -> None:
    with pytest.raises(LensSkillsError, match="found str"):
        run("gpt2")
