"""`Description`: a sentence on where a neuron fires, and what it is worth on texts unseen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

_FEW = 19  # shuffled sentences below which no p can be 0.05


@dataclass(frozen=True, eq=False)
class ShuffledScores:
    """AUROCs of sentences that do not belong to the neurons they are held against.

    Attributes:
        of: What was shuffled: ``"other neurons' sentences"`` (on this neuron) or ``"other
            neurons"`` (this sentence on them).
        scores: One AUROC each, 0 to 1.
        mean: Of the scores.
        ceiling: Their 95th percentile; of fewer than 19, the largest.
        p: Rank of the neuron's own AUROC among them, (1 + those as large) / (1 + all).
    """

    of: str
    scores: Float[Tensor, " shuffled"]
    mean: float
    ceiling: float
    p: float

    def __str__(self) -> str:
        n = len(self.scores)
        most = f"95 % of {n} below" if n >= _FEW else f"all {n} below"
        return f"{self.of} {self.mean:.2f} ({most} {self.ceiling:.2f})"


@dataclass(frozen=True, eq=False)
class Description:
    """A sentence on where a neuron fires, judged on texts of other groups.

    Attributes:
        sentence: What the describer said; empty where it said nothing that can be judged.
        end: ``"highest"``, or ``"lowest"`` of a neuron that mostly fires below 0: the sentence then
            is about its lowest activations, and the AUROC is of minus its activation.
        auroc: P(activation of a text judged yes > of one judged no), ties counting half; 0.5 is
            chance. None where all judged texts got the same answer, or none did.
        low, high: Its 95 % interval over groups; None where there are too few.
        n_yes, n_no: Texts judged either way.
        n_unanswered: Texts that the judge gave no yes or no for.
        sentences: Null: other neurons' sentences on this neuron.
        neurons: Null: this sentence on other neurons.
        p: The larger of the two nulls' p.
        q: Benjamini–Hochberg of p over the neurons described.
        note: Why there is no sentence, or what is wrong with its score; empty for nothing.
    """

    sentence: str
    end: str
    auroc: float | None = None
    low: float | None = None
    high: float | None = None
    n_yes: int = 0
    n_no: int = 0
    n_unanswered: int = 0
    sentences: ShuffledScores | None = None
    neurons: ShuffledScores | None = None
    p: float | None = None
    q: float | None = None
    note: str = ""

    @property
    def nulls(self) -> tuple[ShuffledScores, ...]:
        """Those there are."""
        return tuple(null for null in (self.sentences, self.neurons) if null is not None)

    @property
    def above_null(self) -> bool | None:
        """Whether the whole interval is above 95 % of either null; None without one of them."""
        if self.low is None or not self.nulls:
            return None
        return self.low > max(null.ceiling for null in self.nulls)

    def row(self) -> dict[str, Any]:
        """As a row of `Explanations.descriptions`."""
        found: dict[str, Any] = {
            "sentence": self.sentence, "end": self.end, "auroc": self.auroc, "low": self.low,
            "high": self.high, "n_yes": self.n_yes, "n_no": self.n_no,
            "n_unanswered": self.n_unanswered,
        }  # fmt: skip
        for name, null in (("sentences", self.sentences), ("neurons", self.neurons)):
            found |= {
                f"null_{name}": None if null is None else null.mean,
                f"null_{name}_ceiling": None if null is None else null.ceiling,
                f"n_{name}": 0 if null is None else len(null.scores),
                f"p_{name}": None if null is None else null.p,
            }
        return found | {
            "p": self.p, "q": self.q, "above_null": self.above_null, "note": self.note
        }  # fmt: skip

    def told(self) -> list[str]:
        """The sentence, its score and the nulls, in words."""
        if not self.sentence:
            return [f"no sentence: {self.note}"]
        found = [f"in words: {self.sentence}" + (" (its lowest)" if self.end == "lowest" else "")]
        if self.auroc is not None:
            ends = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
            text = f"the sentence's AUROC {self.auroc:.2f}{ends}, {self.n_yes} yes, {self.n_no} no"
            if self.n_unanswered:
                text += f", {self.n_unanswered} unanswered"
            found.append(text)
        if self.nulls:
            word = {True: "above", False: "not above", None: "against"}[self.above_null]
            found.append(
                f"{word} the shuffled sentences: {'; '.join(map(str, self.nulls))}; p = "
                f"{self.p:.2g} over the neuron's shuffled sentences, q = {self.q:.2g} over all "
                "neurons described"
            )
        return [*found, *([self.note] if self.note else [])]


def descriptions_frame(described: Mapping[str, Description | None]) -> pd.DataFrame:
    """One row per neuron that has a description: its name, then `Description.row`."""
    rows = [{"name": name} | one.row() for name, one in described.items() if one is not None]
    return pd.DataFrame(rows, columns=["name", *Description("", "highest").row()])


def answers_frame(
    ids: Sequence[str], groups: Sequence[str], answers: Mapping[str, Sequence[bool | None]]
) -> pd.DataFrame:
    """One row per judged text: id group, then yes, no or nothing for each neuron's sentence."""
    words = {True: "yes", False: "no", None: ""}
    table = {"id": list(ids), "group": list(groups)}
    return pd.DataFrame(table | {name: [words[a] for a in some] for name, some in answers.items()})
