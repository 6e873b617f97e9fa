"""The effective vocabulary projection: plain NumPy says the same, whatever is folded in."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter
from lens_skills.models.weights import Unembedding, final_gain, null_size
from tests.tiny_tokenizer import tiny_tokenizer


def dense(projection: Any, gain: Any, centred: bool) -> np.ndarray:
    """W written out: the gain multiplied in, the means taken off. [d_model d_vocab]"""
    weight = np.asarray(projection, dtype=np.float64)
    weight = np.asarray(gain, dtype=np.float64)[:, None] * weight
    weight = weight - weight.mean(axis=1, keepdims=True)
    return weight - weight.mean(axis=0, keepdims=True) if centred else weight


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """A model with LayerNorms, which remove the mean, and biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=2, n_positions=64, n_inner=40,
        bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            model.transformer.ln_f.weight.add_(0.3 * torch.randn(24))
            model.transformer.ln_f.bias.add_(0.3 * torch.randn(24))
    return ls.load_model(model, tokenizer=tokenizer), model


def check(found: Unembedding, weight: np.ndarray, rows: np.ndarray, k: int) -> None:
    rows = rows.astype(np.float64)
    if found.centred:
        rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1)
    tensor = torch.from_numpy(rows)
    np.testing.assert_allclose(found.norm(tensor), length, rtol=1e-10)
    cos = rows @ weight / length[:, None] / np.linalg.norm(weight, axis=0)
    np.testing.assert_allclose(found.logit_variance(tensor), cos.var(axis=1, ddof=1), rtol=1e-5)
    left, _, _ = np.linalg.svd(weight, full_matrices=False)
    share = np.linalg.norm(rows @ left[:, -k:], axis=1) / length
    np.testing.assert_allclose(found.null_share(tensor, k), share, atol=1e-6)
    pattern = np.random.default_rng(0).normal(size=weight.shape[1])
    logits = rows @ weight
    wanted = [np.corrcoef(row, pattern)[0, 1] for row in logits]
    np.testing.assert_allclose(found.along(tensor, torch.from_numpy(pattern)), wanted, atol=1e-6)


def test_it_is_the_projection_written_out(tiny: Any, tiny_hf: tuple[Any, Any]) -> None:
    adapter, model = as_adapter(tiny), tiny_hf[0]
    gain = model.model.norm.weight.detach().numpy()
    found = Unembedding.of(adapter)
    ratio = final_gain(adapter)[0].numpy() / gain
    np.testing.assert_allclose(ratio / ratio[0], 1, atol=1e-4)
    assert not found.centred
    assert "times the final norm's gain" in found.said
    weight = dense(model.lm_head.weight.detach().T, gain, centred=False)
    rows = model.model.layers[2].mlp.down_proj.weight.detach().T.numpy()
    check(found, weight, rows, k=3)


def test_a_layer_norm_removes_the_mean(gpt2: tuple[Any, Any]) -> None:
    loaded, model = gpt2
    found = Unembedding.of(as_adapter(loaded))
    assert found.centred
    assert "LayerNorm" in found.said
    gain = model.transformer.ln_f.weight.detach().numpy()
    weight = dense(model.lm_head.weight.detach().T, gain, centred=True)
    check(found, weight, model.transformer.h[1].mlp.c_proj.weight.detach().numpy(), k=3)


def test_folding_and_centring_change_nothing(tiny_hooked: Any) -> None:
    raw = Unembedding.of(as_adapter(tiny_hooked))
    folded = copy.deepcopy(tiny_hooked)
    with torch.no_grad():
        gain = folded.ln_final.w.clone()
        folded.unembed.W_U.mul_(gain[:, None])
        folded.ln_final.w.fill_(1.0)
        folded.unembed.W_U.sub_(folded.unembed.W_U.mean(1, keepdim=True))
    other = Unembedding.of(as_adapter(folded))
    assert "no gain of its own" in other.said
    rows = tiny_hooked.blocks[1].mlp.W_out.detach()
    pattern = torch.randn(raw.projection.shape[1], generator=torch.Generator().manual_seed(3))
    for name in ("norm", "logit_variance"):
        torch.testing.assert_close(
            getattr(raw, name)(rows), getattr(other, name)(rows), rtol=1e-4, atol=1e-9
        )
    torch.testing.assert_close(
        raw.null_share(rows, 2), other.null_share(rows, 2), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        raw.along(rows, pattern), other.along(rows, pattern), rtol=0, atol=1e-4
    )


def test_random_directions_have_the_share_chance_gives(tiny: Any) -> None:
    found = Unembedding.of(as_adapter(tiny))
    rows = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    square = found.null_share(rows, 4).square().mean()
    assert abs(float(square) - 4 / 32) < 0.002
    assert null_size(768) == 8


def test_a_model_without_a_final_norm_is_refused(tiny_hooked: Any) -> None:
    model = copy.deepcopy(tiny_hooked)
    model.ln_final = torch.nn.Identity()
    with pytest.raises(LensSkillsError, match="neither a LayerNorm nor an RMSNorm"):
        Unembedding.of(as_adapter(model))
