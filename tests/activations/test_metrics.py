"""Metrics against plain PyTorch: one full forward pass per token, log-softmax, a loop."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_skills.activations import (
    Metric,
    column_values,
    confidence,
    correct,
    evaluate,
    known_values,
    label,
    logit_diff,
    parse_metrics,
    stream,
)
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.settings import config

# Ragged prompts; answers of one, two and three tokens ("12" is two digits to this tokenizer).
EXAMPLES = [
    Example("a", "What is 3 plus 4? A: ", "7", foil="8", options=("7", "8", "12", "345")),
    Example("b", "What is 12 minus 5? Answer: ", "12", foil="305", options=("12", "3", "305")),
    Example("c", "A: ", "345", foil="9", options=("9", "345")),
    Example("d", "What is 6 times 7? What is 3 plus 4? A: ", "42", foil="24", options=("42", "24")),
    Example("e", "true False? A: ", "1", foil="10", options=("1", "10", "100", "0")),
]


def logits_after(model: Any, tokens: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]))[0, -1].double()


def prompt_tokens(model: Any, text: str) -> list[int]:
    return model.to_tokens(text)[0].tolist()


def answer_tokens(model: Any, prompt: str, answer: str) -> list[int]:
    whole, start = prompt_tokens(model, prompt + answer), prompt_tokens(model, prompt)
    assert whole[: len(start)] == start
    return whole[len(start) :]


@dataclass
class Plain:
    """What a loop of full forward passes says about one continuation."""

    log_probability: float
    greedy: bool
    next_text: str


def plain(model: Any, prompt: str, answer: str) -> Plain:
    tokens, total, greedy = prompt_tokens(model, prompt), 0.0, True
    for token in answer_tokens(model, prompt, answer):
        logits = logits_after(model, tokens)
        total += logits.log_softmax(-1)[token].item()
        greedy &= int(logits.argmax()) == token
        tokens = [*tokens, token]
    following = int(logits_after(model, tokens).argmax())
    return Plain(total, greedy, model.tokenizer.decode([following]))


def evaluated(
    model: Any, examples: Sequence[Example], metrics: Any, batch_size: int = 32, **options: Any
) -> Any:
    with config(batch_size=batch_size):
        return evaluate(model, examples, metrics, **options)


def test_the_tiny_tokenizer_makes_answers_of_several_tokens(tiny: Any) -> None:
    sizes = [len(answer_tokens(tiny, e.prompt, str(e.answer))) for e in EXAMPLES]
    assert sizes == [1, 2, 3, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_answer_probability_is_the_joint_one(tiny: Any, batch_size: int) -> None:
    found = evaluated(tiny, EXAMPLES, "answer_probability", batch_size=batch_size)
    expected = [math.exp(plain(tiny, e.prompt, str(e.answer)).log_probability) for e in EXAMPLES]
    assert found["answer_probability"].tolist() == pytest.approx(expected, rel=1e-3, abs=0)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_logit_diff_compares_joint_log_probabilities(tiny: Any, batch_size: int) -> None:
    found = evaluated(tiny, EXAMPLES, "logit_diff", batch_size=batch_size)
    expected = [
        plain(tiny, e.prompt, str(e.answer)).log_probability
        - plain(tiny, e.prompt, str(e.foil)).log_probability
        for e in EXAMPLES
    ]
    assert found["logit_diff"].tolist() == pytest.approx(expected, abs=2e-4)


def test_logit_diff_of_single_tokens_is_the_difference_of_logits(tiny: Any) -> None:
    examples = [Example(str(i), e.prompt, "7", foil="8") for i, e in enumerate(EXAMPLES)]
    found = evaluated(tiny, examples, logit_diff())["logit_diff"]
    for example, value in zip(examples, found.tolist(), strict=True):
        logits = logits_after(tiny, prompt_tokens(tiny, example.prompt))
        (yes,), (no,) = (answer_tokens(tiny, example.prompt, text) for text in ("7", "8"))
        assert value == pytest.approx((logits[yes] - logits[no]).item(), abs=2e-4)


def test_without_a_foil_the_best_other_option_takes_its_place(tiny: Any) -> None:
    examples = [Example(e.id, e.prompt, e.answer, options=e.options) for e in EXAMPLES if e.options]
    found = evaluated(tiny, examples, "logit_diff", batch_size=2)["logit_diff"]
    for example, value in zip(examples, found.tolist(), strict=True):
        odds = {o: plain(tiny, example.prompt, o).log_probability for o in example.options}
        others = [odds[option] for option in example.options if option != example.answer]
        assert value == pytest.approx(odds[str(example.answer)] - max(others), abs=2e-4)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_where_only_some_examples_have_a_foil_options_stand_in_for_all(
    tiny: Any, batch_size: int
) -> None:
    """One rule for the whole pass, whatever examples a batch happens to hold."""
    mixed = [
        Example(e.id, e.prompt, e.answer, foil=e.foil if i % 2 else None, options=e.options)
        for i, e in enumerate(EXAMPLES)
    ]
    found = evaluated(tiny, mixed, "logit_diff", batch_size=batch_size)["logit_diff"]
    none = [Example(e.id, e.prompt, e.answer, options=e.options) for e in EXAMPLES]
    expected = evaluated(tiny, none, "logit_diff")["logit_diff"]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


GREEDY: dict[str, list[tuple[Example, Plain]]] = {}


def greedy_examples(model: Any) -> list[tuple[Example, Plain]]:
    """Prompts with the model's own greedy answers (one or two tokens), as far as texts hold them.

    A text holds them where prompt and answer together are tokenised as the model wrote them.
    """
    found = GREEDY.setdefault(type(model).__name__, [])
    if found:
        return found
    words = ("The", " keys", " is", " girl", " 3", " plus", " walk", " and", " we", "?")
    for first in words:
        for second in words:
            prompt = f"{first}{second} A:"
            start = prompt_tokens(model, prompt)
            tokens = list(start)
            for _ in range(2):
                tokens.append(int(logits_after(model, tokens).argmax()))
                answer = model.tokenizer.decode(tokens[len(start) :])
                if answer.strip() and prompt_tokens(model, prompt + answer) == tokens:
                    plainly = plain(model, prompt, answer)
                    assert plainly.greedy
                    found.append((Example(str(len(found)), prompt, answer), plainly))
    return found


def test_correct_is_the_whole_answer_and_then_the_stop(tiny: Any) -> None:
    pairs = greedy_examples(tiny)
    examples = [example for example, _ in pairs]
    stops = [not known.next_text[:1].isalnum() for _, known in pairs]
    sizes = {len(answer_tokens(tiny, e.prompt, str(e.answer))) for e in examples}
    # Otherwise this test would show nothing: both outcomes, and both lengths, do occur.
    assert sum(stops) >= 3
    assert sum(not stop for stop in stops) >= 3
    assert sizes == {1, 2}
    found = evaluated(tiny, examples, ["correct", "first_token_correct"], batch_size=7)
    assert found["correct"].tolist() == [float(stop) for stop in stops]
    assert found["first_token_correct"].tolist() == [1.0] * len(examples)


def test_a_wrong_token_anywhere_is_not_correct(tiny: Any) -> None:
    pairs = [(e, p) for e, p in greedy_examples(tiny) if not p.next_text[:1].isalnum()]
    wrong = []
    for example, _ in pairs:
        # The greedy answer goes on with one more digit that the model did not write.
        wrong.append(Example(example.id, example.prompt, f"{example.answer} 5"))
    held = []
    for example in wrong:
        start = prompt_tokens(tiny, example.prompt)
        if prompt_tokens(tiny, example.prompt + str(example.answer))[: len(start)] == start:
            held.append(example)
    plainly = [plain(tiny, e.prompt, str(e.answer)) for e in held]
    expected = [p.greedy and not p.next_text[:1].isalnum() for p in plainly]
    assert not all(expected)
    found = evaluated(tiny, held, correct())["correct"]
    assert found.tolist() == [float(value) for value in expected]


def test_the_confidence_kinds_over_the_vocabulary(tiny: Any) -> None:
    kinds = {"confidence": "top", "margin": "margin", "entropy": "entropy"}
    found = evaluated(tiny, EXAMPLES, list(kinds), batch_size=2)
    for row, example in enumerate(EXAMPLES):
        shares = logits_after(tiny, prompt_tokens(tiny, example.prompt)).softmax(-1)
        best, second = shares.sort(descending=True).values[:2].tolist()
        by_hand = {
            "confidence": best,
            "margin": math.log(best / second),
            "entropy": -sum(p * math.log(p) for p in shares.tolist() if p > 0),
        }
        for name, expected in by_hand.items():
            assert found[name][row].item() == pytest.approx(expected, abs=1e-4), name


def test_the_confidence_kinds_over_the_options(tiny: Any) -> None:
    names = ["confidence", "answer_probability", "margin", "entropy"]
    found = evaluated(tiny, EXAMPLES, [f"{name}:options" for name in names], batch_size=2)
    for row, example in enumerate(EXAMPLES):
        joint = [
            math.exp(plain(tiny, example.prompt, option).log_probability)
            for option in example.options
        ]
        shares = [p / sum(joint) for p in joint]
        best, second = sorted(shares, reverse=True)[:2]
        by_hand = {
            "confidence": best,
            "answer_probability": shares[example.options.index(str(example.answer))],
            "margin": math.log(best / second),
            "entropy": -sum(p * math.log(p) for p in shares),
        }
        for name, expected in by_hand.items():
            value = found[f"{name}:options"][row].item()
            assert value == pytest.approx(expected, abs=3e-4), name


def test_all_metrics_of_one_pass_are_those_of_their_own_passes(tiny: Any) -> None:
    """Parts of the readout are shared; none disturbs another."""
    names = ["correct", "answer_probability", "logit_diff", "entropy", "margin:options"]
    together = evaluated(tiny, EXAMPLES, names, batch_size=2)
    for name in names:
        alone = evaluated(tiny, EXAMPLES, name, batch_size=5)[name]
        torch.testing.assert_close(together[name], alone, rtol=0, atol=2e-4)


def test_streamed_metrics_are_the_evaluated_ones(tiny: Any) -> None:
    names = ["correct", "logit_diff", "confidence"]
    expected = evaluated(tiny, EXAMPLES, names)
    seen = 0
    with config(batch_size=2):
        for batch in stream(tiny, EXAMPLES, metrics=names):
            for name in names:
                values = expected[name][batch.index]
                torch.testing.assert_close(batch.metrics[name], values, rtol=0, atol=2e-4)
            seen += len(batch.index)
    assert seen == len(EXAMPLES)


def test_evaluate_keeps_the_order_of_the_examples(tiny: Any) -> None:
    forward = evaluated(tiny, EXAMPLES, "entropy", batch_size=2)["entropy"]
    backward = evaluated(tiny, EXAMPLES[::-1], "entropy", batch_size=3)["entropy"]
    torch.testing.assert_close(forward, backward.flip(0), rtol=0, atol=1e-5)
    assert forward.unique().numel() == len(EXAMPLES)


def test_a_user_function_reads_logits_and_examples(tiny: Any) -> None:
    def first_letter(logits: Tensor, examples: Sequence[Any]) -> Tensor:
        assert [item.id for item in examples]
        return logits[:, 5] - logits[:, 6] + torch.tensor([float(ord(e.id)) for e in examples])

    found = evaluated(tiny, EXAMPLES, {"mine": first_letter, "sure": "confidence"}, batch_size=2)
    assert list(found) == ["mine", "sure"]
    for row, example in enumerate(EXAMPLES):
        logits = logits_after(tiny, prompt_tokens(tiny, example.prompt))
        expected = (logits[5] - logits[6]).item() + ord(example.id)
        assert found["mine"][row].item() == pytest.approx(expected, abs=2e-4)


def encoded(model: Any, examples: Sequence[Example]) -> Sequence[Any]:
    """The examples with their tokens, as a pass hands them to a metric."""
    (batch,) = stream(model, examples, metrics=["logit_diff", "answer_probability"])
    order = batch.index.argsort().tolist()
    return [batch.examples[place] for place in order]


def test_a_metric_can_be_called_on_logits(tiny: Any) -> None:
    """As in an intervention loop: the same numbers as the pass gives."""
    singles = [
        Example(str(i), e.prompt, "7", foil="8", options=("7", "8", "9"))
        for i, e in enumerate(EXAMPLES)
    ]
    names = ["logit_diff", "first_token_correct", "confidence", "answer_probability"]
    names += ["margin", "entropy", "entropy:options", "answer_probability:options"]
    expected = evaluated(tiny, singles, names)
    logits = torch.stack([logits_after(tiny, prompt_tokens(tiny, e.prompt)) for e in singles])
    items = encoded(tiny, singles)
    for metric in parse_metrics(names):
        found = metric(logits.float(), items)
        torch.testing.assert_close(found.double(), expected[metric.name], rtol=0, atol=2e-4)
    mine = parse_metrics(lambda logits, examples: logits[:, 3])[0]
    torch.testing.assert_close(mine(logits.float(), items), logits[:, 3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("metric", [correct(), logit_diff(), confidence("answer")])
def test_logits_of_one_position_do_not_hold_several_tokens(tiny: Any, metric: Metric) -> None:
    logits = torch.zeros(len(EXAMPLES), tiny.cfg.d_vocab)
    with pytest.raises(LensSkillsError, match=f"{metric.name} needs more than the logits"):
        metric(logits, encoded(tiny, EXAMPLES))


def test_what_a_metric_on_logits_lacks_is_named(tiny: Any) -> None:
    bare = next(stream(tiny, [Example("bare", "The keys", " are")], metrics="correct")).examples
    logits = torch.zeros(1, tiny.cfg.d_vocab)
    with pytest.raises(LensSkillsError, match="logit_diff needs a foil or options"):
        logit_diff()(logits, bare)
    with pytest.raises(LensSkillsError, match="needs a foil or options"):
        confidence(over="options")(logits, bare)
    unread = next(stream(tiny, [Example("bare", "The keys")])).examples
    with pytest.raises(LensSkillsError, match="'bare' has no answer"):
        confidence("answer")(logits, unread)


def test_labels_and_covariates_are_columns() -> None:
    examples = [
        Example("a", "x", labels={"plural": True, "kind": "verb"}, covariates={"size": 2.5}),
        Example("b", "y", labels={"plural": False, "kind": "noun"}, covariates={"size": -1}),
    ]
    metrics = parse_metrics(["label:plural", "label:kind", "covariate:size"])
    found = known_values(metrics, examples)
    assert {name: values.tolist() for name, values in found.items()} == {
        "label:plural": [1.0, 0.0],
        "label:kind": [1.0, 0.0],  # categories in sorted order
        "covariate:size": [2.5, -1.0],
    }
    assert all(metric.known for metric in metrics)
    assert column_values(examples, "size").tolist() == [2.5, -1.0]


def test_numbers_per_example_are_a_metric() -> None:
    examples = [Example(name, "x") for name in "abc"]
    found = known_values(parse_metrics({"mine": [3, 1, 2]}), examples)
    assert found["mine"].tolist() == [3.0, 1.0, 2.0]


def test_numbers_may_be_read_only() -> None:
    """As pandas hands them out; and the caller's numbers are not ours to share."""
    import numpy as np

    numbers = np.array([3.0, 1.0, 2.0])
    numbers.flags.writeable = False
    (metric,) = parse_metrics({"mine": numbers})
    examples = [Example(name, "x") for name in "abc"]
    assert known_values([metric], examples)["mine"].tolist() == [3.0, 1.0, 2.0]


def test_names_functions_and_values_may_be_mixed() -> None:
    def mine(logits: Tensor, examples: Sequence[Any]) -> Tensor:
        return logits[:, 0]

    found = parse_metrics(["correct", label("plural"), mine, "margin:options"])
    assert [metric.name for metric in found] == [
        "correct",
        "label:plural",
        "mine",
        "margin:options",
    ]
    assert [metric.known for metric in found] == [False, True, False, False]
    assert parse_metrics("entropy")[0].name == "entropy"


def test_answers_that_share_their_first_token_are_pointed_out(tiny: Any) -> None:
    """Each word is a token of the test's model, so that these two differ in the second alone."""
    alike = [Example(str(n), "the key", f" are {n}") for n in (5, 7)]
    with pytest.warns(RuntimeWarning, match=r"all 2 answers begin with the token ' ?are'"):
        evaluated(tiny, alike, ["first_token_correct"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated(tiny, alike, ["correct"])  # reads all tokens
        evaluated(tiny, alike[:1] * 2, ["first_token_correct"])  # one answer, not two
