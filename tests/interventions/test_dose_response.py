"""The curve equals steering by hand, dose by dose; its summaries equal SciPy's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import linregress, spearmanr
from torch import Tensor

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.dose_response import DoseResponse, dose_response, slope_of
from lens_skills.tasks.word_lists import neutral_texts
from tests.interventions.test_edits import WORDS, examples, table
from tests.planted import planted

TEXTS = ("The authors near the doctor were here.", "Tom and Anna said hello.")
UNITS = ["L1N5", "L1N9"]


def task() -> list[Example]:
    """Ten examples in nine groups."""
    words = [*WORDS, *(f"hello {text}" for text in WORDS)]
    made = [replace(item, foil=" are") for item in examples(words)]
    return [replace(item, group=f"g{max(place - 1, 0)}") for place, item in enumerate(made)]


def shares(model: Any, tokens: Tensor, change: Any = None) -> Tensor:
    def hook(acts: Tensor, hook: Any) -> Tensor:
        new = acts.clone()
        change(new)
        return new

    hooks = [] if change is None else [("blocks.1.mlp.hook_post", hook)]
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=hooks)[0].double().log_softmax(-1)


@pytest.fixture(scope="module")
def curve(tiny: Any) -> DoseResponse:
    return dose_response(tiny, task(), UNITS, doses=[30, -2, 0, 1], neutral=TEXTS)


def test_each_dose_is_steering_by_hand(tiny: Any, curve: DoseResponse) -> None:
    split = task()
    std = table(tiny, split, 1)[:, [5, 9]].double().std(0, correction=0).float()
    answer, foil = (tiny.to_tokens(text)[0, -1] for text in (" is", " are"))
    assert curve.doses.tolist() == [-2, 0, 1, 30]
    for row, dose in enumerate(curve.doses.tolist()):
        for column, item in enumerate(split):
            tokens = tiny.to_tokens(item.prompt)

            def change(new: Tensor, dose: float = dose) -> None:
                new[:, -1, [5, 9]] += dose * std

            clean, edited = shares(tiny, tokens)[-1], shares(tiny, tokens, change)[-1]
            expected = (edited - clean)[answer] - (edited - clean)[foil]
            assert float(curve.effects[row, column]) == pytest.approx(float(expected), abs=1e-4)


def test_the_damage_is_the_divergence_on_text_steered_everywhere(
    tiny: Any, curve: DoseResponse
) -> None:
    std = table(tiny, task(), 1)[:, [5, 9]].double().std(0, correction=0).float()
    for column, text in enumerate(TEXTS):
        tokens = tiny.to_tokens(text)
        start = 1 if int(tokens[0, 0]) == tiny.tokenizer.bos_token_id else 0

        def change(new: Tensor, start: int = start) -> None:
            new[:, start:, [5, 9]] += 30 * std  # so far that KL(edited ‖ clean) is another number

        clean, edited = shares(tiny, tokens)[start:], shares(tiny, tokens, change)[start:]
        expected = torch.nn.functional.kl_div(edited, clean, reduction="none", log_target=True).sum(
            -1
        )
        assert float(curve.damage[3, column]) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert float(curve.damage[3].min()) > 1e-5


def test_dose_zero_does_exactly_nothing(curve: DoseResponse) -> None:
    assert torch.equal(curve.effects[1], torch.zeros(10, dtype=torch.float64))
    assert torch.equal(curve.damage[1], torch.zeros(2, dtype=torch.float64))
    assert float(curve.low[1]) == float(curve.high[1]) == 0.0


def test_slope_and_monotonicity_are_those_of_scipy(curve: DoseResponse) -> None:
    doses = curve.doses.numpy()
    every = linregress(np.repeat(doses, 10), curve.effects.numpy().ravel())
    assert curve.slope == pytest.approx(every.slope)
    means = curve.effects.mean(1).numpy()
    assert curve.monotonicity == pytest.approx(spearmanr(doses, means).statistic)
    assert curve.slope_low <= curve.slope <= curve.slope_high
    slopes = slope_of(curve.doses, curve.effects)
    one = linregress(doses, curve.effects[:, 3].numpy())
    assert float(slopes[3]) == pytest.approx(one.slope)


def test_a_planted_writer_has_a_slope_and_a_decoy_has_none(tiny_bridge: Any) -> None:
    answer, foil = (int(tiny_bridge.to_tokens(text)[0, -1]) for text in (" is", " are"))
    toward = (tiny_bridge.W_U[:, answer] - tiny_bridge.W_U[:, foil]).detach()
    split = [
        replace(item, id=f"{item.id} {word}", prompt=f"{item.prompt} {word}", group="")
        for item in task()
        for word in ("was", "has")
    ]
    found = {}
    for name, writes in (("writer", toward), ("decoy", 0.0)):
        with planted(tiny_bridge, 3, 7, [answer], [foil], writes=writes):
            found[name] = dose_response(
                tiny_bridge, split, ["L3N7"], doses=[-1, 0, 1], neutral=TEXTS[:1]
            )
    assert found["writer"].slope_low > 0
    assert found["writer"].monotonicity == 1
    assert found["decoy"].slope == found["decoy"].monotonicity == 0
    assert float(found["decoy"].effects.abs().max()) == float(found["decoy"].damage.max()) == 0


def test_the_curve_prints_and_is_saved_whole(curve: DoseResponse, tmp_path: Path) -> None:
    frame = curve.frame()
    assert list(frame) == ["dose", "effect", "low", "high", "damage", "damage_low", "damage_high"]
    assert "slope" in repr(curve)
    assert "L1N5, L1N9 (2 units) · mlp.hook_post at last" in repr(curve)
    back = DoseResponse.load(curve.save(tmp_path / "curve"))
    assert repr(back) == repr(curve)
    assert torch.equal(back.effects, curve.effects)
    assert back.groups == curve.groups


def test_the_shipped_texts_are_there_and_different() -> None:
    texts = neutral_texts()
    assert len(set(texts)) == len(texts) == 60
    assert all(text.strip() == text and len(text.split()) >= 7 for text in texts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"doses": [1]}, "two or more different"),
        ({"doses": [1, 1]}, "two or more different"),
        ({"doses": [0, float("nan")]}, "two or more different"),
        ({"position": [0, -1]}, "not at a list"),
        ({"neurons": []}, "the set is empty"),
    ],
)
def test_what_makes_no_curve_is_refused(tiny: Any, options: Any, words: str) -> None:
    with pytest.raises(LensSkillsError, match=words):
        dose_response(tiny, task(), **{"neurons": UNITS, **options})
