"""Every step in one call: a planted neuron is found, and the card says what was asked and left."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.studies import Study, study
from lens_skills.tasks import Task, pairs
from tests.planted import planted

LAYER, NEURON = 0, 11
NAME = f"L{LAYER}N{NEURON}"
NOUNS = (" key", " girl", " boy", " author", " doctor", " cabinet")  # one token each, with s too
FRAMES = ("hello {0} and the{1}", "to the {0} near the{1}", "when {0} or the{1}", "we saw {0}{1}")
SPLIT = (96, 64)  # explore and confirm: 0.6 and 0.4 of 160


def number_task(n: int = 160, *, answers: bool = False) -> Task:
    """Pairs of prompts that differ in the number of their last word, a noun."""
    random = np.random.default_rng(0)
    rows = []
    for pair in range(n // 2):
        noun = str(random.choice(NOUNS))
        text = FRAMES[pair % 4].format(f"{pair}", noun)
        for plural in (0, 1):
            rows.append(
                {
                    "text": text + "s" * plural,
                    "twin": text + "s" * (1 - plural),
                    "verb": " was" if plural else " here",
                    "other": " here" if plural else " was",
                    "plural": plural,
                    "frame": str(pair % 4),
                    "coin": int(random.integers(2)),
                    "length": float(len(text)),
                    "pair": str(pair),
                    # The control task's random labels are not a matter of number.
                    "kind": f"kind {pair % 20} {random.integers(2)}",
                }
            )
    texts: dict[str, Any] = {"answer": "verb", "foil": "other"} if answers else {}
    return pairs(
        pd.DataFrame(rows),
        clean="text",
        corrupted="twin",
        group="pair",
        labels=("plural", "coin"),
        covariates=("frame", "length"),
        kind="kind",
        name="numbers",
        **texts,
    )


@pytest.fixture(scope="module")
def knowing(tiny_bridge: Any) -> Iterator[Any]:
    """The tiny model with a neuron that fires where the prompt ends in a plural."""
    encode = tiny_bridge.tokenizer.encode
    plural, singular = (
        [encode(noun + ending, add_special_tokens=False)[0] for noun in NOUNS]
        for ending in ("s", "")
    )
    with planted(tiny_bridge, LAYER, NEURON, plural, singular):
        yield tiny_bridge


def run(model: Any, task: Task | None = None, **options: Any) -> Study:
    defaults = {"metric": "label:plural", "n_permutations": 100}
    defaults |= {"fractions": (0.6, 0.4)}  # no third split, no verdict
    with ls.config(batch_size=80, progress=False):
        return study(model, number_task() if task is None else task, **defaults | options)


@pytest.fixture(scope="module")
def found(knowing: Any) -> Study:
    return run(knowing, number_task(answers=True), also=["label:coin", "confidence"])


def test_the_planted_neuron_is_confirmed_and_first(found: Study) -> None:
    assert found.selection.names[0] == NAME
    assert float(found.selection.r_confirm[0]) > 0.8
    assert found.metric == "label:plural"
    assert found.confirm_scores.metrics == ("label:plural",)
    assert found.scores.metrics == ("label:plural", "label:coin", "confidence")


def test_the_splits_are_disjoint_and_as_asked(found: Study) -> None:
    assert (found.scores.n_examples, found.confirm_scores.n_examples) == SPLIT
    assert not set(found.scores.groups) & set(found.confirm_scores.groups)
    # Twins stand or fall together.
    assert (found.scores.n_groups, found.confirm_scores.n_groups) == (48, 32)


def test_the_card_opens_with_the_attrition(found: Study) -> None:
    card = repr(found)
    first = found.attrition_line()
    above, below = card.split("\nlabel:plural · ", 1)
    assert " ".join(above.split()) == first
    second, *rest = f"label:plural · {below}".splitlines()
    number = r"[\d,]+"
    assert re.fullmatch(
        rf"{number} neurons → {number} associated( → {number} beat the control task)? → "
        rf"{number} confirmed( \({number} basis-privileged\))?",
        first,
    )
    counts = [int(text) for text in re.findall(r"\d+", first)]
    assert counts == list(found.selection.attrition.values())
    assert counts[0] == 4 * 48
    assert counts == sorted(counts, reverse=True)
    assert second == "label:plural · mlp.hook_post at last"
    assert rest[0] == "explore 96 examples in 48 groups, confirm 64 examples in 32 groups"
    (row,) = [line for line in rest if NAME in line]
    assert row.startswith(found.selection.grade)
    assert f"{float(found.selection.r_confirm[0]):+.2f} [" in row
    assert max(map(len, repr(found).split("\nPreflight\n")[0].splitlines())) <= 80
    assert "\nPreflight\n" in repr(found)
    assert repr(found.preflight) in repr(found)


def test_it_is_not_found_where_it_is_not_planted(tiny_folder: Path) -> None:
    model = ls.load_model(tiny_folder)  # the same weights, nothing planted
    assert NAME not in run(model).selection.names


def test_a_random_label_confirms_nothing(knowing: Any) -> None:
    result = run(knowing, metric="label:coin")
    assert len(result.selection) == 0
    card = repr(result)
    assert " → 0 confirmed" in " ".join(card.split())
    confirmed = any(row["grade"] for row in result.selection.rows)
    assert f"nothing to report: no {'confirmed ' * confirmed}" in card
    assert ("input types explain" in card) == confirmed


def test_where_there_is_no_skill_the_verdict_says_so(found: Study) -> None:
    """Random weights prefer one verb whatever the number: right in half of the pairs."""
    assert found.preflight.skill is False
    assert "no skill to explain: whatever these neurons track" in repr(found)
    assert "correlates" not in repr(found)


def test_without_answers_there_is_no_talk_of_skill(partial: Study, knowing: Any) -> None:
    result = run(knowing)
    assert result.preflight.skill is None
    card = repr(result)
    assert result.selection.names[0] == NAME
    assert "no skill" not in card
    assert "They are correlates: whether the model uses them takes an intervention." in " ".join(
        card.split()
    )
    assert "caution" not in card
    assert "partial r" not in card


@pytest.fixture(scope="module")
def partial(knowing: Any) -> Study:
    return run(knowing, disguised(), given=["frame", "length"])


def test_what_was_partialled_out_is_shown(partial: Study) -> None:
    assert "partial r, given frame, length" in repr(partial).splitlines()
    for scores in (partial.scores, partial.confirm_scores):
        assert list(scores.provenance["given"]) == ["frame", "length"]


def disguised() -> Task:
    """The task with a covariate that is the label by another name."""
    return Task(
        "disguised",
        [
            Example(
                id=e.id,
                prompt=e.prompt,
                labels={"plural": e.labels["plural"]},
                covariates={**e.covariates, "disguise": 3.0 * float(e.labels["plural"])},
                group=e.group,
                kind=e.kind,
            )
            for e in number_task()
        ],
    )


def test_a_metric_that_other_columns_give_away_is_warned_of(knowing: Any, partial: Study) -> None:
    caution = "caution: the task's other columns alone predict label:plural (1.00)"
    assert caution in repr(run(knowing, disguised()))
    # Who has partialled something out need not be told to.
    assert partial.preflight.predicted["label:plural"] == pytest.approx(1)
    assert "caution" not in repr(partial)


@pytest.mark.parametrize(
    ("answers", "expected"), [(True, "logit_diff"), (False, "label:coin")], ids=["foils", "labels"]
)
def test_the_default_metric(knowing: Any, answers: bool, expected: str) -> None:
    result = run(knowing, number_task(40, answers=answers), metric=None)
    assert result.metric == expected


@pytest.mark.parametrize("also", [[], ["confidence"]], ids=["alone", "beside others"])
def test_a_metric_that_never_varies_is_refused_with_the_preflight(
    knowing: Any, also: list[str]
) -> None:
    """Here the default metric of answers without foils, which the tiny model never gets right."""
    task = Task(
        "no foils",
        [Example(e.id, e.prompt, " here", labels=e.labels, group=e.group) for e in number_task(40)],
    )
    with pytest.raises(LensSkillsError, match="'correct' cannot be studied here") as raised:
        run(knowing, task, metric=None, also=also)
    first, second, *rest = str(raised.value).splitlines()
    assert "it is 0 for every example" in first
    assert second.startswith("no foils on ")
    assert any("correct takes one value only" in line for line in rest)


def test_nothing_to_study(knowing: Any) -> None:
    bare = Task("bare", [Example(str(n), f"hello {n}") for n in range(60)])
    with pytest.raises(LensSkillsError, match="'bare' has neither answers nor labels"):
        run(knowing, bare, metric=None)


def test_too_few_examples(knowing: Any) -> None:
    with pytest.raises(LensSkillsError, match="39 examples are too few"):
        run(knowing, number_task()[:39])
    assert run(knowing, number_task(40)).scores.n_examples == 24


def test_what_an_earlier_study_read_is_not_read_again(
    knowing: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The module, which the function of the same name hides.
    import sys

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("read again")

    task = number_task(answers=True)
    naive = run(knowing, task, metric="logit_diff")
    expected = run(knowing, task, metric="logit_diff", given=["frame"])
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["lens_skills.studies"], "run_preflight", refuse)
        run(knowing, task, metric="logit_diff", earlier=naive)
        with pytest.raises(AssertionError, match="read again"):
            run(knowing, task, metric="logit_diff")
    monkeypatch.setattr(sys.modules["lens_skills.scoring.score"], "metric_values", refuse)
    again = run(knowing, task, metric="logit_diff", given=["frame"], earlier=naive)
    assert again.preflight is naive.preflight
    assert again.selection.names == expected.selection.names
    torch.testing.assert_close(again.scores.r, expected.scores.r, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError, match="read again"):
        run(knowing, task, metric="logit_diff", given=["frame"])
    with pytest.raises(LensSkillsError, match="a study of the task 'numbers', split otherwise"):
        run(knowing, task, metric="logit_diff", seed=1, earlier=naive)
    other = ls.load_model(tiny_folder)  # the same weights, nothing planted
    with pytest.raises(LensSkillsError, match="which is not this one"):
        run(other, task, metric="logit_diff", earlier=naive)


def test_the_seed_decides_the_split_and_all_draws(knowing: Any, partial: Study) -> None:
    again = run(knowing, disguised(), given=["frame", "length"])
    assert repr(again) == repr(partial)
    few = [run(knowing, number_task(40), seed=seed).scores.example_ids for seed in (0, 1)]
    assert few[0] != few[1]


def test_a_saved_study_is_opened_again(found: Study, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "new" / "study")
    assert sorted(path.name for path in folder.iterdir()) == [
        "card.txt",
        "neurons.csv",
        "result.json",
        "result.safetensors",
    ]
    assert (folder / "card.txt").read_text() == repr(found) + "\n"
    neurons = pd.read_csv(folder / "neurons.csv")
    assert neurons["name"].tolist() == [row["name"] for row in found.selection.rows]
    kept = neurons[neurons["grade"].fillna("") == found.selection.grade]
    assert kept["name"].tolist() == found.selection.names
    again = ls.load(folder)
    assert repr(again) == repr(found)
    for part in ("scores", "confirm_scores", "selection", "preflight"):
        assert repr(getattr(again, part)) == repr(getattr(found, part))
    assert again.explore.fingerprint() == found.explore.fingerprint()
    assert again.preflight.skill is False
    found.save(folder)  # the same place again


@pytest.mark.parametrize(("strength", "word"), [(1.0, "supports"), (0.0, "no total effect")])
def test_the_card_ends_in_a_verdict(tiny_bridge: Any, strength: float, word: str) -> None:
    """A planted neuron that writes the answer supports it; one that writes nothing does not."""
    encode = tiny_bridge.tokenizer.encode
    plural, singular = (
        [encode(noun + ending, add_special_tokens=False)[0] for noun in NOUNS]
        for ending in ("s", "")
    )
    right, wrong = (encode(text, add_special_tokens=False)[0] for text in (" was", " here"))
    writes = strength * (tiny_bridge.W_U[:, right] - tiny_bridge.W_U[:, wrong]).detach()
    with planted(tiny_bridge, LAYER, NEURON, plural, singular, writes=writes):
        result = run(
            tiny_bridge, number_task(240, answers=True), fractions=(0.4, 0.2, 0.4), n_intervene=80
        )
    assert result.verdict is not None
    assert result.intervene is not None
    assert result.verdict[NAME].word.startswith(word)
    causal = [*result.verdict.causal] if word == "supports" else []
    assert f"→ {len(causal)} causal" in result.attrition_line()
    graded = result.evidence().set_index("name").loc[NAME]
    assert graded["grade"] == ("A" if word == "supports" else "C")
    assert result.verdict[NAME].word in repr(result)
    splits = (result.explore, result.confirm, result.intervene)
    assert sum(len(set(part.groups)) for part in splits) == len(
        {group for part in splits for group in part.groups}
    )


def test_a_study_without_a_verdict_says_why(knowing: Any) -> None:
    assert "no third split" in repr(run(knowing))
    bare = run(knowing, fractions=(0.4, 0.2, 0.4))
    assert bare.verdict is None
    assert "no answers" in repr(bare)
    with pytest.raises(LensSkillsError, match="shares"):
        run(knowing, fractions=(0.5,))
