"""The comparison finds planted neurons, tells decoys from them, and counts by a simple rule."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.ranking import MethodComparison, Ranking, compare_methods, rank
from lens_skills.ranking.causal_hits import LayerControls, draw_of_layer
from lens_skills.ranking.compare_methods import alike
from lens_skills.stats.correlation import spearman
from lens_skills.stats.effect_tests import cluster_interval, smallest_effect
from tests.planted import plant
from tests.ranking.conftest import WIDTH
from tests.ranking.simulated_effects import made_up

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
        n_random=3,
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
    neurons = found.neurons().set_index("name")
    for method in ("pearson", "smd", "f", "auroc"):
        named = set(found[method].tests.names)
        assert named == {*TRUTH["skill"], *TRUTH["decoy"]}, method
        words = neurons[neurons["method"] == found[method].method]["verdict"]
        assert [words[name] for name in TRUTH["skill"]] == ["supports"] * 2
        assert [words[name] for name in TRUTH["decoy"]] == ["-"] * 2
        assert (found[method].hits, found[method].n) == (2, 4)
        row = found.frame().set_index("method").loc[found[method].method]
        assert (row.recall, row.precision, row.decoy, row.writer) == (1.0, 0.5, 2.0, 0.0)
    taylor = set(found["taylor"].tests.names)
    assert taylor >= set(TRUTH["skill"])
    assert not taylor & set(TRUTH["decoy"])


def test_the_rows_to_beat_are_there(found: MethodComparison) -> None:
    assert [row.method for row in found.rows][-2:] == ["rotated basis", "random"]
    random = found["random"]
    assert random.n == 12
    assert random.share <= 0.25
    assert all("Q" in name for name in found["rotated basis"].tests.names)
    assert found["rotated basis"].n == 4
    assert found["smd"] is found["pearson"] is found["f"]
    assert found["f"].methods == ("pearson", "smd", "f")
    assert len(found.methods) == 14
    shares = [row.share for row in found.rows[:-2]]
    assert shares == sorted(shares, reverse=True)


def test_the_table_reads_as_it_should(found: MethodComparison) -> None:
    said = repr(found)
    one_line = " ".join(said.split())
    assert "the 4 strongest neurons of each method" in one_line
    assert "ranked on 80 examples, tried on 40 in 40 groups" in one_line
    assert "1 % of the clean mean" in one_line
    assert "p <= 0.05 among 144 random neurons of its layer" in one_line
    assert "pearson = smd = f" in one_line
    assert "all 144 neurons were tried" in one_line
    assert "recall" in said
    assert max(map(len, said.split("\n"))) <= 80
    frame = found.frame()
    assert frame["method"].tolist() == [row.method for row in found.rows]
    for row in frame.itertuples():
        ends = stats.binomtest(row.hits, row.n).proportion_ci(method="wilson")
        assert row.low <= ends.low + 1e-9
        assert row.high >= ends.high - 1e-9
    assert len(found.neurons()) == frame["n"].sum()
    pairs = found.differences()
    assert len(pairs) == len(frame) * (len(frame) - 1) // 2
    assert (pairs["low"] <= pairs["difference"]).all()
    assert (pairs["difference"] <= pairs["high"]).all()


def test_recall_at_k_is_against_every_neuron(
    found: MethodComparison, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{found.provenance['implementation']}")
    everyone = torch.tensor([[layer, unit] for layer in LAYERS for unit in range(WIDTH)])
    do = ls.ablate("mean", over=part(0, 80))
    whole = ls.sweep(model, part(2, 40), everyone, do=do, metric="logit_diff")
    size = whole.total.mean(1).abs()
    strongest = {whole.names[place] for place in size.topk(4).indices.tolist()}
    frame = found.frame().set_index("method")
    for row in found.rows:
        if row.method == "rotated basis":
            assert row.found is None
            continue
        n = len(row.tests.names)
        assert row.found == len(strongest & set(row.tests.names))
        assert frame.loc[row.method, "recall_at_k"] == pytest.approx(row.found / max(n, 4))
        assert frame.loc[row.method, "recall_low"] <= row.found / max(n, 4) + 1e-9
        assert frame.loc[row.method, "recall_high"] >= row.found / max(n, 4) - 1e-9
    assert found.n_swept == 144
    assert found.n_hits is not None
    assert found.n_hits >= len(TRUTH["skill"])


def test_hits_follow_the_rule(found: MethodComparison, request: pytest.FixtureRequest) -> None:
    """Recomputed from a sweep of all neurons, with counting for p."""
    model = request.getfixturevalue(f"tiny_{found.provenance['implementation']}")
    frame = found.neurons()
    intervene = part(2, 40)
    own = frame[frame["method"] != "rotated basis"]
    # A layer of 48 has too few others: all three layers are the draw.
    everyone = torch.tensor([[layer, unit] for layer in LAYERS for unit in range(WIDTH)])
    do = ls.ablate("mean", over=part(0, 80))
    whole = ls.sweep(model, intervene, everyone, do=do, metric="logit_diff")
    mean = whole.total.double().mean(1)
    error = whole.total.double().std(1) / np.sqrt(40)  # every example is its own group
    floor = 0.01 * abs(float(whole.clean.double().mean()))
    assert found.floor == pytest.approx(floor, rel=1e-5)
    percentile = np.quantile(mean.abs().numpy(), 0.95)
    square = percentile**2 - float(stats.norm.ppf(0.975) ** 2 * (error**2).median())
    delta = max(np.sqrt(max(square, 0)), floor)
    assert list(found.deltas.values()) == pytest.approx([delta] * len(found.deltas), rel=1e-3)
    place = {name: i for i, name in enumerate(whole.names)}
    groups = [example.group for example in intervene]
    rows = [place[name] for name in own["name"]]
    np.testing.assert_allclose(own["effect"], mean[rows], atol=1e-6)
    low, high = cluster_interval(whole.total[rows].double(), groups, seed=0)
    for at, entry in enumerate(own.itertuples()):
        others = mean.abs()[torch.arange(len(mean)) != rows[at]]
        p = (1 + int((others >= abs(entry.effect) * (1 - 1e-6)).sum())) / (1 + len(others))
        if abs(entry.effect) > floor:
            assert entry.p == pytest.approx(p)
        else:
            assert np.isnan(entry.p)
        sure = p <= 0.05
        below, above = float(high[at]) < -delta, float(low[at]) > delta
        wanted = "supports" if below and sure else "opposes" if above and sure else "-"
        assert entry.verdict == wanted


def test_agreement_is_spearman_s_and_overlap_jaccard_s(
    found: MethodComparison, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{found.provenance['implementation']}")
    explore = part(0, 80)
    methods = ["pearson", "auroc", "probeless", "smd"]
    rankings = [
        rank(model, explore, "label:plural", method=name, layers=LAYERS) for name in methods
    ]
    places = [found.methods.index(found[name].method) for name in methods]
    for a, one in zip(places, rankings, strict=True):
        for b, other in zip(places, rankings, strict=True):
            wanted = stats.spearmanr(one.strength.numpy(), other.strength.numpy()).statistic
            assert float(found.spearman[a, b]) == pytest.approx(wanted, abs=1e-9)
            x, y = set(one.names(4)), set(other.names(4))
            assert float(found.jaccard[a, b]) == pytest.approx(len(x & y) / len(x | y))
    row = found["pearson"]
    at = found.methods.index(row.method)
    others = [float(found.spearman[at, b]) for b in range(len(found.methods)) if b != at]
    assert row.agreement == pytest.approx(np.mean(others))


def test_a_neuron_s_word_is_the_same_whatever_list_names_it(
    found: MethodComparison, request: pytest.FixtureRequest
) -> None:
    """Other methods, another k, other random neurons, all tried or some: the same words."""
    model = request.getfixturevalue(f"tiny_{found.provenance['implementation']}")
    asked: list[dict[str, Any]] = [
        {"k": 4, "methods": ["auroc"], "exhaustive": False},
        {"k": 4, "methods": ["taylor", "gradient", "probeless"], "exhaustive": False},
        {"k": 12, "methods": ["gradient", "l1", "auroc"], "n_random": 1},
    ]
    words = found.neurons().drop_duplicates("name").set_index("name")
    n_same = 0
    for options in asked:
        other = compare_methods(
            model, part(0, 80), "label:plural", intervene=part(2, 40), layers=LAYERS, **options
        )
        assert (other.n_swept is None) == ("exhaustive" in options)
        each = other.neurons()
        assert each.groupby("name")["verdict"].nunique().max() == 1
        each = each.drop_duplicates("name").set_index("name")
        both = [name for name in each.index if name in words.index]
        n_same += len(both)
        assert each.loc[both, "verdict"].tolist() == words.loc[both, "verdict"].tolist()
        for column in ("effect", "low", "high", "delta", "p", "kept"):
            np.testing.assert_allclose(
                each.loc[both, column], words.loc[both, column], rtol=1e-3, atol=2e-3
            )
    assert n_same >= 12
    assert {"supports", "-"} <= set(words["verdict"])


def test_a_declared_delta_is_used_as_it_is(tiny: Any) -> None:
    found = compare_methods(
        tiny, part(0, 80), "label:plural", intervene=part(2, 40), k=3, methods=["auroc"],
        n_random=1, delta=0.125, exhaustive=False,
    )  # fmt: skip
    assert found.floor_from == "declared"
    assert found.floor == 0.125
    assert set(found.deltas.values()) <= {0.125}
    assert "beyond δ = 0.125 nats (declared)" in " ".join(repr(found).split())


def test_a_layer_is_drawn_from_alike_by_whoever_asks() -> None:
    everyone = torch.tensor([[layer, unit] for layer in range(3) for unit in range(300)])
    first = draw_of_layer(everyone, 1, 120, seed=0)
    assert len({tuple(row) for row in first.tolist()}) == 120
    assert set(first[:, 0].tolist()) == {1}
    assert torch.equal(first, draw_of_layer(everyone, 1, 120, seed=0))
    assert not torch.equal(first, draw_of_layer(everyone, 1, 120, seed=1))
    assert len(draw_of_layer(everyone, 1, None, seed=0)) == 300
    small = torch.tensor([[layer, unit] for layer in range(4) for unit in range(50)])
    pooled = draw_of_layer(small, 1, 150, seed=0)
    assert set(pooled[:, 0].tolist()) == {0, 1, 2, 3}
    assert torch.equal(pooled, draw_of_layer(small, 2, 150, seed=0))
    for units, n in ((everyone, 20), (small[:20], 200)):
        with pytest.raises(LensSkillsError, match="20 at least are needed"):
            draw_of_layer(units, 0, n, seed=0)


def test_a_hit_needs_size_and_rarity() -> None:
    controls = torch.linspace(0, 1, 400, dtype=torch.float64)
    noise = torch.linspace(-0.1, 0.1, 40, dtype=torch.float64).numpy()
    groups = [str(i) for i in range(40)]
    others = controls.numpy()[:, None] + 0 * noise
    assert smallest_effect(torch.from_numpy(others), groups, 0.0) == pytest.approx(0.95)
    declared = LayerControls(tuple(f"L0N{9000 + i}" for i in range(400)),
                             torch.from_numpy(others), 0.5)  # fmt: skip
    levels = np.array([-2.0, 2.0, 0.93, -0.5])
    total = levels[:, None] + noise
    four = torch.tensor([[0, place] for place in range(4)])
    ablations = replace(made_up(total, others, groups), controls={0: declared})
    tests = ablations.of(four)
    # The third lies beyond a declared δ, but is larger than 93 % of the others only.
    assert tests.verdicts == ("supports", "opposes", "-", "-")
    assert tests.hits == 2
    assert float(tests.low[2]) > 0.9
    assert float(tests.p[2]) == pytest.approx(0.07, abs=0.005)
    added = replace(ablations, removes=False).of(four)
    assert added.verdicts == ("opposes", "supports", "-", "-")
    # One per cent of a large clean mean is more than any of them does.
    assert made_up(total, others, groups, clean=500.0).of(four).hits == 0


def test_the_smallest_effect_is_without_the_noise_of_the_controls() -> None:
    """Controls that do nothing: their 95th percentile is sampling noise, and δ the floor."""
    random = np.random.default_rng(0)
    noise = torch.from_numpy(random.normal(size=(400, 20)))
    groups = [str(i) for i in range(20)]
    percentile = float(noise.mean(1).abs().quantile(0.95))
    found = smallest_effect(noise, groups, 1.0)
    assert found < percentile / 2
    assert smallest_effect(noise * 0.001, groups, 1.0) == pytest.approx(0.01)
    with pytest.raises(LensSkillsError, match="δ would be 0"):
        smallest_effect(noise * 0, groups, 0.0)


def test_rankings_that_differ_by_rounding_are_one() -> None:
    random = np.random.default_rng(0)
    strength = torch.from_numpy(random.normal(size=500))
    rankings = [ranking(each) for each in (strength, strength.exp() * (1 + 1e-13), -strength)]
    agree = spearman(torch.stack([each.strength for each in rankings]))
    assert alike(rankings, agree, 10) == [[0, 1], [2]]


def ranking(strength: torch.Tensor) -> Ranking:
    n = len(strength)
    return Ranking(
        method="m", metric="label:x", layer=torch.zeros(n, dtype=torch.long),
        neuron=torch.arange(n), score=strength, strength=strength, unit="", about="", source="",
        site="mlp.hook_post", position="last", n_examples=10, seconds=0.0,
    )  # fmt: skip
