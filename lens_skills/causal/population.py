"""`Population`: all units of the kinds on trial, and what a control is matched on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import BATCH_SIZE, Position
from lens_skills.causal.baseline import read_batches
from lens_skills.causal.units import HEADS, MLP, Unit
from lens_skills.example import Example
from lens_skills.models import Lens

FEATURES = ("mean |a|", "std", "‖W_out‖")
_WRITTEN = ("mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear")


@dataclass(frozen=True, eq=False)
class Population:
    """Every unit of some kinds in every layer, with what it does on some examples.

    Attributes:
        units: The units; those of one kind and layer stand together.
        kind: Which units are alike (site and width), as a code.
        stratum: Which are alike and in one layer, as a code.
        raw: `FEATURES` of each unit: mean |activation| and its standard deviation at the
            positions, and the norm of what it writes per unit of activation (MLP neurons; 1 for
            other units, whose norm is not asked for).
        scaled: Their logarithms in standard deviations of the stratum.
        unmatchable: Units with a feature of exactly 0 (it writes nothing, or never fires), which
            no other unit can match; there the smallest positive value stands in.
    """

    units: tuple[Unit, ...]
    kind: Int[Tensor, " unit"]
    stratum: Int[Tensor, " unit"]
    raw: Float[Tensor, "unit feature"]
    scaled: Float[Tensor, "unit feature"]
    unmatchable: Bool[Tensor, " unit"]

    @classmethod
    def of(
        cls,
        units: Sequence[Unit],
        kind: Int[Tensor, " unit"],
        stratum: Int[Tensor, " unit"],
        raw: Float[Tensor, "unit feature"],
    ) -> "Population":
        """The population with its features on the scale they are matched on."""
        scaled = torch.zeros_like(raw)
        for code in stratum.unique().tolist():
            inside = stratum == code
            part = raw[inside]
            floor = torch.where(part > 0, part, torch.inf).min(dim=0).values
            logs = torch.where(part > 0, part, torch.where(floor.isfinite(), floor, 1.0)).log()
            spread = logs.std(dim=0, correction=0)
            scaled[inside] = (logs - logs.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)
        return cls(tuple(units), kind, stratum, raw, scaled, (raw == 0).any(dim=1))

    def places(self, units: Sequence[Unit]) -> Int[Tensor, " k"]:
        """Where some units stand in the population."""
        index = {_key(unit): place for place, unit in enumerate(self.units)}
        return torch.tensor([index[_key(unit)] for unit in units], dtype=torch.long)


def survey(
    lens: Lens,
    examples: Sequence[Example],
    candidates: Sequence[Unit],
    *,
    position: Position = "last",
    batch_size: int = BATCH_SIZE,
) -> Population:
    """All units of the candidates' kinds, measured on the examples at the positions.

    One forward pass per kind (neurons of a site, heads, whole MLPs).
    """
    kinds = list(dict.fromkeys((unit.site, unit.stop - unit.start) for unit in candidates))
    units: list[Unit] = []
    kind, stratum, raw = [], [], []
    for code, (site, width) in enumerate(kinds):
        level, spread = _moments(lens, examples, site, width, position, batch_size)
        n_layers, n_units = level.shape
        units += [
            Unit(_name(site, width, layer, i), layer, site, i * width, (i + 1) * width)
            for layer in range(n_layers)
            for i in range(n_units)
        ]
        norm = torch.ones_like(level)
        if site in _WRITTEN:
            norm = torch.stack(
                [lens.weight_out(at).double().norm(dim=1).cpu() for at in range(n_layers)]
            )
        raw.append(rearrange([level, spread, norm], "feature layer unit -> (layer unit) feature"))
        kind.append(torch.full((n_layers * n_units,), code))
        stratum.append(code * lens.n_layers + torch.arange(n_layers).repeat_interleave(n_units))
    return Population.of(units, torch.cat(kind), torch.cat(stratum), torch.cat(raw))


def _moments(
    lens: Lens,
    examples: Sequence[Example],
    site: str,
    width: int,
    position: Position,
    batch_size: int,
) -> tuple[Float[Tensor, "layer unit"], Float[Tensor, "layer unit"]]:
    """Mean |a| and standard deviation of each unit, over examples, positions and its features."""
    level = total = square = torch.zeros(1, dtype=torch.float64)
    count = 0
    layers = range(lens.n_layers)
    for _, values, mask in read_batches(
        lens, examples, site, layers, position=position, answers=None, batch_size=batch_size
    ):
        rows = rearrange(values.double(), "batch pos layer feature -> (batch pos) layer feature")
        if mask is not None:
            rows = rows[rearrange(mask, "batch pos -> (batch pos)")]
        level = level + reduce(rows.abs(), "row layer feature -> layer feature", "sum")
        total = total + reduce(rows, "row layer feature -> layer feature", "sum")
        square = square + reduce(rows**2, "row layer feature -> layer feature", "sum")
        count += len(rows)
    variance = (square / count - (total / count) ** 2).clamp(min=0)
    pattern = "layer (unit width) -> layer unit"
    return (
        reduce(level / count, pattern, "mean", width=width),
        reduce(variance, pattern, "mean", width=width).sqrt(),
    )


def _name(site: str, width: int, layer: int, index: int) -> str:
    if site == MLP and width > 1:
        return f"L{layer}MLP"
    return f"L{layer}{'H' if site == HEADS and width > 1 else 'N'}{index}"


def _key(unit: Unit) -> tuple[int, str, int, int]:
    return unit.layer, unit.site, unit.start, unit.stop
