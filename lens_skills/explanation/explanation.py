"""`Explanation`: what drives one neuron, what it writes, and where it is strongest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.errors import LensSkillsError
from lens_skills.explanation.findings import ALPHA
from lens_skills.explanation.reading import Excerpt
from lens_skills.explanation.vocabulary import TokenLogits, shown

_EXAMPLES = 3  # so many are printed


@dataclass(frozen=True, eq=False)
class Explanation:
    """One neuron and the features that explain it.

    Attributes:
        name: Such as ``"L17N635"``.
        rows: One per feature, best on the fitted half first; see ``features``.
        top, bottom: The examples on which it is most and least active, token by token.
        writes: The tokens it promotes and suppresses; None where it is no MLP neuron.
        activation: On every example, in their order.
        values: Every feature of the same examples, one column each.
        note: Why there is nothing to explain, where there is not.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]
    top: tuple[Excerpt, ...]
    bottom: tuple[Excerpt, ...]
    writes: TokenLogits | None
    activation: Float[Tensor, " row"]
    values: pd.DataFrame
    note: str = ""

    @property
    def features(self) -> pd.DataFrame:
        """One row per feature, ranked by the variance explained on the *fitted* half.

        All else is measured on the other half: ``variance_explained``; ``direction`` (+1 where the
        neuron is higher with the feature); ``overlap_top``, ``overlap_bottom``, ``base`` and
        ``lift`` (overlap_top / base) of flags; ``information`` (bits); ``p`` (family-wise over the
        neuron's features) and ``q`` (over all neurons and features) of the variance explained;
        ``p_top``, ``p_bottom``, ``p_information`` (family-wise); ``accepted``: at least 60 % of
        the top (of a gated MLP, or the bottom) examples have it, and p of that is 0.05 or less.
        """
        return pd.DataFrame([dict(row) for row in self.rows])

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The row of the feature that explained most on the fitted half."""
        return self.rows[0] if self.rows else None

    @property
    def accepted(self) -> list[str]:
        """The features that hold for most of its top or bottom examples."""
        return [row["feature"] for row in self.rows if row["accepted"]]

    def feature(self, name: str) -> Mapping[str, Any]:
        """The row of one feature."""
        for row in self.rows:
            if row["feature"] == name:
                return row
        raise LensSkillsError(
            f"{self.name} was not held against a feature {name!r}. It was against: "
            + ", ".join(row["feature"] for row in self.rows[:8])
            + (", …" if len(self.rows) > 8 else "")
            + "."
        )

    def __repr__(self) -> str:
        lines = [f"{self.name} · {self.note or self._driven()}"]
        for row in self.rows[1:3]:
            if row["variance_explained"] >= 0.01:
                lines.append(f"  next       {row['feature']} ({_share(row)})")
        if named := self.accepted:
            more = f" and {len(named) - 4} more" if len(named) > 4 else ""
            lines.append(f"  top/bottom examples: {'; '.join(named[:4])}{more}")
        if self.writes is not None:
            lines.append(f"  promotes {shown(self.writes.promoted, 5)}")
            lines.append(f"  suppresses {shown(self.writes.suppressed, 5)}")
        # A neuron that mostly fires below 0 is told by its lowest examples.
        low = sum(e.activation for e in self.top) < -sum(e.activation for e in self.bottom)
        word, some = ("lowest", self.bottom) if low else ("strongest", self.top)
        for place, excerpt in enumerate(some[:_EXAMPLES]):
            lines.append(f"  {'' if place else word:<10} {excerpt}")
        return "\n".join(lines)

    def _driven(self) -> str:
        row = self.best
        if row is None:
            return "held against no feature"
        side = {1: "higher where ", -1: "lower where "}.get(row["direction"], "differs with ")
        if row["kind"] != "flag":
            side = {1: "rises with ", -1: "falls with "}.get(row["direction"], "differs with ")
        known = row["p"] is not None
        sure = not known or (row["p"] <= ALPHA and row["variance_explained"] > 0)
        text = f"{side}{row['feature']}: {_share(row)}, {row['information']:.2f} bits"
        if row["overlap_top"] is not None:
            text += f", {row['overlap_top']:.0%} of its top examples ({row['base']:.0%} of all)"
        if known:
            text += f", p = {row['p']:.2g}, q = {row['q']:.2g}"
        return text if sure else f"no feature explains it (best: {text})"


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['variance_explained']:.0%} of its variance held out"
