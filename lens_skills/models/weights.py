"""The model's matrices as each part reads and writes, the final norm and the unembedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.models.adapter import ModelAdapter, keep_activation
from lens_skills.models.partial_forward import PartialForward

_BIG = 1e4  # so large that a norm's epsilon does not count
_FINE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest output; else:
_FINEST = 1e-3


def frozen_norm(
    norm: Callable[[Tensor], Tensor], residual: Float[Tensor, "example d_model"]
) -> tuple[Float[Tensor, "example d_model"], bool] | None:
    """The norm at a fixed scale as a gain per feature, and whether the mean is removed first.

    Found by asking the norm itself: its weight and bias from large inputs, its scale from the
    given ones. None where it is neither a LayerNorm nor an RMSNorm, to the rounding of the dtype.
    """
    width = residual.shape[-1]
    probe = residual.new_ones(1, width)
    probe[:, ::2] = -1.0
    probe = _BIG * (probe - probe.mean())
    up, down = norm(probe).double(), norm(-probe).double()
    bias = (up + down) / 2
    out = norm(residual).double() - bias
    fits: list[tuple[float, Tensor, bool, float]] = []
    for centred in (False, True):
        unit = probe.double()
        weight = (up - bias) / (unit / unit.square().mean().sqrt())
        x = residual.double() - (residual.double().mean(-1, keepdim=True) if centred else 0.0)
        shaped = x * weight
        # Least squares: out = shaped / scale.
        inverse = (out * shaped).sum(-1, keepdim=True) / shaped.square().sum(-1, keepdim=True)
        off = shaped * inverse - out
        share = float(off.abs().amax() / out.abs().amax())
        fits.append((float(off.square().mean()), inverse * weight, centred, share))
    # A small mean is lost in the rounding of half precision: the nearer of both, over all features.
    best = min(fits, key=lambda fit: fit[0])
    return best[1:3] if best[3] <= _FINE.get(residual.dtype, _FINEST) else None


@dataclass(frozen=True, eq=False)
class FrozenNorm:
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

    def at(self, column: int) -> "FrozenNorm":
        """The same of one column."""
        return FrozenNorm(self.gain[:, column], self.centred)

    def back(self, slope: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """A derivative by the output as a derivative by the input, at this scale."""
        slope = slope * self.gain
        return slope - slope.mean(-1, keepdim=True) if self.centred else slope


_CHUNK = 8192  # columns of the vocabulary projection held in float64 at once
_PROBES = 4
_FAINT = 1e-4  # of the largest logit write a vector of that length could make


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The effective vocabulary projection W = C diag(gain) W_U C', as its second moments.

    The final norm's gain is multiplied in, its removal of the mean (C, LayerNorm only) too, and
    the mean over the vocabulary is taken off (C'), which no softmax notices. So a raw model and a
    folded or centred one have the same. Everything here needs W only through ``d_model`` times
    ``d_model`` products, so all neurons of a model take seconds.

    Attributes:
        gain: Of the final norm, to a common factor.
        centred: Whether the final norm removes the mean first.
        product: W W^T.
        covariance: Over the vocabulary, of W's columns divided by their lengths.
        projection: W_U as the model holds it.
        mean: Its mean over the vocabulary.
        said: What was folded in, in words.
    """

    gain: Float[Tensor, " d_model"]
    centred: bool
    product: Float[Tensor, "d_model d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    projection: Float[Tensor, "d_model d_vocab"]
    mean: Float[Tensor, " d_model"]
    said: str

    @classmethod
    def of(cls, adapter: ModelAdapter) -> "Unembedding":
        """Of a model with a LayerNorm or an RMSNorm before its vocabulary projection.

        Raises:
            LensSkillsError: A final norm of another kind, or none.
        """
        weight = adapter.unembed_vectors()[0]
        gain, centred = final_gain(adapter)
        mean = torch.zeros(adapter.d_model, dtype=torch.float64, device=weight.device)
        for part in weight.split(_CHUNK, dim=1):
            mean += part.double().sum(1)
        mean /= weight.shape[1]
        product = torch.zeros(
            adapter.d_model, adapter.d_model, dtype=torch.float64, device=weight.device
        )
        second, first = torch.zeros_like(product), torch.zeros_like(mean)
        for part in weight.split(_CHUNK, dim=1):
            columns = _effective(part, gain, mean, centred)
            product += columns @ columns.T
            unit = columns / columns.norm(dim=0).clamp(min=1e-300)
            first += unit.sum(1)
            second += unit @ unit.T
        n = weight.shape[1]
        covariance = (second - first[:, None] * first / n) / (n - 1)
        flat = bool((gain / gain.mean() - 1).abs().max() < 1e-4)
        said = (
            "the final norm has no gain of its own (folded into W_U)"
            if flat
            else "W_U as the model holds it, times the final norm's gain"
        )
        said += "; the mean over d_model is removed, as its LayerNorm does" if centred else ""
        said += "; the mean over the vocabulary is removed"
        return cls(gain, centred, product, covariance, weight, mean, said)

    @cached_property
    def spectrum(self) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
        """Singular values of W, smallest first, and the left singular vectors as columns."""
        values, vectors = torch.linalg.eigh(self.product)
        return values.clamp(min=0).sqrt(), vectors

    def writes(self, rows: Float[Tensor, "neuron d_model"]) -> Float[Tensor, "neuron d_model"]:
        """What neurons write, as the final norm sees it: without the mean where that is removed."""
        rows = rows.double()
        return rows - rows.mean(1, keepdim=True) if self.centred else rows

    def norm(self, rows: Float[Tensor, "neuron d_model"]) -> Float[Tensor, " neuron"]:
        """‖w_out‖."""
        return self.writes(rows).norm(dim=1)

    def logit_variance(self, rows: Float[Tensor, "neuron d_model"]) -> Float[Tensor, " neuron"]:
        """Variance over the vocabulary of cos(w_out, column of W); NaN where nothing is written.

        Source: Gurnee et al. 2024 (arXiv 2401.12181) and Stolfo et al. 2024 (arXiv 2406.16254),
        who call it LogitVar; in the latter's released code, the unbiased variance.
        """
        written = self.writes(rows)
        square = torch.einsum("nd,de,ne->n", written, self.covariance, written)
        return square.clamp(min=0) / written.square().sum(1)

    def null_share(self, rows: Float[Tensor, "neuron d_model"], k: int) -> Float[Tensor, " neuron"]:
        """The part of w_out in the span of W's k weakest left singular vectors, 0 to 1.

        rho = ‖V_k^T w_out‖ / ‖w_out‖; k random directions of d_model give about sqrt(k / d_model).

        Source: Stolfo et al. 2024 (arXiv 2406.16254), who take k ≈ 0.01 d_model.
        """
        written = self.writes(rows)
        return (written @ self.spectrum[1][:, :k]).norm(dim=1) / written.norm(dim=1)

    def along(
        self, rows: Float[Tensor, "neuron d_model"], logits: Float[Tensor, " d_vocab"]
    ) -> Float[Tensor, " neuron"]:
        """The signed cosine of what each neuron adds to the logits with a pattern of logits.

        0 where next to nothing is added: in the null space a cosine would be one of rounding.
        """
        pattern = logits.double() - logits.double().mean()
        there = torch.zeros_like(self.mean)
        parts = zip(self.projection.split(_CHUNK, 1), pattern.split(_CHUNK), strict=True)
        for part, wanted in parts:
            there += _effective(part, self.gain, self.mean, self.centred) @ wanted.to(there)
        written = self.writes(rows)
        length = torch.einsum("nd,de,ne->n", written, self.product, written).clamp(min=0).sqrt()
        most = written.norm(dim=1) * self.spectrum[0][-1]
        cosine = written @ there / (length * pattern.norm()).clamp(min=1e-300)
        return torch.where(length > _FAINT * most, cosine, 0.0)


def null_size(d_model: int) -> int:
    """k of the null-space share: one hundredth of ``d_model``, at least 1.

    >>> null_size(576), null_size(32)
    (6, 1)
    """
    return max(1, round(0.01 * d_model))


def final_gain(adapter: ModelAdapter) -> tuple[Float[Tensor, " d_model"], bool]:
    """The final norm's gain, to a common factor, and whether it removes the mean first.

    Raises:
        LensSkillsError: A final norm of another kind, or none.
    """
    norm = final_norm(adapter)
    generator = torch.Generator().manual_seed(0)
    probe = 1e3 * torch.randn(_PROBES, adapter.d_model, generator=generator)
    probe = probe.to(adapter.unembed_vectors()[0].device, adapter.dtype)
    found = frozen_norm(norm, probe)
    # What is twice as long must come out the same: else nothing is normalised.
    once, twice = norm(probe).double(), norm(2 * probe).double()
    if found is None or bool((twice - once).abs().max() > 0.01 * once.abs().max()):
        raise LensSkillsError(
            f"the final norm of {adapter.name} is neither a LayerNorm nor an RMSNorm, so what "
            "writes to it cannot be told from what writes to the logits. Choose a model with one."
        )
    gain, centred = found
    return gain[0] / gain[0].abs().mean(), centred


def final_norm(adapter: ModelAdapter) -> Callable[[Tensor], Tensor]:
    """The model's final norm as a function.

    Raises:
        LensSkillsError: It has none.
    """
    norm: Any = getattr(adapter.model, "ln_final", None)
    if norm is None:
        raise LensSkillsError(
            f"{adapter.name} has no final norm (ln_final), so nothing can act through it. Choose a "
            "model with one."
        )
    return torch.no_grad()(lambda residual: norm(residual))


def _effective(
    part: Float[Tensor, "d_model some"],
    gain: Float[Tensor, " d_model"],
    mean: Float[Tensor, " d_model"],
    centred: bool,
) -> Float[Tensor, "d_model some"]:
    columns = (part.double() - mean[:, None]) * gain.double()[:, None]
    return columns - columns.mean(0) if centred else columns


LayerSite = tuple[int, str]  # layer and site

# Up to so many features their own rows of the matrix are gathered; beyond, all rows are multiplied.
_FEW = 32

# Of a difference quotient, as a share of the length of all activations of the site.
_STEP = 0.03

_BEFORE = ("hook_resid_pre", "hook_resid_mid")
_ATTENTION = ("attn.hook_z", "hook_attn_out")
_IDENTITY = ("hook_mlp_out", "hook_attn_out", "hook_resid_post")


class OutputWeights:
    """For each (layer, site): how its features enter the residual stream.

    A neuron's activation is added through its row of the output matrix in most models, in some
    times a multiplier, but not where a norm follows the MLP; so every matrix is tried on a
    disturbed pass before it is used. `change` needs no matrix.
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
            self._found[spot, to] = candidate
            if candidate is not None:
                factor = self._factor(suffix, spot, to, candidate)
                scaled = candidate if factor in (1.0, None) else candidate * factor
                self._found[spot, to] = None if factor is None else scaled
        return self._found[spot, to]

    def direct(
        self, suffix: PartialForward, spot: LayerSite
    ) -> Float[Tensor, "feature d_model"] | None:
        """What one unit of each feature adds to the residual stream by itself, or None.

        Later parts of the same block (the MLP after an attention head) are not passed.
        """
        layer, enters = spot[0], self.enters(spot)
        if enters in _BEFORE and enters != spot[1]:
            return self.matrix(suffix, spot, enters)
        if enters not in _ATTENTION:
            return self.matrix(suffix, spot, "hook_resid_post")
        middle = f"blocks.{layer}.hook_resid_mid" in self.adapter.hook_names()
        adds = (layer, "hook_attn_out")
        if self.matrix(suffix, adds, "hook_resid_mid" if middle else "hook_resid_post") is None:
            return None
        return self.matrix(suffix, spot, "hook_attn_out")

    def change(
        self,
        suffix: PartialForward,
        spot: LayerSite,
        features: Int[Tensor, "set feature"],
        moved: Float[Tensor, "set example feature"],
    ) -> Float[Tensor, "set example d_model"] | None:
        """What features moved so far at the last column add to the residual stream there, or None.

        By `direct`; where a norm follows the sublayer, by a run of the block alone, the norm
        computed anew and the neurons of the block held where heads move. None: of no known site.
        """
        matrix = self.direct(suffix, spot)
        if matrix is not None:
            return written(moved[:, :, None], features, matrix)[:, :, 0]
        layer, site = spot
        names = self.adapter.hook_names()
        held, own = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.{site}"
        if self._candidate(spot) is None or not {own, held} <= set(names):
            return None
        n_sets, n_examples, _ = moved.shape
        seen: dict[int, Tensor] = {}
        residual = suffix.clean(layer, n_sets)
        suffix.run(residual, layer, stop=layer + 1, editors={held: keep_activation(seen, 0)})
        index = repeat(features, "set feature -> (set example) feature", example=n_examples)

        def move(activation: Tensor) -> Tensor:
            flat = activation.flatten(2).clone()
            push = rearrange(moved, "set example feature -> (set example) feature").to(flat)
            flat[:, -1] = flat[:, -1].scatter_add(1, index.to(flat.device), push)
            return flat.view_as(activation)

        editors = {own: move}
        if self.enters(spot) in _ATTENTION:
            editors[held] = lambda activation: seen[0]
        out = suffix.run(residual, layer, stop=layer + 1, editors=editors)
        return (out - suffix.entering[layer + 1])[:, :, -1].to(moved)

    def rows(
        self, suffix: PartialForward, spot: LayerSite, features: Sequence[int]
    ) -> Float[Tensor, "feature d_model"] | None:
        """What one more unit of each feature adds by itself, the mean over the batch, or None.

        By `direct`; where a norm follows the sublayer, a difference quotient at the last column.
        """
        matrix = self.direct(suffix, spot)
        if matrix is not None:
            return matrix[list(features)]
        layer, site = spot
        seen: dict[int, Tensor] = {}
        name = f"blocks.{layer}.{site}"
        if self._candidate(spot) is None or name not in self.adapter.hook_names():
            return None
        editors = {name: keep_activation(seen, 0, lambda a: a[:, -1].flatten(1))}
        suffix.run(suffix.clean(layer, 1), layer, stop=layer + 1, editors=editors)
        step = _STEP * float(seen[0].norm(dim=1).mean().clamp(min=1e-6))
        chosen = torch.tensor([[feature] for feature in features])
        push = torch.full((len(chosen), len(seen[0]), 1), step).to(seen[0])
        up, down = (self.change(suffix, spot, chosen, sign * push) for sign in (1, -1))
        return None if up is None or down is None else ((up - down) / (2 * step)).mean(1)

    def enters(self, spot: LayerSite) -> str:
        """The model's own site that a site is, or that its dictionary writes."""
        one = self.adapter.features.get(f"blocks.{spot[0]}.{spot[1]}")
        return spot[1] if one is None else str(one.hook_name_out).split(".", 2)[2]

    def _candidate(self, spot: LayerSite) -> Tensor | None:
        layer, site = spot
        one = self.adapter.features.get(f"blocks.{layer}.{site}")
        if one is not None:
            place = self.adapter.device_of(layer)
            # What is scaled token by token has no one direction and length.
            weight = None if one.scaled else one.W_dec.to(place, self.adapter.dtype)
            if weight is None or self.enters(spot) in (*_IDENTITY, *_BEFORE):
                return weight
            inner = self._candidate((layer, self.enters(spot)))
            return None if inner is None else weight @ inner
        block = self.adapter.model.blocks[layer]
        if self.adapter.packed:
            return None
        if site == "mlp.hook_post":
            return self.adapter.weight_out(layer)
        if site == "attn.hook_z":
            weight = self.adapter.weight_of(block.attn, "W_O")
            if not isinstance(weight, Tensor) or weight.ndim != 3:
                return None
            return rearrange(weight.detach(), "head d_head d_model -> (head d_head) d_model")
        if site in _IDENTITY:
            place = self.adapter.device_of(layer)
            return torch.eye(self.adapter.d_model, dtype=self.adapter.dtype, device=place)
        return None

    def _factor(
        self, suffix: PartialForward, spot: LayerSite, to: str, weight: Tensor
    ) -> float | None:
        """What the matrix is to be multiplied by to hold on a disturbed pass; None: nothing."""
        layer, site = spot
        source, target = f"blocks.{layer}.{site}", f"blocks.{layer}.{to}"
        if source == target:
            return 1.0
        if not {source, target} <= set(self.adapter.hook_names()):
            return None
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
        pushed = (scale * push).double().expand_as(found)
        fine = 1e-3 if self.adapter.dtype in (torch.float32, torch.float64) else 0.05
        fitted = float((found * pushed).sum() / pushed.square().sum().clamp(min=1e-300))
        for factor in (1.0, fitted):
            if bool(
                (found - factor * pushed).abs().amax() <= fine * (factor * pushed).abs().amax()
            ):
                return factor
        return None


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
