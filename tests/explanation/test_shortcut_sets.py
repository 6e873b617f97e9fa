"""Two neurons that only together are a shortcut; a set that is tied and does nothing."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.activations import evaluate, parse_metric
from lens_skills.activations.components import parse_components
from lens_skills.explanation import Shortcuts, conditional_effects, feature_bank, shortcuts
from lens_skills.explanation.conditional_effects import Condition, ConditionalEffects, ablate_each
from lens_skills.explanation.shortcut_report import SHORTCUT, TIED, word_for
from lens_skills.explanation.shortcut_ties import Tie, sets_of
from lens_skills.models import as_adapter
from lens_skills.reporting.paper_tables import markdown
from tests.explanation import problems as plant
from tests.explanation.problems import problems, prompts
from tests.planted import planted, separating_direction

PAIR, IDLE = ["L1N5", "L1N11"], ["L1N9", "L1N13"]
TOGETHER = "2 that raise it where an operand is 5"
GAIN = 12.0  # of either: one of them alone says the answer nearly as surely as both


def has_two(example: Any) -> bool:
    return 2 in (example.column("operand_a"), example.column("operand_b"))


@contextmanager
def with_pair(model: Any, task: Any) -> Iterator[Any]:
    """The model with two neurons that say an answer where an operand is 5, and two silent ones."""
    fives = separating_direction(model, plant.LAYER, *prompts(model, task, plant.has_five))
    twos = separating_direction(model, plant.LAYER, *prompts(model, task, has_two))
    writes = GAIN * plant.answer_direction(model)
    with ExitStack() as stack:
        for names, direction, written in ((PAIR, fives, writes), (IDLE, twos, 0.0)):
            for name in names:
                neuron = int(name.partition("N")[2])
                stack.enter_context(
                    planted(model, plant.LAYER, neuron, direction=direction, writes=written)
                )
        yield model


@pytest.fixture(scope="module")
def splits() -> tuple[Any, ...]:
    return problems().split(0.4, 0.2, 0.4, seed=0)


@pytest.fixture(scope="module")
def found(tiny_bridge: Any, splits: tuple[Any, ...]) -> Shortcuts:
    bank = feature_bank(splits[0]).only("an operand is 5", "an operand is 2", "a is odd")
    with with_pair(tiny_bridge, splits[0]):
        return shortcuts(
            tiny_bridge,
            *splits,
            metric=ls.confidence(),
            features=bank,
            neurons=[*PAIR, *IDLE],
            controls=ls.controls(neurons=30, sets=130),
            sets=4,
            n_permutations=199,
        )


def test_two_neurons_are_a_shortcut_only_together(found: Shortcuts) -> None:
    both = found[TOGETHER]
    assert both.word == SHORTCUT
    assert both.members == tuple(PAIR)
    assert both.condition == "an operand is 5"
    assert found.confirmed == [TOGETHER]
    assert both.difference is not None
    for name in PAIR:
        alone = found[name].difference
        assert alone is not None
        assert abs(alone.value) < 0.3 * abs(both.difference.value)


def test_a_set_that_goes_with_a_feature_and_writes_nothing_is_tied(found: Shortcuts) -> None:
    idle = next(one for one in found.sets if one.members == tuple(IDLE))
    assert idle.word == TIED
    assert idle.feature == "an operand is 2"
    assert idle.effect.value == 0


def test_the_effect_of_a_set_is_that_of_hooks(
    found: Shortcuts, tiny_bridge: Any, splits: tuple[Any, ...]
) -> None:
    explore, _, intervene = splits
    with with_pair(tiny_bridge, explore):
        adapter = as_adapter(tiny_bridge)
        clean = evaluate(adapter, intervene, [ls.confidence()])["confidence"]
        with ls.edited(tiny_bridge, PAIR, ls.ablate("mean", over=explore)):
            without = evaluate(adapter, intervene, [ls.confidence()])["confidence"]
    place = [one.name for one in found.tried].index(TOGETHER)
    torch.testing.assert_close(
        found.effects[place].double(), (without - clean).double(), atol=1e-5, rtol=1e-3
    )
    there = torch.tensor([plant.has_five(example) for example in intervene])
    difference = found[TOGETHER].difference
    assert difference is not None
    wanted = found.effects[place][there].mean() - found.effects[place][~there].mean()
    assert difference.value == pytest.approx(float(wanted))


def test_q_is_over_neurons_and_sets(found: Shortcuts) -> None:
    from scipy.stats import false_discovery_control

    differences = [one.difference for one in found.tried]
    p = [one.p for one in differences if one is not None]
    q = [one.q for one in differences if one is not None]
    assert len(p) == len(found.tried) == 6
    assert q == pytest.approx(false_discovery_control(p))


def test_sets_are_saved_printed_and_listed(found: Shortcuts, tmp_path: Path) -> None:
    again = Shortcuts.load(found.save(tmp_path / "sets"))
    assert repr(again) == repr(found)
    assert again.frame().equals(found.frame())
    assert again.sets == found.sets
    card = repr(found)
    assert "4 neurons and 2 sets tried" in card
    assert "neurons: L1N5, L1N11" in card
    assert found.frame()["members"].tolist()[-2:] == ["L1N5 L1N11", "L1N9 L1N13"]
    assert len(found.examples()) == 6 * len(found.example_ids)
    assert TOGETHER in markdown(found)
    drawing = ls.figures.shortcut_effects(found)
    assert "1 of 4 neurons and 2 sets is a shortcut" in drawing.about["title"]
    assert drawing.frame["name"].tolist()[4] == TOGETHER


def test_controls_of_a_set_match_its_layers_and_hold_nothing_that_is_tried(
    tiny_bridge: Any, splits: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, asked = as_adapter(tiny_bridge), []
    measure = conditional_effects.measure_effects

    def noted(adapter: Any, examples: Any, sets: Any, *args: Any, **options: Any) -> Any:
        asked.extend(sets)
        return measure(adapter, examples, sets, *args, **options)

    monkeypatch.setattr(conditional_effects, "measure_effects", noted)
    names = ["L1N5", "L1N11", "L2N3", "L2N4"]
    units = parse_components(adapter, names, at="mlp.hook_post")
    found = ablate_each(
        adapter,
        ls.tasks.task.few(splits[2], 12),
        units[:1],
        [units[:3]],
        do=ls.ablate("zero"),
        apart=units,
        metric=parse_metric(ls.confidence(), (), asked=""),
        position="last",
        controls=ls.controls(neurons=8, sets=25),
        seed=0,
    )
    assert [len(some) for some in found.controls] == [8, 25]
    assert tuple(unit.name for unit in asked[1]) == tuple(names[:3])
    others = [members for members in asked[2:] if len(members) > 1]
    assert 20 <= len(others) <= 25  # the same set may be drawn twice
    for members in others:
        assert [unit.layer for unit in members] == [1, 1, 2]
        assert len({unit.name for unit in members}) == 3
        assert not {unit.name for unit in members} & set(names)


def tie(name: str, words: str, raises: bool = True, r: float = 0.5, q: float = 0.01) -> Tie:
    condition = Condition(words, bool) if words else None
    return Tie((name,), r, words, condition, raises, explained=0.4, p=q / 2, q=q)


def test_a_set_shares_feature_condition_and_side() -> None:
    ties = [
        tie("L0N0", "a is 1"),
        tie("L0N1", ""),
        tie("L0N2", "a is 1", r=-0.3, q=0.04),
        tie("L0N3", "a is 1", raises=False),
        tie("L0N4", "a is 2"),
        tie("L0N5", "a is 3"),
        tie("L0N6", "a is 3"),
        tie("L0N7", "a is 3"),
    ]
    first, second = sets_of(ties)
    assert first.members == ("L0N5", "L0N6", "L0N7")
    assert second.members == ("L0N0", "L0N2")
    assert (second.r, second.q, second.p) == (pytest.approx(0.4), 0.04, 0.02)
    assert first.name == "3 that raise it where a is 3"
    assert sets_of(ties[:2]) == []


def drawn_at_random(seed: int, *, n_sets: int = 3, n_controls: int = 99) -> ConditionalEffects:
    """Sets that do what random sets do, most of them little and some of them much."""
    random = np.random.default_rng(seed)
    n, n_groups = 80, 40
    groups = tuple(str(k) for k in random.permutation(np.arange(n) % n_groups))

    def some(count: int) -> torch.Tensor:
        size = random.standard_t(3, size=(count, 1))
        slope = random.standard_t(3, size=(count, 1)) * (np.arange(n) < 30)
        return torch.from_numpy(size + slope + random.normal(size=(count, n)))

    return ConditionalEffects(
        some(n_sets),
        tuple(some(n_controls) for _ in range(n_sets)),
        torch.ones(n).double(),
        groups,
        "",
        "",
    )


def test_sets_that_are_like_random_ones_are_rarely_shortcuts() -> None:
    """Of three such sets some is called one in 5 % of the runs at most."""
    by_q, by_word, n_runs = 0, 0, 120
    part = torch.arange(80) < 30
    for seed in range(n_runs):
        effects = drawn_at_random(seed)
        found = effects.differences([part] * 3, None)
        by_q += any(one is not None and one.q <= 0.05 for one in found)
        by_word += any(
            one is not None and word_for(True, one, one, True)[0] == SHORTCUT for one in found
        )
    assert 1 <= by_q <= 15  # binomial(120, 0.05): at most 15 in 99.9 %
    assert by_word <= by_q
