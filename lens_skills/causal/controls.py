"""`Controls`: random units and sets that are like the candidates in all but the skill."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.causal.population import FEATURES, Population
from lens_skills.causal.units import Unit
from lens_skills.errors import LensSkillsError

DRAWN = 32
"""A control is the nearest of so many units drawn at random from the candidate's layer."""

FEW_PEERS = 100
"""With fewer others of its kind in its layer, a unit is compared with those of all layers."""


@dataclass(frozen=True, eq=False)
class Controls:
    """Random sets with as many units per layer as the candidates, matched one to one.

    Attributes:
        sets: The control sets; in each, the i-th unit stands for the i-th candidate.
        match: One row per feature: the candidates' mean, the controls' mean, and their
            standardised mean difference (``smd``, in standard deviations of the log feature within
            a layer; 0 is a perfect match, |smd| <= 0.1 is customarily called balanced).
        unmatchable: Names of candidates with a feature of exactly 0, which nothing can match.
    """

    sets: tuple[tuple[Unit, ...], ...]
    match: tuple[dict[str, float | str], ...]
    unmatchable: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row per feature: feature, candidates, controls, smd."""
        return pd.DataFrame(list(self.match))


def matched_sets(
    candidates: Sequence[Unit],
    population: Population,
    *,
    n_sets: int = 200,
    among: Bool[Tensor, " unit"] | None = None,
    drawn: int = DRAWN,
    seed: int = 0,
) -> Controls:
    """Random sets that match the candidates in number per layer and in `FEATURES`.

    For each candidate, ``drawn`` units of its kind and layer (a quarter of them, if that is less)
    are drawn without replacement, none of them a candidate or already in the set, and the nearest
    in the scaled features is taken.

    Args:
        candidates: What the sets stand for.
        population: Where they come from; see `survey`.
        n_sets: How many sets.
        among: Only these units may be controls (the *important* ones).
        drawn: More makes the match closer and the sets more alike.
        seed: Of the draws.

    Raises:
        LensSkillsError: A layer holds fewer other units than it has candidates: says which.

    Source: nearest-neighbour matching within strata, Stuart 2010, sections 3.1 and 4.1.
    """
    places = population.places(candidates)
    free = _others(places, population, among)
    home = population.stratum[places].tolist()
    for stratum in sorted(set(home)):
        members = [unit for unit, at in zip(candidates, home, strict=True) if at == stratum]
        if len(free[stratum]) < len(members):
            kind = "units" if among is None else "important units"
            raise LensSkillsError(
                f"no control set is possible in layer {members[0].layer}: {len(members)} of its "
                f"units at {members[0].site} are candidates and {len(free[stratum])} other {kind} "
                "are left. Verify fewer units of that layer, or each alone (n_controls=0)."
            )
    random = np.random.default_rng(seed)
    scaled = population.scaled.numpy()
    chosen = np.zeros((n_sets, len(candidates)), dtype=np.int64)
    for row in chosen:
        left = {stratum: members.copy() for stratum, members in free.items()}
        for which in random.permutation(len(candidates)):
            pool = left[home[which]]
            # Of few units the nearest would be the same in every set.
            n_drawn = max(min(drawn, len(pool) // 4), 1)
            some = random.choice(len(pool), size=n_drawn, replace=False)
            far = ((scaled[pool[some]] - scaled[places[which]]) ** 2).sum(1)
            taken = some[far.argmin()]
            row[which] = pool[taken]
            left[home[which]] = np.delete(pool, taken)
    return Controls(
        sets=tuple(tuple(population.units[at] for at in row) for row in chosen.tolist()),
        match=_match(places, torch.from_numpy(chosen), population),
        unmatchable=tuple(
            u.name for u, at in zip(candidates, places, strict=True) if population.unmatchable[at]
        ),
    )


def peers(
    candidates: Sequence[Unit], population: Population, *, n_peers: int | None = 1000, seed: int = 0
) -> tuple[Int[Tensor, " peer"], bool]:
    """Places of the single units each candidate is compared with, and whether across layers.

    Every other unit of the candidates' kinds and layers, or a random ``n_peers`` per layer. Where
    a layer has fewer than `FEW_PEERS` others (heads, whole MLPs, tiny models), units of all layers
    serve instead, for all candidates alike.
    """
    places = population.places(candidates)
    strata = population.stratum[places].unique()
    free = _others(places, population, None)
    across = min(len(free[code]) for code in strata.tolist()) < FEW_PEERS
    codes = population.kind if across else population.stratum
    random = np.random.default_rng(seed)
    chosen = []
    for code in codes[places].unique().tolist():
        others = np.setdiff1d((codes == code).nonzero()[:, 0].numpy(), places.numpy())
        if n_peers is not None and len(others) > n_peers:
            others = np.sort(random.choice(others, size=n_peers, replace=False))
        chosen.append(torch.from_numpy(others))
    return torch.cat(chosen), across


def important(
    candidates: Sequence[Unit],
    population: Population,
    strength: Float[Tensor, " unit"],
    *,
    share: float = 0.1,
) -> Bool[Tensor, " unit"]:
    """The units of largest strength in each of the candidates' layers: the stricter controls.

    The top ``share`` of the units whose strength is known (not NaN), and at least three for each
    candidate of the layer.
    """
    places = population.places(candidates)
    chosen = torch.zeros(len(population.units), dtype=torch.bool)
    for stratum, members in _others(places, population, ~strength.isnan()).items():
        n_candidates = int((population.stratum[places] == stratum).sum())
        n_top = max(round(share * len(members)), 3 * n_candidates)
        order = strength[torch.from_numpy(members)].argsort(descending=True, stable=True)
        chosen[torch.from_numpy(members)[order[:n_top]]] = True
    return chosen


def _others(
    places: Int[Tensor, " k"], population: Population, among: Bool[Tensor, " unit"] | None
) -> dict[int, np.ndarray]:
    """Per stratum of the candidates, the places of the units that are none."""
    allowed = (
        torch.ones(len(population.units), dtype=torch.bool) if among is None else among.clone()
    )
    allowed[places] = False
    return {
        code: (allowed & (population.stratum == code)).nonzero()[:, 0].numpy()
        for code in population.stratum[places].unique().tolist()
    }


def _match(
    places: Int[Tensor, " k"], chosen: Int[Tensor, "set k"], population: Population
) -> tuple[dict[str, float | str], ...]:
    if chosen.numel() == 0:
        return ()
    rows = []
    for place, feature in enumerate(FEATURES):
        smd = population.scaled[places, place].mean() - population.scaled[chosen, place].mean()
        rows.append(
            {
                "feature": feature,
                "candidates": float(population.raw[places, place].mean()),
                "controls": float(population.raw[chosen, place].mean()),
                "smd": float(smd),
            }
        )
    return tuple(rows)
