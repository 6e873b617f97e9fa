"""The same edit on the plain Hugging Face model gives what TransformerLens gives."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.edits import Edit, ablate, clamp, patch, scale, steer
from tests.interventions.test_edits import examples

UNITS = ["L1N5", "L0N47", "L0H2", "L1MLP"]
EDITS = {
    "zero": ablate("zero"),
    "mean": ablate("mean", over=examples()),
    "resample": ablate("resample", over=examples()),
    "noise": ablate("noise", over=examples()),
    "steer": steer(by=2, over=examples()),
    "patch": patch(examples()[-1]),
    "clamp": clamp(to=1.5),
    "scale": scale(by=-1),
}


def families() -> dict[str, Any]:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    common = {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    gpt2 = GPT2Config(
        vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
    )
    return {
        "gpt2": (GPT2LMHeadModel, gpt2),
        "neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**common)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**common, num_key_value_heads=2)),
    }


def shares(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(tokens)
    return (out if isinstance(out, Tensor) else out.logits).log_softmax(-1)


def with_hooks(model: Any, tokens: Tensor, edit: Edit, units: list[str], **options: Any) -> Tensor:
    with torch.no_grad():
        hooks = edit.hooks(model, units, **options)
        return model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)


def n_torch_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "position"), [*((kind, -1) for kind in EDITS), ("mean", 1), ("noise", "all")]
)
def test_every_edit_on_the_tiny_llama(tiny: Any, tiny_hf: Any, kind: str, position: Any) -> None:
    plain, edit = tiny_hf[0], EDITS[kind]
    tokens = tiny.to_tokens(["The keys to the cabinet", "The boys to the cabinet"])
    expected = with_hooks(tiny, tokens, edit, UNITS, position=position)
    clean = shares(plain, tokens)
    with edit.torch_hooks(plain, UNITS, adapter=tiny, position=position) as handles:
        assert len(handles) == 4
        found = shares(plain, tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((found - clean).abs().max()) > 1e-3, "nothing was edited"
    assert n_torch_hooks(plain) == 0
    assert torch.equal(shares(plain, tokens), clean)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "qwen2"])
def test_other_families(tiny_hf: Any, kind: str) -> None:
    make, config = families()[kind]
    torch.manual_seed(0)
    plain = make(config).eval()
    model = ls.load_model(plain, tokenizer=tiny_hf[1])
    tokens = torch.arange(1, 9)[None]
    for unit in UNITS:
        edit = clamp(to=1.5)
        expected = with_hooks(model, tokens, edit, [unit], position="all")
        with edit.torch_hooks(plain, [unit], adapter=model, position="all"):
            found = shares(plain, tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert float((found - shares(plain, tokens)).abs().max()) > 1e-3, unit


def test_right_padding_needs_a_mask_and_is_right_with_one(tiny: Any, tiny_hf: Any) -> None:
    plain, edit = tiny_hf[0], clamp(to=9.0)
    long, short = (tiny.to_tokens(text)[0] for text in ("The keys to the cabinet", "The boys"))
    tokens = torch.full((2, len(long)), tiny.tokenizer.pad_token_id)
    tokens[0], tokens[1, : len(short)] = long, short
    mask = torch.arange(len(long)) < torch.tensor([[len(long)], [len(short)]])
    with edit.torch_hooks(plain, ["L1N5"], adapter=tiny, mask=mask), torch.no_grad():
        found = plain(tokens, attention_mask=mask.long()).logits.log_softmax(-1)
    expected = with_hooks(tiny, short[None], edit, ["L1N5"])
    torch.testing.assert_close(found[1, : len(short)], expected[0], atol=1e-4, rtol=0)


def test_generation_of_the_plain_model(tiny: Any, tiny_hf: Any) -> None:
    plain, tokens = tiny_hf[0], tiny.to_tokens("The keys to the cabinet")
    units, edit = [(1, index) for index in range(24)], clamp(to=25.0)

    def generate() -> list[int]:
        options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        mask = torch.ones_like(tokens)
        return plain.generate(tokens, attention_mask=mask, pad_token_id=0, **options)[0].tolist()

    text = tokens
    for step in range(4):
        # The last prompt token and every generated one, in a pass over the whole text.
        hooks = edit.hooks(tiny, units, position=[-back - 1 for back in range(step + 1)])
        with torch.no_grad():
            best = tiny.run_with_hooks(text, fwd_hooks=hooks)[0, -1].argmax()
        text = torch.cat([text, best.view(1, 1)], dim=1)
    with edit.torch_hooks(plain, units, adapter=tiny):
        assert generate() == text[0].tolist()
    assert generate() != text[0].tolist(), "the edit changed nothing"


def test_after_an_exception_no_handle_is_left(tiny: Any, tiny_hf: Any) -> None:
    plain = tiny_hf[0]

    def fail() -> None:
        with scale(by=0).torch_hooks(plain, UNITS, adapter=tiny):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert n_torch_hooks(plain) == 0


def test_what_has_no_place_in_the_plain_model_is_refused(tiny: Any, tiny_hf: Any) -> None:
    with (
        pytest.raises(LensSkillsError, match=r"'mlp\.hook_pre' has no place"),
        scale(by=0).torch_hooks(tiny_hf[0], ["L0N1"], adapter=tiny, at="mlp.hook_pre"),
    ):
        pass
    with (
        pytest.raises(LensSkillsError, match="no stack of 4 blocks"),
        scale(by=0).torch_hooks(nn.Linear(2, 2), ["L0N1"], adapter=tiny),
    ):
        pass
