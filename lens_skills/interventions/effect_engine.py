"""`EffectEngine`: one batch of examples, on which stacks of edited sets are measured.

Only the columns that change are run, from the block that changes on, where that is exact; else
whole passes. `DirectPath` is what an edit writes straight to the answer, all else frozen.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.continuations import Scores
from lens_skills.activations.forward import (
    Encoded,
    RequiredOutputs,
    TokenOdds,
    forward_batch,
    read_out,
    refuse_non_finite,
)
from lens_skills.activations.metrics import Readout
from lens_skills.interventions.baselines import Change
from lens_skills.interventions.batched_edits import EditRows, EditStack, check_width, stack_editors
from lens_skills.interventions.row_budget import RowBudget
from lens_skills.models import EditHook, keep_activation
from lens_skills.models.partial_forward import CannotResume, prefill
from lens_skills.models.weights import LayerSite, OutputWeights, frozen_norm, written

_AGREE = 1e-4  # nats: how near the fast clean metric must be to the whole model's
_ROUND = 32  # sets: a round number of them goes into equal trees
_VOCABULARY_ROWS = 128  # rows whose logits over the whole vocabulary are held at once


@dataclass(frozen=True, eq=False)
class SweepSpec:
    """What all batches of a sweep share.

    ``places`` are the edited prompt tokens of each example, ``spots`` every (layer, site) any set
    touches, ``rows`` how many columns are run at once.
    """

    adapter: Any
    plan: RequiredOutputs
    metric: Metric
    change: Change
    places: Mapping[int, Sequence[int]]
    spots: frozenset[LayerSite]
    ragged: bool  # whether examples differ in how many tokens are edited (position "all")
    direct: bool  # whether direct effects are wanted too
    rows: RowBudget
    writes: OutputWeights


class EffectEngine:
    """One batch of examples after its clean pass, ready for stacks of edited sets.

    Attributes:
        clean: The metric of each example without an edit.
        whole: Why full passes are run (None: only the changed columns are).
    """

    def __init__(self, spec: SweepSpec, batch: Sequence[Encoded]) -> None:
        self.spec, self.batch = spec, batch
        self.tree = spec.plan.tree(spec.adapter, batch)
        self.width = self.tree.tokens.shape[1]
        self.at = EditRows.of(batch, spec.places, self.tree.starts)
        self.old: dict[LayerSite, Tensor] = {}
        self.odds: TokenOdds | None = None
        self.whole: str | None = None
        try:
            self._prefill()
        except CannotResume as reason:
            self.whole = str(reason)
            values = forward_batch(spec.adapter, batch, spec.plan, [spec.metric], {}, {})
            self.clean = values[spec.metric.name]

    def under(self, change: Change) -> "EffectEngine":
        """The same batch after the same clean pass, for another edit of the same hook points."""
        other = copy(self)
        other.spec = replace(self.spec, change=change)
        return other

    def _prefill(self) -> None:
        spec, tree = self.spec, self.tree
        kept: dict[LayerSite, Tensor] = {}
        # Every token's activations are many: they are kept where something needs them.
        wanted = spec.spots if spec.direct or not spec.ragged else ()
        readers = {
            f"blocks.{spot[0]}.{spot[1]}": keep_activation(kept, spot, self.at.taken)
            for spot in wanted
        }
        start = int(self.at.columns.min())
        self.main = prefill(
            spec.adapter, tree.tokens, tree.mask,
            start=start, readers=readers, branches=tree.branches,
        )  # fmt: skip
        self.old = kept
        self.clean = self._read(self.main.entering[-1][None])
        refuse_non_finite(spec.metric.name, self.clean, self.batch)
        odds = TokenOdds.of(spec.adapter, self.batch, spec.plan, spec.metric)
        if odds is not None:
            normal = self.main.normalise(self.main.entering[-1][None, :, -1])
            # A model may bend its logits (soft caps): then the columns alone do not give them.
            if bool(((odds(normal)[0].cpu() - self.clean).abs() <= _AGREE).all()):
                self.odds, self.clean_odds = odds, odds(normal)[0]

    def n_sets(self) -> int:
        """How many sets fit into one pass."""
        n_sets = self.spec.rows.columns(self.shape) // self.columns
        if self.spec.plan.vocabulary:
            n_sets = min(n_sets, _VOCABULARY_ROWS // len(self.batch))
        return max(1, n_sets - n_sets % _ROUND if n_sets > 2 * _ROUND else n_sets)

    @property
    def columns(self) -> int:
        """How many columns are run for one set."""
        return len(self.batch) * (self.width if self.whole else self.main.n_columns)

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a column's memory depends on, beside the model."""
        return self.width, self.whole is None, self.odds is None, self.spec.plan

    def measure(self, stack: EditStack, draw: int) -> Float[Tensor, "set example"]:
        """The metric of each set and example under the edit, minus the clean one."""
        measured = self._measure_suffix if self.whole is None else self._measure_whole
        effects, moved = measured(stack, draw)
        # What nothing was changed for has no effect, whatever the rounding of another batch shape.
        effects = effects.masked_fill(~moved, 0.0)
        return rearrange(effects, "(set example) -> set example", set=len(stack.places))

    def _measure_suffix(
        self, stack: EditStack, draw: int
    ) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        added = self._added(stack, draw)
        if added is None:
            return self._after(*self._resume(stack, draw, None))
        # Features that are off already (most of a ReLU's) need no pass to have no effect.
        moving = _moving(added)
        effects, moved = self._after(*self._resume(stack, draw, added[moving]))
        n_sets, n_examples = added.shape[:2]
        whole = effects.new_zeros(n_sets, n_examples), moved.new_zeros(n_sets, n_examples)
        for every, part in zip(whole, (effects, moved), strict=True):
            every[moving.to(every.device)] = part.unflatten(0, (-1, n_examples))
        return whole[0].flatten(), whole[1].flatten()

    def _after(
        self, out: Float[Tensor, "set example column d_model"], moved: Bool[Tensor, " row"]
    ) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        """What leaves the last block, as effects; and which rows moved."""
        if self.odds is not None:
            effects = (self.odds(self.main.normalise(out[:, :, -1])) - self.clean_odds).cpu()
            return rearrange(effects, "set example -> (set example)"), moved
        return self._read(out) - self.clean.repeat(len(out)), moved

    def _read(self, out: Float[Tensor, "set example column d_model"]) -> Float[Tensor, " row"]:
        """The metric of what leaves the last block; what is not finite is kept as it is."""
        spec, chunks = self.spec, self.tree.suffix_logits(self.main, out)
        scores = Scores.of(self.tree, chunks, n_sets=len(out), first=spec.plan.vocabulary)
        rows = list(self.batch) * len(out)
        readout = read_out(spec.adapter, rows, spec.plan, scores)
        return spec.metric.of(readout, rows).double().cpu()

    def _resume(
        self, stack: EditStack, draw: int, added: Float[Tensor, "set example pos d_model"] | None
    ) -> tuple[Float[Tensor, "set example column d_model"], Bool[Tensor, " row"]]:
        """The residual stream after the last block under the edit, from the block that changes on.

        At the suffix's columns; and which rows the edit changed at all.
        """
        layer, suffix = stack.bottom, self.main
        at = self.at.shifted(suffix.start)
        if added is None:
            n_sets = len(stack.places)
            rows = at.repeated(n_sets)
            editors, moved = stack_editors(self.spec.change, stack, rows, draw)
            # Which rows moved is known once the editors have run.
            return suffix.run(suffix.clean(layer, n_sets), layer, editors=editors), moved
        # The block's own output is the clean one plus what the edited features write.
        residual = suffix.clean(layer + 1, len(added)).clone()
        columns = at.columns.to(residual.device)
        for pos in range(columns.shape[1]):
            examples = torch.arange(len(columns), device=residual.device)
            residual[:, examples, columns[:, pos]] += added[:, :, pos].to(residual)
        moved = rearrange((added != 0).flatten(2).any(-1), "s e -> (s e)").cpu()
        return suffix.run(residual, layer + 1), moved

    def _measure_whole(
        self, stack: EditStack, draw: int
    ) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        places, n_examples = self.spec.places, len(self.batch)
        # A row's own number tells its set where a metric reads some rows in another order.
        rows = [replace(e, index=k) for k, e in enumerate(list(self.batch) * len(stack.places))]
        moved = torch.zeros(len(rows), dtype=torch.bool)
        seen: list[tuple[Tensor, Tensor]] = []

        def editing(part: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, EditHook]:
            number = torch.tensor([item.index for item in part])
            own = [self.batch[row % n_examples] for row in number.tolist()]
            at = replace(EditRows.of(own, places, starts), sets=number // n_examples)
            editors, found = stack_editors(self.spec.change, stack, at, draw)
            seen.append((number, found))
            return editors

        metric, kept = self.spec.metric, []

        def keep(readout: Readout, examples: Sequence[Any]) -> Tensor:
            kept.append(metric.of(readout, examples).double().cpu())
            return torch.zeros(len(examples))

        # What is not finite is kept as it is.
        watched = replace(metric, of=keep)
        forward_batch(self.spec.adapter, rows, self.spec.plan, [watched], {}, {}, editing)
        for number, found in seen:
            moved[number] |= found
        return kept[0] - self.clean.repeat(len(stack.places)), moved

    def _added(self, stack: EditStack, draw: int) -> Tensor | None:
        """What the stack adds to the residual stream after its only block, where it is a sum."""
        if len(stack.features) != 1 or self.spec.ragged:
            return None
        ((spot, features),) = stack.features.items()
        weight = self.spec.writes.matrix(self.main, spot, "hook_resid_post")
        if weight is None:
            return None
        return written(self.difference(spot, features, draw), features, weight)

    def difference(
        self, spot: LayerSite, features: Int[Tensor, "set feature"], draw: int
    ) -> Float[Tensor, "set example pos feature"]:
        """New minus old activation at the edited positions of the clean pass."""
        n_sets, n_examples = len(features), len(self.batch)
        values = self.old[spot]
        check_width(spot, features, values.shape[-1])
        index = repeat(features, "set feature -> (set example) feature", example=n_examples)
        index = index.to(values.device)
        rows = torch.arange(n_examples, device=values.device).repeat(n_sets)
        pos = torch.arange(values.shape[1], device=values.device)
        old = values[rows[:, None, None], pos[:, None], index[:, None]]
        examples = self.at.examples.repeat(n_sets)
        new = self.spec.change.new(*spot, old, index, examples, draw)
        valid = self.at.valid.repeat(n_sets, 1).to(new.device)
        moved = (new - old) * valid[:, :, None]
        return rearrange(moved, "(set example) p f -> set example p f", set=n_sets)


def _moving(added: Float[Tensor, "set example pos d_model"]) -> Int[Tensor, " moving"]:
    """Sets that add anything, and as many others as make their number round."""
    order = (added != 0).flatten(1).any(1).int().argsort(descending=True, stable=True)
    n_moving = int((added != 0).flatten(1).any(1).sum())
    return order[: max(1, -(-n_moving // _ROUND) * _ROUND)]


@dataclass(frozen=True, eq=False)
class DirectPath:
    """The direct effect on log-odds: linear in what is written at the answer's position.

    The write is added to the clean residual stream after the last block and read through the
    final norm at the clean pass's own scale. A norm after the sublayer that writes is computed
    anew.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 3; frozen scale as in McGrath et al. 2023
    (arXiv 2307.15771).
    """

    engine: EffectEngine
    last: Int[Tensor, " example"]
    directions: Float[Tensor, "example k d_model"]
    clean: Float[Tensor, "example k"]

    @classmethod
    def of(cls, engine: EffectEngine) -> "DirectPath | None":
        """The direct path of a batch, or None where it is not defined.

        That is where the metric is no log-odds of single tokens, where an example is not edited
        at the position that predicts its answer, or where the final norm is of an unknown kind.
        """
        odds = engine.odds
        if odds is None:
            return None
        answering = (engine.at.columns == engine.width - 1) & engine.at.valid
        final = engine.main.entering[-1][:, -1]
        gain = frozen_norm(engine.main.normalise, final)
        if gain is None or not bool(answering.any(1).all()):
            return None
        weight, centred = gain
        directions = odds.directions * weight[:, None, :]
        if centred:
            directions = directions - directions.mean(-1, keepdim=True)
        normal = engine.main.normalise(final).to(directions)
        clean = torch.einsum("ed,ekd->ek", normal, odds.directions) + odds.offsets
        return cls(engine, answering.long().argmax(1), directions, clean)

    def measure(self, stack: EditStack, draw: int) -> Float[Tensor, "set example"] | None:
        """The direct effect of each set, or None where what it writes is not known."""
        engine = self.engine
        total: Tensor | float = 0.0
        for spot, features in stack.features.items():
            moved = engine.difference(spot, features, draw).double()
            examples = torch.arange(moved.shape[1], device=moved.device)
            moved = moved[:, examples, self.last.to(moved.device)]
            added = engine.spec.writes.change(engine.main, spot, features, moved)
            if added is None:
                return None
            total = total + added
        pushed = torch.einsum("sed,ekd->sek", total, self.directions)
        return ((self.clean + pushed).amin(-1) - self.clean.amin(-1)).cpu()
