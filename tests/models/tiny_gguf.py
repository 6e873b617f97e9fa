"""A tiny GGUF file written from a Hugging Face Llama with the `gguf` package."""

import json
from pathlib import Path
from typing import Any

import einops
import torch

PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write_gguf(
    model: Any,
    tokenizer: Any,
    path: Path,
    *,
    also: dict[str, Any] | None = None,
    architecture: str = "llama",
    kind: Any = None,
    tied: bool = False,
    without: str = "",
) -> Path:
    """The model and its byte-level BPE tokenizer as one GGUF file.

    ``also`` has further metadata of the architecture by name, and tensors. Matrices are of the
    ``kind``, by default float32; a model that is ``tied`` has no vocabulary projection of its own.
    ``qwen2`` has other places for the rotary pairs, and biases.
    """
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)

    for key, value in (also or {}).items():
        if isinstance(value, torch.Tensor):
            writer.add_tensor(key, value.float().numpy())
            continue
        add_key = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add_key[type(value)](f"{architecture}.{key}", value)

    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if p in special else gguf.TokenType.NORMAL for p in pieces]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)

    def add(name: str, weight: torch.Tensor, heads: int = 0) -> None:
        if f"{name}.weight" == without:
            return
        if heads and architecture == "llama":
            # llama.cpp keeps the two halves of each rotary pair side by side
            weight = einops.rearrange(weight, "(h half d) m -> (h d half) m", h=heads, half=2)
        numbers = weight.float().contiguous().numpy()
        if kind is None or numbers.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] or weight.ndim == 1:
            writer.add_tensor(f"{name}.weight", numbers)
        else:
            packed = gguf.quants.quantize(numbers, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)

    add("token_embd", weights["model.embed_tokens.weight"])
    add("output_norm", weights["model.norm.weight"])
    if not tied:
        add("output", weights["lm_head.weight"])
    turned = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for short, full in PARTS.items():
            weight = weights[f"model.layers.{layer}.{full}.weight"]
            add(f"blk.{layer}.{short}", weight, turned.get(short, 0))
            if architecture == "qwen2" and short in ("attn_q", "attn_k", "attn_v"):
                bias = torch.linspace(-1, 1, len(weight)).numpy()
                writer.add_tensor(f"blk.{layer}.{short}.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
