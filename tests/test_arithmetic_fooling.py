"""Problems that fool a shortcut: a planted one is predicted and seen, a decoy is not."""

import sys
import zlib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lens_skills import tasks
from lens_skills.explanation.conditional_effects import Condition
from lens_skills.tasks.arithmetic import ArithmeticProblem

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
fooling: Any = import_module("arithmetic_fooling")
shortcuts: Any = import_module("arithmetic_shortcuts")

BORROWS = Condition(
    "b ends in a larger digit than a", lambda e: e.column("ones_b") > e.column("ones_a")
)
COIN = Condition("a coin says so", lambda e: zlib.crc32(e.group.encode()) % 2 == 1)


def forgets(example: Any, often: float, random: np.random.Generator) -> str:
    """A model that forgets to borrow in so many of the differences, and else makes no mistake."""
    wrong = fooling.wrong_answer("digit by digit, no carry", example)
    return wrong if wrong and random.random() < often else str(example.answer)


@pytest.fixture(scope="module")
def read() -> Any:
    return tasks.arithmetic("+-", digits=(1, 2), n=300, seed=0)


@pytest.fixture(scope="module")
def pool(read: Any) -> Any:
    return fooling.problems("+-", (1, 2), set(read.groups), most=300, seed=1)


@pytest.mark.parametrize(
    ("name", "problem", "answer"),
    [
        ("copy of b", "12+34", 34),
        ("digit by digit, no carry", "27+35", 52),
        ("digit by digit, no carry", "85-78", 17),
        ("digit by digit, no carry", "42-66", 86),
        ("digit by digit, no carry", "6*7", None),
        ("sign lost", "3-7", 4),
        ("sign lost", "7-3", None),
        ("negative, a power of ten added", "35-86", 49),
        ("negative, a power of ten added", "3-7", 6),
        ("ten less", "68+93", 151),
        ("their product", "3+4", 12),
        ("their sum", "3+4", None),
        ("copy of a", "5+0", None),
    ],
)
def test_wrong_answers_are_those_of_paper_and_pencil(
    name: str, problem: str, answer: int | None
) -> None:
    op = next(op for op in "+-*" if op in problem)
    a, b = map(int, problem.split(op))
    example = fooling.pose(ArithmeticProblem(a, op, b), id="x", prompt="", targets=())
    assert fooling.wrong_answer(name, example) == (None if answer is None else str(answer))


def test_new_problems_are_in_no_split_and_pairs_are_alike(read: Any, pool: Any) -> None:
    assert not {example.group for example in pool} & set(read.groups)
    pairs = fooling.matched_pairs(pool, BORROWS, "digit by digit, no carry", 40, seed=0)
    assert len(pairs) == 40
    groups = [example.group for pair in pairs for example in pair]
    assert len(set(groups)) == len(groups)
    for there, elsewhere in pairs:
        assert BORROWS.holds(there)
        assert not BORROWS.holds(elsewhere)
        for name in ("op", "digits", "result_digits", "negative"):
            assert there.column(name) == elsewhere.column(name)
        for example in (there, elsewhere):
            assert fooling.wrong_answer("digit by digit, no carry", example) is not None


def test_a_planted_failure_is_predicted_and_seen(read: Any, pool: Any) -> None:
    random = np.random.default_rng(0)

    def says(example: Any) -> str:
        return forgets(example, 0.6 if BORROWS.holds(example) else 0.05, random)

    prediction = fooling.predict(BORROWS, read, [says(example) for example in read])
    assert prediction.answer == "digit by digit, no carry"
    assert prediction.more_errors > 0.2
    pairs = fooling.matched_pairs(pool, BORROWS, prediction.answer, 40, seed=0)
    both = [example for side in zip(*pairs, strict=True) for example in side]
    said = [says(example) for example in both]
    seen = fooling.fooled(pairs, said, prediction.answer)
    there = np.array([text != e.answer for text, e in zip(said[:40], both[:40], strict=True)])
    other = np.array([text != e.answer for text, e in zip(said[40:], both[40:], strict=True)])
    assert seen.seen
    assert seen.more_errors.value == pytest.approx(there.mean() - other.mean())
    assert seen.errors_with.value == pytest.approx(there.mean())
    right = [str(example.answer) for example in both]
    out = fooling.knocked_out(pairs, said, right, prediction.answer)
    assert out.predicted.high < 0
    assert out.predicted.value == pytest.approx(-seen.answer_with.value)
    assert out.right_without.value == pytest.approx(other.mean())


def test_of_a_feature_that_has_nothing_to_do_with_it_a_failure_is_rarely_seen(
    read: Any, pool: Any
) -> None:
    """The prediction is the largest of twelve by chance; on new problems it comes in 2.5 %."""
    seen, tried = 0, 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        some = read[: len(read) : 2]
        said = [forgets(example, 0.3, random) for example in some]
        prediction = fooling.predict(COIN, some, said)
        if not prediction.answer:
            continue
        pairs = fooling.matched_pairs(pool[::4], COIN, prediction.answer, 40, seed=seed)
        both = [example for side in zip(*pairs, strict=True) for example in side]
        found = fooling.fooled(
            pairs, [forgets(example, 0.3, random) for example in both], prediction.answer
        )
        seen, tried = seen + found.seen, tried + 1
    assert tried >= 5
    assert seen <= 2


def test_without_an_answer_that_comes_more_often_nothing_is_predicted(read: Any) -> None:
    said = [str(example.answer) for example in read]
    prediction = fooling.predict(COIN, read, said)
    assert (prediction.answer, prediction.seen, prediction.more_errors) == ("", 0, 0.0)


@pytest.mark.parametrize("words", ["an operand is 5", "b is 4.5 or more", "b is below 4.5"])
def test_a_condition_is_found_again_by_its_words(words: str) -> None:
    explore = tasks.arithmetic("+", digits=(1,))
    feature = words if "operand" in words else "b"
    one = SimpleNamespace(feature=feature, condition=words)
    found = shortcuts.condition_named(one, explore)
    assert found.words == one.condition
    assert 0 < int(found.of(explore).sum()) < len(explore)


def asked(**options: Any) -> Any:
    about = {"model": "arithmetic-small", "operation": "all", "metric": "correct", "quick": True}
    return SimpleNamespace(**about, bigbench=None, save=False, **options)


def test_a_smoke_run_writes_its_page_and_goes_on_from_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = shortcuts.Sizes(160, (0.4, 0.2, 0.2), 1, 4, 19, 49, 1, 8)
    monkeypatch.setattr(shortcuts, "QUICK", sizes)
    found = shortcuts.run(asked())
    page = tmp_path / "runs" / "shortcuts" / "quick" / "arithmetic_small.md"
    text = page.read_text(encoding="utf-8")
    assert found["skill"] == 1
    assert found["tried"] >= 1
    assert "Preflight on" in text
    assert f"of {found['tried']:.0f} candidates count as a shortcut" in text
    assert page.with_name("arithmetic_small_candidates.csv").is_file()
    monkeypatch.setattr(shortcuts, "opened", lambda _: pytest.fail("all of it was kept"))
    assert shortcuts.run(asked()) == found
    monkeypatch.setattr(shortcuts, "QUICK", shortcuts.Sizes())
    with pytest.raises(SystemExit, match="is of another run"):
        shortcuts.run(asked())


def test_of_a_model_without_the_skill_the_page_says_why_it_ends(
    tiny_hooked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shortcuts, "opened", lambda _: tiny_hooked)
    found = shortcuts.run(asked())
    text = (tmp_path / "runs/shortcuts/quick/arithmetic_small.md").read_text(encoding="utf-8")
    assert (found["skill"], found["tried"]) == (0, 0)
    assert "whole answer:" in text
    assert "The trial ends here" in text


def trial_of(word: str, found: Any, seen: bool) -> Any:
    one = SimpleNamespace(word=word)
    return shortcuts.counts(one, SimpleNamespace(seen=seen) if found else None)


def test_a_shortcut_counts_only_when_its_failures_are_seen() -> None:
    assert trial_of("shortcut", True, True)
    assert not trial_of("shortcut", True, False)
    assert not trial_of("shortcut", False, False)
    assert not trial_of("tied to the feature, not causal", True, True)
