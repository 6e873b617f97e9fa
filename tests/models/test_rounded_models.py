"""Half precision and packed weights: norms are recognised, verbs are right or say why not."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

import lens_skills as ls
from lens_skills.diagnostics import confidence_regulators
from lens_skills.errors import LensSkillsError
from lens_skills.explanation import token_logits
from lens_skills.models import as_adapter
from lens_skills.models.weights import frozen_norm
from tests.models import families
from tests.models.family_verbs import VERBS, Bars, Case

HALVES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mean", [0.0, 0.1])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_is_recognised_in_any_dtype(kind: Any, mean: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = kind(256)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    norm = norm.to(dtype)
    residual = (3 * torch.randn(6, 256) + mean).to(dtype)
    found = frozen_norm(torch.no_grad()(norm), residual)
    assert found is not None
    gain, centred = found
    assert centred == (kind is nn.LayerNorm)
    x = residual.double()
    x = x - x.mean(-1, keepdim=True) if centred else x
    wanted = norm.weight.detach().double() / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(gain, wanted, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_no_norm_is_none(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert frozen_norm(torch.tanh, (3 * torch.randn(6, 256)).to(dtype)) is None


@pytest.fixture(scope="module")
def words() -> Any:
    return families.tokenizer()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_circuits_in_bfloat16(words: Any, family: str) -> None:
    """The total and an edge, to a tenth of what the plain model gives in the same dtype."""
    VERBS["circuit"](Case(family, "bridge", words, torch.bfloat16, Bars(0.5, 0.1, 0.1)))


@pytest.fixture(scope="module")
def packed(words: Any) -> Any:
    """A Llama of four bits, of the sizes that bitsandbytes multiplies on a CPU."""
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("hidden_size", 64), ("intermediate_size", 128)):
            patch.setitem(families.LIKE_LLAMA, name, value)
        return Case("llama", "bridge", words, quantised="4bit")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["open", "score", "sweep", "verify", "edit"])
def test_four_bits_give_what_the_plain_packed_model_gives(packed: Any, verb: str) -> None:
    VERBS[verb](packed)


@pytest.mark.filterwarnings("ignore")
def test_what_needs_packed_matrices_is_refused_in_one_sentence(packed: Any) -> None:
    texts = list(families.SENTENCES) * 2
    few, metric = list(packed.examples), ls.logit_diff()
    for asked in (
        lambda: VERBS["circuit"](packed),
        lambda: token_logits(packed.model, "L1N20"),
        lambda: confidence_regulators(
            packed.model, few, ["L1N20"], metric=metric, neutral=texts, n_controls=19
        ),
    ):
        with pytest.raises(LensSkillsError, match=r"are packed \(quantised\)"):
            asked()


@pytest.mark.filterwarnings("ignore")
def test_four_bits_in_a_kernel_without_gradients_are_refused(packed: Any) -> None:
    """They were zeros: the kernel for CPUs with AVX512-BF16 cuts the graph without a word."""
    weights = as_adapter(packed.model)._modules().parameters()
    states = [getattr(weight, "quant_state", None) for weight in weights]
    if not any(getattr(state, "packing_format_for_cpu", False) for state in states):
        pytest.skip("this CPU multiplies four bits in the ordinary kernel")
    few = list(packed.examples)
    for asked in (
        lambda: ls.prescreen(packed.model, few, metric=ls.logit_diff()),
        lambda: ls.rank(packed.model, few, "logit_diff", method="taylor"),
        lambda: ls.fit_prompt(packed.model, few[:8], n_tokens=2, epochs=1, held_out=few[8:]),
        lambda: ls.fit_prompt(
            packed.model, few[:8], n_tokens=2, epochs=1, held_out=few[8:], n_prefix=1
        ),
    ):
        with pytest.raises(LensSkillsError, match="has no gradients"):
            asked()
