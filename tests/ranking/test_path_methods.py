"""Integrated gradients and relevance: axioms, and the Hugging Face model differentiated by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import lens_skills as ls
from lens_skills.activations.locations import find_site
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.ranking import rank
from lens_skills.ranking.path_methods import STEPS, PathInputs, expected_changes
from tests.planted_circuit import planted_circuit, twins
from tests.ranking.conftest import N_LAYERS, WIDTH

WORDS = (" girl", " table")


def inputs_of(model: Any, examples: Any, position: Any, metric: Any = None) -> PathInputs:
    adapter = as_adapter(model)
    site = find_site(adapter, "mlp.hook_post")
    return PathInputs(adapter, examples, metric or ls.logit_diff(), site, position)


class ByHand:
    """The tiny model as transformers runs it, one prompt at a time."""

    def __init__(self, hf: Any, adapter: Any) -> None:
        self.hf, self.adapter = hf, adapter

    def run(self, prompt: str, edit: Callable[[int, Tensor], Tensor] | None = None) -> Any:
        """Every layer's neurons, and the logit difference, with some layer edited."""
        seen: list[Tensor] = []
        handles = []
        for layer, block in enumerate(self.hf.model.layers):

            def put(module: Any, args: Any, layer: int = layer) -> Any:
                post = args[0] if edit is None else edit(layer, args[0])
                if post.requires_grad:
                    post.retain_grad()
                seen.append(post)
                return (post,)

            handles.append(block.mlp.down_proj.register_forward_pre_hook(put))
        try:
            logits = self.hf(torch.tensor([self.adapter.encode(prompt)])).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        right, wrong = (self.adapter.encode_plain(word)[0] for word in WORDS)
        return seen, logits[right] - logits[wrong]

    def neurons(self, prompt: str) -> list[Tensor]:
        with torch.no_grad():
            return [part[0].clone() for part in self.run(prompt)[0]]


@pytest.fixture
def hand(tiny: Any, tiny_hf: Any) -> ByHand:
    return ByHand(tiny_hf[0], as_adapter(tiny))


@pytest.mark.parametrize("position", [-1, [-3, -2, -1]])
def test_integrated_gradients_are_complete(tiny: Any, hand: ByHand, position: Any) -> None:
    """Over a layer they add up to what patching all of it does; gradients alone do not."""
    examples = twins(6)
    inputs = inputs_of(tiny, examples, position)
    found = expected_changes(inputs, "integrated_gradients").sum((1, 2))
    first = expected_changes(inputs).sum((1, 2))
    n = 1 if position == -1 else 3
    wanted = torch.zeros(N_LAYERS, len(examples))
    for place, example in enumerate(examples):
        there = hand.neurons(str(example.corrupted))
        with torch.no_grad():
            clean = hand.run(example.prompt)[1]
            for layer in range(N_LAYERS):

                def patched(at: int, post: Tensor, layer: int = layer) -> Tensor:
                    if at != layer:
                        return post
                    return torch.cat([post[:, :-n], there[layer][None, -n:]], dim=1)  # noqa: B023

                wanted[layer, place] = hand.run(example.prompt, patched)[1] - clean
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) < 0.01 * scale
    assert float((first - wanted).abs().max()) > 0.05 * scale


def test_every_point_is_the_gradient_there(tiny: Any, hand: ByHand) -> None:
    """One layer, one example: the mean gradient at the middles of the steps, by autograd."""
    examples = twins(3)
    found = expected_changes(inputs_of(tiny, examples, -1), "integrated_gradients")[1, 0]
    for place, example in enumerate(examples):
        clean, there = hand.neurons(example.prompt)[1], hand.neurons(str(example.corrupted))[1]
        total = torch.zeros(WIDTH)
        for step in range(STEPS):
            middle = clean[-1] + (step + 0.5) / STEPS * (there[-1] - clean[-1])
            leaf = middle.clone().requires_grad_()

            def put(layer: int, post: Tensor) -> Tensor:
                if layer != 1:
                    return post
                return torch.cat([post[:, :-1], leaf[None, None]], dim=1)  # noqa: B023

            value = hand.run(example.prompt, put)[1]
            total += torch.autograd.grad(value, leaf)[0] / STEPS
        wanted = (there[-1] - clean[-1]) * total
        assert torch.allclose(found[:, place], wanted, atol=1e-5)


def test_without_twins_the_baseline_is_the_mean(tiny: Any, hand: ByHand) -> None:
    examples = [ls.Example(e.id, e.prompt, answer=e.answer, foil=e.foil) for e in twins(6)]
    found = expected_changes(inputs_of(tiny, examples, -1))[2, 0]
    posts = [hand.neurons(example.prompt)[2][-1] for example in examples]
    mean = torch.stack(posts).mean(0)
    for place, example in enumerate(examples):
        seen, value = hand.run(example.prompt)
        slope = torch.autograd.grad(value, seen[2])[0][0, -1]
        assert torch.allclose(found[:, place], (mean - posts[place]) * slope, atol=1e-5)


class _Held:
    """The rules of RelP in the Hugging Face modules: what each holds is detached."""

    def __init__(self, hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for block in hf.model.layers:
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
                monkeypatch.setattr(projection, "forward", self.cut(projection.forward))
            monkeypatch.setattr(block.mlp, "forward", self.gated(block.mlp))
        norms = [m for m in hf.modules() if "RMSNorm" in type(m).__name__]
        for norm in norms:
            monkeypatch.setattr(norm, "forward", self.scaled(norm))

    @staticmethod
    def cut(forward: Any) -> Any:
        return lambda x: forward(x).detach()

    @staticmethod
    def scaled(norm: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            scale = (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt().detach()
            return norm.weight * x / scale

        return forward

    @staticmethod
    def gated(mlp: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            line = gate * (silu(gate) / gate).detach()
            product = line * up
            return mlp.down_proj(product / 2 + (product / 2).detach())

        return forward


def test_relevance_follows_the_rules_of_relp(
    tiny: Any, hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales and patterns held, act as a line, half of each product: differentiated as a whole."""
    examples = twins(5)
    found = expected_changes(inputs_of(tiny, examples, [-2, -1]), "relevance")
    there = [hand.neurons(str(example.corrupted)) for example in examples]
    plain = [float(hand.run(example.prompt)[1].detach()) for example in examples]
    _Held(hand.hf, monkeypatch)
    for place, example in enumerate(examples):
        seen, value = hand.run(example.prompt)
        assert float(value.detach()) == pytest.approx(plain[place], abs=1e-4)
        slopes = torch.autograd.grad(value, seen)
        for layer in range(N_LAYERS):
            wanted = (there[place][layer][-2:] - seen[layer][0, -2:]) * slopes[layer][0, -2:]
            assert torch.allclose(found[layer, :, :, place], wanted.detach(), atol=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "relevance"])
def test_the_planted_neurons_lead(tiny: Any, method: str) -> None:
    """U and N are the first two, and no decoy that writes nothing is among the first twenty."""
    examples = twins(32)
    with planted_circuit(tiny, examples, gain=8.0) as names:
        found = rank(tiny, examples, "logit_diff", method=method)
        score = dict(zip(found.frame()["name"], found.frame()["score"], strict=True))
        assert set(found.names(2)) == {names.u, names.n}
        assert not {names.mute, names.idle} & set(found.names(20))
        assert score[names.n] < 0  # towards the twin, the answer loses


def test_what_they_cannot_do_is_said(tiny: Any, nouns: Any) -> None:
    with pytest.raises(LensSkillsError, match="not to 'hook_mlp_out'"):
        rank(tiny, twins(4), "logit_diff", method="relevance", at="hook_mlp_out")
    found = rank(tiny, twins(4), "logit_diff", method="integrated_gradients", at="hook_mlp_out")
    assert len(found.score) == N_LAYERS * 32
    with pytest.raises(LensSkillsError, match="differentiates"):
        rank(tiny, nouns, "label:plural", method="relevance")
