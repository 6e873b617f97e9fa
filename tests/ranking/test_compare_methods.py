"""The comparison finds planted neurons, tells decoys from them, and counts by a simple rule."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import lens_skills as ls
from lens_skills.interventions.control_neurons import draw_controls
from lens_skills.ranking import MethodComparison, compare_methods, rank
from lens_skills.ranking.causal_hits import effect_tests
from lens_skills.stats.effect_tests import cluster_interval, delta_from_controls
from tests.planted import plant
from tests.ranking.conftest import WIDTH

NOUNS = ("key", "keys", "girl", "girls", "boy", "boys", "author", "authors")
FRAMES = ("{0} near the {1}", "the {0} to the {1}", "hello {0} and {1}", "when {0} or the {1} {2}")
ANSWERS = (" it", " they")
LAYERS = [1, 2, 3]  # the embedding of the last word is the label: all of layer 0 knows it
TRUTH = {"skill": ["L1N3", "L2N7"], "decoy": ["L1N11", "L2N5"], "writer": ["L2N20"]}


def part(number: int, n: int) -> ls.Task:
    """Prompts that end in " is" or " are" and ask for " it" or " they"; each its own group."""
    random = np.random.default_rng(number)
    found = []
    for place in range(n):
        plural = place % 2
        text = FRAMES[place % 4].format(*random.choice(NOUNS, 3))
        found.append(
            ls.Example(
                f"{number}/{place}", text + (" are" if plural else " is"), answer=ANSWERS[plural],
                foil=ANSWERS[1 - plural], labels={"plural": plural},
            )
        )  # fmt: skip
    return ls.Task("endings", found, f"part {number}")


def build(model: Any, undo: list[Callable[[], None]]) -> MethodComparison:
    def tokens(word: str) -> list[int]:
        return model.tokenizer.encode(word, add_special_tokens=False)

    (singular,), (plural,) = map(tokens, ANSWERS)
    towards = (model.W_U[:, plural] - model.W_U[:, singular]).detach()
    towards = towards / towards.norm()
    ends = [tokens(" are")[0]], [tokens(" is")[0]]
    for role in ("skill", "decoy"):
        for name in TRUTH[role]:
            layer, neuron = map(int, name[1:].split("N"))
            undo.append(plant(model, layer, neuron, *ends, writes=towards * (role == "skill")))
    aside = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3)).double()
    undo.append(plant(model, 2, 20, direction=aside / 10, strength=1.0, writes=towards))
    return compare_methods(
        model, part(0, 80), "label:plural", intervene=part(2, 40), k=4, layers=LAYERS,
        controls=ls.controls(neurons=80), n_random=3,
    ).against(TRUTH)  # fmt: skip


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> Iterator[Callable[[str], MethodComparison]]:
    undo: list[Callable[[], None]] = []

    @cache
    def get(kind: str) -> MethodComparison:
        return build(request.getfixturevalue(f"tiny_{kind}"), undo)

    yield get
    for put_back in undo:
        put_back()


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def found(
    request: pytest.FixtureRequest, cases: Callable[[str], MethodComparison]
) -> MethodComparison:
    """On both implementations."""
    return cases(request.param)


def test_the_planted_are_found_and_decoys_are_no_hits(found: MethodComparison) -> None:
    words = found.neurons().set_index(["method", "name"])["verdict"]
    for method in ("pearson", "smd", "f", "auroc"):
        named = set(found[method].tests[0].names)
        assert named == {*TRUTH["skill"], *TRUTH["decoy"]}, method
        assert [words[method, name] for name in TRUTH["skill"]] == ["supports"] * 2
        assert [words[method, name] for name in TRUTH["decoy"]] == ["-"] * 2
        assert (found[method].hits, found[method].n) == (2, 4)
        row = found.frame().set_index("method").loc[method]
        assert (row.recall, row.precision, row.decoy, row.writer) == (1.0, 0.5, 2.0, 0.0)
    taylor = set(found["taylor"].tests[0].names)
    assert taylor >= set(TRUTH["skill"])
    assert not taylor & set(TRUTH["decoy"])


def test_the_rows_to_beat_are_there(found: MethodComparison) -> None:
    assert [row.method for row in found.rows][-2:] == ["rotated basis", "random"]
    random = found["random"]
    assert (len(random.tests), random.n) == (3, 12)
    assert random.share <= 0.25
    assert all("R" in name for name in found["rotated basis"].tests[0].names)
    assert found["rotated basis"].n == 4
    assert len(found.methods) == 11
    shares = [row.share for row in found.rows[:-2]]
    assert shares == sorted(shares, reverse=True)


def test_the_table_reads_as_it_should(found: MethodComparison) -> None:
    said = repr(found)
    assert "the 4 strongest neurons of each method" in said
    assert "ranked on 80 examples, tried on 40 in 40 groups" in said
    assert "95th percentile of the controls" in said
    assert "recall" in said
    frame = found.frame()
    assert frame["method"].tolist() == [row.method for row in found.rows]
    for row in frame.itertuples():
        ends = stats.binomtest(row.hits, row.n).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx(tuple(ends), abs=1e-9)
    assert len(found.neurons()) == frame["n"].sum()


def test_hits_follow_the_rule(found: MethodComparison, request: pytest.FixtureRequest) -> None:
    """Recomputed from a sweep of the same neurons, with counting for p and SciPy for q."""
    kind = found.provenance["implementation"]
    model = request.getfixturevalue(f"tiny_{kind}")
    frame = found.neurons()
    explore, intervene = part(0, 80), part(2, 40)
    own = frame[~frame["method"].isin(["rotated basis"])]
    names = sorted(own["name"].unique())
    rows = torch.tensor([[int(n[1:].split("N")[0]), int(n.split("N")[1])] for n in names])
    everyone = torch.tensor([[layer, unit] for layer in LAYERS for unit in range(WIDTH)])
    rows = rows[np.lexsort((rows[:, 1].numpy(), rows[:, 0].numpy()))]
    controls = draw_controls(rows, everyone, 80, seed=0)
    do = ls.ablate("mean", over=explore)
    both = ls.sweep(model, intervene, torch.cat([rows, controls]), do=do, metric="logit_diff")
    among = both.total[len(rows) :].mean(1).abs().numpy()
    assert found.delta == pytest.approx(np.quantile(among, 0.95), rel=1e-6)
    place = {name: i for i, name in enumerate(both.names)}
    groups = [example.group for example in intervene]
    for (_, _), part_ in own.groupby(["method", "list"]):
        total = both.total[[place[name] for name in part_["name"]]]
        mean = total.mean(1).numpy()
        np.testing.assert_allclose(part_["effect"], mean, atol=1e-6)
        p = [(1 + (among >= abs(one) * (1 - 1e-9)).sum()) / (1 + len(among)) for one in mean]
        np.testing.assert_allclose(part_["p"], p)
        np.testing.assert_allclose(part_["q"], stats.false_discovery_control(p))
        low, high = cluster_interval(total, groups, seed=0)
        for i, word in enumerate(part_["verdict"]):
            sure = part_["q"].iloc[i] <= 0.05
            below, above = float(high[i]) < -found.delta, float(low[i]) > found.delta
            assert word == ("supports" if below and sure else "opposes" if above and sure else "-")


def test_agreement_is_spearman_s_and_overlap_jaccard_s(
    found: MethodComparison, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{found.provenance['implementation']}")
    explore = part(0, 80)
    methods = ["pearson", "auroc", "probeless", "smd"]
    rankings = [
        rank(model, explore, "label:plural", method=name, layers=LAYERS) for name in methods
    ]
    places = [found.methods.index(name) for name in methods]
    for a, one in zip(places, rankings, strict=True):
        for b, other in zip(places, rankings, strict=True):
            wanted = stats.spearmanr(one.strength.numpy(), other.strength.numpy()).statistic
            assert float(found.spearman[a, b]) == pytest.approx(wanted, abs=1e-9)
            x, y = set(one.names(4)), set(other.names(4))
            assert float(found.jaccard[a, b]) == pytest.approx(len(x & y) / len(x | y))
    row = found["pearson"]
    others = [float(found.spearman[found.methods.index("pearson"), b])
              for b in range(len(found.methods)) if found.methods[b] != "pearson"]  # fmt: skip
    assert row.agreement == pytest.approx(np.mean(others))


def test_a_method_s_result_does_not_depend_on_the_others(
    found: MethodComparison, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{found.provenance['implementation']}")
    alone = compare_methods(
        model, part(0, 80), "label:plural", intervene=part(2, 40), k=4, methods=["auroc"],
        layers=LAYERS, controls=ls.controls(neurons=80), n_random=3, delta=found.delta,
    )  # fmt: skip
    assert alone.delta_from == "declared"
    effects = [each["auroc"].tests[0].effect for each in (alone, found)]
    torch.testing.assert_close(*effects, rtol=1e-4, atol=1e-6)
    assert alone["auroc"].tests[0].names == found["auroc"].tests[0].names


def test_controls_are_others_of_the_same_layers() -> None:
    everyone = torch.tensor([[layer, unit] for layer in range(4) for unit in range(50)])
    tried = torch.tensor([[0, 3], [2, 5], [2, 6], [2, 7]])
    found = draw_controls(tried, everyone, 40, seed=0)
    assert torch.bincount(found[:, 0], minlength=4).tolist() == [10, 0, 30, 0]
    rows = {tuple(row) for row in found.tolist()}
    assert len(rows) == 40
    assert not rows & {tuple(row) for row in tried.tolist()}
    assert torch.equal(found, draw_controls(tried, everyone, 40, seed=0))
    assert not torch.equal(found, draw_controls(tried, everyone, 40, seed=1))
    # Layers that are used up give way to the others.
    assert torch.bincount(draw_controls(tried, everyone, 96, seed=0)[:, 0]).tolist() == [49, 0, 47]


def test_a_hit_needs_size_and_rarity() -> None:
    controls = torch.linspace(0, 1, 400, dtype=torch.float64)
    delta = delta_from_controls(controls)
    assert delta == pytest.approx(0.95)
    groups = [str(i) for i in range(40)]
    noise = torch.linspace(-0.1, 0.1, 40, dtype=torch.float64)
    levels = torch.tensor([-2.0, 2.0, 0.96, -0.5], dtype=torch.float64)
    total = levels[:, None] + noise
    tests = effect_tests("abcd", total, groups, controls, delta=delta, removes=True)
    assert tests.verdicts == ("supports", "opposes", "-", "-")
    assert tests.hits == 2
    # Alone beyond delta, but as large as many controls: not rare enough.
    alone = effect_tests("a", torch.full((1, 40), 0.97).double(), groups, controls * 3, delta=0.5,
                  removes=True)  # fmt: skip
    assert alone.verdicts == ("-",)
    added = effect_tests("abcd", total, groups, controls, delta=delta, removes=False)
    assert added.verdicts == ("opposes", "supports", "-", "-")


def test_random_neurons_are_rarely_hits() -> None:
    """Effects of tried neurons and controls from one heavy-tailed law: at most 5 % are hits."""
    random = np.random.default_rng(0)
    groups = [str(i) for i in range(40)]
    hits = n = 0
    for draw in range(200):
        size = random.standard_t(3, size=220)
        noise = random.normal(size=(20, 40)) * 0.3
        total = torch.from_numpy(size[:20, None] + noise)
        controls = torch.from_numpy(np.abs(size[20:] + random.normal(size=200) * 0.05))
        delta = delta_from_controls(controls)
        tests = effect_tests([""] * 20, total, groups, controls, delta=delta, removes=True,
                      n_draws=200, seed=draw)  # fmt: skip
        hits, n = hits + tests.hits, n + 20
    assert hits / n <= 0.05
