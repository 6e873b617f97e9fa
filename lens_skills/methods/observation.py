"""`observe`: everything methods ask of the activations, from as few passes as memory allows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.methods.method import Method
from lens_skills.methods.reading import Reader
from lens_skills.methods.sums import Sums, joined
from lens_skills.methods.target import Target
from lens_skills.methods.values import Values
from lens_skills.stats.moments import Moments, RunningMoments
from lens_skills.stats.rotation import rotate

STORED = 512 << 20
"""Bytes of activations kept at once; more layers than fit are read in further passes."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What the passes over the activations gave.

    Attributes:
        sums: Of every unit.
        scores: Of each method that needed stored values.
        seconds: Of each of those, for its own arithmetic; ``"pass"`` for the forward passes.
        rotated: How much of each direction of the rotated basis the target explains (r² or η²);
            None without a rotation.
        n_passes: How often the split was read.
    """

    sums: Sums
    scores: dict[str, Float[Tensor, " unit"]]
    seconds: dict[str, float]
    rotated: Float[Tensor, " unit"] | None
    n_passes: int


def observe(
    reader: Reader,
    target: Target,
    methods: Sequence[Method],
    *,
    fires: Callable[[Tensor], Tensor] | None = None,
    gate: bool = False,
    rotation: Float[Tensor, "width width"] | None = None,
    seed: int = 0,
) -> Observation:
    """The sums over a split, and the scores of the methods that need stored values.

    Args:
        reader: The split.
        target: What is ranked by.
        methods: All that were asked for.
        fires: From the gate or the activation to whether the neuron fires.
        gate: Whether it asks the gate.
        rotation: A random rotation of every layer.
        seed: Of the methods that draw.
    """
    stored = [method for method in methods if method.reads == "values"]
    gate = gate and fires is not None
    groups = [example.group for example in reader.examples]
    parts: list[Sums] = []
    turned: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {method.name: [] for method in stored}
    seconds = {"pass": 0.0, **{method.name: 0.0 for method in stored}}
    chunks = _chunks(reader, keep=bool(stored))
    for layers in chunks:
        start = time.perf_counter()
        moments, fired, kept = _read(reader, target, layers, gate, fires, rotation, bool(stored))
        sums = Sums.of(target, moments, fired, reader.width)
        seconds["pass"] += time.perf_counter() - start
        parts.append(sums)
        if rotation is not None:
            turned.append(_explained(sums, moments.rotated_square[0].cpu(), rotation))
        for place in range(len(layers)):
            here = slice(place * reader.width, (place + 1) * reader.width)
            for method in stored:
                assert kept is not None
                start = time.perf_counter()
                values = Values(kept[:, here], target, groups, sums.constant[here], seed)
                scores[method.name].append(method.of(values))
                seconds[method.name] += time.perf_counter() - start
    return Observation(
        sums=joined(parts),
        scores={name: torch.cat(found) for name, found in scores.items()},
        seconds=seconds,
        rotated=torch.cat(turned) if turned else None,
        n_passes=len(chunks),
    )


def _chunks(reader: Reader, *, keep: bool) -> list[tuple[int, ...]]:
    layers = reader.site.layers
    if not keep:
        return [layers]
    per_layer = 4 * reader.width * len(reader.examples)
    size = max(1, STORED // per_layer)
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _read(
    reader: Reader,
    target: Target,
    layers: Sequence[int],
    gate: bool,
    fires: Callable[[Tensor], Tensor] | None,
    rotation: Float[Tensor, "width width"] | None,
    keep: bool,
) -> tuple[Moments, Float[Tensor, "category unit"] | None, Float[Tensor, "row unit"] | None]:
    """One pass over some layers: sums, firing counts and, where they are needed, the values."""
    n_units, n_rows = reader.width * len(layers), len(target.values)
    columns = torch.cat([target.values[:, None], target.membership], dim=1)
    running = RunningMoments(
        columns.shape[1], n_units, rotations=None if rotation is None else [rotation]
    )
    fired = torch.zeros(columns.shape[1] - 1, n_units, dtype=torch.float64)
    kept = torch.zeros(n_rows, n_units) if keep else None
    for read in reader.read(layers, gate=gate):
        running.absorb(columns[read.index], read.units)
        if fires is not None:
            open_ = fires(read.units if read.gate is None else read.gate).double()
            fired += target.membership[read.index].T @ open_
        if kept is not None:
            kept[read.index] = read.units.float()
    return running.freeze(), fired if fires is not None else None, kept


def _explained(
    sums: Sums, square: Float[Tensor, " unit"], rotation: Float[Tensor, "width width"]
) -> Float[Tensor, " unit"]:
    """The share of each rotated direction's variance that the target explains.

    η² over the classes, which for two of them is r²; r² for a continuous target.
    """
    rows, weights = sums.cross[None], torch.tensor([sums.target_square], dtype=torch.float64)
    if sums.target.classes:
        rows, weights = sums.class_cross, sums.size
    turned = rotate(rows.float(), rotation).double()
    explained = (turned**2 / rearrange(weights, "category -> category 1")).sum(0)
    return (explained / square.clamp(min=1e-300)).clamp(max=1)
