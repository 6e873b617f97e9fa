"""Control sets: never a candidate, as many per layer, alike in what they are matched on."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange

from lens_skills.activations.components import Component, parse_components
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import (
    BALANCED,
    FEW_OTHERS,
    ComponentTable,
    Controls,
    across_layers,
    component_table,
    controls,
    drawn_units,
    homes,
    important,
    matched_sets,
)
from lens_skills.models import as_adapter

LAYERS, WIDTH = 4, 300


def unit(layer: int, index: int) -> Component:
    return Component(f"L{layer}N{index}", layer, "mlp.hook_post", index, index + 1)


def population(width: int = WIDTH, *, seed: int = 0) -> ComponentTable:
    """Neurons with random features; the scale differs by layer, as it does in models."""
    random = np.random.default_rng(seed)
    raw = np.exp(random.normal(size=(LAYERS, width, 3)) + np.arange(LAYERS)[:, None, None])
    raw[1, 5, 2] = 0.0  # writes nothing
    layer = torch.arange(LAYERS).repeat_interleave(width)
    return ComponentTable.of(
        [unit(at, index) for at in range(LAYERS) for index in range(width)],
        torch.zeros(LAYERS * width, dtype=torch.long),
        layer,
        torch.from_numpy(rearrange(raw, "layer neuron feature -> (layer neuron) feature")),
    )


def strongest(people: ComponentTable, layers: tuple[int, ...], k: int = 5) -> list[Component]:
    """The units of largest mean |a|: no random draw looks like them."""
    found = []
    for layer in layers:
        inside = (people.stratum == layer).nonzero()[:, 0]
        order = people.raw[inside, 0].argsort(descending=True)[:k]
        found += [people.units[place] for place in inside[order].tolist()]
    return found


def test_sets_have_as_many_units_per_layer_and_never_a_candidate() -> None:
    people = population()
    candidates = [*strongest(people, (0, 2)), unit(3, 7)]
    found = matched_sets(candidates, people, n_sets=100)
    assert len(found.sets) == 100
    for one in found.sets:
        assert [u.layer for u in one] == [u.layer for u in candidates]
        assert len(set(one)) == len(one)
        assert not set(one) & set(candidates)
    assert len({frozenset(one) for one in found.sets}) == 100
    assert found.sets == matched_sets(candidates, people, n_sets=100).sets
    assert found.sets != matched_sets(candidates, people, n_sets=100, seed=1).sets


def test_matching_brings_the_features_together_and_says_how_near() -> None:
    people = population()
    candidates = strongest(people, (0, 1, 2), k=3)
    near = {row["feature"]: row["smd"] for row in matched_sets(candidates, people).match}
    far = {row["feature"]: row["smd"] for row in matched_sets(candidates, people, drawn=[1]).match}
    assert far["mean |a|"] > 2
    assert abs(near["mean |a|"]) < far["mean |a|"] / 2
    assert list(near) == ["mean |a|", "std", "‖W_out‖"]
    # By hand, for random candidates, on the scale the match was made on.
    some = [unit(0, index) for index in range(20)]
    sets = matched_sets(some, people, n_sets=50)
    logs = people.raw[:WIDTH].log()
    scaled = (logs - logs.mean(0)) / logs.std(0, correction=0)
    taken = torch.tensor([[u.start for u in one] for one in sets.sets])
    for place, row in enumerate(sets.match):
        by_hand = scaled[:20, place].mean() - scaled[taken.flatten(), place].mean()
        assert row["smd"] == pytest.approx(float(by_hand))
        assert abs(float(row["smd"])) < 0.1
        assert row["candidates"] == pytest.approx(float(people.raw[:20, place].mean()))


def test_more_are_drawn_where_the_sets_do_not_match() -> None:
    """Neurons among the larger ones: of 32 drawn the nearest are still too small."""
    people = population(width=1_000)
    inside = (people.stratum == 0).nonzero()[:, 0]
    order = people.raw[inside, 0].argsort(descending=True)
    candidates = [people.units[place] for place in inside[order[8:16]].tolist()]
    first = matched_sets(candidates, people, n_sets=50, drawn=[32])
    better = matched_sets(candidates, people, n_sets=50)
    assert first.worst > BALANCED
    assert better.worst < first.worst
    assert len(set(better.sets)) == 50
    extreme = matched_sets(strongest(people, (0,)), people, n_sets=20)
    assert extreme.worst > BALANCED  # nothing is like them, and it is said


def test_a_decoy_is_matched_on_the_rest_and_named() -> None:
    people = population()
    found = matched_sets([unit(1, 5), unit(1, 6)], people, n_sets=50)
    assert found.unmatchable == ("L1N5",)
    assert all(np.isfinite(float(row["smd"])) for row in found.match)
    assert people.scaled.isfinite().all()


def test_the_layer_without_enough_others_is_named() -> None:
    people = population(width=12)
    fine = [unit(2, index) for index in range(6)]
    assert len(matched_sets(fine, people, n_sets=3).sets) == 3
    with pytest.raises(LensSkillsError, match=r"layer 2: 7 of its units .* and 5 other"):
        matched_sets([*fine, unit(2, 6), unit(0, 0)], people, n_sets=3)


def test_important_controls_are_the_strongest_of_the_layer_without_candidates() -> None:
    people = population()
    candidates = [unit(0, 0), unit(2, 1)]
    strength = torch.arange(LAYERS * WIDTH, dtype=torch.float64) % WIDTH
    strength[WIDTH - 1] = torch.nan  # not measured
    among = important(candidates, people, strength, share=0.1)
    chosen = [people.units[place] for place in among.nonzero()[:, 0].tolist()]
    assert Counter(u.layer for u in chosen) == {0: 30, 2: 30}
    assert min(u.start for u in chosen) >= WIDTH - 31
    assert not set(chosen) & {unit(0, WIDTH - 1), *candidates}
    sets = matched_sets(candidates, people, among=among, n_sets=40)
    assert {u for one in sets.sets for u in one} <= set(chosen)
    assert len(set(sets.sets)) > 10
    few = important(candidates, people, torch.where(strength > 200, strength, torch.nan), share=0.0)
    assert int(few.sum()) == 6  # three for each candidate at least


def test_a_layer_is_known_by_the_same_units_whatever_is_on_trial() -> None:
    people = population()
    candidates = [unit(1, 4), unit(1, 9), unit(3, 0)]
    places = drawn_units(candidates, people, n=None)
    chosen = {people.units[place] for place in places.tolist()}
    assert not across_layers(candidates, people)
    assert chosen == {unit(at, i) for at in (1, 3) for i in range(WIDTH)}
    some = drawn_units(candidates, people, n=120)
    assert Counter(people.units[at].layer for at in some.tolist()) == {1: 120, 3: 120}
    alone = drawn_units([unit(3, 5)], people, n=120)
    assert alone.tolist() == [at for at in some.tolist() if people.units[at].layer == 3]
    other = drawn_units([unit(3, 5)], people, n=120, seed=1)
    assert alone.tolist() != other.tolist()


def test_where_a_layer_has_few_others_all_layers_serve() -> None:
    people = population(width=FEW_OTHERS)
    assert across_layers([unit(1, 4)], people)
    assert len(drawn_units([unit(1, 4)], people, n=None)) == LAYERS * FEW_OTHERS
    wide = population(width=FEW_OTHERS + 1)
    assert not across_layers([unit(1, 4)], wide)
    assert len(homes(wide).unique()) == LAYERS


TEXTS = ("The key to the cabinets", "Hello", "When the girl and the boy")


def examples() -> list[Example]:
    return [Example(str(place), text) for place, text in enumerate(TEXTS)]


def test_a_survey_measures_what_hooks_read(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    people = component_table(adapter, examples(), parse_components(adapter, ["L1N3", "L2N5"]))
    read = []
    for text in TEXTS:
        with torch.no_grad():
            _, cache = tiny.run_with_cache(tiny.to_tokens(text))
        read.append(torch.stack([cache[f"blocks.{at}.mlp.hook_post"][0, -1] for at in range(4)]))
    acts = torch.stack(read).double()
    assert len(people.units) == 4 * tiny.cfg.d_mlp
    place = people.places([unit(2, 5)])[0]
    norm = float(tiny.blocks[2].mlp.W_out.detach()[5].norm())
    level, spread = float(acts[:, 2, 5].abs().mean()), float(acts[:, 2, 5].std(correction=0))
    assert people.raw[place].tolist() == pytest.approx([level, spread, norm], rel=1e-4)


def test_heads_and_neurons_are_populations_of_their_own(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    candidates = parse_components(adapter, ["L1H2", "L1N2", "L3MLP"])
    people = component_table(adapter, examples(), candidates)
    n_heads, n_neurons = 4 * tiny.cfg.n_heads, 4 * tiny.cfg.d_mlp
    assert people.kind.bincount().tolist() == [n_heads, n_neurons, 4]
    assert [people.units[at].name for at in people.places(candidates)] == ["L1H2", "L1N2", "L3MLP"]
    assert len(drawn_units(candidates, people, n=None)) == n_heads + n_neurons + 4
    with pytest.raises(LensSkillsError, match=r"layer 3: 1 of its units at hook_mlp_out"):
        matched_sets(candidates, people, n_sets=2)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"sets": -1}, r"controls\(sets=-1\): sets must be a whole number from 0 on\."),
        ({"important": -2}, "important must be a whole number from 0 on, or None"),
        ({"neurons": 0}, "neurons must be a whole number from 1 on, or None"),
        ({"sets": True}, "sets must be a whole number"),
    ],
)
def test_numbers_of_controls_that_cannot_be_are_refused(numbers: Any, text: str) -> None:
    with pytest.raises(LensSkillsError, match=text):
        Controls(**{"sets": 200, "important": None, "neurons": 1000} | numbers)


def test_a_quarter_of_the_sets_are_of_important_neurons_unless_said() -> None:
    assert controls() == Controls()
    assert [controls(n).n_important for n in (0, 3, 200)] == [0, 0, 50]
    assert controls(200, important=0).n_important == 0
