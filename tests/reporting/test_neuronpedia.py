"""Circuits and neurons as Neuronpedia's files: valid, aligned, with our signs and intervals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
import torch

import lens_skills as ls
from lens_skills.circuits import Circuit, Node
from lens_skills.circuits.example_pair import example_pair
from lens_skills.circuits.graph import Edge
from lens_skills.circuits.paired_cache import paired_caches
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import ActivatingExamples
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from lens_skills.reporting.neuronpedia import graph, number
from tests.planted_circuit import PlantedCircuit, planted_circuit, twins

SCHEMAS = Path(__file__).parent / "neuronpedia"
HOSTILE = '<img src=x onerror="alert(1)">\u202e \N{SLIGHTLY SMILING FACE}'


def check(made: Any, schema: str) -> None:
    """Against the published schema, through the text of a file."""
    text = json.dumps(made, allow_nan=False)
    jsonschema.validate(json.loads(text), json.loads((SCHEMAS / schema).read_text()))


@pytest.fixture(scope="module")
def traced(tiny_bridge: Any) -> tuple[Circuit, PlantedCircuit]:
    # Prompts of two lengths: positions are counted from the end.
    pairs = [*twins(40, length=4), *twins(40, length=6, seed=1)]
    pairs = [replace(pair, id=f"e{place}", group=f"g{place}") for place, pair in enumerate(pairs)]
    with planted_circuit(tiny_bridge, pairs) as names:
        options = {"n_draws": 200, "n_edges": 20, "seed": 0}
        return ls.circuit(tiny_bridge, pairs, names.n, **options), names


@pytest.fixture(scope="module")
def made(traced: tuple[Circuit, PlantedCircuit]) -> dict[str, Any]:
    return graph(traced[0])


def test_a_graph_is_valid_and_whole(made: dict[str, Any], traced: Any) -> None:
    check(made, "graph-schema.json")
    circuit = traced[0]
    ids = [node["node_id"] for node in made["nodes"]]
    hovers = [(node["layer"], node["feature"], node["ctx_idx"]) for node in made["nodes"]]
    # Told apart by each of the three names that pages go by.
    for names in (ids, hovers, [node["jsNodeId"] for node in made["nodes"]]):
        assert len(set(names)) == len(names)
    assert len(ids) == len(circuit.nodes())
    assert set(made["qParams"]["pinnedIds"]) == set(ids)
    assert made["qParams"]["clickedId"] in ids
    pairs = [(link["source"], link["target"]) for link in made["links"]]
    assert len(set(pairs)) == len(pairs)  # pages keep one link of two nodes
    assert {end for pair in pairs for end in pair} <= set(ids)
    # No random names, no time of day: the same circuit is the same file.
    assert made == graph(traced[0])


def test_a_positive_link_raises_its_target(made: dict[str, Any], traced: Any) -> None:
    """U makes N fire: corrupting that edge lowers N, and the link is positive."""
    circuit, names = traced
    nodes = {node["node_id"]: node for node in made["nodes"]}
    (link,) = [
        link
        for link in made["links"]
        if nodes[link["source"]]["clerp"].startswith(f"{names.u}@")
        and nodes[link["target"]]["clerp"].startswith(f"{names.n}@")
    ]
    edges = [
        edge
        for edge in circuit.confirmed
        if (edge.sender.name, edge.receiver.name) == (names.u, names.n)
    ]
    assert {edge.channel for edge in edges} == {"gate", "up"}
    assert link["weight"] > 0
    assert link["weight"] == pytest.approx(-sum(edge.effect for edge in edges))
    by_channel = {part["channel"]: part for part in link["channels"]}
    for edge in edges:
        part = by_channel[edge.channel]
        assert (part["weight"], part["low"], part["high"]) == (-edge.effect, -edge.high, -edge.low)
        assert part["low"] < part["weight"] < part["high"]
        assert (part["q"], part["verdict"]) == (edge.q, "confirmed")
    label = nodes[link["source"]]["clerp"]
    assert "confirmed" in label
    assert f"q {edges[0].q:.2g}" in label or "×10" in label
    assert f"{-edges[0].effect:+.3g} [{-edges[0].high:+.3g}, {-edges[0].low:+.3g}]" in label
    assert "clean - corrupted" in made["metadata"]["info"]["description"]
    assert "clean - corrupted" in made["metadata"]["generation_settings"]["weight"]


def test_places_are_those_of_a_real_pair(
    made: dict[str, Any], traced: Any, tiny_bridge: Any
) -> None:
    circuit = traced[0]
    about, adapter = made["metadata"], as_adapter(tiny_bridge)
    example = circuit.provenance["example"]
    tokens = adapter.encode(example["prompt"])
    assert example["token_ids"] == tokens
    assert about["prompt_tokens"] == [adapter.decode(token) for token in tokens]
    assert example["id"] in circuit.provenance["tested_on"]["example_ids"]
    assert len(tokens) == 9  # of the longer prompts: <bos> The, six words, the one that decides
    assert example["corrupted_tokens"][:-1] == about["prompt_tokens"][:-1]
    for node in made["nodes"]:
        assert 0 <= node["ctx_idx"] < len(tokens)
        if node["feature_type"] == "embedding":
            assert node["node_id"] == f"E_{tokens[node['ctx_idx']]}_{node['ctx_idx']}"
        elif node["feature_type"] != "logit":
            name, _, position = node["clerp"].partition(";")[0].partition("@")
            assert node["ctx_idx"] == len(tokens) + int(position)
            assert name.startswith(f"L{node['layer']}")


def test_the_answer_has_its_probability(made: dict[str, Any]) -> None:
    (answer,) = [node for node in made["nodes"] if node["feature_type"] == "logit"]
    assert answer["clerp"].startswith(f'Output " girl" (p={answer["token_prob"]:.3f})')
    assert answer["layer"] == "5"  # four blocks; one above them, as circuit-tracer has it


def test_the_example_is_the_longest_pair(tiny_bridge: Any) -> None:
    pairs = [*twins(6, length=3), *twins(6, length=5, seed=1), *twins(6, length=4, seed=2)]
    pairs = [replace(pair, id=f"e{place}") for place, pair in enumerate(pairs)]
    with ls.config(batch_size=4):
        caches = paired_caches(ModelWeights(as_adapter(tiny_bridge)), pairs, ls.logit_diff())
    example = example_pair(caches)
    assert example["id"] == "e6"
    with torch.no_grad():
        logits = tiny_bridge(torch.tensor([example["token_ids"]]))[0, -1].double()
    expected = float(logits.softmax(-1)[example["answer_id"]])
    assert example["probability"] == pytest.approx(expected, rel=1e-4)


def test_a_neuron_s_number_is_its_file(made: dict[str, Any], traced: Any) -> None:
    neurons = [node for node in made["nodes"] if node["feature_type"] == "mlp neuron"]
    assert neurons
    for node in neurons:
        layer, index, _ = map(int, node["node_id"].split("_"))
        assert node["feature"] == number(layer, index)
    # As circuit-tracer's own formula, and back as Neuronpedia's pages do it.
    for layer, index in ((0, 0), (3, 42), (29, 1535)):
        paired = number(layer, index)
        w = int(((8 * paired + 1) ** 0.5 - 1) // 2)
        assert paired - (w * w + w) // 2 == index
        assert w - index == layer
    others = [
        n for n in made["nodes"] if n["feature_type"] in ("attention head", "mlp", "norm scale")
    ]
    assert all(node["feature"] < 0 for node in others)


def by_hand(traced: Any, **changes: Any) -> Circuit:
    """Every kind of node, heads that share a key beside one of them, and words of the user's."""
    head, keys = Node(1, "head", 0, "-2"), Node(1, "head", 0, "-2", width=2)
    ends = [
        (Node(-1, "token", None, "-2"), keys, "K"), (Node(-1, "token", None, "-2"), head, "Q"),
        (Node(0, "mlp", None, "-2"), keys, "V"), (Node(1, "norm", None, "-2"), head, "Q"),
        (Node(0, "neuron", 0, "-2"), Node(2, "mlp", None, "-2"), "gate"),
        (Node(2, "mlp", None, "-1"), Node(4, "answer", None, "-1"), "answer"),
    ]  # fmt: skip
    target = traced[0].totals[0].target
    edges = tuple(
        Edge(one, other, channel, target, 0.1, effect=-0.25) for one, other, channel in ends
    )
    return replace(traced[0], edges=edges, **changes)


def test_every_kind_of_node_and_few_groups(traced: Any) -> None:
    few = graph(by_hand(traced))
    check(few, "graph-schema.json")
    assert {node["feature_type"] for node in few["nodes"]} == {
        "embedding", "attention head", "mlp", "norm scale", "mlp neuron", "logit",
    }  # fmt: skip
    assert len({(n["layer"], n["feature"], n["ctx_idx"]) for n in few["nodes"]}) == len(
        few["nodes"]
    )
    assert any("; to L1H0-1@-2 K +0.25 " in node["clerp"] for node in few["nodes"])
    assert "too few groups" in few["metadata"]["info"]["description"]
    (part,) = few["links"][0]["channels"]
    assert (part["weight"], part["low"], part["verdict"]) == (0.25, None, None)


def test_no_label_is_markup(traced: Any) -> None:
    circuit = traced[0]
    example = circuit.provenance["example"] | {"answer": HOSTILE, "corrupted": HOSTILE}
    provenance = circuit.provenance | {"example": example, "task": HOSTILE}
    hostile = graph(by_hand(traced, metric=HOSTILE, provenance=provenance))
    check(hostile, "graph-schema.json")
    texts = [node["clerp"] for node in hostile["nodes"]]
    for text in [*texts, hostile["metadata"]["info"]["description"]]:
        assert "<" not in text
        assert ">" not in text
    assert any("onerror" in text for text in texts)


def test_what_cannot_be_exported_is_said(traced: Any, tmp_path: Path) -> None:
    circuit = traced[0]
    older = replace(circuit, provenance={"versions": {}})
    for act, words in (
        (lambda: older.to_neuronpedia(tmp_path / "a.json"), "an earlier version saved it"),
        (lambda: circuit.to_neuronpedia(tmp_path / "a"), r"End it in \.json"),
        (lambda: graph(circuit, features_url="nowhere"), "is no address"),
        (lambda: graph(far(circuit)), "stands before the first of the example"),
    ):
        with pytest.raises(LensSkillsError, match=words):
            act()
    assert not list(tmp_path.iterdir())


def far(circuit: Circuit) -> Circuit:
    return replace(circuit, start=(Node(1, "neuron", 0, "-50"),))


def test_a_file_is_named_and_linked_to_its_features(traced: Any, tmp_path: Path) -> None:
    path = traced[0].to_neuronpedia(
        tmp_path / "new" / "my graph.json", scan="tiny-1", features_url="https://example.org/f/"
    )
    about = json.loads(path.read_text())["metadata"]
    assert (about["slug"], about["scan"]) == ("my_graph", "tiny-1")
    assert about["feature_details"] == {"feature_json_base_url": "https://example.org/f"}
    assert about["info"]["generator"]["name"] == "lens_skills"


@pytest.fixture(scope="module")
def examples() -> ActivatingExamples:
    model = ls.load_model("arithmetic-small")
    return ls.activating_examples(
        model, ls.tasks.arithmetic(digits=(1,))[:30], ["L1N5", "L2N9"], per_quantile=2
    )


def test_features_are_valid_and_say_what_is_known(
    examples: ActivatingExamples, tmp_path: Path
) -> None:
    evidence = pd.DataFrame(
        {
            "name": ["L1N5"], "grade": ["A"], "r_confirm": [0.5], "low": [0.4], "high": [0.6],
            "q_confirm": [2e-5], "effect": [-0.25], "effect_low": [-0.3], "effect_high": [-0.2],
            "effect_q": [0.01], "verdict": ["supports"],
        }
    )  # fmt: skip
    folder = examples.to_neuronpedia(tmp_path / "features", evidence=evidence)
    names = json.loads((folder / "neurons.json").read_text())
    assert list(names) == ["L1N5", "L2N9"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names.values(), "neurons.json"]
    )
    for name, file in names.items():
        feature = json.loads((folder / file).read_text())
        check(feature, "feature-details-schema.json")
        assert feature["index"] == int(file.removesuffix(".json"))
        own = examples[name]
        assert feature["top_logits"] == [text for text, _ in own.writes[0].promoted]
        for part, made in zip(own.quantiles, feature["examples_quantiles"], strict=True):
            assert made["quantile_name"].startswith(f"{part.name}: activation ")
            assert f"{part.n_examples} examples" in made["quantile_name"]
            for one, shown in zip(part.excerpts, made["examples"], strict=True):
                assert shown["tokens"] == list(one.tokens)
                assert shown["tokens_acts_list"] == list(one.values)
                assert shown["train_token_ind"] == one.read
    known = json.loads((folder / names["L1N5"]).read_text())["description"]
    assert "+0.5 [+0.4, +0.6] (95 %), q 2×10⁻⁵" in known
    assert "−0.25 [−0.3, −0.2] (edited - clean, 95 %), q 0.01: supports" in known
    assert "Grade A" in known
    other = json.loads((folder / names["L2N9"]).read_text())["description"]
    assert "Grade" not in other


def test_only_neurons_have_a_number(examples: ActivatingExamples, tmp_path: Path) -> None:
    head = replace(examples, neurons=(replace(examples.neurons[0], name="L1H2.3"),))
    with pytest.raises(LensSkillsError, match="no neuron of an MLP"):
        head.to_neuronpedia(tmp_path / "features")
