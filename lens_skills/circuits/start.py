"""`Start`: what a circuit is found for: neurons, heads, or the answer; and its target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, parse_metrics
from lens_skills.causal.units import parse_units
from lens_skills.circuits.node import Node
from lens_skills.circuits.scene import Scene
from lens_skills.circuits.target import Activation, Answer, Target, node_features
from lens_skills.errors import LensSkillsError
from lens_skills.example import Example

_FEW_CLASSES = 6
_TWICE = 2.0  # signs per class are used where they at least double the alignment of the changes


@dataclass(frozen=True, eq=False)
class Start:
    """The nodes in question and the number that their incoming edges are measured on.

    Attributes:
        nodes: Neurons or heads at one position, or the answer.
        target: Their activation, or the metric.
        notes: What must be known of the target.
        rule: How it was decided, as plain values, so that `upstream_target` can build it again.
    """

    nodes: tuple[Node, ...]
    target: Target
    notes: tuple[str, ...] = ()
    rule: dict[str, Any] = field(default_factory=dict)


def parse_start(lens: Any, start: Any, position: str | int) -> tuple[Node, ...]:
    """The nodes a user named.

    Raises:
        LensSkillsError: Unknown names, whole MLPs, or a position that is not counted from the end.
    """
    if start == "answer":
        return (Node(lens.n_layers, "answer", None, "-1"),)
    column = -1 if position == "last" else position
    if not isinstance(column, int) or column >= 0:
        raise LensSkillsError(
            f"position={position!r}: circuits count positions from the end of the prompt. Give "
            "'last' or a negative number."
        )
    nodes = []
    for unit in parse_units(lens, start):
        width = unit.stop - unit.start
        kind = {"mlp.hook_post": "neuron", "attn.hook_z": "head"}.get(unit.site)
        if kind is None or (kind == "neuron" and width != 1):
            raise LensSkillsError(
                f"a circuit starts at neurons (at mlp.hook_post), heads or 'answer', not at "
                f"{unit.name} ({unit.site})."
            )
        nodes.append(Node(unit.layer, kind, unit.start // width, str(column)))  # type: ignore[arg-type]
    if not nodes:
        raise LensSkillsError("a circuit of nothing: no neurons were named.")
    return tuple(nodes)


def orient(
    nodes: Sequence[Node], scenes: Sequence[Scene], examples: Sequence[Example], metric: Metric
) -> Start:
    """The start with its target, decided on the half of the pairs that proposes.

    A single neuron's target is its activation; of several neurons, or a head, their activations
    along the unit vector of the mean clean - corrupted difference. Where the corruption moves
    classes of a label in opposite directions (singular to plural and plural to singular), the
    mean over all would cancel: then each class gets the sign that aligns it.

    Args:
        nodes: Where the circuit starts.
        scenes: The half that proposes.
        examples: All examples: they get their signs here, by their class.
        metric: The target of the answer.
    """
    if nodes[0].kind == "answer":
        return Start(tuple(nodes), Answer(metric, metric.name))
    moved = torch.cat([torch.cat(node_features(s, nodes), dim=1).double().cpu() for s in scenes])
    here = [item.example for scene in scenes for item in scene.batch]
    column, classes = _signs(moved, here)
    signs = _by_class(examples, column, classes)
    away = -(moved * torch.tensor([[signs.get(e.id, 1.0)] for e in here])).mean(0)
    notes = []
    if column:
        words = ", ".join(f"{'+' if s > 0 else '-'} for {column} {c}" for c, s in classes.items())
        notes.append(f"the corruption moves it up or down by class, so it counts {words}")
    if len(nodes) == 1 and nodes[0].kind == "neuron":
        weights, name = (torch.ones(1, dtype=torch.float64),), nodes[0].name
    else:
        unit = away / away.norm().clamp(min=1e-30)
        size = len(moved[0]) // len(nodes)
        sizes = [scenes[0].lens.d_head if n.kind == "head" else 1 for n in nodes]
        assert sum(sizes) == len(unit), size
        weights = unit.split(sizes)
        names = "+".join(node.name for node in nodes)
        name = names if len(nodes) <= 3 else f"{len(nodes)} units"
        notes.append(f"{name}: its activations along their mean clean - corrupted difference")
    target = Activation(tuple(nodes), weights, name, signs=signs)
    rule = {"name": name, "weights": [weight.tolist() for weight in weights]}
    rule |= {"column": column, "signs": classes}
    return Start(tuple(nodes), target, tuple(notes), rule)


def upstream_target(circuit: Any, examples: Sequence[Example]) -> Target:
    """The target of a circuit's upstream edges, to be measured on further examples.

    Its weights and signs are those decided when the circuit was found.

    Raises:
        LensSkillsError: The circuit ends at a metric of the user's own, which is not saved.
    """
    if circuit.start[0].kind == "answer":
        (metric,) = parse_metrics(circuit.metric)
        return Answer(metric, metric.name)
    rule = circuit.provenance["target"]
    weights = tuple(torch.tensor(weight, dtype=torch.float64) for weight in rule["weights"])
    signs = _by_class(examples, rule["column"], rule["signs"])
    return Activation(tuple(circuit.start), weights, rule["name"], signs=signs)


def _by_class(
    examples: Sequence[Example], column: str, classes: Mapping[str, float]
) -> dict[str, float]:
    if not column:
        return {}
    return {example.id: classes.get(str(example.column(column)), 1.0) for example in examples}


def _signs(
    moved: Float[Tensor, "example feature"], here: Sequence[Example]
) -> tuple[str, dict[str, float]]:
    """A label, and a sign per class of it, where that aligns the changes."""
    best, chosen = _TWICE * float(moved.mean(0).norm()), ("", {})
    for column in here[0].labels:
        values = [str(example.column(column)) for example in here]
        classes = sorted(set(values))
        if not 2 <= len(classes) <= _FEW_CLASSES:
            continue
        means = {c: moved[torch.tensor([v == c for v in values])].mean(0) for c in classes}
        lead = max(means.values(), key=lambda mean: float(mean.norm()))
        # A class counts + where the clean prompt has more of it than the corrupted one.
        sign = {c: -1.0 if float(mean @ lead) > 0 else 1.0 for c, mean in means.items()}
        if len(moved[0]) == 1 and float(lead) < 0:
            sign = {c: -s for c, s in sign.items()}
        each = rearrange(torch.tensor([sign[v] for v in values]), "example -> example 1")
        aligned = float((moved * each).mean(0).norm())
        if aligned > best:
            best, chosen = aligned, (column, sign)
    return chosen
