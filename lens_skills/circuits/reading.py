"""`Reader`: one channel of one receiver: what it reads, and what a change of that does to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from einops import einsum
from jaxtyping import Float
from torch import Tensor

from lens_skills.circuits.node import Node
from lens_skills.circuits.scene import Scene


@dataclass(frozen=True, eq=False)
class Reader:
    """A channel of a head, an MLP, a neuron or the answer, in its column.

    Attributes:
        scene: The pairs it is read on.
        node: The receiver.
        channel: ``"Q"``, ``"K"``, ``"V"``, ``"gate"``, ``"up"``, ``"in"`` or ``"answer"``.
    """

    scene: Scene
    node: Node
    channel: str

    @cached_property
    def column(self) -> int:
        """Where it stands in the scene."""
        return self.scene.column(self.node)

    @property
    def part(self) -> str:
        """Behind which norm it reads: ``"attn"``, ``"mlp"`` or ``"final"``."""
        return {"head": "attn", "answer": "final"}.get(self.node.kind, "mlp")

    @cached_property
    def residual(self) -> Float[Tensor, "example d_model"]:
        """The clean residual stream it reads."""
        return self.scene.read(self.node.layer, self.part, "clean")[:, self.column]

    @cached_property
    def normal(self) -> Float[Tensor, "example d_model"]:
        """The same after the norm."""
        return self._norm(self.residual)

    def _norm(self, residual: Float[Tensor, "example d_model"]) -> Tensor:
        return self.scene.norm(self.node.layer, self.part)(residual[:, None])[:, 0]

    @property
    def hook(self) -> str | None:
        """The hook point where a head's new pre-activation is put (None: it is computed here)."""
        if self.node.kind != "head":
            return None
        return f"blocks.{self.node.layer}.attn.hook_{self.channel.lower()}"

    @cached_property
    def heads(self) -> slice:
        """Which heads of the weights it is: one for Q, the shared one for K and V."""
        if self.node.kind != "head":
            return slice(0, 1)
        index = self.node.index or 0
        first = index if self.channel == "Q" else index // self.scene.anatomy.group
        return slice(first, first + 1)

    @property
    def features(self) -> slice:
        """Its features at the hook point, flattened."""
        width = self.scene.lens.d_head
        return slice(self.heads.start * width, self.heads.stop * width)

    def weight(self, channel: str) -> Float[Tensor, "d_model feature"]:
        """What its pre-activations are made with; one column of an MLP's for a neuron."""
        weight = self.scene.anatomy.reading(self.node.layer, channel)[self.heads][0]
        return weight[:, self.neurons]

    @property
    def neurons(self) -> slice:
        """Which neurons of the MLP it is, or all features of a head."""
        if self.node.kind != "neuron":
            return slice(None)
        index = self.node.index or 0
        return slice(index, index + 1)

    @cached_property
    def clean(self) -> Float[Tensor, "example feature"]:
        """The clean pre-activation of a head's channel."""
        return self._pre(self.channel)

    def _pre(self, channel: str) -> Tensor:
        offset = self.scene.anatomy.offset(self.node.layer, channel)[self.heads][0]
        return self.normal @ self.weight(channel) + offset[self.neurons]

    @cached_property
    def pre(self) -> Mapping[str, Float[Tensor, "example feature"]]:
        """The clean pre-activations of an MLP or neuron."""
        return {channel: self._pre(channel) for channel in self.scene.anatomy.gates}

    def change(self, sender: Node) -> Float[Tensor, "example d_model"]:
        """What the norm gives when the sender carries its corrupted value, minus what it gives.

        For the norm's own scale as the sender: this residual stream at the corrupted scale.
        """
        if sender.kind == "norm":
            clean, corrupted = (
                self.scene.frozen(self.node.layer, self.part, side)
                for side in ("clean", "corrupted")
            )
            moved = corrupted(self._everywhere) - clean(self._everywhere)
            return moved[:, self.column].to(self.residual)
        return self._norm(self.residual + self.scene.written(sender)) - self.normal

    @property
    def _everywhere(self) -> Tensor:
        return self.scene.read(self.node.layer, self.part, "clean")

    def moved(self, change: Float[Tensor, "example d_model"]) -> Float[Tensor, "example feature"]:
        """What such a change does: to a head's pre-activation, or to the neurons' activations."""
        shift = change @ self.weight(self.channel)
        if self.node.kind == "head":
            return shift
        anatomy, pre = self.scene.anatomy, self.pre
        new = {**pre, self.channel: pre[self.channel] + shift}
        return anatomy.activation(new) - anatomy.activation(pre)

    def writes(self, moved: Float[Tensor, "example feature"]) -> Float[Tensor, "example d_model"]:
        """What changed neurons add to the residual stream."""
        return moved @ self.scene.anatomy.mlp_out(self.node.layer)[self.neurons]

    def pull(self, slope: Float[Tensor, "example feature"]) -> Float[Tensor, "example d_model"]:
        """A derivative by its pre-activation as one by what it reads, at the norm's clean scale."""
        frozen = self.scene.frozen(self.node.layer, self.part)
        back = einsum(slope, self.weight(self.channel), "e f, d f -> e d")
        return frozen.at(self.column).back(back)
