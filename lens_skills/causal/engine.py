"""`Engine`: a batch of examples on which stacks of edited sets are measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_skills.activations import Metric
from lens_skills.activations.encoding import Encoded
from lens_skills.activations.forward import forward_batch
from lens_skills.activations.plan import Plan
from lens_skills.activations.readout import Editing, Readout, pad_left
from lens_skills.causal.edits import Change
from lens_skills.causal.odds import TokenOdds
from lens_skills.causal.resumed import Listening, Resumed, Suffixes
from lens_skills.causal.rows import Placement
from lens_skills.causal.stack import Spot, Stack, check_width, stack_editors
from lens_skills.causal.writes import Writes, written
from lens_skills.models import Editor
from lens_skills.models.suffix import CannotResume

_AGREE = 1e-4  # nats: how near the fast clean metric must be to the whole model's
_VOCABULARY_ROWS = 128  # rows whose logits over the whole vocabulary are held at once


@dataclass(frozen=True, eq=False)
class Setting:
    """What all batches of a sweep share.

    Attributes:
        lens, plan, metric, change: The model, what its metric reads, and the bound edit.
        places: The edited prompt tokens of each example.
        spots: Every (layer, site) any set touches.
        ragged: Whether examples differ in how many tokens are edited (position ``"all"``).
        direct: Whether direct effects are wanted too.
        rows: Columns to recompute at once.
    """

    lens: Any
    plan: Plan
    metric: Metric
    change: Change
    places: Mapping[int, Sequence[int]]
    spots: frozenset[Spot]
    ragged: bool
    direct: bool
    rows: int
    writes: Writes


class Engine:
    """One batch of examples after its clean pass, ready for stacks of edited sets.

    Attributes:
        clean: The metric of each example without an edit.
        whole: Why full passes are run (None: only the changed columns are).
    """

    def __init__(self, setting: Setting, batch: Sequence[Encoded]) -> None:
        self.setting, self.batch = setting, batch
        lens, plan, metric = setting.lens, setting.plan, setting.metric
        lens = Listening(lens)
        self.clean = forward_batch(lens, batch, plan, [metric], {}, {})[metric.name]
        self.at = self._placement()
        self.suffixes = Suffixes(setting.lens, batch, setting.places)
        self.old: dict[Spot, Tensor] = {}
        self.odds: TokenOdds | None = None
        self.whole = _needs_whole(plan, batch)
        if self.whole is None:
            try:
                self._prefill(lens.heard[0][:, -1])
            except CannotResume as reason:
                self.whole = str(reason)

    def _rows(self) -> list[list[int]]:
        return [[*e.prompt_tokens.tolist(), *self.setting.plan.extra(e)] for e in self.batch]

    def _placement(self) -> Placement:
        rows, items = self._rows(), [item.index for item in self.batch]
        self.width = max(map(len, rows))
        starts = [self.width - len(row) for row in rows]
        return Placement.of(items, [self.setting.places[item] for item in items], starts)

    def _prefill(self, clean: Float[Tensor, "example d_vocab"]) -> None:
        setting = self.setting
        kept: dict[Spot, Tensor] = {}

        def reader(spot: Spot) -> Any:
            def read(activation: Tensor) -> None:
                flat = activation.flatten(2)
                rows = torch.arange(len(flat), device=flat.device)[:, None]
                kept[spot] = flat[rows, self.at.columns.to(flat.device)]

            return read

        # Every token's activations are many: they are kept where something needs them.
        wanted = setting.spots if setting.direct or not setting.ragged else ()
        readers = {f"blocks.{spot[0]}.{spot[1]}": reader(spot) for spot in wanted}
        tokens, mask = pad_left(self._rows(), setting.lens.pad_id, setting.lens.device)
        self.main = self.suffixes.of(tokens, mask, readers, clean)
        self.old = kept
        odds = TokenOdds.of(setting.lens, self.batch, setting.plan, setting.metric)
        if odds is not None:
            normal = self.main.normalise(self.main.entering[-1][None, :, -1])
            # A model may bend its logits (soft caps): then the columns alone do not give them.
            if bool(((odds(normal)[0].cpu() - self.clean).abs() <= _AGREE).all()):
                self.odds, self.clean_odds = odds, odds(normal)[0]

    def n_sets(self) -> int:
        """How many sets fit into one pass."""
        columns = self.width if self.whole else self.main.width - self.main.start
        rows = self.setting.rows
        if self.odds is None and self.whole is None:
            rows = min(rows, _VOCABULARY_ROWS)
        return max(1, rows // (len(self.batch) * columns))

    def measure(self, stack: Stack, draw: int) -> Float[Tensor, "set example"]:
        """The metric of each set and example under the edit, minus the clean one."""
        measured = self._measure_suffix if self.whole is None else self._measure_whole
        effects, moved = measured(stack, draw)
        # What nothing was changed for has no effect, whatever the rounding of another batch shape.
        effects = effects.masked_fill(~moved, 0.0)
        return rearrange(effects, "(set example) -> set example", set=len(stack.places))

    def _measure_suffix(
        self, stack: Stack, draw: int
    ) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        resumed = Resumed(self.suffixes, self.setting, stack, draw, self._added(stack, draw))
        if self.odds is not None:
            out = resumed.run(self.main, self.at)[:, :, -1]
            effects = (self.odds(self.main.normalise(out)) - self.clean_odds).cpu()
            return rearrange(effects, "set example -> (set example)"), resumed.moved
        rows = [item for _ in stack.places for item in self.batch]
        return self._read(resumed, rows, None), resumed.moved

    def _measure_whole(
        self, stack: Stack, draw: int
    ) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        places, n_examples = self.setting.places, len(self.batch)
        # A row's own number tells its set where a metric reads some rows in another order.
        rows = [replace(e, index=k) for k, e in enumerate(list(self.batch) * len(stack.places))]
        moved = torch.zeros(len(rows), dtype=torch.bool)
        seen: list[tuple[Tensor, Tensor]] = []

        def editing(part: Sequence[Encoded], starts: Sequence[int]) -> Mapping[str, Editor]:
            number = torch.tensor([item.index for item in part])
            index = [self.batch[row % n_examples].index for row in number.tolist()]
            at = Placement.of(index, [places[item] for item in index], starts)
            at = replace(at, sets=number // n_examples)
            editors, found = stack_editors(self.setting.change, stack, at, draw)
            seen.append((number, found))
            return editors

        effects = self._read(self.setting.lens, rows, editing)
        for number, found in seen:
            moved[number] |= found
        return effects, moved

    def _read(
        self, lens: Any, rows: Sequence[Encoded], editing: Editing | None
    ) -> Float[Tensor, " row"]:
        """The metric of edited rows minus the clean one; what is not finite is kept as it is."""
        metric, kept = self.setting.metric, []

        def keep(readout: Readout, examples: Sequence[Any]) -> Tensor:
            kept.append(metric.of(readout, examples).double().cpu())
            return torch.zeros(len(examples))

        watched = replace(metric, of=keep)
        forward_batch(lens, rows, self.setting.plan, [watched], {}, {}, editing)
        return kept[0] - self.clean.repeat(len(rows) // len(self.batch))

    def _added(self, stack: Stack, draw: int) -> Tensor | None:
        """What the stack adds to the residual stream after its only block, where it is a sum."""
        if len(stack.features) != 1 or self.setting.ragged:
            return None
        ((spot, features),) = stack.features.items()
        weight = self.setting.writes.matrix(self.main, spot, "hook_resid_post")
        if weight is None:
            return None
        return written(self.difference(spot, features, draw), features, weight)

    def difference(
        self, spot: Spot, features: Int[Tensor, "set feature"], draw: int
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
        new = self.setting.change.new(*spot, old, index, examples, draw)
        valid = self.at.valid.repeat(n_sets, 1).to(new.device)
        moved = (new - old) * valid[:, :, None]
        return rearrange(moved, "(set example) p f -> set example p f", set=n_sets)


def _needs_whole(plan: Plan, batch: Sequence[Encoded]) -> str | None:
    """Why the metric needs whole passes: options of several tokens are read one after another."""
    if plan.options and any(len(o) > 1 for item in batch for o in item.option_tokens):
        return "the metric reads answer options of several tokens"
    return None
