"""`Found`: what one run of an analysis found, whatever kind of result it hands back.

`read` takes a selection, a study, a verdict, a circuit or plain names, and no two kinds mix.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lens_skills.activations.components import neuron_names, unit_name
from lens_skills.circuits import Circuit, Edge
from lens_skills.errors import LensSkillsError
from lens_skills.interventions import Verdict
from lens_skills.interventions.verdict import CAUSAL
from lens_skills.scoring import MetricScores, Scores, Selection

_LAYER = re.compile(r"L(\d+)")
_HINT = (
    "Let the function hand back a Selection, Study, Verdict, Circuit, or names such as 'L17N635' "
    "(or units, as scores['metric'].top(100) has them)."
)


@dataclass(frozen=True)
class Found:
    """One run's finding, in plain values.

    Attributes:
        kind: ``"selection"``, ``"study"``, ``"verdict"``, ``"circuit"`` or ``"names"``.
        names: What was found: neurons selected, neurons with a causal word, edges confirmed.
        tried: What else could have been, where each was tried by name; None where whole layers
            were.
        population: How many could have been found in each layer, where whole layers were searched
            (``""`` for all layers together); None where that is not known.
        words: The word of each that has one, such as *supports*, or *negligible* of an edge.
        numbers: Further numbers of the run, such as a circuit's unexplained share.
        exploratory: Whether the result says so of itself.
    """

    kind: str
    names: tuple[str, ...] = ()
    tried: tuple[str, ...] | None = None
    population: Mapping[str, int] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    exploratory: bool = False

    def layer(self, name: str) -> str:
        """The stratum of a name in ``population``."""
        if self.population is None or "" in self.population:
            return ""
        match = _LAYER.match(name)
        if match is None or match[1] not in self.population:
            raise LensSkillsError(
                f"among= names the layers {', '.join(self.population)}, and {name!r} is in none."
            )
        return match[1]


def read(result: Any, *, among: int | Mapping[int, int] | None, places: bool) -> Found:
    """What a result found, and whether it or a part of it is exploratory.

    Args:
        result: None for a run that found nothing.
        among: How many could have been found, in all or per layer, where the user says so.
        places: Whether edges at different positions are different edges.
    """
    parts = [result, *(getattr(result, part, None) for part in ("selection", "verdict"))]
    exploratory = any(bool(getattr(part, "exploratory", False)) for part in parts)
    return replace(_read(result, among, places), exploratory=exploratory)


def _read(result: Any, among: int | Mapping[int, int] | None, places: bool) -> Found:
    population = among
    if hasattr(result, "selection") and hasattr(result, "verdict"):
        if among is None:
            scores = result.scores
            population = Counter(scores.layer[~scores.excluded].tolist())
        verdict = result.verdict
        return Found(
            "study",
            tuple(result.selection.names),
            population=_per_layer(population),
            words={} if verdict is None else {r.name: r.word for r in _singles(verdict)},
        )
    if isinstance(result, Selection):
        if among is None:
            population = result.attrition.get("neurons")
        return Found("selection", tuple(result.names), population=_per_layer(population))
    if isinstance(result, Verdict):
        words = {ruling.name: ruling.word for ruling in _singles(result)}
        causal = tuple(name for name, word in words.items() if word in CAUSAL)
        return Found("verdict", causal, tried=tuple(words), words=words)
    if isinstance(result, Circuit):
        return _edges(result, places)
    if isinstance(result, Scores | MetricScores):
        raise LensSkillsError(f"scores name no neurons, they rank all. {_HINT}")
    return Found("names", _names(result), population=_per_layer(population))


def _singles(verdict: Any) -> list[Any]:
    return [ruling for ruling in verdict.rulings if ruling.name != "set"]


def _edges(circuit: Circuit, places: bool) -> Found:
    def name(edge: Edge) -> str:
        if places:
            return f"{edge} on {edge.target}"
        return f"{edge.sender.name} → {edge.receiver.name} {edge.channel} on {edge.target}"

    names = dict.fromkeys(name(edge) for edge in circuit.edges if edge.confirmed)
    words: dict[str, str] = {}
    for edge in sorted(circuit.edges, key=lambda edge: not edge.confirmed):
        words.setdefault(name(edge), edge.verdict or "untested")
    return Found(
        "circuit",
        tuple(names),
        tried=tuple(words),
        words=words,
        numbers={f"unexplained {part.part}": float(part.unexplained) for part in circuit.totals},
    )


def _names(result: Any) -> tuple[str, ...]:
    if result is None:
        return ()
    result = getattr(result, "names", result)
    if isinstance(result, Tensor):
        if result.ndim != 2 or (len(result) and result.shape[1] != 2):
            raise LensSkillsError(f"a tensor of shape {tuple(result.shape)} names nothing. {_HINT}")
        return tuple(neuron_names(result))
    if isinstance(result, str) or not isinstance(result, Iterable):
        raise LensSkillsError(f"a {type(result).__name__} names nothing. {_HINT}")
    names: list[Any] = [
        unit_name(*item) if isinstance(item, tuple) and len(item) == 2 else item for item in result
    ]
    for name in names:
        if not isinstance(name, str):
            raise LensSkillsError(f"{name!r} is no name. {_HINT}")
    return tuple(dict.fromkeys(names))


def _per_layer(among: int | Mapping[int, int] | None) -> dict[str, int] | None:
    if among is None:
        return None
    counts = {"": among} if isinstance(among, int) else {str(k): n for k, n in among.items()}
    if not counts or min(counts.values()) < 1:
        raise LensSkillsError(f"among={among!r}: how many neurons there are, in all or per layer.")
    return counts
