"""What a neuron writes, against plain PyTorch on the Hugging Face model."""

from typing import Any

import pytest
import torch

from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import token_logits
from lens_skills.models import as_adapter
from lens_skills.tasks.word_lists import neutral_texts


def by_hand(hf: Any, adapter: Any, texts: list[str], layer: int, neuron: int) -> torch.Tensor:
    """W_out row × norm weight × mean over texts of 1 / rms(final residual), through lm_head."""
    inverse = []
    seen: list[torch.Tensor] = []
    norm = hf.model.norm
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1]))
    try:
        for text in texts:
            with torch.no_grad():
                hf(torch.tensor([adapter.encode(text)]))
            residual = seen[-1].double()
            inverse.append(1 / (residual.square().mean() + norm.variance_epsilon).sqrt())
    finally:
        handle.remove()
    row = hf.model.layers[layer].mlp.down_proj.weight[:, neuron].detach().double()
    scaled = row * norm.weight.detach().double() * torch.stack(inverse).mean()
    logits = hf.lm_head.weight.detach().double() @ scaled
    return logits - logits.mean()


@pytest.mark.parametrize("unit", [(0, 3), (3, 17)])
def test_it_is_what_plain_pytorch_computes(tiny: Any, tiny_hf: Any, unit: tuple[int, int]) -> None:
    adapter = as_adapter(tiny)
    texts = [f"The key to the cabinet {number}" for number in range(5)]
    over = [Example(id=text, prompt=text) for text in texts]
    wanted = by_hand(tiny_hf[0], adapter, texts, *unit)
    found = token_logits(tiny, unit, k=8, over=over)
    assert found.name == f"L{unit[0]}N{unit[1]}"
    order = wanted.argsort(descending=True)
    for side, places in ((found.promoted, order[:8]), (found.suppressed, order.flip(0)[:8])):
        assert [token for token, _ in side] == [adapter.decode(int(place)) for place in places]
        numbers = torch.tensor([logit for _, logit in side], dtype=torch.float64)
        torch.testing.assert_close(numbers, wanted[places], atol=1e-4, rtol=1e-4)
    assert found.spread == pytest.approx(wanted.std(correction=0).item(), rel=1e-4)


def test_without_examples_plain_sentences_say_how_large_the_residual_is(
    tiny: Any, tiny_hf: Any
) -> None:
    wanted = by_hand(tiny_hf[0], as_adapter(tiny), list(neutral_texts()[:16]), 1, 2)
    found = token_logits(tiny, "L1N2", k=1)
    assert found.promoted[0][1] == pytest.approx(wanted.max().item(), rel=1e-3)
    assert "RMSNorm at a frozen scale" in repr(found)
    assert found.frame()["direction"].tolist() == ["promoted", "suppressed"]


def test_refusals(tiny: Any) -> None:
    with pytest.raises(LensSkillsError, match="no unit 'L9N1'"):
        token_logits(tiny, "L9N1")
    with pytest.raises(LensSkillsError, match="no single neuron"):
        token_logits(tiny, "L1H1")
