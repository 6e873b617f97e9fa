"""`PairedCache`: clean and corrupted activations of a batch of pairs, told apart into their parts.

`paired_caches` makes them of examples, `equal_length_pairs` chooses the examples that can be used.
Pairs are compared token by token, so a prompt and its corrupted twin are equally long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lens_skills import settings
from lens_skills.activations import Metric
from lens_skills.activations.continuations import ContinuationTree
from lens_skills.activations.forward import Encoded, RequiredOutputs, encode_examples, prepare
from lens_skills.circuits.graph import Node
from lens_skills.data import Example
from lens_skills.errors import LensSkillsError
from lens_skills.models import Chat, keep_activation, with_soft_prompt
from lens_skills.models.partial_forward import CannotResume, PartialForward, prefill
from lens_skills.models.sublayers import ModelWeights, off
from lens_skills.models.weights import FrozenNorm
from lens_skills.tasks import Task

_FINE, _COARSE = 1e-3, 0.05  # of the largest number: how near the sum of the parts must come


@dataclass(frozen=True, eq=False)
class CachedRun:
    """One prompt of each pair, from the first column on in which any pair differs.

    Attributes:
        suffix: Runs its columns again from any layer, the answer's later tokens behind them.
        n_columns: How many of them are the prompt's.
        z: Per layer, what each head reads with its pattern, before it is written.
        attention: Per layer, what the attention adds to the residual stream.
        middle: Per layer, the residual stream that the MLP reads: between attention and MLP, or
            in parallel blocks what enters the block.
    """

    suffix: PartialForward
    n_columns: int
    z: list[Float[Tensor, "example column head d_head"]]
    attention: list[Float[Tensor, "example column d_model"]]
    middle: list[Float[Tensor, "example column d_model"]]

    @cached_property
    def entering(self) -> list[Float[Tensor, "example column d_model"]]:
        """The residual stream entering each block, and at last leaving the top one."""
        return [residual[:, : self.n_columns] for residual in self.suffix.entering]

    @property
    def leaving(self) -> Float[Tensor, "1 example column d_model"]:
        """What leaves the last block, in the columns of the answer's later tokens too."""
        return self.suffix.entering[-1][None]


class PairedCache:
    """A batch of clean prompts and their corrupted twins, of equal length in tokens.

    The residual stream is a sum: embedding, what each attention adds, what each MLP adds. So what
    any of them would send on the corrupted prompt can be put in place of what it sends on the
    clean one. That the sum holds is checked for every layer of every batch.

    Where a norm follows a sublayer (Gemma 2 and 3, OLMo 2), heads and neurons are still told
    apart: one of them sends what the sublayer adds with its corrupted activation among the clean
    ones, minus what it adds with all clean, the norm computed anew. Nothing is frozen there, so
    single heads need not add up to their attention; several at once pass the norm together.

    Columns are those of the suffix: the last one is the last prompt token, position ``-1``.
    Nothing before the first of them differs between the two prompts.

    Answers of several tokens are given: behind either prompt stand the same tokens of the answer,
    its foil and the options. They are no part of what differs and hold no nodes. They read the
    prompt's keys and values, which is how all that the prompt says reaches them, and are run anew
    whenever those change.

    Attributes:
        batch, twins: The clean prompts and the corrupted ones as tokens.
        tree: The clean prompts with all continuations that the metric reads.
        clean, corrupted: The two runs.
        n_columns: How many columns are kept: those from the first in which any pair differs, or as
            many as were asked for, where ``twins`` may be the clean prompts themselves.
    """

    def __init__(
        self,
        weights: ModelWeights,
        plan: RequiredOutputs,
        batch: Sequence[Encoded],
        twins: Sequence[Encoded],
        n_columns: int | None = None,
    ) -> None:
        self.weights, self.adapter, self.plan = weights, weights.adapter, plan
        self.batch, self.twins = batch, twins
        self.adapter.check_site()
        self.n_columns = _n_different(batch, twins) if n_columns is None else n_columns
        self.tree = plan.tree(self.adapter, batch, padding="ends")
        self.corrupted = self.clean = self._run(self.tree, check=True)
        if twins is not batch:
            there = plan.tree(self.adapter, batch, twins, padding="ends")
            self.corrupted = self._run(there, check=False)
        self._posts: dict[int, tuple[Tensor, Tensor]] = {}
        self._norms: dict[tuple[int, str, str], FrozenNorm] = {}
        self._outputs: dict[tuple[int, str, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def reads_on(self) -> bool:
        """Whether later tokens of answers read the prompt."""
        return self.tree.columns.shape[1] > 1

    def _run(self, tree: ContinuationTree, *, check: bool) -> CachedRun:
        adapter, weights, n_columns = self.adapter, self.weights, self.n_columns
        seen: dict[str, Tensor] = {}
        end = tree.start + 1
        start = end - n_columns

        def columns(activation: Tensor) -> Tensor:
            return activation[:, start:end].flatten(2).clone()

        names = {f"blocks.{layer}.attn.hook_z": layer for layer in range(adapter.n_layers)}
        checked = ("blocks.0.mlp.hook_post", *(f"blocks.0.attn.hook_{part}" for part in "qkv"))
        lacking = sorted({*names, *checked} - set(adapter.hook_names()))
        if lacking:
            raise LensSkillsError(
                f"{adapter.name} has no hook point {lacking[0]!r}, which circuits are read from."
            )
        readers = {name: keep_activation(seen, name, columns) for name in (*names, *checked)}
        try:
            suffix = prefill(
                adapter, tree.tokens, tree.mask,
                start=start, readers=readers, branches=tree.branches, check=check,
            )  # fmt: skip
        except CannotResume as reason:
            raise LensSkillsError(f"no exact path patching: {reason}.") from reason
        shape = {"head": adapter.n_heads}
        z = [rearrange(seen[name], "e c (head f) -> e c head f", **shape) for name in names]
        if check:
            given = {part: seen[f"blocks.0.attn.hook_{part.lower()}"] for part in "QKV"}
            entering, leaving = (part[:, :n_columns] for part in suffix.entering[:2])
            weights.recognise(entering, leaving, z[0], seen["blocks.0.mlp.hook_post"], given)
        attention, middle = [], []
        for layer, values in enumerate(z):
            entering = suffix.entering[layer][:, :n_columns]
            attention.append(weights.added(layer, "attn", weights.output(layer, "attn", values)))
            middle.append(entering if weights.parallel else entering + attention[layer])
            post = weights.activation(weights.neurons(layer, middle[layer]))
            found = weights.added(layer, "mlp", weights.output(layer, "mlp", post))
            found = found + entering + attention[layer]
            leaving = suffix.entering[layer + 1][:, :n_columns]
            self._near(found, leaving, f"leaves block {layer}")
        return CachedRun(suffix, n_columns, z, attention, middle)

    def _near(self, found: Tensor, given: Tensor, what: str) -> None:
        fine = _FINE if self.adapter.dtype in (torch.float32, torch.float64) else _COARSE
        error = off(found, given)
        if not error <= fine:
            raise LensSkillsError(
                f"{self.adapter.name}: what {what} is not the sum of its parts (off by {error:.1g} "
                "of the largest number), as it is in block 0, so edges cannot be told apart and "
                "there are no circuits of it; sweep and verify work."
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
        attention = self.corrupted.attention[layer] - self.clean.attention[layer]
        return self.moved(layer + 1) - self.moved(layer) - attention

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
                for run in self.runs
            )
            self._posts[layer] = clean, corrupted
        return self._posts[layer]

    def written(self, node: Node) -> Float[Tensor, "example d_model"]:
        """What a sender adds with its corrupted activation, minus what it adds with its clean one.

        All else is clean: see `PairedCache` on norms after a sublayer.
        """
        column, layer = self.column(node), node.layer
        if node.kind == "token":
            return self.moved(0)[:, column]
        if node.kind == "mlp":
            return self.moved_mlp(layer)[:, column]
        part = "attn" if node.kind == "head" else "mlp"
        return self.passed(self.clean, layer, part, self.output(node), column)

    def output(self, node: Node) -> Float[Tensor, "example d_model"]:
        """The change of what a head, MLP or neuron gives, before any norm after its sublayer."""
        column, layer = self.column(node), node.layer
        if node.kind == "head":
            return self._head(node, self.moved_z(layer)[:, column])
        if node.kind == "mlp":
            return self.moved_post(layer)[:, column] @ self.weights.mlp_out(layer)
        if node.kind == "neuron":
            moved = self.moved_post(layer)[:, column, node.index]
            return moved[:, None] * self.weights.mlp_out(layer)[node.index]
        raise AssertionError(f"{node} writes nothing to the residual stream")

    def _head(self, node: Node, z: Float[Tensor, "example head d_head"]) -> Tensor:
        heads = slice(int(node.index or 0), int(node.index or 0) + node.width)
        weight = self.weights.head_out(node.layer)[heads]
        return einsum(z[:, heads], weight, "e head f, head f d -> e d")

    def passed(
        self,
        run: CachedRun,
        layer: int,
        part: str,
        change: Float[Tensor, "*row d_model"],
        column: int | slice,
        *,
        beside: Tensor | float = 0.0,
    ) -> Float[Tensor, "*row d_model"]:
        """What a change of a sublayer's output does to what it adds on the prompt of ``run``.

        ``beside``: another change, which is there before and after.
        """
        sublayer = self.weights.sublayer(part)
        if sublayer.after is None:
            return change if sublayer.factor == 1 else sublayer.factor * change
        base = self.raw(run, layer, part)[:, column] + beside
        added = self.weights.added
        return added(layer, part, base + change) - added(layer, part, base)

    def raw(self, run: CachedRun, layer: int, part: str) -> Float[Tensor, "example column d_model"]:
        """The output of an attention or MLP on the prompt of ``run``, before any norm after it."""
        which = self.runs.index(run)
        key = layer, part, which
        if key not in self._outputs:
            values = run.z[layer] if part == "attn" else self._both_posts(layer)[which]
            self._outputs[key] = self.weights.output(layer, part, values)
        return self._outputs[key]

    def share(self, node: Node) -> Float[Tensor, "example d_model"]:
        """A sender's share of what its sublayer adds, corrupted minus clean: shares add up.

        As `written`, but a norm after the sublayer divides by the scale it has on each prompt,
        and is linear at that.
        """
        sublayer = self.weights.sublayer("attn")
        if node.kind != "head" or sublayer.after is None:
            return self.written(node)
        column = self.column(node)
        outputs = [self._head(node, run.z[node.layer][:, column]) for run in self.runs]
        return self._at_own_scales(node.layer, column, outputs)

    def bias_share(self, layer: int, column: int) -> Float[Tensor, "example d_model"] | float:
        """The same of the attention's bias, which only a norm after the attention lets change."""
        if self.weights.attn.after is None:
            return 0.0
        bias = self.weights.bias_out(layer, "attn")
        return self._at_own_scales(layer, column, [bias.expand(len(self), -1)] * 2)

    @property
    def runs(self) -> tuple[CachedRun, CachedRun]:
        """Clean and corrupted."""
        return self.clean, self.corrupted

    def _at_own_scales(self, layer: int, column: int, outputs: Sequence[Tensor]) -> Tensor:
        weights, parts = self.weights, []
        for run, output in zip(self.runs, outputs, strict=True):
            norm = weights.after(layer, "attn")
            held = weights.frozen(norm, self.raw(run, layer, "attn")).at(column)
            parts.append(weights.attn.factor * held(output))
        return parts[1] - parts[0]

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


def _n_different(batch: Sequence[Encoded], twins: Sequence[Encoded]) -> int:
    """Columns from the first in which any pair differs."""
    both = zip(batch, twins, strict=True)
    pairs = [(one.prompt_tokens.tolist(), twin.prompt_tokens.tolist()) for one, twin in both]
    return max(len(one) - _first_difference(one, twin) for one, twin in pairs)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def paired_caches(
    weights: ModelWeights,
    examples: Sequence[Example],
    metric: Metric,
    n_columns: int | None = None,
) -> list[PairedCache]:
    """One `PairedCache` per batch of examples, in their order, of ``n_columns`` if it is given.

    Raises:
        LensSkillsError: No examples, one without a twin, or twins that differ in tokens from
            their examples in number, or not at all.
    """
    check_twins(examples)
    items, plan = prepare(weights.adapter, examples, [metric])
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
    return [PairedCache(weights, plan, items[part], twins[part], n_columns) for part in parts]


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


def equal_length_pairs(model: Any, examples: Sequence[Example], *, chat: Chat = False) -> Any:
    """The examples whose twins have as many tokens as they: those a circuit can be found on.

    Of a `Task`, a `Task`; else a list. ``chat`` is as in `circuit`.

    Raises:
        LensSkillsError: None is left, or one has no twin.
    """
    adapter = with_soft_prompt(model, None, chat)
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
    if isinstance(examples, Task):

        def equal_length(example: Any) -> bool:
            return example.id in kept

        return examples.where(equal_length)
    return [example for example in examples if example.id in kept]
