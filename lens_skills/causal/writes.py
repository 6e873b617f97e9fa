"""`Writes`: what a hook point adds to the residual stream, where that is a matrix; checked."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.causal.stack import Spot
from lens_skills.models.suffix import Suffix

# Up to so many features their own rows of the matrix are gathered; beyond, all rows are multiplied.
_FEW = 32
_IDENTITY = ("hook_mlp_out", "hook_attn_out", "hook_resid_post")


class Writes:
    """For each (layer, site): how its features enter the residual stream.

    A neuron's activation is added through its row of the output matrix in most models, but not
    where a norm or a multiplier follows the MLP; so every matrix is tried on a disturbed pass
    before it is used.
    """

    def __init__(self, lens: Any) -> None:
        self.lens = lens
        self._found: dict[tuple[Spot, str], Tensor | None] = {}

    def matrix(
        self, suffix: Suffix, spot: Spot, to: str
    ) -> Float[Tensor, "feature d_model"] | None:
        """What one unit of each feature adds at hook point ``to`` of the block, or None.

        Args:
            suffix: A batch to try it on.
            spot: Layer and site.
            to: ``"hook_resid_post"`` or ``"hook_attn_out"``.
        """
        if (spot, to) not in self._found:
            candidate = self._candidate(spot)
            holds = candidate is not None and self._holds(suffix, spot, to, candidate)
            self._found[spot, to] = candidate if holds else None
        return self._found[spot, to]

    def direct(self, suffix: Suffix, spot: Spot) -> Float[Tensor, "feature d_model"] | None:
        """What one unit of each feature adds to the residual stream by itself, or None.

        Later parts of the same block (the MLP after an attention head) are not passed.
        """
        layer, site = spot
        if site not in ("attn.hook_z", "hook_attn_out"):
            return self.matrix(suffix, spot, "hook_resid_post")
        middle = f"blocks.{layer}.hook_resid_mid" in self.lens.hook_names()
        adds = (layer, "hook_attn_out")
        if self.matrix(suffix, adds, "hook_resid_mid" if middle else "hook_resid_post") is None:
            return None
        return self.matrix(suffix, spot, "hook_attn_out")

    def _candidate(self, spot: Spot) -> Tensor | None:
        layer, site = spot
        block = self.lens.model.blocks[layer]
        if site == "mlp.hook_post":
            return self.lens.weight_out(layer)
        if site == "attn.hook_z":
            weight = getattr(block.attn, "W_O", None)
            if not isinstance(weight, Tensor) or weight.ndim != 3:
                return None
            return rearrange(weight.detach(), "head d_head d_model -> (head d_head) d_model")
        if site in _IDENTITY:
            return torch.eye(self.lens.d_model, dtype=self.lens.dtype, device=self.lens.device)
        return None

    def _holds(self, suffix: Suffix, spot: Spot, to: str, weight: Tensor) -> bool:
        layer, site = spot
        source, target = f"blocks.{layer}.{site}", f"blocks.{layer}.{to}"
        if source == target:
            return True
        if not {source, target} <= set(self.lens.hook_names()):
            return False
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(len(weight), generator=generator).to(weight)
        push = direction @ weight
        scale = suffix.entering[layer + 1].abs().amax() / push.abs().amax().clamp(min=1e-20)
        seen: list[Tensor] = []

        def disturb(activation: Tensor) -> Tensor:
            return activation + (scale * direction).reshape(activation.shape[2:])

        def read(activation: Tensor) -> Tensor:
            seen.append(activation)
            return activation

        for editors in ({target: read}, {source: disturb, target: read}):
            suffix.run(suffix.clean(layer, 1), layer, stop=layer + 1, editors=editors)
        found = (seen[1] - seen[0]).double()
        error = (found - (scale * push).double()).abs().amax()
        fine = 1e-3 if self.lens.dtype in (torch.float32, torch.float64) else 0.05
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
