"""Faithfulness, completeness, minimality and equivalence, on a circuit that is known."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_skills.circuits import Circuit, Edge, Node, Totals
from lens_skills.circuits.faithfulness import (
    Faithfulness,
    distinct,
    explored,
    faithfulness,
    sizes_of,
)
from lens_skills.circuits.run_circuit import RandomCircuits
from lens_skills.circuits.whole_graph import area
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.circuits.test_run_circuit import all_edges, plain
from tests.planted_circuit import IDLE, MUTE, UNREAD, N, U, planted_circuit, twins

LOW, HIGH, TOP = 1, 2, 4
ANSWER = Node(TOP, "answer", None, "-1")


def neuron(layer: int, index: int) -> Node:
    return Node(layer, "neuron", index, "-1")


def edge(sender: Node, receiver: Node, channel: str, target: str) -> Edge:
    return Edge(
        sender, receiver, channel, target, 1.0,  # type: ignore[arg-type]
        effect=-1.0, share=1.0, low=-1.0, high=-1.0, p=0.0, q=0.0, verdict="confirmed",
    )  # fmt: skip


def hand_made(start: Node, edges: Sequence[Edge], parts: dict[str, str]) -> Circuit:
    """A circuit of edges that nobody tested."""
    totals = tuple(
        Totals(target, part, "nats", 1.0, -1.0, -1.1, -0.9, -1.0, -1.0)
        for part, target in parts.items()
    )
    name = "logit_diff" if start.kind == "answer" else start.name
    rule = {"weights": [[1.0]], "column": "", "signs": {}, "name": name}
    return Circuit(
        start=(start,), target=name, metric="logit_diff", unit="nats", edges=tuple(edges),
        totals=totals, upstream=pd.DataFrame(), downstream=pd.DataFrame(), n_examples=1,
        n_groups=1, proposals="hand", provenance={"target": rule},
    )  # fmt: skip


def of_neuron(senders: Sequence[int] = (U,)) -> Circuit:
    n = neuron(HIGH, N)
    edges = [
        edge(neuron(LOW, index), n, channel, "L2N11")
        for index in senders
        for channel in ("gate", "up")
    ]
    edges.append(edge(n, ANSWER, "answer", "logit_diff"))
    return hand_made(n, edges, {"upstream": "L2N11", "downstream": "logit_diff"})


def of_answer(*extra: Edge) -> Circuit:
    n = neuron(HIGH, N)
    edges = [
        edge(n, ANSWER, "answer", "logit_diff"),
        *(edge(neuron(LOW, U), n, channel, "logit_diff") for channel in ("gate", "up")),
        *extra,
    ]
    return hand_made(ANSWER, edges, {"upstream": "logit_diff"})


@pytest.fixture
def planted_model(tiny: Any) -> Iterator[Any]:
    with planted_circuit(tiny, twins(), layers=(LOW, HIGH)):
        yield tiny


def run(model: Any, circuit: Circuit, n: int = 40, **options: Any) -> Faithfulness:
    given: dict[str, Any] = {"n_random": 19} | options
    return faithfulness(model, twins(n, seed=7), circuit, **given)


def test_the_planted_circuit_is_faithful_complete_and_minimal(planted_model: Any) -> None:
    found = run(planted_model, of_neuron())
    up, down = found["upstream"], found["downstream"]
    # N reads U's direction; the norm's scale, which all of the model sets, does the rest.
    assert 0.8 < up.last.value < 2.0
    assert up.shares[0].value < 0.1  # an open gate alone lets nothing through
    assert abs(up.rest.value) < 0.02  # without U → N nothing is left
    assert up.p == pytest.approx(1 / 20)
    assert max(row[-1] for row in up.random) < 0.05
    assert up.matter == 1.0
    assert 0.8 < down.last.value < 1.1
    assert down.sizes == (1,)
    assert down.p == pytest.approx(1 / 20)
    adapter = as_adapter(planted_model)
    examples = twins(40, seed=7)
    clean = plain(planted_model, adapter, [e.prompt for e in examples], (" girl", " table"))
    assert down.empty == pytest.approx(float(clean.mean()), abs=1e-4)


def test_decoys_add_nothing(planted_model: Any) -> None:
    found = run(planted_model, of_neuron([MUTE]))["upstream"]
    assert found.last.value == pytest.approx(0, abs=1e-6)
    assert found.matter == 0.0
    assert not found.equivalent
    assert found.rest.value == pytest.approx(1, abs=1e-5)
    assert abs(run(planted_model, of_neuron([UNREAD]))["upstream"].last.value) < 0.05
    idle = edge(neuron(HIGH, IDLE), ANSWER, "answer", "logit_diff")
    with_decoy = run(planted_model, of_answer(idle))["upstream"]
    alone = run(planted_model, of_answer())["upstream"]
    assert with_decoy.last.value == pytest.approx(alone.last.value, abs=1e-6)
    assert [one.matters for one in with_decoy.removals] == [True, True, True, False]


def test_the_behaviour_needs_every_hop(planted_model: Any) -> None:
    found = run(planted_model, of_answer())["upstream"]
    assert found.last.value > 0.5
    assert all(one.matters and one.change.value < 0 for one in found.removals)
    # N was explored, so it is not taken as it is: alone it carries nothing.
    assert found.shares[0].value == pytest.approx(0, abs=1e-6)


def test_all_edges_are_the_whole_model_and_shares_are_ratios_of_means(planted_model: Any) -> None:
    coarse = [e for e in all_edges() if "neuron" not in (e.sender.kind, e.receiver.kind)]
    here = [e for e in coarse if e.receiver.position == "-1"]
    circuit = hand_made(
        ANSWER, [edge(*e.key, "logit_diff") for e in here], {"upstream": "logit_diff"}
    )
    sizes = [1, 100, 250]
    found = run(planted_model, circuit, removals=False, n_random=0, sizes=sizes)["upstream"]
    assert found.n_edges == len(here)
    assert found.sizes == (*sizes, len(here))
    assert found.last.value == pytest.approx(1, abs=1e-5)
    assert found.rest.value == pytest.approx(0, abs=1e-5)
    assert found.equivalent
    adapter, examples = as_adapter(planted_model), twins(40, seed=7)
    words = (" girl", " table")
    clean, corrupted = (
        float(plain(planted_model, adapter, texts, words).mean())
        for texts in ([e.prompt for e in examples], [str(e.corrupted) for e in examples])
    )
    assert (found.whole, found.empty) == pytest.approx((clean, corrupted), abs=1e-4)


def test_all_out_edges_of_a_neuron_are_its_whole_effect(planted_model: Any) -> None:
    n = neuron(HIGH, N)
    adapter = as_adapter(planted_model)
    channels = RandomCircuits(ModelWeights(adapter)).channels(n)
    edges = [edge(n, node, channel, "logit_diff") for node, channel in channels]
    circuit = hand_made(n, edges, {"downstream": "logit_diff"})
    found = run(planted_model, circuit, removals=False, n_random=0)["downstream"]
    assert found.n_edges == len(edges)
    assert found.last.value == pytest.approx(1, abs=1e-5)
    assert found.rest.value == pytest.approx(0, abs=1e-5)
    # The whole: plain TransformerLens, N's activation of the twin put into the clean prompt.
    right, wrong = (adapter.encode_plain(word)[0] for word in (" girl", " table"))
    name, differences = f"blocks.{HIGH}.mlp.hook_post", []
    for example in twins(40, seed=7)[:8]:
        pair = [torch.tensor([adapter.encode(str(t))]) for t in (example.prompt, example.corrupted)]
        with torch.no_grad():
            _, cache = planted_model.run_with_cache(pair[1], names_filter=[name])
            other = next(v for k, v in cache.items() if "hook_post" in k or "out.hook_in" in k)

            def put(value: Any, hook: Any, other: Any = other) -> Any:
                value = value.clone()
                value[:, -1, N] = other[:, -1, N]
                return value

            logits = planted_model.run_with_hooks(pair[0], fwd_hooks=[(name, put)])[0, -1]
        differences.append(float(logits[right] - logits[wrong]))
    some = faithfulness(planted_model, twins(40, seed=7)[:8], circuit, removals=False, n_random=0)[
        "downstream"
    ]
    assert some.whole == pytest.approx(np.mean(differences), abs=1e-4)


def test_random_circuits_have_the_same_size_and_receivers(tiny: Any) -> None:
    graph = RandomCircuits(ModelWeights(as_adapter(tiny)))
    # In block 0 a head has the token below it and nothing else, so there is nothing to draw.
    inner = [e for e in all_edges() if e.receiver.position == "-1" and e.receiver.layer >= 2]
    circuit = inner[::19]
    random = np.random.default_rng(0)
    for upstream in (True, False):
        drawn = graph.draw(circuit, random, upstream=upstream)
        assert len(drawn) == len(circuit)
        keys = {one.key for one in drawn}
        assert len(keys) == len(circuit)
        assert not keys & {one.key for one in circuit}
        for one, other in zip(circuit, drawn, strict=True):
            if upstream:
                assert (one.receiver, one.channel) == (other.receiver, other.channel)
                assert other.sender in graph.senders(other.receiver) or (
                    other.sender.kind == "neuron" and other.sender.layer == one.sender.layer
                )
            else:
                assert one.sender == other.sender
    # Several edges into one receiver are drawn from the same few senders, and still differ.
    first = next(e for e in inner if e.sender.kind == "head" and e.receiver.kind == "mlp")
    alike = [e for e in inner if (e.receiver, e.channel) == (first.receiver, first.channel)]
    alike = [e for e in alike if e.sender.kind == "head"][:4]
    for _ in range(10):
        drawn = graph.draw(alike, random, upstream=True)
        assert len({one.key for one in drawn}) == len(alike) > 1


def test_every_edge_is_counted(tiny: Any) -> None:
    graph = RandomCircuits(ModelWeights(as_adapter(tiny)))
    coarse = [e for e in all_edges() if "neuron" not in (e.sender.kind, e.receiver.kind)]
    assert graph.count(3) == len(coarse)
    assert graph.count(3, stop=2) == sum(e.receiver.layer < 2 for e in coarse)
    for receiver in (Node(2, "mlp", None, "-2"), Node(2, "head", 1, "-2"), ANSWER):
        senders = {e.sender for e in coarse if e.receiver == receiver}
        assert set(graph.senders(receiver)) == senders
    for sender in (Node(1, "mlp", None, "-2"), Node(1, "head", 1, "-1")):
        channels = {(e.receiver, e.channel) for e in coarse if e.sender == sender}
        assert set(graph.channels(sender)) == channels


def test_a_source_is_what_nobody_looked_into() -> None:
    head = Node(3, "head", 1, "-1")
    query, keys = Node(3, "head", 1, "-1"), Node(3, "head", 0, "-4", width=2)
    assert explored(head, [(query, "Q")])
    assert not explored(head, [(Node(3, "head", 1, "-4"), "Q")])
    assert explored(head, [(keys, "K")])
    assert not explored(Node(3, "head", 2, "-1"), [(keys, "K")])
    assert not explored(Node(3, "head", 1, "-5"), [(keys, "V")])
    mlp, one = Node(3, "mlp", None, "-1"), Node(3, "neuron", 7, "-1")
    assert explored(one, [(mlp, "gate")])
    assert not explored(mlp, [(one, "gate")])
    assert not explored(one, [(Node(3, "neuron", 8, "-1"), "gate")])
    assert not explored(head, [(mlp, "gate")])
    assert not explored(mlp, [(head, "Q")])


def test_an_edge_of_a_neuron_is_held_by_that_of_its_mlp() -> None:
    mlp, one, other = Node(1, "mlp", None, "-1"), neuron(1, 7), neuron(1, 8)
    above, top = Node(2, "mlp", None, "-1"), neuron(2, 3)
    whole = edge(mlp, above, "gate", "x")
    held = [edge(one, above, "gate", "x"), edge(mlp, top, "gate", "x"), edge(one, top, "gate", "x")]
    own = [edge(one, above, "up", "x"), edge(other, ANSWER, "answer", "x")]
    assert distinct([*held, whole, *own]) == (whole, *own)
    assert distinct([held[0], *own]) == (held[0], *own)
    assert distinct([held[0], held[2]]) == (held[0],)


def test_areas_are_means_over_the_log_of_size() -> None:
    assert area(np.log([1, 10, 100]), [0.0, 0.5, 1.0]) == pytest.approx(0.5)
    assert area(np.log([7]), [0.3]) == 0.3
    assert sizes_of(1, None) == [1]
    assert sizes_of(9, [2, 5]) == [2, 5, 9]
    with pytest.raises(LensSkillsError, match="rising numbers from 1 to 9"):
        sizes_of(9, [5, 2])


def test_what_cannot_be_said_is_refused(planted_model: Any) -> None:
    norm = Node(HIGH, "norm", None, "-1")
    only_scale = hand_made(
        neuron(HIGH, N), [edge(norm, neuron(HIGH, N), "up", "L2N11")], {"upstream": "L2N11"}
    )
    with pytest.raises(LensSkillsError, match="no confirmed edge of L2N11's circuit can run"):
        run(planted_model, only_scale)
    other = of_neuron()
    other.provenance["model_fingerprint"] = "0" * 64
    with pytest.raises(LensSkillsError, match="another model or other weights"):
        run(planted_model, other)
    silent = hand_made(
        neuron(HIGH, IDLE),
        [edge(neuron(HIGH, IDLE), ANSWER, "answer", "logit_diff")],
        {"downstream": "logit_diff"},
    )
    with pytest.raises(LensSkillsError, match="which includes 0"):
        run(planted_model, silent)
    with pytest.raises(LensSkillsError, match="7 groups of pairs: shares of so few say nothing"):
        run(planted_model, of_neuron(), 7)


def test_the_card_and_tables_say_what_was_found(planted_model: Any) -> None:
    circuit = of_neuron()
    found = run(planted_model, circuit, n_random=3)
    assert "faithfulness" in repr(found)
    assert "2 edges" in repr(found)
    assert "1 edge;" in repr(found)
    frame = found.frame()
    assert frame["n_edges"].tolist() == [1, 2, 1]
    up = frame[frame["part"] == "upstream"].iloc[-1]
    assert up["random_high"] == max(row[-1] for row in found["upstream"].random)
    removals = found.removals()
    assert removals["edge"].tolist()[0] == "L1N5@-1 → L2N11@-1 gate"
    with pytest.raises(LensSkillsError, match="It has: upstream, downstream"):
        found["sideways"]
    known = replace(
        circuit, provenance={**circuit.provenance, "tested_on": {"example_ids": ["e3"]}}
    )
    assert "1 of 40 pairs had part in finding" in repr(run(planted_model, known, n_random=0))
