"""`Anatomy`: a model's own matrices, by which what a part writes and reads can be told apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from lens_skills.causal.direct import frozen_norm
from lens_skills.errors import LensSkillsError

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True, eq=False)
class Frozen:
    """A norm with the scale it has on one input: affine in what it reads.

    Attributes:
        gain: What each feature is multiplied by, weight over scale.
        centred: Whether the mean is removed first (LayerNorm).
    """

    gain: Float[Tensor, "*row d_model"]
    centred: bool

    def __call__(self, change: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What a change of the input does to the output at this scale."""
        if self.centred:
            change = change - change.mean(-1, keepdim=True)
        return change * self.gain

    def at(self, column: int) -> "Frozen":
        """The same of one column."""
        return Frozen(self.gain[:, column], self.centred)

    def back(self, slope: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """A derivative by the output as a derivative by the input, at this scale."""
        slope = slope * self.gain
        return slope - slope.mean(-1, keepdim=True) if self.centred else slope


class Anatomy:
    """The matrices of every block, in one layout for both implementations.

    All are copies of nothing: they are the model's own parameters, or views of them.

    Attributes:
        lens: The model.
        n_kv: Heads that hold keys and values.
        group: Query heads per such head.
    """

    def __init__(self, lens: Any) -> None:
        self.lens = lens
        config = lens.model.cfg
        if getattr(config, "parallel_attn_mlp", False):
            raise LensSkillsError(
                f"{lens.name} runs attention and MLP side by side (parallel blocks), and circuits "
                "are told apart only where the MLP reads after the attention. sweep and verify "
                "work with this model."
            )
        self.n_kv = int(getattr(config, "n_key_value_heads", None) or lens.n_heads)
        self.group = lens.n_heads // self.n_kv
        self.act: Callable[[Tensor], Tensor] = functional.silu  # found in `recognise`
        self._matrices: dict[tuple[int, str], Tensor] = {}

    def reading(self, layer: int, channel: str) -> Float[Tensor, "head d_model feature"]:
        """What a channel's pre-activations are made with; an MLP is a single head."""
        return self._kept(layer, f"W_{channel}")

    def offset(self, layer: int, channel: str) -> Float[Tensor, "head feature"]:
        """The bias of these pre-activations (zero where there is none)."""
        return self._kept(layer, f"b_{channel}")

    def head_out(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """What each head writes of its ``z``."""
        return self._kept(layer, "W_O")

    def bias_out(self, layer: int, part: str) -> Float[Tensor, " d_model"]:
        """The bias that a block's ``"attn"`` or ``"mlp"`` writes."""
        return self._kept(layer, f"b_{part}")

    def mlp_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron writes."""
        return self.lens.weight_out(layer)

    @property
    def gates(self) -> tuple[str, ...]:
        """The inputs of an MLP: gate and up, or a single one."""
        return ("gate", "up") if self.lens.gated else ("in",)

    def norm(self, layer: int, part: str) -> Callable[[Tensor], Tensor]:
        """The norm before a block's ``"attn"`` or ``"mlp"``."""
        block = self.lens.model.blocks[layer]
        module = block.ln1 if part == "attn" else block.ln2

        def normalise(residual: Tensor) -> Tensor:
            with torch.no_grad():
                return module(residual)

        return normalise

    def frozen(
        self, norm: Callable[[Tensor], Tensor], residual: Float[Tensor, "example column d_model"]
    ) -> Frozen:
        """A norm at the scales it has on these inputs.

        Raises:
            LensSkillsError: It is neither an RMSNorm nor a LayerNorm.
        """
        rows = rearrange(residual, "example column d -> (example column) d")
        # Padding may hold an embedding of zeros, which has no scale; nothing changes there.
        ramp = torch.linspace(-1, 1, rows.shape[-1]).to(rows)
        rows = torch.where((rows == 0).all(-1, keepdim=True), ramp, rows)
        found = frozen_norm(lambda x: norm(x[None])[0], rows)
        if found is None:
            raise LensSkillsError(
                f"{self.lens.name} has norms that are neither RMSNorm nor LayerNorm: what each "
                "part adds to a pre-activation cannot be told."
            )
        gain, centred = found
        shape = {"example": residual.shape[0]}
        gain = rearrange(gain, "(example column) d -> example column d", **shape)
        return Frozen(gain.to(residual), centred)

    def preactivation(
        self, layer: int, channel: str, normal: Float[Tensor, "*row d_model"]
    ) -> Float[Tensor, "*row head feature"]:
        """A channel's pre-activations from what the norm gives."""
        weight = self.reading(layer, channel)
        return einsum(normal, weight, "... d, head d f -> ... head f") + self.offset(layer, channel)

    def activation(self, pre: Mapping[str, Float[Tensor, "*row d_mlp"]]) -> Tensor:
        """The neurons' activations, ``mlp.hook_post``, from their pre-activations."""
        return self.act(pre["gate"]) * pre["up"] if "gate" in pre else self.act(pre["in"])

    def neurons(
        self, layer: int, middle: Float[Tensor, "*row d_model"]
    ) -> dict[str, Float[Tensor, "*row d_mlp"]]:
        """The pre-activations of an MLP from the residual stream it reads."""
        normal = self.norm(layer, "mlp")(middle)
        return {c: self.preactivation(layer, c, normal)[..., 0, :] for c in self.gates}

    def recognise(
        self, layer: int, middle: Tensor, post: Float[Tensor, "example column d_mlp"]
    ) -> None:
        """Nothing; finds which activation function gives these neurons.

        Raises:
            LensSkillsError: None of the known ones does.
        """
        pre = self.neurons(layer, middle)
        scale = float(post.abs().amax()) + 1e-12
        errors = {}
        for name, act in ACTIVATIONS.items():
            self.act = act
            errors[name] = float((self.activation(pre) - post).abs().amax()) / scale
        # The two forms of GELU are so near each other that the best must be taken, not the first.
        best = min(errors, key=lambda name: errors[name])
        self.act = ACTIVATIONS[best]
        if errors[best] <= (1e-4 if self.lens.dtype in (torch.float32, torch.float64) else 0.05):
            return
        raise LensSkillsError(
            f"{self.lens.name}: the neurons of layer {layer} are not act(gate) * up or act(in) of "
            f"its own matrices with a known act ({', '.join(ACTIVATIONS)}). Circuits need that."
        )

    def _kept(self, layer: int, name: str) -> Tensor:
        if (layer, name) not in self._matrices:
            self._matrices[layer, name] = self._found(layer, name)
        return self._matrices[layer, name]

    def _found(self, layer: int, name: str) -> Tensor:
        lens, block = self.lens, self.lens.model.blocks[layer]
        kind, channel = name.split("_", 1)
        if channel in ("Q", "K", "V", "O", "attn"):
            value = getattr(block.attn, f"{kind}_{'O' if channel == 'attn' else channel}", None)
            n_heads = lens.n_heads if channel == "Q" else self.n_kv
            if value is None:
                flat = channel == "attn"
                shape = (lens.d_model,) if flat else (n_heads, lens.d_head)
                return torch.zeros(shape, dtype=lens.dtype, device=lens.device)
            value = value.detach()
            if channel in ("K", "V") and value.shape[0] == lens.n_heads:
                value = value[:: self.group]  # repeated for each query head that reads it
            return value
        # TransformerLens calls the matrix of the linear branch W_in, in gated MLPs too.
        own = {"gate": f"{kind}_gate", "up": f"{kind}_in", "in": f"{kind}_in", "mlp": "b_out"}
        value = getattr(block.mlp, own[channel], None)
        if kind == "W":
            if not isinstance(value, Tensor) or value.ndim != 2:
                raise LensSkillsError(
                    f"layer {layer} of {lens.name} has no single matrix for {channel!r} (a mixture "
                    "of experts?): its neurons' inputs cannot be told apart."
                )
            value = value.detach()
            value = value if value.shape[0] == lens.d_model else value.mT
            return rearrange(value, "d neuron -> 1 d neuron")
        width = lens.d_model if channel == "mlp" else lens.d_mlp
        if value is None:
            value = torch.zeros(width, dtype=lens.dtype, device=lens.device)
        return value.detach() if channel == "mlp" else repeat(value.detach(), "f -> 1 f")
