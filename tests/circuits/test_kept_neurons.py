"""Neurons kept or replaced: against the Hugging Face model run by hand, and a planted neuron."""

from typing import Any

import pytest
import torch
from torch import Tensor

import lens_skills as ls
from lens_skills.circuits.edge_attribution import relevance_gradients
from lens_skills.circuits.kept_neurons import KeptNeurons, strongest
from lens_skills.circuits.paired_cache import PairedCache, paired_caches
from lens_skills.circuits.targets import AnswerTarget
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.sublayers import ModelWeights
from tests.planted_circuit import N, U, planted_circuit, twins

ANSWER = AnswerTarget(ls.logit_diff())
WORDS = (" girl", " table")


def caches_of(model: Any, examples: Any, n_columns: int = 3) -> list[PairedCache]:
    weights = ModelWeights(as_adapter(model))
    return paired_caches(weights, examples, ls.logit_diff(), n_columns)


def by_hand(
    hf: Any, adapter: Any, prompt: str, kept: Tensor | None = None, values: Any = None
) -> tuple[list[Tensor], float]:
    """Every layer's neurons of one prompt, and its logit difference, some of them replaced."""
    seen: list[Tensor] = []
    handles = []
    for layer, block in enumerate(hf.model.layers):

        def put(module: Any, args: Any, layer: int = layer) -> Any:
            post = args[0].clone()
            if kept is not None:
                n = kept.shape[1]
                post[0, -n:] = torch.where(kept[layer], post[0, -n:], values[layer][-n:])
            seen.append(post[0].detach())
            return (post,)

        handles.append(block.mlp.down_proj.register_forward_pre_hook(put))
    try:
        with torch.no_grad():
            logits = hf(torch.tensor([adapter.encode(prompt)])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    right, wrong = (adapter.encode_plain(word)[0] for word in WORDS)
    return seen, float(logits[right] - logits[wrong])


@pytest.mark.parametrize("values", ["twin", "mean"])
def test_each_mask_is_the_pass_it_says(tiny: Any, tiny_hf: Any, values: Any) -> None:
    """All, none, and half of the units at random, at three positions."""
    examples, adapter = twins(6), as_adapter(tiny)
    engine = KeptNeurons(caches_of(tiny, examples), ANSWER, values=values)
    assert engine.shape == (4, 3, 48)
    random = torch.rand(engine.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masks = torch.stack([torch.ones_like(random), torch.zeros_like(random), random])
    found = engine.measure(masks)
    there = [by_hand(tiny_hf[0], adapter, str(example.corrupted))[0] for example in examples]
    means = [torch.stack([one[layer] for one in there]).mean(0) for layer in range(4)]
    for place, example in enumerate(examples):
        base = there[place] if values == "twin" else means
        for row, mask in enumerate(masks):
            wanted = by_hand(tiny_hf[0], adapter, example.prompt, mask, base)[1]
            assert found[row, place] == pytest.approx(wanted, abs=1e-4)
    assert torch.allclose(found[0], engine.whole(), atol=1e-5)
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_one_column_stands_for_all_positions(tiny: Any) -> None:
    engine = KeptNeurons(caches_of(tiny, twins(6)), ANSWER)
    mask = torch.rand(1, 4, 1, 48, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(engine.measure(mask), engine.measure(mask.expand(1, 4, 3, 48)))


def test_the_planted_path_is_kept_by_its_two_neurons(tiny: Any) -> None:
    """Over layer 0, which U reads, U and N alone carry the gap; without either it is gone."""
    examples = twins(24)
    with planted_circuit(tiny, examples, gain=8.0):
        engine = KeptNeurons(caches_of(tiny, examples, 1), ANSWER)
        masks = torch.zeros(4, 4, 1, 48, dtype=torch.bool)
        masks[:, 0] = True
        masks[1:, 1, 0, U] = masks[1:, 2, 0, N] = True
        masks[2, 1, 0, U] = masks[3, 2, 0, N] = False
        empty, both, no_u, no_n = engine.measure(masks).mean(1).tolist()
        gap = float(engine.whole().mean()) - empty
        assert gap > 1
        assert (both - empty) / gap > 0.8
        assert max(no_u - empty, no_n - empty) / gap < 0.3


def test_a_mean_needs_one_length_and_masks_one_width(tiny: Any) -> None:
    examples = [*twins(4), *twins(4, length=6, seed=1)]
    caches = caches_of(tiny, examples)
    with pytest.raises(LensSkillsError, match="no mean at a position"):
        KeptNeurons(caches, ANSWER, values="mean")
    mixed = [*caches_of(tiny, twins(4)), *caches_of(tiny, twins(4), 2)]
    with pytest.raises(LensSkillsError, match="n_columns="):
        KeptNeurons(mixed, ANSWER)


def test_the_strongest_units_nest() -> None:
    scores = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    masks = strongest(scores, [1, 4, 30])
    assert masks.flatten(1).sum(1).tolist() == [1, 4, 30]
    assert bool((masks[0] <= masks[1]).all())
    assert float(scores[masks[1]].min()) > float(scores[~masks[1]].max())


def test_relevance_is_conserved_through_every_gated_product(tiny: Any) -> None:
    """a · coefficient of the neurons equals that of their pre-activations, and at the top m."""
    (cache,) = caches_of(tiny, twins(8))
    slopes = relevance_gradients(cache, ANSWER)
    assert slopes.answer is not None
    for layer in range(4):
        pre = cache.weights.neurons(layer, cache.clean.middle[layer])
        above = (cache.post(layer) * slopes.neurons[layer]).sum((1, 2))
        both = [(pre[c] * slopes.by[layer, c]).sum((1, 2)) for c in ("gate", "up")]
        below = torch.stack(both).sum(0)
        assert torch.allclose(above, below, atol=1e-5)
        assert float(above.abs().max()) > 1e-4
    top = (cache.post(3) * slopes.neurons[3])[:, -1].sum(1)
    direct = (cache.clean.middle[3][:, -1] * slopes.answer).sum(1)
    whole = ANSWER.of(cache, {}, cache.clean.leaving)[0]
    assert torch.allclose((top + direct).double(), whole, atol=1e-4)
