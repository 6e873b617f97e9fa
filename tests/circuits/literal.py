"""A circuit run as its definition says, edge by edge, from the Hugging Face weights: the oracle.

One example at a time, no hooks, no batches, nothing of `lens_skills` but the names of the nodes.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lens_skills.circuits import Edge, Node

Key = tuple[str, int, int | None, int]  # kind, layer, index, column
Values = dict[Key, Tensor]


class Literal:
    """A Llama in plain sums: every head and MLP at every column adds to what it read."""

    def __init__(self, hf: Any) -> None:
        self.w = {name: value.detach().double() for name, value in hf.state_dict().items()}
        config = hf.config
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.n_kv, self.eps = config.num_key_value_heads, config.rms_norm_eps
        self.d_head = config.hidden_size // self.n_heads
        self.theta = float((config.rope_parameters or {}).get("rope_theta", 10000.0))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean() + self.eps).sqrt() * self.w[name]

    def turn(self, x: Tensor, place: int) -> Tensor:
        half = self.d_head // 2
        angle = place * self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        a, b = x[:half], x[half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    def run(
        self,
        tokens: list[int],
        *,
        base: Values | None = None,
        edges: Iterable[Edge] = (),
        sources: dict[Node, Tensor] | None = None,
    ) -> tuple[Values, Tensor, dict[tuple[int, int], Tensor]]:
        """What each node writes, the last normed stream, and neurons' activations.

        Without ``base`` the whole model; with it (what each node writes on the other prompt)
        only the named edges carry what their senders write now. Sources are written as given.
        """
        n = len(tokens)
        sent: dict[tuple[Key, str], list[Key]] = {}
        for edge in edges:
            to, by = key(edge.receiver, n), key(edge.sender, n)
            sent.setdefault((to, edge.channel), []).append(by)
        given = {key(node, n): value for node, value in (sources or {}).items()}
        now: Values = {}
        posts: dict[tuple[int, int], Tensor] = {}

        def neurons(layer: int, column: int, post: Tensor) -> None:
            weight = self.w[f"model.layers.{layer}.mlp.down_proj.weight"]
            for index, value in enumerate(post):
                now["neuron", layer, index, column] = value * weight[:, index]
            now["mlp", layer, None, column] = weight @ post

        def below(layer: int, column: int, middle: bool) -> list[Key]:
            found: list[Key] = [("token", -1, None, column)]
            for lower in range(layer + (1 if middle else 0)):
                found += [("head", lower, head, column) for head in range(self.n_heads)]
                if lower < layer:
                    found.append(("mlp", lower, None, column))
            return found

        def read(to: Key, channel: str, also: Key | None = None) -> Tensor:
            _, layer, _, column = to
            everything = below(layer, column, to[0] in ("mlp", "neuron"))
            if base is None:
                return torch.stack([now[one] for one in everything]).sum(0)
            total = torch.stack([base[one] for one in everything]).sum(0)
            senders = set(sent.get((to, channel), ()))
            senders |= set(sent.get((also, channel), ())) if also else set()
            for one in senders:
                if one[0] == "neuron" and ("mlp", one[1], None, one[3]) in senders:
                    continue
                total = total + now[one] - base[one]
            return total

        group = self.n_heads // self.n_kv
        for column, token in enumerate(tokens):
            now["token", -1, None, column] = self.w["model.embed_tokens.weight"][token]
        for layer in range(self.n_layers):
            at = f"model.layers.{layer}."
            norm = at + "input_layernorm.weight"
            out = self.w[at + "self_attn.o_proj.weight"]
            made: dict[tuple[str, int, int], Tensor] = {}
            for column in range(n):
                for head in range(self.n_heads):
                    mine = slice(head * self.d_head, (head + 1) * self.d_head)
                    x = self.norm(read(("head", layer, head, column), "Q"), norm)
                    q = self.w[at + "self_attn.q_proj.weight"][mine] @ x
                    made["Q", head, column] = self.turn(q, column)
                for kv in range(self.n_kv):
                    mine = slice(kv * self.d_head, (kv + 1) * self.d_head)
                    to: Key = ("head", layer, kv * group, column)
                    k = self.w[at + "self_attn.k_proj.weight"][mine] @ self.norm(
                        read(to, "K"), norm
                    )
                    v = self.w[at + "self_attn.v_proj.weight"][mine] @ self.norm(
                        read(to, "V"), norm
                    )
                    made["K", kv, column], made["V", kv, column] = self.turn(k, column), v
            for column in range(n):
                for head in range(self.n_heads):
                    kv = head // group
                    scores = torch.stack(
                        [made["Q", head, column] @ made["K", kv, c] for c in range(column + 1)]
                    )
                    pattern = (scores / math.sqrt(self.d_head)).softmax(0)
                    z = sum(pattern[c] * made["V", kv, c] for c in range(column + 1))
                    mine = slice(head * self.d_head, (head + 1) * self.d_head)
                    now["head", layer, head, column] = out[:, mine] @ z
            now.update(given)
            norm = at + "post_attention_layernorm.weight"
            gate, up = (self.w[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up"))
            for column in range(n):
                mlp: Key = ("mlp", layer, None, column)
                a = gate @ self.norm(read(mlp, "gate"), norm)
                b = up @ self.norm(read(mlp, "up"), norm)
                for own in {
                    to[2] for to, _ in sent if to[:2] == ("neuron", layer) and to[3] == column
                }:
                    one: Key = ("neuron", layer, own, column)
                    a[own] = gate[own] @ self.norm(read(one, "gate", mlp), norm)
                    b[own] = up[own] @ self.norm(read(one, "up", mlp), norm)
                posts[layer, column] = torch.nn.functional.silu(a) * b
                neurons(layer, column, posts[layer, column])
            now.update(given)
        last = read(("answer", self.n_layers, None, n - 1), "answer")
        return now, self.norm(last, "model.norm.weight"), posts


def key(node: Node, n: int) -> Key:
    return node.kind, node.layer, node.index, n + node.column
