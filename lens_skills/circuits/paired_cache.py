"""`PairedCache`: clean and corrupted activations of a batch of pairs, told apart into their parts.

`paired_caches` makes them of examples, `equal_length_pairs` chooses the examples that can be used.
Pairs are compared token by token, so a prompt and its corrupted twin are equally long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills import settings
from lens_skills.activations import Metric
from lens_skills.activations.forward import (
    Encoded,
    RequiredOutputs,
    encode_examples,
    pad_left,
    prepare,
)
from lens_skills.circuits.graph import Node
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import as_adapter, keep_activation
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill
from lens_skills.models.weights import FrozenNorm, ModelWeights

_FINE, _COARSE = 1e-3, 0.05  # of the largest number: how near the sum of the parts must come


@dataclass(frozen=True, eq=False)
class CachedRun:
    """One prompt of each pair, from the first column on in which any pair differs.

    Attributes:
        suffix: Runs its columns again from any layer; its ``entering`` is the residual stream.
        z: Per layer, what each head reads with its pattern, before it is written.
        middle: Per layer, the residual stream between attention and MLP.
    """

    suffix: PartialForward
    z: list[Float[Tensor, "example column head d_head"]]
    middle: list[Float[Tensor, "example column d_model"]]

    @property
    def entering(self) -> list[Float[Tensor, "example column d_model"]]:
        """The residual stream entering each block, and at last leaving the top one."""
        return self.suffix.entering


class PairedCache:
    """A batch of clean prompts and their corrupted twins, of equal length in tokens.

    The residual stream is a sum: embedding, heads, attention biases, MLPs. So what any of them
    would send on the corrupted prompt can be put in place of what it sends on the clean one. That
    the sum holds is checked for every layer of every batch.

    Columns are those of the suffix: the last one is the last prompt token, position ``-1``.
    Nothing before the first of them differs between the two prompts.

    Attributes:
        batch: The clean prompts as tokens.
        clean, corrupted: The two runs.
        n_columns: How many columns are kept.
    """

    def __init__(
        self,
        weights: ModelWeights,
        plan: RequiredOutputs,
        batch: Sequence[Encoded],
        twins: Sequence[Encoded],
    ) -> None:
        self.weights, self.adapter, self.plan, self.batch = weights, weights.adapter, plan, batch
        rows = [item.prompt_tokens.tolist() for item in batch]
        other = [item.prompt_tokens.tolist() for item in twins]
        width = max(len(row) for row in rows)
        differ = [_first_difference(a, b) - len(a) for a, b in zip(rows, other, strict=True)]
        self.n_columns = -min(differ)
        start = width - self.n_columns
        self.clean = self._run(rows, start, check=True)
        self.corrupted = self._run(other, start, check=False)
        self._posts: dict[int, tuple[Tensor, Tensor]] = {}
        self._norms: dict[tuple[int, str, str], FrozenNorm] = {}

    def __len__(self) -> int:
        return len(self.batch)

    def _run(self, rows: Sequence[Sequence[int]], start: int, *, check: bool) -> CachedRun:
        adapter, weights = self.adapter, self.weights
        seen: dict[str, Tensor] = {}

        def columns(activation: Tensor) -> Tensor:
            return activation[:, start:].flatten(2).clone()

        names = {f"blocks.{layer}.attn.hook_z": layer for layer in range(adapter.n_layers)}
        checked = ("blocks.0.mlp.hook_post", *(f"blocks.0.attn.hook_{part}" for part in "qkv"))
        lacking = sorted({*names, *checked} - set(adapter.hook_names()))
        if lacking:
            raise LensSkillsError(
                f"{adapter.name} has no hook point {lacking[0]!r}, which circuits are read from."
            )
        readers = {name: keep_activation(seen, name, columns) for name in (*names, *checked)}
        tokens, mask = pad_left(rows, adapter.pad_id, adapter.device)
        try:
            suffix = prefill(adapter, tokens, mask, start=start, readers=readers, check=check)
        except CannotResume as reason:
            raise LensSkillsError(f"no exact path patching: {reason}.") from reason
        shape = {"head": adapter.n_heads}
        z = [rearrange(seen[name], "e c (head f) -> e c head f", **shape) for name in names]
        if check:
            self._check_reading(suffix, seen)
        middle = []
        for layer, values in enumerate(z):
            weight = weights.head_out(layer)
            out = einsum(values, weight, "e c head f, head f d -> e c d")
            out = out + weights.bias_out(layer, "attn")
            middle.append(suffix.entering[layer] + out)
            if layer == 0:
                weights.recognise(0, middle[0], seen["blocks.0.mlp.hook_post"])
            self._check_sum(layer, suffix, middle[layer])
        return CachedRun(suffix, z, middle)

    def _check_sum(self, layer: int, suffix: PartialForward, middle: Tensor) -> None:
        weights = self.weights
        post = weights.activation(weights.neurons(layer, middle))
        found = middle + post @ weights.mlp_out(layer) + weights.bias_out(layer, "mlp")
        self._near(found, suffix.entering[layer + 1], f"leaves block {layer}")

    def _check_reading(self, suffix: PartialForward, seen: dict[str, Tensor]) -> None:
        normal = self.weights.norm(0, "attn")(suffix.entering[0])
        for channel in "QKV":
            found = self.weights.preactivation(0, channel, normal).flatten(2)
            given = seen[f"blocks.0.attn.hook_{channel.lower()}"]
            self._near(found, given, f"is {channel} of block 0")

    def _near(self, found: Tensor, given: Tensor, what: str) -> None:
        fine = _FINE if self.adapter.dtype in (torch.float32, torch.float64) else _COARSE
        error = float((found - given).abs().amax() / given.abs().amax().clamp(min=1e-12))
        if not error <= fine:
            raise LensSkillsError(
                f"{self.adapter.name}: what {what} is not the sum of its parts (off by {error:.1g} "
                "of the largest number): a norm or a multiplier stands between a sublayer and the "
                "residual stream. Circuits cannot be told apart here; sweep and verify can."
            )

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

    def moved_z(self, layer: int) -> Float[Tensor, "example column head d_head"]:
        """The change of each head's ``z``."""
        return self.corrupted.z[layer] - self.clean.z[layer]

    def moved_mlp(self, layer: int) -> Float[Tensor, "example column d_model"]:
        """The change of what a block's MLP writes."""
        read = self.corrupted.middle[layer] - self.clean.middle[layer]
        return self.moved(layer + 1) - read

    def moved_post(self, layer: int) -> Float[Tensor, "example column d_mlp"]:
        """The change of each neuron's activation."""
        clean, corrupted = self._both_posts(layer)
        return corrupted - clean

    def post(self, layer: int) -> Float[Tensor, "example column d_mlp"]:
        """Each neuron's activation on the clean prompt."""
        return self._both_posts(layer)[0]

    def _both_posts(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._posts:
            clean, corrupted = (
                self.weights.activation(self.weights.neurons(layer, run.middle[layer]))
                for run in (self.clean, self.corrupted)
            )
            self._posts[layer] = clean, corrupted
        return self._posts[layer]

    def written(self, node: Node) -> Float[Tensor, "example d_model"]:
        """What a sender writes on the corrupted prompt minus what it writes on the clean one."""
        column, layer = self.column(node), node.layer
        if node.kind == "token":
            return self.moved(0)[:, column]
        if node.kind == "head":
            stop = node.index + node.width  # type: ignore[operator]
            z, weight = self.moved_z(layer)[:, column], self.weights.head_out(layer)
            heads = einsum(z, weight, "e head f, head f d -> e head d")
            return heads[:, node.index : stop].sum(1)
        if node.kind == "mlp":
            return self.moved_mlp(layer)[:, column]
        if node.kind == "neuron":
            moved = self.moved_post(layer)[:, column, node.index]
            return moved[:, None] * self.weights.mlp_out(layer)[node.index]
        raise AssertionError(f"{node} writes nothing to the residual stream")

    def frozen(self, layer: int, part: str, prompt: str = "clean") -> FrozenNorm:
        """A norm at one prompt's scales: before ``"attn"``, before ``"mlp"`` or the ``"final"``."""
        key = (layer, part, prompt)
        if key not in self._norms:
            self._norms[key] = self.weights.frozen(self.norm(layer, part), self.read(*key))
        return self._norms[key]

    def norm(self, layer: int, part: str) -> Any:
        """The norm that `frozen` freezes."""
        if part == "final":
            return self.clean.suffix.normalise
        return self.weights.norm(layer, part)

    def read(self, layer: int, part: str, prompt: str) -> Float[Tensor, "example column d_model"]:
        """The residual stream that this norm reads on the clean or the corrupted prompt."""
        run: CachedRun = getattr(self, prompt)
        return run.middle[layer] if part == "mlp" else run.entering[layer]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def paired_caches(
    weights: ModelWeights, examples: Sequence[Example], metric: Metric
) -> list[PairedCache]:
    """One `PairedCache` per batch of examples, in their order.

    Raises:
        LensSkillsError: No examples, one without a twin, or twins that differ in tokens from
            their examples in number, or not at all.
    """
    check_twins(examples)
    items, plan = prepare(weights.adapter, examples, [metric], False)
    twins = _encode_twins(weights.adapter, examples)
    unequal = [
        (one, other)
        for one, other in zip(items, twins, strict=True)
        if len(one.prompt_tokens) != len(other.prompt_tokens)
    ]
    if unequal:
        one, other = unequal[0]
        raise LensSkillsError(
            f"example {one.id!r} has {len(one.prompt_tokens)} tokens and its corrupted twin "
            f"{len(other.prompt_tokens)} ({len(unequal)} of {len(items)} pairs are unequal): a "
            "path is patched token by token. Leave such pairs out (equal_length_pairs(model, …))."
        )
    for one, other in zip(items, twins, strict=True):
        if one.prompt_tokens.tolist() == other.prompt_tokens.tolist():
            raise LensSkillsError(f"example {one.id!r} and its corrupted twin are the same tokens.")
    size = settings.batch_size()
    parts = [slice(k, k + size) for k in range(0, len(items), size)]
    return [PairedCache(weights, plan, items[part], twins[part]) for part in parts]


def _encode_twins(adapter: Any, examples: Sequence[Example]) -> list[Encoded]:
    twins = [replace(example, prompt=str(example.corrupted)) for example in examples]
    return encode_examples(adapter, twins, answers=False)


def check_twins(examples: Sequence[Example]) -> None:
    """Nothing; raises where there are no examples, or one has no corrupted twin."""
    if len(examples) == 0:
        raise LensSkillsError("no examples to find a circuit on: the task is empty.")
    lacking = [example.id for example in examples if example.corrupted is None]
    if lacking:
        raise LensSkillsError(
            f"example {lacking[0]!r} has no corrupted twin ({len(lacking)} of {len(examples)} lack "
            "one), and an edge is patched with what it carries on that. Write one for each "
            "(tasks.pairs), or use a task that has them: agreement, ioi."
        )


def equal_length_pairs(model: Any, examples: Any) -> Any:
    """The examples whose twins have as many tokens as they: those a circuit can be found on.

    Of a `Task`, a `Task`; else a list.

    Raises:
        LensSkillsError: None is left, or one has no twin.
    """
    adapter = as_adapter(model)
    check_twins(examples)
    both = encode_examples(adapter, examples, answers=False), _encode_twins(adapter, examples)
    kept = {
        one.id
        for one, twin in zip(*both, strict=True)
        if len(one.prompt_tokens) == len(twin.prompt_tokens)
    }
    if not kept:
        raise LensSkillsError(
            f"none of the {len(examples)} pairs has twins of equal length under the tokenizer of "
            f"{adapter.name}, and a path is patched token by token. Write twins that differ in "
            "words of as many tokens (tasks.pairs)."
        )
    if hasattr(examples, "where"):

        def equal_length(example: Any) -> bool:
            return example.id in kept

        return examples.where(equal_length)
    return [example for example in examples if example.id in kept]
