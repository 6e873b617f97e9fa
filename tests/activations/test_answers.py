"""Where a prompt ends and its answer begins, in tokens."""

from collections.abc import Sequence
from typing import Any

import pytest

from lens_skills.activations import stream
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.batched_edits import edited_places
from lens_skills.models import as_adapter


def encoded(model: Any, examples: Sequence[Example], metrics: Any, **options: Any) -> list[Any]:
    items = [
        item
        for batch in stream(model, examples, metrics=metrics, **options)
        for item in batch.examples
    ]
    return sorted(items, key=lambda item: item.index)


def texts(model: Any, tokens: Any) -> list[str]:
    return [model.tokenizer.decode([int(token)]) for token in tokens]


def test_prompt_and_answer_are_split_from_one_reading(tiny: Any) -> None:
    (item,) = encoded(tiny, [Example("a", "What is 3 plus 4? A: ", "12")], "correct")
    whole = tiny.to_tokens("What is 3 plus 4? A: 12")[0].tolist()
    assert [*item.prompt_tokens.tolist(), *item.answer_tokens] == whole
    assert texts(tiny, item.answer_tokens) == ["1", "2"]
    assert item.has_bos


def test_a_space_that_fuses_with_most_answers_moves_for_all(tiny: Any) -> None:
    """As " is" is one token after "A:", every prompt then ends in ":", the digit's alike."""
    words = [Example("a", "The keys? A: ", "is"), Example("b", "The key? A: ", "are")]
    items = encoded(tiny, [*words, Example("c", "What is 3? A: ", "7")], "correct")
    assert [texts(tiny, item.prompt_tokens)[-1] for item in items] == [":", ":", ":"]
    answers = [texts(tiny, item.answer_tokens) for item in items]
    assert answers == [[" is"], [" are"], [" ", "7"]]


def test_a_space_that_fuses_with_few_answers_stays(tiny: Any) -> None:
    """Else every digit would begin with the same bare space, which says nothing."""
    digits = [Example("a", "What is 3? A: ", "7"), Example("b", "What is 4? A: ", "12")]
    items = encoded(tiny, [*digits, Example("c", "The keys? A: ", "is")], "correct")
    assert [texts(tiny, item.prompt_tokens)[-1] for item in items] == [" ", " ", " "]
    alone = tiny.tokenizer("is", add_special_tokens=False)["input_ids"]
    assert [texts(tiny, item.answer_tokens) for item in items[:2]] == [["7"], ["1", "2"]]
    assert list(items[2].answer_tokens) == alone
    for item in items:  # and the prompt's own tokens are those of the prompt
        assert item.prompt_tokens.tolist() == tiny.to_tokens(item.prompt)[0].tolist()


def test_an_answer_inside_a_word_is_refused(tiny: Any) -> None:
    examples = [Example("fine", "The keys", " are"), Example("bad", "The key", "s are")]
    with pytest.raises(LensSkillsError, match=r"'bad'.*'s are' cannot be told apart"):
        encoded(tiny, examples, "correct")


def test_answers_do_not_matter_where_no_metric_reads_them(tiny: Any) -> None:
    (item,) = encoded(tiny, [Example("bad", "The key", "s are")], "confidence")
    assert item.answer_tokens is None
    assert item.prompt_tokens.tolist() == tiny.to_tokens("The key")[0].tolist()


def test_chat_puts_the_prompt_into_the_template_once(tiny: Any) -> None:
    (item,) = encoded(tiny, [Example("a", "The keys", "is")], "correct", chat=True)
    text = tiny.tokenizer.decode(item.prompt_tokens.tolist())
    assert text == "<s>user: The keys\nassistant: "
    assert texts(tiny, item.answer_tokens) == texts(
        tiny, tiny.tokenizer("is", add_special_tokens=False)["input_ids"]
    )


def test_a_prompt_longer_than_the_context_is_named(tiny: Any) -> None:
    limit = tiny.cfg.n_ctx
    examples = [Example("short", "The keys"), Example("long", "The keys" + " keys" * limit)]
    with pytest.raises(LensSkillsError, match=rf"'long' has {limit + 3} \+ 0 tokens.*{limit}"):
        encoded(tiny, examples, "confidence")


def test_the_answer_counts_for_the_context_too(tiny: Any) -> None:
    limit = tiny.cfg.n_ctx
    fits = Example("fits", "The keys" + " keys" * (limit - 4), " are")
    (item,) = encoded(tiny, [fits], "correct")
    assert len(item.prompt_tokens) == limit - 1
    with pytest.raises(LensSkillsError, match=rf"'over' has {limit - 1} \+ 2 tokens"):
        encoded(tiny, [Example("over", fits.prompt, " are are")], "correct")


def test_empty_prompts_and_tasks_are_refused(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match="'blank' has an empty prompt"):
        encoded(tiny, [Example("blank", "  ")], ())
    with pytest.raises(LensSkillsError, match="the task is empty"):
        encoded(tiny, [], ())


def test_what_many_examples_have_in_common_is_held_once(tiny: Any) -> None:
    """A hundred thousand examples of ten answers hold ten answers."""
    examples = [Example(f"{n}", f"What is {n}? A:", " is" if n % 2 else " are") for n in range(6)]
    items = encode_examples(as_adapter(tiny), examples, answers=True)
    assert items[0].answer_tokens != items[1].answer_tokens
    assert items[0].answer_tokens is items[2].answer_tokens
    places = edited_places(as_adapter(tiny), items, "last")
    assert places[0] is places[2]
    assert examples[0].labels is examples[1].labels
    assert examples[0].covariates is examples[1].labels
