"""A cause of everything is no skill hit: by simulation, and with neurons of known function."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.effects import Effects
from lens_skills.ranking import MethodComparison, compare_methods
from lens_skills.ranking.causal_hits import EffectTests
from lens_skills.ranking.specificity import skill_tests
from tests.planted import plant
from tests.ranking.test_compare_methods import ANSWERS, FRAMES, NOUNS

NEURONS, DRAWS = 60, 30
GROUPS = {
    "alike": [f"g{place}" for place in range(24)],
    "uneven": [f"g{min(place // 3, 11)}" for place in range(40)],
}


def made(shares: np.ndarray, groups: list[str], noise: str, *, seed: int, clean: float) -> Effects:
    """Effects that are these shares of a clean metric, with examples and groups that differ."""
    random = np.random.default_rng(seed)
    size = (len(shares), len(groups))
    codes = np.unique(groups, return_inverse=True)[1]
    drawn = {
        "normal": lambda n: random.normal(size=n),
        "skewed": lambda n: (np.exp(random.normal(size=n)) - np.exp(0.5)) / 2.16,
    }[noise]
    spread = 0.06 * (drawn(size) + drawn((len(shares), codes.max() + 1))[:, codes]) / 2**0.5
    metric = clean * (1 + 0.3 * random.normal(size=len(groups)))
    total = clean * (shares[:, None] + spread)
    return Effects(
        names=tuple(f"L0N{place}" for place in range(len(shares))),
        clean=torch.from_numpy(metric),
        total=torch.from_numpy(total),
        direct=None,
        example_ids=tuple(map(str, range(len(groups)))),
        groups=tuple(groups),
        metric="m",
        unit="nats",
        do="made up",
        site="mlp.hook_post",
        position="last",
    )


def all_hits(effects: Effects) -> EffectTests:
    n = len(effects.names)
    zeros = torch.zeros(n, dtype=torch.float64)
    words = ("supports",) * n
    return EffectTests(
        effects.names, (0,) * n, zeros, zeros, zeros, zeros, zeros, zeros, words
    )  # fmt: skip


def called(
    own: float, others: tuple[float, ...], groups: str = "alike", noise: str = "normal"
) -> float:
    """The share of neurons of these relative effects that are called specific.

    On the task and on each contrast; over draws of the examples with their clean metric.
    """
    share = 0.0
    for draw in range(DRAWS):
        task = made(np.full(NEURONS, own), GROUPS[groups], noise, seed=10 * draw, clean=3.0)
        contrasts = []
        for place, theirs in enumerate(others):
            clean, seed = -3.5 if place else 8.0, 10 * draw + 1 + place
            shares = np.full(NEURONS, theirs)
            effects = made(shares, GROUPS["alike"], noise, seed=seed, clean=clean)
            contrasts.append((f"c{place}", effects))
        share += float(skill_tests(all_hits(task), task, contrasts).is_skill.double().mean())
    return share / DRAWS


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("noise", ["normal", "skewed"])
@pytest.mark.parametrize("others", [(0.15, 0.0), (-0.15, 0.0), (0.0, 0.15), (0.15, 0.15)])
def test_a_cause_of_another_task_as_well_is_rarely_called_specific(
    others: tuple[float, ...], noise: str, groups: str
) -> None:
    """At the border |R| = |R_c|; 2.5 % are allowed, by two standard errors of the count more."""
    limit = 0.025 if noise == "normal" else 0.05
    # The neurons of a draw share its clean metric, so the draws are counted, not the neurons.
    assert called(0.15, others, groups, noise) <= limit + 2 * (limit / DRAWS) ** 0.5 / 4


def test_a_more_general_cause_is_never_called_specific() -> None:
    assert called(0.1, (0.2, 0.0)) < 0.001


def test_power_and_its_price() -> None:
    """A standard error of 1.2 % of the metric: 8 % more is found, and more contrasts cost some."""
    small, middle, four, large = (
        called(share, (0.0,) * n) for share, n in ((0.02, 1), (0.05, 1), (0.05, 4), (0.08, 4))
    )
    assert small < 0.1
    assert middle > four > 0.25
    assert large > 0.85


def test_the_lower_end_is_welch_s() -> None:
    """With a clean metric that does not vary and each example its own group."""
    task = made(np.array([0.1, -0.1, 0.02]), GROUPS["alike"], "normal", seed=3, clean=2.0)
    other = made(np.array([0.05, 0.05, -0.08]), GROUPS["alike"], "normal", seed=4, clean=4.0)
    for each in (task, other):
        each.clean[:] = each.clean.mean()
    found = skill_tests(all_hits(task), task, [("other", other)])
    for row in range(3):
        a = (task.total[row] / task.clean[0]).numpy() * np.sign(float(task.total[row].mean()))
        b = (other.total[row] / other.clean[0]).numpy() * np.sign(float(other.total[row].mean()))
        interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        assert float(found.low[0, row]) == pytest.approx(interval.low)


def test_what_is_no_hit_is_not_asked() -> None:
    task = made(np.array([0.1, 0.1, 0.1]), GROUPS["alike"], "normal", seed=3, clean=2.0)
    tests = all_hits(task)
    object.__setattr__(tests, "verdicts", ("supports", "-", "opposes"))
    other = made(np.array([0.0, 0.0]), GROUPS["alike"], "normal", seed=4, clean=4.0)
    found = skill_tests(tests, task, [("other", other)])
    assert found.low[0].isnan().tolist() == [False, True, False]
    assert found.skill_names == {"L0N0", "L0N2"}
    object.__setattr__(tests, "verdicts", ("-",) * 3)
    nobody = skill_tests(tests, task, [("other", other)])
    assert nobody.skill_names == frozenset()


# Neurons of known function.

TRUTH = {"specific": "L2N7", "general": "L2N20", "decoy": "L2N5"}


def endings(number: int, ends: tuple[str, str], name: str, n: int = 60) -> ls.Task:
    """Prompts that end in one of two words, which ask for " it" or " they"."""
    random = np.random.default_rng(number)
    found = []
    for place in range(n):
        plural = place % 2
        text = FRAMES[place % 4].format(*random.choice(NOUNS, 3))
        found.append(
            ls.Example(
                f"{number}/{place}", text + ends[plural], answer=ANSWERS[plural],
                foil=ANSWERS[1 - plural], labels={"plural": plural}, group=f"{number}/{place}",
            )
        )  # fmt: skip
    return ls.Task(name, found)


@pytest.fixture(scope="module")
def found(tiny_hooked: Any) -> Iterator[MethodComparison]:
    model = tiny_hooked
    undo: list[Callable[[], None]] = []

    def token(word: str) -> int:
        (one,) = model.tokenizer.encode(word, add_special_tokens=False)
        return one

    towards = (model.W_U[:, token(ANSWERS[1])] - model.W_U[:, token(ANSWERS[0])]).detach()
    towards = 3 * towards / towards.norm()
    here, there = (token(" are"), token(" is")), (token(" to"), token(" the"))
    ends = {
        "specific": ([here[0]], [here[1], *there], towards),
        "general": ([here[0], there[0]], [here[1], there[1]], towards),
        "decoy": ([here[0]], [here[1]], towards * 0),
    }
    for role, (on, off, writes) in ends.items():
        layer, neuron = map(int, TRUTH[role][1:].split("N"))
        undo.append(plant(model, layer, neuron, on, off, writes=writes, strength=8.0))
    task, other = endings(0, (" is", " are"), "verbs"), endings(1, (" the", " to"), "others")
    ranked, tried = task.split(0.5, 0.5, seed=0)
    yield compare_methods(
        model, ranked, "label:plural", intervene=tried, k=12, layers=[2], n_random=1,
        methods=["pearson", "prediction"], exhaustive=False, contrast=[other],
    )  # fmt: skip
    for put_back in undo:
        put_back()


def test_the_planted_specific_neuron_alone_is_a_skill_hit(found: MethodComparison) -> None:
    rows = found.neurons().drop_duplicates("name").set_index("name")
    assert rows.loc[[TRUTH["specific"], TRUTH["general"]], "verdict"].tolist() == ["supports"] * 2
    assert rows.loc[TRUTH["decoy"], "verdict"] == "-"
    assert rows.loc[TRUTH["specific"], "skill"]
    assert not rows.loc[TRUTH["general"], "skill"]
    assert not rows.loc[TRUTH["decoy"], "skill"]
    assert found.specific is not None
    assert found.specific.contrasts == ("others", "neutral text")
    hits = [found.skill_hits(row.method) for row in found.rows]
    assert hits[-2] is None, "of directions nobody asked"
    assert found.frame()["skill_hits"].tolist()[0] == hits[0]
    assert "a skill hit:" in repr(found)


def test_a_saved_comparison_keeps_its_skill_hits(found: MethodComparison, tmp_path: Any) -> None:
    again: Any = ls.load(found.save(tmp_path / "found"))
    assert found.specific is not None
    assert again.specific.skill_names == found.specific.skill_names
    torch.testing.assert_close(again.specific.low, found.specific.low, equal_nan=True)
    assert repr(again) == repr(found)


def test_contrasts_that_say_nothing(tiny_hooked: Any) -> None:
    task = endings(0, (" is", " are"), "verbs")
    flat = ls.Task("flat", [
        ls.Example(e.id, e.prompt, answer=ANSWERS[n // 2 % 2], foil=ANSWERS[1 - n // 2 % 2],
                   group=e.group)
        for n, e in enumerate(endings(5, (" is", " are"), "x", 20))
    ])  # fmt: skip
    ranked, tried = task.split(0.5, 0.5, seed=0)
    asked: dict[str, Any] = {"intervene": tried, "k": 2, "layers": [2], "methods": ["pearson"]}
    with pytest.raises(LensSkillsError, match="not told from 0"):
        compare_methods(tiny_hooked, ranked, "label:plural", contrast=[flat], **asked)
    with pytest.raises(LensSkillsError, match="ablate"):
        compare_methods(
            tiny_hooked, ranked, "label:plural", contrast=[], do=ls.scale(by=0.5), **asked
        )
