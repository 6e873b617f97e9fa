"""`select`: the neurons that pass every gate on explore and are confirmed on unseen examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations.components import neuron_names
from lens_skills.errors import LensSkillsError
from lens_skills.results import Result
from lens_skills.scoring.leakage import check_match, check_reuse
from lens_skills.scoring.scores import EXPLORATORY, GATES, MetricScores, Scores, one_metric
from lens_skills.stats.multiple_testing import false_discovery_q


@dataclass(frozen=True, eq=False)
class Selection(Result):
    """Neurons of one metric at one site, with what remained at each gate.

    Attributes:
        neurons: (layer, index) rows, strongest in explore first.
        position: Where each was read.
        r_explore, r_confirm: Its correlation on either split.
        p, q: Permutation p on the confirm split, and Benjamini–Hochberg over the tested family.
        mean, std: Of its activation on explore, at its position (population std).
        metric, site, positions: What was measured where.
        attrition: How many neurons remained after each gate, in order.
        fdr: The level of ``q``.
        exploratory: True where examples were reused or a gate was left out.
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
    exploratory: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def names(self) -> list[str]:
        """Names such as ``L17N635``."""
        return neuron_names(self.neurons)

    def frame(self) -> pd.DataFrame:
        """One row per neuron: name layer neuron position r_explore r_confirm p q.

        With a column ``exploratory`` where the selection is.
        """
        frame = pd.DataFrame(
            {
                "name": self.names,
                "layer": self.neurons[:, 0].numpy(),
                "neuron": self.neurons[:, 1].numpy(),
                "position": list(self.position),
                "r_explore": self.r_explore.numpy(),
                "r_confirm": self.r_confirm.numpy(),
                "p": self.p.numpy(),
                "q": self.q.numpy(),
            }
        )
        return frame.assign(exploratory=True) if self.exploratory else frame

    def attrition_line(self) -> str:
        """``46,080 neurons → 812 associated → … → 12 confirmed``."""
        return " → ".join(f"{count:,} {gate}" for gate, count in self.attrition.items())

    def __repr__(self) -> str:
        lines = [self.attrition_line(), f"{self.metric} · {self.site}"]
        if self.exploratory:
            lines.insert(0, EXPLORATORY)
        rows = zip(
            self.names,
            self.r_explore.tolist(),
            self.r_confirm.tolist(),
            self.q.tolist(),
            strict=True,
        )
        for name, explore, confirm, q in list(rows)[:10]:
            lines.append(
                f"  {name:<9} r = {explore:+.2f} explore, {confirm:+.2f} confirm, q = {q:.2g}"
            )
        if len(self) > 10:
            lines.append(f"  … and {len(self) - 10} more in .frame()")
        if len(self) == 0:
            lines.append("  no neuron passed every gate")
        lines.append("  correlates, not causes: ablate before you call one a skill neuron")
        return "\n".join(lines)


def select(
    scores: Scores | MetricScores,
    confirm_scores: Scores | MetricScores,
    *,
    fdr: float = 0.05,
    gates: Sequence[str] = tuple(GATES),
    exploratory: bool = False,
) -> Selection:
    """The neurons that pass every gate on explore and hold up, with the same sign, on confirm.

    A gate is a threshold that |r| exceeds. On explore there are three, one after another: the
    family-wise threshold of the permutation null (*associated*), of the control task, and of the
    rotated basis. What passes and ``confirm_scores`` holds is the declared family: among it
    Benjamini–Hochberg at ``fdr`` on the confirm split's permutation p, and the same sign as on
    explore.

    Args:
        scores: Scores of the explore split: of one metric, or ``scores["metric"]``.
        confirm_scores: The same metric on the confirm split, of all neurons or the strongest few.
        fdr: Expected share of false discoveries among the confirmed, 0 to 1.
        gates: Which gates to ask for; leaving one out marks the result as exploratory.
        exploratory: Allow the same examples twice, and mark the result.

    Raises:
        LensSkillsError: Several metrics and none chosen; the splits share examples or groups;
            another model, site, position or task; a null that was not drawn.

    Source: discovery and confirmation on disjoint splits; Benjamini & Hochberg 1995.
    Does not show: that the neuron matters to the model; that takes an intervention.
    """
    if not 0 < fdr < 1:
        raise LensSkillsError(f"fdr must lie between 0 and 1, not {fdr}.")
    unknown = [gate for gate in gates if gate not in GATES]
    if unknown:
        raise LensSkillsError(f"no gate {unknown[0]!r}. Choose from {', '.join(map(repr, GATES))}.")
    here, there = one_metric(scores), one_metric(confirm_scores)
    explore, confirm = here.scores, there.scores
    check_match(here, there)
    reused = check_reuse(explore, confirm, exploratory)
    if there.p is None:
        raise LensSkillsError(
            "the confirm scores have no null, so nothing can be confirmed. Score them with "
            "n_permutations > 0."
        )
    ordered = tuple(gate for gate in GATES if gate in gates)
    _check_gates(here, ordered)
    gate_passed = here.passing(ordered)
    # A neuron stands for its strongest position among those that pass.
    passed = (
        list(gate_passed.values())[-1] if gate_passed else (~explore.excluded).expand_as(here.r)
    )
    strength = torch.where(passed, here.r.abs(), -1.0)
    best = strength.max(dim=0)
    candidates = (best.values >= 0).nonzero()[:, 0]
    pairs = zip(explore.layer.tolist(), explore.neuron.tolist(), strict=True)
    names = dict(enumerate(pairs))
    units = [unit for unit in candidates.tolist() if names[unit] in confirm.places]
    places = [confirm.places[names[unit]] for unit in units]
    spots = best.indices[units]
    r_explore = here.r[spots, units]
    r_confirm, p = there.r[spots, places], there.p[spots, places]
    excluded = confirm.excluded[places] if places else torch.zeros(0, dtype=torch.bool)
    q = false_discovery_q(p)
    good = (q <= fdr) & (r_explore.sign() == r_confirm.sign()) & ~excluded
    order = r_explore.abs().argsort(descending=True, stable=True)
    order = order[good[order]]
    chosen = torch.tensor(units, dtype=torch.long)[order]
    attrition = {"neurons": explore.n_units}
    attrition |= {gate: int(mask.any(0).sum()) for gate, mask in gate_passed.items()}
    if len(units) < len(candidates):
        attrition["tested"] = len(units)
    attrition["confirmed"] = len(order)
    return Selection(
        neurons=torch.stack([explore.layer[chosen], explore.neuron[chosen]], dim=1),
        position=tuple(explore.positions[spot] for spot in spots[order].tolist()),
        r_explore=r_explore[order],
        r_confirm=r_confirm[order],
        p=p[order],
        q=q[order],
        mean=explore.mean[spots, units][order],
        std=explore.std[spots, units][order],
        metric=here.metric,
        site=explore.site,
        positions=explore.positions,
        attrition=attrition,
        fdr=fdr,
        exploratory=reused
        or set(gates) != set(GATES)
        or explore.exploratory
        or confirm.exploratory,
        provenance={
            "explore": explore.provenance,
            "confirm": confirm.provenance,
            "gates": list(gates),
            "example_ids": [*explore.example_ids, *confirm.example_ids],
            "groups": sorted({*explore.groups, *confirm.groups}),
        },
    )


def _check_gates(scores: MetricScores, gates: tuple[str, ...]) -> None:
    for gate in gates:
        if scores.thresholds.bar(gate) is None:
            raise LensSkillsError(
                f"the gate {gate!r} needs the {GATES[gate]} null, which was not drawn on explore. "
                "Score whole layers with it, or leave the gate out: select(…, gates=…)."
            )
