"""`circuit` as a user meets it: halves, statistics, totals, orientation, errors, folders."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import lens_skills as ls
from lens_skills import LensSkillsError
from lens_skills.activations import confidence, logit_diff
from lens_skills.circuits import Circuit, Node, Totals, circuit
from lens_skills.circuits.discovery import proposing_and_testing
from lens_skills.circuits.edge_tests import p_within
from lens_skills.circuits.paired_cache import paired_caches
from lens_skills.circuits.path_patching import path_effects, whole_input
from lens_skills.circuits.targets import orient, parse_start, upstream_target
from lens_skills.data import Example
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from lens_skills.stats.effect_tests import cluster_p
from lens_skills.tasks import Task
from tests.planted_circuit import planted_circuit, twins

OPTIONS = {"n_draws": 300, "n_edges": 12}


def pairs(n: int = 60) -> list[Example]:
    """A word in the middle decides; prompts of three lengths, three examples per group."""
    random = np.random.default_rng(0)
    words = (" key", " table", " author", " boy", " girl", " store", " the", " actor", " and")
    examples = []
    for place in range(n):
        before, after = (
            "".join(random.choice(words, size=size)) for size in (2 + place % 3, 1 + place % 2)
        )
        prompt, other = (f"The{before}{word}{after}" for word in (" are", " is"))
        group = str(place // 3)
        examples.append(
            Example(f"e{place}", prompt, " author", " the", corrupted=other, group=group)
        )
    return examples


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("pairs", pairs())


@pytest.fixture(scope="module")
def found(tiny: Any, task: Any) -> Circuit:
    return circuit(tiny, task, "L2N2", **OPTIONS)


def test_what_proposes_does_not_test(found: Circuit, task: Any) -> None:
    first, second = found.provenance["proposed_on"], found.provenance["tested_on"]
    assert not set(first["groups"]) & set(second["groups"])
    assert first["n"] + second["n"] == len(task)
    assert found.n_examples == second["n"]
    assert found.n_groups == len(second["groups"])


def test_every_edge_is_measured_on_the_testing_half(tiny: Any, task: Any, found: Circuit) -> None:
    """Effect, interval, share and p of an edge, computed again from its definition."""
    chosen = set(found.provenance["tested_on"]["example_ids"])
    tested = [example for example in task if example.id in chosen]
    caches = paired_caches(ModelWeights(as_adapter(tiny)), tested, logit_diff())
    target = upstream_target(found, tested)
    edges = [edge for edge in found.edges if edge.target == "L2N2"][:5]
    effects = torch.cat([path_effects(s, target, [e.key for e in edges]) for s in caches], dim=1)
    for edge, values in zip(edges, effects, strict=True):
        assert edge.effect == pytest.approx(float(values.mean()), abs=1e-6)
        assert edge.low is not None
        assert edge.high is not None
        assert edge.low <= edge.effect <= edge.high
        assert edge.share == pytest.approx(edge.effect / found.total)
        p = p_within(values[None], [e.group for e in tested], 0.01 * abs(found.total))
        assert edge.p == pytest.approx(float(p), rel=1e-3)


def test_words_follow_from_the_printed_numbers(found: Circuit) -> None:
    for stage in range(found.n_stages):
        here = [edge for edge in found.edges if edge.stage == stage]
        if here:
            q = stats.false_discovery_control([edge.p for edge in here])
            assert [edge.q for edge in here] == pytest.approx(list(q))
    for edge in found.edges:
        (totals,) = [one for one in found.totals if one.target == edge.target]
        delta = totals.smallest_effect(found.epsilon)
        beyond = edge.low > delta or edge.high < -delta
        strict = edge.q <= 0.05 / found.n_stages and edge.p_random <= 0.05
        assert edge.confirmed == (beyond and strict)
        if edge.verdict == "negligible":
            assert abs(edge.effect) < delta
    assert sum(found.counts.values()) == len(found.edges)
    assert len({(e.key, e.target) for e in found.edges}) == len(found.edges)


def test_random_edges_are_other_edges_of_the_same_receivers(found: Circuit) -> None:
    tested = {(e.key, e.target, e.stage) for e in found.edges}
    per_stage = [sum(e.stage == k for e in found.random) for k in (0, 2)]
    assert min(per_stage) >= 40
    for edge in found.random:
        assert (edge.key, edge.target, edge.stage) not in tested
        like = [
            e
            for e in found.edges
            if (e.receiver, e.channel, e.stage) == (edge.receiver, edge.channel, edge.stage)
        ]
        assert like
        if edge.sender.kind == "neuron":
            layers = {e.sender.layer for e in like if e.sender.kind == "neuron"}
            assert edge.sender.layer in layers
    rate, low, high = found.random_confirmed
    assert low <= rate <= high
    assert rate <= 0.05


def test_totals_are_the_sum_of_edges_at_the_start(found: Circuit) -> None:
    up, down = found.part("upstream"), found.part("downstream")
    node = found.start[0]
    into = [e for e in found.edges if e.receiver == node and e.sender.kind != "neuron"]
    assert up.tested == pytest.approx(sum(e.effect for e in into))
    assert up.confirmed == pytest.approx(sum(e.effect for e in into if e.confirmed))
    assert up.absolute == pytest.approx(sum(abs(e.share) for e in into))
    assert up.residual == pytest.approx(up.total - up.tested)
    out = [e for e in found.edges if e.sender == node and e.receiver.kind != "neuron"]
    assert down.tested == pytest.approx(sum(e.effect for e in out))
    assert found.unexplained == pytest.approx(up.residual / up.total)
    assert down.target == "logit_diff"


def test_the_unexplained_share_has_an_interval_over_pairs(
    tiny: Any, task: Any, found: Circuit
) -> None:
    """Bootstrap of (total - sum of edges) / total, computed again from its definition."""
    up, node = found.part("upstream"), found.start[0]
    chosen = set(found.provenance["tested_on"]["example_ids"])
    tested = [example for example in task if example.id in chosen]
    caches = paired_caches(ModelWeights(as_adapter(tiny)), tested, logit_diff())
    target = upstream_target(found, tested)
    into = [e.key for e in found.edges if e.receiver == node and e.sender.kind != "neuron"]
    whole = torch.cat([whole_input(cache, target) for cache in caches])
    left = whole - torch.cat([path_effects(c, target, into).sum(0) for c in caches])
    assert float(left.mean() / whole.mean()) == pytest.approx(up.unexplained, abs=1e-6)
    codes = np.unique([e.group for e in tested], return_inverse=True)[1]
    random, draws = np.random.default_rng(5), []
    for _ in range(2000):
        rows = np.concatenate(
            [
                np.flatnonzero(codes == g)
                for g in random.integers(codes.max() + 1, size=codes.max() + 1)
            ]
        )
        draws.append(left.numpy()[rows].sum() / whole.numpy()[rows].sum())
    low, high = np.quantile(draws, [0.025, 0.975])
    # Studentised there, percentiles here: alike in size and place, no more.
    assert up.unexplained_low < up.unexplained < up.unexplained_high
    assert 0.5 < (up.unexplained_high - up.unexplained_low) / (high - low) < 2.5


def test_a_deeper_edge_ends_where_an_edge_begins(found: Circuit) -> None:
    up = [edge for edge in found.edges if edge.target == "L2N2"]
    senders = {(e.sender.layer, e.sender.kind) for e in up if e.receiver == found.start[0]}
    for edge in up:
        if edge.receiver != found.start[0]:
            assert (edge.receiver.layer, edge.receiver.kind) in senders
        assert edge.sender.layer <= edge.receiver.layer
        assert edge.sender.position == edge.receiver.position


def test_a_seed_repeats_it_and_another_does_not(tiny: Any, task: Any, found: Circuit) -> None:
    again = circuit(tiny, task, "L2N2", **OPTIONS)
    assert again.edges == found.edges
    first, _ = proposing_and_testing(list(task), 0)
    other, _ = proposing_and_testing(list(task), 1)
    assert [e.id for e in first] != [e.id for e in other]


def test_it_comes_back_from_a_folder(found: Circuit, tmp_path: Any) -> None:
    back = Circuit.load(found.save(tmp_path / "circuit"))
    assert back.edges == found.edges
    assert back.totals == found.totals
    assert back.start == found.start
    assert repr(back) == repr(found)
    pd.testing.assert_frame_equal(back.frame(), found.frame())
    pd.testing.assert_frame_equal(back.upstream, found.upstream)
    with pytest.raises(LensSkillsError, match="no saved Circuit"):
        Circuit.load(tmp_path)


def test_the_card_says_words_first_and_fits(found: Circuit) -> None:
    lines = repr(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith(f"  {len(found.confirmed)} confirmed, ")
    text = repr(found)
    assert f"unexplained {found.unexplained:.0%} [" in text
    assert "random edges: " in text
    assert "Σ|share|" in text


def test_below_the_floor_there_are_effects_and_a_sentence_and_no_words(tiny: Any) -> None:
    few = circuit(tiny, pairs(30), "L2N2", **OPTIONS)
    assert few.n_groups == 5
    assert few.edges
    assert not few.confirmed
    assert not few.random
    assert all(e.effect is not None and e.low is None and e.verdict is None for e in few.edges)
    assert all(totals.low is None and totals.unexplained_low is None for totals in few.totals)
    text = repr(few)
    assert "5 groups test them, and fewer than 8 say nothing" in text
    assert "[" not in text.replace("\n", "").split("note:")[0]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("proposals", ["integrated", "relevance"])
def test_other_proposals_end_in_the_same_measurements(
    tiny: Any, task: Any, found: Circuit, proposals: str
) -> None:
    other = circuit(tiny, task, "L2N2", proposals=proposals, depth=1, **OPTIONS)
    mine = {(e.key, e.target): e.effect for e in found.edges}
    both = [e for e in other.edges if (e.key, e.target) in mine]
    assert both, "no edge was proposed twice"
    for edge in both:
        assert edge.effect == pytest.approx(mine[edge.key, edge.target], abs=1e-6)
    if proposals == "relevance":
        assert not [e for e in other.edges if e.channel in "QK"]


@pytest.mark.parametrize("start", ["answer", "L2H3", ["L2N2", "L2N26"]])
def test_other_starts(tiny: Any, task: Any, start: Any) -> None:
    # The random model's answer is moved little: more pairs say by how much.
    other = circuit(tiny, pairs(180) if start == "answer" else task, start, depth=1, **OPTIONS)
    assert other.edges
    parts = [totals.part for totals in other.totals]
    assert parts == (["upstream"] if start == "answer" else ["upstream", "downstream"])
    ends = {edge.receiver.layer for edge in other.edges if edge.target == other.target}
    assert ends == {4 if start == "answer" else 2}


def test_a_planted_edge_is_confirmed_and_its_decoys_are_not(tiny: Any) -> None:
    examples = twins(60)
    with planted_circuit(tiny, examples) as names:
        known = circuit(tiny, examples, names.n, depth=1, n_draws=300, n_edges=30)
    confirmed = {edge.sender.name for edge in known.confirmed if edge.target == names.n}
    assert names.u in confirmed
    assert names.mute not in confirmed


def test_classes_that_are_moved_apart_are_counted_with_their_sign(tiny: Any) -> None:
    """Half of the pairs up, half down: unsigned the mean would vanish."""
    words = twins(40)
    turned = [
        Example(f"{e.id}r", e.corrupted or "", e.foil, e.answer, corrupted=e.prompt, group=e.group)
        for e in words
    ]
    examples = [
        Example(
            e.id,
            e.prompt,
            e.answer,
            e.foil,
            corrupted=e.corrupted,
            group=e.group,
            labels={"way": w},
        )
        for w, some in enumerate((words, turned))
        for e in some
    ]
    adapter = as_adapter(tiny)
    caches = paired_caches(ModelWeights(adapter), examples, logit_diff())
    nodes = parse_start(adapter, "L2N2", "last")
    start = orient(nodes, caches, examples, logit_diff())
    assert set(start.target.signs.values()) == {1.0, -1.0}
    assert start.rule["column"] == "way"
    moved = torch.cat([cache.moved_post(2)[:, -1, 2] for cache in caches])
    signs = torch.tensor([start.target.signs[e.id] for e in examples])
    assert abs(float(moved.mean())) < 1e-5
    # Counted +, where the clean prompt has more of it.
    assert float((moved * signs).mean()) < -1e-5
    plain = orient(nodes, caches[:1], examples[:20], logit_diff())
    assert not plain.target.signs


def test_several_neurons_are_read_along_their_mean_difference(tiny: Any, task: Any) -> None:
    adapter = as_adapter(tiny)
    caches = paired_caches(ModelWeights(adapter), list(task), logit_diff())
    start = orient(parse_start(adapter, ["L2N2", "L1N3"], -1), caches, list(task), logit_diff())
    weights = torch.cat(list(start.target.weights))
    moved = torch.cat(
        [torch.stack([s.moved_post(2)[:, -1, 2], s.moved_post(1)[:, -1, 3]], 1) for s in caches]
    )
    signs = torch.tensor([start.target.signs.get(e.id, 1.0) for e in task])
    away = -(moved * signs[:, None]).double().mean(0)
    assert torch.allclose(weights, away / away.norm(), atol=1e-6)


def test_a_cluster_p_is_students_where_every_example_is_a_group() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(0.3, 1, size=(4, 25)))
    expected = stats.ttest_1samp(values.numpy(), 0, axis=1).pvalue
    found = cluster_p(values, [str(k) for k in range(25)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_a_cluster_p_counts_groups_not_copies() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(0.3, 1, size=(1, 12)))
    once = cluster_p(values, [str(k) for k in range(12)])
    thrice = cluster_p(values.repeat(1, 3), [str(k) for k in range(12)] * 3)
    assert float(once) == pytest.approx(float(thrice))
    assert cluster_p(torch.zeros(1, 4), list("abcd")).item() == 1
    assert cluster_p(torch.ones(1, 4), list("aaaa")).item() == 1


def test_totals_of_nothing_says_so() -> None:
    totals = Totals("x", "upstream", "nats", 1.0, 0.0, 0.0, 0.0)
    assert np.isnan(totals.unexplained)
    assert not totals.clear
    assert Totals("x", "upstream", "nats", 1.0, -2.0, -3, -1, -1.5).unexplained == 0.25
    # Not told from 0: held against the farther end, so that nothing tiny is beyond.
    assert Totals("x", "downstream", "nats", 1.0, 0.1, -3, 1).smallest_effect(0.01) == 0.03


def test_a_name_says_where(found: Circuit) -> None:
    names = {
        Node(9, "head", 3, "-1"): "L9H3@-1",
        Node(5, "head", 3, "-2", 3): "L5H3-5@-2",
        Node(-1, "token", None, "-4"): "token@-4",
        Node(30, "answer", None, "-1"): "answer@-1",
        Node(5, "mlp", None, "-1"): "L5MLP@-1",
        Node(5, "norm", None, "-1"): "L5norm@-1",
    }
    assert [str(node) for node in names] == list(names.values())
    assert found.start[0] in found.nodes()
    assert found.top(2) == found.confirmed[:2]


class TestRefusals:
    def refused(self, match: str, model: Any, examples: Any, *args: Any, **options: Any) -> None:
        with pytest.raises(LensSkillsError, match=match):
            circuit(model, examples, *args, **options)

    def test_names(self, tiny: Any, task: Any) -> None:
        self.refused("no unit 'L99N1'", tiny, task, "L99N1")
        self.refused("starts at neurons", tiny, task, "L1MLP")
        self.refused("from the end", tiny, task, "L1N1", position=3)
        self.refused("Did you mean 'attribution'", tiny, task, "L1N1", proposals="atribution")
        self.refused("must be at least 1", tiny, task, "L1N1", n_edges=0)
        self.refused("share of the whole effect", tiny, task, "L1N1", epsilon=0)
        self.refused("at least 40 random edges", tiny, task, "L1N1", n_random=20)

    def test_examples(self, tiny: Any, task: Any) -> None:
        self.refused("no examples", tiny, [], "L1N1")
        self.refused("no corrupted twin", tiny, ls.tasks.arithmetic(n=20), "L1N1")
        self.refused("2 groups", tiny, list(task)[:6], "L1N1")
        self.refused("token by token", tiny, ls.tasks.agreement(60), "L1N1")

    def test_metrics(self, tiny: Any, task: Any) -> None:
        self.refused("no gradient", tiny, task, "answer", metric="first_token_correct")
        self.refused("no gradient", tiny, task, "answer", metric="correct")
        sure = circuit(tiny, task, "L2N2", metric=confidence(), depth=1, **OPTIONS)
        assert sure.part("downstream").target == sure.metric == "confidence"

    def test_a_start_that_is_not_moved(self, tiny: Any, task: Any) -> None:
        """Each pair in both directions without a label to tell them: the mean is 0."""
        both = [
            Example(f"{e.id}{k}", one, " is", " are", corrupted=other, group=e.group)
            for e in list(task)
            for k, (one, other) in enumerate(((e.prompt, e.corrupted), (e.corrupted, e.prompt)))
        ]
        self.refused("does not move L2N2", tiny, both, "L2N2")
