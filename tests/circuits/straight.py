"""A Llama in plain PyTorch, in float64, into which a single path can be patched: the oracle.

Whole columns at once, one example at a time, from the Hugging Face weights. A path's change is
added to what one channel alone reads. Everything can be differentiated by that change.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lens_skills.circuits import Node


@dataclass
class Run:
    """What a run leaves: contributions, and what is needed to ask for a target."""

    embed: Tensor
    z: list[Tensor] = field(default_factory=list)  # [head pos d_head]
    heads: list[Tensor] = field(default_factory=list)  # [head pos d_model]
    mlps: list[Tensor] = field(default_factory=list)  # [pos d_model]
    posts: list[Tensor] = field(default_factory=list)  # [pos d_mlp]
    entering: list[Tensor] = field(default_factory=list)
    middle: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None


@dataclass
class Patch:
    """A change of what one channel reads: `change` is added, or `scale` is another's inverse."""

    receiver: Node
    channel: str
    change: Tensor | None = None  # [d_model]
    scale: Tensor | None = None  # what x is multiplied by in place of 1 / rms
    held: bool = False  # the norm keeps the scale it has without the change


class Straight:
    def __init__(self, hf: Any) -> None:
        self.w = {name: value.detach().double() for name, value in hf.state_dict().items()}
        config = hf.config
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.n_kv, self.eps = config.num_key_value_heads, config.rms_norm_eps
        self.d_head = config.hidden_size // self.n_heads

    def part(self, layer: int, name: str) -> Tensor:
        return self.w[f"model.layers.{layer}.{name}.weight"]

    def inverse(self, x: Tensor) -> Tensor:
        return (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def norm(self, x: Tensor, weight: Tensor, held: bool) -> Tensor:
        inverse = self.inverse(x)
        return x * (inverse.detach() if held else inverse) * weight

    def changed(self, x: Tensor, weight: Tensor, patch: Patch, column: int) -> Tensor:
        """The norm's output in the patched column."""
        row = x[column]
        if patch.scale is not None:
            return row * patch.scale * weight
        assert patch.change is not None
        inverse = self.inverse(row) if patch.held else self.inverse(row + patch.change)
        inverse = inverse.detach() if patch.held else inverse
        return (row + patch.change) * inverse * weight

    def rotate(self, x: Tensor) -> Tensor:
        half = self.d_head // 2
        rate = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * rate
        angle = torch.cat([angle, angle], -1)
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angle.cos() + turned * angle.sin()

    def run(self, tokens: Tensor, patch: Patch | None = None, *, held: bool = False) -> Run:
        """One prompt; ``held``: patterns, scales and gates as constants of the gradient."""
        x = self.w["model.embed_tokens.weight"][tokens]
        n, group = len(tokens), self.n_heads // self.n_kv
        run = Run(embed=x)
        at = None if patch is None else n + patch.receiver.column
        shut = torch.full((n, n), -math.inf, dtype=torch.float64).triu(1)
        for layer in range(self.n_layers):
            run.entering.append(x)
            weight = self.part(layer, "input_layernorm")
            normal = self.norm(x, weight, held)
            pre, here = {}, (layer, "head")
            for channel, count in (("Q", self.n_heads), ("K", self.n_kv), ("V", self.n_kv)):
                matrix = self.part(layer, f"self_attn.{channel.lower()}_proj")
                values = (normal @ matrix.mT).view(n, count, self.d_head).transpose(0, 1)
                node = patch.receiver if patch else None
                if patch and node and (*here, channel) == (node.layer, node.kind, patch.channel):
                    index = (node.index or 0) // (1 if channel == "Q" else group)
                    rows = slice(index * self.d_head, (index + 1) * self.d_head)
                    new = self.changed(x, weight, patch, at) @ matrix[rows].mT
                    mask = torch.zeros_like(values)
                    mask[index, at] = 1
                    values = values * (1 - mask) + mask * new
                pre[channel] = values
            q, k = self.rotate(pre["Q"]), self.rotate(pre["K"]).repeat_interleave(group, 0)
            pattern = (q @ k.mT / self.d_head**0.5 + shut).softmax(-1)
            z = (pattern.detach() if held else pattern) @ pre["V"].repeat_interleave(group, 0)
            out = self.part(layer, "self_attn.o_proj").view(-1, self.n_heads, self.d_head)
            heads = torch.einsum("hpf,dhf->hpd", z, out)
            run.z.append(z)
            run.heads.append(heads)
            x = x + heads.sum(0)
            run.middle.append(x)
            x = x + self.mlp(x, layer, patch, at, run, held)
        run.entering.append(x)
        weight = self.w["model.norm.weight"]
        normal = self.norm(x, weight, held)
        if patch and patch.receiver.kind == "answer":
            rest = normal[:-1]
            normal = torch.cat([rest, self.changed(x, weight, patch, at)[None]])
        run.logits = normal[-1] @ self.w["lm_head.weight"].mT
        return run

    def mlp(
        self, x: Tensor, layer: int, patch: Patch | None, at: int | None, run: Run, held: bool
    ) -> Tensor:
        weight = self.part(layer, "post_attention_layernorm")
        normal = self.norm(x, weight, held)
        pre = {}
        for channel, name in (("gate", "mlp.gate_proj"), ("up", "mlp.up_proj")):
            matrix = self.part(layer, name)
            values = normal @ matrix.mT
            node = patch.receiver if patch and patch.channel == channel else None
            if patch and node and node.layer == layer and node.kind in ("mlp", "neuron"):
                new = self.changed(x, weight, patch, at) @ matrix.mT
                mask = torch.zeros_like(values)
                mask[at, slice(None) if node.index is None else node.index] = 1
                values = values * (1 - mask) + mask * new
            pre[channel] = values
        act = torch.nn.functional.silu(pre["gate"])
        if held:
            line = (act / pre["gate"]).detach() * pre["gate"]
            post = 0.5 * line * pre["up"].detach() + 0.5 * act.detach() * pre["up"]
        else:
            post = act * pre["up"]
        run.posts.append(post)
        written = post @ self.part(layer, "mlp.down_proj").mT
        run.mlps.append(written)
        return written

    def written(self, run: Run, node: Node) -> Tensor:
        """What a sender adds to the residual stream, in its column."""
        column = run.embed.shape[0] + node.column
        if node.kind == "token":
            return run.embed[column]
        if node.kind == "head":
            return run.heads[node.layer][node.index, column]
        if node.kind == "mlp":
            return run.mlps[node.layer][column]
        down = self.part(node.layer, "mlp.down_proj")
        return run.posts[node.layer][column, node.index] * down[:, node.index]

    def reads(self, run: Run, node: Node) -> Tensor:
        """The residual stream a receiver reads, in its column."""
        streams = run.middle if node.kind in ("mlp", "neuron") else run.entering
        return streams[node.layer][run.embed.shape[0] + node.column]

    def patch(self, clean: Run, corrupted: Run, path: Any, **options: Any) -> Patch:
        """The patch that a path means."""
        sender, receiver, channel = path
        if sender.kind == "norm":
            return Patch(receiver, channel, scale=self.inverse(self.reads(corrupted, receiver)))
        change = self.written(corrupted, sender) - self.written(clean, sender)
        return Patch(receiver, channel, change=change, **options)
