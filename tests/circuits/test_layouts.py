"""Circuits where attention and MLP stand side by side, where norms follow them, and multipliers."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations import logit_diff
from lens_skills.circuits import Edge, Node
from lens_skills.circuits.decomposition import decompose
from lens_skills.circuits.edge_attribution import (
    edges_into,
    edges_out_of,
    relevance_gradients,
    target_gradients,
)
from lens_skills.circuits.graph import senders_of
from lens_skills.circuits.paired_cache import PairedCache, paired_caches
from lens_skills.circuits.path_patching import Path, clean_value, path_effects, whole_output
from lens_skills.circuits.run_circuit import CircuitRun, EdgeScheme, RandomCircuits
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.circuits.whole_graph import graph_areas, graph_edges, rank_edges
from lens_skills.data import Example
from lens_skills.models import as_adapter
from lens_skills.models.conversion import has_hooked, to_bridge
from lens_skills.models.huggingface import from_memory
from lens_skills.models.sublayers import ModelWeights, neuron_rows
from lens_skills.models.weights import OutputWeights
from lens_skills.stats.correlation import rank_agreement
from tests.circuits.layouts import LAYOUTS, Plain, Seen, tiny_of
from tests.planted_circuit import WORDS, twins

ANSWER = Node(3, "answer", None, "-1")
TARGET = AnswerTarget(logit_diff())
CASES = [(name, "bridge") for name in LAYOUTS]
if has_hooked():
    CASES += [(name, "hooked") for name, layout in LAYOUTS.items() if layout.hooked]


@dataclass
class Case:
    name: str
    model: Any
    plain: Plain
    cache: PairedCache
    tokens: list[list[int]]
    clean: list[Seen]
    corrupted: list[Seen]

    def logit_diff(self, place: int, logits: Tensor) -> Tensor:
        example = self.cache.batch[place].example
        encode = as_adapter(self.model).encode_plain
        right, wrong = (encode(str(word))[0] for word in (example.answer, example.foil))
        return (logits[right] - logits[wrong]).double()

    def expected(self, senders: list[Node], receiver: Node, channel: str) -> Tensor:
        found = []
        for place, tokens in enumerate(self.tokens):
            clean, corrupted = self.clean[place], self.corrupted[place]
            logits = self.plain.patched(tokens, clean, corrupted, senders, receiver, channel)
            found.append(self.logit_diff(place, logits) - self.logit_diff(place, clean.logits))
        return torch.stack(found)

    @property
    def first(self) -> str:
        """An MLP's first channel."""
        return self.cache.weights.gates[0]


def case_of(name: str, implementation: str, dtype: torch.dtype = torch.float32) -> Case:
    model, tokenizer = tiny_of(name)
    model = model.to(dtype)
    if dtype == torch.float32:
        opened = ls.load_model(model, tokenizer=tokenizer, implementation=implementation)
    else:  # as a user brings a bridge of their own
        opened = to_bridge(from_memory(model, tokenizer, dtype=dtype), device="cpu")
    examples = twins(3, length=2)
    (cache,) = paired_caches(ModelWeights(as_adapter(opened)), examples, logit_diff())
    plain = Plain(model, LAYOUTS[name])
    encode = as_adapter(opened).encode
    tokens = [encode(example.prompt) for example in examples]
    corrupted = [plain.run(encode(str(example.corrupted))) for example in examples]
    clean = [plain.run(row) for row in tokens]
    return Case(name, opened, plain, cache, tokens, clean, corrupted)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


def paths_of(case: Case) -> list[Path]:
    """A sender of each kind into a receiver of each kind."""
    head, mlp = Node(0, "head", 1, "-1"), Node(0, "mlp", None, "-1")
    neuron, token = Node(0, "neuron", 7, "-1"), Node(-1, "token", None, "-1")
    above, query, one = (
        Node(1, "mlp", None, "-1"), Node(1, "head", 2, "-1"), Node(2, "neuron", 5, "-1"),
    )  # fmt: skip
    channel = case.first
    found: list[Path] = [(sender, above, channel) for sender in (head, mlp, neuron, token)]
    found += [(sender, query, "Q") for sender in (head, mlp, neuron)]
    found += [(sender, ANSWER, "answer") for sender in (head, mlp, neuron, token)]
    found += [(head, one, case.cache.weights.gates[-1]), (mlp, one, channel)]
    if not LAYOUTS[case.name].parallel:
        found += [(head, Node(0, "mlp", None, "-1"), channel)]
    return found


def test_the_layout_is_found(case: Case) -> None:
    layout, weights = LAYOUTS[case.name], case.cache.weights
    assert weights.parallel == layout.parallel
    for sublayer, before, after in zip(
        (weights.attn, weights.mlp), layout.before, layout.after, strict=True
    ):
        assert (sublayer.before is None) == (before is None)
        assert (sublayer.after is None) == (after is None)
        assert sublayer.factor == pytest.approx(layout.factor, rel=1e-4)


def test_paths_are_what_plain_hooks_patch(case: Case) -> None:
    paths = paths_of(case)
    effects = path_effects(case.cache, TARGET, paths)
    largest = float(effects.abs().max())
    assert largest > 1e-2
    for (sender, receiver, channel), found in zip(paths, effects, strict=True):
        wanted = case.expected([sender], receiver, channel)
        torch.testing.assert_close(found, wanted, atol=2e-4 * max(1, largest), rtol=1e-3)


def test_heads_sent_together_pass_the_norm_together(case: Case) -> None:
    """Two heads along named edges, all else clean: one joint patch by plain hooks."""
    heads = [Node(0, "head", 1, "-1"), Node(0, "head", 3, "-1")]
    receiver = Node(1, "mlp", None, "-1")
    kept = frozenset(heads)
    scheme = EdgeScheme(base="clean", tokens=False, sources=kept, restricted=kept)
    edges = [Edge(head, receiver, case.first, "", 0.0) for head in heads]  # type: ignore[arg-type]
    found = CircuitRun(case.cache, scheme).measure([edges], TARGET)[0]
    found = found.double() - clean_value(case.cache, TARGET)[0].double()
    wanted = case.expected(heads, receiver, case.first)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def all_edges(cache: PairedCache) -> list[Edge]:
    graph = RandomCircuits(cache.weights)
    found = []
    for sender, receiver, channel in graph_edges(graph, None):
        columns = [-1] if receiver.kind == "answer" else range(-cache.n_columns, 0)
        for at in map(str, columns):
            ends = (Node(n.layer, n.kind, n.index, at, n.width) for n in (sender, receiver))
            found.append(Edge(*ends, channel, "", 0.0))  # type: ignore[arg-type]
    return found


def test_all_edges_are_the_model_and_none_the_corrupted_prompt(case: Case) -> None:
    run = CircuitRun(case.cache, EdgeScheme())
    edges = all_edges(case.cache)
    whole, none = run.measure([edges, []], TARGET).double()
    clean = [case.logit_diff(k, seen.logits) for k, seen in enumerate(case.clean)]
    corrupted = [case.logit_diff(k, seen.logits) for k, seen in enumerate(case.corrupted)]
    torch.testing.assert_close(whole, torch.stack(clean), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(none, torch.stack(corrupted), atol=2e-3, rtol=1e-3)
    per_layer = RandomCircuits(case.cache.weights).count(1)
    gated = len(case.cache.weights.gates) == 2
    counted = len([e for e in edges if e.receiver.position == "-1"])
    assert per_layer == counted + (
        sum(e.channel == "in" for e in edges if e.receiver.position == "-1") if gated else 0
    )


def test_all_but_one_edge_is_that_path_patched(case: Case) -> None:
    """The clean prompt, one edge left out: it carries what it has on the corrupted prompt."""
    run = CircuitRun(case.cache, EdgeScheme(removed=True))
    some = [path for path in paths_of(case) if path[0].kind != "token"]
    edges = [[Edge(*path, "", 0.0)] for path in some]  # type: ignore[arg-type]
    found = run.measure(edges, TARGET).double() - clean_value(case.cache, TARGET).double()
    torch.testing.assert_close(found, path_effects(case.cache, TARGET, some), atol=2e-3, rtol=1e-2)


def test_the_parts_of_a_preactivation_sum(case: Case) -> None:
    node = Node(2, "neuron", 5, "-1")
    for channel in case.cache.weights.gates:
        parts, whole = decompose(case.cache, node, channel)
        total = torch.stack(list(parts.values())).sum(0)
        torch.testing.assert_close(total, whole, atol=1e-3, rtol=1e-3)
        n_senders = len(senders_of(node, 4, parallel=LAYOUTS[case.name].parallel))
        assert len(parts) == n_senders + 1


def test_estimates_from_both_ends_agree_where_changes_are_small(case: Case) -> None:
    """Into a channel by the derivative of the norm after the sender, out by what it writes."""
    examples = [item.example for item in case.cache.batch]
    (cache,) = paired_caches(case.cache.weights, examples, logit_diff())
    streams = [(run.z, run.middle, run.attention, run.suffix.entering) for run in cache.runs]
    for clean, corrupted in zip(*streams, strict=True):
        corrupted[:] = [a + 1e-2 * (b - a) for a, b in zip(clean, corrupted, strict=True)]
    gradients = target_gradients(cache, TARGET)
    paths = [path for path in paths_of(case) if path[0].kind in ("head", "neuron")]
    into = edges_into(cache, [path[1:] for path in paths], gradients).paths()
    size = max(abs(into.get(path, 0.0)) for path in paths)
    for path in paths:
        out = edges_out_of(cache, path[0], gradients).paths()
        assert into.get(path, 0.0) == pytest.approx(out.get(path, 0.0), abs=0.01 * size, rel=0.05)


def test_a_derivative_is_pulled_back_through_the_norm_after(case: Case) -> None:
    weights, generator = case.cache.weights, torch.Generator().manual_seed(0)
    output, step, slope = torch.randn(3, 5, 32, generator=generator)
    for part in ("attn", "mlp"):
        change = 1e-2 * step
        added = weights.added(1, part, output + change) - weights.added(1, part, output - change)
        pulled = weights.pulled(1, part, output, slope)
        wanted = (slope * added).sum() / 2e-2
        torch.testing.assert_close((pulled * step).sum(), wanted, rtol=1e-2, atol=1e-2)


def test_a_last_layers_neuron_reaches_the_answer_by_its_edge_alone(case: Case) -> None:
    node = Node(2, "neuron", 5, "-1")
    (direct,) = path_effects(case.cache, TARGET, [(node, ANSWER, "answer")])
    whole = whole_output(case.cache, TARGET, [node])
    torch.testing.assert_close(direct, whole.double(), atol=1e-4, rtol=1e-3)


def test_no_edge_runs_from_a_parallel_blocks_heads_to_its_own_mlp(case: Case) -> None:
    if not LAYOUTS[case.name].parallel:
        pytest.skip("the blocks are serial")
    mlp = Node(1, "mlp", None, "-1")
    graph = RandomCircuits(case.cache.weights)
    assert not any(sender.layer == 1 for sender in graph.senders(mlp))
    head = Node(1, "head", 0, "-1")
    assert not any(node.layer == 1 for node, _ in graph.channels(head))
    for propose in (target_gradients, relevance_gradients):
        gradients = propose(case.cache, TARGET)
        into = edges_into(case.cache, [(mlp, case.first)], gradients)
        assert not any(path[0].layer == 1 and path[0].kind == "head" for path in into.one)
        out = edges_out_of(case.cache, head, gradients)
        assert not any(path[1].layer == 1 for path in out.paths())


def test_the_whole_graph_is_ranked_and_run(case: Case) -> None:
    if case.name not in ("neox", "olmo2", "granite"):
        pytest.skip("a layout of each kind is enough: the sums are the same")
    for propose in (target_gradients, relevance_gradients):
        ranked = rank_edges([case.cache], TARGET, propose)
    areas = graph_areas([case.cache], TARGET, ranked)
    assert areas.faithfulness[-1] == pytest.approx(1.0)
    assert areas.n_edges == len(ranked)


@pytest.mark.parametrize("name", ["neox", "gemma2", "olmo2"])
def test_paths_are_exact_in_float64(name: str) -> None:
    case = case_of(name, "bridge", torch.float64)
    paths = paths_of(case)
    effects = path_effects(case.cache, TARGET, paths)
    for (sender, receiver, channel), found in zip(paths, effects, strict=True):
        wanted = case.expected([sender], receiver, channel)
        near = 1e-9 if name == "neox" else 1e-4  # an RMSNorm of transformers is float32 inside
        torch.testing.assert_close(found, wanted, atol=near, rtol=near)


@pytest.mark.parametrize("name", ["phi", "gemma2"])
def test_circuits_are_found_and_run(name: str) -> None:
    model, tokenizer = tiny_of(name)
    opened = ls.load_model(model, tokenizer=tokenizer)
    pairs = telling(model, as_adapter(opened).encode, twins(48, length=2))
    found = ls.circuit(opened, pairs, "answer", n_edges=30, depth=1, n_random=40)
    assert found.confirmed
    again = ls.faithfulness(opened, pairs, found, n_random=2, removals=False)
    assert 0.2 < again.curves[0].last.value < 1.8


def telling(model: Any, encode: Any, pairs: list[Example]) -> list[Example]:
    """The pairs with the two answers between which the corruption moves this model most surely."""
    with torch.no_grad():
        logits = [
            [model(torch.tensor([encode(str(text))])).logits[0, -1] for text in ends]
            for ends in ((pair.prompt, pair.corrupted) for pair in pairs)
        ]
    words = torch.tensor([encode(word)[-1] for word in WORDS])
    moved = torch.stack([there - here for here, there in logits])[:, words]
    gap = moved[:, :, None] - moved[:, None]
    sure = (gap.mean(0) / gap.std(0).clamp(min=1e-6)).argmax()
    foil, answer = divmod(int(sure), len(WORDS))
    return [
        Example(one.id, one.prompt, answer=WORDS[answer], foil=WORDS[foil], corrupted=one.corrupted)
        for one in pairs
    ]


@pytest.fixture(scope="module", params=["neox", "gemma2", "olmo2", "granite"])
def written(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param, "bridge")


def test_what_moved_features_add_is_what_plain_modules_add(written: Case) -> None:
    """Neurons and heads moved by hand, through the norm after them, one prompt at a time."""
    weights, suffix = OutputWeights(as_adapter(written.model)), written.cache.clean.suffix
    for site, which, features in (("mlp.hook_post", 1, [5, 9]), ("attn.hook_z", 0, [3, 30])):
        moved = torch.tensor([1.5, -2.0]).expand(1, len(written.tokens), 2)
        found = weights.change(suffix, (1, site), torch.tensor([features]), moved)
        assert found is not None
        for place, seen in enumerate(written.clean):
            here = (seen.z, seen.post)[which][1][-1]
            there = here.clone()
            there[features] += moved[0, place]
            with torch.no_grad():
                wanted = written.plain.added(1, which, there) - written.plain.added(1, which, here)
            torch.testing.assert_close(found[0, place], wanted, atol=1e-4, rtol=1e-3)


def test_a_row_is_what_one_more_unit_adds(written: Case) -> None:
    suffix = written.cache.clean.suffix
    rows = OutputWeights(as_adapter(written.model)).rows(suffix, (1, "mlp.hook_post"), [5, 9])
    assert rows is not None
    for row, neuron in zip(rows, (5, 9), strict=True):
        slopes = []
        for seen in written.clean:
            step = torch.zeros_like(seen.post[1][-1])
            step[neuron] = 1.0
            slopes.append(
                torch.autograd.functional.jvp(
                    lambda post: written.plain.added(1, 1, post), seen.post[1][-1], step
                )[1]
            )
        torch.testing.assert_close(row, torch.stack(slopes).mean(0), atol=3e-3, rtol=3e-2)


def test_rows_of_w_out_are_as_the_norm_after_them_lets_through(written: Case) -> None:
    plain, layer = written.plain, 1
    rows = plain.part(layer, plain.layout.down).weight.detach().T.double()
    name = plain.layout.after[1]
    if name is not None:
        gain = plain.part(layer, name).weight.detach().double()
        rows = rows * (1 + gain if written.name == "gemma2" else gain)
    found = neuron_rows(as_adapter(written.model), layer).double()
    ratio = found.flatten() @ rows.flatten() / rows.square().sum()
    torch.testing.assert_close(found, ratio * rows, atol=1e-4, rtol=1e-3)


def test_verbs_that_read_what_neurons_write(written: Case) -> None:
    pairs = twins(24, length=2)
    names = [f"L{layer}N{k}" for layer in (1, 2) for k in (3, 5)]
    told = ls.token_logits(written.model, "L2N5")
    assert told.spread > 0
    do = ls.ablate("zero")
    found = ls.sweep(written.model, pairs, names, do=do, metric="logit_diff", direct=True)
    if written.name in ("neox", "olmo2"):  # the others cap or scale their logits
        assert found.direct is not None
        # Behind the last block only the final norm's scale tells direct and total apart.
        last = [names.index(name) for name in ("L2N3", "L2N5")]
        assert rank_agreement(found.direct[last].flatten(), found.total[last].flatten()) > 0.8
