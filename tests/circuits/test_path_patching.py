"""Every kind of edge, patched here and in straight-line PyTorch: the same effect per example."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.activations import logit_diff
from lens_skills.circuits.edge_attribution import (
    EdgeSums,
    channels_of,
    edges_into,
    edges_out_of,
    integrated_points,
    relevance_gradients,
    target_gradients,
)
from lens_skills.circuits.graph import Node
from lens_skills.circuits.paired_cache import PairedCache, equal_length_pairs, paired_caches
from lens_skills.circuits.path_patching import (
    ReceiverInput,
    path_effects,
    whole_input,
    whole_output,
)
from lens_skills.circuits.targets import ActivationTarget, AnswerTarget
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.circuits.straight import Patch, Run, Straight

NEURON, HEAD, ANSWER = (
    Node(3, "neuron", 5, "-1"),
    Node(3, "head", 2, "-1"),
    Node(4, "answer", None, "-1"),
)
TOP = Node(3, "norm", None, "-1")
LOWER = [
    (Node(0, "head", 1, "-2"), Node(0, "mlp", None, "-2"), "gate"),
    (Node(0, "mlp", None, "-1"), Node(1, "head", 3, "-1"), "Q"),
    (Node(0, "mlp", None, "-3"), Node(2, "head", 2, "-3", 2), "K"),
    (Node(1, "head", 2, "-2"), Node(2, "head", 0, "-2", 2), "V"),
    (Node(1, "neuron", 7, "-2"), Node(2, "mlp", None, "-2"), "up"),
    (Node(0, "neuron", 11, "-1"), Node(1, "neuron", 30, "-1"), "gate"),
    (Node(1, "mlp", None, "-1"), Node(2, "neuron", 9, "-1"), "up"),
    (Node(2, "norm", None, "-1"), Node(2, "mlp", None, "-1"), "gate"),
    (Node(1, "norm", None, "-2"), Node(1, "head", 0, "-2", 2), "K"),
]
INTO_NEURON = [
    *((Node(3, "head", h, "-1"), NEURON, c) for h in range(2) for c in ("gate", "up")),
    (Node(2, "mlp", None, "-1"), NEURON, "up"),
    (Node(2, "neuron", 3, "-1"), NEURON, "gate"),
    (TOP, NEURON, "gate"),
    (TOP, NEURON, "up"),
]
INTO_ANSWER = [
    (Node(3, "mlp", None, "-1"), ANSWER, "answer"),
    (Node(2, "head", 1, "-1"), ANSWER, "answer"),
    (NEURON, ANSWER, "answer"),
    (Node(4, "norm", None, "-1"), ANSWER, "answer"),
]
UNIT = torch.linspace(-1, 1, 8, dtype=torch.float64)


@pytest.fixture(scope="module")
def pairs(tiny: Any) -> Any:
    task = equal_length_pairs(tiny, ls.tasks.agreement(60))
    return task[:3] if len(task) > 3 else task


@pytest.fixture(scope="module")
def cache(tiny: Any, pairs: Any) -> PairedCache:
    return paired_caches(ModelWeights(as_adapter(tiny)), list(pairs), logit_diff())[0]


@pytest.fixture(scope="module")
def straight(tiny_hf: Any) -> Straight:
    return Straight(tiny_hf[0])


def tokens_of(cache: PairedCache, example: int) -> tuple[Tensor, Tensor]:
    """The tokens of a pair, the twin's by the model's own tokenizer."""
    item = cache.batch[example]
    twin = cache.adapter.encode(item.corrupted)
    return torch.tensor(item.prompt_tokens.tolist()), torch.tensor(twin)


def ask(
    target: ActivationTarget | AnswerTarget, run: Run, cache: PairedCache, example: int
) -> Tensor:
    """The target, asked of the oracle."""
    if isinstance(target, ActivationTarget):
        (node,) = target.nodes
        if node.kind == "neuron":
            return run.posts[node.layer][-1, node.index]
        return run.z[node.layer][node.index, -1] @ UNIT
    item: Any = cache.batch[example]
    assert run.logits is not None
    return run.logits[item.answer_tokens[0]] - run.logits[item.foil_tokens[0]]


TARGETS = {
    "neuron": ActivationTarget((NEURON,), (torch.ones(1),), "L3N5"),
    "head": ActivationTarget((HEAD,), (UNIT,), "L3H2"),
    "metric": AnswerTarget(logit_diff()),
}
PATHS = {"neuron": LOWER + INTO_NEURON, "head": LOWER, "metric": LOWER + INTO_ANSWER}
PATHS["head"] = PATHS["head"] + [
    (Node(2, "mlp", None, "-1"), HEAD, "Q"),
    (Node(2, "mlp", None, "-2"), Node(3, "head", 2, "-2", 2), "K"),
    (Node(1, "head", 0, "-1"), Node(3, "head", 2, "-1", 2), "V"),
]


def test_the_oracle_is_the_model(straight: Straight, tiny_hf: Any, cache: PairedCache) -> None:
    tokens, _ = tokens_of(cache, 0)
    expected = tiny_hf[0](tokens[None]).logits[0, -1].double()
    found = straight.run(tokens).logits
    assert found is not None
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", list(TARGETS))
def test_an_edge_patched_alone_has_the_effect_it_has_in_plain_pytorch(
    cache: PairedCache, straight: Straight, name: str
) -> None:
    target, first = TARGETS[name], str(-cache.n_columns)  # where the prompts begin to differ
    paths = [*PATHS[name], (Node(-1, "token", None, first), Node(0, "head", 0, first, 2), "V")]
    found = path_effects(cache, target, paths)
    for example in range(len(cache)):
        clean, corrupted = (straight.run(tokens) for tokens in tokens_of(cache, example))
        before = ask(target, clean, cache, example)
        for place, path in enumerate(paths):
            patch = straight.patch(clean, corrupted, path)
            run = straight.run(tokens_of(cache, example)[0], patch)
            expected = float(ask(target, run, cache, example) - before)
            assert float(found[place, example]) == pytest.approx(expected, rel=2e-3, abs=5e-6), path
    assert float(found.abs().amax(1).min()) > 1e-6, "an edge without effect tests nothing"


def test_an_examples_sign_turns_its_effect_round(cache: PairedCache) -> None:
    signs = {cache.batch[1].id: -1.0}
    turned = ActivationTarget((NEURON,), (torch.ones(1),), "L3N5", signs=signs)
    paths = [LOWER[0], INTO_NEURON[0]]
    plain, found = (path_effects(cache, t, paths) for t in (TARGETS["neuron"], turned))
    sign = torch.tensor([1.0, -1.0, 1.0])
    assert torch.allclose(found, plain * sign)
    assert torch.allclose(whole_input(cache, turned), whole_input(cache, TARGETS["neuron"]) * sign)


def test_few_rows_at_once_change_nothing(cache: PairedCache) -> None:
    target, paths = TARGETS["metric"], PATHS["metric"]
    one, many = path_effects(cache, target, paths, rows=1), path_effects(cache, target, paths)
    assert torch.allclose(one, many, atol=2e-6)


@pytest.mark.parametrize("name", list(TARGETS))
def test_the_gradients_estimate_is_the_derivative_by_the_path(
    cache: PairedCache, straight: Straight, name: str
) -> None:
    """d target / d ε where the channel reads x + ε (A' - A), its norm's scale held."""
    estimated(cache, straight, name, target_gradients(cache, TARGETS[name]), held=False)


@pytest.mark.parametrize("name", list(TARGETS))
def test_relevance_is_the_derivative_of_the_held_model(
    cache: PairedCache, straight: Straight, name: str
) -> None:
    estimated(cache, straight, name, relevance_gradients(cache, TARGETS[name]), held=True)


def estimated(
    cache: PairedCache, straight: Straight, name: str, gradients: Any, *, held: bool
) -> None:
    target = TARGETS[name]
    paths = [p for p in PATHS[name] if p[0].kind != "norm" and not (held and p[2] in "QK")]
    found = edges_into(cache, [path[1:] for path in paths], gradients).paths()
    for path in paths:
        total = 0.0
        for example in range(len(cache)):
            tokens, twin = tokens_of(cache, example)
            clean, corrupted = straight.run(tokens), straight.run(twin)
            patch = straight.patch(clean, corrupted, path, held=True)
            assert patch.change is not None
            share = torch.zeros((), dtype=torch.float64, requires_grad=True)
            small = Patch(*path[1:], change=share * patch.change, held=True)
            run = straight.run(tokens, small, held=held)
            total += float(torch.autograd.grad(ask(target, run, cache, example), share)[0])
        assert found[path] == pytest.approx(total, rel=2e-3, abs=1e-6), path


def test_a_difference_quotient_agrees_with_the_gradient(
    cache: PairedCache, straight: Straight
) -> None:
    target, path, step = TARGETS["metric"], LOWER[2], 1e-4
    found = edges_into(cache, [path[1:]], target_gradients(cache, target)).paths()[path]
    total = 0.0
    for example in range(len(cache)):
        tokens, twin = tokens_of(cache, example)
        clean, corrupted = straight.run(tokens), straight.run(twin)
        change: Any = straight.patch(clean, corrupted, path).change
        ends = [
            straight.run(tokens, Patch(*path[1:], change=s * step * change, held=True))
            for s in (1, -1)
        ]
        up, down = (float(ask(target, end, cache, example)) for end in ends)
        total += (up - down) / (2 * step)
    assert found == pytest.approx(total, rel=1e-3)


def test_an_edge_is_expected_the_same_from_both_of_its_ends(cache: PairedCache) -> None:
    gradients = target_gradients(cache, TARGETS["metric"])
    for sender in (Node(1, "head", 2, "-1"), Node(1, "neuron", 7, "-1"), Node(0, "head", 3, "-3")):
        leaving = edges_out_of(cache, sender, gradients).paths(20)
        pairs = list(dict.fromkeys(path[1:] for path in leaving))
        entering = edges_into(cache, pairs, gradients, neurons=sender.kind == "neuron").paths()
        assert len(leaving) > 30
        for path, value in leaving.items():
            assert value == pytest.approx(entering[path], rel=1e-3, abs=1e-7), path


def test_the_integrated_form_is_the_mean_over_its_points(cache: PairedCache) -> None:
    target, path = TARGETS["metric"], LOWER[3]

    def of(*points: float) -> float:
        return edges_into(cache, [path[1:]], target_gradients(cache, target, points=points)).one[
            path
        ]

    assert of(0.25, 0.75) == pytest.approx((of(0.25) + of(0.75)) / 2, rel=1e-4)
    assert of(0.25) != pytest.approx(of(0.75), rel=1e-3)
    assert integrated_points(4) == (0.125, 0.375, 0.625, 0.875)


def test_at_its_end_the_integrated_path_is_the_corrupted_prompt(cache: PairedCache) -> None:
    """Gradients at point 1 are those of the pairs turned round, at point 0."""
    target = TARGETS["neuron"]
    turned = PairedCache.__new__(PairedCache)
    turned.__dict__ |= cache.__dict__ | {"_posts": {}, "_norms": {}}
    turned.clean, turned.corrupted = cache.corrupted, cache.clean
    there, back = target_gradients(cache, target, points=(1.0,)), target_gradients(turned, target)
    for key, gradient in back.by.items():
        assert torch.allclose(there.by[key], gradient, atol=1e-5), key


def test_all_that_is_sent_together_is_what_is_read(cache: PairedCache) -> None:
    """The changes of all senders sum to the change of the stream, for every layer and column."""
    for layer in range(5):
        for position in ("-1", "-3"):
            receiver = Node(layer, "head" if layer < 4 else "answer", 0, position)
            senders = [Node(-1, "token", None, position)]
            for at in range(layer):
                senders += [Node(at, "head", h, position) for h in range(4)]
                senders.append(Node(at, "mlp", None, position))
            total = sum(cache.written(sender) for sender in senders)
            whole = cache.moved(layer)[:, cache.column(receiver)]
            assert torch.allclose(torch.as_tensor(total), whole, atol=1e-5)


def test_a_neuron_is_a_part_of_its_mlp(cache: PairedCache) -> None:
    total = sum(cache.written(Node(1, "neuron", n, "-2")) for n in range(48))
    assert torch.allclose(
        torch.as_tensor(total), cache.written(Node(1, "mlp", None, "-2")), atol=1e-6
    )


def test_whole_input_and_whole_output_are_what_plain_pytorch_says(
    cache: PairedCache, straight: Straight
) -> None:
    metric, lower = TARGETS["metric"], Node(1, "neuron", 7, "-1")
    incoming = {name: whole_input(cache, target) for name, target in TARGETS.items()}
    outgoing = whole_output(cache, metric, [lower])
    for example in range(len(cache)):
        clean, corrupted = (straight.run(tokens) for tokens in tokens_of(cache, example))
        for name, target in TARGETS.items():
            expected = ask(target, corrupted, cache, example) - ask(target, clean, cache, example)
            assert float(incoming[name][example]) == pytest.approx(float(expected), abs=2e-5)
        # A neuron has no other way out of its block than what it writes.
        change = straight.written(corrupted, lower) - straight.written(clean, lower)
        moved = everywhere(straight, tokens_of(cache, example)[0], lower, change)
        expected = ask(metric, moved, cache, example) - ask(metric, clean, cache, example)
        assert float(outgoing[example]) == pytest.approx(float(expected), rel=1e-3, abs=5e-6)


def everywhere(straight: Straight, tokens: Tensor, node: Node, change: Tensor) -> Run:
    """The model with something added to what one MLP writes."""
    plain: Callable[..., Tensor] = Straight.mlp

    class Added(Straight):
        def mlp(self, x: Tensor, layer: int, *rest: Any) -> Tensor:
            written = plain(self, x, layer, *rest)
            mask = torch.zeros_like(written)
            mask[node.column] = change * (layer == node.layer)
            return written + mask

    model = Added.__new__(Added)
    model.__dict__ |= straight.__dict__
    return model.run(tokens)


def test_keys_and_values_are_read_in_every_column_up_to_the_query(cache: PairedCache) -> None:
    found = channels_of(cache, Node(2, "head", 3, "-2"))
    n_before = cache.n_columns - 1
    assert len(found) == 1 + 2 * n_before
    assert found[0] == (Node(2, "head", 3, "-2"), "Q")
    assert found[1] == (Node(2, "head", 2, str(-cache.n_columns), 2), "K")
    assert found[-1] == (Node(2, "head", 2, "-2", 2), "V")


def test_sums_of_batches_add_edge_by_edge(tiny: Any, pairs: Any, cache: PairedCache) -> None:
    target = TARGETS["neuron"]
    with ls.config(batch_size=1):
        parts = paired_caches(ModelWeights(as_adapter(tiny)), list(pairs), logit_diff())
    channels = [(NEURON, "gate"), (Node(2, "mlp", None, "-1"), "up")]
    total = EdgeSums()
    for part in parts:
        total = total + edges_into(part, channels, target_gradients(part, target))
    whole = edges_into(cache, channels, target_gradients(cache, target)).paths()
    assert total.paths().keys() == whole.keys()
    for path, value in total.paths().items():
        assert value == pytest.approx(whole[path], rel=1e-2, abs=2e-6)


def test_a_reader_knows_its_own_weights(cache: PairedCache) -> None:
    assert ReceiverInput(cache, Node(2, "head", 2, "-1", 2), "K").features == slice(8, 16)
    assert ReceiverInput(cache, Node(2, "head", 2, "-1"), "Q").features == slice(16, 24)
