"""`formula_of`: what each kind of edit computes, with the numbers it reads from its source."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_skills.causal.baseline import Baseline, Key
from lens_skills.causal.patching import patch_formula
from lens_skills.causal.sources import Formula, SourceReader, Spot, generator_of
from lens_skills.errors import LensSkillsError


def formula_of(kind: str, amount: float, over: Any, source: Any, reader: SourceReader) -> Formula:
    """What an edit computes, after its source was read once.

    Raises:
        LensSkillsError: A source that is missing, empty, or does not fit the examples.
    """
    if kind == "zero":
        return lambda spot: torch.zeros_like(spot.old)
    if kind == "clamp":
        return lambda spot: torch.full_like(spot.old, amount)
    if kind == "scale":
        return lambda spot: spot.old * amount
    if kind == "patch":
        return patch_formula(source, reader)
    if over is None:
        what = {"mean": "means", "resample": "donors"}.get(kind, "standard deviations")
        raise LensSkillsError(
            f"{kind!r} needs a split for its {what}, and none was declared. Say over=explore (a "
            "Task, or the Scores of one)."
        )
    if kind == "resample":
        return _resample(over, reader)
    baseline = reader.baseline(over)
    if kind == "mean":
        return lambda spot: _pick(baseline.mean, spot).expand_as(spot.old)
    if kind == "steer":
        return lambda spot: spot.old + amount * _pick(baseline.std, spot).to(spot.old)
    assert kind == "noise", kind
    return _noise(baseline, amount, reader)


def _pick(table: Mapping[Key, Float[Tensor, "pos width"]], spot: Spot) -> Tensor:
    """The table's numbers for the spot's features, ``row pos feature`` (pos may be 1)."""
    found = table[spot.layer, spot.site][:, spot.features.cpu()].transpose(0, 1)
    if found.isnan().any():
        lacks = int(spot.features[tuple(found.isnan().any(1).nonzero()[0])])
        raise LensSkillsError(
            f"over= holds no numbers for feature {lacks} of {spot.site} in layer {spot.layer}. "
            "Give the split itself: over=task."
        )
    return found.to(spot.old.device)


def _noise(baseline: Baseline, amount: float, reader: SourceReader) -> Formula:
    def compute(spot: Spot) -> Tensor:
        n_pos, width = spot.old.shape[1], baseline.std[spot.layer, spot.site].shape[1]
        noise = torch.zeros(spot.old.shape, dtype=torch.float64)
        for example in spot.examples.unique().tolist():
            # A whole layer's noise is drawn each time, so that a unit's does not depend on which
            # units stand beside it; positions are drawn one after another for the same reason.
            words = ("noise", reader.key(example), spot.layer, spot.site, spot.draw)
            drawn = generator_of(reader.seed, *words).standard_normal((n_pos, width))
            for row in (spot.examples == example).nonzero()[:, 0].tolist():
                noise[row] = torch.from_numpy(drawn)[:, spot.features[row].cpu()]
        size = amount * _pick(baseline.std, spot)
        return spot.old + (size * noise.to(size)).to(spot.old)

    return compute


def _resample(over: Any, reader: SourceReader) -> Formula:
    if hasattr(over, "provenance") or isinstance(over, Baseline):
        raise LensSkillsError(
            "'resample' puts in place what other examples did, which results do not hold. Give the "
            "split itself: over=task."
        )
    donors = [example.id for example in over]
    values = reader.values(over, one_token=reader.everywhere)

    @cache
    def others(key: str) -> np.ndarray:
        """Every donor but the example itself, in an order drawn for it."""
        found = [place for place, donor in enumerate(donors) if donor != key]
        if not found:
            raise LensSkillsError(
                f"over= holds no example but {key!r} itself to resample it from. Give more."
            )
        return generator_of(reader.seed, "donor", key).permutation(found)

    for example in reader.examples:
        others(example.id)

    def chosen(place: int, draw: int, n_pos: int) -> np.ndarray:
        """One donor for all positions; with "all", one for each."""
        order = others(reader.key(place))
        if reader.everywhere:
            generator = generator_of(reader.seed, "donors", reader.key(place), draw)
            return order[generator.integers(len(order), size=n_pos)]
        return np.repeat(order[draw % len(order)], n_pos)

    def compute(spot: Spot) -> Tensor:
        n_pos = spot.old.shape[1]
        rows = {place: chosen(place, spot.draw, n_pos) for place in spot.examples.unique().tolist()}
        donor = torch.from_numpy(np.stack([rows[place] for place in spot.examples.tolist()]))
        positions = torch.arange(n_pos) * (0 if reader.everywhere else 1)
        table = values[spot.layer, spot.site]
        return table[donor[:, :, None], positions[None, :, None], spot.features.cpu()[:, None]]

    return compute
