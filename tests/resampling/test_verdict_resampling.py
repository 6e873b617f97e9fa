"""A verdict's words on halves of its groups, against intervals computed half by half."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lens_skills.errors import LensSkillsError
from lens_skills.interventions import Effects, Verdict
from lens_skills.interventions.verdict import (
    COMPENSATED,
    MIXED,
    NO_EFFECT,
    OPPOSES,
    SUPPORTS,
    UNDECIDED,
    Ruling,
)
from lens_skills.resampling import stability
from lens_skills.resampling.verdict_resampling import words_on
from lens_skills.stats.effect_tests import cluster_interval

GROUPS, EACH, DELTA = 40, 3, 0.2
NAMES = tuple(f"L0N{place}" for place in range(6))
# Mean effects: two far beyond δ, one at the border, one large that its controls reach as well,
# none, and none in all with a direct effect.
MEANS = (-1.0, 0.8, -0.27, -1.0, 0.0, 0.0)
Q = (0.01, 0.01, 0.01, 0.5, 0.9, 0.9)
WORDS = (SUPPORTS, OPPOSES, SUPPORTS, UNDECIDED, NO_EFFECT, COMPENSATED)


def make_verdict(seed: int = 0, **changes: Any) -> Verdict:
    random = np.random.default_rng(seed)
    n = GROUPS * EACH
    noise = random.normal(size=(len(NAMES), n)) * 0.3
    noise -= noise.mean(axis=1, keepdims=True)
    total = torch.from_numpy(np.array(MEANS)[:, None] + noise)
    direct = total.clone()
    direct[5] -= 1.0
    groups = tuple(str(place // EACH) for place in range(n))
    effects = Effects(
        names=NAMES,
        clean=torch.full((n,), 2.0, dtype=torch.float64),
        total=total,
        direct=direct,
        example_ids=tuple(map(str, range(n))),
        groups=groups,
        metric="logit_diff",
        unit="nats",
        do="mean ablation over explore",
        site="mlp.hook_post",
        position="last",
    )
    low, high = cluster_interval(total, groups)
    low90, high90 = cluster_interval(total, groups, level=0.9)
    rulings = tuple(
        Ruling(
            name=name,
            word=WORDS[k],
            why="",
            effect=float(total[k].mean()),
            low=float(low[k]),
            high=float(high[k]),
            low90=float(low90[k]),
            high90=float(high90[k]),
            size=1.0,
            q=Q[k],
            delta=DELTA,
        )
        for k, name in enumerate(NAMES)
    )
    verdict = Verdict(
        rulings=rulings,
        effects=effects,
        control_neurons=(),
        control_neuron_effect=torch.zeros(0),
        control_effect=torch.zeros(0),
        important_effect=torch.zeros(0),
        delta=DELTA,
        delta_from="declared",
        tables={},
    )
    return replace(verdict, **changes)


def test_words_that_rest_on_much_stay_and_that_at_the_border_does_not() -> None:
    verdict = make_verdict()
    found = stability(verdict, n=40)
    assert (found.n_groups, found.n_groups_run, len(found.runs)) == (40, 20, 40)
    assert found.ruled == NAMES
    assert found.whole_words == WORDS
    stays = found.frame().set_index("name")["word_stays"]
    assert stays[["L0N0", "L0N1", "L0N3", "L0N4", "L0N5"]].tolist() == [1] * 5
    assert 0.2 < stays["L0N2"] < 0.95
    words = found.words_that_stay()
    assert words["stay"] == pytest.approx(stays.mean())
    assert words["low"] < words["stay"] < words["high"]
    assert words["chance"] < 0.4
    assert words["not_tried"] == 0
    assert set(found.names) == {"L0N0", "L0N1", "L0N2"}
    assert "δ, controls and q are those of the whole verdict" in " ".join(repr(found).split())
    assert max(map(len, repr(found).splitlines())) <= 80


def test_a_half_is_ruled_on_by_its_own_interval() -> None:
    """One neuron after another, on one half, by the interval of its examples."""
    verdict = make_verdict(1)
    half = {str(group) for group in range(0, GROUPS, 2)}
    words = words_on(verdict, half, n_draws=1000, seed=0)
    rows = [place for place, group in enumerate(verdict.effects.groups) if group in half]
    groups = [verdict.effects.groups[place] for place in rows]
    for k, name in enumerate(NAMES):
        options = {"n_draws": 1000, "seed": 0}
        low, high = map(float, cluster_interval(verdict.effects.total[k, rows], groups, **options))
        inner = cluster_interval(verdict.effects.total[k, rows], groups, level=0.9, **options)
        if Q[k] <= 0.05 and (low > DELTA or high < -DELTA):
            expected = SUPPORTS if high < 0 else OPPOSES
        elif float(inner[0]) >= -DELTA and float(inner[1]) <= DELTA:
            expected = COMPENSATED if k == 5 else NO_EFFECT
        else:
            expected = UNDECIDED
        assert words[name] == expected, name
    turned = words_on(replace(verdict, removes=False), half, n_draws=1000, seed=0)
    assert turned["L0N0"] == OPPOSES


def test_a_word_that_rests_on_more_is_left_out() -> None:
    verdict = make_verdict()
    mixed = replace(verdict.rulings[0], word=MIXED)
    marked = replace(verdict, rulings=(mixed, *verdict.rulings[1:]), exploratory=True)
    found = stability(marked, n=4)
    assert found.exploratory
    assert repr(found).startswith("EXPLORATORY")
    assert not stability(verdict, n=4).exploratory
    assert found.ruled == NAMES[1:]
    assert "1 left out, whose word rests on more" in " ".join(repr(found).split())
    none = tuple(replace(ruling, word=MIXED) for ruling in verdict.rulings)
    with pytest.raises(LensSkillsError, match="no word of this verdict rests on its mean"):
        stability(replace(verdict, rulings=none), n=4)
    with pytest.raises(LensSkillsError, match="a finished verdict is of one wording"):
        stability(verdict, over="paraphrases")
    few = replace(verdict.effects, groups=tuple(str(k % 12) for k in range(GROUPS * EACH)))
    with pytest.raises(LensSkillsError, match="fewer than 8 say nothing"):
        stability(replace(verdict, effects=few))


def test_the_words_of_noise_stay_no_more_than_dealt_at_random() -> None:
    """Neurons whose effects have one distribution: which of them is undecided is luck."""
    verdict = make_verdict()
    random = np.random.default_rng(5)
    more = 60
    total = torch.from_numpy(random.normal(0, 0.6, size=(more, GROUPS * EACH)))
    names = tuple(f"L1N{k}" for k in range(more))
    effects = replace(verdict.effects, names=names, total=total, direct=None)
    rulings = tuple(replace(verdict.rulings[4], name=name, word=UNDECIDED) for name in names)
    bare = replace(verdict, effects=effects, rulings=rulings)
    first, second = ({str(k) for k in range(part, GROUPS, 2)} for part in (0, 1))
    one, two = (words_on(bare, part, n_draws=500, seed=0) for part in (first, second))
    same = np.mean([one[name] == two[name] for name in names])
    share = np.mean([word == NO_EFFECT for word in one.values()])
    other = np.mean([word == NO_EFFECT for word in two.values()])
    chance = share * other + (1 - share) * (1 - other)
    assert 0.1 < share < 0.9
    assert abs(same - chance) < 3 * (0.25 / more) ** 0.5
