"""The entropy neurons that were published for GPT-2 small, where its weights are at hand.

Layer 11, neurons 584, 2378, 2870, 2123, 1611 and 2910: the list in the code released with Stolfo et
al. 2024 (arXiv 2406.16254). Set LENS_SKILLS_GPT2 to a folder with the weights (save_pretrained),
or have ``gpt2`` in the hub's cache.
"""

import os
from typing import Any

import pytest

import lens_skills as ls
from lens_skills.diagnostics import Regulators, confidence_regulators
from lens_skills.diagnostics.regulators import REGULATOR
from lens_skills.errors import LensSkillsError
from lens_skills.tasks.word_lists import neutral_texts

PUBLISHED = [f"L11N{neuron}" for neuron in (584, 2378, 2870, 2123, 1611, 2910)]
OTHERS = [f"L11N{neuron}" for neuron in (100, 700, 1300, 1900)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpt2() -> Any:
    try:
        return ls.load_model(os.environ.get("LENS_SKILLS_GPT2", "gpt2"))
    except LensSkillsError as reason:
        pytest.skip(f"no weights of GPT-2 small here: {reason}")


@pytest.fixture(scope="module")
def diagnosed(gpt2: Any) -> Regulators:
    texts = neutral_texts()
    examples = [
        ls.Example(id=str(place), prompt=text.rsplit(" ", 2)[0]) for place, text in enumerate(texts)
    ]
    task = ls.Task("sentences", examples)
    return confidence_regulators(
        gpt2, task, PUBLISHED + OTHERS, metric=ls.confidence("entropy"), seed=0
    )


def test_they_stand_apart_in_norm_and_variance(diagnosed: Regulators) -> None:
    """Their figure 2a: long output weights that compose evenly with the whole vocabulary."""
    table = diagnosed.frame().set_index("name").loc[PUBLISHED]
    assert (table["log_variance_percentile"] <= 0.05).all()
    assert (table["norm_percentile"] >= 0.9).all()
    assert table["null_share_percentile"].median() >= 0.95


def test_they_act_through_the_norm_and_others_do_not(diagnosed: Regulators) -> None:
    table = diagnosed.frame().set_index("name")
    assert table["mediated"][PUBLISHED].median() > table["mediated"][OTHERS].median() + 0.2
    assert REGULATOR in set(table["word"][PUBLISHED])
    assert REGULATOR not in set(table["word"][OTHERS])
