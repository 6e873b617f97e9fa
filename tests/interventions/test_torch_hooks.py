"""The same edit on the plain Hugging Face model gives what TransformerLens gives."""

import copy
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
    """Tiny models whose blocks are put together in different ways; the class, then its sizes."""
    sizes = {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    grouped = {**sizes, "num_key_value_heads": 2}
    old = {
        "vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "initializer_range": 0.2,
    }  # fmt: skip
    plain = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}
    scaled = {"residual_multiplier": 0.3, "embedding_multiplier": 2.0}
    return {
        "GPT2LMHead": old,
        "GPTNeoXForCausalLM": sizes,
        "Qwen2ForCausalLM": grouped,
        "GPTJForCausalLM": {**old, "rotary_dim": 4},
        "OPTForCausalLM": {
            **{k: sizes[k] for k in list(sizes)[:1] + list(sizes)[3:6]},
            "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 72, "init_std": 0.2,
        },
        "BloomForCausalLM": {**plain, "n_layer": 2, "n_head": 4},
        "FalconForCausalLM": {**plain, "ffn_hidden_size": 72, "num_attention_heads": 4},
        "MptForCausalLM": {
            "vocab_size": 600, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2,
        },
        "Gemma2ForCausalLM": {**grouped, "head_dim": 8},
        "Olmo2ForCausalLM": grouped,
        "GraniteForCausalLM": {**grouped, **scaled},
    }  # fmt: skip


def family(name: str, tokenizer: Any) -> tuple[Any, Any]:
    """A tiny model, and a copy of it in TransformerLens."""
    import transformers

    make = getattr(transformers, name if name.endswith("LM") else f"{name}Model")
    torch.manual_seed(0)
    plain = make(make.config_class(**families()[name])).eval()
    plain.config.architectures = [make.__name__]
    return plain, ls.load_model(copy.deepcopy(plain), tokenizer=tokenizer)


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


@pytest.mark.parametrize("name", families())
def test_other_families(tiny_hf: Any, name: str) -> None:
    plain, model = family(name, tiny_hf[1])
    tokens, edit = torch.arange(1, 9)[None], scale(by=-1)
    clean = shares(plain, tokens)
    for unit in ("L1N5", "L0H2", "L0H2.3", "L1MLP", "L0R5", "L1R5.pre"):
        if (name, unit) == ("GraniteForCausalLM", "L1MLP"):
            # Scaled on its way into the residual stream: no module returns what is added.
            with (
                pytest.raises(LensSkillsError, match="neither what a module"),
                edit.torch_hooks(plain, [unit], adapter=model),
            ):
                pass
            continue
        expected = with_hooks(model, tokens, edit, [unit], position="all")
        with edit.torch_hooks(plain, [unit], adapter=model, position="all"):
            found = shares(plain, tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert float((found - clean).abs().max()) > 1e-3, unit
    assert torch.equal(shares(plain, tokens), clean)


def test_one_edit_inside_another(tiny: Any, tiny_hf: Any) -> None:
    plain, tokens = tiny_hf[0], tiny.to_tokens("The keys to the cabinet")
    first, second = clamp(to=1.5), scale(by=0)
    with (
        first.torch_hooks(plain, ["L0N5"], adapter=tiny),
        second.torch_hooks(plain, ["L1H2"], adapter=tiny),
    ):
        found = shares(plain, tokens)
    hooks = [*first.hooks(tiny, ["L0N5"]), *second.hooks(tiny, ["L1H2"])]
    with torch.no_grad():
        expected = tiny.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_another_model_is_refused(tiny: Any, tiny_hf: Any) -> None:
    other = copy.deepcopy(tiny_hf[0])
    torch.nn.init.normal_(other.model.layers[2].mlp.down_proj.weight)
    with (
        pytest.raises(LensSkillsError, match="must be the same model"),
        scale(by=0).torch_hooks(other, ["L0N1"], adapter=tiny),
    ):
        pass


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
        pytest.raises(LensSkillsError, match=r"'attn\.hook_rot_q' of layer 0 is neither"),
        scale(by=0).torch_hooks(tiny_hf[0], ["L0.attn.hook_rot_q.1"], adapter=tiny),
    ):
        pass
    with (
        pytest.raises(LensSkillsError, match="no stack of 4 blocks"),
        scale(by=0).torch_hooks(nn.Linear(2, 2), ["L0N1"], adapter=tiny),
    ):
        pass
