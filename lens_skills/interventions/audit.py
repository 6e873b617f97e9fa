"""`audit`: what is left of a claim about neurons or heads, from a bare model and a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lens_skills.activations import DEFAULT_SITE, Position, parse_metrics
from lens_skills.activations.components import Component, parse_components, sites_of
from lens_skills.activations.metrics import causal_metric, parse_metric
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.interventions.control_neurons import DEFAULT_CONTROLS, Controls
from lens_skills.interventions.edits import Edit, ablate
from lens_skills.interventions.verdict import Verdict
from lens_skills.interventions.verify import verify
from lens_skills.models import Chat, with_soft_prompt
from lens_skills.results import Result
from lens_skills.scoring import Scores, score
from lens_skills.scoring.scores import card_lines
from lens_skills.scoring.select import TRIED
from lens_skills.tasks import Task


@dataclass(frozen=True, eq=False)
class Audit(Result):
    """What is left of a claim about some neurons; printing it shows one card.

    Attributes:
        claims: One row per unit and metric: name metric position r low high, and, as in `Scores`,
            p_family q_control excess q_basis (None where not drawn). For a head or an MLP they are
            those of its strongest feature.
        verdict: What interventions on other examples of the task show.
        task, explored: The task, and the split r was measured on.
        notes: Sentences a reader of the claims must see.
    """

    claims: tuple[dict[str, Any], ...]
    verdict: Verdict
    task: str
    explored: str
    notes: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """One row per unit and metric: the claim's row beside the ruling on the unit."""
        rulings = self.verdict.frame().drop(columns=["low", "high"], errors="ignore")
        claims = pd.DataFrame(list(self.claims))
        return claims.merge(rulings, on="name", how="left")

    def __repr__(self) -> str:
        lines = [
            f"Audit of {len(self.verdict)} on {self.task}, {self.verdict.provenance['model']}",
            f"what they carry, on {self.explored}: r [95 %], of the strongest feature of a unit",
            "p family-wise, q false discoveries, both over all features of the layers searched",
        ]
        lines += [f"  {row['name']:<9} {row['metric']:<16} {_numbers(row)}" for row in self.claims]
        lines = card_lines([*lines, *(f"note: {note}" for note in self.notes)])
        return "\n".join([*lines, "", "what they do", repr(self.verdict)])


def audit(
    model: Any,
    task: Task,
    *,
    neurons: Any,
    metric: Any = None,
    claims: Any = None,
    do: Edit | None = None,
    at: str = DEFAULT_SITE,
    position: Position = "last",
    fractions: tuple[float, float] = (0.5, 0.5),
    controls: Controls = DEFAULT_CONTROLS,
    delta: float | Sequence[Example] | None = None,
    by: Sequence[str] | None = None,
    unrelated: Sequence[Example] | bool = True,
    pairs: bool | None = None,
    n_permutations: int | None = None,
    chat: Chat = False,
    seed: int = 0,
    most: int = TRIED,
) -> Audit:
    """Named neurons, heads or MLPs against the nulls and under intervention: an `Audit`.

    The task is split by group. On one part every unit's r with each claim is held against the
    nulls of `score`, over whole layers, as if the unit had been searched for there. On the other,
    `verify` intervenes.

    Args:
        model: A HookedTransformer or TransformerBridge.
        task: Examples of the skill the units are said to have.
        neurons: Names such as ``"L17N635"``, ``"L9H3"``, ``"L5MLP"``, rows, or a `Selection`.
        metric: What the intervention may change; default ``logit_diff`` where the task has foils
            or options, else ``answer_probability``.
        claims: What the units are said to carry: metrics as for `score`. Default: every label that
            is a number or has two values, and ``metric``.
        do: The edit; default mean ablation over the first part.
        at: The site of units named as neurons.
        position: Where they are read and edited.
        fractions: Shares of the two parts.
        controls, delta, by, unrelated, pairs: As in `verify`.
        n_permutations, chat: As in `score`.
        seed: Of the split and all draws.
        most: Of a `Selection`, how many neurons to take, the strongest first.

    Raises:
        LensSkillsError: As `score` and `verify`; a task without answers and no metric named.
    """
    adapter = with_soft_prompt(model, None, chat)
    neurons = neurons.to_try(most) if hasattr(neurons, "to_try") else neurons
    units = parse_components(adapter, neurons, at=at)
    chosen = _default_metric(task) if metric is None else metric
    wanted = parse_metric(chosen, task, asked="audit(metric=…)")
    explore, intervene = task.split(*fractions, seed=seed, names=("explore", "intervene"))
    asked = parse_metrics(_default_claims(explore) if claims is None else claims, explore)
    if claims is None:
        asked = (*asked, wanted)
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for site, layers in sites_of(units).items():
        scores = score(
            adapter,
            explore,
            metrics=asked,
            at=site,
            position=position,
            layers=layers,
            n_permutations=n_permutations,
            seed=seed,
        )
        notes |= dict.fromkeys(scores.notes)
        rows += [
            _claim(scores, name, unit)
            for unit in units
            if unit.site == site
            for name in scores.metrics
        ]
    verdict = verify(
        adapter,
        intervene,
        # A selection knows which examples it was made with, and verify refuses those.
        neurons if hasattr(neurons, "provenance") else units,
        do=ablate("mean", over=explore) if do is None else do,
        metric=wanted,
        position=position,
        controls=controls,
        delta=delta,
        by=by,
        unrelated=unrelated,
        pairs=pairs,
        seed=seed,
    )
    return Audit(tuple(rows), verdict, task.name, explore.split_name, tuple(notes))


def _claim(scores: Scores, metric: str, unit: Component) -> dict[str, Any]:
    """One unit's strongest r with one metric, and what the nulls make of it."""
    view = scores[metric]
    features = (scores.neuron >= unit.start) & (scores.neuron < unit.stop)
    inside = ((scores.layer == unit.layer) & features).nonzero()[:, 0]
    strongest = int(view.r[:, inside].abs().flatten().argmax())
    spot, feature = divmod(strongest, len(inside))
    unit_place = inside[feature]
    row: dict[str, Any] = {
        "name": unit.name,
        "metric": metric,
        "position": scores.positions[spot],
    }
    for name in ("r", "low", "high", "p_family", "q_control", "excess", "q_basis"):
        part = getattr(view, name)
        row[name] = None if part is None else float(part[spot, unit_place])
    return row


def _numbers(row: dict[str, Any]) -> str:
    """One claim in words: r and its interval, then what each null that was drawn says."""
    texts = [f"{row['r']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"]
    texts += [
        f"{words} {row[name]:.1g}"
        for name, words in (("p_family", "p"), ("q_control", "q control"))
        if row[name] is not None
    ]
    if row["excess"] is not None:
        texts.append(f"{row['excess']:.1f} × a random direction (q {row['q_basis']:.1g})")
    return ", ".join(texts)


def _default_metric(task: Sequence[Any]) -> str:
    metric = causal_metric(task)
    if metric is None:
        raise LensSkillsError(
            "the task has examples without an answer, so the effect on it cannot be measured. Name "
            "what should change: metric='entropy', or a function (logits, examples) -> numbers."
        )
    return metric


def _default_claims(task: Task) -> list[str]:
    """Every label that is one number per example and varies."""
    names = sorted({name for example in task for name in example.labels})
    found = []
    for name in names:
        values = [example.labels.get(name) for example in task]
        distinct = set(values)
        numbers = not any(isinstance(value, str) or value is None for value in values)
        if None not in distinct and (len(distinct) == 2 or (numbers and len(distinct) > 1)):
            found.append(f"label:{name}")
    return found
