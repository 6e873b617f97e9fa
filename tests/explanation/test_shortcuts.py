"""A planted shortcut is found, explained and confirmed; a twin that writes nothing is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Shortcuts, feature_bank, shortcuts
from lens_skills.explanation.conditional_effects import ConditionalEffects, condition_of, influence
from lens_skills.explanation.features import Feature
from lens_skills.explanation.shortcut_report import (
    EVERYWHERE,
    NEITHER,
    SHORTCUT,
    TIED,
    UNDECIDED,
    UNEXPLAINED,
    ControlledEffect,
    word_for,
)
from lens_skills.stats.effect_tests import cluster_error
from tests.explanation import problems as plant
from tests.explanation.problems import problems, with_shortcut

OPTIONS: dict[str, Any] = {"n_permutations": 199}


@pytest.fixture(scope="module")
def splits() -> tuple[Any, ...]:
    return problems().split(0.4, 0.2, 0.4, seed=0)


@pytest.fixture(scope="module")
def found(tiny: Any, splits: tuple[Any, ...]) -> Shortcuts:
    bank = feature_bank(splits[0])
    bank = bank.only("an operand is 5", "an operand is 2", "a is odd", "the result is odd")
    with with_shortcut(tiny, splits[0]):
        return shortcuts(
            tiny,
            *splits,
            metric=ls.confidence(),
            features=bank,
            neurons=[plant.SHORTCUT, plant.DECOY],
            controls=ls.controls(neurons=60),
            **OPTIONS,
        )


def test_a_planted_shortcut_is_explained_and_confirmed(found: Shortcuts) -> None:
    one = found[plant.SHORTCUT]
    assert one.word == SHORTCUT
    assert one.condition == one.feature == "an operand is 5"
    assert one.raises
    assert one.r > 0.2
    assert one.difference is not None
    assert one.difference.high < 0
    assert found.confirmed == [plant.SHORTCUT]


def test_a_twin_that_writes_nothing_is_tied_but_not_causal(found: Shortcuts) -> None:
    one = found[plant.DECOY]
    assert one.word == TIED
    assert one.feature == "an operand is 5"
    assert one.difference is not None
    assert one.difference.value == one.effect.value == 0


def test_the_prediction_counts_examples(found: Shortcuts, tiny: Any, splits: Any) -> None:
    _, confirm, intervene = splits
    one = found[plant.SHORTCUT]
    with with_shortcut(tiny, splits[0]):
        right = evaluate(tiny, confirm, ["correct"])["correct"].bool()
    five = torch.tensor([plant.has_five(example) for example in confirm])
    assert (one.n_right, one.n_wrong) == (int((five & right).sum()), int((five & ~right).sum()))
    rows = found.examples().query("name == @plant.SHORTCUT")
    wanted = [plant.has_five(example) for example in intervene]
    assert rows["present"].tolist() == wanted
    assert one.n_present == sum(wanted)
    inside = rows["effect"][rows["present"]].mean()
    assert one.effect_present == pytest.approx(inside)
    outside = rows["effect"][~rows["present"]].mean()
    assert one.difference is not None
    assert one.difference.value == pytest.approx(inside - outside)
    assert one.n_right_moved is not None
    assert one.n_wrong_moved is not None
    assert one.n_right_moved + one.n_wrong_moved == int((rows["effect"][rows["present"]] < 0).sum())


def test_effects_are_those_of_a_sweep(found: Shortcuts, tiny: Any, splits: Any) -> None:
    explore, _, intervene = splits
    with with_shortcut(tiny, explore):
        wanted = ls.sweep(
            tiny,
            intervene,
            [plant.SHORTCUT],
            do=ls.ablate("mean", over=explore),
            metric=ls.confidence(),
        )
    torch.testing.assert_close(found.effects[0], wanted.total[0], atol=1e-6, rtol=1e-4)


def test_it_is_saved_and_read_back(found: Shortcuts, tmp_path: Path) -> None:
    again = Shortcuts.load(found.save(tmp_path / "shortcuts"))
    assert repr(again) == repr(found)
    assert again.frame().equals(found.frame())
    assert again.examples().equals(found.examples())


def test_the_search_finds_the_planted_neuron(tiny_bridge: Any, splits: tuple[Any, ...]) -> None:
    with with_shortcut(tiny_bridge, splits[0], gain=3 * plant.GAIN):
        found = shortcuts(
            tiny_bridge,
            *splits,
            metric=ls.confidence(),
            k=3,
            controls=ls.controls(neurons=60),
            n_permutations=999,
        )
    assert plant.SHORTCUT in found.confirmed
    assert "associated" in found.notes[0]


def test_without_its_feature_it_is_causal_and_unexplained(tiny_bridge: Any, splits: Any) -> None:
    bank = feature_bank(splits[0]).only("the result is odd", "the operands are equal")
    with with_shortcut(tiny_bridge, splits[0], gain=3 * plant.GAIN):
        found = shortcuts(
            tiny_bridge,
            *splits,
            metric=ls.confidence(),
            neurons=plant.SHORTCUT,
            features=bank,
            controls=ls.controls(neurons=60),
            **OPTIONS,
        )
    assert found[plant.SHORTCUT].word in (UNEXPLAINED, UNDECIDED)
    assert found[plant.SHORTCUT].feature == ""


def test_a_difference_is_the_mean_of_its_influence() -> None:
    random = np.random.default_rng(0)
    effects = torch.from_numpy(random.normal(size=(3, 60)))
    part = torch.from_numpy(random.random(60) < 0.3)
    groups = [str(n // 3) for n in range(60)]
    values = influence(effects, part)
    wanted = effects[:, part].mean(1) - effects[:, ~part].mean(1)
    torch.testing.assert_close(values.mean(1), wanted)
    # The cluster-robust sandwich of the regression on the part, by its formula.
    design = np.stack([np.ones(60), part.numpy().astype(float)], 1)
    inverse = np.linalg.inv(design.T @ design)
    for row, error in zip(effects.numpy(), cluster_error(values, groups).tolist(), strict=True):
        residual = row - design @ (inverse @ design.T @ row)
        sums = np.add.reduceat(design * residual[:, None], np.arange(0, 60, 3))
        sandwich = 20 / 19 * inverse @ sums.T @ sums @ inverse
        assert error == pytest.approx(np.sqrt(sandwich[1, 1]))


def effect(value: float, half: float, q: float = 0.01) -> ControlledEffect:
    ends = (value - half, value + half, value - 0.8 * half, value + 0.8 * half)
    return ControlledEffect(value, *ends, p=q, q=q, delta=1.0)


@pytest.mark.parametrize(
    ("tied", "difference", "whole", "larger", "word"),
    [
        (True, effect(-3, 1), effect(-1, 1), True, SHORTCUT),
        (True, effect(-3, 1), effect(-1, 1), False, UNDECIDED),
        (True, effect(-3, 1, q=0.2), effect(-1, 1), True, UNDECIDED),
        (True, effect(-1.5, 1), effect(-1, 1), True, UNDECIDED),
        (True, effect(0, 0.5), effect(0, 0.5), True, TIED),
        (True, effect(0, 0.5), effect(-3, 1), True, EVERYWHERE),
        (True, None, effect(-3, 1), True, UNDECIDED),
        (False, None, effect(-3, 1), True, UNEXPLAINED),
        (False, None, effect(0, 0.5), True, NEITHER),
        (False, None, effect(0, 3), True, UNDECIDED),
    ],
)
def test_the_word_follows_from_the_effects(
    tied: bool,
    difference: ControlledEffect | None,
    whole: ControlledEffect,
    larger: bool,
    word: str,
) -> None:
    assert word_for(tied, difference, whole, larger)[0] == word


def test_a_condition_is_where_the_neuron_stands_out() -> None:
    def of(kind: Any, activation: list[float]) -> Any:
        feature = Feature("n", kind, lambda example: example)
        return condition_of(feature, [1, 1, 2, 3, 4, 5], torch.tensor(activation))

    rising = of("number", [0.0, 0, 1, 2, 3, 4])
    assert rising.words == "n is 2.5 or more"
    assert rising.of([1, 2, 3]).tolist() == [False, False, True]
    assert of("number", [4.0, 4, 3, 2, 1, 0]).words == "n is below 2.5"
    assert of("category", [0.0, 0, 0, 9, 0, 0]).words == "n is 3"
    assert of("flag", [0.0] * 6).words == "n"


def test_refusals(tiny_bridge: Any, splits: tuple[Any, ...]) -> None:
    explore, _confirm, intervene = splits
    with pytest.raises(LensSkillsError, match="share 120 groups"):
        shortcuts(tiny_bridge, explore, explore, intervene)
    with pytest.raises(LensSkillsError, match="is a column of the task"):
        shortcuts(tiny_bridge, *splits, metric=ls.confidence(), causal_metric="label:even")
    with pytest.raises(LensSkillsError, match="none were named"):
        shortcuts(tiny_bridge, *splits, neurons=[])
    with pytest.raises(LensSkillsError, match="'L0N0' was not tested"):
        Shortcuts((), None, torch.zeros(0, 0), torch.zeros(0, 0), (), "", "", "", "")["L0N0"]


def test_the_metric_in_disguise_is_left_out_with_a_warning(
    tiny_bridge: Any, splits: tuple[Any, ...]
) -> None:
    explore = splits[0]
    sure = evaluate(tiny_bridge, explore, [ls.confidence()])["confidence"].tolist()
    known = {example.id: value for example, value in zip(explore, sure, strict=True)}
    bank = feature_bank(explore, extra={"told": lambda e: known[e.id]})
    with pytest.warns(RuntimeWarning, match="'told' is confidence in disguise"):
        found = shortcuts(
            tiny_bridge,
            *splits,
            metric=ls.confidence(),
            features=bank.only("told", "a is odd", "an operand is 5"),
            neurons=["L3N4"],
            controls=ls.controls(neurons=30),
            **OPTIONS,
        )
    assert found["L3N4"].feature != "told"


def test_the_smallest_effect_does_not_matter_beside_controls_of_exactly_zero() -> None:
    """δ is the controls' 95th percentile, as in `verify`, and 0 is no δ."""
    n = 40
    tiny = torch.full((1, n), 1e-7, dtype=torch.float64)
    removed = ConditionalEffects(
        total=tiny,
        controls=(torch.zeros(60, n, dtype=torch.float64),),
        groups=tuple(map(str, range(n))),
        do="zero ablation",
        unit="nats",
    )
    with pytest.raises(LensSkillsError, match="δ would be 0"):
        removed.overall(None)
    with pytest.raises(LensSkillsError, match="δ would be 0"):
        removed.differences([torch.arange(n) < n // 2], None)
    (effect,) = removed.overall(1e-3)
    assert not effect.matters
    assert effect.is_small
    assert effect.q <= 0.05
