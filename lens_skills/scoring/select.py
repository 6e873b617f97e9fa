"""`select`: which neurons are confirmed on unseen examples, with the evidence for all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations.components import neuron_names
from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.scoring.evidence import (
    BADGE,
    GENERAL,
    NOT_TESTED,
    Rows,
    evidence_frame,
    evidence_lines,
    legend_lines,
    of_others,
    tried,
    weigh,
    weigh_others,
)
from lens_skills.scoring.leakage import check_match, check_reuse
from lens_skills.scoring.predicted_evidence import (
    DOORS,
    Predicted,
    of_prediction,
    predicted_legend,
    predicted_lines,
    smallest_seen,
    with_doors,
)
from lens_skills.scoring.scores import (
    EXPLORATORY,
    MetricScores,
    Scores,
    card_lines,
    family_words,
    one_metric,
)

TRIED = 20
"""How many neurons a verdict tries unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Selection(Result):
    """Neurons of one metric at one site, and the evidence for every associated neuron.

    Attributes:
        neurons: (layer, index) rows: those of ``grade``, best grade first, then the largest |r| on
            confirm; where neurons were found by prediction, those it confirmed behind them (or
            alone), the largest predicted effect on confirm first.
        position: Where each was read.
        r_confirm, r_explore: Its correlation on either split; that on explore was selected for
            being large, and is too large for it.
        p, q: Permutation p of one neuron on the confirm split, and Benjamini–Hochberg over all
            associated neurons that were tested there.
        mean, std: Of its activation on explore, at its position (population std).
        metric, site, positions: What was measured where.
        attrition: How many neurons are left after each step, in order.
        fdr: The level of every q on confirm.
        grade: The lowest grade of a neuron found by association: ``"B"``, or ``"C"``.
        rows: The evidence of every associated neuron; see `evidence`.
        notes: Sentences a reader of the numbers must see.
        exploratory: True where examples were used before.
        by: How neurons were found: ``"association"``, ``"prediction"`` (of what an edit of each
            would do, to first order) or ``"both"``; see `lens_skills.study`.
        predicted: Of prediction: the ``metric``, its ``unit``, the edit (``do``), how many of
            explore's largest were ``tested`` on confirm and how many ``confirmed``, and the
            smallest |r| that would have been called an association (``smallest_r``; a true
            ``smallest_r_80`` is in 80 % of such studies). Empty where there was none.
        provenance: Of both passes.
    """

    neurons: Int[Tensor, "k 2"]
    position: tuple[str, ...]
    r_explore: Float[Tensor, " k"]
    r_confirm: Float[Tensor, " k"]
    p: Float[Tensor, " k"]
    q: Float[Tensor, " k"]
    mean: Float[Tensor, " k"]
    std: Float[Tensor, " k"]
    metric: str
    site: str
    positions: tuple[str, ...]
    attrition: dict[str, int]
    fdr: float
    grade: str = "B"
    rows: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    exploratory: bool = False
    by: str = "association"
    predicted: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return neuron_names(self.neurons, self.site, self.provenance)

    @property
    def grades(self) -> tuple[str, ...]:
        """The grade of each neuron: ``"B"`` or ``"C"``; none where it is not associated."""
        known = {row["name"]: row["grade"] for row in self.rows}
        return tuple(known.get(name, "") for name in self.names)

    @property
    def basis_privileged(self) -> Bool[Tensor, " k"]:
        """Of each neuron, whether its r is beyond what random directions of its layer reach."""
        badged = {row["name"] for row in self.rows if row["badge"]}
        return torch.tensor([name in badged for name in self.names], dtype=torch.bool)

    def frame(self) -> pd.DataFrame:
        """One row per neuron: name layer neuron position grade badge r_confirm r_explore p q.

        With a column ``exploratory`` where the selection is. `evidence` holds more, and of every
        associated neuron.
        """
        frame = pd.DataFrame(
            {
                "name": self.names,
                "layer": self.neurons[:, 0].numpy(),
                "neuron": self.neurons[:, 1].numpy(),
                "position": list(self.position),
                "grade": list(self.grades),
                "badge": [BADGE if here else "" for here in self.basis_privileged.tolist()],
                "r_confirm": self.r_confirm.numpy(),
                "r_explore": self.r_explore.numpy(),
                "p": self.p.numpy(),
                "q": self.q.numpy(),
            }
        )
        return frame.assign(exploratory=True) if self.exploratory else frame

    def evidence(self) -> pd.DataFrame:
        """One row per neuron associated on explore, whatever became of it, best grade first.

        Columns: name layer neuron position; r_confirm low high (95 % interval on confirm);
        r_explore (selected); p_family, q_control, excess, q_basis as in `Scores`, on explore;
        p_confirm (one neuron) and q_confirm (over those tested on confirm); q_control_confirm
        (over those that beat the control task on explore); grade (``"B"``, ``"C"`` or none); badge;
        stopped_by, the test that kept it from a better grade.

        Where neurons were found by prediction, further rows of those tested for it without an
        association on explore, whose q_confirm is among them; and columns found_by
        (``"association"``, ``"prediction"``, ``"both"`` or none), predicted_explore (selected),
        predicted_confirm with predicted_low and predicted_high (95 %), and q_predicted (among
        those tested).
        """
        return evidence_frame(self.rows)

    def graded(self, verdict: Any) -> pd.DataFrame:
        """`evidence` after a `Verdict` on some of the neurons: its numbers, and **A** grades.

        Adds effect, effect_low and effect_high (95 % interval), effect_percent (of the clean
        metric), effect_q (over those tried), verdict and causal; empty where a neuron was not
        tried. A **B** that is undecided or a *large neuron* stays one; one that has no total effect
        becomes a **C**. A causal neuron of which neither split shows an association is
        **general**.
        """
        return evidence_frame(tried(self.rows, verdict))

    def to_try(self, most: int = TRIED) -> "Selection":
        """The same selection cut to the neurons worth intervening on, at most ``most``.

        The strongest on confirm, best grade first; found by both ways, at most ``most`` of each.
        One that was cut before stays as it is.

        Raises:
            LensSkillsError: ``most`` below 1.
        """
        if most < 1:
            raise LensSkillsError(f"most= is how many neurons to try, 1 or more, not {most}.")
        if "tried" in self.attrition:
            return self
        some = list(range(min(most, len(self))))
        if self.by != "association":
            first, second = self._by_door()
            some = sorted({*first[:most], *second[:most]})
        columns = ("r_explore", "r_confirm", "p", "q", "mean", "std")
        return replace(
            self,
            neurons=self.neurons[some],
            position=tuple(self.position[place] for place in some),
            attrition=self.attrition | {"tried": len(some)},
            **{name: getattr(self, name)[some] for name in columns},
        )

    def _by_door(self) -> tuple[list[int], list[int]]:
        """The places of the neurons that came through each door, the strongest first."""
        row_of = {row["name"]: row for row in self.rows}
        places = {name: place for place, name in enumerate(self.names)}
        predicted = [row["name"] for row in of_prediction(list(row_of.values()))]
        doors = [
            [name for name in names if row_of[name]["found_by"] in (door, DOORS[2])]
            for door, names in ((DOORS[0], list(places)), (DOORS[1], predicted))
        ]
        if self.by == DOORS[1]:
            doors[0] = []
        first, second = ([places[name] for name in names if name in places] for names in doors)
        return first, second

    def steps(self, verdict: Any = None) -> dict[str, dict[str, int]]:
        """How many neurons are left after each step, for each way of finding them.

        ``"association"`` holds the attrition (and what is basis-privileged), ``"prediction"``
        those that were tested for their predicted effect; after a `Verdict` with how many were
        tried and are causal.
        """
        first = dict(self.attrition)
        cut = first.pop("tried", None)
        if self.by == DOORS[0]:
            if verdict is not None:
                first |= {"tried": len(verdict) if cut is None else cut}
                first |= {"causal": len(verdict.causal)}
            return {DOORS[0]: first}
        counts = {"neurons": first["neurons"], "tested": self.predicted["tested"]}
        counts["confirmed"] = self.predicted["confirmed"]
        found = {DOORS[0]: first, DOORS[1]: counts}
        if self.by == DOORS[1]:
            found.pop(DOORS[0])
        if verdict is not None:
            rows = [row for row in tried(self.rows, verdict) if row["verdict"]]
            for door, steps in found.items():
                mine = [row for row in rows if row["found_by"] in (door, DOORS[2])]
                steps |= {"tried": len(mine), "causal": sum(map(_is_causal, mine))}
            counts[GENERAL] = sum(row["grade"] == GENERAL for row in rows)
        return found

    def attrition_line(self, verdict: Any = None) -> str:
        """``46,080 neurons → 76 associated → … → 18 confirmed (5 basis-privileged)``.

        After a `Verdict`: ``… → 11 causal (8 supports · 3 opposes)``. Of neurons found by
        prediction: ``… → 200 largest predicted effects → 180 confirmed``.
        """
        if self.by != DOORS[0]:
            return self._two_lines(verdict)
        steps = dict(self.attrition)
        badged, cut = steps.pop(BADGE, None), steps.pop("tried", None)
        line = " → ".join(f"{count:,} {step}" for step, count in steps.items())
        if badged is not None:
            line += f" ({badged:,} {BADGE})"
        if cut is not None and cut < steps.get("confirmed", cut):
            line += f" → {cut:,} tried"
        if verdict is None:
            return line
        causal = set(verdict.causal)
        words = _counted_words(ruling.word for ruling in verdict.singles if ruling.name in causal)
        few = cut is None and len(verdict) < steps.get("confirmed", 0)
        of_tried = f" of {len(verdict):,} tried" if few else ""
        return f"{line} → {len(causal):,} causal{of_tried}{words}"

    def _two_lines(self, verdict: Any) -> str:
        """The line of neurons found by prediction, behind that of those found by association."""
        rows = () if verdict is None else tried(self.rows, verdict)
        parts = []
        for door, counts in self.steps(verdict).items():
            steps = dict(counts)
            badged, general = steps.pop(BADGE, None), steps.pop(GENERAL, 0)
            if steps.get("tried") == steps["confirmed"]:
                steps.pop("tried")
            named = [
                f"{n:,} " + ("largest predicted effects" * (door == DOORS[1] and step == "tested")
                             or step)
                for step, n in steps.items()
            ]  # fmt: skip
            if badged is not None:
                where = next(place for place, text in enumerate(named) if "confirmed" in text)
                named[where] += f" ({badged:,} {BADGE})"
            if door == DOORS[1] and self.by == DOORS[2]:
                named = [f"by prediction {named[1]}", *named[2:]]
            line = " → ".join(named)
            mine = [row for row in rows if row["found_by"] in (door, DOORS[2])]
            line += _counted_words(row["verdict"] for row in mine if _is_causal(row))
            if verdict is not None and door == DOORS[1]:
                line += f", {general:,} of them {GENERAL}"
            parts.append(line)
        both = sum(row["found_by"] == DOORS[2] for row in self.rows)
        return "; ".join(parts) + f"; {both:,} through both doors" * (self.by == DOORS[2])

    def card(self, verdict: Any = None, *, most: int = 10) -> list[str]:
        """The table of the strongest by grade, and what it means, in lines of 80 columns."""
        every: Rows = self.rows if verdict is None else tried(self.rows, verdict)
        rows = [row for row in every if not of_others(row)]
        lines = [] if rows else ["no neuron is associated with this metric"]
        if rows and self.by != DOORS[1]:
            scored = self.provenance.get("scored", {})
            family = family_words(scored.get("neurons", 0), len(self.positions))
            tested = sum(row["stopped_by"] != NOT_TESTED for row in rows)
            lines = evidence_lines(rows, most=most)
            if len(rows) > most:
                lines.append(f"… and {len(rows) - most:,} more in .evidence()")
            lines += legend_lines(rows[:most], tested=tested, family=family)
        if self.by == DOORS[0]:
            return lines
        lines = [] if self.by == DOORS[1] else [*lines, ""]
        lines += predicted_lines(every, most=most)
        if self.predicted["tested"] > most:
            lines.append(f"… and {self.predicted['tested'] - most:,} more in .evidence()")
        return [*lines, *predicted_legend(every, self.predicted, most=most)]

    def __repr__(self) -> str:
        lines = [EXPLORATORY] if self.exploratory else []
        lines += [self.attrition_line(), f"{self.metric} · {self.site}"]
        if len(self) == 0:
            lines.append(_nothing(self.grade))
        lines += self.card()
        if self.grade == "C" and len(self):
            lines.append(f"kept: {len(self):,} neurons of grade C or better")
        lines += [f"note: {note}" for note in self.notes]
        lines.append("correlates, not causes: ablate before you call one a skill neuron")
        return "\n".join(card_lines(lines))


def _nothing(grade: str) -> str:
    if grade == "C":
        return "no associated neuron is confirmed"
    return "no neuron beats the control task and is confirmed"


def select(
    scores: Scores | MetricScores,
    confirm_scores: Scores | MetricScores,
    *,
    fdr: float = 0.05,
    grade: str | None = None,
    exploratory: bool = False,
) -> Selection:
    """The neurons that hold up on unseen examples, with the evidence for each and its grade.

    On explore the family is what is associated: p ≤ 5 % family-wise over all neurons and positions
    (max-T). Those that ``confirm_scores`` holds are tested there: *association confirmed* where
    the permutation p's Benjamini–Hochberg q among them is at most ``fdr`` and r has the same sign.
    Of those that beat the control task on explore, the confirm split's own control p must have q
    ≤ ``fdr`` among them too. **B**: all of that; **C**: associated and confirmed. Whether r stands
    out from random directions of the layer is a badge and no condition.

    Args:
        scores: Scores of the explore split: of one metric, or ``scores["metric"]``.
        confirm_scores: The same metric on the confirm split, of all neurons or the strongest few.
        fdr: Expected share of false discoveries, 0 to 1.
        grade: The lowest grade to keep among ``.neurons``: ``"B"``, or ``"C"``. Default: B, and C
            where no control task can be claimed on both splits. The evidence keeps all.
        exploratory: Allow the same examples twice, and mark the result.

    Raises:
        LensSkillsError: Several metrics and none chosen; the splits share examples or groups;
            another model, site, position or task; a null that was not drawn.

    Source: discovery and confirmation on disjoint splits; Benjamini & Hochberg 1995; control tasks,
    Hewitt & Liang 2019 (arXiv 1909.03368).
    Does not show: that the neuron matters to the model; that takes an intervention.
    """
    if not 0 < fdr < 1:
        raise LensSkillsError(f"fdr must lie between 0 and 1, not {fdr}.")
    if grade not in (None, "B", "C"):
        raise LensSkillsError(f"grade must be 'B' or 'C', not {grade!r}; A takes a verdict.")
    here, there = one_metric(scores), one_metric(confirm_scores)
    explore, confirm = here.scores, there.scores
    check_match(here, there)
    reused = check_reuse(explore, confirm, exploratory)
    for split, view in (("explore", here), ("confirm", there)):
        if view.p is None:
            raise LensSkillsError(
                f"the {split} scores have no null, so nothing can be confirmed. "
                + (" ".join(view.scores.notes) or "Score them with n_permutations > 0.")
            )
    missing = [
        split for split, view in (("explore", here), ("confirm", there)) if view.p_control is None
    ]
    if grade == "B" and missing:
        raise LensSkillsError(
            f"no neuron can be graded B: no control task was drawn on {' and '.join(missing)}. "
            + " ".join((*explore.notes, *confirm.notes))
            + " Say grade='C'."
        )
    kept = grade or ("C" if missing else "B")
    rows = weigh(here, there, fdr=fdr, control=not missing)
    return Selection(
        **_columns(here, [row for row in rows if row["grade"] and row["grade"] <= kept]),
        metric=here.metric,
        site=explore.site,
        positions=explore.positions,
        attrition=_attrition(explore, here, rows, control=not missing),
        fdr=fdr,
        grade=kept,
        rows=rows,
        notes=_notes(explore, confirm, missing),
        exploratory=reused or explore.exploratory or confirm.exploratory,
        provenance={
            "explore": explore.provenance,
            "confirm": confirm.provenance,
            "scored": {"neurons": explore.n_units},
            "example_ids": [*explore.example_ids, *confirm.example_ids],
            "groups": sorted({*explore.groups, *confirm.groups}),
        },
    )


def add_predicted(
    chosen: Selection,
    scores: MetricScores,
    confirm_scores: MetricScores,
    predicted: Predicted,
    *,
    by: str,
) -> Selection:
    """The selection with neurons found by prediction beside (or, ``by="prediction"``, instead).

    Args:
        chosen: Of these scores.
        scores, confirm_scores: As in `select`; of confirm they hold every predicted neuron.
        predicted: Their predicted effects on both splits.
        by: ``"prediction"`` or ``"both"``.
    """
    explore = scores.scores
    pairs = [(int(layer), int(index)) for layer, index in predicted.neurons.tolist()]
    others = weigh_others(scores, confirm_scores, pairs, fdr=chosen.fdr)
    rows = with_doors(chosen.rows, others, predicted, kept=chosen.grade)
    second = [row for row in of_prediction(rows) if row["found_by"] in (DOORS[1], DOORS[2])]
    first = [] if by == DOORS[1] else [row for row in rows if row["found_by"] in DOORS[::2]]
    here = {row["name"] for row in first}
    best = [*first, *(row for row in second if row["name"] not in here)]
    bar = scores.threshold
    assert bar is not None, "select wants a null"
    facts = {"metric": predicted.metric, "unit": predicted.unit, "do": predicted.do}
    facts |= {"tested": len(pairs), "confirmed": len(second), "smallest_r": bar}
    facts["smallest_r_80"] = smallest_seen(
        *(scores.at_strongest(part) for part in (scores.r, scores.low, scores.high)),
        bar=bar,
        groups=explore.groups,
    )
    return replace(
        chosen,
        **_columns(scores, best),
        rows=rows,
        by=by,
        predicted=facts,
    )


def _columns(here: MetricScores, best: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a selection holds of each of its neurons, from their rows and explore's scores."""
    explore = here.scores
    units = torch.tensor([explore.places[row["layer"], row["neuron"]] for row in best]).long()
    spots = torch.tensor([explore.positions.index(row["position"]) for row in best]).long()

    def column(name: str) -> Float[Tensor, " k"]:
        return torch.tensor([row[name] for row in best], dtype=torch.float64)

    return {
        "neurons": torch.stack([explore.layer[units], explore.neuron[units]], dim=1),
        "position": tuple(row["position"] for row in best),
        "r_explore": here.r[spots, units],
        "r_confirm": column("r_confirm"),
        "p": column("p_confirm"),
        "q": column("q_confirm"),
        "mean": explore.mean[spots, units],
        "std": explore.std[spots, units],
    }


def _is_causal(row: dict[str, Any]) -> bool:
    return bool(row["causal"])


def _counted_words(words: Iterable[str]) -> str:
    """`` (8 supports · 3 opposes)``, or nothing."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    parts = sorted(counts.items(), key=lambda item: -item[1])
    told = " · ".join(f"{count:,} {word}" for word, count in parts)
    return f" ({told})" if told else ""


def _attrition(explore: Scores, here: MetricScores, rows: Rows, *, control: bool) -> dict[str, int]:
    """Neurons left after each step, up to the best grade that can be had without a verdict."""
    steps = {"neurons": explore.n_units}
    steps |= {step: int(mask.any(0).sum()) for step, mask in here.passing().items()}
    beats = {row["name"] for row in rows}
    if not control:
        steps.pop("beat the control task", None)
    else:
        spots = here.beats_control.any(0)
        beats = {
            row["name"] for row in rows if bool(spots[explore.places[row["layer"], row["neuron"]]])
        }
    left = [row for row in rows if row["name"] in beats]
    tested = sum(row["stopped_by"] != NOT_TESTED for row in left)
    if tested < len(left):
        steps["tested"] = tested
    confirmed = [row for row in left if row["grade"] == ("B" if control else "C")]
    steps["confirmed"] = len(confirmed)
    if here.q_basis is not None:
        steps[BADGE] = sum(bool(row["badge"]) for row in confirmed)
    return steps


def _notes(explore: Scores, confirm: Scores, missing: Sequence[str]) -> tuple[str, ...]:
    notes = list(explore.notes)
    notes += [f"confirm: {note}" for note in confirm.notes if note not in explore.notes]
    if missing:
        notes.append(
            f"no control task on {' and '.join(missing)}: nothing can be graded above C, so "
            "neurons that know the prompts' words and not the skill are not told apart"
        )
    return tuple(notes)
