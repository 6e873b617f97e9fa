"""A unit says its site in its name, wherever it is printed; what is no neuron is refused alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lens_skills as ls
from lens_skills.activations.components import (
    Components,
    parse_components,
    parse_neurons,
    site_of,
    unit_name,
)
from lens_skills.activations.stream import stream
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter

SITES = {
    "mlp.hook_post": "L1N18",
    "mlp.hook_pre": "L1N18.pre",
    "mlp.hook_pre_linear": "L1N18.pre_linear",
    "hook_resid_post": "L1R18",
    "hook_resid_mid": "L1R18.mid",
    "hook_resid_pre": "L1R18.pre",
    "attn.hook_z": "L1H2.2",
    "hook_mlp_out": "L1MLP.18",
    "hook_attn_out": "L1ATTN.18",
    "attn.hook_k": "L1.attn.hook_k.14",
}
WORDS = [
    "key",
    "keys",
    "boy",
    "boys",
    "girl",
    "girls",
    "author",
    "authors",
    "doctor",
    "doctors",
    "judge",
    "actor",
    "table",
    "cabinet",
]
EXAMPLES = [
    Example(f"e{place}", f"The {word} to the {WORDS[-1 - place % 7]}", group=f"g{place}",
            covariates={"size": float((place * 7) % 11)})
    for place, word in enumerate([*WORDS, *WORDS[3:]])
]  # fmt: skip


@given(st.sampled_from(sorted(SITES)), st.integers(0, 99), st.integers(0, 9999), st.integers(1, 99))
def test_names_read_back(at: str, layer: int, index: int, d_head: int) -> None:
    name = unit_name(layer, index, at, d_head)
    assert site_of([name]) == at
    assert parse_neurons([name], at, d_head).tolist() == [[layer, index]]


@pytest.mark.parametrize("at", SITES)
def test_every_site_has_its_own_name(tiny: Any, at: str) -> None:
    adapter, name = as_adapter(tiny), SITES[at]
    index = 14 if at == "attn.hook_k" else 18
    (unit,) = parse_components(adapter, [name])
    assert (unit.name, unit.layer, unit.index, unit.site) == (name, 1, index, at)
    assert str(unit) == name
    rows = parse_components(adapter, [(1, index)], at=at)
    assert rows == parse_components(adapter, rows) == (unit,)
    assert parse_components(adapter, rows, at=at).names == [name]


def test_a_name_and_another_site_are_refused_with_the_way_out(tiny: Any) -> None:
    adapter = as_adapter(tiny)
    with pytest.raises(LensSkillsError, match=r"L1N3 is at 'mlp\.hook_post'.*'L1R47'"):
        parse_components(adapter, ["L1N3"], at="hook_resid_post")
    assert parse_components(adapter, ["L1N3"], at="mlp.hook_pre").names == ["L1N3.pre"]
    for name in ("L1H2.8", "L1R32", "L1Q3", "L1.attn.nowhere.3", "L1R", "L1H"):
        with pytest.raises(LensSkillsError):
            parse_components(adapter, [name])
    with pytest.raises(LensSkillsError, match="several are named"):
        ls.score(tiny, EXAMPLES, metrics="covariate:size", neurons=["L1N3", "L1R3"])
    with pytest.raises(LensSkillsError, match="many features at once"):
        ls.score(tiny, EXAMPLES, metrics="covariate:size", neurons=["L1H2"])


@pytest.mark.parametrize("at", ["hook_resid_post", "attn.hook_z", "mlp.hook_pre"])
def test_what_was_found_at_a_site_stays_there(tiny: Any, at: str) -> None:
    metric = "covariate:size"
    scores = ls.score(tiny, EXAMPLES, metrics=metric, at=at, n_permutations=19, n_rotations=0)
    top = scores[metric].top(3)
    assert isinstance(top, Components)
    assert {unit.site for unit in top} == {at}
    assert top.names == scores.frame()["name"][:3].tolist()
    assert all(name in repr(scores) for name in top.names)
    assert not any(f"L{unit.layer}N{unit.index}:" in repr(scores) for unit in top)
    again = ls.score(tiny, EXAMPLES, metrics=metric, neurons=top, n_permutations=0)
    assert again.site == at
    assert again.names() == top.names
    place = scores.places[top[0].layer, top[0].index]
    assert float(again.r[0, 0, 0]) == pytest.approx(float(scores.r[0, 0, place]), abs=1e-6)
    ranked = ls.rank(tiny, EXAMPLES, metric, at=at)
    assert ranked.top(3).names == top.names == ranked.frame()["name"][:3].tolist()
    verdict = ls.sweep(tiny, EXAMPLES, top, do=ls.ablate("zero"), metric="entropy")
    assert list(verdict.names) == top.names
    # By hand, and by name alone.
    named = ls.sweep(tiny, EXAMPLES, top.names, do=ls.ablate("zero"), metric="entropy")
    assert torch.equal(verdict.total, named.total)


def hand_r(plain: Any, tokens: list[Tensor], module: Any, taken: bool, wanted: list[float]) -> Any:
    """r of every feature at the last token, by torch hooks on the plain model alone."""
    rows: list[Tensor] = []

    def keep(_module: Any, args: Any, out: Any = None) -> None:
        value = args[0] if taken else out[0] if isinstance(out, tuple) else out
        rows.append(value[0, -1].flatten())

    hook = module.register_forward_pre_hook if taken else module.register_forward_hook
    handle = hook(keep)
    with torch.no_grad():
        for row in tokens:
            plain(row)
    handle.remove()
    acts = torch.stack(rows).double().numpy()
    return np.array([np.corrcoef(column, wanted)[0, 1] for column in acts.T])


def gpt2() -> tuple[Any, Callable[[str], tuple[Any, bool]]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    plain = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    block = plain.transformer.h[1]
    return plain, {
        "mlp.hook_post": (block.mlp.c_proj, True), "mlp.hook_pre": (block.mlp.c_fc, False),
        "attn.hook_z": (block.attn.c_proj, True), "hook_mlp_out": (block.mlp, False),
        "hook_resid_post": (block, False), "hook_resid_pre": (block, True),
    }.__getitem__  # fmt: skip


def rotary(name: str) -> tuple[Any, Callable[[str], tuple[Any, bool]]]:
    import transformers

    make = getattr(transformers, name)
    sizes = {
        "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
    }  # fmt: skip
    plain = make(make.config_class(**sizes)).eval()
    plain.config.architectures = [name]
    block = plain.model.layers[1]
    out = block.post_feedforward_layernorm if name == "Gemma2ForCausalLM" else block.mlp
    return plain, {
        "mlp.hook_post": (block.mlp.down_proj, True), "mlp.hook_pre": (block.mlp.gate_proj, False),
        "attn.hook_z": (block.self_attn.o_proj, True), "hook_mlp_out": (out, False),
        "hook_resid_post": (block, False), "hook_resid_pre": (block, True),
    }.__getitem__  # fmt: skip


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_r_is_that_of_plain_forward_hooks_at_every_site(tiny_hf: Any, name: str) -> None:
    torch.manual_seed(1)
    plain, where = gpt2() if name.startswith("GPT2") else rotary(name)
    copied = type(plain)(plain.config).eval()
    copied.load_state_dict(plain.state_dict())
    copied.config.architectures = [name]
    model = ls.load_model(copied, tokenizer=tiny_hf[1])
    tokens = [torch.tensor([as_adapter(model).encode(each.prompt)]) for each in EXAMPLES]
    wanted = [each.covariates["size"] for each in EXAMPLES]
    sites = ("mlp.hook_post", "mlp.hook_pre", "attn.hook_z", "hook_mlp_out", "hook_resid_post")
    for at in (*sites, "hook_resid_pre"):
        found = ls.score(
            model, EXAMPLES, metrics="covariate:size", at=at, layers=1, n_permutations=0,
            n_rotations=0,
        )  # fmt: skip
        expected = hand_r(plain, tokens, *where(at), wanted)
        np.testing.assert_allclose(found.r[0, 0].numpy(), expected, atol=2e-4, err_msg=at)


@pytest.mark.parametrize(
    ("prompt", "piece", "joined"),
    [("The keys open it", "key", " keys"), ("The keys open it", "eys", " keys")],
)
def test_a_span_inside_of_a_token_is_refused(
    tiny: Any, prompt: str, piece: str, joined: str
) -> None:
    """Its activations are those of the whole token."""
    at = {"at": "mlp.hook_post", "position": ls.span(piece)}
    with pytest.raises(LensSkillsError, match=f"joins the span '{piece}'.*reads '{joined}'"):
        next(stream(tiny, [Example("a", prompt)], **at))
    whole = {**at, "position": ls.span("keys")}
    assert next(stream(tiny, [Example("a", prompt)], **whole)).activations.shape[0] == 1
