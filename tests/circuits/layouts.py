"""Tiny models of each way a block can be joined, and a path patched in them by plain hooks.

Nothing of `lens_skills` but the names of the nodes: the Hugging Face model runs, one example at a
time, and one linear layer's output is replaced by what its weights make of another residual stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lens_skills.circuits import Node
from tests.tiny_tokenizer import tiny_tokenizer

D_MODEL, D_MLP, N_HEADS, N_LAYERS = 32, 40, 4, 3


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its modules, as its own source says."""

    build: Callable[[Any, dict[str, Any]], Any]
    blocks: str
    final: str
    q: str
    o: str
    reads: dict[str, str]  # channel: linear layer
    down: str
    before: tuple[str | None, str | None]  # norms before attention and MLP
    after: tuple[str | None, str | None] = (None, None)
    parallel: bool = False
    factor: float = 1.0
    fused: int = 1  # rows of the linear layer per feature of a head's Q: NeoX has Q, K, V in turn
    hooked: bool = False


def _sized(names: str, **more: Any) -> Callable[[Any, dict[str, Any]], Any]:
    model, config = names.split()

    def build(library: Any, common: dict[str, Any]) -> Any:
        sizes = {
            "hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS, "max_position_embeddings": 128,
            "tie_word_embeddings": False, "initializer_range": 0.25,
        }  # fmt: skip
        own = getattr(library, config)(**{**common, **sizes, **more})
        return getattr(library, model)(own)

    return build


def _gptj(library: Any, common: dict[str, Any]) -> Any:
    own = library.GPTJConfig(
        **common, n_embd=D_MODEL, n_inner=D_MLP, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=128,
        rotary_dim=4, tie_word_embeddings=False, initializer_range=0.25,
    )  # fmt: skip
    return library.GPTJForCausalLM(own)


def _falcon(library: Any, common: dict[str, Any]) -> Any:
    own = library.FalconConfig(
        **common, hidden_size=D_MODEL, ffn_hidden_size=4 * D_MODEL, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, multi_query=True, parallel_attn=True, bias=False, alibi=False,
        new_decoder_architecture=False, initializer_range=0.25,
    )  # fmt: skip
    return library.FalconForCausalLM(own)


GATED = {"gate": "mlp.gate_proj", "up": "mlp.up_proj"}
LLAMA = {
    "blocks": "model.layers", "final": "model.norm", "q": "self_attn.q_proj",
    "o": "self_attn.o_proj", "reads": GATED, "down": "mlp.down_proj",
}  # fmt: skip
SHARED = ("input_layernorm", "input_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
GROUPED = {"num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
MULTIPLIERS = {
    "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
}  # fmt: skip

BARE = {"before": (None, None), "after": AFTER}

LAYOUTS = {
    "neox": Layout(
        _sized("GPTNeoXForCausalLM GPTNeoXConfig", rotary_pct=0.5),
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.query_key_value",
        "attention.dense", {"in": "mlp.dense_h_to_4h"}, "mlp.dense_4h_to_h",
        ("input_layernorm", "post_attention_layernorm"), parallel=True, fused=3, hooked=True,
    ),
    "gptj": Layout(
        _gptj, "transformer.h", "transformer.ln_f", "attn.q_proj", "attn.out_proj",
        {"in": "mlp.fc_in"}, "mlp.fc_out", ("ln_1", "ln_1"), parallel=True,
    ),
    "phi": Layout(
        _sized("PhiForCausalLM PhiConfig"),
        "model.layers", "model.final_layernorm", "self_attn.q_proj", "self_attn.dense",
        {"in": "mlp.fc1"}, "mlp.fc2", SHARED, parallel=True,
    ),
    "falcon": Layout(
        _falcon, "transformer.h", "transformer.ln_f", "self_attention.query_key_value",
        "self_attention.dense", {"in": "mlp.dense_h_to_4h"}, "mlp.dense_4h_to_h", SHARED,
        parallel=True,
    ),
    "stablelm": Layout(
        _sized("StableLmForCausalLM StableLmConfig", **GROUPED, use_parallel_residual=True),
        **LLAMA, before=SHARED, parallel=True,
    ),
    "gemma2": Layout(
        _sized("Gemma2ForCausalLM Gemma2Config", **GEMMA), **LLAMA,
        before=("input_layernorm", "pre_feedforward_layernorm"), after=AFTER,
    ),
    "gemma3": Layout(
        _sized("Gemma3ForCausalLM Gemma3TextConfig", **GEMMA), **LLAMA,
        before=("input_layernorm", "pre_feedforward_layernorm"), after=AFTER,
    ),
    "glm4": Layout(
        _sized("Glm4ForCausalLM Glm4Config", **GROUPED, head_dim=8),
        **{**LLAMA, "reads": {"gate": "mlp.gate_up_proj", "up": "mlp.gate_up_proj"}},
        before=("input_layernorm", "post_attention_layernorm"),
        after=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "olmo2": Layout(
        _sized("Olmo2ForCausalLM Olmo2Config", **GROUPED), **LLAMA, **BARE,
    ),
    "olmo3": Layout(
        _sized("Olmo3ForCausalLM Olmo3Config", **GROUPED), **LLAMA, **BARE,
        hooked=True,
    ),
    "exaone4": Layout(
        _sized("Exaone4ForCausalLM Exaone4Config", **GROUPED), **LLAMA, **BARE,
    ),
    "granite": Layout(
        _sized("GraniteForCausalLM GraniteConfig", **GROUPED, **MULTIPLIERS), **LLAMA,
        before=("input_layernorm", "post_attention_layernorm"), factor=0.5,
    ),
}  # fmt: skip


def tiny_of(name: str) -> tuple[Any, Any]:
    """The Hugging Face model and its tokenizer; norms and biases at random too."""
    import transformers

    tokenizer = tiny_tokenizer()
    common = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = LAYOUTS[name].build(transformers, {**common, "pad_token_id": 0}).eval()
        for part, parameter in model.named_parameters():
            if "norm" in part or "ln_" in part or part.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    return model, tokenizer


@dataclass
class Seen:
    """One prompt: what enters each block, what heads read, neurons' activations, the logits."""

    entering: list[Tensor]
    z: list[Tensor]
    post: list[Tensor]
    leaving: Tensor
    logits: Tensor


Replace = tuple[Any, int, slice, Tensor]  # a linear layer, position, output features, new values


class Plain:
    """A Hugging Face model with plain hooks."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self.blocks = model.get_submodule(layout.blocks)
        self.final = model.get_submodule(layout.final)

    def part(self, layer: int, name: str | None) -> Any:
        return torch.nn.Identity() if name is None else self.blocks[layer].get_submodule(name)

    @torch.no_grad()
    def run(
        self, tokens: Sequence[int], replace: Replace | None = None, *, last: Tensor | None = None
    ) -> Seen:
        """``last``: added to what the final norm reads in the last column."""
        seen = Seen([], [], [], torch.empty(0), torch.empty(0))
        handles = []

        def keep(into: list[Tensor]) -> Any:
            def hook(module: Any, args: Any, options: Any) -> None:
                into.append((args[0] if args else options["hidden_states"])[0].clone())

            return hook

        for layer, block in enumerate(self.blocks):
            for module, into in (
                (block, seen.entering),
                (self.part(layer, self.layout.o), seen.z),
                (self.part(layer, self.layout.down), seen.post),
            ):
                handles.append(module.register_forward_pre_hook(keep(into), with_kwargs=True))

        def end(module: Any, args: Any) -> Any:
            seen.leaving = args[0][0].clone()
            if last is None:
                return None
            changed = args[0].clone()
            changed[0, -1] += last
            return (changed,)

        handles.append(self.final.register_forward_pre_hook(end))
        if replace is not None:
            linear, column, features, new = replace

            def put(module: Any, args: Any, out: Tensor) -> Tensor:
                out = out.clone()
                out[0, column, features] = new
                return out

            handles.append(linear.register_forward_hook(put))
        try:
            seen.logits = self.model(torch.tensor([list(tokens)])).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def added(self, layer: int, which: int, values: Tensor) -> Tensor:
        """What attention (0) or MLP (1) adds, of heads' z or neurons' activations."""
        linear = self.part(layer, (self.layout.o, self.layout.down)[which])
        return self.layout.factor * self.part(layer, self.layout.after[which])(linear(values))

    @torch.no_grad()
    def sent(self, clean: Seen, corrupted: Seen, nodes: Sequence[Node], column: int) -> Tensor:
        """What these, of one sublayer, add with their corrupted activations among clean ones."""
        node = nodes[0]
        if node.kind == "token":
            return corrupted.entering[0][column] - clean.entering[0][column]
        which = 0 if node.kind == "head" else 1
        here, there = ((one.z, one.post)[which][node.layer][column] for one in (clean, corrupted))
        mixed = here.clone()
        for each in nodes:
            width = len(here) // N_HEADS if which == 0 else 1
            place = slice((each.index or 0) * width, ((each.index or 0) + 1) * width)
            place = slice(None) if each.kind == "mlp" else place
            mixed[place] = there[place]
        return self.added(node.layer, which, mixed) - self.added(node.layer, which, here)

    @torch.no_grad()
    def patched(
        self,
        tokens: Sequence[int],
        clean: Seen,
        corrupted: Seen,
        senders: Sequence[Node],
        receiver: Node,
        channel: str,
    ) -> Tensor:
        """The logits when one channel alone reads what these senders send when corrupted."""
        column = len(tokens) + receiver.column
        change = self.sent(clean, corrupted, senders, column)
        if receiver.kind == "answer":
            return self.run(tokens, last=change).logits
        layer, head = receiver.layer, receiver.kind == "head"
        read = clean.entering[layer][column]
        if not head and not self.layout.parallel:
            read = read + self.added(layer, 0, clean.z[layer][column])
        normal = self.part(layer, self.layout.before[0 if head else 1])(read + change)
        linear = self.part(layer, self.layout.q if head else self.layout.reads[channel])
        out = linear(normal)
        if head:
            width = len(clean.z[layer][column]) // N_HEADS
            first = (receiver.index or 0) * width * self.layout.fused
            place = slice(first, first + width)
        else:
            half = len(clean.post[layer][column])
            first = half if channel == "up" and len(out) == 2 * half else 0
            index = receiver.index
            place = (
                slice(first, first + half)
                if index is None
                else slice(first + index, first + index + 1)
            )
        return self.run(tokens, (linear, column, place, out[place])).logits
