"""A model's own matrices: what each part reads and writes.

`OutputWeights` are what a hook point adds to the residual stream, where that is a matrix (checked
on the model); `ModelWeights` are all matrices of every block in one layout.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import keep_activation
from lens_skills.models.partial_forward import PartialForward
from lens_skills.models.unembedding import FrozenNorm, frozen_norm

LayerSite = tuple[int, str]  # layer and site

# Up to so many features their own rows of the matrix are gathered; beyond, all rows are multiplied.
_FEW = 32

_IDENTITY = ("hook_mlp_out", "hook_attn_out", "hook_resid_post")


class OutputWeights:
    """For each (layer, site): how its features enter the residual stream.

    A neuron's activation is added through its row of the output matrix in most models, but not
    where a norm or a multiplier follows the MLP; so every matrix is tried on a disturbed pass
    before it is used.
    """

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self._found: dict[tuple[LayerSite, str], Tensor | None] = {}

    def matrix(
        self, suffix: PartialForward, spot: LayerSite, to: str
    ) -> Float[Tensor, "feature d_model"] | None:
        """What one unit of each feature adds at hook point ``to`` of the block, or None.

        It is tried on the batch ``suffix`` once.
        """
        if (spot, to) not in self._found:
            candidate = self._candidate(spot)
            holds = candidate is not None and self._holds(suffix, spot, to, candidate)
            self._found[spot, to] = candidate if holds else None
        return self._found[spot, to]

    def direct(
        self, suffix: PartialForward, spot: LayerSite
    ) -> Float[Tensor, "feature d_model"] | None:
        """What one unit of each feature adds to the residual stream by itself, or None.

        Later parts of the same block (the MLP after an attention head) are not passed.
        """
        layer, site = spot
        if site not in ("attn.hook_z", "hook_attn_out"):
            return self.matrix(suffix, spot, "hook_resid_post")
        middle = f"blocks.{layer}.hook_resid_mid" in self.adapter.hook_names()
        adds = (layer, "hook_attn_out")
        if self.matrix(suffix, adds, "hook_resid_mid" if middle else "hook_resid_post") is None:
            return None
        return self.matrix(suffix, spot, "hook_attn_out")

    def _candidate(self, spot: LayerSite) -> Tensor | None:
        layer, site = spot
        block = self.adapter.model.blocks[layer]
        if site == "mlp.hook_post":
            return self.adapter.weight_out(layer)
        if site == "attn.hook_z":
            weight = getattr(block.attn, "W_O", None)
            if not isinstance(weight, Tensor) or weight.ndim != 3:
                return None
            return rearrange(weight.detach(), "head d_head d_model -> (head d_head) d_model")
        if site in _IDENTITY:
            return torch.eye(
                self.adapter.d_model, dtype=self.adapter.dtype, device=self.adapter.device
            )
        return None

    def _holds(self, suffix: PartialForward, spot: LayerSite, to: str, weight: Tensor) -> bool:
        layer, site = spot
        source, target = f"blocks.{layer}.{site}", f"blocks.{layer}.{to}"
        if source == target:
            return True
        if not {source, target} <= set(self.adapter.hook_names()):
            return False
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(len(weight), generator=generator).to(weight)
        push = direction @ weight
        scale = suffix.entering[layer + 1].abs().amax() / push.abs().amax().clamp(min=1e-20)
        seen: dict[int, Tensor] = {}

        def disturb(activation: Tensor) -> Tensor:
            return activation + (scale * direction).reshape(activation.shape[2:])

        for number, edit in enumerate(({}, {source: disturb})):
            editors = edit | {target: keep_activation(seen, number)}
            suffix.run(suffix.clean(layer, 1), layer, stop=layer + 1, editors=editors)
        found = (seen[1] - seen[0]).double()
        error = (found - (scale * push).double()).abs().amax()
        fine = 1e-3 if self.adapter.dtype in (torch.float32, torch.float64) else 0.05
        return bool(error <= fine * (scale * push).abs().amax())


def written(
    difference: Float[Tensor, "set example pos feature"],
    features: Int[Tensor, "set feature"],
    weight: Float[Tensor, "width d_model"],
) -> Float[Tensor, "set example pos d_model"]:
    """What changed features add to the residual stream."""
    features = features.to(weight.device)
    if features.shape[1] <= _FEW:
        return torch.einsum("sepf,sfd->sepd", difference, weight[features].to(difference))
    full = difference.new_zeros(*difference.shape[:3], len(weight))
    index = rearrange(features, "set feature -> set 1 1 feature").expand_as(difference)
    return full.scatter_(-1, index, difference) @ weight.to(difference)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class ModelWeights:
    """The matrices of every block, in one layout for both implementations.

    All are copies of nothing: they are the model's own parameters, or views of them.

    Attributes:
        adapter: The model.
        n_kv: Heads that hold keys and values.
        group: Query heads per such head.
    """

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        config = adapter.model.cfg
        if getattr(config, "parallel_attn_mlp", False):
            raise LensSkillsError(
                f"{adapter.name} runs attention and MLP side by side (parallel blocks), and "
                "circuits are told apart only where the MLP reads after the attention. sweep and "
                "verify work with this model."
            )
        self.n_kv = int(getattr(config, "n_key_value_heads", None) or adapter.n_heads)
        self.group = adapter.n_heads // self.n_kv
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
        return self.adapter.weight_out(layer)

    @property
    def gates(self) -> tuple[str, ...]:
        """The inputs of an MLP: gate and up, or a single one."""
        return ("gate", "up") if self.adapter.gated else ("in",)

    def norm(self, layer: int, part: str) -> Callable[[Tensor], Tensor]:
        """The norm before a block's ``"attn"`` or ``"mlp"``."""
        block = self.adapter.model.blocks[layer]
        module = block.ln1 if part == "attn" else block.ln2
        return torch.no_grad()(lambda residual: module(residual))

    def frozen(
        self, norm: Callable[[Tensor], Tensor], residual: Float[Tensor, "example column d_model"]
    ) -> FrozenNorm:
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
                f"{self.adapter.name} has norms that are neither RMSNorm nor LayerNorm: what each "
                "part adds to a pre-activation cannot be told."
            )
        gain, centred = found
        shape = {"example": residual.shape[0]}
        gain = rearrange(gain, "(example column) d -> example column d", **shape)
        return FrozenNorm(gain.to(residual), centred)

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
        if errors[best] <= (1e-4 if self.adapter.dtype in (torch.float32, torch.float64) else 0.05):
            return
        raise LensSkillsError(
            f"{self.adapter.name}: the neurons of layer {layer} are not act(gate) * up or act(in) "
            f"of its own matrices with a known act ({', '.join(ACTIVATIONS)}). Circuits need that."
        )

    def _kept(self, layer: int, name: str) -> Tensor:
        if (layer, name) not in self._matrices:
            self._matrices[layer, name] = self._found(layer, name)
        return self._matrices[layer, name]

    def _found(self, layer: int, name: str) -> Tensor:
        adapter, block = self.adapter, self.adapter.model.blocks[layer]
        kind, channel = name.split("_", 1)
        if channel in ("Q", "K", "V", "O", "attn"):
            value = getattr(block.attn, f"{kind}_{'O' if channel == 'attn' else channel}", None)
            n_heads = adapter.n_heads if channel == "Q" else self.n_kv
            if value is None:
                flat = channel == "attn"
                shape = (adapter.d_model,) if flat else (n_heads, adapter.d_head)
                return torch.zeros(shape, dtype=adapter.dtype, device=adapter.device)
            value = value.detach()
            if channel in ("K", "V") and value.shape[0] == adapter.n_heads:
                value = value[:: self.group]  # repeated for each query head that reads it
            return value
        # TransformerLens calls the matrix of the linear branch W_in, in gated MLPs too.
        own = {"gate": f"{kind}_gate", "up": f"{kind}_in", "in": f"{kind}_in", "mlp": "b_out"}
        value = getattr(block.mlp, own[channel], None)
        if kind == "W":
            if not isinstance(value, Tensor) or value.ndim != 2:
                raise LensSkillsError(
                    f"layer {layer} of {adapter.name} has no single matrix for {channel!r} (a "
                    "mixture of experts?): its neurons' inputs cannot be told apart."
                )
            value = value.detach()
            value = value if value.shape[0] == adapter.d_model else value.mT
            return rearrange(value, "d neuron -> 1 d neuron")
        width = adapter.d_model if channel == "mlp" else adapter.d_mlp
        if value is None:
            value = torch.zeros(width, dtype=adapter.dtype, device=adapter.device)
        return value.detach() if channel == "mlp" else repeat(value.detach(), "f -> 1 f")
