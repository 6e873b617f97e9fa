"""A circuit that runs alone does what its definition says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.circuits import Edge, Node
from lens_skills.circuits.paired_cache import PairedCache, paired_caches
from lens_skills.circuits.path_patching import path_effects
from lens_skills.circuits.run_circuit import CircuitRun, EdgeScheme
from lens_skills.circuits.targets import ActivationTarget, AnswerTarget
from lens_skills.data import Example
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.circuits.literal import Literal

COLUMNS = 3  # in which the twins differ, or may differ
ANSWER = AnswerTarget(ls.logit_diff())


def examples() -> list[Example]:
    """Twins that differ three tokens before the end; of two lengths, so that one is padded."""
    heads = ("The author", "When Mary and the author")
    words = ((" key", " table"), (" boy", " girl"), (" store", " drink"))
    return [
        Example(
            f"e{i}{j}",
            f"{head}{a} near the",
            answer=" yes",
            foil=" no",
            corrupted=f"{head}{b} near the",
        )
        for i, head in enumerate(heads)
        for j, (a, b) in enumerate(words)
    ]


def paired_cache(model: Any) -> PairedCache:
    (cache,) = paired_caches(ModelWeights(as_adapter(model)), examples(), ls.logit_diff())
    assert cache.n_columns == COLUMNS
    return cache


def all_edges(n_layers: int = 4, n_heads: int = 4, group: int = 2) -> list[Edge]:
    """Every edge between tokens, heads, MLPs, the answer, and some neurons."""
    found = []
    for position in ("-3", "-2", "-1"):

        def senders(layer: int, middle: bool, position: str = position) -> list[Node]:
            nodes = [Node(-1, "token", None, position)]
            for lower in range(layer + middle):
                nodes += [Node(lower, "head", h, position) for h in range(n_heads)]
                if lower < layer:
                    nodes += [Node(lower, "mlp", None, position)]
                    nodes += [Node(lower, "neuron", i, position) for i in (3, 8)]
            return nodes

        for layer in range(n_layers):
            for sender in senders(layer, False):
                for head in range(n_heads):
                    found.append((sender, Node(layer, "head", head, position), "Q"))
                for head in range(0, n_heads, group):
                    for channel in "KV":
                        node = Node(layer, "head", head, position, width=group)
                        found.append((sender, node, channel))
            for sender in senders(layer, True):
                for node in (
                    Node(layer, "mlp", None, position),
                    Node(layer, "neuron", 8, position),
                ):
                    found += [(sender, node, channel) for channel in ("gate", "up")]
        if position == "-1":
            answer = Node(n_layers, "answer", None, "-1")
            found += [(sender, answer, "answer") for sender in senders(n_layers, False)]
    return [Edge(a, b, channel, "logit_diff", 0.0) for a, b, channel in found]


def some_of(edges: Sequence[Edge], share: float, seed: int) -> list[Edge]:
    kept = np.random.default_rng(seed).random(len(edges)) < share
    return [edge for edge, keep in zip(edges, kept, strict=True) if keep]


def literal_value(
    hf: Any, adapter: Any, example: Example, edges: Sequence[Edge], read: str, sources: Any = ()
) -> float:
    """The logit difference, or the activation of L2N8, as the definition gives it."""
    model = Literal(hf)
    clean, corrupted = (adapter.encode(str(t)) for t in (example.prompt, example.corrupted))
    whole, _, _ = model.run(clean)
    base, _, _ = model.run(corrupted)
    n = len(clean)
    given = {node: whole[node.kind, node.layer, node.index, n + node.column] for node in sources}
    _, last, posts = model.run(clean, base=base, edges=edges, sources=given)
    if read == "neuron":
        return float(posts[2, n - 1][8])
    right, wrong = (adapter.encode_plain(word)[0] for word in (" yes", " no"))
    weight = hf.state_dict()["lm_head.weight"].double()
    return float(last @ (weight[right] - weight[wrong]))


def neuron_target() -> ActivationTarget:
    return ActivationTarget((Node(2, "neuron", 8, "-1"),), (torch.ones(1),), "L2N8")


def plain(
    model: Any, adapter: Any, texts: Sequence[str], words: tuple[str, str] = (" yes", " no")
) -> Tensor:
    """The logit differences of the whole model, one prompt at a time."""
    right, wrong = (adapter.encode_plain(word)[0] for word in words)
    found = []
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([adapter.encode(text)]))[0, -1]
        found.append(logits[right] - logits[wrong])
    return torch.stack(found).double()


@pytest.mark.parametrize("share", [0.02, 0.15, 0.6])
def test_any_set_of_edges_runs_as_defined(tiny: Any, tiny_hf: Any, share: float) -> None:
    adapter, cache = as_adapter(tiny), paired_cache(tiny)
    circuits = [some_of(all_edges(), share, seed) for seed in (0, 1)]
    running = CircuitRun(cache, EdgeScheme())
    for target, read in ((ANSWER, "answer"), (neuron_target(), "neuron")):
        found = running.measure(circuits, target)
        assert found.shape == (2, len(examples()))
        for which, edges in enumerate(circuits):
            for place in (0, 4) if share < 0.5 else (4,):
                oracle = literal_value(tiny_hf[0], adapter, examples()[place], edges, read)
                assert float(found[which, place]) == pytest.approx(oracle, abs=2e-4)
    assert not torch.allclose(found[0], found[1])


def test_all_edges_are_the_clean_prompt_and_none_the_corrupted(tiny: Any) -> None:
    adapter, cache = as_adapter(tiny), paired_cache(tiny)
    clean = plain(tiny, adapter, [e.prompt for e in examples()])
    corrupted = plain(tiny, adapter, [str(e.corrupted) for e in examples()])
    assert (clean - corrupted).abs().min() > 1e-3
    every = [e for e in all_edges() if "neuron" not in (e.sender.kind, e.receiver.kind)]
    all_or_none = CircuitRun(cache, EdgeScheme()).measure([every, []], ANSWER)
    torch.testing.assert_close(all_or_none, torch.stack([clean, corrupted]), atol=1e-4, rtol=0)
    # The other way round: nothing left out, everything left out.
    rest = CircuitRun(cache, EdgeScheme(removed=True)).measure([[], every], ANSWER)
    torch.testing.assert_close(rest, torch.stack([clean, corrupted]), atol=1e-4, rtol=0)
    back = CircuitRun(cache, EdgeScheme(base="clean")).measure([every, []], ANSWER)
    torch.testing.assert_close(back, torch.stack([corrupted, clean]), atol=1e-4, rtol=0)


def test_leaving_edges_out_is_keeping_the_others(tiny: Any) -> None:
    cache = paired_cache(tiny)
    every = [e for e in all_edges() if "neuron" not in (e.sender.kind, e.receiver.kind)]
    circuit = some_of(every, 0.3, 5)
    keys = {edge.key for edge in circuit}
    others = [edge for edge in every if edge.key not in keys]
    left_out = CircuitRun(cache, EdgeScheme(removed=True)).measure([circuit], ANSWER)
    kept = CircuitRun(cache, EdgeScheme()).measure([others], ANSWER)
    torch.testing.assert_close(left_out, kept, atol=1e-4, rtol=0)


def test_sources_carry_the_clean_prompt(tiny: Any, tiny_hf: Any) -> None:
    adapter, cache = as_adapter(tiny), paired_cache(tiny)
    sources = [Node(1, "head", 2, "-1"), Node(0, "mlp", None, "-2"), Node(2, "neuron", 3, "-1")]
    circuit = [edge for edge in some_of(all_edges(), 0.4, 3) if edge.receiver not in sources]
    assert {edge.sender for edge in circuit} >= set(sources)
    found = CircuitRun(cache, EdgeScheme(sources=frozenset(sources))).measure([circuit], ANSWER)
    for place in (1, 4):
        oracle = literal_value(
            tiny_hf[0], adapter, examples()[place], circuit, "answer", sources=sources
        )
        assert float(found[0, place]) == pytest.approx(oracle, abs=2e-4)
    without = CircuitRun(cache, EdgeScheme()).measure([circuit], ANSWER)
    assert (found - without).abs().min() > 1e-4


def test_one_edge_left_out_is_path_patching_and_so_is_one_sent(tiny: Any) -> None:
    """The same number by another road: `path_effects` edits the clean run, this builds it up."""
    cache = paired_cache(tiny)
    clean = CircuitRun(cache, EdgeScheme(removed=True)).measure([[]], ANSWER)
    edges = [e for e in some_of(all_edges(), 0.02, 8) if e.receiver.kind != "neuron"]
    assert {e.receiver.kind for e in edges} >= {"head", "mlp"}
    effects = path_effects(cache, ANSWER, [edge.key for edge in edges])
    left_out = CircuitRun(cache, EdgeScheme(removed=True)).measure(
        [[edge] for edge in edges], ANSWER
    )
    torch.testing.assert_close(left_out - clean, effects, atol=2e-4, rtol=1e-3)
    for sender in (Node(1, "neuron", 3, "-1"), Node(1, "head", 2, "-2")):
        mine = [e for e in all_edges() if e.sender == sender and e.receiver.kind != "neuron"]
        scheme = EdgeScheme("clean", False, frozenset([sender]), restricted=frozenset([sender]))
        sent = CircuitRun(cache, scheme).measure([[edge] for edge in mine], ANSWER)
        effects = path_effects(cache, ANSWER, [edge.key for edge in mine])
        assert effects.abs().max() > 1e-3
        torch.testing.assert_close(sent - clean, effects, atol=2e-4, rtol=1e-3)
