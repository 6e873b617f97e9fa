"""`Scene`: a batch of pairs after a clean and a corrupted pass, told apart into its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills.activations.encoding import Encoded
from lens_skills.activations.plan import Plan
from lens_skills.activations.readout import pad_left
from lens_skills.circuits.anatomy import Anatomy, Frozen
from lens_skills.circuits.node import Node
from lens_skills.errors import LensSkillsError
from lens_skills.models.suffix import CannotResume, Suffix, prefill

_FINE, _COARSE = 1e-3, 0.05  # of the largest number: how near the sum of the parts must come


@dataclass(frozen=True, eq=False)
class Side:
    """One prompt of each pair, from the first column on in which any pair differs.

    Attributes:
        suffix: Runs its columns again from any layer; `Suffix.entering` is its residual stream.
        z: Per layer, what each head reads with its pattern, before it is written.
        middle: Per layer, the residual stream between attention and MLP.
    """

    suffix: Suffix
    z: list[Float[Tensor, "example column head d_head"]]
    middle: list[Float[Tensor, "example column d_model"]]

    @property
    def entering(self) -> list[Float[Tensor, "example column d_model"]]:
        """The residual stream entering each block, and at last leaving the top one."""
        return self.suffix.entering


class Scene:
    """A batch of clean prompts and their corrupted twins, of equal length in tokens.

    The residual stream is a sum: embedding, heads, attention biases, MLPs. So what any of them
    would send on the corrupted prompt can be put in place of what it sends on the clean one. That
    the sum holds is checked for every layer of every batch.

    Columns are those of the suffix: the last one is the last prompt token, position ``-1``.
    Nothing before the first of them differs between the two prompts.

    Attributes:
        batch: The clean prompts as tokens.
        clean, corrupted: The two sides.
        n_columns: How many columns are kept.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        plan: Plan,
        batch: Sequence[Encoded],
        twins: Sequence[Encoded],
    ) -> None:
        self.anatomy, self.lens, self.plan, self.batch = anatomy, anatomy.lens, plan, batch
        rows = [item.prompt_tokens.tolist() for item in batch]
        other = [item.prompt_tokens.tolist() for item in twins]
        width = max(len(row) for row in rows)
        differ = [_first_difference(a, b) - len(a) for a, b in zip(rows, other, strict=True)]
        self.n_columns = -min(differ)
        start = width - self.n_columns
        self.clean = self._side(rows, start, check=True)
        self.corrupted = self._side(other, start, check=False)

    def __len__(self) -> int:
        return len(self.batch)

    def _side(self, rows: Sequence[Sequence[int]], start: int, *, check: bool) -> Side:
        lens, anatomy = self.lens, self.anatomy
        seen: dict[str, Tensor] = {}

        def keeper(name: str) -> Any:
            def keep(activation: Tensor) -> None:
                seen[name] = activation[:, start:].flatten(2).clone()

            return keep

        names = {f"blocks.{layer}.attn.hook_z": layer for layer in range(lens.n_layers)}
        checked = ("blocks.0.mlp.hook_post", *(f"blocks.0.attn.hook_{part}" for part in "qkv"))
        lacking = sorted({*names, *checked} - set(lens.hook_names()))
        if lacking:
            raise LensSkillsError(
                f"{lens.name} has no hook point {lacking[0]!r}, which circuits are read from."
            )
        readers = {name: keeper(name) for name in (*names, *checked)}
        tokens, mask = pad_left(rows, lens.pad_id, lens.device)
        try:
            suffix = prefill(lens, tokens, mask, start=start, readers=readers, check=check)
        except CannotResume as reason:
            raise LensSkillsError(f"no exact path patching: {reason}.") from reason
        shape = {"head": lens.n_heads}
        z = [rearrange(seen[name], "e c (head f) -> e c head f", **shape) for name in names]
        if check:
            self._check_reading(suffix, seen)
        middle = []
        for layer, values in enumerate(z):
            weight = anatomy.head_out(layer)
            out = einsum(values, weight, "e c head f, head f d -> e c d")
            out = out + anatomy.bias_out(layer, "attn")
            middle.append(suffix.entering[layer] + out)
            if layer == 0:
                anatomy.recognise(0, middle[0], seen["blocks.0.mlp.hook_post"])
            self._check_sum(layer, suffix, middle[layer])
        return Side(suffix, z, middle)

    def _check_sum(self, layer: int, suffix: Suffix, middle: Tensor) -> None:
        anatomy = self.anatomy
        post = anatomy.activation(anatomy.neurons(layer, middle))
        found = middle + post @ anatomy.mlp_out(layer) + anatomy.bias_out(layer, "mlp")
        self._near(found, suffix.entering[layer + 1], f"leaves block {layer}")

    def _check_reading(self, suffix: Suffix, seen: dict[str, Tensor]) -> None:
        normal = self.anatomy.norm(0, "attn")(suffix.entering[0])
        for channel in "QKV":
            found = self.anatomy.preactivation(0, channel, normal).flatten(2)
            given = seen[f"blocks.0.attn.hook_{channel.lower()}"]
            self._near(found, given, f"is {channel} of block 0")

    def _near(self, found: Tensor, given: Tensor, what: str) -> None:
        fine = _FINE if self.lens.dtype in (torch.float32, torch.float64) else _COARSE
        error = float((found - given).abs().amax() / given.abs().amax().clamp(min=1e-12))
        if not error <= fine:
            raise LensSkillsError(
                f"{self.lens.name}: what {what} is not the sum of its parts (off by {error:.1g} of "
                "the largest number): a norm or a multiplier stands between a sublayer and the "
                "residual stream. Circuits cannot be told apart here; sweep and verify can."
            )

    def heads_write(
        self, layer: int, z: Float[Tensor, "*row head d_head"]
    ) -> Float[Tensor, "*row head d_model"]:
        """What each head adds to the residual stream (the bias of all left out)."""
        return einsum(z, self.anatomy.head_out(layer), "... head f, head f d -> ... head d")

    # What the corrupted prompt changes.

    def column(self, node: Node) -> int:
        """The column a node stands in.

        Raises:
            LensSkillsError: It stands before all that differs between the prompts.
        """
        if not -self.n_columns <= node.column <= -1:
            raise LensSkillsError(
                f"{node} lies before the first token in which a pair differs (position "
                f"-{self.n_columns}): nothing there can change."
            )
        return self.n_columns + node.column

    def moved(self, layer: int) -> Float[Tensor, "example column d_model"]:
        """The change of what enters a block, or leaves the last."""
        return self.corrupted.entering[layer] - self.clean.entering[layer]

    def moved_middle(self, layer: int) -> Float[Tensor, "example column d_model"]:
        """The change of what a block's MLP reads."""
        return self.corrupted.middle[layer] - self.clean.middle[layer]

    def moved_z(self, layer: int) -> Float[Tensor, "example column head d_head"]:
        """The change of each head's ``z``."""
        return self.corrupted.z[layer] - self.clean.z[layer]

    def moved_mlp(self, layer: int) -> Float[Tensor, "example column d_model"]:
        """The change of what a block's MLP writes."""
        return self.moved(layer + 1) - self.moved_middle(layer)

    def moved_post(self, layer: int) -> Float[Tensor, "example column d_mlp"]:
        """The change of each neuron's activation."""
        return self._posts[layer][1] - self._posts[layer][0]

    def post(self, layer: int) -> Float[Tensor, "example column d_mlp"]:
        """Each neuron's activation on the clean prompt."""
        return self._posts[layer][0]

    @cached_property
    def _posts(self) -> "_Posts":
        return _Posts(self)

    def written(self, node: Node) -> Float[Tensor, "example d_model"]:
        """What a sender writes on the corrupted prompt minus what it writes on the clean one."""
        column, layer = self.column(node), node.layer
        if node.kind == "token":
            return self.moved(0)[:, column]
        if node.kind == "head":
            stop = node.index + node.width  # type: ignore[operator]
            z = self.moved_z(layer)[:, column]
            return self.heads_write(layer, z)[:, node.index : stop].sum(1)
        if node.kind == "mlp":
            return self.moved_mlp(layer)[:, column]
        if node.kind == "neuron":
            moved = self.moved_post(layer)[:, column, node.index]
            return moved[:, None] * self.anatomy.mlp_out(layer)[node.index]
        raise AssertionError(f"{node} writes nothing to the residual stream")

    def frozen(self, layer: int, part: str, side: str = "clean") -> Frozen:
        """A norm at one side's scales: before ``"attn"``, before ``"mlp"``, or the ``"final"``."""
        key = (layer, part, side)
        if key not in self._norms:
            self._norms[key] = self.anatomy.frozen(self.norm(layer, part), self.read(*key))
        return self._norms[key]

    @cached_property
    def _norms(self) -> dict[tuple[int, str, str], Frozen]:
        return {}

    def norm(self, layer: int, part: str) -> Any:
        """The norm that `frozen` freezes."""
        if part == "final":
            return self.clean.suffix.normalise
        return self.anatomy.norm(layer, part)

    def read(self, layer: int, part: str, side: str) -> Float[Tensor, "example column d_model"]:
        """The residual stream that this norm reads."""
        where: Side = getattr(self, side)
        return where.middle[layer] if part == "mlp" else where.entering[layer]


class _Posts(dict[int, tuple[Tensor, Tensor]]):
    """Neurons' activations of both sides, computed when first asked for."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def __missing__(self, layer: int) -> tuple[Tensor, Tensor]:
        anatomy = self.scene.anatomy
        sides = (self.scene.clean, self.scene.corrupted)
        first, second = (
            anatomy.activation(anatomy.neurons(layer, side.middle[layer])) for side in sides
        )
        self[layer] = (first, second)
        return self[layer]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
