"""Each way of asking gets the numbers that `evaluate` gives it alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_skills.activations import evaluate
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.soft_prompts import compare_prompts, fit_prompt, initial_prompt
from lens_skills.soft_prompts.compare_prompts import beginning_of, random_like, shuffled_like
from lens_skills.stats.effect_tests import cluster_interval
from lens_skills.stats.intervals import share_interval

EXAMPLES = [
    Example(id=f"e{n}", prompt=f"What is {n} plus 3?\nA: ", answer=str(n + 3), foil=str(n + 4),
            group=f"g{n // 2}")
    for n in range(6)
]  # fmt: skip
OTHERS = [replace(e, id=f"t{e.id}", group=f"t{e.group}") for e in EXAMPLES]


@pytest.fixture(scope="module")
def trained(tiny: Any) -> Any:
    return fit_prompt(tiny, OTHERS, n_tokens=3, epochs=2, held_out=0.3)


def test_rows_are_what_evaluate_gives(tiny: Any, trained: Any) -> None:
    found = compare_prompts(tiny, EXAMPLES, trained, hard=["The sum: "], seed=4)
    metrics = ["correct", "first_token_correct", "answer_probability", "logit_diff"]
    asked = [replace(e, prompt=f"{e.prompt}The sum: ") for e in EXAMPLES]
    ways: dict[str, Any] = {
        "trained, seed 0": (EXAMPLES, trained),
        "before training, seed 0": (EXAMPLES, initial_prompt(tiny, 3)),
        "random vectors": (EXAMPLES, random_like(trained, 4)),
        "vectors shuffled, seed 0": (EXAMPLES, shuffled_like(trained, 4)),
        "no prompt": (EXAMPLES, None),
        "hard: 'The sum: '": (asked, None),
    }
    assert found.names == tuple(ways)
    assert found.metrics == ("correct", "greedy", "first_token", "log_probability", "over_foil")
    for row, (examples, prompt) in zip(found.values, ways.values(), strict=True):
        wanted = evaluate(tiny, examples, metrics, prompt=prompt)
        assert torch.equal(row[0], wanted["correct"])
        assert bool((row[1] >= row[0]).all())
        assert torch.equal(row[2], wanted["first_token_correct"])
        torch.testing.assert_close(row[3], wanted["answer_probability"].log())
        assert torch.equal(row[4], (wanted["logit_diff"] > 0).double())
    low, high = cluster_interval(found.values, found.groups, seed=4)
    shares = [0, 1, 2, 4]
    low[:, shares], high[:, shares] = share_interval(found.values[:, shares], found.groups)
    assert torch.equal(found.low, low)
    frame = found.frame()
    assert len(frame) == len(ways) * 5
    assert frame["high"].tolist() == high.flatten().tolist()
    assert set(frame["n_groups"]) == {3}
    assert "Fewer than 30 groups" in repr(found)
    assert all(name in repr(found) for name in ways)


def test_controls_are_alike_and_other(tiny: Any, trained: Any) -> None:
    random, shuffled = random_like(trained, 0), shuffled_like(trained, 0)
    torch.testing.assert_close(random.suffix.norm(dim=-1), trained.suffix.norm(dim=-1))
    cosine = torch.cosine_similarity(random.suffix, trained.suffix)
    assert float(cosine.abs().max()) < 0.9
    assert shuffled is not None
    assert sorted(shuffled.suffix.sum(-1).tolist()) == sorted(trained.suffix.sum(-1).tolist())
    assert not torch.equal(shuffled.suffix, trained.suffix)
    start = beginning_of(tiny, trained)
    assert start is not None
    assert start.digest == initial_prompt(tiny, 3).digest
    assert not any(control.trained for control in (random, shuffled, start))
    assert beginning_of(tiny, start) is None
    assert shuffled_like(replace(trained, suffix=trained.suffix[:1]), 0) is None


def test_without_foils_there_is_no_contrast(tiny: Any) -> None:
    bare = [replace(e, foil=None) for e in EXAMPLES]
    prompts = [initial_prompt(tiny, 2, seed=seed) for seed in (0, 1)]
    found = compare_prompts(tiny, bare, prompts)
    assert "over_foil" not in found.metrics
    assert found.names[:2] == ("untrained, vocabulary, seed 0", "untrained, vocabulary, seed 1")
    assert len(set(found.names)) == len(found.names) == 7


def test_refusals(tiny: Any, trained: Any) -> None:
    with pytest.raises(LensSkillsError, match="was trained on"):
        compare_prompts(tiny, OTHERS, trained)
    marked = compare_prompts(tiny, OTHERS, trained, exploratory=True)
    assert "Exploratory" in repr(marked)
    with pytest.raises(LensSkillsError, match="no prompt to compare"):
        compare_prompts(tiny, EXAMPLES, [])
    with pytest.raises(LensSkillsError, match="no answer"):
        compare_prompts(tiny, [replace(EXAMPLES[0], answer=None, foil=None)], trained)
