"""`select`: which neurons are confirmed on unseen examples, with the evidence for all of them."""

from collections.abc import Sequence
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
    NOT_TESTED,
    Rows,
    evidence_frame,
    evidence_lines,
    legend_lines,
    tried,
    weigh,
)
from lens_skills.scoring.leakage import check_match, check_reuse
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
            confirm.
        position: Where each was read.
        r_confirm, r_explore: Its correlation on either split; that on explore was selected for
            being large, and is too large for it.
        p, q: Permutation p of one neuron on the confirm split, and Benjamini–Hochberg over all
            associated neurons that were tested there.
        mean, std: Of its activation on explore, at its position (population std).
        metric, site, positions: What was measured where.
        attrition: How many neurons are left after each step, in order.
        fdr: The level of every q on confirm.
        grade: The lowest grade among ``neurons``: ``"B"``, or ``"C"``.
        rows: The evidence of every associated neuron; see `evidence`.
        notes: Sentences a reader of the numbers must see.
        exploratory: True where examples were used before.
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
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return neuron_names(self.neurons, self.site, self.provenance)

    @property
    def grades(self) -> tuple[str, ...]:
        """The grade of each neuron: ``"B"`` or ``"C"``."""
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
        """
        return evidence_frame(self.rows)

    def graded(self, verdict: Any) -> pd.DataFrame:
        """`evidence` after a `Verdict` on some of the neurons: its numbers, and **A** grades.

        Adds effect, effect_low and effect_high (95 % interval), effect_percent (of the clean
        metric), effect_q (over those tried), verdict and causal; empty where a neuron was not
        tried. A **B** that is undecided or a *large neuron* stays one; one that has no total effect
        becomes a **C**.
        """
        return evidence_frame(tried(self.rows, verdict))

    def to_try(self, most: int = TRIED) -> "Selection":
        """The same selection cut to the neurons worth intervening on, at most ``most``.

        The strongest on confirm, best grade first. One that was cut before stays as it is.

        Raises:
            LensSkillsError: ``most`` below 1.
        """
        if most < 1:
            raise LensSkillsError(f"most= is how many neurons to try, 1 or more, not {most}.")
        if "tried" in self.attrition:
            return self
        return replace(
            self,
            **{
                name: getattr(self, name)[:most]
                for name in (
                    "neurons", "position", "r_explore", "r_confirm", "p", "q", "mean", "std",
                )
            },
            attrition=self.attrition | {"tried": min(most, len(self))},
        )  # fmt: skip

    def attrition_line(self, verdict: Any = None) -> str:
        """``46,080 neurons → 76 associated → … → 18 confirmed (5 basis-privileged)``.

        After a `Verdict`: ``… → 11 causal (8 supports · 3 opposes)``.
        """
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
        counts: dict[str, int] = {}
        for ruling in verdict.singles:
            if ruling.name in causal:
                counts[ruling.word] = counts.get(ruling.word, 0) + 1
        parts = sorted(counts.items(), key=lambda item: -item[1])
        words = " · ".join(f"{count:,} {word}" for word, count in parts)
        few = cut is None and len(verdict) < steps.get("confirmed", 0)
        of_tried = f" of {len(verdict):,} tried" if few else ""
        return f"{line} → {len(causal):,} causal{of_tried}" + (f" ({words})" if words else "")

    def card(self, verdict: Any = None, *, most: int = 10) -> list[str]:
        """The table of the strongest by grade, and what it means, in lines of 80 columns."""
        rows: Rows = self.rows if verdict is None else tried(self.rows, verdict)
        if not rows:
            return ["no neuron is associated with this metric"]
        scored = self.provenance.get("scored", {})
        family = family_words(scored.get("neurons", 0), len(self.positions))
        tested = sum(row["stopped_by"] != NOT_TESTED for row in rows)
        lines = evidence_lines(rows, most=most)
        if len(rows) > most:
            lines.append(f"… and {len(rows) - most:,} more in .evidence()")
        return [*lines, *legend_lines(rows[:most], tested=tested, family=family)]

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
    best = [row for row in rows if row["grade"] and row["grade"] <= kept]
    units = torch.tensor([explore.places[row["layer"], row["neuron"]] for row in best]).long()
    spots = torch.tensor([explore.positions.index(row["position"]) for row in best]).long()

    def column(name: str) -> Float[Tensor, " k"]:
        return torch.tensor([row[name] for row in best], dtype=torch.float64)

    return Selection(
        neurons=torch.stack([explore.layer[units], explore.neuron[units]], dim=1),
        position=tuple(row["position"] for row in best),
        r_explore=here.r[spots, units],
        r_confirm=column("r_confirm"),
        p=column("p_confirm"),
        q=column("q_confirm"),
        mean=explore.mean[spots, units],
        std=explore.std[spots, units],
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
