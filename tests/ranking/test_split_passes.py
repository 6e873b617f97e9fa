"""What methods with passes of their own share, and what each of them is said to have cost."""

from typing import Any

import pytest

import lens_skills as ls
from lens_skills.activations import parse_metric
from lens_skills.activations.activation_reader import ActivationReader
from lens_skills.errors import LensSkillsError
from lens_skills.ranking import split_passes
from lens_skills.ranking.contrasts import NEUTRAL, halved_contrasts, named_tasks
from lens_skills.ranking.split_passes import SplitPasses
from lens_skills.ranking.target_statistics import target_of


def passes_of(model: Any, task: ls.Task, contrast: Any = None, **options: Any) -> SplitPasses:
    odds = parse_metric("logit_diff", task, asked="a test")
    reader = ActivationReader(model, task, purpose="ranked", **options)
    return SplitPasses(reader, target_of(model, task, "label:plural"), odds, contrast, 0)


def test_a_shared_pass_is_made_once_and_counted_for_each(
    tiny: Any, nouns: ls.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, made = [0.0], []
    found = passes_of(tiny, nouns).gradients()
    monkeypatch.setattr(split_passes.time, "perf_counter", lambda: clock[0])

    def slow(*args: Any, **options: Any) -> Any:
        made.append(1)
        clock[0] += 10
        return found

    monkeypatch.setattr(split_passes, "slopes_of", slow)
    passes = passes_of(tiny, nouns)
    for own in (1.0, 2.0):
        with passes.timed() as spent:
            passes.gradients()
            passes.gradients()
            clock[0] += own
        assert spent.seconds == 10 + own
    with passes.timed() as spent:
        clock[0] += 3
    assert spent.seconds == 3
    assert len(made) == 1


def test_contrasts_are_other_tasks_and_neutral_text(tiny: Any, nouns: ls.Task) -> None:
    other = ls.tasks.agreement(n=40)
    named = passes_of(tiny, nouns, {"other": other}).contrasts()
    assert [each.name for each in named] == ["other", NEUTRAL]
    assert [each.name for each in passes_of(tiny, nouns).contrasts()] == [NEUTRAL]
    assert list(named_tasks([other])) == [other.name]
    to_rank, to_try = halved_contrasts({"other": other}, named[0].metric, seed=0)
    for ranked, tried in ((to_rank["other"], to_try[0]), (named[1].examples, to_try[1])):
        assert not {each.group for each in ranked} & {each.group for each in tried.examples}
    assert {each.group for each in to_try[1].over} == {each.group for each in named[1].examples}


@pytest.mark.parametrize(
    ("contrast", "said"),
    [
        ("agreement", "takes other tasks"),
        ([[1, 2]], "takes other tasks"),
        ({NEUTRAL: ls.tasks.agreement(n=8)}, "always among them"),
        ([ls.tasks.agreement(n=8)] * 2, "two contrasts are called"),
    ],
)
def test_what_is_no_contrast(tiny: Any, nouns: ls.Task, contrast: Any, said: str) -> None:
    with pytest.raises(LensSkillsError, match=said):
        passes_of(tiny, nouns, contrast).contrasts()


def test_a_contrast_that_is_the_task_itself(tiny: Any, nouns: ls.Task) -> None:
    with pytest.raises(LensSkillsError, match="shares a prompt"):
        passes_of(tiny, nouns, [nouns]).contrasts()
    with pytest.raises(LensSkillsError, match="at the last token"):
        passes_of(tiny, nouns, position=-2).contrasts()
