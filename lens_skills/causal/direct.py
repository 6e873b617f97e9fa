"""`DirectPath`: what an edit writes straight to the answer, everything downstream frozen."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.causal.engine import Engine
from lens_skills.causal.stack import Stack
from lens_skills.causal.writes import written

_BIG = 1e4  # so large that a norm's epsilon does not count
_FINE = 1e-3


class DirectPath:
    """The direct effect on log-odds: linear in what is written at the answer's position.

    The write is added to the clean residual stream after the last block and read through the
    final norm at the clean pass's own scale.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3; frozen scale as in McGrath et al. 2023
    (arXiv 2307.15771).
    """

    def __init__(self, engine: Engine, last: Int[Tensor, " example"]) -> None:
        self.engine, self.last = engine, last
        odds, suffix = engine.odds, engine.main
        assert odds is not None
        final = suffix.entering[-1][:, -1]
        gain = frozen_norm(suffix.normalise, final)
        assert gain is not None
        weight, centred = gain
        directions = odds.directions * weight[:, None, :]
        if centred:
            directions = directions - directions.mean(-1, keepdim=True)
        self.directions = directions
        normal = suffix.normalise(final).to(directions)
        self.clean = torch.einsum("ed,ekd->ek", normal, odds.directions) + odds.offsets

    @classmethod
    def of(cls, engine: Engine) -> "DirectPath | None":
        """The direct path of a batch, or None where it is not defined.

        That is where the metric is no log-odds of single tokens, where an example is not edited
        at the position that predicts its answer, or where the final norm is of an unknown kind.
        """
        if engine.odds is None:
            return None
        answering = (engine.at.columns == engine.width - 1) & engine.at.valid
        final = engine.main.entering[-1][:, -1]
        if not bool(answering.any(1).all()) or frozen_norm(engine.main.normalise, final) is None:
            return None
        return cls(engine, answering.long().argmax(1))

    def measure(self, stack: Stack, draw: int) -> Float[Tensor, "set example"] | None:
        """The direct effect of each set, or None where what it writes is not known."""
        engine = self.engine
        total: Tensor | float = 0.0
        for spot, features in stack.features.items():
            weight = engine.setting.writes.direct(engine.main, spot)
            if weight is None:
                return None
            moved = engine.difference(spot, features, draw).double()
            examples = torch.arange(moved.shape[1], device=moved.device)
            moved = moved[:, examples, self.last.to(moved.device)][:, :, None]
            total = total + written(moved, features, weight)[:, :, 0]
        pushed = torch.einsum("sed,ekd->sek", total, self.directions)
        return ((self.clean + pushed).amin(-1) - self.clean.amin(-1)).cpu()


def frozen_norm(
    norm: Callable[[Tensor], Tensor], residual: Float[Tensor, "example d_model"]
) -> tuple[Float[Tensor, "example d_model"], bool] | None:
    """The norm at a fixed scale as a gain per feature, and whether the mean is removed first.

    Found by asking the norm itself: its weight and bias from large inputs, its scale from the
    given ones. None where it is neither a LayerNorm nor an RMSNorm.
    """
    width = residual.shape[-1]
    probe = residual.new_ones(1, width)
    probe[:, ::2] = -1.0
    probe = _BIG * (probe - probe.mean())
    up, down = norm(probe).double(), norm(-probe).double()
    bias = (up + down) / 2
    out = norm(residual).double() - bias
    for centred in (False, True):
        unit = probe.double()
        weight = (up - bias) / (unit / unit.square().mean().sqrt())
        x = residual.double() - (residual.double().mean(-1, keepdim=True) if centred else 0.0)
        shaped = x * weight
        # Least squares: out = shaped / scale.
        inverse = (out * shaped).sum(-1, keepdim=True) / shaped.square().sum(-1, keepdim=True)
        error = (shaped * inverse - out).abs().amax() / out.abs().amax()
        if bool(error <= _FINE):
            return inverse * weight, centred
    return None
