"""A block's matrices, norms and multipliers: what its heads and neurons read, and how they write.

`ModelWeights` has one layout for both implementations. How attention and MLP are joined to the
residual stream (one after the other or side by side, norms before or after them, multipliers) is
found from what a pass gives.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter, keep_activation
from lens_skills.models.weights import FrozenNorm, frozen_norm


def off(found: Tensor, given: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found - given).abs().amax() / given.abs().amax().clamp(min=1e-12))


def _regression(parts: Sequence[Tensor], whole: Tensor) -> tuple[float, list[float]]:
    """What the parts are multiplied by to add up to the whole, and how far off that is."""
    columns = torch.stack([part.detach().double().flatten() for part in parts], dim=1)
    wanted = whole.double().flatten()
    found = torch.linalg.lstsq(columns.cpu(), wanted.cpu()[:, None]).solution[:, 0].to(columns)
    plain, fitted = off(columns.sum(1), wanted), off(columns @ found, wanted)
    if plain <= 10 * fitted:  # a multiplier only where there is one
        return plain, [1.0] * len(parts)
    return fitted, found.tolist()


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class Sublayer:
    """How a block's attention or MLP stands to the residual stream; the same in every block.

    Attributes:
        before: The block's norm that it reads through; None: it reads the stream itself.
        after: The block's norm that its output passes before it is added; None: none.
        factor: What its output is multiplied by then.
    """

    before: str | None
    after: str | None = None
    factor: float = 1.0


class ModelWeights:
    """The matrices of every block, in one layout for both implementations.

    All are copies of nothing: they are the model's own parameters, or views of them.

    Attributes:
        adapter: The model.
        n_kv: Heads that hold keys and values.
        group: Query heads per such head.
        parallel: Whether the MLP reads what the attention reads, not what that leaves.
        attn, mlp: How the sublayers stand to the residual stream.

    The last three are found in `recognise`, by what a pass gives and not by names.
    """

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        config = adapter.model.cfg
        self.parallel = False
        self.attn, self.mlp = Sublayer("ln1"), Sublayer("ln2")
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
        """The norm before a block's ``"attn"`` or ``"mlp"``; nothing where it has none."""
        return torch.no_grad()(self._module(layer, self.sublayer(part).before))

    def after(self, layer: int, part: str) -> Callable[[Tensor], Tensor]:
        """The norm after a block's ``"attn"`` or ``"mlp"``; nothing where it has none."""
        return torch.no_grad()(self._module(layer, self.sublayer(part).after))

    def sublayer(self, part: str) -> Sublayer:
        """Of ``"attn"`` or ``"mlp"``."""
        return self.attn if part == "attn" else self.mlp

    def _module(self, layer: int, name: str | None) -> Callable[[Tensor], Tensor]:
        return _module_of(self.adapter.model.blocks[layer], name)

    def output(self, layer: int, part: str, features: Tensor) -> Float[Tensor, "*row d_model"]:
        """What a sublayer makes of its heads' ``z`` or its neurons, before any norm after it."""
        if part == "attn":
            out = einsum(features, self.head_out(layer), "... head f, head f d -> ... d")
        else:
            out = features @ self.mlp_out(layer)
        return out + self.bias_out(layer, part)

    def added(
        self, layer: int, part: str, output: Float[Tensor, "*row d_model"]
    ) -> Float[Tensor, "*row d_model"]:
        """What a sublayer adds to the residual stream, of its output."""
        sublayer = self.sublayer(part)
        passed = self.after(layer, part)(output)
        return passed if sublayer.factor == 1 else sublayer.factor * passed

    def pulled(
        self,
        layer: int,
        part: str,
        output: Float[Tensor, "*row d_model"],
        slope: Float[Tensor, "*row d_model"],
        *,
        held: bool = False,
    ) -> Float[Tensor, "*row d_model"]:
        """A derivative by what a sublayer adds as one by its output, at this output.

        ``held``: the norm after it keeps its scale.
        """
        sublayer = self.sublayer(part)
        slope = slope if sublayer.factor == 1 else sublayer.factor * slope
        if sublayer.after is None:
            return slope
        norm = self._module(layer, sublayer.after)
        if held:
            return self.frozen(self.after(layer, part), output).back(slope)
        with torch.enable_grad():
            leaf = output.detach().clone().requires_grad_()
            (found,) = torch.autograd.grad(norm(leaf), leaf, slope)
        return found

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
        self,
        entering: Tensor,
        leaving: Tensor,
        z: Tensor,
        post: Tensor,
        given: Mapping[str, Tensor],
    ) -> None:
        """Nothing; finds how block 0's sublayers are joined, and which activation function it has.

        Every norm of the block is tried at every place it could stand in, and none; what a
        sublayer's output is multiplied by is a regression. The nearest counts, where it is near.

        Args:
            entering: The residual stream that enters block 0.
            leaving: The one that leaves it.
            z: What its heads read.
            post: Its neurons' activations.
            given: Per ``"Q"``, ``"K"``, ``"V"``, the heads' pre-activations, flattened.

        Raises:
            LensSkillsError: No such layout, or activation function, gives these.
        """
        norms = _norms_of(self.adapter.model.blocks[0])
        self._recognise_reading(entering, given, norms)
        out = {"attn": self.output(0, "attn", z), "mlp": self.output(0, "mlp", post)}
        best, tried = float("inf"), list[Sublayer]()
        for after in itertools.product(norms, norms):
            parts = [self._module(0, n)(out[p]) for n, p in zip(after, out, strict=True)]
            error, factors = _regression(parts, leaving - entering)
            if error < 0.5 * best:  # a later one only where it is clearly nearer
                best = error
                tried = [Sublayer(None, *one) for one in zip(after, factors, strict=True)]
        self._near(best, "leaves block 0", "the sum of what its parts write")
        self.attn, self.mlp = replace(tried[0], before=self.attn.before), tried[1]
        middle = entering + self.added(0, "attn", out["attn"])
        self._recognise_neurons({False: middle, True: entering}, post, norms)

    def _recognise_reading(
        self, entering: Tensor, given: Mapping[str, Tensor], norms: Sequence[str | None]
    ) -> None:
        errors = {}
        for name in norms:
            normal = torch.no_grad()(self._module(0, name))(entering)
            errors[name] = max(
                off(self.preactivation(0, channel, normal).flatten(2), given[channel])
                for channel in given
            )
        best = min(errors, key=lambda name: errors[name])
        self._near(errors[best], "is read by the heads of block 0", "W x + b of one of its norms")
        self.attn = Sublayer(best)

    def _recognise_neurons(
        self, streams: Mapping[bool, Tensor], post: Tensor, norms: Sequence[str | None]
    ) -> None:
        errors = {}
        after = self.mlp
        for parallel, name in itertools.product(streams, norms):
            self.mlp = replace(after, before=name)
            pre = self.neurons(0, streams[parallel])
            for kind, self.act in ACTIVATIONS.items():
                errors[parallel, name, kind] = off(self.activation(pre), post)
        # The two forms of GELU are so near each other that the best must be taken, not the first.
        best = min(errors, key=lambda key: errors[key])
        self.parallel, self.mlp = best[0], replace(after, before=best[1])
        self.act = ACTIVATIONS[best[2]]
        self._near(
            errors[best],
            "are the neurons of block 0",
            "act(gate) * up or act(in) of its own matrices with a known act "
            f"({', '.join(ACTIVATIONS)})",
        )

    def _near(self, error: float, what: str, wanted: str) -> None:
        fine = self.adapter.dtype in (torch.float32, torch.float64)
        if not error <= (1e-4 if fine else 0.05):
            raise LensSkillsError(
                f"{self.adapter.name}: what {what} is not {wanted} (off by {error:.1g} of the "
                "largest number), so edges cannot be told apart and there are no circuits of it; "
                "sweep and verify work."
            )

    def _kept(self, layer: int, name: str) -> Tensor:
        if (layer, name) not in self._matrices:
            self._matrices[layer, name] = self._found(layer, name)
        return self._matrices[layer, name]

    def _found(self, layer: int, name: str) -> Tensor:
        adapter, block = self.adapter, self.adapter.model.blocks[layer]
        kind, channel = name.split("_", 1)
        if channel in ("Q", "K", "V", "O", "attn"):
            value = adapter.weight_of(block.attn, f"{kind}_{'O' if channel == 'attn' else channel}")
            n_heads = adapter.n_heads if channel == "Q" else self.n_kv
            if value is None:
                flat = channel == "attn"
                shape = (adapter.d_model,) if flat else (n_heads, adapter.d_head)
                return torch.zeros(shape, dtype=adapter.dtype, device=adapter.device_of(layer))
            value = value.detach()
            if channel in ("K", "V") and value.shape[0] == adapter.n_heads:
                value = value[:: self.group]  # repeated for each query head that reads it
            return value
        # TransformerLens calls the matrix of the linear branch W_in, in gated MLPs too.
        own = {"gate": f"{kind}_gate", "up": f"{kind}_in", "in": f"{kind}_in", "mlp": "b_out"}
        value = adapter.weight_of(block.mlp, own[channel])
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
            value = torch.zeros(width, dtype=adapter.dtype, device=adapter.device_of(layer))
        return value.detach() if channel == "mlp" else repeat(value.detach(), "f -> 1 f")


_TOKENS = 12


def neuron_rows(adapter: ModelAdapter, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """What each neuron of a layer writes, to a factor they share: its row of W_out.

    Where a norm follows the MLP, the row as that norm lets it through at a fixed scale: without
    its mean where that is removed, times the gain. Found by disturbing the neurons of one pass.

    Raises:
        LensSkillsError: No single output matrix, or something else stands behind it.
    """
    weight = adapter.weight_out(layer)
    block = adapter.model.blocks[layer]
    tokens = torch.arange(_TOKENS)[None] * 7 % adapter.d_vocab
    seen: dict[tuple[str, int], Tensor] = {}
    neurons, leaving = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_resid_post"

    def disturb(activation: Tensor) -> Tensor:
        noise = torch.linspace(-1, 1, activation.shape[-1]).to(activation)
        return activation + activation.abs().amax() * noise.roll(1).cos() * noise

    for number, editors in enumerate(({}, {neurons: disturb})):
        readers = {name: keep_activation(seen, (name, number)) for name in (neurons, leaving)}
        mask = torch.ones_like(tokens, dtype=torch.bool)
        adapter.forward(tokens, mask, readers=readers, logits_at=None, editors=editors)
    bias = getattr(block.mlp, "b_out", None)
    out = [seen[neurons, k] @ weight + (0.0 if bias is None else bias) for k in (0, 1)]
    moved = seen[leaving, 1] - seen[leaving, 0]
    errors: dict[str | None, float] = {}
    for name in _norms_of(block):
        norm = torch.no_grad()(_module_of(block, name))
        errors[name] = _regression([norm(out[1]) - norm(out[0])], moved)[0]
    best = min(errors, key=lambda name: errors[name])
    if not errors[best] <= (1e-3 if adapter.dtype in (torch.float32, torch.float64) else 0.05):
        raise LensSkillsError(
            f"what neurons of layer {layer} of {adapter.name} write is neither their row of W_out "
            "nor that row through a norm of the block. Choose another model."
        )
    if best is None:
        return weight
    norm = torch.no_grad()(_module_of(block, best))
    some = out[0][0][(out[0][0] != 0).any(-1)]  # a padding token may give zeros, without a scale
    found = frozen_norm(norm, some)
    assert found is not None, "a norm that was just found to hold"
    gain, centred = found
    return FrozenNorm(gain.mean(0), centred)(weight.double())


def _norms_of(block: Any) -> list[str | None]:
    """The names of a block's norms, and None for no norm."""
    names = [name for name, _ in block.named_children()]
    return [None, *(name for name in names if name.startswith("ln") or "norm" in name)]


def _module_of(block: Any, name: str | None) -> Callable[[Tensor], Tensor]:
    if name is None:
        return lambda given: given
    module = getattr(block, name)
    return lambda given: module(given)
