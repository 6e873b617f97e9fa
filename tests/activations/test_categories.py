"""A label of several categories is one 0/1 metric per category, each against the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr

from lens_skills.activations import (
    capture,
    column_values,
    covariate,
    evaluate,
    family_of,
    known_values,
    label,
    parse_metrics,
    stream,
)
from lens_skills.activations.columns import MOST_CATEGORIES
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import ablate, audit, controls, verify
from lens_skills.scoring import score
from lens_skills.settings import config
from lens_skills.studies import study
from lens_skills.tasks import Task, preflight
from tests.scoring.test_handmade import examples_with, handmade

RULES = ("lexical_overlap", "subsequence", "constituent")
NAMES = tuple(f"label:rule={rule}" for rule in sorted(RULES))
WORDS = ("key", "keys", "boy", "boys", "author", "authors", "doctor", "doctors")


def examples_of(n: int, categories: tuple[Any, ...] = RULES) -> list[Example]:
    return [
        Example(
            f"e{place}",
            f"The {WORDS[place % 8]} near the {WORDS[place // 8 % 8]}",
            " are",
            foil=" is",
            labels={
                "rule": categories[place % len(categories)],
                "plural": place % 2,
                "side": ("left", "right")[place % 2],
            },
            covariates={"place": ("here", "there", "where")[place // 3 % 3], "size": place},
        )
        for place in range(n)
    ]


EXAMPLES = examples_of(48)


def one_against_the_rest(category: str) -> list[float]:
    return [float(example.labels["rule"] == category) for example in EXAMPLES]


def test_one_metric_per_category_in_sorted_order() -> None:
    found = parse_metrics(["label:plural", "label:rule", "confidence", "label:side"], EXAMPLES)
    assert [metric.name for metric in found] == [
        "label:plural",
        *NAMES,
        "confidence",
        "label:side",  # two categories stay one metric
    ]
    values = known_values(found, EXAMPLES)
    for rule in RULES:
        assert values[f"label:rule={rule}"].tolist() == one_against_the_rest(rule)
    together = torch.stack([values[name] for name in NAMES]).sum(0)
    assert together.tolist() == [1.0] * len(EXAMPLES)
    assert values["label:side"].tolist() == values["label:plural"].tolist()


@pytest.mark.parametrize("written", ["covariate:place", covariate("place")])
def test_covariates_too(written: Any) -> None:
    names = [metric.name for metric in parse_metrics(written, EXAMPLES)]
    assert names == ["covariate:place=here", "covariate:place=there", "covariate:place=where"]


def test_a_dict_names_them() -> None:
    found = parse_metrics({"mine": "label:rule", "other": label("rule=subsequence")}, EXAMPLES)
    assert [metric.name for metric in found] == [
        *(f"mine={rule}" for rule in sorted(RULES)),
        "other",
    ]
    values = known_values(found, EXAMPLES)
    assert values["mine=subsequence"].tolist() == values["other"].tolist()


def test_numbers_stay_one_metric_however_many() -> None:
    assert [m.name for m in parse_metrics("covariate:size", EXAMPLES)] == ["covariate:size"]


def test_one_category_named_alone() -> None:
    wanted = [
        "label:rule=constituent",
        "label:side=left",
        "covariate:place=where",
        "label:plural=1",
    ]
    # With or without the examples at hand.
    for found in (parse_metrics(wanted), parse_metrics(wanted, EXAMPLES)):
        assert [metric.name for metric in found] == wanted
        values = known_values(found, EXAMPLES)
        assert values["label:rule=constituent"].tolist() == one_against_the_rest("constituent")
        assert values["label:side=left"].tolist() == [1.0, 0.0] * 24
        assert values["label:plural=1"].tolist() == [0.0, 1.0] * 24
    assert column_values(EXAMPLES, "place=here").tolist()[:6] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_column_may_itself_be_called_so() -> None:
    examples = [
        Example(name, "x", labels={"a=b": 10 * number, "a": name, "c=d": name})
        for number, name in enumerate(("b", "c", "d"))
    ]
    assert column_values(examples, "a=b").tolist() == [0.0, 10.0, 20.0]
    assert [m.name for m in parse_metrics("label:a=b", examples)] == ["label:a=b"]
    assert column_values(examples, "c=d=c").tolist() == [0.0, 1.0, 0.0]


def test_a_category_nobody_has_is_refused_with_those_there_are() -> None:
    message = "no example here has rule 'lexical': it is constituent, lexical_overlap, subsequence"
    with pytest.raises(LensSkillsError, match=message):
        known_values(parse_metrics("label:rule=lexical"), EXAMPLES)
    with pytest.raises(LensSkillsError, match="'e0' has no label 'rul'"):
        known_values(parse_metrics("label:rul=constituent"), EXAMPLES)
    with pytest.raises(LensSkillsError, match="'e0' has no covariate 'rule'"):
        known_values(parse_metrics("covariate:rule=constituent"), EXAMPLES)


def test_too_many_categories_are_refused_with_the_way_out() -> None:
    many = tuple(f"kind{place:02d}" for place in range(MOST_CATEGORIES + 1))
    examples = examples_of(48, many)
    message = rf"'rule' has {MOST_CATEGORIES + 1} categories .*'label:rule=kind00'"
    with pytest.raises(LensSkillsError, match=message):
        parse_metrics(["label:rule"], examples)
    assert len(parse_metrics("label:rule", examples_of(48, many[:-1]))) == MOST_CATEGORIES
    (one,) = parse_metrics("label:rule=kind03", examples)
    assert known_values([one], examples)[one.name].sum() == 4


def test_a_missing_value_is_named_as_ever() -> None:
    examples = [*EXAMPLES, Example("bare", "x")]
    with pytest.raises(LensSkillsError, match="'bare' has no label 'rule'"):
        known_values(parse_metrics("label:rule", examples), examples)


def test_the_same_metric_twice_is_refused() -> None:
    with pytest.raises(LensSkillsError, match="two metrics are called 'label:rule=constituent'"):
        parse_metrics(["label:rule", "label:rule=constituent"], EXAMPLES)


def test_a_metric_outside_a_pass_says_how_to_name_one(tiny: Any) -> None:
    batch = next(stream(tiny, EXAMPLES[:4]))
    logits = torch.zeros(4, tiny.cfg.d_vocab)
    with pytest.raises(
        LensSkillsError, match=r"'rule' has 3 categories .*'label:rule=constituent'"
    ):
        label("rule")(logits, batch.examples)
    numbers = label("rule=constituent")(logits, batch.examples)
    here = torch.tensor(one_against_the_rest("constituent"))[batch.index]
    assert numbers.tolist() == here.tolist()


def test_score_as_the_issue_types_it(tiny: Any) -> None:
    """Each category's r is that of its own 0/1 numbers, against NumPy."""
    found = score(
        tiny,
        EXAMPLES,
        metrics=["label:rule", "correct", "confidence"],
        n_permutations=19,
    )
    # The tiny model never answers right, and that is said.
    assert found.metrics == (*NAMES, "confidence")
    assert set(found.excluded_metrics) == {"correct"}
    units = np.zeros((len(EXAMPLES), found.n_units))
    for batch in stream(tiny, EXAMPLES):
        units[batch.index] = batch.activations.flatten(1)
    for rule in RULES:
        truth = np.array(one_against_the_rest(rule))
        expected = np.corrcoef(units[:, 5], truth)[0, 1]
        assert found[f"label:rule={rule}"].r[0, 5].item() == pytest.approx(expected, abs=1e-5)
        assert found.class_means[f"label:rule={rule}"].shape == (2, 1, found.n_units)
    with pytest.raises(
        LensSkillsError, match=r"no metric 'label:rule' .*They hold: label:rule=con"
    ):
        _ = found["label:rule"]


def test_evaluate_and_stream(tiny: Any) -> None:
    found = evaluate(tiny, EXAMPLES, ["label:rule", "entropy"])
    assert list(found) == [*NAMES, "entropy"]
    assert found[NAMES[0]].tolist() == one_against_the_rest("constituent")
    assert list(evaluate(tiny, EXAMPLES, "label:rule")) == list(NAMES)
    with config(batch_size=2):
        batch = next(stream(tiny, EXAMPLES, metrics="label:rule"))
    # Two examples of a batch do not decide how many categories there are.
    assert list(batch.metrics) == list(NAMES)


def test_a_table_holds_and_computes_them(tiny: Any, tmp_path: Path) -> None:
    table = capture(tiny, EXAMPLES, tmp_path / "t", metrics="label:rule")
    assert list(table.values(table.examples, "label:rule")) == list(NAMES)
    bare = capture(tiny, EXAMPLES, tmp_path / "bare", dtype="float32")
    options = {"metrics": ["label:rule", "covariate:place=here"], "n_permutations": 0}
    tabled, exact = score(bare, EXAMPLES, **options), score(tiny, EXAMPLES, **options)
    assert tabled.metrics == (*NAMES, "covariate:place=here")
    torch.testing.assert_close(tabled.r, exact.r, rtol=0, atol=1e-6)


def test_describe_study_audit_and_verify(tiny: Any) -> None:
    task = Task("rules", EXAMPLES)
    shown = preflight(tiny, task, metrics=["label:rule"])
    assert shown.binary == NAMES
    # What a category is predicted from must not be the column itself.
    assert all(share < 0.999 for share in shown.predicted.values())
    with pytest.raises(LensSkillsError, match=r"study\(metric=.*'label:rule' is 3 metrics"):
        study(tiny, task, metric="label:rule")
    with pytest.raises(LensSkillsError, match="'label:rule=constituent', 'label:rule=lexical"):
        study(tiny, task, metric="label:rule")
    with pytest.raises(LensSkillsError, match="'label:rule=lexical_overlap' is a column"):
        verify(tiny, task, ["L0N1"], do=ablate("zero"), metric="label:rule=lexical_overlap")
    found = audit(
        tiny, task, neurons=["L0N1"], claims=["label:rule"], controls=controls(0, neurons=20),
        n_permutations=19, delta=1.0,
    )  # fmt: skip
    assert [row["metric"] for row in found.claims] == list(NAMES)


LEVELS = ("very low", "low", "high")


def test_categories_in_order_are_one_metric() -> None:
    """pandas's codes of an ordered categorical; sorted by letters they would be another order."""
    examples = examples_of(48, LEVELS)
    expected = pd.Categorical([e.labels["rule"] for e in examples], LEVELS, ordered=True).codes
    written = "label:rule:ordered=[very low, low, high]"
    for asked in (written, label("rule", ordered=LEVELS)):
        (metric,) = parse_metrics(asked, examples)
        assert metric.name == written
        assert known_values([metric], examples)[written].tolist() == expected.tolist()
    (named,) = parse_metrics({"level": written}, examples)
    assert known_values([named], examples)["level"].tolist() == expected.tolist()
    assert parse_metrics(written)[0].name == written  # without examples
    numbers = examples_of(48, (3, 1, 2))
    (metric,) = parse_metrics(label("rule", ordered=[1, 2, 3]), numbers)
    assert known_values([metric], numbers)[metric.name].tolist()[:3] == [2.0, 0.0, 1.0]
    (metric,) = parse_metrics(covariate("place", ordered=["here", "there", "where"]), EXAMPLES)
    assert metric.name == "covariate:place:ordered=[here, there, where]"
    assert known_values([metric], EXAMPLES)[metric.name].tolist()[:7] == [0, 0, 0, 1, 1, 1, 2]


def test_an_order_finds_what_no_category_alone_does(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    examples = examples_with(90, labels={"level": [LEVELS[place % 3] for place in range(90)]})
    ranks = np.arange(90) % 3
    units = (ranks + 0.5 * random.normal(size=90))[:, None, None].astype(np.float32)
    table = handmade(tmp_path / "table", units, examples)
    ordered = score(
        table, examples, metrics=label("level", ordered=LEVELS), n_permutations=0, n_controls=0
    )
    one_by_one = score(table, examples, metrics="label:level", n_permutations=0, n_controls=0)
    rho = pearsonr(ranks, units[:, 0, 0]).statistic
    assert float(ordered.r) == pytest.approx(rho, abs=1e-6)
    assert float(one_by_one.r.abs().max()) < rho - 0.05


def test_an_order_that_cannot_be() -> None:
    examples = examples_of(48, LEVELS)
    short = parse_metrics("label:rule:ordered=[very low, hihg]")
    message = r"'e1' has rule 'low', which the order \[very low, hihg\] leaves out\. Name it"
    with pytest.raises(LensSkillsError, match=message):
        known_values(short, examples)
    with pytest.raises(LensSkillsError, match=r"leaves out\. Did you mean 'lo w'\?"):
        known_values(parse_metrics("label:rule:ordered=[very low, lo w]"), examples)
    for order in ("[]", "[low]", "[low, high, low]"):
        with pytest.raises(LensSkillsError):
            known_values(parse_metrics(f"label:rule:ordered={order}"), examples)
    with pytest.raises(LensSkillsError, match=r"\[low, low\]: name two categories or more"):
        label("rule", ordered=["low", "low"])
    with pytest.raises(LensSkillsError, match="'a, b' cannot stand in the order"):
        label("rule", ordered=["a, b", "c"])
    with pytest.raises(LensSkillsError, match="'e0' has no label 'rul'"):
        known_values(parse_metrics("label:rul:ordered=[a, b]"), examples)


def test_a_column_may_itself_be_called_like_an_order() -> None:
    name = "a:ordered=[b, c]"
    examples = [Example(str(place), "x", labels={name: place}) for place in range(3)]
    assert column_values(examples, name).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("metric", "family"),
    [
        ("label:rule=a", "label:rule"),
        ("covariate:place=here", "covariate:place"),
        ("mine=a", "mine"),
        ("label:plural", "label:plural"),
        ("label:rule:ordered=[a, b]", "label:rule:ordered=[a, b]"),
        ("confidence", "confidence"),
    ],
)
def test_the_family_of_a_category_is_its_label(metric: str, family: str) -> None:
    assert family_of(metric) == family


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("confidnce", "confidence"),
        ("logit_dif", "logit_diff"),
        ("plural", "label:plural"),
        ("size", "covariate:size"),
        ("lable:plural", "label:plural"),
    ],
)
def test_a_metric_that_is_nearly_right(written: str, meant: str) -> None:
    with pytest.raises(LensSkillsError, match=rf"no metric '{written}'\. Did you mean '{meant}'\?"):
        parse_metrics([written], EXAMPLES)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("label:plurl", "label:plural"),
        ("label:size", "covariate:size"),
        ("covariate:plural", "label:plural"),
        ("label:rule=subsequense", "subsequence"),
    ],
)
def test_a_column_that_is_nearly_right(written: str, meant: str) -> None:
    with pytest.raises(LensSkillsError, match=rf"Did you mean '{meant}'\?"):
        known_values(parse_metrics(written, EXAMPLES), EXAMPLES)


def numbered(values: Any) -> list[Example]:
    return [
        Example(str(place), "The key", labels={"n": value}, covariates={"n": value})
        for place, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1, 2, 0], True),
        ([1, 2, 3, 4, 5], True),
        ([0, 2, 3], True),  # one class has no example here
        ([-1, 0, 1], True),
        (range(12), True),
        (range(13), False),
        ([1990, 1991, 1992], False),
        ([4, 5, 6], False),
        ([0.0, 0.5, 1.0], False),
        ([1, 5, 90], False),
        ([0, 1], False),
        ([True, False], False),
    ],
)
def test_class_ids_are_classes_and_quantities_are_not(values: Any, classes: bool) -> None:
    examples = numbered(values)
    found = [metric.name for metric in parse_metrics("label:n", examples)]
    expected = [f"label:n={value}" for value in sorted(set(values))] if classes else ["label:n"]
    assert found == expected
    assert [m.name for m in parse_metrics("covariate:n", examples)] == ["covariate:n"]


def test_how_numbers_are_read_can_be_said() -> None:
    examples = numbered([1, 2, 3, 2])
    for written in ("label:n:number", label("n", number=True)):
        (one,) = parse_metrics(written, examples)
        assert known_values([one], examples)["label:n:number"].tolist() == [1.0, 2.0, 3.0, 2.0]
    years = numbered([1990, 1991, 1992])
    for written in ("label:n:classes", label("n", number=False)):
        found = parse_metrics(written, years)
        assert [m.name for m in found] == ["label:n=1990", "label:n=1991", "label:n=1992"]
        assert known_values(found, years)["label:n=1991"].tolist() == [0.0, 1.0, 0.0]
    assert len(parse_metrics("covariate:n:classes", years)) == 3
    with pytest.raises(
        LensSkillsError, match="'rule:number': rule is 'lexical_overlap', no number"
    ):
        known_values(parse_metrics("label:rule:number", EXAMPLES), EXAMPLES)
    own = [Example("a", "x", labels={"n:number": 3})]
    assert known_values(parse_metrics("label:n:number", own), own)["label:n:number"].tolist() == [3]


def test_the_preflight_says_how_numbers_were_read(tiny: Any) -> None:
    examples = [
        Example(f"e{n}", f"The {WORDS[n % 8]}", labels={"stars": n % 3, "year": 1990 + n % 4})
        for n in range(24)
    ]
    shown = repr(preflight(tiny, Task("t", examples)))
    assert "label:stars is read as 3 classes" in shown
    assert "label:stars:number" in shown.replace("\n", " ")
    assert "label:year is read as a number (classes: label:year:classes)" in " ".join(shown.split())
