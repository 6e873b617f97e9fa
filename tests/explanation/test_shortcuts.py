"""A planted shortcut is found, explained and confirmed; a twin that writes nothing is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

import lens_skills as ls
from lens_skills.activations import evaluate
from lens_skills.data import halves
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import Explanation, FeatureBank, Shortcuts, feature_bank, shortcuts
from lens_skills.explanation.conditional_effects import (
    ConditionalEffects,
    condition_of,
    influence,
)
from lens_skills.explanation.explain import feature_rows
from lens_skills.explanation.feature_bank import FeatureMatrix
from lens_skills.explanation.feature_tests import associate
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
from lens_skills.explanation.shortcut_ties import q_of_ties, tied_to
from lens_skills.explanation.shortcuts import without_disguises
from lens_skills.models import as_adapter
from lens_skills.stats.effect_tests import cluster_error, smallest_effect
from lens_skills.tasks import Task
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
    with with_shortcut(tiny_bridge, splits[0], gain=1.5 * plant.GAIN):
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
    with with_shortcut(tiny_bridge, splits[0], gain=1.5 * plant.GAIN):
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
    """δ is at least 1 % of the clean metric, and 0 is no δ."""
    n = 40
    tiny = torch.full((1, n), 1e-7, dtype=torch.float64)
    nothing = torch.zeros(60, n, dtype=torch.float64)
    groups = tuple(map(str, range(n)))
    removed = ConditionalEffects(
        tiny, (nothing,), torch.zeros(n).double(), groups, "zero ablation", "nats"
    )
    with pytest.raises(LensSkillsError, match="δ would be 0"):
        removed.overall(None)
    with pytest.raises(LensSkillsError, match="δ would be 0"):
        removed.differences([torch.arange(n) < n // 2], None)
    (effect,) = replace(removed, clean=torch.full((n,), 3.0).double()).overall(None)
    assert effect.delta == pytest.approx(0.03)
    assert not effect.matters
    assert effect.is_small
    (effect,) = removed.overall(1e-3)
    assert not effect.matters
    assert effect.is_small
    assert effect.q <= 0.05


def explained_by_chance(seed: int) -> list[Any]:
    """Ten neurons and a surface feature that have nothing to do with one another."""
    random = np.random.default_rng(seed)
    n = 60
    values = pd.DataFrame({"coin": random.integers(0, 2, n)})
    bank = FeatureBank(tuple(Feature(name, "flag", len) for name in values))
    groups = [str(k) for k in range(n)]
    found = associate(
        torch.from_numpy(random.normal(size=(10, n))),
        FeatureMatrix.of(list(bank), values),
        groups,
        halves(groups, seed=seed),
        k=5,
        n_permutations=199,
        seed=seed,
    )
    rows = [feature_rows(found, k, bank, {}, bank.names, gated=False) for k in range(10)]
    nothing = torch.zeros(n)
    return [
        Explanation(f"L0N{k}", one, (), (), None, nothing, values) for k, one in enumerate(rows)
    ]


def test_neurons_that_nothing_explains_are_rarely_tied() -> None:
    """With p of each neuron alone some of ten were tied in a fifth of the runs; with q in 5 %."""
    alone, together = 0, 0
    for seed in range(60):
        found = explained_by_chance(seed)
        p = [one.rows[0]["p"] for one in found]
        q = q_of_ties(found)
        known = [value for value in q if value is not None]
        assert known == pytest.approx(false_discovery_control(p), abs=1e-6)
        alone += any(tied_to(one, row, 0.0) for one, row in zip(found, p, strict=True))
        together += any(tied_to(one, row, 0.0) for one, row in zip(found, q, strict=True))
    assert alone >= 6
    assert together <= 6


def test_delta_is_what_controls_do_and_not_how_few_examples_there_were() -> None:
    """True effects of 0.03 at the 95th percentile: found whatever the noise of measuring them."""
    random = np.random.default_rng(1)
    for n in (16, 64, 256):
        groups = [str(k) for k in range(n)]
        true = random.normal(size=(2000, 1)) * 0.03 / 1.96
        controls = torch.from_numpy(true + 0.05 * random.normal(size=(2000, n)))
        delta = smallest_effect(controls, groups, 0.0)
        assert delta == pytest.approx(0.03, abs=0.012)
    raw = controls.new_tensor(true + 0.05 * random.normal(size=(2000, 16))).mean(1)
    assert raw.abs().quantile(0.95) > 0.035


def test_a_neurons_delta_and_p_do_not_hang_on_who_else_is_tried() -> None:
    random = np.random.default_rng(2)
    n = 40
    total = torch.from_numpy(random.normal(size=(2, n)))
    controls = tuple(torch.from_numpy(random.normal(size=(30, n)) * scale) for scale in (1, 9))
    groups = tuple(map(str, range(n)))
    both = ConditionalEffects(total, controls, torch.ones(n).double(), groups, "", "")
    alone = replace(both, total=total[:1], controls=controls[:1])
    assert both.overall(None)[0].delta == alone.overall(None)[0].delta
    assert both.overall(None)[0].p == alone.overall(None)[0].p
    assert both.overall(None)[1].delta > 3 * alone.overall(None)[0].delta


def test_a_part_of_few_groups_gives_no_difference() -> None:
    n = 80
    part = torch.arange(n) < 30
    wide = ConditionalEffects(
        torch.ones(1, n).double() + part,
        (torch.randn(30, n, generator=torch.Generator().manual_seed(0)).double(),),
        torch.ones(n).double(),
        tuple(str(k // 3) for k in range(n)),
        "",
        "",
    )
    assert wide.differences([part], None)[0] is not None
    few = replace(wide, groups=tuple(str(k // 6) for k in range(n)))  # five groups have it
    assert few.differences([part], None)[0] is None


def test_splits_of_few_groups_are_refused_before_anything_is_measured(
    tiny_bridge: Any, splits: tuple[Any, ...]
) -> None:
    explore, confirm, intervene = splits
    few = Task("few", [replace(e, group=f"x{k % 7}") for k, e in enumerate(intervene)])
    with pytest.raises(LensSkillsError, match=r"holds 7 of the 8 groups .* explain\("):
        shortcuts(tiny_bridge, explore, confirm, few)
    half = Task("half", [replace(e, group=f"y{k % 15}") for k, e in enumerate(explore)])
    with pytest.raises(LensSkillsError, match="holds 15 of the 16 groups"):
        shortcuts(tiny_bridge, half, confirm, intervene)


def test_a_surface_feature_that_stands_for_a_label_defines_the_task(
    tiny_bridge: Any, splits: tuple[Any, ...]
) -> None:
    explore = splits[0]
    bank = feature_bank(explore, extra={"mine": lambda e: e.column("result") % 2 == 0})
    marked, same, notes = without_disguises(as_adapter(tiny_bridge), explore, bank, ls.confidence())
    assert bank["mine"].surface
    assert not marked["mine"].surface
    assert "label even" in set(same["column"])
    assert any("count as defining the task" in note for note in notes)
