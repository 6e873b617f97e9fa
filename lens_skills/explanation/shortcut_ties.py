"""`Tie`: what ties neurons to a feature of the surface, one by one and as the set of a feature."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lens_skills.data import Example
from lens_skills.explanation.conditional_effects import Condition, condition_of
from lens_skills.explanation.explanations import ALPHA, Explanation
from lens_skills.explanation.feature_bank import FeatureBank
from lens_skills.stats.multiple_testing import false_discovery_q

_NEARLY_BEST = 0.8  # a surface feature explains a neuron only where none explains much more


@dataclass(frozen=True, eq=False)
class Tie:
    """What ties one neuron, or the neurons of one feature, to the surface of the input.

    Attributes:
        members: The neurons; of one neuron, that one.
        r: Of a neuron its correlation with the metric on confirm; of a set the mean |r|.
        feature: The surface feature; "" where none explains the neuron.
        condition: When the feature holds; None without one.
        raises: Whether they go with a higher metric where it holds; see `Shortcut`.
        explained, p, q: Of the variance on held-out examples. Of a set: the mean share, and the
            largest p and q of its members.
        task_feature, task_feature_explained: The best feature that defines the task; of one neuron.
        r_explore: As ``r``, on explore, where the neurons were searched for.
    """

    members: tuple[str, ...]
    r: float
    feature: str = ""
    condition: Condition | None = None
    raises: bool = False
    explained: float | None = None
    p: float | None = None
    q: float | None = None
    task_feature: str = ""
    task_feature_explained: float | None = None
    r_explore: float | None = None

    @property
    def name(self) -> str:
        """The neuron, or how many there are, what they do to the metric, and when."""
        if len(self.members) == 1 or self.condition is None:
            return self.members[0]
        does = "raise" if self.raises else "lower"
        return f"{len(self.members)} that {does} it where {self.condition.words}"

    @classmethod
    def of(
        cls,
        one: Explanation,
        bank: FeatureBank,
        explore: Sequence[Example],
        *,
        r: float,
        q: float | None,
        least: float,
    ) -> "Tie":
        """What `tied_to` finds of one neuron."""
        tied = tied_to(one, q, least)
        of_task = next((row for row in one.rows if not row["surface"]), None)
        about = {
            "task_feature": "" if of_task is None else of_task["feature"],
            "task_feature_explained": None if of_task is None else of_task["variance_explained"],
        }
        if tied is None:
            return cls((one.name,), r, **about)
        row = one.feature(tied)
        condition = condition_of(bank[tied], explore, one.activation)
        holds = condition.of(explore)
        shift = one.activation[holds].mean() - one.activation[~holds].mean()
        return cls(
            (one.name,),
            r,
            feature=tied,
            condition=condition,
            raises=bool(r * float(shift) > 0),
            explained=row["variance_explained"],
            p=row["p"],
            q=q,
            **about,
        )


def sets_of(ties: Sequence[Tie]) -> list[Tie]:
    """The neurons that are tied to one feature, hold under one condition and push the same way.

    Two or more each, the largest set first.
    """
    found: dict[tuple[str, str, bool], list[Tie]] = {}
    for tie in ties:
        if tie.condition is not None:
            found.setdefault((tie.feature, tie.condition.words, tie.raises), []).append(tie)
    several = sorted(
        (some for some in found.values() if len(some) > 1), key=lambda some: -len(some)
    )
    return [_together(some) for some in several]


def _together(ties: Sequence[Tie]) -> Tie:
    first = ties[0]
    return Tie(
        tuple(tie.members[0] for tie in ties),
        r=sum(abs(tie.r) for tie in ties) / len(ties),
        feature=first.feature,
        condition=first.condition,
        raises=first.raises,
        r_explore=None
        if first.r_explore is None
        else sum(abs(tie.r_explore or 0.0) for tie in ties) / len(ties),
        explained=sum(tie.explained or 0.0 for tie in ties) / len(ties),
        p=None if first.p is None else max(tie.p or 0.0 for tie in ties),
        q=None if first.q is None else max(tie.q or 0.0 for tie in ties),
    )


def q_of_ties(explained: Sequence[Explanation]) -> list[float | None]:
    """For each neuron Benjamini–Hochberg's q, over the neurons, of its best surface feature's p.

    That p is family-wise over the features of the neuron, so that q <= 0.05 keeps the share of
    wrongly tied neurons, among those called tied, at 5 %. None where no null was drawn, or where a
    neuron was tested for no surface feature.
    """
    found = [next((row["p"] for row in one.rows if row["surface"]), None) for one in explained]
    known = [p for p in found if p is not None]
    q = iter(false_discovery_q(torch.tensor(known, dtype=torch.float64)).tolist())
    return [None if p is None else round(next(q), 6) for p in found]


def tied_to(one: Explanation, q: float | None, least: float) -> str | None:
    """The surface feature that explains a neuron; None where none does, or another does better.

    It is the best of the surface features on the fitted half; held out it explains at least
    ``least`` of the variance, with q <= 0.05 over the neurons tried; and on the fitted half, no
    feature that defines the task explains so much that this one explains less than 80 % of it.
    """
    surface = [row for row in one.rows if row["surface"]]
    if not surface:
        return None
    row, best = surface[0], one.rows[0]
    beyond_chance = q is None or q <= ALPHA
    nearly_best = row["explained_fitted"] >= _NEARLY_BEST * best["explained_fitted"]
    explains = row["variance_explained"] >= least
    return row["feature"] if beyond_chance and nearly_best and explains else None
