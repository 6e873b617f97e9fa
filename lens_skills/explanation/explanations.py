"""`Explanations`: what drives some neurons, what each writes, and where it is strongest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.excerpts import Excerpt
from lens_skills.cards import CARD_WIDTH, card_lines, showing
from lens_skills.errors import LensSkillsError
from lens_skills.explanation.descriptions import Description, descriptions_frame
from lens_skills.explanation.neurons_by_name import NeuronsByName
from lens_skills.explanation.token_logits import TokenLogits, shown
from lens_skills.results import Result

ALPHA = 0.05
_EXAMPLES = 3  # so many are printed
_FIRM = 0.8  # of resamples from which on a first place is firm
_AS_GOOD = 0.005  # shares that are printed alike


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
        described: The sentence of a describer with its score; None where none was asked for.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]
    top: tuple[Excerpt, ...]
    bottom: tuple[Excerpt, ...]
    writes: TokenLogits | None
    activation: Float[Tensor, " row"]
    values: pd.DataFrame
    note: str = ""
    described: Description | None = None

    @property
    def features(self) -> pd.DataFrame:
        """One row per feature, ranked by the variance explained on the *fitted* half.

        ``ranked_first``: in what share of resamples of that half's groups it ranks first;
        ``stands_for``: the label or metric that it says by another name (see
        `Explanations.disguises`). All else is measured on the other half: ``variance_explained``
        with its 95 % interval over groups, ``low`` and ``high``; ``direction`` (+1 where the
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
    def leader(self) -> Mapping[str, Any] | None:
        """The row of the feature that explains most on the *measured* half."""
        return max(self.rows, key=lambda row: row["variance_explained"]) if self.rows else None

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
            f"{self.name} was not tested for a feature {name!r}. It was for: "
            + ", ".join(row["feature"] for row in self.rows[:8])
            + (", …" if len(self.rows) > 8 else "")
            + "."
        )

    def sentences(self) -> tuple[str, ...]:
        """What drives it, in words; then the numbers, each with what it is."""
        row = self.best
        told = [] if self.described is None else self.described.told()
        if row is None:
            return (self.note or "tested for no feature", *told)
        named = self.accepted
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        best = f"top/bottom examples: {'; '.join(named[:4])}{more}"
        return (*self._driven(row), *self._others(row), *([best] if named else []), *told)

    def _repr_html_(self) -> str:
        return str(showing("notebook_view").html(self))

    def __repr__(self) -> str:
        first, *others = self.sentences()
        lines = card_lines(f"{self.name} · {first}")
        for sentence in others:
            lines += card_lines(sentence, indent=2)
        if self.writes is not None:
            lines += card_lines(f"promotes {shown(self.writes.promoted, 5)}", indent=2)
            lines += card_lines(f"suppresses {shown(self.writes.suppressed, 5)}", indent=2)
        # A neuron that mostly fires below 0 is told by its lowest examples.
        low = sum(e.activation for e in self.top) < -sum(e.activation for e in self.bottom)
        word, some = ("lowest", self.bottom) if low else ("strongest", self.top)
        for place, excerpt in enumerate(some[:_EXAMPLES]):
            lines.append(clipped(f"  {'' if place else word:<10} {excerpt}"))
        return "\n".join(lines)

    def _driven(self, row: Mapping[str, Any]) -> list[str]:
        """What drives it, and how well that is known."""
        is_flag = row["kind"] == "flag"
        up, down = ("higher where ", "lower where ") if is_flag else ("rises with ", "falls with ")
        verb = {1: up, -1: down}.get(row["direction"], "differs with ")
        known = row["p"] is not None
        sure = not known or (row["p"] <= ALPHA and row["variance_explained"] > 0)
        text = f"{verb}{row['feature']}"
        if row["stands_for"]:
            text += f", which stands for the {row['stands_for']}"
        told = f"explains {_share(row)} of its variance, {row['information']:.2f} bits"
        if row["overlap_top"] is not None:
            told += (
                f"; {row['overlap_top']:.0%} of its top examples have it ({row['base']:.0%} of all)"
            )
        found = [text if sure else f"no feature explains it (best: {text})", told]
        if known:
            found.append(
                f"p = {row['p']:.2g} over its {len(self.rows)} features, q = {row['q']:.2g} over "
                "all neurons and features"
            )
        return found

    def _others(self, best: Mapping[str, Any]) -> list[str]:
        """The next features, and how firm their order is."""
        found, leader = [], self.leader
        assert leader is not None
        if following := [row for row in self.rows[1:3] if row["variance_explained"] >= 0.01]:
            text = "; ".join(f"{row['feature']} {_share(row)}" for row in following)
            found.append(f"next: {text}")
        firm = f"ranked first in {best['ranked_first']:.0%} of resamples of the other half"
        if leader["variance_explained"] > best["variance_explained"] + _AS_GOOD:
            firm += f"; here {leader['feature']} explains more ({_share(leader)})"
            firm += ": which of them comes first is not settled"
        elif best["ranked_first"] < _FIRM:
            firm += ": others may be as good"
        return [*found, firm]


def _share(row: Mapping[str, Any]) -> str:
    """``61% [40%, 78%]``."""
    ends = "" if row["low"] is None else f" [{row['low']:.0%}, {row['high']:.0%}]"
    return f"{row['variance_explained']:.0%}{ends}"


def _who(asked: Any) -> str:
    """A describer or judge, as a card calls it."""
    if isinstance(asked, Mapping):
        return str(asked["model"])
    return "the feature bank" if asked == "features" else str(asked)


def clipped(line: str) -> str:
    """A line of at most `CARD_WIDTH` columns, its end left out where it is longer."""
    return line if len(line) <= CARD_WIDTH else line[: CARD_WIDTH - 1] + "…"


@dataclass(frozen=True, eq=False)
class Explanations(Result, NeuronsByName[Explanation]):
    """Why some neurons fire; ``why["L17N635"]`` is one of them, and printing shows each.

    Attributes:
        neurons: One `Explanation` each, in the order they were named.
        features: The features in play: feature kind surface family, how it was exchanged, and
            the label or metric it stands for.
        site, position: What was read where.
        n_fitted, n_held: Examples of the half features were ranked on, and of the other half, where
            they were measured.
        n_groups: Groups of the held-out half.
        k: Examples at the top and bottom, for the overlap.
        n_permutations: Draws of the null; 0 where none was asked for.
        left_out: Features that could not be used here, and why.
        notes: What a reader must know before quoting a number.
        provenance: Model, task, split, seed and versions.
        disguises: Features that say what a label or the metric says (η² of that on the feature is
            0.8 or more): feature surface family column eta_squared.
        answers: Of a judge: one row per judged text, id group, then for each neuron described
            ``"yes"``, ``"no"`` or nothing.
    """

    _done = "explained"

    neurons: tuple[Explanation, ...]
    features: pd.DataFrame
    site: str
    position: str
    n_fitted: int
    n_held: int
    n_groups: int
    k: int
    n_permutations: int
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    disguises: pd.DataFrame = field(default_factory=pd.DataFrame)
    answers: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def descriptions(self) -> pd.DataFrame:
        """One row per neuron described: its sentence, the score and both nulls.

        name sentence end auroc low high n_yes n_no n_unanswered, then of other neurons' sentences
        null_sentences (mean AUROC) null_sentences_ceiling (95th percentile) n_sentences
        p_sentences, the same of this sentence on other neurons (null_neurons …), p (the larger), q
        (over the neurons described), above_null, note; see `Description`.
        """
        return descriptions_frame({one.name: one.described for one in self.neurons})

    def frame(self) -> pd.DataFrame:
        """One row per neuron and feature: name, then the columns of `Explanation.features`."""
        parts = [one.features.assign(name=one.name) for one in self.neurons if one.rows]
        if not parts:
            return pd.DataFrame(columns=["name"])
        whole = pd.concat(parts, ignore_index=True)
        return whole.reindex(columns=["name", *whole.columns.drop("name")])

    def __repr__(self) -> str:
        about = self.provenance
        n = len(self)
        lines = card_lines(
            f"Why {n} neuron{'s' * (n != 1)} of {about.get('model', 'the model')} fire"
            f"{'s' * (n == 1)} on {about.get('task', 'the task')} ({self.site} at {self.position})"
        )
        lines += card_lines(
            f"{len(self.features)} features, ranked on {self.n_fitted:,} examples, measured on "
            f"{self.n_held:,} others in {self.n_groups:,} groups",
            indent=2,
        )
        lines += card_lines(
            ("in brackets: 95 % intervals over groups, each by itself, " if self._has_ends else "")
            + "of features chosen on the other half",
            indent=2,
        )
        if about.get("describer"):
            who = (_who(about[name]) for name in ("describer", "judge"))
            lines += card_lines(
                "in words: by {}, from the first half; judged by {} on {:,} texts of the "
                "other".format(*who, len(self.answers)),
                indent=2,
            )
        for one in self.neurons[:20]:
            lines += repr(one).split("\n")
        if n > 20:
            lines.append(f"… and {n - 20} more: why['{self.neurons[20].name}'], .frame()")
        for note in self.notes:
            lines += card_lines(f"note: {note}")
        return "\n".join(lines)

    @property
    def _has_ends(self) -> bool:
        return any(row["low"] is not None for one in self.neurons for row in one.rows[:1])
