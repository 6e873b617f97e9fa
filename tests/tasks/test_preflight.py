"""Whether there is a skill, counted straight, and what would explain it away."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lens_skills.activations import evaluate, known_values
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.tasks import Preflight, Task, agreement, arithmetic, preflight
from lens_skills.tasks.preflight import require_examples

N = 120
Numbers = Sequence[float] | np.ndarray
Measured = Callable[..., Preflight]


@pytest.fixture
def measured(tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The preflight of a task on a model that gives these metric values, whatever they are."""
    preflight = importlib.import_module("lens_skills.tasks.preflight")

    def run(task: Task, metrics: Any = None, **values: Numbers) -> Preflight:
        def given(model: Any, examples: Any, wanted: Any, **options: Any) -> Any:
            known = known_values(wanted, examples)
            if examples is not task:  # with the prompts of others: no preference
                return {metric.name: torch.zeros(len(examples)) for metric in wanted}
            return {
                metric.name: known[metric.name]
                if metric.known
                else torch.tensor(np.broadcast_to(values.get(metric.name, 0.5), len(task)).copy())
                for metric in wanted
            }

        monkeypatch.setattr(preflight, "evaluate", given)
        return task.preflight(tiny_bridge, metrics=metrics)

    return run


def asked(n: int = N, **columns: Sequence[Any]) -> Task:
    """Sums with one answer each; ``columns`` are covariates, or fields of an Example."""
    fields = {"answer", "foil", "options", "group", "labels", "prompt"}
    rows = [{name: values[i] for name, values in columns.items()} for i in range(n)]
    return Task(
        "sums",
        [
            Example(
                id=str(i),
                **{"prompt": f"number {i}", "answer": str(i)}  # type: ignore[arg-type]
                | {name: value for name, value in row.items() if name in fields},
                covariates={name: value for name, value in row.items() if name not in fields},
            )
            for i, row in enumerate(rows)
        ],
    )


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (20, 20), (61, 120), (119, 120)])
def test_competence_is_a_share_with_its_exact_interval(
    measured: Measured, right: int, n: int
) -> None:
    task = asked(n, foil=["no"] * n)
    correct = np.random.default_rng(0).permutation(np.arange(n) < right).astype(float)
    found = measured(task, correct=correct, logit_diff=np.where(correct, 2.0, -0.1))
    whole, over_foil = found.competences
    interval = stats.binomtest(right, n).proportion_ci(method="exact")
    for competence in (whole, over_foil):
        assert competence.rate == pytest.approx(right / n)
        # The cluster-robust error has n - 1 degrees of freedom where the binomial has n.
        assert (competence.low, competence.high) == pytest.approx(tuple(interval), abs=0.013)
    assert (whole.name, whole.rule) == ("whole answer", "always the most frequent answer")
    assert whole.chance == pytest.approx(1 / n)
    assert (over_foil.name, over_foil.chance) == ("answer over foil", 0.5)
    assert whole.above_chance == (interval.low > 1 / n)
    assert over_foil.above_chance == (interval.low > 0.5)
    assert found.skill == (interval.low > 1 / n or interval.low > 0.5)
    assert ("no skill to explain" in repr(found)) == (not found.skill)


def test_alike_examples_of_a_group_are_counted_once(measured: Measured) -> None:
    """Twenty nouns, six prompts each, right or wrong as a whole: the interval of twenty tries."""
    nouns = [f"noun {i // 6}" for i in range(N)]
    right = np.repeat(np.arange(20) < 13, 6).astype(float)
    task = asked(group=nouns, foil=["no"] * N)
    over_foil = measured(task, correct=right, logit_diff=right - 0.5).competences[1]
    interval = stats.binomtest(13, 20).proportion_ci(method="exact")
    assert (over_foil.low, over_foil.high) == pytest.approx(tuple(interval), abs=0.02)
    # 65 % of 120 would be above a coin; of 20 it is not.
    assert stats.binomtest(78, N).proportion_ci(method="wilson").low > 0.5
    assert over_foil.above_chance is False


def test_a_coin_for_each_group_is_rarely_above_chance(measured: Measured) -> None:
    """Called above chance in at most 2.5 %; examples counted, it was a fifth."""
    random = np.random.default_rng(0)
    sizes = np.maximum(1, random.lognormal(1.5, 0.8, 24).astype(int))
    nouns = np.repeat(np.arange(24), sizes)
    task = asked(len(nouns), group=[str(n) for n in nouns], foil=["no"] * len(nouns))
    called, wilson = 0, 0
    for _ in range(150):
        wins = random.integers(2, size=24)[nouns] - 0.5
        called += bool(measured(task, ["correct"], logit_diff=wins).competences[1].above_chance)
        interval = stats.binomtest(int((wins > 0).sum()), len(wins)).proportion_ci(method="wilson")
        wilson += interval.low > 0.5
    assert called <= 0.06 * 150
    assert wilson > 0.1 * 150


def test_below_eight_groups_shares_are_printed_without_intervals(measured: Measured) -> None:
    task = asked(foil=["no"] * N, group=[str(i % 7) for i in range(N)], size=list(range(N)))
    found = measured(task, correct=np.ones(N), logit_diff=np.ones(N))
    whole, over_foil = found.competences
    assert (whole.rate, whole.low, whole.high, whole.above_chance) == (1.0, None, None, None)
    assert over_foil.above_chance is None
    assert found.skill is None
    assert found.predicted == {}
    text = words(found)
    assert "7 of the 8 groups that an interval takes" in text
    assert "so: give more groups before all else, 8 at least" in text
    assert "95 %" not in text
    assert "above chance" not in text


def test_uneven_groups_are_counted_by_what_they_say(measured: Measured) -> None:
    task = asked(group=["big"] * (N - 19) + [str(i) for i in range(19)])
    found = measured(task)
    assert found.effective_groups == pytest.approx(N**2 / ((N - 19) ** 2 + 19))
    text = words(found)
    assert f"20 groups, which say as much as {found.effective_groups:.1f} of one size" in text
    assert "so: even the groups out" in text
    assert found.chance_r < found.chance_r_groups
    assert "constant in each group any |r|" in text


@pytest.mark.parametrize(
    ("fields", "values", "said"),
    [
        (
            {"foil": ["no"] * N},
            {"correct": np.arange(N) % 40 > 0, "logit_diff": np.linspace(-1, 2, N)},
            "use logit_diff, not correct, because correct is 1 in 98% of the examples",
        ),
        (
            {"foil": ["no"] * N},
            {"correct": np.zeros(N), "logit_diff": np.linspace(-1, 2, N)},
            "use logit_diff, not correct, because correct takes one value only",
        ),
        (
            {"foil": ["no"] * N},
            {"correct": np.arange(N) % 2, "logit_diff": np.linspace(-1, 2, N)},
            "use logit_diff, not correct, because correct is 0 or 1 and does not say by how much",
        ),
        (
            {},
            {"correct": np.arange(N) % 2, "answer_probability": np.linspace(0.1, 0.8, N)},
            "use answer_probability, not correct, because correct is 0 or 1 and does not say",
        ),
        (
            {},
            {"correct": np.arange(N) % 2, "answer_probability": np.linspace(0, 2, N).clip(0.2, 1)},
            "use correct, not answer_probability, because answer_probability is saturated in 51%",
        ),
        (
            {},
            {"correct": np.zeros(N), "answer_probability": np.linspace(0, 1e-5, N)},
            "give every example a foil, so that logit_diff can be measured: answer_probability is "
            "saturated in 100% of the examples; correct takes one value only",
        ),
        (
            {"foil": ["no"] * N},
            {"correct": np.zeros(N), "logit_diff": np.zeros(N), "answer_probability": np.ones(N)},
            "give other examples: logit_diff takes one value only;",
        ),
        (
            {"labels": [{"coin": i % 2} for i in range(N)], "code": [i % 2 + 3 for i in range(N)]},
            {"correct": np.arange(N) % 2},
            "score label:coin, correct with given=[…]: other columns alone predict them",
        ),
        (
            {},
            {"correct": np.zeros(N)},
            "take an easier task, a larger model, or show it examples in the prompt",
        ),
    ],
)  # fmt: skip
def test_it_ends_with_what_to_do(
    measured: Measured, fields: dict[str, Any], values: dict[str, Any], said: str
) -> None:
    numbers = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    steady = {"answer_probability": np.linspace(0.2, 0.7, N), "confidence": np.linspace(0, 0.9, N)}
    found = measured(asked(**fields), **(steady | numbers))
    assert said in words(found)
    last = [line for line in repr(found).splitlines() if line.startswith(("so: ", "and: "))]
    assert len(last) == len(found.advice)
    assert last[0].startswith("so: ")
    assert any(said[:20] in sentence for sentence in found.advice)
    assert max(map(len, repr(found).splitlines())) <= 80


def test_it_always_ends_with_advice(measured: Measured) -> None:
    bare = Task("bare", [Example(str(i), f"hello {i}", labels={"odd": i % 2}) for i in range(30)])
    assert "so: score labels, or the model's confidence" in words(measured(bare))


def words(found: Preflight) -> str:
    """The card as one line."""
    return " ".join(repr(found).split())


def test_a_tie_with_the_foil_is_no_success(measured: Measured) -> None:
    found = measured(asked(foil=["no"] * N), correct=np.zeros(N), logit_diff=np.zeros(N))
    assert found.competences[1].rate == 0


def test_the_options_are_guessed_at_their_own_number(measured: Measured) -> None:
    options = [(str(i), "x") if i % 2 else (str(i), "x", "y", "z") for i in range(N)]
    wins = np.where(np.arange(N) < 30, 1.0, -1.0)
    found = measured(asked(options=options), correct=np.zeros(N), logit_diff=wins)
    best = found.competences[1]
    assert (best.name, best.rate) == ("best of the options", pytest.approx(0.25))
    assert best.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found.skill is False


def test_it_is_counted_as_the_model_answers(tiny: Any) -> None:
    """Nothing made up here: the shares are those of the metrics themselves."""
    task = arithmetic("+", n=12)
    found = preflight(tiny, task)
    names = ["correct", "logit_diff", "first_token_correct", "confidence", "answer_probability"]
    values = evaluate(tiny, task, names)
    whole, over_foil = found.competences
    assert whole.rate == float(values["correct"].mean())
    assert over_foil.rate == float((values["logit_diff"] > 0).double().mean())
    low = values["answer_probability"] < 1e-4
    high = values["answer_probability"] > 0.99
    assert found.saturated["answer_probability"] == float((low | high).double().mean())
    assert (found.n_examples, found.n_groups) == (12, len(task.groups))


def test_random_weights_have_no_skill(tiny: Any) -> None:
    """A model that always prefers one verb is right in half of the pairs."""
    found = preflight(tiny, agreement(48))
    assert found.skill is False
    assert "  no skill to explain: correct answers here are no better than a guess" in repr(found)
    assert not found.frame()["above_chance"].any()


def test_without_answers_nothing_is_said_about_skill(tiny_bridge: Any) -> None:
    task = Task(
        "bare",
        [Example(str(i), f"hello {i}", labels={"odd": i % 2}) for i in range(30)],
    )
    found = preflight(tiny_bridge, task)
    assert found.skill is None
    assert (found.competences, found.baselines, found.copying) == ((), {}, {})
    assert found.frame().empty
    assert "no skill" not in repr(found)


def test_copying_a_column_is_a_rule_to_beat(measured: Measured) -> None:
    first = [i % 10 for i in range(N)]
    copied = np.arange(N) % 3 > 0  # two thirds of the answers
    answers = [str(a if copy else 50 + a) for a, copy in zip(first, copied, strict=True)]
    task = asked(answer=answers, prompt=[f"What is {a} plus something" for a in first], first=first)
    found = measured(task, correct=np.where(copied, 1.0, 0.0))
    assert found.baselines["copying first"] == pytest.approx(2 / 3)
    assert found.baselines["always the most frequent answer"] == pytest.approx(8 / N)
    whole = found.competences[0]
    assert (whole.rule, whole.chance) == ("copying first", pytest.approx(2 / 3))
    # Right in two thirds, and all of it copying.
    assert found.skill is False
    assert found.copying == {"inside": 1.0, "outside": 0.0}
    assert "in the prompt 100%, elsewhere 0%: mostly copying" in words(found)


def test_some_columns_are_no_rules(measured: Measured) -> None:
    mostly = [str(i) if i % 2 else "0" for i in range(N)]
    task = asked(
        prompt=[f"who is number {i}" for i in range(N)],
        who=list(range(N)),  # always the answer: the task itself
        half=mostly,  # often the answer, and often read off the prompt, but not always
        result=[str(i) if i % 2 else "unseen" for i in range(N)],  # not in the prompt
        other=["number"] * N,  # in the prompt, never the answer
    )
    assert list(measured(task).baselines) == ["always the most frequent answer"]


def test_where_the_answer_stands_in_the_prompt(measured: Measured) -> None:
    prompts = ["5 and 12", "a 12?", "12", "112", "-12", "1 2", "twelve", "(12)"]
    inside = np.array([True, True, True, False, False, False, False, True])
    correct = np.array([1, 1, 0, 1, 0, 0, 0, 1.0])
    task = asked(8, prompt=prompts, answer=[" 12"] * 8)
    found = measured(task, correct=correct)
    assert found.copying["inside"] == pytest.approx(correct[inside].mean())
    assert found.copying["outside"] == pytest.approx(correct[~inside].mean())
    everywhere = measured(asked(4, prompt=[*prompts[:3], "12"], answer=["12"] * 4))
    assert everywhere.copying["outside"] is None
    assert "elsewhere" not in repr(everywhere)


def test_random_labels_are_not_predicted(measured: Measured) -> None:
    random = np.random.default_rng(1)
    columns = {
        "size": random.normal(size=400).tolist(),
        "word": random.choice(list("abc"), 400).tolist(),
    }
    labels = [{"coin": int(c)} for c in random.integers(2, size=400)]
    found = measured(asked(400, labels=labels, **columns))
    assert found.predicted["label:coin"] == pytest.approx(0.5, abs=0.08)


def test_a_label_in_disguise_is_predicted(measured: Measured) -> None:
    random = np.random.default_rng(2)
    coin = random.integers(2, size=N)
    labels = [{"coin": int(c)} for c in coin]
    number = (5 - 3.0 * coin + 0.1 * random.normal(size=N)).tolist()
    assert measured(asked(labels=labels, code=number)).predicted["label:coin"] > 0.999
    words = ["head" if c else "tail" for c in coin]
    found = measured(asked(labels=labels, word=words))
    assert found.predicted["label:coin"] > 0.999
    assert "  other columns alone predict label:coin: AUROC 1.00" in repr(found).splitlines()
    # A label is not predicted from itself.
    assert "label:coin" not in measured(asked(labels=labels)).predicted


def test_a_number_is_predicted_as_far_as_it_follows(measured: Measured) -> None:
    random = np.random.default_rng(3)
    size, noise = random.normal(size=(2, 400))
    task = asked(400, size=size.tolist())
    for share in (1.0, 0.5):
        values = share**0.5 * size + (1 - share) ** 0.5 * noise
        found = measured(task, ["confidence"], confidence=values)
        assert found.predicted["confidence"] == pytest.approx(share, abs=0.08)
        assert f"predict confidence: R² {found.predicted['confidence']:.2f}" in words(found)
    assert measured(task, ["confidence"], confidence=noise).predicted["confidence"] < 0.05


def test_it_is_predicted_for_unseen_groups(measured: Measured) -> None:
    """The noun gives a label away that each noun drew by lot, but not the label of a new noun."""
    random = np.random.default_rng(4)
    nouns = [f"noun {i % 20}" for i in range(200)]
    drawn = random.permutation(20) % 2
    lot = {f"noun {i}": int(drawn[i]) for i in range(20)}
    labels = [{"lot": lot[noun]} for noun in nouns]
    alone = measured(asked(200, labels=labels, noun=nouns)).predicted["label:lot"]
    grouped = measured(asked(200, labels=labels, noun=nouns, group=nouns)).predicted["label:lot"]
    assert alone > 0.95
    assert grouped < 0.7


def test_saturated_probabilities_are_counted(measured: Measured) -> None:
    confidence = np.full(N, 0.5)
    confidence[:30], confidence[30:33] = 0.999, 1e-5
    answer = np.full(N, 0.99)  # not beyond
    answer[:24] = 0.0
    found = measured(asked(), confidence=confidence, answer_probability=answer)
    assert found.saturated == pytest.approx({"confidence": 33 / N, "answer_probability": 24 / N})
    assert "confidence is saturated in 28% of the examples" in repr(found)
    # A fifth is still borne.
    assert "answer_probability is saturated" not in repr(found)


def test_a_metric_of_one_value_is_named(measured: Measured) -> None:
    labels = [{"coin": i % 2, "always": 1} for i in range(N)]
    found = measured(asked(labels=labels, size=list(range(N))), correct=np.zeros(N))
    assert found.constant == ("label:always", "confidence", "correct")
    for name in found.constant:
        assert f"  {name} takes one value only: nothing can correlate with it" in repr(found)
        assert name not in found.predicted


def test_categories_of_many_values_are_no_default_metric(measured: Measured) -> None:
    labels = [{"op": "+-*"[i % 3], "sign": "+-"[i % 2], "size": i} for i in range(N)]
    found = measured(asked(labels=labels))
    assert set(found.predicted) | set(found.constant) == {
        "label:sign", "label:size", "confidence", "correct",
    }  # fmt: skip


def test_the_calibration_is_that_of_the_first_token(measured: Measured) -> None:
    """Sure by 0.8 and right in half: off by 0.3."""
    right = np.arange(N) % 2
    found = measured(asked(), confidence=np.full(N, 0.8), first_token_correct=right.astype(float))
    assert found.calibration is not None
    assert found.calibration.error == pytest.approx(0.3)
    assert "calibration error of the first-token confidence 0.30" in repr(found)


def test_more_examples_leave_less_to_chance(measured: Measured) -> None:
    """Against the largest |r| of as many independent neurons, drawn."""
    small, large = measured(asked(40)), measured(asked(400))
    assert large.chance_r < small.chance_r
    random = np.random.default_rng(5)
    y = stats.zscore(random.normal(size=400))
    drawn = [
        np.abs(stats.zscore(random.normal(size=(192, 400)), axis=1) @ y / 400).max()
        for _ in range(60)
    ]
    assert large.chance_r == pytest.approx(np.mean(drawn), rel=0.25)


def test_it_comes_back_as_it_was_saved(measured: Measured, tmp_path: Path) -> None:
    found = measured(asked(foil=["no"] * N), correct=np.arange(N) % 2, logit_diff=np.ones(N))
    again = Preflight.load(found.save(tmp_path / "preflight"))
    assert again.skill is True
    assert again.n_examples == N
    pd.testing.assert_frame_equal(again.frame(), found.frame())
    assert repr(again) == repr(found)
    assert found.frame().columns.tolist() == [
        "name", "rate", "low", "high", "chance", "rule", "above_chance",
    ]  # fmt: skip
    assert again.baselines == found.baselines


def test_too_few_examples_are_refused() -> None:
    require_examples(asked(40), 40)
    with pytest.raises(LensSkillsError, match="39 examples are too few"):
        require_examples(asked(39), 40)


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_a_preference_that_asks_no_question_is_no_skill(
    tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """The answer is short and the foil long; the model takes the short one whatever is asked."""
    module = importlib.import_module("lens_skills.tasks.preflight")
    answers = [" 1" if i < share * N else " 22" for i in range(N)]
    foils = [" 22" if answer == " 1" else " 1" for answer in answers]
    task = asked(answer=answers, foil=foils)

    def given(model: Any, examples: Any, wanted: Any, **options: Any) -> Any:
        prefers = torch.tensor([1.0 if one.answer == " 1" else -1.0 for one in examples])
        return {metric.name: prefers for metric in wanted}

    monkeypatch.setattr(module, "evaluate", given)
    card = task.preflight(tiny_bridge, metrics=["confidence"])
    over = {one.name: one for one in card.competences}["answer over foil"]
    assert over.rate == pytest.approx(share)
    assert over.chance == pytest.approx(share, abs=0.1)
    assert over.rule == "the same after other prompts"
    assert over.above_chance is False


def test_an_answer_that_follows_from_the_question_is_held_against_a_coin(
    tiny_bridge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("lens_skills.tasks.preflight")
    answers = [f" {i % 2}" for i in range(N)]
    task = asked(answer=answers, foil=[f" {1 - i % 2}" for i in range(N)])

    def given(model: Any, examples: Any, wanted: Any, **options: Any) -> Any:
        right = [int(one.prompt.split()[-1]) % 2 == int(one.answer) for one in examples]
        return {metric.name: torch.tensor(right) * 2.0 - 1.0 for metric in wanted}

    monkeypatch.setattr(module, "evaluate", given)
    card = task.preflight(tiny_bridge, metrics=["confidence"])
    over = {one.name: one for one in card.competences}["answer over foil"]
    assert (over.rate, over.chance, over.rule, over.above_chance) == (1.0, 0.5, "a coin", True)
