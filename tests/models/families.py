"""Tiny random models of many architectures, built from configurations in memory.

Each is 3 layers wide enough to be told apart: an odd number of neurons, grouped queries, windows
shorter than the prompts, biases, norms on queries, multipliers. Weights are drawn large, so that
logits are not flat and a forgotten part shows.
"""

import math
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.tiny_tokenizer import tiny_tokenizer

LAYERS, WIDTH, NEURONS, HEADS, VOCABULARY, WINDOW = 3, 48, 67, 4, 600, 8

SENTENCES = (
    "The key to the cabinets is on the table. The keys to the cabinet are on the table.",
    "The author near the doctors was here. The authors near the doctor were here.",
    "The boy, the boys, the girl and the girls have, has; the judge saw the actor, the actors.",
    "When the girls have and the keys and then the boys and the girl was and the doctor near it.",
)

LIKE_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
LIKE_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_inner": NEURONS, "n_layer": LAYERS,
    "n_head": HEADS, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# transformers' product over experts wants rows of whole 16 bytes.
OF_16 = {"intermediate_size": 64}
EXPERTS = {**OF_16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One architecture and how to build it.

    Attributes:
        kind: transformers' ``model_type``.
        options: Of its configuration, beside those of Llama or, with ``plain``, all of them.
        plain: Whether ``options`` are everything.
        task: ``"causal"``, or what the model is made for instead.
        named: Whether the configuration names its architecture, as a saved model's does.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    task: str = "causal"
    named: bool = True


def like_gpt2(kind: str, **options: Any) -> Family:
    return Family(kind, {**LIKE_GPT2, **options}, plain=True)


def of(kind: str, **options: Any) -> Family:
    return Family(kind, options)


FALCON = {
    "ffn_hidden_size": NEURONS, "bias": False, "new_decoder_architecture": False,
    "multi_query": False, "parallel_attn": True, "alibi": False,
}  # fmt: skip
OPT = {"ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH, "activation_function": "relu"}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
WINDOWED = ["sliding_attention", "sliding_attention", "full_attention"]

FAMILIES: dict[str, Family] = {
    # One residual stream after another: GPT-2's kin.
    "gpt2": like_gpt2("gpt2", n_inner=None),
    "gpt2_odd": like_gpt2("gpt2"),
    "gpt2_scaled": like_gpt2("gpt2", n_inner=None, scale_attn_by_inverse_layer_idx=True),
    "openai-gpt": like_gpt2("openai-gpt"),
    "gpt_bigcode": like_gpt2("gpt_bigcode", multi_query=True),
    "gpt_neo": Family("gpt_neo", {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": NEURONS,
        "num_layers": 4, "num_heads": HEADS, "attention_types": [[["global", "local"], 2]],
        "window_size": WINDOW, "max_position_embeddings": 128,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }, plain=True),
    "opt": of("opt", **OPT),
    "opt_post_norm": of("opt", **OPT, do_layer_norm_before=False),
    "opt_projected": of("opt", **{**OPT, "word_embed_proj_dim": 32}),
    "xglm": of("xglm", d_model=WIDTH, ffn_dim=NEURONS, attention_heads=HEADS, num_layers=LAYERS),
    "biogpt": of("biogpt"),
    "bloom": of("bloom", n_head=HEADS, n_layer=LAYERS),
    "mpt": Family("mpt", {
        "vocab_size": VOCABULARY, "d_model": WIDTH, "n_heads": HEADS, "n_layers": LAYERS,
        "expansion_ratio": 2, "max_seq_len": 128, "bos_token_id": 1, "eos_token_id": 2,
    }, plain=True),
    # Attention and MLP beside each other.
    "gpt_neox": of("gpt_neox", rope_parameters=HALF_ROTARY),
    "gpt_neox_odd_rotary": of("gpt_neox", rope_parameters={
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    "gpt_neox_serial": of("gpt_neox", use_parallel_residual=False),
    "gptj": like_gpt2("gptj", rotary_dim=8),
    "codegen": like_gpt2("codegen", rotary_dim=8),
    "phi": of("phi"),
    "falcon": of("falcon", **FALCON),
    "falcon_new": of("falcon", **{**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": of("falcon", **{**FALCON, "alibi": True, "parallel_attn": False}),
    "persimmon": of("persimmon"),
    "stablelm": of("stablelm", rope_parameters=HALF_ROTARY),
    "stablelm_parallel": of("stablelm", rope_parameters=HALF_ROTARY, use_parallel_residual=True,
                            qk_layernorm=True),
    "cohere": of("cohere", logit_scale=0.8),
    "cohere2": of("cohere2", logit_scale=0.8, sliding_window=WINDOW, layer_types=WINDOWED),
    # Llama's kin.
    "llama": of("llama"),
    "llama_tied": of("llama", tie_word_embeddings=True, num_key_value_heads=4),
    "llama_biases": of("llama", attention_bias=True, mlp_bias=True),
    "llama_scaled": of("llama", rope_parameters={
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    "mistral": of("mistral", sliding_window=None),
    "mistral_window": of("mistral", sliding_window=WINDOW),
    "ministral3": of("ministral3", sliding_window=WINDOW, rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.1}),
    "qwen2": of("qwen2"),
    "qwen2_window": of("qwen2", use_sliding_window=True, sliding_window=WINDOW,
                       layer_types=WINDOWED),
    "qwen3": of("qwen3", head_dim=16),
    "qwen3_window": of("qwen3", use_sliding_window=True, sliding_window=WINDOW, head_dim=16,
                       layer_types=WINDOWED),
    "phi3": of("phi3", pad_token_id=0),
    "starcoder2": of("starcoder2", sliding_window=None),
    "olmo": of("olmo", clip_qkv=0.5),
    "olmo2": of("olmo2"),
    "olmo3": of("olmo3", sliding_window=WINDOW, layer_types=WINDOWED),
    "granite": of("granite", embedding_multiplier=3.0, logits_scaling=1.5,
                  residual_multiplier=0.5, attention_multiplier=0.2),
    "nemotron": of("nemotron"),
    "glm": of("glm", head_dim=12),
    "glm4": of("glm4", head_dim=12),
    "exaone4": of("exaone4", sliding_window=WINDOW, layer_types=WINDOWED),
    "smollm3": of("smollm3"),
    "ernie4_5": of("ernie4_5", use_bias=True, head_dim=12),
    "helium": of("helium", head_dim=12),
    "hunyuan_v1_dense": of("hunyuan_v1_dense", head_dim=12),
    "seed_oss": of("seed_oss", head_dim=12),
    "apertus": of("apertus"),
    "arcee": of("arcee"),
    "arcee_in_memory": Family("arcee", named=False),
    "internlm3": of("internlm3", qkv_bias=True, bias=True),
    "jais2": of("jais2"),
    "nanochat": of("nanochat"),
    "bitnet": of("bitnet"),
    "diffllama": of("diffllama"),
    # Gemma's kin: norms before and after, soft caps, scaled embeddings.
    "gemma": Family("gemma", {"head_dim": 16}),
    "gemma2": Family("gemma2", {
        "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 20.0, "final_logit_softcapping": 15.0,
    }),
    "gemma3_text": Family("gemma3_text", {
        "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 12,
        "layer_types": WINDOWED,
    }),
    "vaultgemma": Family("vaultgemma", {"head_dim": 16, "sliding_window": WINDOW}),
    # Latent attention, dense MLPs.
    "minicpm3": of("minicpm3", **LATENT),
    # Mixtures of experts.
    "mixtral": of("mixtral", **OF_16, num_local_experts=4),
    "qwen2_moe": of("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_moe": of("qwen3_moe", **EXPERTS, head_dim=12),
    "qwen3_moe_mixed": of("qwen3_moe", **EXPERTS, head_dim=12, mlp_only_layers=[0, 2]),
    "olmoe": of("olmoe", **OF_16, num_experts=4, num_experts_per_tok=2),
    "phimoe": of("phimoe", **OF_16, num_local_experts=4),
    "granitemoe": of("granitemoe", **OF_16, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v2": of("deepseek_v2", **LATENT, n_routed_experts=4, n_shared_experts=1,
                      num_experts_per_tok=2, **OF_16, moe_intermediate_size=32,
                      first_k_dense_replace=1),
    "deepseek_v3": of("deepseek_v3", **LATENT, n_routed_experts=4, n_shared_experts=1,
                      num_experts_per_tok=2, **OF_16, moe_intermediate_size=32,
                      first_k_dense_replace=1),
    "gpt_oss": of("gpt_oss", **OF_16, head_dim=12, num_local_experts=4, num_experts_per_tok=2,
                  sliding_window=WINDOW),
    "dbrx": Family("dbrx", {
        "vocab_size": VOCABULARY, "d_model": WIDTH, "n_heads": HEADS, "n_layers": LAYERS,
        "max_seq_len": 128, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
                       "hidden_size": WIDTH, "ffn_act_fn": {"name": "silu"}},
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }, plain=True),
    "ernie4_5_moe": of("ernie4_5_moe", **OF_16, moe_num_experts=4, moe_k=2,
                       moe_intermediate_size=32,
                       moe_layer_start_index=1, moe_num_shared_experts=1),
    "hunyuan_v1_moe": of("hunyuan_v1_moe", **OF_16, num_experts=4, moe_topk=2, head_dim=12),
    "glm4_moe": of("glm4_moe", head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
                   topk_group=1, **OF_16, moe_intermediate_size=32, first_k_dense_replace=1),
    "minimax": of("minimax", **OF_16, num_local_experts=4, head_dim=12, block_size=4,
                  layer_types=["linear_attention", "linear_attention", "full_attention"]),
    "jetmoe": of("jetmoe", **OF_16, kv_channels=12, num_local_experts=4, num_key_value_heads=2),
    # State spaces, convolutions, recurrences.
    "mamba": of("mamba", state_size=8, conv_kernel=4),
    "mamba2": of("mamba2", state_size=8, head_dim=12, num_heads=8, n_groups=1, chunk_size=8),
    "jamba": of("jamba", **OF_16, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
                expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False,
                mamba_d_state=8, mamba_dt_rank=4),
    "bamba": of("bamba", mamba_n_heads=8, mamba_d_head=12, mamba_d_state=8, mamba_chunk_size=8,
                attn_layer_indices=[1],                 mamba_n_groups=1),
    "lfm2": of("lfm2", block_auto_adjust_ff_dim=False,
               layer_types=["conv", "full_attention", "conv"]),
    "recurrent_gemma": of("recurrent_gemma", lru_width=WIDTH, attention_window_size=WINDOW,
                          num_key_value_heads=1, block_types=["recurrent", "attention"]),
    "rwkv": of("rwkv", attention_hidden_size=WIDTH, context_length=128),
    # No causal language models.
    "bert": Family("bert", task="masked"),
    "roberta": Family("roberta", task="masked"),
    "t5": Family("t5", {
        "vocab_size": VOCABULARY, "d_model": WIDTH, "d_ff": NEURONS, "num_layers": LAYERS,
        "num_heads": HEADS, "d_kv": 12, "decoder_start_token_id": 0,
    }, plain=True, task="seq2seq"),
    "bart": Family("bart", {
        "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": NEURONS, "decoder_ffn_dim": NEURONS, "max_position_embeddings": 128,
    }, plain=True, task="seq2seq"),
    "headless": Family("llama", task="headless"),
}  # fmt: skip

# Sizes that bitsandbytes' 4-bit blocks divide.
WHOLE_BLOCKS: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4},
    "gpt2": {"n_embd": 64},
}


def tokenizer() -> Any:
    """Byte-level, of a few words; it adds no token of its own."""
    own = tiny_tokenizer(SENTENCES, digits=False)
    own.chat_template = None
    return own


def build(name: str, dtype: torch.dtype = torch.float32, **other: Any) -> Any:
    """The family's tiny model; the same weights at each call.

    Args:
        name: The family.
        dtype: Of the weights.
        other: Options in place of the family's own.

    Raises:
        ValueError: This transformers does not know the architecture.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
    )

    family = FAMILIES[name]
    makers = {
        "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM,
        "seq2seq": AutoModelForSeq2SeqLM, "headless": AutoModel,
    }  # fmt: skip
    options = {**({} if family.plain else LIKE_LLAMA), **family.options, **other}
    if not hasattr(AutoConfig.for_model(family.kind), "num_key_value_heads"):
        options = {key: value for key, value in options.items() if key != "num_key_value_heads"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family.kind, **options)
        model = makers[family.task].from_config(config, attn_implementation="eager").eval()
        if family.named:
            model.config.architectures = [type(model).__name__]
        _draw(model)
    return model.to(dtype)


def quantise(model: Any, bits: str) -> Any:
    """The model with bitsandbytes' linear maps of ``"8bit"`` or ``"4bit"``, on the CPU."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        packed = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}": True}),
            attn_implementation="eager", device_map="cpu",
        ).eval()  # fmt: skip
    packed.config._name_or_path = packed.name_or_path = ""
    return packed


def _draw(model: Any) -> None:
    """Weights of about 1.5 / √inputs, embeddings of about 1, norms and biases off their rest."""
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "A_log" in name or "time_decay" in name or "recurrent_param" in name:
                continue  # decays that must stay what they are
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter is embedding:
                parameter.normal_(0, 1)
            else:
                inputs = min(parameter.shape[-2:])
                parameter.normal_(0, 1.5 / math.sqrt(inputs))
        pad = getattr(model.get_input_embeddings(), "padding_idx", None)
        if pad is not None:
            embedding[pad] = 0.3
