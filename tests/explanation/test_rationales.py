"""`rationales`: a search by hand, a planted word and its neurons, and what has no rationale."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations.forward import encode_examples
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Rationales, rationales
from lens_skills.explanation.rationales import _sources, matched_spans
from lens_skills.models import as_adapter
from tests.planted_circuit import planted_circuit, twins


@pytest.fixture(scope="module")
def model() -> Any:
    return ls.load_model("arithmetic-small")


def pairs(n: int = 24) -> list[Example]:
    """Sums whose twin has other operands on both sides, and asks for the foil."""
    made = []
    for place in range(n):
        a, b = 1 + place % 8, 2 + place // 8
        c, d = 1 + (a + 3) % 8, 1 + (b + 4) % 8
        if c + d != a + b:
            made.append(
                Example(
                    f"{a}+{b}",
                    f"\nQ: What is {a} plus {b}?\nA: ",
                    answer=str(a + b),
                    foil=str(c + d),
                    corrupted=f"\nQ: What is {c} plus {d}?\nA: ",
                    group=f"{a}+{b}",
                )
            )
    return made


def margin(model: Any, example: Example, tokens: list[int]) -> float:
    """Log-odds of answer against foil, each in the tokens it adds to the clean prompt."""
    encode, total = model.tokenizer.encode, []
    prompt = encode(example.prompt)
    for text in (example.answer, example.foil):
        added = encode(example.prompt + text)[len(prompt) :]
        with torch.no_grad():
            logits = model(torch.tensor([tokens + added]))[0].log_softmax(-1)
        total.append(
            sum(float(logits[len(tokens) - 1 + k, token]) for k, token in enumerate(added))
        )
    return total[0] - total[1]


def by_hand(model: Any, example: Example, longest: int) -> tuple[int, int]:
    """Start and length of the smallest span of the twin's tokens that flips; (-1, 0) for none."""
    clean, twin = (list(model.tokenizer.encode(t)) for t in (example.prompt, example.corrupted))
    for length in range(1, longest + 1):
        found = []
        for start in range(len(clean) - length + 1):
            tokens = clean[:start] + twin[start : start + length] + clean[start + length :]
            value = margin(model, example, tokens)
            if value < 0:
                found.append((value, start))
        if found:
            return min(found)[1], length
    return -1, 0


def test_the_smallest_span_is_that_of_a_search_by_hand(model: Any) -> None:
    examples = pairs(10)
    found = rationales(model, examples, longest=3)
    assert found.corruption == "twin"
    table = found.frame()
    for place, example in enumerate(examples):
        clean = margin(model, example, model.tokenizer.encode(example.prompt))
        assert table["margin"][place] == pytest.approx(clean, abs=1e-3)
        assert (table["start"][place], table["length"][place]) == by_hand(model, example, 3)
    assert (table["length"] > 0).sum() >= 8
    assert set(table["text"]) <= {"", *"123456789"} | {
        f"{a} plus {b}" for a in range(10) for b in range(10)
    }


def test_the_planted_word_is_the_rationale_and_its_neurons_work_there(tiny: Any) -> None:
    examples = twins(24, answer=" table", foil=" girl")
    with planted_circuit(tiny, examples, gain=8.0) as names:
        both = examples + [
            replace(e, id=f"{e.id} twin", prompt=str(e.corrupted), corrupted=e.prompt,
                    answer=e.foil, foil=e.answer)
            for e in examples
        ]  # fmt: skip
        found = rationales(
            tiny, both, [names.u, names.n], do=ls.ablate("zero"), corruption="donors", longest=2
        )
        silent = [names.mute, names.idle]
        with suppress(LensSkillsError):  # they move nothing at all, so there is no ratio
            decoys = rationales(tiny, both, silent, do=ls.ablate("zero"), longest=2)
            assert np.nanmax(np.abs(decoys.frame()["effect"])) < 0.05
    table = found.frame()
    flipped = table[table["length"] > 0]
    assert len(flipped) >= 20
    assert (flipped["length"] == 1).mean() > 0.9
    assert set(flipped["text"][flipped["length"] == 1]) <= {" are", " is"}
    assert found.low > 10


def test_effects_are_those_of_an_edit_at_those_tokens(model: Any) -> None:
    examples = pairs()
    units, zero = ["L1N3", "L2N40", "L0N7"], ls.ablate("zero")
    found = rationales(model, examples, units, do=zero)
    table = found.frame()
    own, other = [], []
    for place in np.flatnonzero(table["matched_effect"].notna()):
        start, length = int(table["start"][place]), int(table["length"][place])
        n = len(model.tokenizer.encode(examples[place].prompt))

        def effect(spot: int, place: Any = place, length: int = length) -> float:
            clean = model.tokenizer.encode(examples[place].prompt)
            where = list(range(spot, spot + length))
            with ls.edited(model, units, zero, position=where):
                return margin(model, examples[place], clean) - table["margin"][place]

        spots = matched_spans(start, length, 0, n)
        moved = [effect(spot) for spot in spots]
        assert table["effect"][place] == pytest.approx(effect(start), abs=2e-3)
        assert table["matched_effect"][place] == pytest.approx(np.mean(moved), abs=2e-3)
        own.append(abs(effect(start)))
        other.append(np.mean(np.abs(moved)))
    assert found.n_ablated == len(own) >= 15
    assert found.ratio == pytest.approx(np.mean(own) / np.mean(other), rel=0.02)
    assert found.low < found.ratio < found.high


def test_means_stand_in_alike_at_every_token(model: Any) -> None:
    examples = pairs()
    over = ls.tasks.arithmetic("-", n=30)
    found = rationales(model, examples, ["L1N3", "L2N40"], do=ls.ablate("mean", over=over))
    assert found.do.startswith("mean ablation over arithmetic")
    assert np.isfinite(found.ratio)
    card = repr(found)
    assert "times" not in card
    assert f"ratio of the sizes {found.ratio:.3g}" in card
    assert "in whose place stand the corrupted twin's tokens" in card.replace("\n      ", " ")


def test_matched_spans_are_the_nearest_that_do_not_overlap() -> None:
    for n in range(3, 9):
        for length in (1, 2, 3):
            for start in range(1, n - length + 1):
                last = start + length == n
                every = [
                    s
                    for s in range(1, n - length + 1)
                    if (s + length <= start or s >= start + length) and (last or s + length < n)
                ]
                wanted = [max((s for s in every if s < start), default=None),
                          min((s for s in every if s > start), default=None)]  # fmt: skip
                assert matched_spans(start, length, 1, n) == [s for s in wanted if s is not None]


def test_saved_and_read_back(tmp_path: Path, model: Any) -> None:
    found = rationales(model, pairs(), ["L1N3"], do=ls.ablate("zero"))
    again = ls.load(found.save(tmp_path / "rationales"))
    assert isinstance(again, Rationales)
    assert repr(again) == repr(found)
    assert "times as far there" in found.to_markdown()


def test_what_has_no_rationale_is_refused(model: Any) -> None:
    examples = pairs()
    alike = [replace(e, corrupted=e.prompt) for e in examples]
    with pytest.raises(LensSkillsError, match=r"no span of up to 2 tokens flips any of \d+ right"):
        rationales(model, alike, corruption="twin", longest=2)
    wrong = [replace(e, answer=e.foil, foil=e.answer) for e in examples]
    with pytest.raises(LensSkillsError, match="answers none of"):
        rationales(model, wrong)
    with pytest.raises(LensSkillsError, match="no corruption 'noise'"):
        rationales(model, examples, corruption="noise")
    with pytest.raises(LensSkillsError, match="by an edit: do="):
        rationales(model, examples, ["L1N3"])
    with pytest.raises(LensSkillsError, match="longest=0"):
        rationales(model, examples, longest=0)
    bare = [replace(e, corrupted=None) for e in examples]
    with pytest.raises(LensSkillsError, match="has no corrupted twin"):
        rationales(model, bare, corruption="twin")
    longer = [replace(e, corrupted=f"\nQ: Well, what{e.corrupted}") for e in examples]
    with pytest.raises(LensSkillsError, match="has another number of tokens"):
        rationales(model, longer, corruption="twin")
    with pytest.raises(LensSkillsError, match="nothing to corrupt with"):
        rationales(model, [e for e in bare if e.answer == examples[0].answer])
    with pytest.raises(LensSkillsError, match="8 at least are needed for an interval"):
        rationales(model, [replace(e, group="g") for e in examples], ["L1N3"], do=ls.ablate("zero"))


def test_donors_are_of_other_groups_and_keep_the_first_token(model: Any) -> None:
    adapter = as_adapter(model)
    real = replace(encode_examples(adapter, pairs()[:1], answers=True)[0], has_bos=True)

    def item(answer: str, group: str, tokens: list[int]) -> Any:
        example = replace(real.example, answer=answer, group=group)
        return replace(real, example=example, prompt_tokens=np.array(tokens))

    encoded = [
        item("is", "a", [0, 1, 2]),
        item("are", "a", [0, 3, 3]),  # of the same group
        item("is", "b", [0, 4, 4]),  # the same answer
        item("are", "b", [0, 5]),  # too short
        item("are", "b", [0, 9, 6, 7]),
    ]
    examples = [Example(id=str(k), prompt="x", answer=one.answer) for k, one in enumerate(encoded)]
    found, kind = _sources(adapter, examples, encoded, [0], "donors", 9, 0)
    assert kind == "donors"
    assert [tokens.tolist() for tokens in found[0]] == [[0, 6, 7]]
    # Where none is of another group, those of its own must do.
    alone, _ = _sources(adapter, examples[:2], encoded[:2], [0], "donors", 9, 0)
    assert [tokens.tolist() for tokens in alone[0]] == [[0, 3, 3]]
