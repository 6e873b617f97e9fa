"""A cache tells a model apart into parts that add up, or refuses; LayerNorms and biases too."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills import LensSkillsError
from lens_skills.activations import logit_diff
from lens_skills.circuits.decomposition import decompose, upstream_frame
from lens_skills.circuits.edge_attribution import target_gradients
from lens_skills.circuits.graph import Node
from lens_skills.circuits.paired_cache import PairedCache, equal_length_pairs, paired_caches
from lens_skills.circuits.path_patching import ReceiverInput, path_effects
from lens_skills.circuits.targets import ActivationTarget
from lens_skills.data import Example
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from lens_skills.models.weights import FrozenNorm
from tests.tiny_tokenizer import tiny_tokenizer


def pairs_of(model: Any, n: int = 4) -> list[Example]:
    return list(equal_length_pairs(model, ls.tasks.agreement(60)))[:n]


def paired_cache(model: Any, n: int = 4) -> PairedCache:
    return paired_caches(ModelWeights(as_adapter(model)), pairs_of(model, n), logit_diff())[0]


def gpt2(change: Callable[[Any], None] | None = None) -> Any:
    """Blocks with LayerNorms, biases and an ungated MLP, all of them at random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=24, n_layer=3, n_head=2, n_positions=64,
        bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = GPT2LMHeadModel(config)
        for name, parameter in model.named_parameters():
            if "ln" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model, tokenizer


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def layer_normed(request: pytest.FixtureRequest) -> Any:
    if request.param == "hooked":
        request.getfixturevalue("tiny_hooked")  # skips where there is no HookedTransformer
    model, tokenizer = gpt2()
    return ls.load_model(model, tokenizer=tokenizer, implementation=request.param)


@pytest.fixture(scope="module")
def cache(tiny: Any) -> PairedCache:
    return paired_cache(tiny)


def test_the_parts_of_a_preactivation_sum_to_its_change(cache: PairedCache) -> None:
    """Against the model's own pre-activations, from plain runs of both prompts."""
    exact(cache, {"gate": "mlp.hook_pre", "up": "mlp.hook_pre_linear"}, Node(3, "neuron", 5, "-1"))


def test_so_do_those_behind_a_layer_norm(layer_normed: Any) -> None:
    exact(paired_cache(layer_normed), {"in": "mlp.hook_pre"}, Node(2, "neuron", 7, "-1"))


def exact(cache: PairedCache, hooks: dict[str, str], node: Node) -> None:
    adapter = cache.adapter
    for channel, hook in hooks.items():
        parts, whole = decompose(cache, node, channel)
        total = torch.stack(list(parts.values())).sum(0)
        assert torch.allclose(total, whole, atol=1e-4)
        assert len(parts) == 2 + adapter.n_heads * (node.layer + 1) + node.layer
        assert float(parts[Node(node.layer, "norm", None, "-1")].abs().amax()) > 1e-4
        for place, item in enumerate(cache.batch):
            values = []
            for text in (item.prompt, item.corrupted):
                ids = torch.tensor([adapter.encode(text)])
                seen: list[torch.Tensor] = []
                readers = {f"blocks.{node.layer}.{hook}": seen.append}
                mask = torch.ones_like(ids, dtype=torch.bool)
                adapter.forward(ids, mask, readers=readers, logits_at=None)
                values.append(float(seen[0][0, -1, node.index]))
            assert float(total[place]) == pytest.approx(values[1] - values[0], abs=1e-4)


def test_the_table_holds_parts_sums_and_exact_effects(cache: PairedCache) -> None:
    node = Node(3, "neuron", 5, "-1")
    signs = {cache.batch[0].id: -1.0}
    target = ActivationTarget((node,), (torch.ones(1),), "L3N5", signs=signs)
    frame, agreement = upstream_frame([cache], target)
    parts, whole = decompose(cache, node, "up")
    sign = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    one = frame[(frame.sender == "L2H1") & (frame.channel == "up")].iloc[0]
    part = parts[Node(2, "head", 1, "-1")] * sign
    assert one.part == pytest.approx(float(part.mean()), rel=1e-6)
    effect = path_effects(cache, target, [(Node(2, "head", 1, "-1"), node, "up")])
    assert one.effect == pytest.approx(float(effect.mean()), rel=1e-6)
    for kind in ("sum", "change"):
        row = frame[(frame.kind == kind) & (frame.channel == "up")].iloc[0]
        assert row.part == pytest.approx(float((whole * sign).mean()), abs=1e-5)
    # Where changes are small, the linear part is nearly all of it.
    assert agreement["L3N5"] > 0.9


def test_edges_of_a_layer_normed_model_are_linear_where_they_are_small(layer_normed: Any) -> None:
    """Twins that are nearly the same: the effect is gradient · W · d LayerNorm."""
    cache = paired_cache(layer_normed)
    target = ActivationTarget((Node(2, "neuron", 7, "-1"),), (torch.ones(1),), "L2N7")
    for streams in (cache.clean.entering, cache.clean.middle, cache.clean.z):
        there = {
            id(cache.clean.entering): cache.corrupted.entering,
            id(cache.clean.middle): cache.corrupted.middle,
            id(cache.clean.z): cache.corrupted.z,
        }[id(streams)]
        for layer, clean in enumerate(streams):
            there[layer] = clean + 0.01 * (there[layer] - clean)
    gradients = target_gradients(cache, target)
    block = layer_normed.blocks[1]
    paths = [
        (Node(0, "head", 1, "-1"), Node(1, "mlp", None, "-1"), "in"),
        (Node(0, "mlp", None, "-1"), Node(1, "head", 0, "-1"), "Q"),
        (Node(0, "mlp", None, "-2"), Node(1, "head", 1, "-2"), "V"),
    ]
    effects = path_effects(cache, target, paths)
    for path, found in zip(paths, effects, strict=True):
        reader = ReceiverInput(cache, *path[1:])
        norm = block.ln2 if path[2] == "in" else block.ln1
        weight, bias = ((getattr(norm, name).detach()) for name in "wb")

        def plain(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

        here, change = reader.residual, cache.written(path[0])
        shift: Any = torch.autograd.functional.jvp(plain, here, change)[1]
        gradient = gradients.by[1, path[2]][:, reader.column]
        gradient = gradient[:, reader.features] if path[2] != "in" else gradient
        expected = ((shift @ reader.weight(path[2])) * gradient).sum(1).double()
        assert float(expected.abs().max()) > 1e-6
        assert torch.allclose(found, expected, rtol=0.1, atol=float(expected.abs().max()) / 20)


@pytest.mark.parametrize("centred", [False, True])
def test_a_held_norm_pulls_back_as_it_pushes_forward(centred: bool) -> None:
    """⟨gradient, norm(change)⟩ = ⟨back(gradient), change⟩."""
    generator = torch.Generator().manual_seed(0)
    gain, change, gradient = torch.randn(3, 2, 5, 7, generator=generator).double()
    held = FrozenNorm(gain, centred)
    assert torch.allclose((gradient * held(change)).sum(), (held.back(gradient) * change).sum())
    assert torch.equal(held.at(2)(change[:, 2]), held(change)[:, 2])


def test_nodes_before_the_first_difference_are_refused(cache: PairedCache) -> None:
    with pytest.raises(LensSkillsError, match="lies before the first token"):
        cache.column(Node(0, "mlp", None, str(-cache.n_columns - 1)))


def test_padding_changes_nothing(tiny: Any) -> None:
    """A pair beside a longer one has the effects it has alone."""
    examples = sorted(pairs_of(tiny, 12), key=lambda e: len(as_adapter(tiny).encode(e.prompt)))
    short, long = examples[0], examples[-1]
    adapter = as_adapter(tiny)
    assert len(adapter.encode(short.prompt)) < len(adapter.encode(long.prompt))
    weights = ModelWeights(adapter)
    node = Node(3, "neuron", 5, "-1")
    target = ActivationTarget((node,), (torch.ones(1),), "L3N5")
    paths = [
        (Node(0, "mlp", None, "-1"), Node(1, "head", 3, "-1"), "Q"),
        (Node(0, "mlp", None, "-2"), Node(2, "head", 2, "-2", 2), "V"),
        (Node(2, "mlp", None, "-1"), node, "up"),
    ]
    (both,) = paired_caches(weights, [short, long], logit_diff())
    widest = 0
    for place, example in enumerate((short, long)):
        (alone,) = paired_caches(weights, [example], logit_diff())
        widest = max(widest, alone.n_columns)
        one, two = path_effects(alone, target, paths), path_effects(both, target, paths)
        assert torch.allclose(one[:, 0], two[:, place], atol=2e-6)
    assert both.n_columns == widest


def test_a_model_whose_parts_do_not_add_up_is_refused(tiny_hooked: Any) -> None:
    model = copy.deepcopy(tiny_hooked)
    plain = model.blocks[1].attn.forward
    model.blocks[1].attn.forward = lambda *args, **options: 1.1 * plain(*args, **options)
    with pytest.raises(LensSkillsError, match="leaves block 1 is not the sum of its parts"):
        paired_cache(model)


def test_another_activation_function_is_recognised_or_refused(tiny_hooked: Any) -> None:
    for act, known in ((torch.nn.functional.gelu, True), (torch.tanh, False)):
        model = copy.deepcopy(tiny_hooked)
        for block in model.blocks:
            block.mlp.act_fn = act
        if known:
            paired_cache(model)
            continue
        with pytest.raises(LensSkillsError, match="with a known act"):
            paired_cache(model)


def test_pairs_that_are_none_are_refused(tiny: Any) -> None:
    weights = ModelWeights(as_adapter(tiny))

    def refused(examples: list[Example], match: str) -> None:
        with pytest.raises(LensSkillsError, match=match):
            paired_caches(weights, examples, logit_diff())

    good: dict[str, Any] = {"answer": " is", "foil": " are"}
    refused([], "no examples")
    refused([Example("a", "The key", **good)], "'a' has no corrupted twin")
    refused([Example("b", "The key", corrupted="The keys were here", **good)], "'b' has .* tokens")
    refused([Example("c", "The key", corrupted="The key", **good)], "same tokens")


def test_no_equal_pair_at_all_is_said(tiny: Any) -> None:
    pair = Example("a", "The key", answer=" is", foil=" are", corrupted="The keys to the cabinets")
    with pytest.raises(LensSkillsError, match="none of the 1 pairs has twins of equal length"):
        equal_length_pairs(tiny, [pair])


def test_equal_pairs_keeps_what_can_be_patched(tiny: Any) -> None:
    task = ls.tasks.agreement(120)
    kept = equal_length_pairs(tiny, task)
    adapter = as_adapter(tiny)
    expected = [
        e.id
        for e in task
        if len(adapter.encode(e.prompt)) == len(adapter.encode(e.corrupted or ""))
    ]
    assert [e.id for e in kept] == expected
    assert 0 < len(kept) < len(task)
    assert type(kept) is type(task)
    assert isinstance(equal_length_pairs(tiny, list(task)), list)
