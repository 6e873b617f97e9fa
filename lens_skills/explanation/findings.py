"""Rows of a neuron's features, and of the features themselves, for tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lens_skills.explanation.association import Association
from lens_skills.explanation.bank import FeatureBank

ALPHA = 0.05
ACCEPTED = 0.6
"""Share of the top examples from which on a feature is accepted as a heuristic (2410.21272)."""

_DIGITS = 6  # of a share or a p: more are noise


def feature_rows(
    found: Association, neuron: int, bank: FeatureBank, names: Sequence[str], *, gated: bool
) -> tuple[Mapping[str, Any], ...]:
    """One neuron's features, best on the fitted half first; None where a number is not defined."""
    order = found.explained_fitted[neuron].argsort(descending=True, stable=True)
    rows = []
    for place in order.tolist():
        feature = bank[names[int(place)]]

        def number(name: str, place: int = place) -> float | None:
            value = float(getattr(found, name)[neuron, place])
            return None if math.isnan(value) else round(value, _DIGITS)

        base = float(found.base[place])
        top, p_top = number("overlap_top"), number("p_top")
        bottom, p_bottom = number("overlap_bottom"), number("p_bottom")
        sides = [(top, p_top), (bottom, p_bottom)] if gated else [(top, p_top)]
        rows.append(
            {
                "feature": feature.name,
                "kind": feature.kind,
                "surface": feature.surface,
                "family": feature.family,
                "explained_fitted": number("explained_fitted"),
                "variance_explained": number("explained"),
                "direction": int(found.direction[neuron, place]),
                "overlap_top": top,
                "overlap_bottom": bottom,
                "base": None if math.isnan(base) else round(base, _DIGITS),
                "lift": None if top is None else round(top / base, _DIGITS),
                "information": number("information"),
                "p": number("p"),
                "q": number("q"),
                "p_top": p_top,
                "p_bottom": p_bottom,
                "p_information": number("p_information"),
                "accepted": any(_accepted(share, p) for share, p in sides),
            }
        )
    return tuple(rows)


def feature_table(bank: FeatureBank, names: Sequence[str], found: Association) -> pd.DataFrame:
    """One row per feature: feature kind surface family exchange."""
    frame = bank.only(*names).frame()
    return frame.assign(exchange=list(found.schemes) or [""] * len(frame))


def _accepted(share: float | None, p: float | None) -> bool:
    """At least 60 % of the examples, and (where there is a null) more than chance gives."""
    return share is not None and share >= ACCEPTED and (p is None or p <= ALPHA)
