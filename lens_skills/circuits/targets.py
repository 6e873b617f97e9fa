"""`Target`: the number of each example that edges are measured on, an activation or a metric.

`StartNodes` is what a circuit is found for, neurons, heads or the answer, with its target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations import Metric, parse_metrics
from lens_skills.activations.components import parse_components
from lens_skills.activations.continuations import Scores
from lens_skills.activations.forward import TokenOdds, read_metrics
from lens_skills.circuits.graph import Node
from lens_skills.circuits.paired_cache import PairedCache
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError

Seen = Mapping[str, Float[Tensor, "set example width"]]


_AGREE = 1e-3  # nats: how near the fast metric must be to the whole model's


@dataclass(frozen=True, eq=False)
class ActivationTarget:
    """A neuron's activation, or several activations along one direction.

    ``stop`` is the block before which a run that reads it may end, ``reads`` the hook points it
    needs and a node that stands in the column.

    Attributes:
        nodes: Neurons or heads.
        weights: Per node, what each of its features counts (one number for a neuron).
        signs: Of each example by its id: +1 or -1, so that classes in which the corruption moves
            it in opposite directions do not cancel; +1 where it is not said.
    """

    nodes: tuple[Node, ...]
    weights: tuple[Float[Tensor, " feature"], ...]
    name: str
    unit: str = "activation"
    signs: Mapping[str, float] = field(default_factory=dict)

    @property
    def stop(self) -> int | None:
        """The block after the highest node."""
        return max(node.layer for node in self.nodes) + 1

    @property
    def reads(self) -> Mapping[str, Node]:
        """One hook point per layer and kind."""
        return {hook_of(node): node for node in self.nodes}

    def sign(self, cache: PairedCache) -> Float[Tensor, " example"]:
        """The sign of each example of a batch."""
        return torch.tensor([self.signs.get(e.id, 1.0) for e in cache.batch], dtype=torch.float64)

    def of(
        self,
        cache: PairedCache,
        seen: Seen,
        out: Float[Tensor, "set example column d_model"] | None,
    ) -> Float[Tensor, "set example"]:
        """Σ weight · activation over all nodes, with the example's sign."""
        total: Tensor | float = 0.0
        for node, weight in zip(self.nodes, self.weights, strict=True):
            values = seen[hook_of(node)][..., features(node, len(weight))].double()
            total = total + values @ weight.to(values)
        assert isinstance(total, Tensor)
        return total * self.sign(cache).to(total)


@dataclass(frozen=True, eq=False)
class AnswerTarget:
    """A metric at the answer of the clean prompt."""

    stop: ClassVar[None] = None
    reads: ClassVar[Mapping[str, Node]] = {}
    metric: Metric
    # Weakly: another cache may come to lie where a forgotten one was.
    _odds: WeakKeyDictionary[PairedCache, TokenOdds | None] = field(
        default_factory=WeakKeyDictionary
    )

    @property
    def name(self) -> str:
        """The metric's."""
        return self.metric.name

    @property
    def unit(self) -> str:
        """The metric's."""
        return self.metric.unit

    def of(
        self,
        cache: PairedCache,
        seen: Seen,
        out: Float[Tensor, "set example column d_model"] | None,
    ) -> Float[Tensor, "set example"]:
        """The metric of each set and example, the columns of an answer's later tokens included."""
        assert out is not None
        odds = self.odds(cache)
        if odds is not None:
            last = out[:, :, cache.n_columns - 1]
            return odds(cache.clean.suffix.normalise(last)).to(torch.float64)
        return self._read(cache, out)

    def odds(self, cache: PairedCache) -> TokenOdds | None:
        """The metric as log-odds of single tokens, where it is that and agrees with the model."""
        if cache not in self._odds:
            self._odds[cache] = self._found(cache)
        return self._odds[cache]

    def _found(self, cache: PairedCache) -> TokenOdds | None:
        odds = None
        if "contrast" in self.metric.reads:
            odds = TokenOdds.of(cache.adapter, cache.batch, cache.plan, self.metric)
        if odds is None:
            return None
        last = cache.clean.entering[-1][None, :, -1]
        whole = self._read(cache, cache.clean.leaving)[0]
        near = (odds(cache.clean.suffix.normalise(last))[0].cpu() - whole).abs()
        return odds if bool((near <= _AGREE).all()) else None

    def _read(
        self, cache: PairedCache, out: Float[Tensor, "set example column d_model"]
    ) -> Float[Tensor, "set example"]:
        adapter, plan, n_sets = cache.adapter, cache.plan, len(out)
        rows = [replace(e, index=k) for k, e in enumerate(list(cache.batch) * n_sets)]
        chunks = cache.tree.suffix_logits(cache.clean.suffix, out)
        scores = Scores.of(cache.tree, chunks, n_sets=n_sets, first=plan.vocabulary)
        values = read_metrics(adapter, rows, plan, [self.metric], scores)[self.metric.name]
        return rearrange(values, "(set example) -> set example", set=n_sets)

    def at_scale(
        self, cache: PairedCache, normal: Float[Tensor, "example d_model"]
    ) -> Float[Tensor, " example"]:
        """The metric of what the final norm would give, minus the clean one.

        0 where the metric is no log-odds of single tokens: then it is not read from there.
        """
        odds = self.odds(cache)
        if odds is None:
            return torch.zeros(len(cache), dtype=torch.float64)
        clean = cache.clean.suffix.normalise(cache.clean.entering[-1][:, -1])
        return (odds(normal[None]) - odds(clean[None]))[0].double().cpu()

    def gradient(
        self, cache: PairedCache, out: Float[Tensor, "1 example column d_model"]
    ) -> Float[Tensor, "example d_model"]:
        """The derivative by what leaves the last token of the prompt, the final norm's scale clean.

        Where the metric is not log-odds of single tokens, the norm's own derivative is included.
        """
        odds, at = self.odds(cache), cache.n_columns - 1
        last = out[0, :, at].detach()
        with torch.enable_grad(), cache.clean.suffix.differentiable():
            if odds is not None:
                leaf = cache.clean.suffix.normalise(last).detach().requires_grad_()
                value = odds(leaf[None])
            else:
                leaf = last.clone().requires_grad_()
                before, after = out[:, :, :at].detach(), out[:, :, at + 1 :].detach()
                value = self.of(cache, {}, torch.cat([before, leaf[None, :, None], after], dim=2))
            if not value.requires_grad:
                raise LensSkillsError(
                    f"the metric {self.metric.name!r} has no gradient to propose edges with. "
                    "Choose logit_diff() or confidence('answer')."
                )
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if odds is None:
            return gradient
        frozen = cache.frozen(cache.adapter.n_layers, "final")
        return frozen.at(-1).back(gradient)


Target = ActivationTarget | AnswerTarget


def hook_of(node: Node) -> str:
    """The hook point that holds a neuron's or head's activation.

    >>> hook_of(Node(3, "head", 1, "-1"))
    'blocks.3.attn.hook_z'
    """
    site = {"neuron": "mlp.hook_post", "head": "attn.hook_z"}[node.kind]
    return f"blocks.{node.layer}.{site}"


def features(node: Node, width: int) -> slice:
    """Its features among all of that hook point, flattened.

    >>> features(Node(3, "head", 2, "-1"), 8)
    slice(16, 24, None)
    """
    assert node.index is not None
    return slice(node.index * width, (node.index + 1) * width)


def clean_seen(cache: PairedCache, target: Target) -> dict[str, Float[Tensor, "1 example width"]]:
    """What a target reads on the clean prompts."""
    found = {}
    for name, node in target.reads.items():
        column = cache.column(node)
        values = (
            cache.clean.z[node.layer].flatten(2) if node.kind == "head" else cache.post(node.layer)
        )
        found[name] = values[None, :, column]
    return found


def node_features(
    cache: PairedCache, nodes: Sequence[Node]
) -> list[Float[Tensor, "example feature"]]:
    """What the corruption changes in each neuron or head."""
    found = []
    for node in nodes:
        column, layer = cache.column(node), node.layer
        moved = cache.moved_z if node.kind == "head" else cache.moved_post
        values = moved(layer)[:, column]
        values = values if node.kind == "head" else values[:, :, None]
        found.append(values[:, node.index])
    return found


_FEW_CLASSES = 6


_TWICE = 2.0  # signs per class are used where they at least double the alignment of the changes


@dataclass(frozen=True, eq=False)
class StartNodes:
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


def parse_start(adapter: Any, start: Any, position: str | int) -> tuple[Node, ...]:
    """The nodes a user named.

    Raises:
        LensSkillsError: Unknown names, whole MLPs, or a position that is not counted from the end.
    """
    if start == "answer":
        return (Node(adapter.n_layers, "answer", None, "-1"),)
    column = -1 if position == "last" else position
    if not isinstance(column, int) or column >= 0:
        raise LensSkillsError(
            f"position={position!r}: circuits count positions from the end of the prompt. Give "
            "'last' or a negative number."
        )
    nodes = []
    for unit in parse_components(adapter, start):
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
    nodes: Sequence[Node],
    caches: Sequence[PairedCache],
    examples: Sequence[Example],
    metric: Metric,
) -> StartNodes:
    """The start with its target, decided on the half of the pairs that proposes.

    A single neuron's target is its activation; of several neurons, or a head, their activations
    along the unit vector of the mean clean - corrupted difference. Where the corruption moves
    classes of a label in opposite directions (singular to plural and plural to singular), the
    mean over all would cancel: then each class gets the sign that aligns it.
    """
    if nodes[0].kind == "answer":
        return StartNodes(tuple(nodes), AnswerTarget(metric))
    moved = torch.cat([torch.cat(node_features(s, nodes), dim=1).double().cpu() for s in caches])
    here = [item.example for cache in caches for item in cache.batch]
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
        sizes = [caches[0].adapter.d_head if n.kind == "head" else 1 for n in nodes]
        assert sum(sizes) == len(unit), size
        weights = unit.split(sizes)
        names = "+".join(node.name for node in nodes)
        name = names if len(nodes) <= 3 else f"{len(nodes)} units"
        notes.append(f"{name}: its activations along their mean clean - corrupted difference")
    target = ActivationTarget(tuple(nodes), weights, name, signs=signs)
    rule = {"name": name, "weights": [weight.tolist() for weight in weights]}
    rule |= {"column": column, "signs": classes}
    return StartNodes(tuple(nodes), target, tuple(notes), rule)


def upstream_target(circuit: Any, examples: Sequence[Example]) -> Target:
    """The target of a circuit's upstream edges, to be measured on further examples.

    Its weights and signs are those decided when the circuit was found.

    Raises:
        LensSkillsError: The circuit ends at a metric of the user's own, which is not saved.
    """
    if circuit.start[0].kind == "answer":
        (metric,) = parse_metrics(circuit.metric)
        return AnswerTarget(metric)
    rule = circuit.provenance["target"]
    weights = tuple(torch.tensor(weight, dtype=torch.float64) for weight in rule["weights"])
    signs = _by_class(examples, rule["column"], rule["signs"])
    return ActivationTarget(tuple(circuit.start), weights, rule["name"], signs=signs)


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
