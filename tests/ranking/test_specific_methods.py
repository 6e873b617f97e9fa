"""What is measured on a dozen examples is what plain hooks give; other tasks are taken off."""

from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.interventions.neutral_words import NEXT_WORD, next_words
from lens_skills.ranking import Ranking, rank
from lens_skills.ranking.specific_methods import DOZEN, FEWEST, dozen
from tests.ranking.conftest import WIDTH, Plain


@pytest.fixture(scope="module")
def other() -> ls.Task:
    return ls.tasks.agreement(n=24)


@pytest.fixture(scope="module")
def rankings(tiny: Any, nouns: ls.Task, other: ls.Task) -> dict[str, Ranking]:
    methods = ("prediction", "exact", "specific", "specific_exact")
    asked = {name: rank(tiny, nouns, "logit_diff", method=name, contrast=[other])
             for name in methods}  # fmt: skip
    asked["other"] = rank(tiny, other, "logit_diff", method="prediction")
    asked["neutral"] = rank(tiny, ls.Task("texts", next_words()[0]), NEXT_WORD, method="prediction")
    return asked


def clean(model: Any, examples: Any, metric: Any) -> float:
    (values,) = evaluate(model, examples, [metric]).values()
    return abs(float(values.mean()))


def test_exact_is_the_prediction_plus_what_it_misses_on_a_dozen(
    nouns: ls.Task, plain: Plain, rankings: dict[str, Ranking]
) -> None:
    score = rankings["exact"].score
    assert int((~score.isnan()).sum()) == FEWEST
    first = rankings["prediction"].score
    assert set(first.abs().topk(20).indices.tolist()) <= set(
        (~score.isnan()).nonzero()[:, 0].tolist()
    )
    some = dozen(nouns)
    assert len({example.group for example in some}) == len(some) == DOZEN
    means = plain.activations(nouns, "post").mean(0)
    for unit in first.abs().topk(3).indices.tolist():
        layer, neuron = divmod(unit, WIDTH)
        level = float(means[unit])

        def ablated(post: Any, neuron: int = neuron, level: float = level) -> Any:
            post = post.clone()
            post[0, -1, neuron] = level
            return post

        missed = []
        for example in some:
            with torch.enable_grad():
                seen, logits = plain.run(example)
                before = plain.odds(example, logits)
                before.backward()
            post = seen["post"][layer]
            slope, now = post.grad[0, -1, neuron].item(), post[0, -1, neuron].item()
            with torch.no_grad():
                after = plain.odds(example, plain.run(example, ablate=(layer, ablated))[1])
            missed.append(after.item() - before.item() - slope * (level - now))
        plain.model.zero_grad()
        assert float(score[unit]) == pytest.approx(float(first[unit]) + np.mean(missed), abs=1e-4)


def test_specific_takes_off_the_largest_share_elsewhere(
    tiny: Any, nouns: ls.Task, other: ls.Task, rankings: dict[str, Ranking]
) -> None:
    here = rankings["prediction"].score / clean(tiny, nouns, "logit_diff")
    there = torch.stack([
        rankings["other"].score / clean(tiny, other, "logit_diff"),
        rankings["neutral"].score / clean(tiny, next_words()[0], NEXT_WORD),
    ]).nan_to_num(0).abs().amax(0)  # fmt: skip
    wanted = here.sign() * (here.abs() - there).clamp(min=0)
    torch.testing.assert_close(rankings["specific"].score, wanted, rtol=1e-3, atol=1e-6)
    measured = rankings["specific_exact"].score
    assert int((~measured.isnan()).sum()) == FEWEST
    assert measured.nan_to_num(0).abs().max() <= 1.5 * here.abs().max()


def test_without_contrasts_it_is_neutral_text_alone(tiny: Any, nouns: ls.Task) -> None:
    alone = rank(tiny, nouns, "logit_diff", method="specific")
    with_other = rank(
        tiny, nouns, "logit_diff", method="specific", contrast=[ls.tasks.agreement(n=8)]
    )
    assert bool((alone.strength >= with_other.strength - 1e-12).all())
    assert bool((alone.strength > with_other.strength).any())
