"""What has no neurons is refused by every verb in one sentence; widths are those of the weights."""

from typing import Any

import pytest
import torch

import lens_skills as ls
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter

SIZES = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeForCausalLM": {**SIZES, **ROUTED, "head_dim": 8},
    "Glm4MoeForCausalLM": {
        **SIZES, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
        "moe_intermediate_size": 24, "first_k_dense_replace": 1, "topk_group": 1,
    },
    "OPTForCausalLM": {
        "vocab_size": 600, "hidden_size": 32, "ffn_dim": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "word_embed_proj_dim": 32, "init_std": 0.2,
    },
    "FalconForCausalLM": {
        "vocab_size": 600, "hidden_size": 32, "ffn_hidden_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "Gemma2ForCausalLM": {**SIZES, "head_dim": 8},
    "BloomForCausalLM": {"vocab_size": 600, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
WORDS = ["key", "keys", "boy", "boys", "girl", "girls", "author", "authors"]
EXAMPLES = [
    Example(f"e{place}", f"The {word} to the", answer=" is", group=f"g{place}",
            covariates={"size": float(place % 5)})
    for place, word in enumerate([*WORDS, *WORDS])
]  # fmt: skip


@pytest.fixture(scope="module")
def opened(tiny_hf: Any) -> dict[str, Any]:
    import transformers

    found = {}
    for name, sizes in MODELS.items():
        torch.manual_seed(0)
        make = getattr(transformers, name)
        plain = make(make.config_class(**sizes)).eval()
        plain.config.architectures = [name]
        found[name] = ls.load_model(plain, tokenizer=tiny_hf[1], implementation="bridge")
    return found


def verbs(model: Any) -> dict[str, Any]:
    zero, size = ls.ablate("zero"), "covariate:size"
    return {
        "score": lambda: ls.score(model, EXAMPLES, metrics=size),
        "rank": lambda: ls.rank(model, EXAMPLES, size),
        "sweep": lambda: ls.sweep(model, EXAMPLES, "all", do=zero, metric="entropy"),
        "sweep of one": lambda: ls.sweep(model, EXAMPLES, ["L1N3"], do=zero, metric="entropy"),
        "verify": lambda: ls.verify(model, EXAMPLES, ["L1N3"], do=zero, metric="entropy"),
        "hooks": lambda: zero.hooks(model, ["L1N3"]),
        "score before the nonlinearity": lambda: ls.score(
            model, EXAMPLES, metrics=size, at="mlp.hook_pre"
        ),
    }


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def test_a_mixture_of_experts_is_refused_by_every_verb_alike(opened: Any, name: str) -> None:
    said = set()
    for run in verbs(opened[name]).values():
        with pytest.raises(LensSkillsError, match="mixture of experts") as refused:
            run()
        said.add(str(refused.value).replace(" in layer 1", ""))
    assert len(said) == 1, said
    assert "hook_resid_post" in said.pop()
    scored = ls.score(
        opened[name], EXAMPLES, metrics="covariate:size", at="hook_resid_post", n_permutations=0
    )
    assert scored.n_units == 64


def test_dense_layers_beside_experts_can_be_used(opened: Any) -> None:
    model = opened["Glm4MoeForCausalLM"]
    assert as_adapter(model).mlp_widths == (48, 0)
    with pytest.raises(LensSkillsError, match=r"no neurons in layer 1.*layers=\[0\]"):
        ls.score(model, EXAMPLES, metrics="covariate:size")
    scored = ls.score(model, EXAMPLES, metrics="covariate:size", layers=[0], n_permutations=0)
    assert scored.n_units == 48
    top = scored["covariate:size"].top(2)
    mean = ls.ablate("mean", over=EXAMPLES)
    assert ls.sweep(model, EXAMPLES, top, do=mean, metric="entropy").names == tuple(top.names)
    with pytest.raises(LensSkillsError, match="no neurons in layer 1"):
        mean.hooks(model, ["L1N3"])


@pytest.mark.parametrize(
    ("name", "width"),
    [("OPTForCausalLM", 72), ("FalconForCausalLM", 72), ("Gemma2ForCausalLM", 48),
     ("BloomForCausalLM", 128)],
)  # fmt: skip
def test_widths_are_those_of_the_weights(opened: Any, name: str, width: int) -> None:
    adapter = as_adapter(opened[name])
    assert adapter.mlp_widths == (width, width)
    assert adapter.d_mlp == width
    adapter.check_site()


def test_layers_of_several_widths_are_named(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = as_adapter(opened["Gemma2ForCausalLM"])
    monkeypatch.setitem(adapter.__dict__, "mlp_widths", (48, 24))
    with pytest.raises(LensSkillsError, match=r"48 in layer 0, 24 in layer 1.*layers=\[0\]"):
        adapter.check_site()
    adapter.check_site(layers=[1])


def test_an_encoder_is_refused_at_every_site(tiny_hf: Any) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    plain = BertForMaskedLM(BertConfig(**sizes)).eval()
    plain.config.architectures = ["BertForMaskedLM"]

    def score() -> None:
        model = ls.load_model(plain, tokenizer=tiny_hf[1], implementation="bridge")
        ls.score(model, EXAMPLES, metrics="covariate:size", at="hook_resid_post")

    with pytest.raises(LensSkillsError):
        score()


def test_what_only_looks_like_neurons_is_told_by_trying(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_skills.models import neurons

    adapter = as_adapter(opened["OPTForCausalLM"])
    monkeypatch.setattr(neurons, "_known", type(neurons._known)())
    wrong = adapter.weight_out(0).flip(0)
    monkeypatch.setattr(adapter, "weight_out", lambda layer: wrong)
    with pytest.raises(LensSkillsError, match="does not feed one output matrix"):
        adapter.check_site()
