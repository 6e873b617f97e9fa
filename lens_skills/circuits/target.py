"""`Target`: the number of each example that edges are measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.forward import forward_batch
from lens_skills.causal.odds import TokenOdds
from lens_skills.circuits.node import Node
from lens_skills.circuits.scene import Scene
from lens_skills.errors import LensSkillsError

Seen = Mapping[str, Float[Tensor, "set example width"]]
_AGREE = 1e-3  # nats: how near the fast metric must be to the whole model's


@dataclass(frozen=True, eq=False)
class Activation:
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

    def sign(self, scene: Scene) -> Float[Tensor, " example"]:
        """The sign of each example of a batch."""
        return torch.tensor([self.signs.get(e.id, 1.0) for e in scene.batch], dtype=torch.float64)

    def of(
        self, scene: Scene, seen: Seen, out: Float[Tensor, "set example column d_model"] | None
    ) -> Float[Tensor, "set example"]:
        """Σ weight · activation over all nodes, with the example's sign."""
        total: Tensor | float = 0.0
        for node, weight in zip(self.nodes, self.weights, strict=True):
            values = seen[hook_of(node)][..., features(node, len(weight))].double()
            total = total + values @ weight.to(values)
        assert isinstance(total, Tensor)
        return total * self.sign(scene).to(total)


@dataclass(frozen=True, eq=False)
class Answer:
    """A metric at the answer of the clean prompt."""

    metric: Metric
    name: str = ""
    stop: None = None
    reads: Mapping[str, Node] = field(default_factory=dict)
    # Weakly: another scene may come to lie where a forgotten one was.
    _odds: WeakKeyDictionary[Scene, TokenOdds | None] = field(default_factory=WeakKeyDictionary)

    @property
    def unit(self) -> str:
        """The metric's."""
        return self.metric.unit

    def of(
        self, scene: Scene, seen: Seen, out: Float[Tensor, "set example column d_model"] | None
    ) -> Float[Tensor, "set example"]:
        """The metric of each set and example."""
        assert out is not None
        last, suffix = out[:, :, -1], scene.clean.suffix
        odds = self.odds(scene)
        if odds is not None:
            return odds(suffix.normalise(last)).to(torch.float64)
        rows = [replace(e, index=k) for k, e in enumerate(list(scene.batch) * len(last))]
        final = _Final(scene, rearrange(last, "set example d -> (set example) 1 d"))
        values = forward_batch(final, rows, scene.plan, [self.metric], {}, {})[self.metric.name]
        return rearrange(values, "(set example) -> set example", set=len(last))

    def odds(self, scene: Scene) -> TokenOdds | None:
        """The metric as log-odds of single tokens, where it is that and agrees with the model."""
        if scene not in self._odds:
            self._odds[scene] = self._found(scene)
        return self._odds[scene]

    def _found(self, scene: Scene) -> TokenOdds | None:
        odds = None
        if "contrast" in self.metric.reads:
            odds = TokenOdds.of(scene.lens, scene.batch, scene.plan, self.metric)
        if odds is None:
            return None
        last, suffix = scene.clean.entering[-1][:, -1:], scene.clean.suffix
        final = _Final(scene, last)
        whole = forward_batch(final, scene.batch, scene.plan, [self.metric], {}, {})
        near = (odds(suffix.normalise(last[None, :, 0]))[0].cpu() - whole[self.metric.name]).abs()
        return odds if bool((near <= _AGREE).all()) else None

    def at_scale(
        self, scene: Scene, normal: Float[Tensor, "example d_model"]
    ) -> Float[Tensor, " example"]:
        """The metric of what the final norm would give, minus the clean one.

        0 where the metric is no log-odds of single tokens: then it is not read from there.
        """
        odds = self.odds(scene)
        if odds is None:
            return torch.zeros(len(scene), dtype=torch.float64)
        clean = scene.clean.suffix.normalise(scene.clean.entering[-1][:, -1])
        return (odds(normal[None]) - odds(clean[None]))[0].double().cpu()

    def slope(
        self, scene: Scene, last: Float[Tensor, "example d_model"]
    ) -> Float[Tensor, "example d_model"]:
        """The derivative by the residual stream it reads, with the final norm's clean scale.

        Where the metric is not log-odds of single tokens, the norm's own derivative is included.
        """
        odds = self.odds(scene)
        with torch.enable_grad(), scene.clean.suffix.differentiable():
            if odds is not None:
                leaf = scene.clean.suffix.normalise(last).detach().requires_grad_()
                value = odds(leaf[None])
            else:
                leaf = last.detach().clone().requires_grad_()
                value = self.of(scene, {}, leaf[None, :, None])
            if not value.requires_grad:
                raise LensSkillsError(
                    f"the metric {self.metric.name!r} has no gradient to propose edges with. "
                    "Choose logit_diff() or confidence('answer')."
                )
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        if odds is None:
            return slope
        frozen = scene.frozen(scene.lens.n_layers, "final")
        return frozen.at(-1).back(slope)


Target = Activation | Answer


class _Final:
    """What `forward_batch` takes for a model: the residual stream is already known."""

    def __init__(self, scene: Scene, last: Float[Tensor, "row 1 d_model"]) -> None:
        lens = scene.lens
        self.scene, self.last = scene, last
        self.pad_id, self.device, self.decode = lens.pad_id, lens.device, lens.decode

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        *,
        readers: Any,
        logits_at: Int[Tensor, "row k"],
        editors: Any,
    ) -> Float[Tensor, "row k d_vocab"]:
        """Logits after the prompt."""
        if logits_at.shape[1] != 1 or len(tokens) != len(self.last):
            raise LensSkillsError(
                "the metric reads answers of several tokens, or what follows the answer, and "
                "circuits end at the last prompt token. Choose answers of one token, and "
                "logit_diff() or a confidence."
            )
        return self.scene.clean.suffix.logits(self.last)


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


def clean_seen(scene: Scene, target: Target) -> dict[str, Float[Tensor, "1 example width"]]:
    """What a target reads on the clean prompts."""
    found = {}
    for name, node in target.reads.items():
        column = scene.column(node)
        side = scene.clean.z[node.layer].flatten(2) if node.kind == "head" else None
        values = scene.post(node.layer) if side is None else side
        found[name] = values[None, :, column]
    return found


def node_features(scene: Scene, nodes: Sequence[Node]) -> list[Float[Tensor, "example feature"]]:
    """What the corruption changes in each neuron or head."""
    found = []
    for node in nodes:
        column, layer = scene.column(node), node.layer
        moved = scene.moved_z if node.kind == "head" else scene.moved_post
        values = moved(layer)[:, column]
        values = values if node.kind == "head" else values[:, :, None]
        found.append(values[:, node.index])
    return found
