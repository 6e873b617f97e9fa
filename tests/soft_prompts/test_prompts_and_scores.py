"""The steps a user takes: prompts from several seeds, scored, compared, selected, verified."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_skills.activations import capture
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import ablate, controls, verify
from lens_skills.models import with_soft_prompt
from lens_skills.plotting import figures
from lens_skills.scoring import compare_scores, predictivity, score, select, skill_matrix
from lens_skills.soft_prompts import fit_prompt
from lens_skills.tasks import Task

NOUNS = ("key", "keys", "girl", "girls", "boy", "boys", "author", "authors", "doctor", "doctors")
QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def splits() -> tuple[Task, ...]:
    found = [
        Example(
            f"{frame}{noun}",
            f"{frame}the {noun}",
            answer=" are" if noun.endswith("s") else " is",
            foil=" is" if noun.endswith("s") else " are",
            labels={"plural": int(noun.endswith("s"))},
            group=f"{frame}{noun}",
        )
        for frame in ("", "near ", "hello ", "when ", "The ", "What is ")
        for noun in NOUNS
    ]
    return Task("nouns", found).split(0.25, 0.25, 0.25, 0.25, seed=0)


@pytest.fixture
def prompts(tiny: Any, splits: tuple[Task, ...]) -> tuple[Any, ...]:
    return fit_prompt(tiny, splits[0], n_tokens=2, seeds=2, epochs=2, held_out=0.3)


def test_prompts_of_several_seeds_are_held_against_each_other(
    tiny: Any, splits: tuple[Task, ...], prompts: tuple[Any, ...]
) -> None:
    metrics = ["label:plural", "confidence"]
    found = [score(tiny, splits[1], metrics=metrics, prompt=p, n_permutations=19) for p in prompts]
    assert found[0].positions == ("-2", "-1")
    assert compare_scores(found, "label:plural", top=20).frame().shape[0] == 1
    checked = [
        score(tiny, splits[2], metrics=metrics, prompt=p, baseline=f, n_permutations=0)
        for p, f in zip(prompts, found, strict=True)
    ]
    checked_all = score(tiny, splits[2], metrics=metrics, prompt=prompts[0], n_permutations=19)
    best = torch.stack([s.predictivity["label:plural"].amax(0) for s in checked]).mean(0)
    over = predictivity(checked, "label:plural")
    torch.testing.assert_close(over.value, best)
    assert skill_matrix(found[0], top=5).skills == ("label:plural", "confidence")
    every = replace(found[0], p_family=torch.zeros_like(found[0].r))
    chosen = [select(every[m], checked_all[m], grade="C", fdr=0.99) for m in metrics]
    parts = {
        "explore": found[0],
        **{f"selection-{m}": c for m, c in zip(metrics, chosen, strict=True)},
    }
    drawn = {drawing.name for drawing in figures.of(parts)}
    assert {"correlation_by_position-confidence", "skill_matrix"} <= drawn


def test_a_model_changed_between_the_seeds_is_refused(
    tiny_hooked: Any, splits: tuple[Task, ...]
) -> None:
    fitted = fit_prompt(tiny_hooked, splits[0], n_tokens=2, seeds=2, epochs=1, held_out=0.3)
    one = score(tiny_hooked, splits[1], metrics="label:plural", prompt=fitted[0])
    bare = score(tiny_hooked, splits[1], metrics="label:plural", position=[-2, -1])
    weight = tiny_hooked.blocks[0].mlp.W_out
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] += 1
        other = score(tiny_hooked, splits[1], metrics="label:plural", position=[-2, -1])
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert (
        len(compare_scores([one, bare], "label:plural", top=20).frame()) == 1
    )  # with and without a prompt
    with pytest.raises(LensSkillsError, match="model"):
        compare_scores([one, other], "label:plural", top=20)


def test_a_verdict_refuses_what_the_prompt_was_trained_on(
    tiny: Any, splits: tuple[Task, ...], prompts: tuple[Any, ...]
) -> None:
    options: dict[str, Any] = {
        "do": ablate("zero"), "delta": 0.1, "prompt": prompts[0], "also": (),
        "controls": controls(0, neurons=40),
    }  # fmt: skip
    with pytest.raises(LensSkillsError, match="soft prompt was trained on"):
        verify(tiny, splits[0], ["L1N3"], **options)
    verdict = verify(tiny, splits[0], ["L1N3"], exploratory=True, **options)
    assert verdict.exploratory
    assert not verify(tiny, splits[3], ["L1N3"], **options).exploratory


def test_a_table_of_the_prompts_positions_scores_alike(
    tiny: Any, splits: tuple[Task, ...], prompts: tuple[Any, ...], tmp_path: Path
) -> None:
    spoken = with_soft_prompt(tiny, prompts[0])
    table = capture(spoken, splits[1], tmp_path / "acts", position="prompt", dtype="float32")
    options: dict[str, Any] = {"metrics": "label:plural", "n_permutations": 0}
    direct = score(spoken, splits[1], **options)
    found = score(table, splits[1], position=[-2, -1], **options)
    torch.testing.assert_close(found.r, direct.r, rtol=0, atol=1e-6)
