"""Odd things that are opened, or refused clearly: quantised, headless, encoders, other dtypes."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lens_skills as ls
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, load_model
from tests.models.conftest import IMPLEMENTATIONS, same_as
from tests.models.test_parity import make

SMALL: dict[str, Any] = {
    "vocab_size": 600, "d_model": 32, "d_kv": 8, "d_ff": 52, "num_layers": 2, "num_heads": 4
}  # fmt: skip
BERT: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 52, "initializer_range": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_rotations_that_a_cast_has_rounded(tiny_hf: Any, implementation: str, cast: Any) -> None:
    """``.half()`` rounds the rotary frequencies too; from_pretrained keeps them."""
    plain = copy.deepcopy(tiny_hf[0]).to(cast)
    model = load_model(plain, tokenizer=tiny_hf[1], implementation=implementation)
    exact = copy.deepcopy(tiny_hf[0])
    exact.load_state_dict(plain.state_dict())  # rounded weights, whole frequencies
    same_as(model, exact)


def test_a_configuration_without_architectures(tiny_hf: Any) -> None:
    plain = make("OlmoForCausalLM")
    assert not plain.config.architectures
    same_as(load_model(plain, tokenizer=tiny_hf[1]), plain)
    assert not plain.config.architectures


@pytest.fixture(params=["4bit", "8bit"], scope="module")
def packed(request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_hf: Any) -> tuple[Any, Any]:
    """A model that bitsandbytes has quantised, and its folder."""
    pytest.importorskip("bitsandbytes")
    # It says at every multiplication that it casts.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    plain, folders = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("packed")
    make("LlamaForCausalLM", hidden_size=64, intermediate_size=128).save_pretrained(plain)
    how = transformers.BitsAndBytesConfig(**{f"load_in_{request.param}": True})
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, quantization_config=how)
    model.save_pretrained(folders)
    tiny_hf[1].save_pretrained(folders)
    return model, folders


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_quantised_model_is_read_by_its_activations(
    packed: tuple[Any, Path], tiny_hf: Any, where: str
) -> None:
    plain, folder = packed
    opened = (plain, tiny_hf[1]) if where == "memory" else (folder, None)
    model = load_model(opened[0], tokenizer=opened[1])
    same_as(model, plain, atol=0.2)
    adapter = as_adapter(model)
    assert adapter.implementation == "bridge"
    assert len(adapter.fingerprint()) == 64
    assert adapter.d_mlp == 128
    scores = ls.score(model, ls.tasks.agreement(24), metrics=[ls.metrics.logit_diff()])
    assert bool(scores.r.isfinite().any())
    tokens = torch.arange(12)[None] + 3
    at = torch.full((1, 1), 11)
    with ls.edited(model, ["L1N3"], do=ls.ablate("zero")):
        edited = adapter.forward(tokens, tokens > 0, readers={}, logits_at=at)
    assert not torch.equal(edited, adapter.forward(tokens, tokens > 0, readers={}, logits_at=at))
    for need in (
        lambda: adapter.weight_out(0),
        lambda: adapter.weight_of(model.blocks[0].attn, "W_O"),
    ):
        with pytest.raises(LensSkillsError, match=r"packed \(quantised\)"):
            need()


def test_what_predicts_no_next_token_is_refused(tiny_hf: Any, tmp_path: Path) -> None:
    tokenizer = tiny_hf[1]
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL))
    bert = transformers.BertConfig(**BERT)
    torch.manual_seed(0)
    cases = {
        "encoder-decoder": t5,
        "no vocabulary projection": tiny_hf[0].model,
        "as encoders do": transformers.BertLMHeadModel(bert),
    }
    for said, plain in cases.items():
        with pytest.raises(LensSkillsError, match=said):
            load_model(plain, tokenizer=tokenizer)
    with pytest.raises(LensSkillsError, match="as encoders do"):
        load_model(transformers.BertForMaskedLM(bert), tokenizer=tokenizer)
    for name, plain, said in (
        ("t5", t5, "encoder-decoder"),
        ("headless", tiny_hf[0].model, r"no weights for lm_head\.weight"),
        ("bert", transformers.BertForMaskedLM(bert), "as encoders do"),
    ):
        plain.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(LensSkillsError, match=said):
            load_model(tmp_path / name)


def test_a_tokenizer_larger_than_the_vocabulary(tiny_hf: Any) -> None:
    plain = make("LlamaForCausalLM", vocab_size=300)
    with pytest.warns(UserWarning, match=r"135 tokens \(ids 300 to 434\).*300 embeddings"):
        model = load_model(plain, tokenizer=tiny_hf[1])
    adapter = as_adapter(model)
    for read in (adapter.encode, adapter.encode_plain):
        with pytest.raises(LensSkillsError, match=r"only 300 embeddings"):
            read(tiny_hf[1].decode([5, 430, 6]))
    assert adapter.encode("!")


def test_post_norm_is_opened_or_refused_in_words(tiny_hf: Any) -> None:
    """As in opt-350m, with and without its narrower embedding."""
    for width in (16, 32):
        config = transformers.OPTConfig(
            vocab_size=600, hidden_size=32, ffn_dim=52, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=width, do_layer_norm_before=False,
        )  # fmt: skip
        plain = transformers.OPTForCausalLM(config).eval()
        if width == 16:
            same_as(load_model(plain, tokenizer=tiny_hf[1]), plain)
        else:
            with pytest.raises(LensSkillsError, match=r"cannot be opened.*final_layer_norm"):
                load_model(plain, tokenizer=tiny_hf[1])
